//! `darkroom bench`: how fast this machine computes, and which share of what it could.

mod acceleration;
mod arrays;
mod generate;
mod kernels;
mod measure;
mod step;
mod t5;
mod timed;
mod vae;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use tensor::Precision;

/// Tell how fast this machine computes, and which share of its peak that is.
#[derive(ClapArgs)]
#[command(after_help = "\
The peak is what loops in registers reach, measured beside each run.

Example:  darkroom bench kernels --only attention")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Products, attention and convolutions at FLUX.1's shapes
    Kernels(kernels::Args),
    /// One evaluation of a transformer
    Step(step::Args),
    /// Latents to a picture
    Vae(vae::Args),
    /// A prompt read by T5
    T5(t5::Args),
    /// A whole picture, by stages
    Generate(generate::Args),
    /// What reusing velocities between steps costs and saves
    Acceleration(acceleration::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Kernels(args) => kernels::run(args),
        What::Step(args) => step::run(args),
        What::Vae(args) => vae::run(args),
        What::T5(args) => t5::run(args),
        What::Generate(args) => generate::run(args),
        What::Acceleration(args) => acceleration::run(args),
    }
}

/// How a part of a model is run and what is told of it.
#[derive(ClapArgs)]
#[expect(clippy::struct_field_names, reason = "fields are named as their flags")]
struct Runs {
    /// Arithmetic of products: f32, bf16 or int8
    #[arg(long, value_name = "KIND", default_value = "bf16")]
    precision: Precision,
    /// Runs that are timed; one more comes before them to warm up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Read the inputs from a safetensors file; random ones without it
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Write the result as 'out', f32
    #[arg(long, value_name = "FILE.safetensors")]
    save: Option<PathBuf>,
    /// Run once more and tell the seconds of linear layers, attention and all else
    #[arg(long)]
    stages: bool,
    /// Wait for a line on standard input before each run and answer with its seconds as JSON, until the input ends: for
    /// runs that take turns with another program's. The last line is the report
    #[arg(long, conflicts_with_all = ["runs", "json"])]
    paced: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// `1024x768` → width, height.
fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let expected = || format!("'{text}' is not a size; expected WIDTHxHEIGHT, such as 1024x768");
    let (w, h) = text.split_once(['x', 'X', '×']).ok_or_else(expected)?;
    Ok((w.trim().parse().map_err(|_| expected())?, h.trim().parse().map_err(|_| expected())?))
}

/// A side of a picture that can be computed.
fn check_size(size: (u32, u32)) -> Result<()> {
    let sound = |side: u32| (16..=8192).contains(&side);
    if sound(size.0) && sound(size.1) {
        return Ok(());
    }
    Err(crate::Usage(format!("--size: {}x{} is out of range; sides of 16 to 8192 pixels are possible", size.0, size.1))
        .into())
}

/// An error about a file.
fn problem(path: &Path, what: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{}: {what}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!(parse_size("1024x768"), Ok((1024, 768)));
        assert!(parse_size("1024").is_err() && parse_size("axb").is_err());
    }
}
