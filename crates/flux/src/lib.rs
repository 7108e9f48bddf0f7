//! Text to picture with the FLUX.1 family: load, generate, observe, cancel.
//!
//! A library without network, threads of its own or `async`: [`Pipeline::load`] finds and checks the weights (they stay in
//! their files), [`Pipeline::generate`] makes pictures, a [`Watch`] follows and stops it. `examples/generate.rs` is a whole
//! program.
//!
//! ```
//! use flux::{Event, LoadOptions, Pipeline, Watch, image_file, model::{ModelSpec, SearchPaths}};
//!
//! /// Prints each step and stops when the clock runs out.
//! struct Deadline(std::time::Instant);
//!
//! impl Watch for Deadline {
//!     fn event(&mut self, event: Event<'_>) {
//!         if let Event::Step(step) = event {
//!             eprintln!("step {} of {}: {:.2} s", step.step, step.steps, step.seconds);
//!         }
//!     }
//!
//!     fn cancelled(&self) -> bool {
//!         std::time::Instant::now() > self.0 // asked between two blocks
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! // The model in the box; another one by `model: Some("path/to/FLUX.1-Krea-dev".into())`.
//! let spec = ModelSpec::default();
//! let pipeline = Pipeline::load(spec.find(&SearchPaths::default())?, &LoadOptions::default(), &mut ())?;
//!
//! let mut request = pipeline.request("a red apple"); // the model's own defaults
//! (request.width, request.height, request.seed) = (96, 64, 42);
//!
//! let mut watch = Deadline(std::time::Instant::now() + std::time::Duration::from_secs(600));
//! for made in pipeline.generate(&request, &mut watch)? {
//!     let png = image_file::encode(&made.picture, &made.provenance, image_file::Encoding::default())?;
//!     std::fs::write(folder.join(format!("apple-{}.png", made.seed)), png)?;
//! }
//! # assert!(folder.join("apple-42.png").is_file());
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! What programs use stands at the top: [`Pipeline`], [`Request`], [`LoadOptions`], [`Watch`], [`Error`]. The modules with the
//! types of their fields, and what goes around a picture:
//!
//! | module | for |
//! |---|---|
//! | [`model`] | which model, and where its files may be |
//! | [`request`], [`sizes`], [`sampler`], [`schedule`], [`noise`], [`acceleration`] | what is asked for |
//! | [`conditioning`], [`styles`], [`resize`] | pictures to begin from, to follow, to look at |
//! | [`lora`] | files that change a model |
//! | [`safety`] | what is done with prompts and pictures |
//! | [`pixels`], [`image_file`], [`upscale`] | finished pictures and their files |
//! | [`recipe`] | ComfyUI's workflows and others' metadata as requests |
//! | [`plan`], [`rehearsal`], [`memory`] | what a picture takes, before it is made |
//! | [`prompt_cache`] | what the text encoders said, on disk |
//! | [`convert`] | files in another format |
//!
//! The others are the rooms that a request walks through, public for tests and measurements: [`text`], [`vision`], [`latents`],
//! [`transformer`], [`vae`], [`weights`]. They follow the models' papers, and change when those are read better.

#![forbid(unsafe_code)]

// In the order a request meets them.
pub mod error;
pub mod model;
pub mod request;
pub mod sizes;
pub mod safety;
pub mod text;
pub mod vision;
pub mod conditioning;
pub mod styles;
pub mod noise;
pub mod latents;
pub mod schedule;
pub mod transformer;
pub mod sampler;
pub mod acceleration;
mod denoise;
pub mod vae;
pub mod pixels;
pub mod resize;
mod preview;
pub mod upscale;
pub mod recipe;
pub mod image_file;
mod options;
mod pipeline;
mod prompt;
pub mod prompt_cache;
pub mod plan;
pub mod rehearsal;
pub mod watch;
// What the models are made of.
pub mod memory;
mod nn;
pub mod lora;
pub mod weights;
pub mod convert;

pub use denoise::Reused;
pub use error::{Error, Result};
pub use options::LoadOptions;
pub use pipeline::{Generated, Pipeline, Seconds};
pub use prompt_cache::PromptCache;
pub use request::Request;
pub use tensor::{DType, Device, Precision};
pub use watch::{Event, Step, Watch};
