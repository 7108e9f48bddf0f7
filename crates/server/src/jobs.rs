//! The handle on all jobs: dialects submit, look, wait and cancel through it; the worker takes from it.
//!
//! It carries out what [`crate::queue`] decides: the journal is told before anybody is (a job is accepted, started and ended only
//! when that is on the disk), pictures are fetched, deadlines kept. Views of jobs that have not ended, and of the last that have,
//! are in memory; older ones come from the journal.

mod effects;
mod run;
mod turns;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, watch},
    task::AbortHandle,
};

use self::effects::{keep_time, ticket, view};
pub use self::run::Run;
pub(crate) use self::run::Taken;
use self::turns::Turns;
use crate::{
    blobs::{BlobId, Draft},
    clock::{Millis, now},
    error::{Fault, Rule},
    job::{Dialect, JobId, JobView, NewJob, Outcome, State, Webhook},
    journal::Journal,
    metrics::Metrics,
    outbox::Outbox,
    owner::Owner,
    queue::{Effect, Event, Left, Limits, Queue},
    records::{self, Record},
};

/// How long the worker waits after the journal refused a start.
const JOURNAL_PAUSE: Duration = Duration::from_secs(1);

/// How long an answer waits for an end to be on the disk.
const RECORDING: Duration = Duration::from_secs(2);

/// How long a running job may take to notice that it was stopped.
const STOPPING: Duration = Duration::from_mins(1);

/// Fetches pictures that were given as URLs.
pub trait Prepare: Send + Sync + 'static {
    /// The picture behind `url` as a blob of `owner`'s; `field` is its vendor's name, for errors.
    fn picture(&self, url: String, field: String, owner: Owner) -> BoxFuture<'static, Result<Draft, Fault>>;

    /// Takes away pictures whose job has ended.
    fn discard(&self, given: Vec<BlobId>) -> BoxFuture<'static, ()>;
}

/// How jobs are kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much may wait.
    pub limits: Limits,
    /// How long a job is known after its end.
    pub keep: Duration,
    /// How many ended jobs are known at most.
    pub most: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { limits: Limits::default(), keep: Duration::from_hours(7 * 24), most: 100_000 }
    }
}

/// The handle; clones share the jobs.
#[derive(Clone)]
pub struct Jobs(Arc<Shared>);

struct Shared {
    journal: Journal,
    runtime: Handle,
    prepare: Arc<dyn Prepare>,
    fetches: Turns,
    settings: Settings,
    metrics: Metrics,
    state: Mutex<All>,
    /// Tells the worker that there may be something for it.
    work: Condvar,
    /// Counts changes of who waits for whom.
    line: watch::Sender<u64>,
    /// Deadlines may have changed.
    clock: Notify,
    outbox: Outbox,
    chatter: broadcast::Sender<JobId>,
}

/// All jobs in memory.
struct All {
    queue: Queue,
    jobs: HashMap<JobId, Live>,
    /// Those that ended, the oldest first.
    ended: VecDeque<JobId>,
    secrets: HashMap<Arc<str>, JobId>,
    /// Places in line, counted when somebody asks.
    places: Option<HashMap<JobId, u32>>,
    counts: Counts,
    closed: bool,
}

/// A job in memory.
struct Live {
    shown: watch::Sender<Shown>,
    webhook: Option<Webhook>,
    only_while_held: bool,
    holders: usize,
    stop: Arc<AtomicBool>,
    /// How it ended, while that is on its way to the disk.
    ending: Option<State>,
    fetching: Option<AbortHandle>,
}

/// What others may see.
#[derive(Clone)]
struct Shown {
    view: JobView,
    /// Whether the journal took it; nobody hears of it before.
    stored: Option<Result<(), Fault>>,
}

/// How many jobs there are and were since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// In line, or their pictures are being fetched.
    pub queued: usize,
    /// With the worker.
    pub running: usize,
    /// Taken.
    pub accepted: u64,
    /// Not taken: the queue was full or the journal did not write.
    pub refused: u64,
    /// Ended with pictures.
    pub succeeded: u64,
    /// Ended with a fault.
    pub failed: u64,
    /// Ended because somebody wanted it.
    pub cancelled: u64,
    /// Pictures made.
    pub pictures: u64,
    /// Seconds of computing of those that succeeded.
    pub seconds: f64,
}

/// What became of a wish to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelling {
    /// It ends, or has just ended.
    Requested,
    /// It had ended before.
    AlreadyFinal(State),
    /// There is no such job.
    Unknown,
}

impl Jobs {
    /// Goes on with what the journal has. Wants a `tokio` runtime, for fetching and for deadlines.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn open(
        journal: Journal,
        prepare: Arc<dyn Prepare>,
        settings: Settings,
        metrics: Metrics,
    ) -> Result<Self, Fault> {
        let unfinished = journal.read(records::unfinished).await?;
        let jobs = Self(Arc::new(Shared {
            outbox: Outbox::new(journal.clone()),
            journal,
            runtime: Handle::current(),
            prepare,
            fetches: Turns::default(),
            settings,
            metrics,
            state: Mutex::new(All {
                queue: Queue::new(settings.limits),
                jobs: HashMap::new(),
                ended: VecDeque::new(),
                secrets: HashMap::new(),
                places: None,
                counts: Counts::default(),
                closed: false,
            }),
            work: Condvar::new(),
            line: watch::Sender::new(0),
            clock: Notify::new(),
            chatter: broadcast::Sender::new(256),
        }));
        for found in unfinished {
            jobs.restore(found);
        }
        tokio::spawn(keep_time(Arc::downgrade(&jobs.0)));
        Ok(jobs)
    }

    fn restore(&self, found: Result<Record, JobId>) {
        let record = match found {
            Ok(record) => record,
            Err(id) => {
                let fault = Fault::Failed("this job was accepted by another version of the server".into());
                let end = move |connection: &rusqlite::Connection| {
                    records::end(connection, &id, &Outcome::Failed(fault.clone()), &[], now())
                };
                return self.0.journal.write_surely(end, drop);
            }
        };
        let left = if record.only_while_held { Left::Gone } else { Left::Returns };
        let ticket = ticket(&record);
        let mut all = self.0.lock();
        // What it did before the server stopped is begun again.
        all.add(Record { state: State::Queued, started: None, ..record }, Some(Ok(())));
        self.0.apply(&mut all, Event::Restored(ticket, left));
    }

    /// Takes a job; when this returns it is on the disk and will end exactly once. A job of the same owner with the same
    /// idempotency key that asks for the same is given back instead. A job that is kept only while somebody waits for it ends when the
    /// [`Hold`] is dropped, and also when the caller goes away before there is one.
    ///
    /// # Errors
    /// [`Fault::Full`], [`Fault::Unavailable`], [`Fault::Invalid`] of a key that another request had: nothing was taken then.
    pub async fn submit(&self, new: NewJob) -> Result<(JobView, Hold), Fault> {
        if let Some(key) = new.idempotency_key.clone() {
            let owner = new.owner.clone();
            let same = self.0.journal.read(move |connection| records::id_by_key(connection, &owner, &key)).await?;
            if let Some(id) = same {
                let hold = self.hold(&id);
                if self.is_given_up(&id) {
                    // Its key is free afterwards.
                    let _ = self.wait(&id).await;
                } else if let Some(view) = self.view(&id).await {
                    return Ok((again(&new, view)?, hold));
                }
            }
        }
        let most_of_owner = new.most_of_owner;
        // Only a job with a key can turn out to be another one.
        let keyed = new.idempotency_key.is_some().then(|| new.clone());
        let mut random = [0; 26];
        getrandom::fill(&mut random).map_err(|_| Fault::Failed("the system gives no random numbers".into()))?;
        let record = Record::new(JobId::from_random(random), new, now());
        let (mut shown, hold) = self.0.enter(record, most_of_owner)?;
        let stored = shown.wait_for(|shown| shown.stored.is_some()).await;
        let shown = stored.map_err(|_| Fault::Unavailable("the server is shutting down".into()))?.clone();
        shown.stored.unwrap_or(Ok(()))?;
        let view = self.0.with_place(shown.view);
        let view = match keyed {
            Some(keyed) => again(&keyed, view)?,
            None => view,
        };
        Ok((view, hold))
    }

    /// Whether a job is about to end because nobody waits for it any more.
    fn is_given_up(&self, id: &JobId) -> bool {
        self.0.lock().jobs.get(id).is_some_and(|live| {
            let stops = live.stop.load(Ordering::Relaxed) || live.ending == Some(State::Cancelled);
            live.only_while_held && stops && !live.shown.borrow().view.state.is_final()
        })
    }

    /// What can be seen of a job now.
    pub async fn view(&self, id: &JobId) -> Option<JobView> {
        if let Some(shown) = self.0.subscribe(id) {
            let shown = shown.borrow().clone();
            return (shown.stored == Some(Ok(()))).then(|| self.0.with_place(shown.view));
        }
        let id = id.clone();
        let found = self.0.journal.read(move |connection| records::by_id(connection, &id)).await;
        found.ok().flatten().map(view)
    }

    /// The job whose stream has this secret.
    pub async fn by_secret(&self, secret: &str) -> Option<JobView> {
        let id = self.0.lock().secrets.get(secret).cloned();
        if let Some(id) = id {
            return self.view(&id).await;
        }
        let secret = secret.to_owned();
        let found = self.0.journal.read(move |connection| records::by_secret(connection, &secret)).await;
        found.ok().flatten().map(view)
    }

    /// An owner's jobs of a dialect, the newest first; those before a time and a job, for the next page.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn list(
        &self,
        owner: &Owner,
        dialect: Dialect,
        before: Option<(Millis, JobId)>,
        limit: usize,
    ) -> Result<Vec<JobView>, Fault> {
        let owner = owner.clone();
        let read = move |connection: &_| records::list(connection, &owner, dialect, before.as_ref(), limit);
        let found = self.0.journal.read(read).await?;
        let live = |record: Record| {
            let shown = self.0.subscribe(&record.id).map(|shown| shown.borrow().view.clone());
            shown.map_or_else(|| view(record), |view| self.0.with_place(view))
        };
        Ok(found.into_iter().map(live).collect())
    }

    /// An owner's job of a dialect that runs; without one, the first of its jobs that wait.
    pub fn current(&self, owner: &Owner, dialect: Dialect) -> Option<JobView> {
        // All that have not ended are in memory.
        let all = self.0.lock();
        let mut first: Option<JobView> = None;
        for live in all.jobs.values() {
            let shown = live.shown.borrow();
            let view = &shown.view;
            let is_one = view.owner == *owner && view.dialect == dialect && !view.state.is_final();
            let order = |view: &JobView| (view.state != State::Running, view.accepted, view.id.clone());
            let is_first = || first.as_ref().is_none_or(|first| order(view) < order(first));
            if is_one && shown.stored == Some(Ok(())) && is_first() {
                first = Some(view.clone());
            }
        }
        drop(all);
        first.map(|view| self.0.with_place(view))
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// [`Fault::Failed`] if it is not known (any more).
    pub async fn wait(&self, id: &JobId) -> Result<JobView, Fault> {
        let mut last = None;
        if let Some(mut views) = self.follow(id).await {
            while let Some(view) = views.next().await {
                last = Some(view);
            }
        }
        let ended = last.filter(|view| view.state.is_final());
        ended.ok_or_else(|| Fault::Failed("the job is not known any more".into()))
    }

    /// A view now and at each change: state, place in line, step, log, preview. Changes that come faster than they are looked
    /// at become one; the last view is of the end.
    pub async fn follow(&self, id: &JobId) -> Option<BoxStream<'static, JobView>> {
        let Some(shown) = self.0.subscribe(id) else {
            let view = self.view(id).await?;
            return Some(stream::iter([view]).boxed());
        };
        if shown.borrow().stored != Some(Ok(())) {
            return None;
        }
        let follower = Follower { line: self.0.line.subscribe(), shared: self.0.clone(), shown, last: None };
        Some(stream::unfold(follower, Follower::next).boxed())
    }

    /// Ends a job, whether it waits or runs; one that runs ends within a transformer block.
    pub async fn cancel(&self, id: &JobId) -> Cancelling {
        let shown = {
            let mut all = self.0.lock();
            let found =
                all.jobs.get(id).map(|live| (live.ending, live.shown.borrow().view.state, live.shown.subscribe()));
            match found {
                None => None,
                Some((Some(state), ..)) => return Cancelling::AlreadyFinal(state),
                Some((None, state, _)) if state.is_final() => return Cancelling::AlreadyFinal(state),
                Some((None, _, shown)) => {
                    self.0.apply(&mut all, Event::Cancel(id.clone()));
                    let ends = all.jobs.get(id).is_some_and(|live| live.ending.is_some());
                    Some((shown, ends))
                }
            }
        };
        match shown {
            Some((mut shown, ends)) => {
                if ends {
                    // Whoever looks next should see it, unless the disk does not take it now.
                    let seen = shown.wait_for(|shown| shown.view.state.is_final());
                    let _ = tokio::time::timeout(RECORDING, seen).await;
                }
                Cancelling::Requested
            }
            None => match self.view(id).await {
                Some(view) => Cancelling::AlreadyFinal(view.state),
                None => Cancelling::Unknown,
            },
        }
    }

    /// Says that somebody waits for a job. When the last that did is gone, a job that was asked for with `only_while_held` is
    /// cancelled.
    fn hold(&self, id: &JobId) -> Hold {
        self.0.hold(&mut self.0.lock(), id)
    }

    /// How many jobs there are and were.
    pub fn counts(&self) -> Counts {
        let all = self.0.lock();
        let running = usize::from(all.queue.running().is_some());
        Counts { queued: all.queue.len(None) - running, running, ..all.counts }
    }

    /// The pictures given to jobs that have not ended.
    pub fn given(&self) -> HashSet<BlobId> {
        let all = self.0.lock();
        let shown = all.jobs.values().map(|live| live.shown.borrow());
        shown
            .filter_map(|shown| shown.view.ask.clone())
            .flat_map(|ask| ask.blobs().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Webhooks that have to be told.
    pub fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    /// Names of jobs whose webhook wants to hear of log lines, whenever there are more. For those who listen only: nothing of
    /// it is kept.
    pub fn chatter(&self) -> broadcast::Receiver<JobId> {
        self.0.chatter.subscribe()
    }

    /// Where somebody wants to be told about a job that has not ended.
    pub fn webhook(&self, id: &JobId) -> Option<Webhook> {
        self.0.lock().jobs.get(id)?.webhook.clone()
    }

    /// Whether it is over: nothing is accepted any more.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Takes and starts nothing more; gives the running job `grace` to end and puts it back in line if it does not. Returns when
    /// all of that is on the disk and the worker has been sent home.
    pub async fn drain(&self, grace: Duration) {
        self.0.apply(&mut self.0.lock(), Event::Drain);
        if tokio::time::timeout(grace, self.0.no_job_runs()).await.is_err() {
            self.0.apply(&mut self.0.lock(), Event::Halt);
            let _ = tokio::time::timeout(STOPPING, self.0.no_job_runs()).await;
        }
        self.0.lock().closed = true;
        self.0.work.notify_all();
        self.0.clock.notify_one();
        self.0.journal.flush().await;
    }

    /// Waits for the next job to run. For the worker's thread only, which says [`Taken::end`] in any case.
    pub(crate) fn take(&self, wait: Duration) -> Next {
        let until = Instant::now() + wait;
        loop {
            let id = {
                let mut all = self.0.lock();
                loop {
                    if all.closed {
                        return Next::Closed;
                    }
                    let effects = self.0.apply(&mut all, Event::Take);
                    if let Some(Effect::Start(id)) =
                        effects.into_iter().find(|effect| matches!(effect, Effect::Start(_)))
                    {
                        break id;
                    }
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Nothing;
                    }
                    all = self.0.work.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            };
            if let Ok(taken) = self.0.start(&id) {
                return Next::Job(taken);
            }
            let mut all = self.0.lock();
            self.0.apply(&mut all, Event::NotStarted(id));
            let pause = |all: &mut All| !all.closed;
            drop(self.0.work.wait_timeout_while(all, JOURNAL_PAUSE, pause));
        }
    }
}

/// The job that had the same idempotency key, if it is what was asked for.
fn again(new: &NewJob, had: JobView) -> Result<JobView, Fault> {
    let same = match (&new.ask, had.ask.as_deref()) {
        (Ok(new), Some(had)) => new.is_again(had),
        // One that was wrong is wrong again.
        (Err(_), None) => true,
        _ => false,
    };
    if same && new.dialect == had.dialect && *new.endpoint == *had.endpoint {
        Ok(had)
    } else {
        let message = "another request had this key; a new one wants a key of its own";
        Err(Fault::invalid("idempotency-key", Rule::Other, message))
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Jobs").field(&self.counts()).finish()
    }
}

/// What the worker does next.
pub(crate) enum Next {
    /// This.
    Job(Taken),
    /// Nothing came in time.
    Nothing,
    /// Go home.
    Closed,
}

/// Somebody waits for a job; see [`Jobs::submit`].
#[must_use = "the job may be cancelled as soon as this is dropped"]
pub struct Hold {
    shared: Arc<Shared>,
    id: JobId,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.id).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.shared.lock();
        let Some(live) = all.jobs.get_mut(&self.id) else { return };
        live.holders = live.holders.saturating_sub(1);
        if live.holders == 0 && live.only_while_held {
            self.shared.apply(&mut all, Event::Cancel(self.id.clone()));
        }
    }
}

/// The state of a stream of views.
struct Follower {
    shared: Arc<Shared>,
    shown: watch::Receiver<Shown>,
    line: watch::Receiver<u64>,
    last: Option<(State, Option<u32>)>,
}

impl Follower {
    async fn next(mut self) -> Option<(JobView, Self)> {
        let mut changed = self.last.is_none();
        loop {
            self.line.mark_unchanged();
            // Let go of before the place is looked up: whoever shows has the lock on all jobs and wants this one.
            let view = self.shown.borrow_and_update().view.clone();
            let view = self.shared.with_place(view);
            let seen = (view.state, view.position);
            if changed || self.last != Some(seen) {
                if self.last.is_some_and(|(state, _)| state.is_final()) {
                    return None;
                }
                self.last = Some(seen);
                return Some((view, self));
            }
            if view.state.is_final() {
                return None;
            }
            tokio::select! {
                result = self.shown.changed() => match result {
                    Ok(()) => changed = true,
                    Err(_) => return None,
                },
                _ = self.line.changed(), if view.state == State::Queued => {}
            }
        }
    }
}
