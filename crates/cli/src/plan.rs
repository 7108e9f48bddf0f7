//! `darkroom plan`: bytes, memory and work of a model and a size, before anything is computed.

use std::{ffi::OsStr, io::Write};

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{
    LoadOptions, Pipeline, Request,
    model::{Family, Kind, ModelFiles},
    pixels::Rgb8,
    plan::{PartPlan, Plan},
    rehearsal::plan_flux1,
    styles::Style,
    vae::VaeConfig,
};
use tensor::DType;

use crate::{
    Usage, compute_args::ComputeArgs, image_args::ImageArgs, inspect::dtypes, lora_args::LoraArgs,
    model_args::ModelArgs, readable::bytes, safety_args::SafetyArgs, sampling_args::SamplingArgs, size_args::SizeArgs,
    style_args::StyleArgs,
};

/// Tell what a model and a size would take, without computing.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    style: StyleArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    safety: SafetyArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Steps from noise to picture
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// T5 tokens
    #[arg(long, value_name = "N")]
    t5_length: Option<usize>,
    /// Pictures that Redux makes tokens of, without their files
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4))]
    styles: u32,
    /// Plan with classifier-free guidance: two evaluations a step
    #[arg(long)]
    true_cfg: bool,
    /// Format of weights that are not there yet: bf16, f16, f32, fp8, or one of GGUF's, such as q4_k
    #[arg(long, value_name = "KIND", default_value = "bf16", value_parser = parse_dtype)]
    weights: DType,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.images.check(None)?;
    let known = args.model.model.as_deref().and_then(OsStr::to_str).and_then(real);
    let files = if args.model.is_given() { Some(args.model.find()) } else { None };
    // A known name without files is planned from the published configuration.
    let (title, plan, formats) = match (files, known) {
        (Some(Ok(files)), _) => of_files(args, files)?,
        (Some(Err(error)), None) => return Err(error.into()),
        (Some(Err(_)) | None, known) => {
            let family = known.unwrap_or(Family::Krea);
            if !args.lora.names_none() {
                let problem = "--lora changes layers of a model, and there are no files of one; hint: -m PATH";
                return Err(Usage(problem.into()).into());
            }
            let mut request = Request::new("", &family.defaults());
            ask(args, family, &mut request)?;
            let kind = if family == Family::Kontext { Kind::Kontext } else { Kind::Base };
            request.check(16)?;
            request.pictures.check(kind, family, 16)?;
            let title = format!("{} (no files, {} weights assumed)", family.name(), args.weights.name());
            let (guided, workload) = (family != Family::Schnell, request.planned(&VaeConfig::flux()));
            (title, plan_flux1(guided, args.weights, workload, &options(args)?)?, Vec::new())
        }
    };
    if args.json { print_json(&title, &plan, &formats) } else { print(&title, &plan, &formats) }
}

fn options(args: &Args) -> Result<LoadOptions> {
    let safety = args.safety.policy()?;
    Ok(LoadOptions { upscaler: args.size.upscaler.clone(), safety, ..args.compute.options() })
}

/// As the picture would be made, up to the first step.
fn of_files(args: &Args, files: ModelFiles) -> Result<(String, Plan, Formats)> {
    let formats = files.parts().map(|(name, part)| (name, dtypes(&part.checkpoint, &part.detected))).to_vec();
    let mut pipeline = Pipeline::load(files, &options(args)?, &mut ())?;
    let reports = pipeline.set_loras(&args.lora.open(&[])?)?;
    args.lora.report(&reports, &mut |line| eprintln!("{line}"))?;
    let mut request = pipeline.request("");
    ask(args, pipeline.family(), &mut request)?;
    match pipeline.check(&request) {
        // That is what the plan is to tell.
        Ok(()) | Err(flux::Error::Asked { field: "memory_limit", .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok((pipeline.name().to_owned(), pipeline.plan(&request)?, formats))
}

/// Puts what flags say into a request.
fn ask(args: &Args, family: Family, request: &mut Request) -> Result<()> {
    args.images.apply(family, request, None)?;
    args.size.apply(request)?;
    args.sampling.apply(request)?;
    args.style.apply(request)?;
    let blank = Style { picture: Rgb8::new(1, 1, vec![0; 3]), weight: 1.0 };
    request.styles.extend(std::iter::repeat_n(blank, args.styles as usize));
    request.steps = args.steps.unwrap_or(request.steps);
    request.t5_length = args.t5_length.unwrap_or(request.t5_length);
    if args.true_cfg {
        request.true_cfg = 2.0;
    }
    Ok(())
}

/// Names whose configuration is published.
fn real(name: &str) -> Option<Family> {
    match Family::from_name(name) {
        Family::Other if name == "dev" => Some(Family::Dev),
        Family::Other | Family::Fill | Family::Canny | Family::Depth | Family::Control => None,
        family => Some(family),
    }
}

/// Which formats the tensors of each part are stored in, by the part's name.
type Formats = Vec<(&'static str, String)>;

fn print(title: &str, plan: &Plan, formats: &[(&str, String)]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{title}, {}", plan.precision)?;
    writeln!(out, "{} tokens, {} evaluations of the transformer", plan.tokens, plan.evaluations)?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<12} {:>14} {:>12} {:>12} {:>12} {:>12}",
        "part", "parameters", "weights", "in memory", "activations", "TFLOP a run"
    )?;
    for part in &plan.parts {
        writeln!(
            out,
            "{:<12} {:>14} {:>12} {:>12} {:>12} {:>12.2}",
            part.name,
            part.parameters,
            bytes(part.weight_bytes),
            bytes(part.resident_bytes()),
            bytes(part.work.peak_bytes),
            tera(part.work.flop()),
        )?;
    }
    for (name, formats) in formats {
        writeln!(out, "{name:<12} is stored as {formats}")?;
    }
    writeln!(out)?;
    writeln!(out, "work of a picture   {:>10.1} TFLOP", tera(plan.flop()))?;
    writeln!(
        out,
        "memory, at the most {:>12}  (the program itself {})",
        bytes(plan.peak_bytes()),
        bytes(plan.overhead_bytes)
    )?;
    if let Some(limit) = plan.limit {
        let verdict = match plan.shortfall() {
            Some(missing) => format!("{} too little", bytes(missing)),
            None => "it fits".into(),
        };
        writeln!(out, "memory, limit       {:>12}  {verdict}", bytes(limit))?;
    }
    for line in means(plan) {
        writeln!(out, "  {line}")?;
    }
    if plan.shortfall().is_some() {
        writeln!(
            out,
            "  at least {} are needed; hint: a smaller picture, or weights in a smaller format",
            bytes(plan.least_bytes())
        )?;
    }
    Ok(())
}

/// By which means a plan stays within its limit.
pub(crate) fn means(plan: &Plan) -> Vec<String> {
    let streamed = |part: &&PartPlan| part.streamed_bytes() > 0;
    let kept = |part: &&PartPlan| part.kept_blocks > 0;
    let mut lines: Vec<String> = plan.parts.iter().filter(streamed).map(stream).collect();
    lines.extend(plan.parts.iter().filter(kept).map(keep));
    if !plan.keeps_transformer {
        lines.push("the transformer makes room for the autoencoder".into());
    }
    if plan.tiled {
        lines.push("the picture is decoded in tiles: colours move a little (docs/numerics.md)".into());
    }
    lines
}

fn stream(part: &PartPlan) -> String {
    let (resident, blocks) = (part.resident_blocks, part.blocks.len());
    let which = match resident {
        0 => format!("all {blocks} blocks of {} come one by one", part.name),
        _ => {
            format!("blocks 0 to {} of {} stay, {resident} to {} come one by one", resident - 1, part.name, blocks - 1)
        }
    };
    format!("{which}: {} are read at every run", bytes(part.streamed_bytes()))
}

fn keep(part: &PartPlan) -> String {
    let which = if part.kept_blocks == part.blocks.len() {
        "all blocks".into()
    } else {
        format!("blocks 0 to {}", part.kept_blocks - 1)
    };
    format!("{which} of {} stay rounded to int8, not as the file has them", part.name)
}

fn print_json(title: &str, plan: &Plan, formats: &[(&str, String)]) -> Result<()> {
    let parts: Vec<_> = plan
        .parts
        .iter()
        .map(|part| {
            serde_json::json!({
                "name": part.name,
                "formats": formats.iter().find(|(name, _)| *name == part.name).map(|(_, formats)| formats),
                "parameters": part.parameters,
                "weight_bytes": part.weight_bytes,
                "resident_bytes": part.resident_bytes(),
                "streamed_bytes": part.streamed_bytes(),
                "blocks": part.blocks.len(),
                "resident_blocks": part.resident_blocks,
                "kept_blocks": part.kept_blocks,
                "activation_bytes": part.work.peak_bytes,
                "tflop": tera(part.work.flop()),
            })
        })
        .collect();
    let report = serde_json::json!({
        "model": title,
        "precision": plan.precision.to_string(),
        "tokens": plan.tokens,
        "evaluations": plan.evaluations,
        "parts": parts,
        "tflop": tera(plan.flop()),
        "overhead_bytes": plan.overhead_bytes,
        "peak_bytes": plan.peak_bytes(),
        "least_bytes": plan.least_bytes(),
        "limit_bytes": plan.limit,
        "fits": plan.shortfall().is_none(),
        "keeps_transformer": plan.keeps_transformer,
        "tiled": plan.tiled,
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

fn tera(flop: u64) -> f64 {
    flop as f64 / 1e12
}

pub(crate) fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" => Ok(DType::BF16),
        "f16" | "fp16" => Ok(DType::F16),
        "f32" | "fp32" => Ok(DType::F32),
        "fp8" | "f8" => Ok(DType::F8E4M3),
        _ => DType::BLOCKS.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names = DType::BLOCKS.map(|dtype| dtype.name().to_lowercase()).join(", ");
            format!("'{text}' is not a format; bf16, f16, f32, fp8 and GGUF's {names} are")
        }),
    }
}
