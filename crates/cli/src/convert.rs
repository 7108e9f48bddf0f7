//! `darkroom convert`: a transformer or text encoder in another file format and other number formats.

use std::{
    collections::BTreeMap,
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use clap::Args as ClapArgs;
use flux::{
    convert::{Container, Conversion, Keep, Progress, Summary, Wanted, parse_type, type_name},
    weights::{Checkpoint, Component, Detected, detect},
};
use indicatif::{ProgressBar, ProgressStyle};
use tensor::DType;

use crate::{
    Usage,
    readable::{bytes, shown},
};

/// Write a transformer or text encoder in another format: GGUF, int8, bf16 …
#[derive(ClapArgs)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[command(after_help = "\
Types: f32, f16, bf16 (both kinds of files); int8 (safetensors: a scale for each row);
       q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0 (GGUF).

Matrices of the blocks get the type; embedders and the final layer keep 16 bits, vectors f32 in GGUF.

  darkroom convert flux1-krea-dev.safetensors --type q4_k -o flux1-krea-dev-q4_k.gguf
  darkroom convert FLUX.1-dev/transformer --type int8 -o flux1-dev-int8.safetensors
  darkroom convert t5xxl_fp16.safetensors --type q8_0 -o t5xxl-q8_0.gguf")]
pub(crate) struct Args {
    /// A weights file (.safetensors, .gguf, an index of shards), or a diffusers folder or one of its parts
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// The new file: .safetensors or .gguf
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// What most of the numbers are stored as
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = parse_type)]
    to: DType,
    /// Another type for tensors of certain names, as in '*.img_attn.qkv.weight=q8_0'; the first that fits counts
    #[arg(long, value_name = "PATTERN=TYPE")]
    keep: Vec<Keep>,
    /// Which part of a file that holds several: transformer, t5, clip-l, vae
    #[arg(long, value_name = "PART", value_parser = parse_part)]
    part: Option<Component>,
    /// Replace the new file if it exists
    #[arg(long)]
    force: bool,
    /// Tell what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// How many threads; all cores if it is not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let container = container(&args.output)?;
    if !args.dry_run {
        check_output(args)?;
    }
    let (checkpoint, detected) = source(args)?;
    let wanted = Wanted { container, to: args.to, keep: args.keep.clone() };
    let conversion = Conversion::plan(&checkpoint, &detected, &wanted)?;
    if args.dry_run {
        return tell_plan(args, &conversion);
    }
    check_space(&args.output, conversion.bytes())?;
    let start = Instant::now();
    let summaries = write(args, &conversion)?;
    tell_result(args, &conversion, &summaries, start.elapsed().as_secs_f64())
}

fn container(output: &Path) -> Result<Container> {
    let extension = output.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "gguf" => Ok(Container::Gguf),
        "safetensors" | "sft" => Ok(Container::Safetensors),
        _ => Err(Usage(format!("{}: a name ending in .safetensors or .gguf was expected", shown(output))).into()),
    }
}

fn parse_part(name: &str) -> Result<Component, String> {
    match name {
        "transformer" => Ok(Component::Transformer),
        "t5" | "t5xxl" => Ok(Component::T5),
        "clip-l" | "clip_l" => Ok(Component::ClipL),
        "vae" => Ok(Component::Vae),
        _ => Err(format!("'{name}' is not a part; transformer, t5, clip-l and vae are")),
    }
}

/// The new file must not be there, nor be the old one.
fn check_output(args: &Args) -> Result<()> {
    let Ok(there) = args.output.metadata() else { return Ok(()) };
    if there.is_dir() {
        return Err(Usage(format!("{} is a folder; the name of a file was expected", shown(&args.output))).into());
    }
    let same = |path: &Path| path.canonicalize().ok();
    if same(&args.input).is_some_and(|input| Some(input) == same(&args.output)) {
        return Err(Usage(format!("{} cannot be converted into itself", shown(&args.output))).into());
    }
    if args.force {
        return Ok(());
    }
    Err(Usage(format!("{} exists; hint: --force replaces it", shown(&args.output))).into())
}

/// The checkpoint and the part of it that is meant.
fn source(args: &Args) -> Result<(Arc<Checkpoint>, Detected)> {
    let path = weights_in(&args.input, args.part)?;
    let checkpoint = Arc::new(Checkpoint::open(&path)?);
    let mut found = detect(&checkpoint);
    found.sort_by_key(|detected| detected.component);
    let all: Vec<_> = found.iter().map(|detected| detected.component.name()).collect();
    let held = if all.is_empty() { "nothing that darkroom knows".to_owned() } else { all.join(", ") };
    let chosen = match args.part {
        Some(part) => found.into_iter().find(|detected| detected.component == part),
        None => found.into_iter().next(),
    };
    let wanted = args.part.map_or("no part of a model", Component::name);
    let detected = chosen.ok_or_else(|| anyhow!("{}: holds no {wanted}, but {held}", path.display()));
    Ok((checkpoint, detected?))
}

/// The weights of a folder; a file is what it is.
fn weights_in(input: &Path, part: Option<Component>) -> Result<PathBuf> {
    if !input.is_dir() {
        return Ok(input.to_owned());
    }
    let folder = match part {
        None | Some(Component::Transformer) => "transformer",
        Some(Component::T5) => "text_encoder_2",
        Some(Component::ClipL) => "text_encoder",
        _ => "vae",
    };
    let folders = [input.join(folder), input.to_owned()];
    for folder in &folders {
        for stem in ["diffusion_pytorch_model", "model"] {
            for end in ["safetensors.index.json", "safetensors"] {
                let path = folder.join(format!("{stem}.{end}"));
                if path.is_file() {
                    return Ok(path);
                }
            }
        }
    }
    let problem = "holds no diffusion_pytorch_model.safetensors or model.safetensors, nor an index of shards";
    Err(anyhow!("{}: {problem}, and neither does its folder '{folder}'", input.display()))
}

/// The folder in which a file is to be.
fn folder_of(output: &Path) -> &Path {
    output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Fails before any work if the disk is too full, where the system tells.
fn check_space(output: &Path, needed: u64) -> Result<()> {
    let folder = folder_of(output);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", shown(folder)))?;
    #[cfg(unix)]
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            let [needed, free, lacking] = [needed, free, needed - free].map(bytes);
            let problem = format!("the new file takes {needed}, but only {free} are free: {lacking} are lacking");
            return Err(anyhow!("{}: {problem}", output.display()));
        }
    }
    Ok(())
}

/// Writes under another name first, then renames: a file is there whole or not at all.
fn write(args: &Args, conversion: &Conversion) -> Result<BTreeMap<&'static str, Summary>> {
    let name = || format!("cannot write {}", shown(&args.output));
    let stopped = Arc::new(AtomicBool::new(false));
    {
        let stopped = stopped.clone();
        ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed)).context("cannot listen for ctrl-c")?;
    }
    let temporary = tempfile::Builder::new().prefix(".darkroom-").suffix(".tmp").tempfile_in(folder_of(&args.output));
    let temporary = temporary.with_context(name)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    let bar = bar(args, conversion.bytes());
    let threads = args.threads.map(usize::from);
    let summaries = conversion.write(&mut out, threads, &mut |progress: Progress<'_>| {
        if let Some(bar) = &bar {
            bar.set_position(progress.written);
            bar.set_message(progress.tensor.to_owned());
        }
        !stopped.load(Ordering::Relaxed)
    });
    let summaries = summaries.map_err(|error| match error {
        flux::Error::Output(error) => anyhow!(error).context(name()),
        other => other.into(),
    })?;
    out.flush().with_context(name)?;
    drop(out);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    temporary.as_file().sync_all().with_context(name)?;
    #[cfg(unix)]
    {
        // Temporary files are private; this one has the permissions of any other new file.
        use std::os::unix::fs::PermissionsExt;
        let mode = args.output.metadata().map_or(0o644, |m| m.permissions().mode() & 0o777);
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).with_context(name)?;
    }
    if args.force {
        temporary.persist(&args.output).map_err(|e| e.error).with_context(name)?;
    } else {
        temporary.persist_noclobber(&args.output).map_err(|e| e.error).with_context(name)?;
    }
    Ok(summaries)
}

fn bar(args: &Args, total: u64) -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("{bytes}/{total_bytes} {bar:30} {eta} {msg}");
    (!args.quiet && std::io::stderr().is_terminal())
        .then(|| ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
}

fn tell_plan(args: &Args, conversion: &Conversion) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let (before, after) = sizes(conversion);
    if args.json {
        let tensors: Vec<_> = conversion
            .tensors()
            .iter()
            .map(|t| {
                serde_json::json!({"name": t.name, "shape": t.shape, "from": t.from(), "to": type_name(t.to),
                                   "bytes_before": t.bytes_before(), "bytes": t.bytes_after()})
            })
            .collect();
        let report = serde_json::json!({"component": conversion.component().name(), "tensors": tensors,
                                        "bytes_before": before, "bytes": after});
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{:<58} {:>16} {:>8} → {:<6} {:>10}", "tensor", "shape", "from", "to", "bytes")?;
    for t in conversion.tensors() {
        let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
        let size = bytes(t.bytes_after() as u64);
        writeln!(out, "{:<58} {shape:>16} {:>8} → {:<6} {size:>10}", t.name, t.from(), type_name(t.to))?;
    }
    let count = conversion.tensors().len();
    writeln!(out, "{count} tensors: {} become {}; nothing was written", bytes(before), bytes(after))?;
    Ok(())
}

fn sizes(conversion: &Conversion) -> (u64, u64) {
    (conversion.tensors().iter().map(|t| t.bytes_before() as u64).sum(), conversion.bytes())
}

fn tell_result(
    args: &Args,
    conversion: &Conversion,
    summaries: &BTreeMap<&'static str, Summary>,
    seconds: f64,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let (before, after) = sizes(conversion);
    if args.json {
        let formats: Vec<_> = summaries
            .iter()
            .map(|(format, s)| {
                serde_json::json!({"format": format, "tensors": s.tensors, "elements": s.elements,
                                   "bytes_before": s.before, "bytes": s.after, "relative_error": s.loss.relative()})
            })
            .collect();
        let report = serde_json::json!({"file": args.output, "component": conversion.component().name(),
                                        "formats": formats, "bytes_before": before, "bytes": after,
                                        "seconds": seconds});
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<8} {:>8} {:>15} {:>10} {:>10} {:>16}",
        "format", "tensors", "elements", "before", "after", "relative error"
    )?;
    for (format, s) in summaries {
        let (before, after) = (bytes(s.before), bytes(s.after));
        let loss = if s.loss.squares == 0.0 { "none".to_owned() } else { format!("{:.5}", s.loss.relative()) };
        writeln!(out, "{format:<8} {:>8} {:>15} {before:>10} {after:>10} {loss:>16}", s.tensors, s.elements)?;
    }
    let name = shown(&args.output);
    writeln!(out, "{name}: {} became {} in {seconds:.1} s", bytes(before), bytes(after))?;
    Ok(())
}
