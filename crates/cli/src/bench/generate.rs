//! `darkroom bench generate`: a whole picture, prompt to pixels, with the seconds of each stage.

use std::{io::Write, time::Instant};

use anyhow::Result;
use clap::Args as ClapArgs;
use flux::{Event, Pipeline, Seconds, Watch};
use serde_json::json;

use super::measure::{duration, level, median, peak_rss};
use crate::{compute_args::ComputeArgs, model_args::ModelArgs, readable::bytes};

/// Time whole pictures.
#[derive(ClapArgs)]
#[command(after_help = "\
Example:  darkroom bench generate -m krea --size 512x512 --steps 4 --runs 1")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// What to draw
    #[arg(long, value_name = "TEXT", default_value = "a red apple")]
    prompt: String,
    /// The picture's size in pixels [default: the model's]
    #[arg(long, value_name = "WxH", value_parser = super::parse_size)]
    size: Option<(u32, u32)>,
    /// Steps from noise to picture [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// T5 tokens [default: the model's]
    #[arg(long, value_name = "N")]
    t5_length: Option<usize>,
    /// Pictures that are timed; one more comes before them to warm up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// One picture's seconds.
struct Picture {
    total: f64,
    stages: Seconds,
    steps: Vec<f64>,
}

/// Remembers how long each step took.
#[derive(Default)]
struct Steps(Vec<f64>);

impl Watch for Steps {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Step(step) = event {
            self.0.push(step.seconds);
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let pipeline = Pipeline::load(args.model.find()?, &args.compute.options(), &mut ())?;
    let load = start.elapsed().as_secs_f64();
    let mut request = pipeline.request(&args.prompt);
    if let Some((width, height)) = args.size {
        (request.width, request.height) = (width, height);
    }
    request.steps = args.steps.unwrap_or(request.steps);
    request.t5_length = args.t5_length.unwrap_or(request.t5_length);
    request.seed = 1;
    pipeline.check(&request)?;

    let once = || -> Result<Option<Picture>> {
        let mut steps = Steps::default();
        let start = Instant::now();
        let made = pipeline.generate(&request, &mut steps)?;
        let total = start.elapsed().as_secs_f64();
        Ok(made.first().map(|made| Picture { total, stages: made.seconds, steps: steps.0 }))
    };
    let warm_up = once()?;
    let mut pictures = Vec::new();
    for _ in 0..args.runs {
        pictures.extend(once()?);
    }
    let of = |value: fn(&Picture) -> f64| -> Vec<f64> { pictures.iter().map(value).collect() };
    let steps: Vec<f64> = pictures.iter().flat_map(|picture| picture.steps.iter().copied()).collect();
    let stages = [
        ("total", of(|p| p.total)),
        ("encode", of(|p| p.stages.encode)),
        ("denoise", of(|p| p.stages.denoise)),
        ("step", steps),
        ("decode", of(|p| p.stages.decode)),
    ];
    let warm_up = warm_up.map(|picture| picture.total);
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut report = json!({
            "bench": "generate",
            "model": pipeline.name(),
            "precision": pipeline.precision().to_string(),
            "vectors": level(),
            "size": [request.width, request.height],
            "steps": request.steps,
            "t5_length": request.t5_length,
            "load_seconds": load,
            "warm_up_seconds": warm_up,
            "seconds": stages[0].1,
            "peak_rss_bytes": peak_rss(),
        });
        for (name, seconds) in &stages {
            report[format!("median_{name}_seconds")] = json!(median(seconds));
        }
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{}×{} pixels, {} steps by {}", request.width, request.height, request.steps, pipeline.name())?;
    writeln!(out, "{}, {}", pipeline.precision(), level())?;
    writeln!(out)?;
    writeln!(out, "load        {}", duration(load))?;
    if let Some(warm_up) = warm_up {
        writeln!(out, "warm-up     {}", duration(warm_up))?;
    }
    for (name, seconds) in &stages {
        let end = |by: fn(f64, f64) -> f64| seconds.iter().copied().reduce(by);
        if let (Some(middle), Some(low), Some(high)) = (median(seconds), end(f64::min), end(f64::max)) {
            writeln!(out, "{name:<12}{} ({} … {})", duration(middle), duration(low), duration(high))?;
        }
    }
    if let Some(rss) = peak_rss() {
        writeln!(out, "memory      {} at most, mapped files included", bytes(rss))?;
    }
    Ok(())
}
