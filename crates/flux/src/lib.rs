//! Text to picture with the FLUX.1 family.

#![forbid(unsafe_code)]

pub mod error;
mod nn;
pub mod noise;
pub mod safety;
pub mod schedule;
pub mod text;
pub mod transformer;
pub mod vae;
pub mod weights;

pub use error::{Error, Result};
