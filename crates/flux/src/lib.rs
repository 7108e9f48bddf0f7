//! Text to picture with the FLUX.1 family.

#![forbid(unsafe_code)]

pub mod error;
pub mod noise;
pub mod safety;
pub mod schedule;
pub mod text;

pub use error::{Error, Result};
