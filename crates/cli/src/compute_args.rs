//! How to compute: the flags that all verbs which run a model share.

use std::path::PathBuf;

use clap::Args;
use flux::{Device, LoadOptions, Precision, PromptCache};
use server::config::Size;

/// How to compute.
#[derive(Args, Clone)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// Threads [default: all cores]; the picture does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Arithmetic of products: f32, bf16, int8 (the transformer's large layers, bf16 elsewhere) or auto: f32 where the
    /// weights are, otherwise bf16
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = parse_precision)]
    precision: Asked,
    /// The most memory to use, such as 12GB, 12GiB or 800M [default: what the machine has available]. Weights that do not fit are
    /// read from their files at every step; the picture does not depend on it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory_limit: Option<u64>,
}

/// What is kept of prompts.
#[derive(Args, Clone)]
#[command(next_help_heading = "Computing")]
pub(crate) struct CacheArgs {
    /// Where text encoders' results are kept for prompts asked for again, up to 1 GiB; the prompt itself is not written
    /// [default: darkroom/prompts in $DARKROOM_CACHE or the user's cache folder]
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_prompt_cache")]
    prompt_cache: Option<PathBuf>,
    /// Keep nothing of prompts
    #[arg(long)]
    no_prompt_cache: bool,
}

impl CacheArgs {
    /// The cache, unless it is not wanted or there is no place for it.
    pub(crate) fn cache(&self) -> Option<PromptCache> {
        if self.no_prompt_cache {
            return None;
        }
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let users = || {
            let home =
                var("HOME").map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }));
            var("XDG_CACHE_HOME").or_else(|| var("LOCALAPPDATA")).or(home)
        };
        let usual = || var("DARKROOM_CACHE").or_else(users).map(|folder| folder.join("darkroom").join("prompts"));
        self.prompt_cache.clone().or_else(usual).map(PromptCache::new)
    }
}

/// A precision, or what suits the model.
#[derive(Clone, Copy)]
struct Asked(Option<Precision>);

impl ComputeArgs {
    /// As the library takes them.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            device: Device::Cpu { threads: self.threads.map(usize::from) },
            precision: self.precision.0,
            memory_limit: self.memory_limit,
            ..LoadOptions::default()
        }
    }
}

fn parse_precision(text: &str) -> Result<Asked, String> {
    if text == "auto" {
        return Ok(Asked(None));
    }
    let unknown = |_| format!("'{text}' is not a precision; auto, f32, bf16 and int8 are");
    text.parse().map(|precision| Asked(Some(precision))).map_err(unknown)
}

/// A number with a unit, decimal (`GB`, `G`) or binary (`GiB`); bytes alone, or a few, are no memory to compute in.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let size = text.parse().ok().filter(|Size(bytes)| *bytes >= 1_000_000);
    size.map(|Size(bytes)| bytes).ok_or_else(|| {
        format!("'{text}' is not a size of memory; expected a number with a unit, such as 12GB, 12GiB or 800M")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory() {
        let sizes = ["12GB", "12 GiB", "800M", "1.5g", "2MiB"].map(parse_bytes);
        assert_eq!(sizes, [12_000_000_000, 12 << 30, 800_000_000, 1_500_000_000, 2 << 20].map(Ok));
        for wrong in ["12", "GB", "", "-1GB", "1XB", "0GB", "1e3GB", "1.2.3GB"] {
            assert!(parse_bytes(wrong).is_err_and(|e| e.contains("12GiB")), "{wrong}");
        }
    }
}
