//! `darkroom`: pictures from words, on your own machine. Arguments are read here; the work is in `flux`.

#![expect(clippy::doc_markdown, reason = "doc comments of arguments are the help text, which has no markup")]

mod bench;
mod bundle;
mod compute_args;
mod config;
mod convert;
mod download;
mod generate;
mod image_args;
mod inspect;
mod keys;
mod licences;
mod lora_args;
mod model_args;
mod output;
mod plan;
mod progress;
mod pull;
mod readable;
mod recipe_args;
mod review;
mod safety_args;
mod sampling_args;
mod serve;
mod show;
mod size_args;
mod store;
mod style_args;
mod upscale;
mod variants;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Pictures from words, on your own machine: FLUX.1 Krea [dev] and the FLUX.1 family.
#[derive(Parser)]
#[command(name = "darkroom", version, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Exit codes:
  0 done    1 a file, device or computation failed    2 the request cannot be met
  3 refused by the safety policy    130 cancelled

The first picture:  darkroom generate \"a red apple\"")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make pictures from a prompt
    #[command(visible_alias = "run")]
    Generate(Box<generate::Args>),
    /// Tell what weights hold and what pictures were made of
    Inspect(inspect::Args),
    /// Tell what a model and a size would take, without computing
    #[command(visible_alias = "doctor")]
    Plan(Box<plan::Args>),
    /// Write a transformer or text encoder in another format: GGUF, int8, bf16 …
    Convert(Box<convert::Args>),
    /// Make a picture two or four times as large
    Upscale(Box<upscale::Args>),
    /// Tell what the picture gate says of pictures
    Review(review::Args),
    /// Download a model's weights from the Hugging Face hub
    Pull(Box<pull::Args>),
    /// Tell which models are here
    List(store::ListArgs),
    /// Tell what is known of a model: licence, variants, files
    Show(store::ShowArgs),
    /// Remove a model's files
    Rm(store::RemoveArgs),
    /// Take models to machines without a network
    Bundle(Box<bundle::Args>),
    /// Tell which licences were accepted here
    #[command(visible_alias = "licences")]
    Licenses(licences::Args),
    /// Serve OpenAI's, fal's, Replicate's and AUTOMATIC1111's clients over HTTP
    Serve(Box<serve::Args>),
    /// Make a certificate authority for HTTPS on this machine, for clients that insist on it
    DevCa(serve::DevCa),
    /// Make, list and revoke the server's keys
    Keys(keys::Args),
    /// Tell how the server is set up
    Config(config::Args),
    /// Tell how fast this machine computes
    Bench(Box<bench::Args>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Upscale(args) => upscale::run(&args),
        Command::Review(args) => review::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::List(args) => store::list(&args),
        Command::Show(args) => store::show(&args),
        Command::Rm(args) => store::remove(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Licenses(args) => licences::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::DevCa(args) => serve::dev_ca(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader of a pipe going away is not worth a word.
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<hub::Error>() {
        Some(hub::Error::Asked { .. } | hub::Error::Licence(_)) => return 2,
        Some(hub::Error::Cancelled) => return 130,
        _ => {}
    }
    match error.downcast_ref::<flux::Error>() {
        Some(flux::Error::Asked { .. }) => 2,
        Some(flux::Error::Refused(_)) => 3,
        Some(flux::Error::Cancelled) => 130,
        _ if error.is::<Usage>() => 2,
        _ => 1,
    }
}

/// A combination of flags that cannot be met.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
