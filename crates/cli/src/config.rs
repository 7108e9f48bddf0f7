//! `darkroom config show`: the server's settings that are in force, and where each came from.

use std::io::Write;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

use crate::keys::PlaceArgs;

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print the settings that are in force, as a file that can be used again; secrets are left out
    Show(ShowArgs),
}

#[derive(ClapArgs)]
struct ShowArgs {
    /// Say beside each where it came from: a variable of the environment, the file, a flag, or the default
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let What::Show(args) = &args.what;
    let loaded = args.place.read()?;
    let mut out = std::io::stdout().lock();
    if let (true, Some(file)) = (args.origin, &loaded.file) {
        writeln!(out, "# file: {}", file.display())?;
    }
    write!(out, "{}", loaded.show(args.origin))?;
    Ok(())
}
