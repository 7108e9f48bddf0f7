//! `darkroom plan`: bytes, memory and work of a model and a size, before anything is computed.

use std::io::Write;

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{
    model::Family,
    plan::{Plan, Size, plan, plan_flux1},
};
use tensor::DType;

use crate::model_args::ModelArgs;

/// Tell what a model and a size would take, without computing.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Width in pixels
    #[arg(short = 'W', long, value_name = "PIXELS")]
    width: Option<u32>,
    /// Height in pixels
    #[arg(short = 'H', long, value_name = "PIXELS")]
    height: Option<u32>,
    /// Steps from noise to picture
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// T5 tokens
    #[arg(long, value_name = "N")]
    t5_length: Option<usize>,
    /// Plan with classifier-free guidance: two evaluations a step
    #[arg(long)]
    true_cfg: bool,
    /// Format of weights that are not there yet: bf16, f16, f32, fp8
    #[arg(long, value_name = "KIND", default_value = "bf16", value_parser = parse_dtype)]
    weights: DType,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let known = args.model.model.as_deref().and_then(real);
    let files = if args.model.is_given() { Some(args.model.find()) } else { None };
    // A known name without files is planned from the published configuration.
    let (title, plan) = match (files, known) {
        (Some(Ok(files)), _) => {
            let size = size(args, files.defaults);
            (files.name.clone(), plan(&files, size)?)
        }
        (Some(Err(error)), None) => return Err(error.into()),
        (Some(Err(_)) | None, known) => {
            let family = known.unwrap_or(Family::Krea);
            let size = size(args, family.defaults());
            let title = format!("{} (no files, {} weights assumed)", family.name(), args.weights.name());
            (title, plan_flux1(family != Family::Schnell, args.weights, size)?)
        }
    };
    if args.json { print_json(&title, &plan) } else { print(&title, &plan) }
}

/// Names whose configuration is published.
fn real(name: &str) -> Option<Family> {
    match Family::from_name(name) {
        Family::Other if name == "dev" => Some(Family::Dev),
        Family::Other => None,
        family => Some(family),
    }
}

fn size(args: &Args, defaults: flux::model::Defaults) -> Size {
    let steps = args.steps.unwrap_or(defaults.steps);
    Size {
        width: args.width.unwrap_or(defaults.width),
        height: args.height.unwrap_or(defaults.height),
        t5_length: args.t5_length.unwrap_or(defaults.t5_length),
        evaluations: if args.true_cfg { 2 * steps } else { steps },
    }
}

fn print(title: &str, plan: &Plan) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{title}")?;
    writeln!(out, "{} tokens, {} evaluations of the transformer", plan.tokens, plan.evaluations)?;
    writeln!(out)?;
    writeln!(out, "{:<12} {:>14} {:>12} {:>12} {:>12}", "part", "parameters", "weights", "activations", "TFLOP a run")?;
    for part in &plan.parts {
        writeln!(
            out,
            "{:<12} {:>14} {:>12} {:>12} {:>12.2}",
            part.name,
            part.parameters,
            bytes(part.weight_bytes),
            bytes(part.work.peak_bytes),
            tera(part.work.flop()),
        )?;
    }
    writeln!(out)?;
    writeln!(out, "work of a picture   {:>10.1} TFLOP", tera(plan.flop()))?;
    writeln!(
        out,
        "memory, at least    {:>12}  (the largest part with its activations; weights are paged in from disk)",
        bytes(plan.peak_bytes())
    )?;
    writeln!(out, "memory, at best     {:>12}  (all weights stay in memory)", bytes(plan.resident_bytes()))?;
    if let Some(available) = available_memory() {
        let verdict = if available >= plan.resident_bytes() {
            "everything fits"
        } else if available >= plan.peak_bytes() {
            "each part fits by itself"
        } else {
            "too little: weights will be read from disk again and again, which is slow"
        };
        writeln!(out, "this machine        {:>12}  available: {verdict}", bytes(available))?;
    }
    Ok(())
}

fn print_json(title: &str, plan: &Plan) -> Result<()> {
    let parts: Vec<_> = plan
        .parts
        .iter()
        .map(|part| {
            serde_json::json!({
                "name": part.name,
                "parameters": part.parameters,
                "weight_bytes": part.weight_bytes,
                "activation_bytes": part.work.peak_bytes,
                "tflop": tera(part.work.flop()),
            })
        })
        .collect();
    let report = serde_json::json!({
        "model": title,
        "tokens": plan.tokens,
        "evaluations": plan.evaluations,
        "parts": parts,
        "tflop": tera(plan.flop()),
        "peak_bytes": plan.peak_bytes(),
        "resident_bytes": plan.resident_bytes(),
        "available_bytes": available_memory(),
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

fn tera(flop: u64) -> f64 {
    flop as f64 / 1e12
}

/// `23.8 GB`: decimal, as disks and downloads are counted.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Memory that programs can still take, where the system tells.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" => Ok(DType::BF16),
        "f16" | "fp16" => Ok(DType::F16),
        "f32" | "fp32" => Ok(DType::F32),
        "fp8" | "f8" => Ok(DType::F8E4M3),
        _ => Err(format!("'{text}' is not a format; bf16, f16, f32 and fp8 are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!([0, 999, 1000, 23_802_816_640].map(bytes), ["0 B", "999 B", "1.0 kB", "23.8 GB"]);
    }
}
