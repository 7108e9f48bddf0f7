//! The thread that makes pictures: one job after the other, each of which may fail or panic without harm to the next.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    ask::Ask,
    error::Fault,
    job::{Made, Outcome},
    jobs::{Jobs, Next, Run, Taken},
};

/// How often an engine without work is told so.
const IDLE: Duration = Duration::from_secs(1);

/// What makes pictures: the model, or a test's stand-in.
pub trait Engine {
    /// Makes what was asked and stores it; says through `run` how far it is, and ends soon when [`Run::cancelled`] says so.
    ///
    /// # Errors
    /// Why there are no pictures; [`Fault::Cancelled`] if it was stopped.
    fn make(&mut self, ask: &Ask, run: &Run) -> Result<Vec<Made>, Fault>;

    /// Nothing was to be done for a second or so.
    fn idle(&mut self) {}

    /// It panicked: what it holds may be half done.
    fn start_over(&mut self) {}
}

/// Starts the thread; it ends after [`Jobs::drain`]. The engine is made on it, so that threads which the engine starts inherit what
/// `engine` sets for the thread.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn<E: Engine>(jobs: Jobs, engine: impl FnOnce() -> E + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("worker".into()).spawn(move || {
        let mut engine = engine();
        loop {
            match jobs.take(IDLE) {
                Next::Job(job) => work(&mut engine, job),
                Next::Nothing => engine.idle(),
                Next::Closed => break,
            }
        }
    })
}

fn work(engine: &mut dyn Engine, job: Taken) {
    let start = Instant::now();
    tracing::info!(job = %job.run.id(), "started");
    let outcome = match catch_unwind(AssertUnwindSafe(|| engine.make(&job.ask, &job.run))) {
        Ok(Ok(pictures)) => Outcome::Succeeded { pictures, seconds: start.elapsed().as_secs_f64() },
        Ok(Err(Fault::Cancelled)) => Outcome::Cancelled,
        Ok(Err(fault)) => Outcome::Failed(job.ask.named(fault)),
        Err(_) => {
            tracing::error!(job = %job.run.id(), "the engine panicked; the next job begins with a fresh one");
            engine.start_over();
            Outcome::Failed(Fault::Failed("the engine failed while making this; nothing was saved".into()))
        }
    };
    let how = match &outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled => "cancelled",
    };
    tracing::info!(job = %job.run.id(), how, seconds = start.elapsed().as_secs_f64(), "ended");
    job.end(outcome);
}
