//! Text to picture with the FLUX.1 family.

#![forbid(unsafe_code)]

pub mod error;
pub mod safety;

pub use error::{Error, Result};
