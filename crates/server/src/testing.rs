//! For tests: jobs on a journal in a folder that goes away, with an engine that computes nothing.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    ask::{Ask, OutputSize},
    blobs::{BlobId, Draft},
    error::{Fault, Stage},
    job::{Made, NewJob, Preview, Progress},
    jobs::{Jobs, Prepare, Run, Settings},
    journal::Journal,
    metrics::Metrics,
    owner::Owner,
    worker::{self, Engine},
};

/// Waits for `what`, up to twelve seconds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain: {what}");
}

/// Jobs with the [`Fake`] engine; they live as long as the folder.
pub(crate) async fn jobs(fake: Fake) -> (Jobs, TempDir) {
    jobs_in(tempfile::tempdir().unwrap(), fake).await
}

/// The same in this folder.
pub(crate) async fn jobs_in(folder: TempDir, fake: Fake) -> (Jobs, TempDir) {
    let journal = Journal::open(folder.path()).unwrap();
    let jobs =
        Jobs::open(journal, Arc::new(Unfetched::default()), Settings::default(), Metrics::default()).await.unwrap();
    worker::spawn(jobs.clone(), move || fake).unwrap();
    (jobs, folder)
}

/// Says `Using seed`, a line and a preview for each step, and "makes" pictures whose blobs are [`Fake::blob`]; or what the
/// prompt says: `fail`, `flag` (all are flagged), `panic`.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    /// How long a step takes.
    pub(crate) step: Duration,
    /// Stores a picture's bytes; gives a name that is in no store by default.
    pub(crate) store: fn(seed: u64, bytes: &[u8]) -> BlobId,
}

impl Default for Fake {
    fn default() -> Self {
        Self { step: Duration::ZERO, store: |seed, _| Self::blob(seed) }
    }
}

impl Fake {
    /// One that takes so many milliseconds a step.
    pub(crate) fn slow(milliseconds: u64) -> Self {
        Self { step: Duration::from_millis(milliseconds), ..Self::default() }
    }

    /// What the picture of a seed is called.
    pub(crate) fn blob(seed: u64) -> BlobId {
        BlobId(format!("{seed:032x}"))
    }
}

/// A GIF of one black pixel.
pub(crate) const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

impl Engine for Fake {
    fn make(&mut self, ask: &Ask, run: &Run) -> Result<Vec<Made>, Fault> {
        run.log(format!("Using seed: {}", ask.seed));
        let (width, height) = match ask.size {
            OutputSize::Exact { width, height } => (width, height),
            OutputSize::Follow { most, .. } => (most, most),
        };
        match ask.prompt.as_str() {
            "fail" => return Err(Fault::Failed("the engine failed".into())),
            "panic" => panic!("as was asked for"),
            "flag" => {
                let message = "all pictures were flagged".to_owned();
                return Err(Fault::Flagged { stage: Stage::Picture, categories: vec!["sexual".into()], message });
            }
            _ => {}
        }
        let mut made = Vec::new();
        for picture in 0..ask.pictures {
            for step in 1..=ask.steps {
                std::thread::sleep(self.step);
                if run.cancelled() {
                    return Err(Fault::Cancelled);
                }
                let (pictures, steps) = (ask.pictures, ask.steps);
                run.progress(Progress { picture, pictures, step, steps, seconds_per_step: self.step.as_secs_f64() });
                run.log(format!("{:3.0}%| {step}/{steps}", 100.0 * f64::from(step) / f64::from(steps)));
                let every = ask.steps.div_ceil(u32::from(ask.previews.count) + 1);
                if ask.previews.count > 0 && step % every == 0 && step < ask.steps {
                    let (bytes, mime) = (PIXEL.into(), "image/gif");
                    run.preview(Preview { picture, index: step / every - 1, step, bytes, mime, width: 1, height: 1 });
                }
            }
            let seed = ask.seed.wrapping_add(u64::from(picture));
            made.push(Made {
                blob: (self.store)(seed, PIXEL),
                mime: ask.format.mime().into(),
                width,
                height,
                bytes: PIXEL.len() as u64,
                seed,
                flagged: false,
            });
        }
        Ok(made)
    }
}

/// Fetches nothing: a URL that ends in `broken` is refused, any other is a blob at once.
#[derive(Clone, Default)]
pub(crate) struct Unfetched {
    /// What was taken away.
    pub(crate) gone: Arc<Mutex<Vec<BlobId>>>,
}

impl Prepare for Unfetched {
    fn picture(&self, url: String, field: String, _owner: Owner) -> BoxFuture<'static, Result<Draft, Fault>> {
        let refused = url.ends_with("broken");
        let kind = crate::error::PictureFault::Download;
        let fault = Fault::Picture { field, kind, message: "could not be fetched".into() };
        let gone = self.gone.clone();
        let draft = move || Draft::new(Fake::blob(7), move |id| gone.lock().unwrap().push(id));
        std::future::ready(if refused { Err(fault) } else { Ok(draft()) }).boxed()
    }

    fn discard(&self, given: Vec<BlobId>) -> BoxFuture<'static, ()> {
        self.gone.lock().unwrap().extend(given);
        std::future::ready(()).boxed()
    }
}

/// A job of four steps and one picture of 64×64 pixels.
pub(crate) fn job(prompt: &str) -> NewJob {
    NewJob { endpoint: "images".into(), raw: json!({"prompt": prompt}), ..NewJob::plain(ask(prompt)) }
}

/// See [`job`].
pub(crate) fn ask(prompt: &str) -> Ask {
    let size = OutputSize::Exact { width: 64, height: 64 };
    Ask { size, steps: 4, guidance: 3.5, seed: 42, ..Ask::text("pocket", prompt) }
}
