//! `darkroom review`: what the picture gate says of pictures, whoever made them.

use std::{io::Write, path::PathBuf};

use anyhow::{Result, anyhow};
use clap::Args as ClapArgs;
use flux::{
    image_file,
    safety::{DEFAULT_THRESHOLD, Safety, SafetyConfig, Scores},
};

use crate::readable::shown;

/// Tell what the picture gate says of pictures.
#[derive(ClapArgs)]
#[command(after_help = "\
A classifier (nsfwjs) that errs in both directions: docs/safety.md. Exit code 3 if a picture is flagged.")]
pub(crate) struct Args {
    /// PNG, JPEG, WebP or GIF files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A picture is flagged if p(porn) + p(hentai) is as much, up to 1
    #[arg(long, value_name = "P", default_value_t = DEFAULT_THRESHOLD)]
    safety_threshold: f32,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = SafetyConfig { prompts: false, threshold: args.safety_threshold, ..SafetyConfig::default() };
    let safety = Safety::new(&config)?;
    let mut out = std::io::stdout().lock();
    let (mut failed, mut flagged, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for path in &args.files {
        let picture = image_file::contents(path).and_then(|bytes| image_file::decode(&bytes));
        let picture = match picture {
            Ok(decoded) => decoded.picture,
            Err(problem) => {
                failed.push(anyhow!("{} {problem}", shown(path)));
                continue;
            }
        };
        let verdict = safety.judge(&picture);
        let scores = verdict.scores.unwrap_or_default();
        if args.json {
            let file = path.display().to_string();
            reports.push(serde_json::json!({"file": file, "flagged": verdict.flagged, "scores": scores}));
        } else {
            let Scores { drawing, hentai, neutral, porn, sexy } = scores;
            let word = if verdict.flagged { "flagged" } else { "passes" };
            writeln!(out, "{}: {word}", shown(path))?;
            writeln!(
                out,
                "  drawing {drawing:.3}  neutral {neutral:.3}  sexy {sexy:.3}  porn {porn:.3}  hentai {hentai:.3}"
            )?;
        }
        if verdict.flagged {
            flagged.push(safety.check_given("FILE", &picture));
        }
    }
    if args.json {
        writeln!(out, "{:#}", serde_json::Value::Array(reports))?;
    }
    // Every file is looked at before a bad one ends the program.
    let mut failed = failed.into_iter();
    if let Some(last) = failed.next_back() {
        for error in failed {
            eprintln!("error: {error:#}");
        }
        return Err(last);
    }
    for refused in flagged {
        refused.map_err(flux::Error::from)?;
    }
    Ok(())
}
