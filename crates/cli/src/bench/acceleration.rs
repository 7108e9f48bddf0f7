//! `darkroom bench acceleration`: what reusing velocities costs in likeness and saves in time.
//!
//! Each prompt is drawn once with every velocity computed and once with each kind of reuse. In a run that is not timed, each
//! velocity that was reused is also computed at the very same latents: their distance is its error.

use std::io::Write;

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{Generated, Pipeline, Request, acceleration::Acceleration, sampler::Sampler};
use serde_json::json;

use super::measure::level;
use crate::{compute_args::ComputeArgs, model_args::ModelArgs};

/// What the model in the box can draw: things, colours, backgrounds, sizes and places.
const PROMPTS: [&str; 16] = [
    "a red apple",
    "a blue cat on a yellow background",
    "a green dragon",
    "a purple car on a gray background",
    "a small tree",
    "a huge star",
    "a pink flamingo on the left",
    "a rocket",
    "an orange fox on a blue background",
    "a black umbrella",
    "a castle on a green background",
    "a happy face",
    "a yellow banana on a purple background",
    "a snowman at the top",
    "a red guitar",
    "a birthday cake on a pink background",
];

/// Compare pictures and times with and without reused velocities.
#[derive(ClapArgs)]
#[command(after_help = "\
Example:  darkroom bench acceleration --steps 28 --acceleration regular --acceleration easy:0.2")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// What to compare with none: regular, high, or first-block, taylor, easy with a threshold; repeatable
    #[arg(long, value_name = "LEVEL|KIND:X", default_values = ["regular", "high"])]
    acceleration: Vec<Acceleration>,
    /// What to draw, one prompt a line [default: 16 prompts for the model in the box]
    #[arg(long, value_name = "FILE")]
    prompts: Option<std::path::PathBuf>,
    /// The picture's size in pixels [default: the model's]
    #[arg(long, value_name = "WxH", value_parser = super::parse_size)]
    size: Option<(u32, u32)>,
    /// Steps from noise to picture
    #[arg(long, value_name = "N", default_value_t = 28)]
    steps: u32,
    /// How the velocity is followed
    #[arg(long, value_name = "NAME", default_value_t = Sampler::default())]
    sampler: Sampler,
    /// Classifier-free guidance, with an empty negative prompt
    #[arg(long, value_name = "SCALE", default_value_t = 1.0)]
    true_cfg: f32,
    /// Seed of the first prompt; the next ones count up
    #[arg(long, value_name = "N", default_value_t = 100)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Sums over all prompts of one kind of reuse.
struct Tally {
    acceleration: Acceleration,
    errors: Vec<f64>,
    distances: Vec<f64>,
    computed: u32,
    reused: u32,
    /// Of all steps.
    seconds: f64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let prompts: Vec<String> = match &args.prompts {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| super::problem(path, e))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        None => PROMPTS.map(str::to_owned).to_vec(),
    };
    if prompts.is_empty() {
        return Err(crate::Usage("--prompts: the file has no prompt; one a line is expected".into()).into());
    }
    let pipeline = Pipeline::load(args.model.find()?, &args.compute.options(), &mut ())?;
    let mut tallies: Vec<Tally> = std::iter::once(Acceleration::None)
        .chain(args.acceleration.iter().copied())
        .map(|acceleration| Tally {
            acceleration,
            errors: Vec::new(),
            distances: Vec::new(),
            computed: 0,
            reused: 0,
            seconds: 0.0,
        })
        .collect();
    // The first picture finds cold caches and files.
    once(&pipeline, &request(args, &pipeline, &prompts[0], 0, Acceleration::None))?;
    for (index, prompt) in prompts.iter().enumerate() {
        let mut exact: Option<Generated> = None;
        for tally in &mut tallies {
            let request = request(args, &pipeline, prompt, index, tally.acceleration);
            let made = once(&pipeline, &request)?;
            tally.seconds += made.seconds.denoise;
            tally.computed += made.evaluations.computed;
            tally.reused += made.evaluations.reused;
            if tally.acceleration != Acceleration::None {
                pipeline.generate_audited(&request, &mut (), &mut |reused| tally.errors.push(reused.error))?;
            }
            match &exact {
                Some(exact) => tally.distances.push(distance(&made.latents.values, &exact.latents.values)),
                None => exact = Some(made),
            }
        }
    }
    report(args, &pipeline, prompts.len(), &tallies)
}

fn request(args: &Args, pipeline: &Pipeline, prompt: &str, index: usize, acceleration: Acceleration) -> Request {
    let mut request = pipeline.request(prompt);
    if let Some((width, height)) = args.size {
        (request.width, request.height) = (width, height);
    }
    request.steps = args.steps;
    request.sampler = args.sampler;
    request.true_cfg = args.true_cfg;
    request.seed = args.seed.wrapping_add(index as u64);
    request.acceleration = acceleration;
    request
}

fn once(pipeline: &Pipeline, request: &Request) -> Result<Generated> {
    let made = pipeline.generate(request, &mut ())?;
    made.into_iter().next().ok_or_else(|| anyhow::anyhow!("a request of one picture made none"))
}

/// `|a − b| / |b|`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    (off / square(&mut b.iter().map(|&v| f64::from(v)))).sqrt()
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn report(args: &Args, pipeline: &Pipeline, prompts: usize, tallies: &[Tally]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let exact = tallies.first().map_or(0.0, |tally| tally.seconds);
    let pictures = prompts as f64;
    if args.json {
        let rows: Vec<_> = tallies
            .iter()
            .map(|tally| {
                json!({
                    "acceleration": tally.acceleration.to_string(),
                    "computed": f64::from(tally.computed) / pictures,
                    "reused": f64::from(tally.reused) / pictures,
                    "velocity_error_mean": mean(&tally.errors),
                    "velocity_error_max": most(&tally.errors),
                    "latents_distance_mean": mean(&tally.distances),
                    "latents_distance_max": most(&tally.distances),
                    "denoise_seconds": tally.seconds / pictures,
                    "speed_up": exact / tally.seconds,
                })
            })
            .collect();
        let report = json!({
            "bench": "acceleration",
            "model": pipeline.name(),
            "precision": pipeline.precision().to_string(),
            "vectors": level(),
            "prompts": prompts,
            "steps": args.steps,
            "sampler": args.sampler.name(),
            "true_cfg": args.true_cfg,
            "rows": rows,
        });
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{prompts} prompts, {} steps by {}, {}", args.steps, pipeline.name(), pipeline.precision())?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<18} {:>9} {:>8} {:>16} {:>18} {:>9}",
        "acceleration", "computed", "reused", "velocity error", "latents' distance", "speed-up"
    )?;
    for tally in tallies {
        let pair = |values: &[f64]| format!("{:.1} % ({:.1} %)", 100.0 * mean(values), 100.0 * most(values));
        writeln!(
            out,
            "{:<18} {:>9.1} {:>8.1} {:>16} {:>18} {:>8.2}×",
            tally.acceleration.to_string(),
            f64::from(tally.computed) / pictures,
            f64::from(tally.reused) / pictures,
            pair(&tally.errors),
            pair(&tally.distances),
            exact / tally.seconds,
        )?;
    }
    writeln!(out)?;
    writeln!(out, "means over prompts, the largest in brackets; speed-up is that of the steps alone")?;
    Ok(())
}
