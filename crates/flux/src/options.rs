//! How a model is loaded.

use std::path::PathBuf;

use tensor::{Device, Precision};

use crate::{prompt_cache::PromptCache, safety::Safety};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where to compute.
    pub device: Device,
    /// The arithmetic of products; `None`: f32 if the transformer is stored so, otherwise bf16. Int8 is that of the
    /// transformer's large layers, all else is bf16 then.
    pub precision: Option<Precision>,
    /// What is done with prompts and pictures; off unless it is said.
    pub safety: Safety,
    /// The most memory that the process may take, bytes; `None`: what the machine has available when a picture is asked for
    /// ([`crate::memory::available`]). Weights that do not fit beside the rest are read again at every step; pictures stay the same.
    pub memory_limit: Option<u64>,
    /// Where the text encoders' results are kept, so that a prompt asked for again takes no T5; `None`: nowhere. Models
    /// whose T5 takes less than 50 MB never use it.
    pub prompt_cache: Option<PromptCache>,
    /// The network that enlarges pictures where a request asks for it; `None`: the one in the program
    /// ([`crate::upscale::Upscaler`]).
    pub upscaler: Option<PathBuf>,
}
