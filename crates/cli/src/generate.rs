//! `darkroom generate`: from arguments to files.

use std::{
    io::{Read, Write},
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use clap::Args as ClapArgs;
use flux::{
    Event, Generated, LoadOptions, Pipeline, Request, Seconds, Watch,
    acceleration::Evaluations,
    image_file::{self, Encoding, Format, MetadataLevel, Provenance},
    noise::Noise,
    pixels::Rgb8,
    recipe::Recipe,
    safety::Scores,
};

use crate::{
    Usage,
    compute_args::{CacheArgs, ComputeArgs},
    image_args::{self, ImageArgs},
    lora_args::LoraArgs,
    model_args::ModelArgs,
    output::{self, Template},
    progress::Progress,
    readable::shown,
    recipe_args::{self, RecipeArgs},
    safety_args::SafetyArgs,
    sampling_args::SamplingArgs,
    show,
    size_args::{self, SizeArgs},
    style_args::StyleArgs,
};

/// Make pictures from a prompt.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// What to draw; '-' reads it from standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// What to draw (the same as the argument)
    #[arg(short, long = "prompt", value_name = "TEXT", conflicts_with = "prompt")]
    prompt_flag: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_flag"])]
    prompt_file: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    size: SizeArgs,
    /// How many pictures; each has the next seed
    #[arg(short, long, value_name = "N", visible_alias = "batch-count", help_heading = "Picture")]
    batch: Option<u32>,
    /// Seed of the first picture; a random one is chosen and printed without it (also for -1)
    #[arg(short, long, value_name = "N", value_parser = parse_seed, allow_hyphen_values = true, help_heading = "Picture")]
    seed: Option<Seed>,

    /// Steps from noise to picture [default: the model's, 28 for Krea]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    steps: Option<u32>,
    /// Distilled guidance, an input of the model: no extra time [default: the model's, 4.5 for Krea]
    #[arg(long, value_name = "SCALE", help_heading = "Sampling")]
    guidance: Option<f32>,
    /// What not to draw; needs --true-cfg above 1
    #[arg(short, long, value_name = "TEXT", help_heading = "Sampling")]
    negative_prompt: Option<String>,
    /// Classifier-free guidance with the negative prompt: twice the time; off at 1. Not --guidance
    #[arg(long, value_name = "SCALE", visible_alias = "cfg-scale", help_heading = "Sampling")]
    true_cfg: Option<f32>,
    /// Whose random numbers: cpu-f32 (ComfyUI), cpu-bf16 (BFL, diffusers on a CPU), philox[:MULTIPROCESSORS] (CUDA)
    /// [default: cpu-f32]
    #[arg(long, value_name = "KIND", help_heading = "Sampling")]
    noise: Option<Noise>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    styles: StyleArgs,
    /// T5 tokens the prompt is cut or padded to [default: the model's, 512; 256 is ComfyUI's least]
    #[arg(long, value_name = "N", visible_alias = "max-sequence-length", help_heading = "Sampling")]
    t5_length: Option<usize>,

    /// Where to write; {seed} and {index} are filled in, '-' is standard output [default: darkroom-{seed}.png]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<String>,
    /// png, jpeg, webp, avif or gif [default: by the name of the output, otherwise png]
    #[arg(long, help_heading = "Output")]
    format: Option<Format>,
    /// Quality of jpeg, webp and avif, 0 to 100
    #[arg(long, value_name = "N", default_value_t = 95, value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "Output")]
    quality: u8,
    /// What the picture says of its making: full, minimal (no prompt) or none. The AI-generated mark is always written
    #[arg(long, value_name = "LEVEL", default_value_t = MetadataLevel::Full, help_heading = "Output")]
    metadata: MetadataLevel,
    /// Also write the final latents, f32 [1, channels, height, width]
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Output")]
    save_latents: Option<String>,
    /// Write a preview beside the output every N steps
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5", help_heading = "Output")]
    preview: Option<u32>,
    /// Show the picture (and previews) in the terminal
    #[arg(long, help_heading = "Output")]
    show: bool,
    /// Print what was made as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// No progress; only errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,

    #[command(flatten)]
    safety: SafetyArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Decode the picture in tiles: auto (above 2048×1024 pixels), on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "on", "off"], help_heading = "Computing")]
    vae_tiling: String,
}

/// A seed as asked for.
#[derive(Clone, Copy)]
enum Seed {
    Random,
    Fixed(u64),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let recipe = args.recipe.read()?;
    args.images.check(recipe.as_ref())?;
    if let Some(recipe) = &recipe {
        recipe_args::check_lost(recipe, &args.images, &args.styles)?;
    }
    let prompt = prompt(args, recipe.as_ref())?;
    let batch = args.batch.or(recipe.as_ref().and_then(|recipe| recipe.batch)).unwrap_or(1);
    let template = template(args, batch)?;
    let safety = args.safety.policy()?;
    let cancel = cancel_on_interrupt()?;

    let start = Instant::now();
    let mut watch = Follow::new(Progress::new(args.quiet), cancel);
    let compute = args.compute.options();
    let options = LoadOptions {
        safety,
        prompt_cache: args.cache.cache(),
        upscaler: recipe_args::upscaler(&args.size, recipe.as_ref())?,
        precision: compute.precision.or(recipe.as_ref().and_then(|recipe| recipe.precision)),
        ..compute
    };
    let files = recipe_args::model(&args.model, recipe.as_ref())?;
    let loras = recipe_args::loras(&args.lora, recipe.as_ref())?;
    let mut pipeline = Pipeline::load(files, &options, &mut watch)?;
    let reports = pipeline.set_loras(&loras)?;
    watch.progress.loaded(pipeline.name(), pipeline.notice(), start.elapsed());
    for note in recipe.iter().flat_map(|recipe| &recipe.notes) {
        watch.progress.note(&format!("note: {note}"));
    }
    args.lora.report(&reports, &mut |line| watch.progress.note(line))?;

    let request = request(args, &pipeline, prompt, recipe.as_ref())?;
    pipeline.check(&request)?;
    watch.progress.asked(&request);
    for note in [image_args::note(&request), size_args::note(&request, pipeline.defaults())].into_iter().flatten() {
        watch.progress.note(&note);
    }
    watch.previews = previews(args, &template, &request, &pipeline);

    let mut written = Vec::new();
    let mut failure = None;
    let made = pipeline.generate_each(&request, &mut watch, &mut |generated| match save(
        args,
        &template,
        request.batch,
        &generated,
    ) {
        Ok(file) => {
            show_finished(args, generated.picture.get());
            written.push(file);
            ControlFlow::Continue(())
        }
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    });
    // What was made before a picture was refused is there, and told.
    let refused = match made {
        Err(flux::Error::Refused(refused)) => Some(refused),
        made => made.map(|()| None)?,
    };
    watch.progress.done();
    if let Some(previews) = &watch.previews {
        previews.remove();
    }
    for file in &written {
        eprintln_unless(args.quiet, &format!("seed {}: {}", file.seed, file.path));
    }
    if let Some(error) = failure {
        return Err(error);
    }
    if refused.is_none() || !written.is_empty() {
        report(args, &pipeline, &request, &written, start.elapsed().as_secs_f64())?;
    }
    refused.map_or(Ok(()), |refused| Err(flux::Error::from(refused).into()))
}

fn show_finished(args: &Args, picture: &Rgb8) {
    if args.show
        && let Err(e) = show::show(picture, &mut std::io::stderr())
    {
        eprintln_unless(args.quiet, &format!("cannot show the picture here: {e}"));
    }
}

fn eprintln_unless(quiet: bool, line: &str) {
    if !quiet {
        eprintln!("{line}");
    }
}

/// The prompt from whichever of its sources is given.
fn prompt(args: &Args, recipe: Option<&Recipe>) -> Result<String> {
    let given = args.prompt.as_deref().or(args.prompt_flag.as_deref());
    let text = match (given, &args.prompt_file) {
        (Some("-"), _) => {
            let mut text = String::new();
            std::io::stdin()
                .take(1 + flux::request::MAX_PROMPT as u64)
                .read_to_string(&mut text)
                .context("standard input (the prompt)")?;
            text
        }
        (Some(text), _) => return Ok(text.to_owned()),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("--prompt-file {}", shown(path)))?
        }
        (None, None) if args.styles.speaks_for_itself() => String::new(),
        (None, None) => {
            let made_before = recipe.and_then(|recipe| recipe.prompt.clone());
            let problem = "there is no prompt; hint: darkroom generate \"a red apple\"";
            return Ok(made_before.ok_or_else(|| Usage(problem.into()))?);
        }
    };
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn request(args: &Args, pipeline: &Pipeline, prompt: String, recipe: Option<&Recipe>) -> Result<Request> {
    let mut request = pipeline.request(prompt.clone());
    if let Some(recipe) = recipe {
        let negative_prompt = args.negative_prompt.clone().or_else(|| recipe.negative_prompt.clone());
        Recipe { prompt: Some(prompt), negative_prompt, ..recipe.clone() }.apply(&mut request, pipeline)?;
        recipe_args::pictures(recipe, &args.recipe, &args.images, &args.styles, &mut request)?;
    }
    args.images.apply(pipeline.family(), &mut request, recipe)?;
    args.size.apply(&mut request)?;
    request.steps = args.steps.unwrap_or(request.steps);
    request.guidance = args.guidance.unwrap_or(request.guidance);
    request.true_cfg = args.true_cfg.unwrap_or(request.true_cfg);
    if args.negative_prompt.is_some() {
        request.negative_prompt.clone_from(&args.negative_prompt);
    }
    request.batch = args.batch.unwrap_or(request.batch);
    request.noise = args.noise.unwrap_or(request.noise);
    args.sampling.apply(&mut request)?;
    args.styles.apply(&mut request)?;
    request.t5_length = args.t5_length.unwrap_or(request.t5_length);
    request.vae_tiling = match args.vae_tiling.as_str() {
        "on" => Some(true),
        "off" => Some(false),
        _ => request.vae_tiling,
    };
    let made_before = recipe.and_then(|recipe| recipe.seed);
    request.seed = match (args.seed, made_before) {
        (Some(Seed::Fixed(seed)), _) | (None, Some(seed)) => seed,
        // PyTorch's CPU generator uses 32 bits of a seed: no more are drawn, and short seeds are easier to keep.
        (Some(Seed::Random) | None, _) => u64::from(getrandom::u32().context("the system's random numbers")?),
    };
    if args.negative_prompt.is_some() && request.true_cfg <= 1.0 {
        let problem = "--negative-prompt has no effect without --true-cfg above 1 (which takes twice the time); \
                       hint: add --true-cfg 2";
        return Err(Usage(problem.into()).into());
    }
    Ok(request)
}

fn template(args: &Args, batch: u32) -> Result<Template> {
    let format = output::format(args.format, args.output.as_deref())?;
    if args.output.as_deref() == Some("-") {
        if batch > 1 {
            return Err(Usage("--output -: standard output takes one picture, not a batch".into()).into());
        }
        if args.json {
            return Err(Usage("--output - and --json both need standard output".into()).into());
        }
    }
    Ok(Template::new(args.output.as_deref(), format, batch))
}

/// A picture that was written.
#[derive(serde::Serialize)]
struct Written {
    path: String,
    seed: u64,
    width: u32,
    height: u32,
    format: String,
    /// What the picture gate said, if it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    /// Velocities.
    evaluations: Evaluations,
    seconds: Seconds,
}

fn save(args: &Args, template: &Template, batch: u32, generated: &Generated) -> Result<Written> {
    let picture = generated.picture.get();
    let encoding = Encoding { format: template.format(), quality: args.quality, metadata: args.metadata };
    let bytes = image_file::encode(&generated.picture, &generated.provenance, encoding)?;
    if let Some(name) = &args.save_latents {
        let path = Template::of_latents(name, batch).path(generated.seed, generated.index);
        output::write(&path, &generated.latents.to_safetensors()).with_context(|| shown(&path))?;
    }
    let path = if template.is_stdout() {
        std::io::stdout().write_all(&bytes).context("standard output")?;
        "-".to_owned()
    } else {
        let path = template.free_path(generated.seed, generated.index);
        output::write(&path, &bytes).with_context(|| shown(&path))?;
        path.display().to_string()
    };
    Ok(Written {
        path,
        seed: generated.seed,
        width: picture.width(),
        height: picture.height(),
        format: template.format().to_string(),
        scores: generated.picture.verdict().scores,
        evaluations: generated.evaluations,
        seconds: generated.seconds,
    })
}

fn report(args: &Args, pipeline: &Pipeline, request: &Request, written: &[Written], seconds: f64) -> Result<()> {
    if args.json {
        let report = serde_json::json!({
            "model": pipeline.name(),
            "prompt": request.prompt,
            "steps": request.steps,
            "sampler": request.sampler.name(),
            "acceleration": request.acceleration.to_string(),
            "guidance": request.guidance,
            "true_cfg": request.true_cfg,
            "safety": pipeline.safety().name(),
            "loras": pipeline.provenance(request, request.seed).loras,
            "images": written,
            "seconds": seconds,
            "planned_bytes": pipeline.plan(request)?.peak_bytes(),
            "peak_bytes": flux::memory::peak(),
        });
        writeln!(std::io::stdout(), "{report:#}")?;
    }
    Ok(())
}

/// Where previews go while a picture is made.
struct Previews {
    every: u32,
    path: PathBuf,
    show: bool,
    write: bool,
    safety: flux::safety::Safety,
    provenance: Provenance,
}

fn previews(args: &Args, template: &Template, request: &Request, pipeline: &Pipeline) -> Option<Previews> {
    let every = args.preview?.max(1);
    Some(Previews {
        every,
        path: template.preview_path(request.seed),
        show: args.show,
        write: !template.is_stdout(),
        safety: pipeline.safety().clone(),
        provenance: pipeline.provenance(request, request.seed),
    })
}

impl Previews {
    fn take(&self, preview: Rgb8) -> Result<()> {
        // A preview is a picture too: it passes the same gate.
        let preview = self.safety.review(preview).map_err(|flagged| anyhow!("{}", flagged.refused()))?;
        if self.show {
            show::show(preview.get(), &mut std::io::stderr())?;
        }
        if self.write {
            let encoding = Encoding { metadata: MetadataLevel::Minimal, ..Encoding::default() };
            let bytes = image_file::encode(&preview, &self.provenance, encoding)?;
            output::write(&self.path, &bytes)?;
        }
        Ok(())
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path); // the finished picture has taken its place
    }
}

/// Follows the work: progress, previews, and the interrupt.
pub(crate) struct Follow {
    pub(crate) progress: Progress,
    cancel: Arc<AtomicBool>,
    previews: Option<Previews>,
}

impl Follow {
    pub(crate) fn new(progress: Progress, cancel: Arc<AtomicBool>) -> Self {
        Self { progress, cancel, previews: None }
    }
}

impl Watch for Follow {
    fn event(&mut self, event: Event<'_>) {
        if let (Event::Step(step), Some(previews)) = (&event, &self.previews)
            && step.step.is_multiple_of(previews.every)
            && step.step < step.steps
            && let Some(preview) = step.preview()
            && let Err(e) = previews.take(preview)
        {
            self.progress.note(&format!("no preview: {e:#}"));
        }
        self.progress.event(&event);
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// The first interrupt stops between two blocks, the second at once.
pub(crate) fn cancel_on_interrupt() -> Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot listen for interrupts")?;
    Ok(cancel)
}

/// −1 is random as everywhere; other negative numbers count from 2⁶⁴ as in PyTorch.
fn parse_seed(text: &str) -> Result<Seed, String> {
    let seed: i128 = text.trim().parse().map_err(|_| format!("'{text}' is not a whole number"))?;
    if seed == -1 {
        return Ok(Seed::Random);
    }
    let wrapped = if seed < 0 { seed + (1 << 64) } else { seed };
    u64::try_from(wrapped).map(Seed::Fixed).map_err(|_| format!("'{text}' is outside of 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds() {
        assert!(matches!(parse_seed("-1"), Ok(Seed::Random)));
        assert!(matches!(parse_seed("-2"), Ok(Seed::Fixed(seed)) if seed == u64::MAX - 1));
        assert!(matches!(parse_seed("18446744073709551615"), Ok(Seed::Fixed(u64::MAX))));
        assert!(parse_seed("18446744073709551616").is_err() && parse_seed("x").is_err());
    }
}
