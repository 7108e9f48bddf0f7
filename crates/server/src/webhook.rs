//! Webhooks: what callers are told about their jobs, signed as their vendor signs it, and tried again until they took it.
//!
//! What has to be told is in the journal's [`crate::outbox`], so nothing is lost by a restart; lines of a log are told at most every
//! half second and once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use crate::{
    clock::{Millis, now},
    dialect::{fal, native, replicate},
    error::Fault,
    fetch::Unsent,
    http,
    job::{Dialect, JobId, JobView, Moment, State},
    outbox::Outbox,
    records::Notice,
    server::Server,
};

/// How long one try may take; fal's own limit.
const TRY: Duration = Duration::from_secs(15);

/// Seconds until the next try of a notice about a job's end: ten tries in about two hours, as fal's.
const PAUSES: [i64; 9] = [5, 15, 45, 120, 300, 600, 1200, 1800, 3600];

/// Tries of a notice about anything else: it would hold up the notices after it.
const FEW: u32 = 2;

/// Notices told at the same time.
const AT_ONCE: usize = 8;

/// Between two notices about a job's log.
const LOG_PAUSE: Duration = Duration::from_millis(500);

/// How long the outbox is left alone when there is nothing in it, or when it cannot be read.
const IDLE: Duration = Duration::from_secs(30);

/// Tells notices for as long as the server runs, for a task of its own. `base`: what begins URLs of jobs of which it is not known
/// how they were asked for.
pub async fn deliver(server: Server, base: String) {
    let ledger = Ledger::new(server.jobs.outbox().clone());
    let courier = Courier { server, ledger: ledger.into(), base: base.into() };
    tokio::join!(courier.clone().tell_all(), courier.tell_logs());
}

/// What became of a try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Yes,
    /// Worth another try.
    NotYet,
    /// The address may not be told, whatever it answers.
    Never,
}

/// What is to be written of a notice after a try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    Done,
    /// It is tried again then.
    Later(Millis),
}

/// Writes what became of notices. What the journal does not take is remembered, so that a disk that is full lets nobody be told
/// the same each second.
struct Ledger {
    outbox: Outbox,
    unwritten: Mutex<HashMap<i64, Noted>>,
}

impl Ledger {
    fn new(outbox: Outbox) -> Self {
        Self { outbox, unwritten: Mutex::default() }
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<i64, Noted>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the try, unless one was done that only is not written yet, and writes what came of it.
    async fn note(&self, id: i64, once: impl Future<Output = Noted>) -> Result<(), Fault> {
        let before = self.unwritten().get(&id).copied().filter(|noted| match noted {
            Noted::Done => true,
            Noted::Later(at) => *at > now(),
        });
        let noted = match before {
            Some(noted) => noted,
            None => once.await,
        };
        self.unwritten().insert(id, noted);
        match noted {
            Noted::Done => self.outbox.done(id).await,
            Noted::Later(at) => self.outbox.later(id, at).await,
        }?;
        self.unwritten().remove(&id);
        Ok(())
    }
}

#[derive(Clone)]
struct Courier {
    server: Server,
    ledger: Arc<Ledger>,
    base: Arc<str>,
}

impl Courier {
    async fn tell_all(self) {
        let outbox = self.server.jobs.outbox().clone();
        loop {
            let due = outbox.due(now(), AT_ONCE).await.unwrap_or_default();
            if due.is_empty() {
                let next = outbox.next().await.ok().flatten();
                let wait = next.map_or(IDLE, |at| Duration::from_millis((at - now()).max(20).unsigned_abs()));
                let _ = tokio::time::timeout(wait.min(IDLE), outbox.news()).await;
                continue;
            }
            stream::iter(due).for_each_concurrent(AT_ONCE, |notice| self.tell(notice)).await;
        }
    }

    async fn tell(&self, notice: Notice) {
        if let Err(fault) = self.ledger.note(notice.id, self.once(&notice)).await {
            tracing::warn!(job = %notice.job, %fault, "what became of a webhook is not on the disk");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// One try.
    async fn once(&self, notice: &Notice) -> Noted {
        let told = match self.server.jobs.view(&notice.job).await {
            Some(view) => {
                let (url, base) = (&notice.url, notice.base.as_deref());
                self.send(&view, notice.moment, url, base, &format!("msg_{}_{}", notice.job, notice.id)).await
            }
            None => Told::Yes, // the job is forgotten, and so is its notice
        };
        if let Some(seconds) = pause(notice.moment, notice.tries).filter(|_| told == Told::NotYet) {
            return Noted::Later(now() + seconds * 1000);
        }
        if told != Told::Yes {
            tracing::warn!(job = %notice.job, "a webhook was not taken and is given up");
        }
        Noted::Done
    }

    async fn send(&self, view: &JobView, moment: Moment, url: &str, base: Option<&str>, id: &str) -> Told {
        let public = self.server.config.public_url.as_deref().map(|url| url.trim_end_matches('/'));
        let base = public.or(base).unwrap_or(&self.base);
        let body = Bytes::from(self.body(view, moment, base).await.to_string());
        let signed = self.server.signing.headers(view, id, &body);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in signed {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        match self.server.fetcher.tell(url, headers, body, TRY).await {
            Ok(status) if (200..300).contains(&status) => Told::Yes,
            Ok(status) => {
                tracing::info!(job = %view.id, status, "a webhook was answered with an error");
                Told::NotYet
            }
            Err(Unsent::Refused(_)) => Told::Never,
            Err(Unsent::Failed(_)) => Told::NotYet,
        }
    }

    async fn body(&self, view: &JobView, moment: Moment, base: &str) -> Value {
        let server = &self.server;
        match view.dialect {
            Dialect::Fal => match http::fal::output(&server.blobs, view, base).await {
                Ok(output) => fal::notice(view, output),
                Err(fault) => {
                    let mut told = fal::notice(view, Value::Null);
                    told["payload_error"] = fault.to_string().into();
                    told
                }
            },
            Dialect::Replicate => {
                let view = seen_at(view, moment);
                let output = http::replicate::output(server, &view, base).await;
                let told = replicate::prediction(&view, base, output);
                if moment == Moment::Output { not_ended(told) } else { told }
            }
            _ => native::job(view, base, &|made: &crate::job::Made| server.blobs.url(&made.blob, base)),
        }
    }

    /// Tells the lines of logs to those who asked for them.
    async fn tell_logs(self) {
        let mut news = self.server.jobs.chatter();
        let mut last: HashMap<JobId, Instant> = HashMap::new();
        loop {
            let id = match news.recv().await {
                Ok(id) => id,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            last.retain(|_, told| told.elapsed() < LOG_PAUSE);
            if last.contains_key(&id) {
                continue;
            }
            let (Some(view), Some(hook)) = (self.server.jobs.view(&id).await, self.server.jobs.webhook(&id)) else {
                continue;
            };
            last.insert(id.clone(), Instant::now());
            let this = self.clone();
            tokio::spawn(async move {
                let name = format!("msg_{id}_log{}", view.logs.len());
                this.send(&view, Moment::Logs, &hook.url, hook.base.as_deref(), &name).await;
            });
        }
    }
}

/// Seconds until a notice is tried again; `None`: it is given up.
fn pause(moment: Moment, tries: u32) -> Option<i64> {
    match moment {
        Moment::Completed => PAUSES.get(tries as usize).copied(),
        _ => (tries + 1 < FEW).then_some(1),
    }
}

/// A job as it was when something happened, also if it has ended since: receivers take a final state for the end.
fn seen_at(view: &JobView, moment: Moment) -> JobView {
    let mut seen = view.clone();
    if matches!(moment, Moment::Start | Moment::Logs) && seen.state.is_final() {
        (seen.state, seen.finished, seen.outcome) = (State::Running, None, None);
        if moment == Moment::Start {
            seen.logs = Arc::default();
        }
    }
    seen
}

/// Outputs are told before the end is.
fn not_ended(mut prediction: Value) -> Value {
    prediction["status"] = "processing".into();
    prediction["completed_at"] = Value::Null;
    prediction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{NewJob, Webhook},
        testing::{self, Fake, job},
    };

    #[tokio::test]
    async fn nobody_is_told_again_because_the_disk_is_full() {
        let (jobs, folder) = testing::jobs(Fake::default()).await;
        let webhook =
            Some(Webhook { url: "http://example.com/hook".into(), moments: vec![Moment::Completed], base: None });
        let job = jobs.submit(NewJob { webhook, ..job("a fox") }).await.unwrap().0;
        jobs.wait(&job.id).await.unwrap();
        let outbox = jobs.outbox().clone();
        let due = || outbox.due(now() + 100_000, 10);
        let id = due().await.unwrap()[0].id;
        let disk = rusqlite::Connection::open(folder.path().join("darkroom.sqlite")).unwrap();
        let full = "CREATE TRIGGER full_1 BEFORE UPDATE ON notices BEGIN SELECT RAISE(FAIL, 'full'); END;
                    CREATE TRIGGER full_2 BEFORE DELETE ON notices BEGIN SELECT RAISE(FAIL, 'full'); END;";
        let room = "DROP TRIGGER full_1; DROP TRIGGER full_2;";
        let ledger = Ledger::new(outbox.clone());
        let tries = std::sync::atomic::AtomicU32::new(0);
        let told = async |noted: Noted| {
            let once = async {
                tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                noted
            };
            ledger.note(id, once).await.is_ok()
        };
        let tried = || tries.load(std::sync::atomic::Ordering::SeqCst);

        disk.execute_batch(full).unwrap();
        let later = now() + 60_000;
        assert!(!told(Noted::Later(later)).await && !told(Noted::Done).await && tried() == 1);
        disk.execute_batch(room).unwrap();
        assert!(told(Noted::Done).await && tried() == 1);
        assert_eq!((due().await.unwrap()[0].tries, outbox.next().await.unwrap()), (1, Some(later)));

        disk.execute_batch(full).unwrap();
        assert!(!told(Noted::Done).await && !told(Noted::Done).await && tried() == 2);
        disk.execute_batch(room).unwrap();
        assert!(told(Noted::Done).await && tried() == 2 && due().await.unwrap().is_empty());
        assert!(ledger.unwritten().is_empty());
    }

    #[test]
    fn the_end_is_tried_ten_times_in_two_hours_and_the_rest_twice() {
        let tried = |moment| (0..100).map_while(|tries| pause(moment, tries)).collect::<Vec<Millis>>();
        assert_eq!(tried(Moment::Completed).len() + 1, 10);
        assert!((7000..8000).contains(&tried(Moment::Completed).iter().sum::<i64>()));
        assert_eq!(tried(Moment::Start), [1]);
    }
}
