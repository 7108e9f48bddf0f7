//! Text to picture with the FLUX.1 family: load, generate, observe, cancel.
//!
//! A library without network, threads of its own or `async`: [`Pipeline::load`] finds and checks the weights (they stay in
//! their files), [`Pipeline::generate`] makes pictures, a [`Watch`] follows and stops it. The modules are the rooms a
//! request walks through, in this order: [`request`], [`safety`], [`text`], [`latents`] and [`noise`], [`schedule`],
//! [`transformer`], [`vae`], [`pixels`].

#![forbid(unsafe_code)]

mod denoise;
pub mod error;
pub mod image_file;
pub mod latents;
pub mod model;
mod nn;
pub mod noise;
mod pipeline;
pub mod pixels;
pub mod plan;
mod preview;
pub mod request;
pub mod safety;
pub mod schedule;
pub mod text;
pub mod transformer;
pub mod vae;
pub mod watch;
pub mod weights;

pub use error::{Error, Result};
pub use pipeline::{Generated, LoadOptions, Pipeline, Seconds};
pub use request::Request;
pub use watch::{Event, Step, Watch};
