//! Where the time of a run goes: the seconds of its operations by kind. The runs that are timed as a whole use the plain backend.

use std::sync::{Arc, Mutex, PoisonError};

use tensor::{
    Backend,
    observed::{Done, Kind, Observed},
};

/// Seconds by kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stages {
    pub(super) linear: f64,
    pub(super) attention: f64,
    pub(super) conv: f64,
    pub(super) other: f64,
}

/// A backend that is timed.
pub(super) struct Timed {
    pub(super) backend: Arc<dyn Backend>,
    stages: Arc<Mutex<Stages>>,
}

impl Timed {
    pub(super) fn new(inner: Arc<dyn Backend>) -> Self {
        let stages = Arc::new(Mutex::new(Stages::default()));
        let sums = stages.clone();
        let add = move |done: Done<'_>| {
            let mut stages = sums.lock().unwrap_or_else(PoisonError::into_inner);
            *match done.kind {
                Kind::Linear => &mut stages.linear,
                Kind::Attention => &mut stages.attention,
                Kind::Conv => &mut stages.conv,
                Kind::Other => &mut stages.other,
            } += done.time.as_secs_f64();
        };
        Self { backend: Observed::new(inner, add), stages }
    }

    /// What was timed since the start or the last call.
    pub(super) fn take(&self) -> Stages {
        std::mem::take(&mut *self.stages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
