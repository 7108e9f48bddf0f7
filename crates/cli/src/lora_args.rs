//! LoRAs on the command line: which files with which weights, and what is told of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use clap::Args;
use flux::lora::{Lora, LoraReport, Loras};

/// What changes the model.
#[derive(Args, Clone)]
#[command(next_help_heading = "LoRA")]
pub(crate) struct LoraArgs {
    /// A LoRA (or LoKr, LoHa, DoRA) and its weight, 1 without one; may be given several times, they add up. Works with
    /// every storage format of the model
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = parse)]
    lora: Vec<Asked>,
    /// Fold the LoRAs into the weights before the first step: steps take no longer than without, but changed layers take
    /// memory of their own. Only for weights stored as F32, F16 or BF16, to which the result is rounded
    #[arg(long)]
    lora_merge: bool,
    /// Stop if a LoRA has tensors that do not fit anything in the model
    #[arg(long)]
    strict: bool,
}

/// A file and its weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    path: PathBuf,
    weight: f32,
}

/// The number behind the last colon is the weight, unless all of it is a file.
pub(crate) fn parse(text: &str) -> Result<Asked, String> {
    let whole = || Asked { path: text.into(), weight: 1.0 };
    if Path::new(text).exists() {
        return Ok(whole());
    }
    let weight = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.trim().parse::<f32>().ok()?)));
    match weight {
        None => Ok(whole()),
        Some(("", _)) => Err(format!("'{text}' names no file; expected FILE or FILE:WEIGHT")),
        Some((_, weight)) if !weight.is_finite() => Err(format!("'{text}' has a weight that is not a number")),
        Some((path, weight)) => Ok(Asked { path: path.into(), weight }),
    }
}

/// Opens the files.
pub(crate) fn open(asked: &[Asked], merge: bool) -> flux::Result<Loras> {
    let one = |asked: &Asked| Ok((Arc::new(Lora::open(&asked.path)?), asked.weight));
    Ok(Loras { used: asked.iter().map(one).collect::<flux::Result<_>>()?, merge })
}

impl LoraArgs {
    /// Whether no flag names a LoRA.
    pub(crate) fn names_none(&self) -> bool {
        self.lora.is_empty()
    }

    /// The LoRAs that flags ask for, and others.
    pub(crate) fn open(&self, others: &[(PathBuf, f32)]) -> flux::Result<Loras> {
        let others = others.iter().map(|(path, weight)| Asked { path: path.clone(), weight: *weight });
        open(&self.lora.iter().cloned().chain(others).collect::<Vec<_>>(), self.lora_merge)
    }

    /// Tells what became of them, each in a line with the names of what was left out; an error if that may not be.
    pub(crate) fn report(&self, reports: &[LoraReport], note: &mut dyn FnMut(&str)) -> flux::Result<()> {
        /// More names than these help nobody.
        const SHOWN: usize = 5;
        for report in reports {
            note(&format!("lora {report}"));
            for left in report.unmatched.iter().take(SHOWN) {
                note(&format!("  left out: {} ({})", left.key, left.why));
            }
            if report.unmatched.len() > SHOWN {
                note(&format!("  and {} more", report.unmatched.len() - SHOWN));
            }
            if self.strict {
                report.strict()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_weights() {
        let asked = |path: &str, weight| Ok(Asked { path: path.into(), weight });
        assert_eq!(parse("ink.safetensors"), asked("ink.safetensors", 1.0));
        assert_eq!(parse("ink.safetensors:0.8"), asked("ink.safetensors", 0.8));
        assert_eq!(parse("ink.safetensors:-1"), asked("ink.safetensors", -1.0));
        assert_eq!(parse(r"C:\loras\ink.safetensors"), asked(r"C:\loras\ink.safetensors", 1.0));
        assert_eq!(parse(r"C:\loras\ink.safetensors:.5"), asked(r"C:\loras\ink.safetensors", 0.5));
        for wrong in [":0.5", "a:nan", "a:inf"] {
            assert!(parse(wrong).is_err_and(|e| e.contains(wrong)), "{wrong}");
        }
    }
}
