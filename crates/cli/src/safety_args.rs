//! Flags of the safety policy, the same wherever pictures are made.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use flux::safety::{DEFAULT_THRESHOLD, Safety, SafetyConfig};

use crate::Usage;

#[derive(Args)]
pub(crate) struct SafetyArgs {
    /// What is checked: on (prompt and picture), prompt, picture or off. The picture's file says which
    #[arg(long, value_name = "WHAT", default_value = "off", help_heading = "Safety")]
    safety: Gates,
    /// A picture is refused if the classifier's p(porn) + p(hentai) is as much, up to 1 [default: 0.85]
    #[arg(long, value_name = "P", help_heading = "Safety")]
    safety_threshold: Option<f32>,
    /// Refuse prompts with words of this file: one entry a line, [category] above, # comments; also with --safety off
    #[arg(long, value_name = "FILE", help_heading = "Safety")]
    word_list: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Gates {
    Off,
    On,
    Prompt,
    Picture,
}

impl SafetyArgs {
    /// The policy that the flags ask for.
    pub(crate) fn policy(&self) -> Result<Safety> {
        let pictures = matches!(self.safety, Gates::On | Gates::Picture);
        if self.safety_threshold.is_some() && !pictures {
            let problem = "--safety-threshold has no effect without the picture gate; hint: add --safety on";
            return Err(Usage(problem.into()).into());
        }
        let config = SafetyConfig {
            prompts: matches!(self.safety, Gates::On | Gates::Prompt),
            word_list: self.word_list.clone(),
            pictures,
            threshold: self.safety_threshold.unwrap_or(DEFAULT_THRESHOLD),
            ..SafetyConfig::default()
        };
        Ok(Safety::new(&config)?)
    }
}
