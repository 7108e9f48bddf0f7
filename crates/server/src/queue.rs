//! Which job goes next, and what becomes of the others: a pure state machine. No I/O and no clock: [`Queue::apply`] takes an
//! event and the time and says what has to be done; `jobs.rs` does it.
//!
//! A job is stored (in the journal), prepared (its pictures are fetched), waits, runs and ends; once it ended the queue knows it
//! no more. Owners take turns, so that one with a thousand jobs delays another's first by one job; within an owner, first come
//! first served. Low priority goes only when nothing else waits. A queue that is full refuses; nothing else is ever dropped.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    fmt,
};

use crate::{
    clock::Millis,
    error::Fault,
    job::{JobId, Outcome, Priority},
    owner::Owner,
};

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs of all owners that have not ended.
    pub jobs: usize,
    /// Jobs of one owner that have not ended.
    pub jobs_of_owner: usize,
    /// Bytes of all their requests: pictures given as data URIs are large.
    pub bytes: usize,
    /// So often a job may be started without an end (the process died) before it fails.
    pub starts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { jobs: 1000, jobs_of_owner: 1000, bytes: 256 << 20, starts: 3 }
    }
}

/// What the queue has to know of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticket {
    /// Its name.
    pub id: JobId,
    /// Whose turn it takes.
    pub owner: Owner,
    /// What goes first.
    pub priority: Priority,
    /// Two jobs of an owner with the same key are one.
    pub key: Option<String>,
    /// Fails if it has not started by then.
    pub start_by: Option<Millis>,
    /// Is cancelled if it has not ended by then.
    pub finish_by: Option<Millis>,
    /// Of the request, as it is kept in memory.
    pub bytes: usize,
    /// Those of them that go when its pictures were fetched: data URIs.
    pub bytes_to_prepare: usize,
    /// Whether pictures have to be fetched first.
    pub to_prepare: bool,
    /// The caller's own limit of jobs that have not ended.
    pub most_of_owner: Option<usize>,
    /// Why it cannot be made: it ends with that as soon as it is stored.
    pub fault: Option<Fault>,
    /// So often it was started, without an end.
    pub starts: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Somebody asks.
    Submit(Ticket),
    /// The journal has it.
    Stored(JobId),
    /// The journal could not take it.
    NotStored(JobId),
    /// The journal had it when the server started; nobody holds it.
    Restored(Ticket, Left),
    /// Its pictures are there.
    Prepared(JobId),
    /// Its pictures cannot be used.
    NotPrepared(JobId, Fault),
    /// The worker wants work.
    Take,
    /// The worker could not begin with it: it waits on, at the place it had.
    NotStarted(JobId),
    /// The worker is done with it.
    Done(JobId, Outcome),
    /// Somebody wants it no more.
    Cancel(JobId),
    /// Time passed.
    Tick,
    /// The server shuts down: nothing new is taken or started.
    Drain,
    /// The server cannot wait any longer: the running job goes back to the line.
    Halt,
}

/// What the caller of a restored job is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It can ask for the result under the job's name.
    Returns,
    /// It waited on a connection that is gone.
    Gone,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell whoever asked that it is refused.
    Refuse(Fault),
    /// This job is already there under the same key.
    Same(JobId),
    /// Write it into the journal, then say [`Event::Stored`].
    Store(JobId),
    /// Forget it: it was never accepted.
    Forget(JobId),
    /// Fetch its pictures, then say [`Event::Prepared`].
    Prepare(JobId),
    /// Something waits: wake the worker.
    Wake,
    /// Record the start, let the worker run it, then say [`Event::Done`].
    Start(JobId),
    /// Tell the worker to stop it; it says [`Event::Done`] then.
    Stop(JobId),
    /// Record that it waits again and that this start does not count.
    Requeue(JobId),
    /// Record its end. The queue knows it no more.
    End(JobId, Outcome),
}

/// All jobs that have not ended.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    limits: Limits,
    entries: BTreeMap<JobId, Entry>,
    keys: HashMap<(Owner, String), JobId>,
    /// When each owner had a turn, counted in turns.
    turns: HashMap<Owner, u64>,
    turn: u64,
    arrivals: u64,
    running: Option<JobId>,
    draining: bool,
    /// Of the last jobs, smoothed; for `retry_after`.
    seconds_a_job: Option<f64>,
}

#[derive(Clone, Debug)]
struct Entry {
    ticket: Ticket,
    phase: Phase,
    /// Which arrival it was: first come, first served.
    arrival: u64,
    began: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// On its way into the journal; `cancelled` while it was.
    Storing {
        cancelled: bool,
    },
    Preparing,
    Waiting,
    Running {
        stop: Option<Stop>,
    },
}

/// Why a running job was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Cancelled,
    Halted,
}

impl Queue {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// What follows from an event. An event about a job that has ended is late and changes nothing.
    pub fn apply(&mut self, event: Event, now: Millis) -> Vec<Effect> {
        match event {
            Event::Submit(ticket) => vec![self.submit(ticket, now)],
            Event::Stored(id) => self.stored(&id),
            Event::NotStored(id) => match self.remove(&id) {
                Some(_) => vec![Effect::Forget(id)],
                None => Vec::new(),
            },
            Event::Restored(ticket, left) => self.restored(ticket, left, now),
            Event::Prepared(id) => match self.entries.get_mut(&id) {
                Some(entry) if entry.phase == Phase::Preparing => {
                    entry.phase = Phase::Waiting;
                    entry.ticket.bytes = entry.ticket.bytes.saturating_sub(entry.ticket.bytes_to_prepare);
                    vec![Effect::Wake]
                }
                _ => Vec::new(),
            },
            Event::NotPrepared(id, fault) => match self.entries.get(&id) {
                Some(entry) if entry.phase == Phase::Preparing => self.end(&id, Outcome::Failed(fault)),
                _ => Vec::new(),
            },
            Event::Take => self.take(now),
            Event::NotStarted(id) => self.not_started(&id),
            Event::Done(id, outcome) => self.done(id, outcome, now),
            Event::Cancel(id) => self.cancel(&id),
            Event::Tick => self.tick(now),
            Event::Drain => {
                self.draining = true;
                Vec::new()
            }
            Event::Halt => {
                self.draining = true;
                let running = self.running.clone();
                running.map_or_else(Vec::new, |id| self.stop(&id, Stop::Halted))
            }
        }
    }

    fn submit(&mut self, ticket: Ticket, now: Millis) -> Effect {
        if let Some(key) = &ticket.key
            && let Some(id) = self.keys.get(&(ticket.owner.clone(), key.clone()))
        {
            return Effect::Same(id.clone());
        }
        if self.draining {
            return Effect::Refuse(Fault::Unavailable("the server is shutting down".into()));
        }
        let all = self.entries.len();
        let own = self.entries.values().filter(|entry| entry.ticket.owner == ticket.owner).count();
        let bytes: usize = self.entries.values().map(|entry| entry.ticket.bytes).sum();
        let full = |ahead: usize, message: String| {
            // One place is free when one job is done; a caller that keeps coming back gets it then.
            let seconds = self.seconds_a_job.unwrap_or(1.0) * (1.0 + ahead as f64 / 8.0);
            Effect::Refuse(Fault::Full { retry_after: seconds.ceil().clamp(1.0, 120.0) as u32, message })
        };
        if all >= self.limits.jobs {
            return full(all - self.limits.jobs, format!("the queue is full: {all} jobs have not ended"));
        }
        let most = ticket.most_of_owner.unwrap_or(usize::MAX).min(self.limits.jobs_of_owner);
        if own >= most {
            return full(own - most, format!("{own} jobs of yours have not ended, and {most} is the limit"));
        }
        if bytes > 0 && bytes.saturating_add(ticket.bytes) > self.limits.bytes {
            return full(0, format!("the queue is full: requests of {bytes} bytes wait"));
        }
        let id = ticket.id.clone();
        self.insert(ticket, Phase::Storing { cancelled: false }, now);
        Effect::Store(id)
    }

    fn insert(&mut self, ticket: Ticket, phase: Phase, now: Millis) {
        if let Some(key) = &ticket.key {
            self.keys.insert((ticket.owner.clone(), key.clone()), ticket.id.clone());
        }
        self.arrivals += 1;
        let entry = Entry { phase, arrival: self.arrivals, began: now, ticket };
        self.entries.insert(entry.ticket.id.clone(), entry);
    }

    fn remove(&mut self, id: &JobId) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        if let Some(key) = entry.ticket.key.clone() {
            self.keys.remove(&(entry.ticket.owner.clone(), key));
        }
        if self.running.as_ref() == Some(id) {
            self.running = None;
        }
        Some(entry)
    }

    fn stored(&mut self, id: &JobId) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        match entry.phase {
            Phase::Storing { cancelled: true } => self.end(id, Outcome::Cancelled),
            Phase::Storing { cancelled: false } => self.arrived(id),
            _ => Vec::new(),
        }
    }

    /// It is safe in the journal: what comes next?
    fn arrived(&mut self, id: &JobId) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        if let Some(fault) = entry.ticket.fault.clone() {
            self.end(id, Outcome::Failed(fault))
        } else if entry.ticket.to_prepare {
            entry.phase = Phase::Preparing;
            vec![Effect::Prepare(id.clone())]
        } else {
            entry.phase = Phase::Waiting;
            vec![Effect::Wake]
        }
    }

    fn restored(&mut self, ticket: Ticket, left: Left, now: Millis) -> Vec<Effect> {
        let id = ticket.id.clone();
        let starts = ticket.starts;
        self.insert(ticket, Phase::Storing { cancelled: false }, now);
        if left == Left::Gone {
            self.end(&id, Outcome::Cancelled)
        } else if starts >= self.limits.starts {
            let message = format!("the server stopped {starts} times while this was being made; it is not tried again");
            self.end(&id, Outcome::Failed(Fault::Failed(message)))
        } else {
            self.arrived(&id)
        }
    }

    fn take(&mut self, now: Millis) -> Vec<Effect> {
        if self.draining || self.running.is_some() {
            return Vec::new();
        }
        let mut effects = self.tick(now); // nothing starts after its deadline
        if let Some(id) = self.next()
            && let Some(entry) = self.entries.get_mut(&id)
        {
            entry.phase = Phase::Running { stop: None };
            entry.began = now;
            entry.ticket.starts += 1;
            self.turn += 1;
            self.turns.insert(entry.ticket.owner.clone(), self.turn);
            self.running = Some(id.clone());
            effects.push(Effect::Start(id));
        }
        effects
    }

    /// The first in line.
    fn next(&self) -> Option<JobId> {
        let turn = |owner: &Owner| self.turns.get(owner).copied().unwrap_or(0);
        let place = |entry: &&Entry| (Reverse(entry.ticket.priority), turn(&entry.ticket.owner), entry.arrival);
        let waiting = self.entries.values().filter(|entry| entry.phase == Phase::Waiting);
        waiting.min_by_key(place).map(|entry| entry.ticket.id.clone())
    }

    fn not_started(&mut self, id: &JobId) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        let Phase::Running { stop } = entry.phase else { return Vec::new() };
        entry.ticket.starts = entry.ticket.starts.saturating_sub(1);
        entry.phase = Phase::Waiting;
        self.running = None;
        if stop == Some(Stop::Cancelled) { self.end(id, Outcome::Cancelled) } else { vec![Effect::Wake] }
    }

    fn done(&mut self, id: JobId, outcome: Outcome, now: Millis) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&id) else { return Vec::new() };
        let Phase::Running { stop } = entry.phase else { return Vec::new() };
        if outcome == Outcome::Cancelled && stop == Some(Stop::Halted) {
            entry.ticket.starts = entry.ticket.starts.saturating_sub(1);
            entry.phase = Phase::Waiting;
            self.running = None;
            return vec![Effect::Requeue(id)];
        }
        if matches!(outcome, Outcome::Succeeded { .. }) {
            let seconds = (now - entry.began).max(0) as f64 / 1e3;
            self.seconds_a_job = Some(self.seconds_a_job.map_or(seconds, |before| before * 0.8 + seconds * 0.2));
        }
        let mut effects = self.end(&id, outcome);
        effects.push(Effect::Wake);
        effects
    }

    fn cancel(&mut self, id: &JobId) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        match entry.phase {
            Phase::Storing { .. } => {
                entry.phase = Phase::Storing { cancelled: true };
                Vec::new()
            }
            Phase::Preparing | Phase::Waiting => self.end(id, Outcome::Cancelled),
            Phase::Running { .. } => self.stop(id, Stop::Cancelled),
        }
    }

    /// Whoever cancels means it more than a server that shuts down.
    fn stop(&mut self, id: &JobId, why: Stop) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(id) else { return Vec::new() };
        let Phase::Running { stop } = &mut entry.phase else { return Vec::new() };
        let told = stop.is_some();
        if *stop != Some(Stop::Cancelled) {
            *stop = Some(why);
        }
        if told { Vec::new() } else { vec![Effect::Stop(id.clone())] }
    }

    fn tick(&mut self, now: Millis) -> Vec<Effect> {
        let mut late = Vec::new();
        for (id, Entry { ticket, phase, .. }) in &self.entries {
            let over = |deadline: Option<Millis>| deadline.is_some_and(|deadline| deadline <= now);
            match phase {
                Phase::Storing { .. } => {}
                _ if over(ticket.finish_by) => late.push((id.clone(), false)),
                Phase::Preparing | Phase::Waiting if over(ticket.start_by) => late.push((id.clone(), true)),
                _ => {}
            }
        }
        let mut effects = Vec::new();
        for (id, to_start) in late {
            effects.extend(if to_start {
                let message = "it did not start within the time that was asked for";
                self.end(&id, Outcome::Failed(Fault::TimedOut(message.into())))
            } else {
                self.cancel(&id)
            });
        }
        effects
    }

    fn end(&mut self, id: &JobId, outcome: Outcome) -> Vec<Effect> {
        match self.remove(id) {
            Some(_) => vec![Effect::End(id.clone(), outcome)],
            None => Vec::new(),
        }
    }

    /// When [`Event::Tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Millis> {
        let of = |entry: &Entry| match entry.phase {
            Phase::Running { stop: Some(_) } | Phase::Storing { .. } => None,
            Phase::Running { stop: None } => entry.ticket.finish_by,
            _ => entry.ticket.start_by.into_iter().chain(entry.ticket.finish_by).min(),
        };
        self.entries.values().filter_map(of).min()
    }

    /// All that wait, in the order in which they would go if nothing else came.
    pub fn line(&self) -> Vec<JobId> {
        let mut shares: BTreeMap<(Reverse<Priority>, &Owner), Vec<&Entry>> = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| entry.phase == Phase::Waiting) {
            shares.entry((Reverse(entry.ticket.priority), &entry.ticket.owner)).or_default().push(entry);
        }
        let mut turns: HashMap<&Owner, u64> = self.turns.iter().map(|(owner, turn)| (owner, *turn)).collect();
        let mut turn = self.turn;
        let mut line = Vec::new();
        for priority in [Priority::Normal, Priority::Low] {
            let mut of_owner: HashMap<&Owner, VecDeque<&Entry>> = HashMap::new();
            for ((_, owner), entries) in shares.iter_mut().filter(|((Reverse(of), _), _)| *of == priority) {
                entries.sort_by_key(|entry| entry.arrival);
                of_owner.insert(*owner, entries.iter().copied().collect());
            }
            let place = |owner: &Owner, turns: &HashMap<&Owner, u64>, first: &Entry| {
                Reverse((turns.get(owner).copied().unwrap_or(0), first.arrival, first.ticket.id.clone()))
            };
            let mut heads: BinaryHeap<_> =
                of_owner.iter().filter_map(|(owner, jobs)| Some(place(owner, &turns, jobs.front()?))).collect();
            while let Some(Reverse((.., id))) = heads.pop() {
                let Some(entry) = self.entries.get(&id) else { continue };
                let owner = &entry.ticket.owner;
                line.push(id);
                turn += 1;
                turns.insert(owner, turn);
                if let Some(jobs) = of_owner.get_mut(owner) {
                    jobs.pop_front();
                    heads.extend(jobs.front().map(|first| place(owner, &turns, first)));
                }
            }
        }
        line
    }

    /// Whether it has not ended.
    pub fn has(&self, id: &JobId) -> bool {
        self.entries.contains_key(id)
    }

    /// The one that runs.
    pub fn running(&self) -> Option<&JobId> {
        self.running.as_ref()
    }

    /// How many have not ended; of one owner or of all.
    pub fn len(&self, owner: Option<&Owner>) -> usize {
        self.entries.values().filter(|entry| owner.is_none_or(|owner| entry.ticket.owner == *owner)).count()
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the server shuts down.
    pub fn is_draining(&self) -> bool {
        self.draining
    }
}

/// The whole state, a line for each job: what runs, what waits in order, what is not in line yet.
impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |place: &str, entry: &Entry| {
            let Entry { ticket, .. } = entry;
            write!(f, "{place} {} of {}", ticket.id, ticket.owner.0)?;
            if ticket.priority == Priority::Low {
                f.write_str(", low")?;
            }
            for (name, time) in [("start by", ticket.start_by), ("finish by", ticket.finish_by)] {
                if let Some(time) = time {
                    write!(f, ", {name} {time}")?;
                }
            }
            if ticket.starts > 0 {
                write!(f, ", start {}", ticket.starts)?;
            }
            f.write_str("\n")
        };
        for entry in self.entries.values() {
            if let Phase::Running { stop } = entry.phase {
                row(if stop.is_some() { "stopping" } else { "running" }, entry)?;
            }
        }
        for (place, id) in self.line().iter().enumerate() {
            if let Some(entry) = self.entries.get(id) {
                row(&place.to_string(), entry)?;
            }
        }
        for entry in self.entries.values() {
            match entry.phase {
                Phase::Storing { .. } => row("storing", entry)?,
                Phase::Preparing => row("preparing", entry)?,
                _ => {}
            }
        }
        if self.draining { f.write_str("shutting down\n") } else { Ok(()) }
    }
}
