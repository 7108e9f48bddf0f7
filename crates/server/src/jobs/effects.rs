//! Carries out what the queue decides: the journal, the worker, those who fetch and those who look.
//!
//! Everything here happens under one lock and is quick; what takes time (the disk, the network) is sent away and comes back as an
//! event: functions whose documentation begins with "Called on the journal's thread".

use std::{
    sync::{Arc, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;

use super::{All, Hold, Live, Prepare, Run, Settings, Shared, Shown, Taken};
use crate::{
    ask::{Ask, Source},
    blobs::{BlobId, Draft},
    clock::{Millis, after, now},
    error::Fault,
    job::{JobId, JobView, Moment, Outcome, State},
    owner::Owner,
    queue::{Effect, Event, Ticket},
    records::{self, Record},
};

/// Views of jobs that ended kept in memory.
const ENDED_KEPT: usize = 1000;

impl All {
    pub(super) fn add(&mut self, record: Record, stored: Option<Result<(), Fault>>) -> watch::Receiver<Shown> {
        let (webhook, only_while_held) = (record.webhook.clone(), record.only_while_held);
        let view = view(record);
        if let Some(secret) = &view.secret {
            self.secrets.insert(secret.clone(), view.id.clone());
        }
        let id = view.id.clone();
        let (shown, receiver) = watch::channel(Shown { view, stored });
        let live =
            Live { shown, webhook, only_while_held, holders: 0, stop: Arc::default(), ending: None, fetching: None };
        self.jobs.insert(id, live);
        receiver
    }

    fn forget(&mut self, id: &JobId) {
        if let Some(live) = self.jobs.remove(id)
            && let Some(secret) = &live.shown.borrow().view.secret
        {
            self.secrets.remove(secret);
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, All> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self, id: &JobId) -> Option<watch::Receiver<Shown>> {
        self.lock().jobs.get(id).map(|live| live.shown.subscribe())
    }

    /// Lets the queue decide and does what it says; gives back what only the caller can do.
    pub(super) fn apply(self: &Arc<Self>, all: &mut All, event: Event) -> Vec<Effect> {
        let effects = all.queue.apply(event, now());
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                Effect::Refuse(_) => {
                    all.counts.refused += 1;
                    rest.push(effect);
                }
                Effect::Same(_) | Effect::Store(_) | Effect::Start(_) => rest.push(effect),
                Effect::Forget(id) => all.forget(&id),
                Effect::Prepare(id) => self.prepare(all, id),
                Effect::Wake => self.work.notify_all(),
                Effect::Stop(id) => {
                    if let Some(live) = all.jobs.get(&id) {
                        live.stop.store(true, Ordering::Relaxed);
                    }
                }
                Effect::Requeue(id) => self.requeue(all, id),
                Effect::End(id, outcome) => self.end(all, id, outcome),
            }
        }
        all.places = None;
        self.line.send_modify(|changes| *changes += 1);
        self.clock.notify_one();
        rest
    }

    /// Offers a job to the queue and sends it to the journal; the receiver hears what became of it.
    pub(super) fn enter(
        self: &Arc<Self>,
        record: Record,
        most_of_owner: Option<usize>,
    ) -> Result<(watch::Receiver<Shown>, Hold), Fault> {
        let mut all = self.lock();
        let id = record.id.clone();
        match self.apply(&mut all, Event::Submit(Ticket { most_of_owner, ..ticket(&record) })).pop() {
            Some(Effect::Refuse(fault)) => Err(fault),
            Some(Effect::Same(id)) => {
                let shown = all.jobs.get(&id).map(|live| live.shown.subscribe());
                let shown = shown.ok_or_else(|| Fault::Failed("a job was lost".into()))?;
                Ok((shown, self.hold(&mut all, &id)))
            }
            _ => {
                let shown = all.add(record.clone(), None);
                let hold = self.hold(&mut all, &id);
                drop(all);
                let shared = self.clone();
                self.journal.write_then(
                    move |connection| records::insert(connection, &record),
                    move |result| shared.stored(&id, result),
                );
                Ok((shown, hold))
            }
        }
    }

    /// Says that somebody waits for a job.
    pub(super) fn hold(self: &Arc<Self>, all: &mut All, id: &JobId) -> Hold {
        if let Some(live) = all.jobs.get_mut(id) {
            live.holders += 1;
        }
        Hold { shared: self.clone(), id: id.clone() }
    }

    /// Called on the journal's thread.
    fn stored(self: &Arc<Self>, id: &JobId, result: Result<(), Fault>) {
        let mut all = self.lock();
        let taken = result.is_ok();
        if let Some(live) = all.jobs.get(id) {
            live.shown.send_modify(|shown| shown.stored = Some(result));
        }
        if taken {
            all.counts.accepted += 1;
            self.apply(&mut all, Event::Stored(id.clone()));
        } else {
            all.counts.refused += 1;
            self.apply(&mut all, Event::NotStored(id.clone()));
        }
    }

    /// Fetches a job's pictures.
    fn prepare(self: &Arc<Self>, all: &mut All, id: JobId) {
        let Some(live) = all.jobs.get_mut(&id) else { return };
        let (ask, owner) = {
            let view = &live.shown.borrow().view;
            (view.ask.clone(), view.owner.clone())
        };
        let Some(ask) = ask else { return };
        let turn = (!ask.sources().all(Source::is_data)).then(|| self.fetches.turn(&owner));
        let shared = self.clone();
        let task = self.runtime.spawn(async move {
            let _turn = match turn {
                Some(turn) => Some(turn.await),
                None => None,
            };
            let fetched = fetch(&*shared.prepare, (*ask).clone(), &owner).await;
            let mut all = shared.lock();
            if !all.queue.has(&id) {
                return;
            }
            match fetched {
                Ok((ask, drafts)) => {
                    drafts.into_iter().for_each(Draft::keep);
                    let (ask, of) = (Arc::new(ask), id.clone());
                    let kept = ask.clone();
                    // If that is lost they are fetched again after a restart.
                    shared.journal.write_then(move |connection| records::set_ask(connection, &of, &kept), drop);
                    if let Some(live) = all.jobs.get(&id) {
                        live.shown.send_modify(|shown| shown.view.ask = Some(ask));
                    }
                    shared.apply(&mut all, Event::Prepared(id));
                }
                Err(fault) => {
                    shared.apply(&mut all, Event::NotPrepared(id, fault));
                }
            }
        });
        live.fetching = Some(task.abort_handle());
    }

    /// Records a start, and waits until that is on the disk.
    pub(super) fn start(self: &Arc<Self>, id: &JobId) -> Result<Taken, Fault> {
        let (view, webhook, stop) = {
            let all = self.lock();
            let live = all.jobs.get(id).ok_or_else(|| Fault::Failed("a job was lost".into()))?;
            (live.shown.borrow().view.clone(), live.webhook.clone(), live.stop.clone())
        };
        // A job without one ends as soon as it is stored.
        let ask = view.ask.ok_or_else(|| Fault::Failed("a job without a request".into()))?;
        let at = now();
        let (sender, receiver) = std::sync::mpsc::channel();
        let of = id.clone();
        let tells = webhook.is_some();
        self.journal.write_then(
            move |connection| {
                records::start(connection, &of, at)?;
                webhook
                    .iter()
                    .try_for_each(|webhook| records::add_notices(connection, &of, webhook, &[Moment::Start], at))
            },
            move |result| drop(sender.send(result)),
        );
        receiver.recv().unwrap_or_else(|_| Err(Fault::Unavailable("the server is shutting down".into())))?;
        if tells {
            self.outbox.wake();
        }
        self.show(id, |view| {
            view.state = State::Running;
            view.started = Some(at);
            view.logs = Arc::default();
        });
        Ok(Taken { ask, run: Run { shared: self.clone(), id: id.clone(), owner: view.owner, stop } })
    }

    fn requeue(&self, all: &mut All, id: JobId) {
        if let Some(live) = all.jobs.get(&id) {
            live.stop.store(false, Ordering::Relaxed);
            live.shown.send_modify(|shown| {
                let view = &mut shown.view;
                (view.state, view.started, view.progress) = (State::Queued, None, None);
                (view.logs, view.previews) = (Arc::default(), Arc::default());
            });
        }
        self.journal.write_surely(move |connection| records::requeue(connection, &id), drop);
    }

    /// Sends an end to the journal; it is shown when it is there.
    fn end(self: &Arc<Self>, all: &mut All, id: JobId, outcome: Outcome) {
        let Some(live) = all.jobs.get_mut(&id) else { return };
        live.ending = Some(records::state_of(&outcome));
        if let Some(fetching) = live.fetching.take() {
            fetching.abort();
        }
        let (logs, ask) = {
            let view = &live.shown.borrow().view;
            (view.logs.clone(), view.ask.as_deref().and_then(without_data))
        };
        let (webhook, at) = (live.webhook.clone(), now());
        let (outcome, ask) = (Arc::new(outcome), ask.map(Arc::new));
        let shared = self.clone();
        let ended = (id.clone(), outcome.clone(), ask.clone());
        self.journal.write_surely(
            move |connection| {
                if let Some(ask) = &ask {
                    records::set_ask(connection, &id, ask)?;
                }
                records::end(connection, &id, &outcome, &logs, at)?;
                let output: &[Moment] = match *outcome {
                    Outcome::Succeeded { .. } => &[Moment::Output, Moment::Completed],
                    _ => &[Moment::Completed],
                };
                webhook.iter().try_for_each(|webhook| records::add_notices(connection, &id, webhook, output, at))
            },
            move |result| {
                let (id, outcome, ask) = ended;
                if result.is_err() {
                    tracing::error!(job = %id, "the end of a job cannot be recorded: after a restart it is made again");
                }
                let given = shared.ended(&id, outcome, ask, at);
                if result.is_ok() && !given.is_empty() {
                    shared.runtime.spawn(shared.prepare.discard(given));
                }
            },
        );
    }

    /// Called on the journal's thread. Gives the pictures that nobody needs any more.
    fn ended(&self, id: &JobId, outcome: Arc<Outcome>, ask: Option<Arc<Ask>>, at: Millis) -> Vec<BlobId> {
        let mut all = self.lock();
        let (how, made, seconds) = match &*outcome {
            Outcome::Succeeded { pictures, seconds } => {
                all.counts.succeeded += 1;
                ("succeeded", pictures.len() as u64, *seconds)
            }
            Outcome::Failed(_) => {
                all.counts.failed += 1;
                ("failed", 0, 0.0)
            }
            Outcome::Cancelled => {
                all.counts.cancelled += 1;
                ("cancelled", 0, 0.0)
            }
        };
        all.counts.pictures += made;
        all.counts.seconds += seconds;
        if let Some(live) = all.jobs.get(id) {
            self.metrics.job_ended(live.shown.borrow().view.dialect.name(), how, seconds, made);
        }
        let mut given = Vec::new();
        if let Some(live) = all.jobs.get_mut(id) {
            live.shown.send_modify(|shown| {
                let view = &mut shown.view;
                given.extend(view.ask.iter().flat_map(|ask| ask.blobs().cloned()));
                view.state = records::state_of(&outcome);
                (view.finished, view.progress, view.previews) = (Some(at), None, Arc::default());
                view.outcome = Some(outcome);
                view.ask = ask.or(view.ask.take());
            });
            if live.webhook.is_some() {
                self.outbox.wake();
            }
        }
        all.ended.push_back(id.clone());
        while all.ended.len() > ENDED_KEPT
            && let Some(oldest) = all.ended.pop_front()
        {
            all.forget(&oldest);
        }
        self.line.send_modify(|changes| *changes += 1);
        given
    }

    /// Changes what is seen of a running job.
    pub(super) fn show(&self, id: &JobId, change: impl FnOnce(&mut JobView)) {
        if let Some(live) = self.lock().jobs.get(id) {
            live.shown.send_modify(|shown| change(&mut shown.view));
        }
    }

    pub(super) fn with_place(&self, mut view: JobView) -> JobView {
        if view.state == State::Queued {
            let mut all = self.lock();
            let All { queue, places, .. } = &mut *all;
            let places = places.get_or_insert_with(|| queue.line().into_iter().zip(0..).collect());
            // Those whose pictures are being fetched come behind all that wait now.
            view.position = Some(places.get(&view.id).copied().unwrap_or(places.len() as u32));
        }
        view
    }

    pub(super) async fn no_job_runs(&self) {
        let mut line = self.line.subscribe();
        while self.lock().queue.running().is_some() {
            if line.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Keeps deadlines, and forgets old jobs now and then.
pub(super) async fn keep_time(shared: Weak<Shared>) {
    const PRUNED_EVERY: Duration = Duration::from_hours(1);
    let mut prune_at = now();
    loop {
        let Some(strong) = shared.upgrade().filter(|shared| !shared.lock().closed) else { return };
        if now() >= prune_at {
            prune_at = after(PRUNED_EVERY);
            let Settings { keep, most, .. } = strong.settings;
            let before = now().saturating_sub(Millis::try_from(keep.as_millis()).unwrap_or(Millis::MAX));
            let prune = move |connection: &_| records::prune(connection, before, most).map(drop);
            strong.journal.write_then(prune, drop);
        }
        let next = strong.lock().queue.next_deadline().unwrap_or(prune_at).min(prune_at);
        // Never holds on to the jobs for longer than a moment, so that they end when the last handle is dropped.
        let sleep = Duration::from_millis(u64::try_from(next - now()).unwrap_or(0)).min(Duration::from_secs(30));
        let _ = tokio::time::timeout(sleep, strong.clock.notified()).await;
        if strong.lock().queue.next_deadline().is_some_and(|deadline| deadline <= now()) {
            strong.apply(&mut strong.lock(), Event::Tick);
        }
    }
}

/// If it fails or is broken off, what was fetched goes again.
async fn fetch(prepare: &dyn Prepare, mut ask: Ask, owner: &Owner) -> Result<(Ask, Vec<Draft>), Fault> {
    let mut drafts = Vec::new();
    for source in ask.sources_mut() {
        if let Source::Url { url, field } = source {
            let draft = prepare.picture(std::mem::take(url), field.clone(), owner.clone()).await?;
            *source = Source::Blob { id: draft.id().clone(), field: std::mem::take(field) };
            drafts.push(draft);
        }
    }
    Ok((ask, drafts))
}

/// The request with data URIs left out, if there are any: they are large, and nothing is made of them any more.
fn without_data(ask: &Ask) -> Option<Ask> {
    if !ask.sources().any(Source::is_data) {
        return None;
    }
    let mut ask = ask.clone();
    for source in ask.sources_mut().filter(|source| source.is_data()) {
        if let Source::Url { url, .. } = source {
            "data:".clone_into(url);
        }
    }
    Some(ask)
}

pub(super) fn ticket(record: &Record) -> Ticket {
    let ask = record.ask.as_ref();
    let texts = ask.map_or(0, |ask| ask.prompt.len() + ask.negative_prompt.as_ref().map_or(0, String::len));
    let raw = record.raw.to_string().len();
    let urls: Vec<usize> = ask
        .iter()
        .flat_map(|ask| ask.sources())
        .filter_map(|source| match source {
            Source::Url { url, .. } => Some(url.len()),
            Source::Blob { .. } => None,
        })
        .collect();
    Ticket {
        id: record.id.clone(),
        owner: record.owner.clone(),
        priority: record.priority,
        key: record.idempotency_key.clone(),
        start_by: record.start_by,
        finish_by: record.finish_by,
        bytes: texts + raw + urls.iter().sum::<usize>(),
        bytes_to_prepare: urls.iter().sum(),
        to_prepare: !urls.is_empty(),
        most_of_owner: None,
        fault: record.ask.as_ref().err().cloned(),
        starts: record.starts,
    }
}

pub(super) fn view(record: Record) -> JobView {
    JobView {
        id: record.id,
        dialect: record.dialect,
        owner: record.owner,
        endpoint: record.endpoint.into(),
        ask: record.ask.ok().map(Arc::new),
        raw: Arc::new(record.raw),
        secret: record.secret.map(Into::into),
        state: record.state,
        position: None,
        accepted: record.accepted,
        started: record.started,
        finished: record.finished,
        progress: None,
        logs: record.logs.into(),
        previews: Arc::default(),
        outcome: record.outcome.map(Arc::new),
    }
}
