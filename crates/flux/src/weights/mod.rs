//! Where a model's tensors come from: files stay memory-mapped, names are translated, shapes are checked on the way in.
//!
//! Inside the engine every tensor has the name of BFL's checkpoints (FLUX, autoencoder) or of Hugging Face's (T5, CLIP).

mod checkpoint;
mod detect;
pub mod four_bits;
pub mod gguf;
mod names;
pub mod safetensors;

pub use checkpoint::{Checkpoint, Weights};
pub use detect::{Component, Detected, detect};
pub use names::{Half, Naming, Piece};
