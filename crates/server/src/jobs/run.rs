//! A job in the worker's hands: how the engine says how far it is, and hears that it should stop.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::Shared;
use crate::{
    ask::Ask,
    clock::now,
    error::Stage,
    job::{JobId, LogLine, Moment, Outcome, Preview, Progress},
    owner::Owner,
    queue::Event,
};

/// Most lines of a job's log.
const MOST_LINES: usize = 2000;

/// A job in the hands of the worker.
pub(crate) struct Taken {
    /// What to make.
    pub(crate) ask: Arc<Ask>,
    /// How to say how far it is.
    pub(crate) run: Run,
}

impl Taken {
    /// It is done, well or not.
    pub(crate) fn end(self, outcome: Outcome) {
        let Run { shared, id, .. } = self.run;
        shared.apply(&mut shared.lock(), Event::Done(id, outcome));
    }
}

/// The running job, as the engine sees it.
#[derive(Clone)]
pub struct Run {
    pub(super) shared: Arc<Shared>,
    pub(super) id: JobId,
    pub(super) owner: Owner,
    pub(super) stop: Arc<AtomicBool>,
}

impl Run {
    /// Its name.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Who asked.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether it should end now. Cheap: one atomic.
    pub fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How far it is.
    pub fn progress(&self, progress: Progress) {
        self.shared.show(&self.id, |view| view.progress = Some(progress));
    }

    /// A line for the one who asked; no prompt and no path in it.
    pub fn log(&self, message: impl Into<String>) {
        let line = LogLine { at: now(), message: message.into() };
        self.shared.show(&self.id, |view| {
            if view.logs.len() < MOST_LINES {
                view.logs = view.logs.iter().cloned().chain([line]).collect();
            }
        });
        let all = self.shared.lock();
        let webhook = all.jobs.get(&self.id).and_then(|live| live.webhook.as_ref());
        if webhook.is_some_and(|webhook| webhook.moments.contains(&Moment::Logs)) {
            let _ = self.shared.chatter.send(self.id.clone()); // nobody listens: nothing lost
        }
    }

    /// A gate stopped something.
    pub fn flagged(&self, stage: Stage) {
        self.shared.metrics.flagged(stage.name());
    }

    /// A picture of progress.
    pub fn preview(&self, preview: Preview) {
        let preview = Arc::new(preview);
        self.shared.show(&self.id, |view| view.previews = view.previews.iter().cloned().chain([preview]).collect());
    }

    /// Waits for something of the async side. For the worker's thread only.
    pub fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.shared.runtime.block_on(future)
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Run").field(&self.id).finish()
    }
}
