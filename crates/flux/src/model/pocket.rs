//! The model in the box: a small FLUX-architecture model embedded in the program, so that the first picture needs no download.
//!
//! It is an ordinary diffusers folder (`assets/pocket/`, with its model card) and goes through the same loaders as all others.

use super::{Folder, ModelFiles};
use crate::error::Result;

/// What it is called.
pub(crate) const NAME: &str = "pocket";

macro_rules! embed {
    ($($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../assets/pocket/", $file)))),+]
    };
}

static FILES: &[(&str, &[u8])] = embed![
    "darkroom.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The embedded folder, found.
pub(crate) fn files() -> Result<ModelFiles> {
    ModelFiles::from_diffusers(&Folder::Embedded { name: NAME, files: FILES }, NAME)
}
