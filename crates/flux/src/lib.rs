//! Text to picture with the FLUX.1 family.

#![forbid(unsafe_code)]

pub mod error;
pub mod image_file;
pub mod noise;
pub mod pixels;
pub mod safety;
pub mod schedule;
pub mod text;

pub use error::{Error, Result};
