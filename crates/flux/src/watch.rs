//! How a caller follows a generation: one observer that can look and can stop, and cannot change anything.

use crate::{
    acceleration::Evaluations,
    error::{Error, Refused, Result},
    pixels::Rgb8,
    plan::Plan,
};

/// What is going on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A part's weights are being found and checked: `clip_l`, `t5`, `transformer`, `vae`.
    Loading(&'static str),
    /// The work begins, and this is what it is going to take.
    Planned(&'a Plan),
    /// The prompt is being read.
    Encoding,
    /// The request's pictures are being encoded.
    EncodingPictures,
    /// What the encoders say of the prompt was found in the cache.
    PromptKnown,
    /// A step is done.
    Step(Step<'a>),
    /// A picture is being decoded.
    Decoding {
        /// Which of the batch, from 0.
        picture: u32,
    },
    /// A picture was flagged by the safety policy: it is left out, black or held, as the policy says.
    Flagged {
        /// Which of the batch, from 0.
        picture: u32,
        /// Why.
        refused: &'a Refused,
    },
    /// A part of a picture is being enlarged.
    Upscaling {
        /// Which part, from 1.
        tile: u32,
        /// How many there are.
        tiles: u32,
    },
}

/// A step of denoising that is done.
pub struct Step<'a> {
    /// Which picture of the batch, from 0.
    pub picture: u32,
    /// Which step, from 1.
    pub step: u32,
    /// How many there are.
    pub steps: u32,
    /// The noise level reached; 0 after the last.
    pub sigma: f32,
    /// Seconds it took.
    pub seconds: f64,
    /// Velocities that were computed and reused for it.
    pub evaluations: Evaluations,
    pub(crate) preview: &'a dyn Fn() -> Option<Rgb8>,
}

impl Step<'_> {
    /// What the picture would be if the velocity stayed as it is; small and rough. Costs time only when called. `None`
    /// where the model has no cheap way.
    pub fn preview(&self) -> Option<Rgb8> {
        (self.preview)()
    }
}

impl std::fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Step {} of {} (picture {}, sigma {})", self.step, self.steps, self.picture, self.sigma)
    }
}

/// Follows a generation.
pub trait Watch {
    /// Something happened.
    fn event(&mut self, event: Event<'_>) {
        let _ = event;
    }

    /// Asked between blocks; `true` ends the work with [`Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Watch for () {}

/// The error of a cancelled generation.
pub(crate) fn check(watch: &dyn Watch) -> Result<()> {
    if watch.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
