//! `darkroom upscale`: a picture file into a larger one.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use flux::{
    Watch,
    image_file::{self, Encoding, Format, MetadataLevel, Upscaled},
    upscale::Upscaler,
};
use tensor::Device;

use crate::{
    Usage, compute_args,
    generate::{Follow, cancel_on_interrupt},
    output::{self, Template},
    progress::Progress,
    readable::shown,
    safety_args::SafetyArgs,
    size_args::parse_scale,
};

/// Make a picture two or four times as large.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// A PNG, JPEG, WebP or GIF file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many times each side: 2 or 4
    #[arg(long, value_name = "2|4", default_value = "4", value_parser = parse_scale)]
    scale: u32,
    /// Use this network, as RealESRGAN_x4plus.safetensors [default: SPAN, in the program]
    #[arg(long, value_name = "FILE")]
    upscaler: Option<PathBuf>,
    /// Where to write; '-' is standard output [default: FILE-x4.png, here]
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// png, jpeg, webp, avif or gif [default: by the name of the output, otherwise png]
    #[arg(long)]
    format: Option<Format>,
    /// Quality of jpeg, webp and avif, 0 to 100
    #[arg(long, value_name = "N", default_value_t = 95, value_parser = clap::value_parser!(u8).range(0..=100))]
    quality: u8,
    /// What is carried over of the picture's making: full, minimal (no prompt) or none
    #[arg(long, value_name = "LEVEL", default_value_t = MetadataLevel::Full)]
    metadata: MetadataLevel,
    /// Threads [default: all cores]; the picture does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// The most memory to use, such as 2GB [default: what the machine has available]
    #[arg(long, value_name = "SIZE", value_parser = compute_args::parse_bytes)]
    memory_limit: Option<u64>,
    #[command(flatten)]
    safety: SafetyArgs,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
    /// No progress; only errors
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let safety = args.safety.policy()?;
    let format = output::format(args.format, args.output.as_deref())?;
    let to_stdout = args.output.as_deref() == Some("-");
    if to_stdout && args.json {
        return Err(Usage("--output - and --json both need standard output".into()).into());
    }
    let bytes = image_file::contents(&args.file).map_err(|problem| unreadable(&args.file, &problem))?;
    let decoded = image_file::decode(&bytes).map_err(|problem| unreadable(&args.file, &problem))?;
    let found = image_file::read(&bytes)?;
    drop(bytes);

    let threads = args.threads.map(usize::from);
    let device = Device::Cpu { threads };
    let picture = &decoded.picture;
    let (width, height) = (picture.width(), picture.height());
    let planned = Upscaler::check(args.scale, args.upscaler.as_deref(), (width, height), device, args.memory_limit)?;
    let upscaler = Upscaler::find(args.scale, args.upscaler.as_deref(), &device.open())?;
    let mut watch = Follow::new(Progress::new(args.quiet), cancel_on_interrupt()?);
    if decoded.alpha.is_some() {
        watch.progress.note("transparent parts are laid over white");
    }
    let larger = upscaler.upscale(picture, &mut watch as &mut dyn Watch)?;
    watch.progress.done();

    // It leaves as all pictures do: reviewed.
    let reviewed = safety.review(larger).map_err(flux::Error::from)?;
    let upscaled = Upscaled { scale: args.scale, network: upscaler.name().to_owned() };
    let encoding = Encoding { format, quality: args.quality, metadata: args.metadata };
    let encoded = image_file::encode_upscaled(&reviewed, &found, &upscaled, safety.name(), encoding)?;
    let path = if to_stdout {
        std::io::stdout().write_all(&encoded).context("standard output")?;
        "-".to_owned()
    } else {
        let stem = args.file.file_stem().unwrap_or_default().to_string_lossy().replace(['{', '}'], "_");
        let usual = format!("{stem}-x{}.{}", args.scale, format.extension());
        let path = match &args.output {
            Some(name) => PathBuf::from(name),
            None => Template::unchosen(&usual, format).free_path(0, 0),
        };
        output::write(&path, &encoded).with_context(|| shown(&path))?;
        path.display().to_string()
    };
    let picture = reviewed.get();
    if args.json {
        let report = serde_json::json!({
            "path": path,
            "width": picture.width(),
            "height": picture.height(),
            "format": format.to_string(),
            "network": upscaler.name(),
            "scale": args.scale,
            "seconds": start.elapsed().as_secs_f64(),
            "planned_bytes": planned,
            "peak_bytes": flux::memory::peak(),
        });
        writeln!(std::io::stdout(), "{report:#}")?;
    }
    if !args.quiet {
        let size = format!("{}×{} pixels", picture.width(), picture.height());
        eprintln!("{size} by {} in {:.1} s: {path}", upscaler.name(), start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn unreadable(path: &Path, problem: &str) -> anyhow::Error {
    anyhow::anyhow!("{} {problem}", shown(path))
}
