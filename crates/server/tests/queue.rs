//! The queue by itself: whole states, and any order of events.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;
use server::{
    clock::Millis,
    error::Fault,
    job::{JobId, Outcome, Priority},
    owner::Owner,
    queue::{Effect, Event, Left, Limits, Queue, Ticket},
};

fn id(number: u8) -> JobId {
    format!("{number:0>26}").parse().expect("a name")
}

fn ticket(number: u8, owner: &str) -> Ticket {
    Ticket {
        id: id(number),
        owner: Owner(owner.into()),
        priority: Priority::Normal,
        key: None,
        start_by: None,
        finish_by: None,
        bytes: 10,
        bytes_to_prepare: 0,
        to_prepare: false,
        most_of_owner: None,
        fault: None,
        starts: 0,
    }
}

fn made() -> Outcome {
    Outcome::Succeeded { pictures: Vec::new(), seconds: 1.0 }
}

/// With these jobs waiting, in this order.
fn waiting(tickets: impl IntoIterator<Item = Ticket>) -> Queue {
    let mut queue = Queue::new(Limits { jobs: 1000, jobs_of_owner: 1000, ..Limits::default() });
    for ticket in tickets {
        let id = ticket.id.clone();
        assert_eq!(queue.apply(Event::Submit(ticket), 0), [Effect::Store(id.clone())]);
        assert_eq!(queue.apply(Event::Stored(id), 0), [Effect::Wake]);
    }
    queue
}

/// The state in words, names cut to their numbers.
fn shown(queue: &Queue) -> String {
    queue.to_string().replace("000000000000000000000000", "").replace('\n', "; ")
}

#[test]
fn a_job_from_asking_to_its_end() {
    let mut queue = Queue::new(Limits::default());
    let ticket = Ticket { to_prepare: true, finish_by: Some(9000), ..ticket(1, "ann") };
    assert_eq!(queue.apply(Event::Submit(ticket), 0), [Effect::Store(id(1))]);
    assert_eq!(shown(&queue), "storing 01 of ann, finish by 9000; ");
    assert_eq!(queue.apply(Event::Take, 1), []);
    assert_eq!(queue.apply(Event::Stored(id(1)), 1), [Effect::Prepare(id(1))]);
    assert_eq!(shown(&queue), "preparing 01 of ann, finish by 9000; ");
    assert_eq!(queue.apply(Event::Take, 1), []);
    assert_eq!(queue.apply(Event::Prepared(id(1)), 2), [Effect::Wake]);
    assert_eq!(shown(&queue), "0 01 of ann, finish by 9000; ");
    assert_eq!(queue.apply(Event::Take, 3), [Effect::Start(id(1))]);
    assert_eq!(shown(&queue), "running 01 of ann, finish by 9000, start 1; ");
    assert_eq!(queue.apply(Event::Take, 3), []);
    assert_eq!(queue.apply(Event::Done(id(1), made()), 4), [Effect::End(id(1), made()), Effect::Wake]);
    assert_eq!(shown(&queue), "");
    assert_eq!(queue.apply(Event::Done(id(1), made()), 5), [], "an end that comes twice is late");
    assert_eq!(queue.apply(Event::Cancel(id(1)), 5), []);
}

#[test]
fn owners_take_turns_and_low_priority_goes_last() {
    let low = Ticket { priority: Priority::Low, ..ticket(9, "zoe") };
    let many = (1..5).map(|number| ticket(number, "ann"));
    let mut queue = waiting([low].into_iter().chain(many).chain([ticket(5, "bob"), ticket(6, "bob"), ticket(7, "cy")]));
    assert_eq!(
        shown(&queue),
        "0 01 of ann; 1 05 of bob; 2 07 of cy; 3 02 of ann; 4 06 of bob; 5 03 of ann; 6 04 of ann; 7 09 of zoe, low; "
    );
    for next in [1, 5, 7, 2, 6, 3, 4, 9].map(id) {
        assert_eq!(queue.line().first(), Some(&next));
        assert_eq!(queue.apply(Event::Take, 0), [Effect::Start(next.clone())]);
        queue.apply(Event::Done(next, made()), 0);
    }
    assert!(queue.is_empty());
}

#[test]
fn what_is_too_much_is_refused_with_a_time() {
    let mut queue = Queue::new(Limits { jobs: 3, jobs_of_owner: 2, bytes: 35, starts: 3 });
    queue.apply(Event::Submit(ticket(1, "ann")), 0);
    queue.apply(Event::Submit(ticket(2, "ann")), 0);
    let full = |effects: Vec<Effect>| match &effects[..] {
        [Effect::Refuse(Fault::Full { retry_after, message })] => (*retry_after, message.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        full(queue.apply(Event::Submit(ticket(3, "ann")), 0)),
        (1, "2 jobs of yours have not ended, and 2 is the limit".into())
    );
    let large = Ticket { bytes: 16, ..ticket(3, "bob") };
    assert!(full(queue.apply(Event::Submit(large), 0)).1.contains("20 bytes"));
    queue.apply(Event::Submit(ticket(3, "bob")), 0);
    assert!(full(queue.apply(Event::Submit(ticket(4, "cy")), 0)).1.contains("3 jobs have not ended"));
    // What was never stored makes room.
    assert_eq!(queue.apply(Event::NotStored(id(1)), 0), [Effect::Forget(id(1))]);
    assert_eq!(queue.apply(Event::Submit(ticket(4, "cy")), 0), [Effect::Store(id(4))]);
}

#[test]
fn fetched_pictures_take_no_room_of_the_requests() {
    let mut queue = Queue::new(Limits { bytes: 100, ..Limits::default() });
    let large = |number| Ticket { bytes: 80, bytes_to_prepare: 75, to_prepare: true, ..ticket(number, "ann") };
    queue.apply(Event::Submit(large(1)), 0);
    queue.apply(Event::Stored(id(1)), 0);
    assert!(matches!(queue.apply(Event::Submit(large(2)), 0)[..], [Effect::Refuse(_)]));
    queue.apply(Event::Prepared(id(1)), 0);
    assert_eq!(queue.apply(Event::Submit(large(2)), 0), [Effect::Store(id(2))]);
}

#[test]
fn a_key_is_one_job_as_long_as_it_has_not_ended() {
    let keyed = |number, owner| Ticket { key: Some("k".into()), ..ticket(number, owner) };
    let mut queue = waiting([keyed(1, "ann")]);
    assert_eq!(queue.apply(Event::Submit(keyed(2, "ann")), 0), [Effect::Same(id(1))]);
    assert_eq!(queue.apply(Event::Submit(keyed(2, "bob")), 0), [Effect::Store(id(2))], "keys are each owner's own");
    queue.apply(Event::Cancel(id(1)), 0);
    assert_eq!(queue.apply(Event::Submit(keyed(3, "ann")), 0), [Effect::Store(id(3))]);
}

#[test]
fn deadlines_end_what_waits_and_stop_what_runs() {
    let late = Ticket { start_by: Some(100), ..ticket(1, "ann") };
    let cut = Ticket { finish_by: Some(200), ..ticket(2, "bob") };
    let mut queue = waiting([late, cut, ticket(3, "cy")]);
    assert_eq!(queue.next_deadline(), Some(100));
    assert_eq!(queue.apply(Event::Tick, 99), []);
    let effects = queue.apply(Event::Take, 100);
    assert!(
        matches!(&effects[..], [Effect::End(first, Outcome::Failed(Fault::TimedOut(_))), Effect::Start(second)]
                     if *first == id(1) && *second == id(2)),
        "nothing starts after its time: {effects:?}"
    );
    assert_eq!(queue.next_deadline(), Some(200));
    assert_eq!(queue.apply(Event::Tick, 200), [Effect::Stop(id(2))]);
    assert_eq!(queue.next_deadline(), None);
    assert_eq!(queue.apply(Event::Tick, 300), [], "told once");
    assert_eq!(
        queue.apply(Event::Done(id(2), Outcome::Cancelled), 301),
        [Effect::End(id(2), Outcome::Cancelled), Effect::Wake]
    );
}

#[test]
fn cancelling_at_each_moment() {
    let mut queue = Queue::new(Limits::default());
    queue.apply(Event::Submit(ticket(1, "ann")), 0);
    assert_eq!(queue.apply(Event::Cancel(id(1)), 0), [], "its name is not known to anybody yet");
    assert_eq!(queue.apply(Event::Stored(id(1)), 0), [Effect::End(id(1), Outcome::Cancelled)]);

    let mut queue = waiting([ticket(1, "ann"), ticket(2, "ann")]);
    assert_eq!(queue.apply(Event::Cancel(id(2)), 0), [Effect::End(id(2), Outcome::Cancelled)]);
    queue.apply(Event::Take, 0);
    assert_eq!(queue.apply(Event::Cancel(id(1)), 0), [Effect::Stop(id(1))]);
    assert_eq!(queue.apply(Event::Cancel(id(1)), 0), []);
    assert_eq!(shown(&queue), "stopping 01 of ann, start 1; ");
    // It was just done: what is made is made.
    assert_eq!(queue.apply(Event::Done(id(1), made()), 0), [Effect::End(id(1), made()), Effect::Wake]);
}

#[test]
fn shutting_down_gives_the_running_job_back() {
    let mut queue = waiting([ticket(1, "ann"), ticket(2, "ann")]);
    queue.apply(Event::Take, 0);
    queue.apply(Event::Drain, 0);
    assert!(matches!(&queue.apply(Event::Submit(ticket(3, "ann")), 0)[..], [Effect::Refuse(Fault::Unavailable(_))]));
    assert_eq!(queue.apply(Event::Halt, 0), [Effect::Stop(id(1))]);
    assert_eq!(queue.apply(Event::Done(id(1), Outcome::Cancelled), 0), [Effect::Requeue(id(1))]);
    assert_eq!(queue.apply(Event::Take, 0), []);
    assert_eq!(shown(&queue), "0 01 of ann; 1 02 of ann; shutting down; ");

    let mut queue = waiting([ticket(1, "ann")]);
    queue.apply(Event::Take, 0);
    queue.apply(Event::Halt, 0);
    assert_eq!(queue.apply(Event::Cancel(id(1)), 0), []);
    assert_eq!(
        queue.apply(Event::Done(id(1), Outcome::Cancelled), 0),
        [Effect::End(id(1), Outcome::Cancelled), Effect::Wake],
        "who cancels means it more"
    );
}

#[test]
fn after_a_restart() {
    let mut queue = Queue::new(Limits { jobs: 1, ..Limits::default() });
    assert_eq!(
        queue.apply(Event::Restored(Ticket { starts: 2, ..ticket(1, "ann") }, Left::Returns), 0),
        [Effect::Wake]
    );
    let spent = Ticket { starts: 3, ..ticket(2, "ann") };
    assert!(matches!(&queue.apply(Event::Restored(spent, Left::Returns), 0)[..],
                     [Effect::End(_, Outcome::Failed(Fault::Failed(why)))] if why.contains("3 times")));
    assert_eq!(queue.apply(Event::Restored(ticket(3, "ann"), Left::Gone), 0), [Effect::End(id(3), Outcome::Cancelled)]);
    let given = Ticket { to_prepare: true, ..ticket(4, "ann") };
    assert_eq!(
        queue.apply(Event::Restored(given, Left::Returns), 0),
        [Effect::Prepare(id(4))],
        "limits are for new ones"
    );
    assert_eq!(queue.apply(Event::Take, 0), [Effect::Start(id(1))]);
    assert_eq!(queue.apply(Event::NotStarted(id(1)), 0), [Effect::Wake]);
    assert_eq!(shown(&queue), "0 01 of ann, start 2; preparing 04 of ann; ");
}

/// A step of the test; numbers pick jobs and owners.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        owner: u8,
        low: bool,
        key: Option<u8>,
        prepare: bool,
        bad: bool,
        start_in: Option<u8>,
        finish_in: Option<u8>,
    },
    Stored(u8),
    NotStored(u8),
    Prepared(u8),
    NotPrepared(u8),
    Take,
    NotStarted,
    Done(bool),
    Cancel(u8),
    Tick,
    Halt,
}

fn step() -> impl Strategy<Value = Step> {
    let option = |most: u8| proptest::option::weighted(0.2, 0..most);
    prop_oneof![
        8 => (0..4u8, prop::bool::weighted(0.2), option(3), prop::bool::weighted(0.3), prop::bool::weighted(0.1), option(30), option(60))
            .prop_map(|(owner, low, key, prepare, bad, start_in, finish_in)| Step::Submit {
                owner, low, key, prepare, bad, start_in, finish_in
            }),
        8 => any::<u8>().prop_map(Step::Stored),
        1 => any::<u8>().prop_map(Step::NotStored),
        4 => any::<u8>().prop_map(Step::Prepared),
        1 => any::<u8>().prop_map(Step::NotPrepared),
        6 => Just(Step::Take),
        1 => Just(Step::NotStarted),
        6 => any::<bool>().prop_map(Step::Done),
        2 => any::<u8>().prop_map(Step::Cancel),
        3 => Just(Step::Tick),
        1 => prop::bool::weighted(0.05).prop_map(|halt| if halt { Step::Halt } else { Step::Tick }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: a job ends at most once and is not heard of again, one runs at a time, the line is
    /// what will be taken, the bounds hold, and everything can be brought to its end.
    #[test]
    fn any_order_of_events(steps in prop::collection::vec(step(), 1..120)) {
        let limits = Limits { jobs: 20, jobs_of_owner: 8, bytes: 150, starts: 3 };
        let mut queue = Queue::new(limits);
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            now += 3;
            let pick = |number: u8| id(number % model.submitted.max(1));
            let event = match step {
                Step::Submit { owner, low, key, prepare, bad, start_in, finish_in } => {
                    if model.submitted == 200 {
                        continue;
                    }
                    let later = |in_: Option<u8>| in_.map(|time| now + Millis::from(time));
                    let ticket = Ticket {
                        priority: if low { Priority::Low } else { Priority::Normal },
                        key: key.map(|key| key.to_string()),
                        start_by: later(start_in),
                        finish_by: later(finish_in),
                        to_prepare: prepare,
                        fault: bad.then_some(Fault::Cancelled),
                        ..ticket(model.submitted, &owner.to_string())
                    };
                    model.submitted += 1;
                    Event::Submit(ticket)
                }
                Step::Stored(number) => Event::Stored(pick(number)),
                Step::NotStored(number) => Event::NotStored(pick(number)),
                Step::Prepared(number) => Event::Prepared(pick(number)),
                Step::NotPrepared(number) => Event::NotPrepared(pick(number), Fault::Cancelled),
                Step::Take => Event::Take,
                Step::NotStarted => match &model.running {
                    Some(id) => Event::NotStarted(id.clone()),
                    None => continue,
                },
                Step::Done(well) => match &model.running {
                    Some(id) => Event::Done(id.clone(), if well { made() } else { Outcome::Cancelled }),
                    None => continue,
                },
                Step::Cancel(number) => Event::Cancel(pick(number)),
                Step::Tick => Event::Tick,
                Step::Halt => Event::Halt,
            };
            if matches!(event, Event::NotStored(ref id) if !model.storing.contains(id)) {
                continue; // the journal answers once
            }
            model.follow(&mut queue, event, now)?;
            prop_assert!(queue.len(None) <= limits.jobs);
        }
        // What is left comes to its end: nothing is lost.
        for _ in 0..1000 {
            now += 1;
            if let Some(id) = model.storing.first().cloned() {
                model.follow(&mut queue, Event::Stored(id), now)?;
            } else if let Some(id) = model.preparing.first().cloned() {
                model.follow(&mut queue, Event::Prepared(id), now)?;
            } else if let Some(id) = model.running.clone() {
                model.follow(&mut queue, Event::Done(id, made()), now)?;
            } else {
                model.follow(&mut queue, Event::Take, now)?;
            }
        }
        prop_assert!(queue.is_draining() || queue.is_empty(), "left:\n{queue}");
        prop_assert_eq!(model.alive.len(), queue.len(None));
    }

    /// With several owners in line, each is served once before any is served twice, whatever each has waiting.
    #[test]
    fn turns_are_fair(shares in prop::collection::vec(1..12u8, 1..6)) {
        let mut number = 0;
        let tickets: Vec<_> = shares.iter().enumerate().flat_map(|(owner, share)| {
            (0..*share).map(move |_| owner)
        }).map(|owner| { number += 1; ticket(number, &owner.to_string()) }).collect();
        let owners: HashMap<JobId, Owner> = tickets.iter().map(|ticket| (ticket.id.clone(), ticket.owner.clone())).collect();
        let mut queue = waiting(tickets);
        let mut left: HashMap<Owner, u8> = shares.iter().enumerate().map(|(owner, share)| (Owner(owner.to_string().into()), *share)).collect();
        let mut this_round = BTreeSet::new();
        while !queue.is_empty() {
            let [Effect::Start(id)] = &queue.apply(Event::Take, 0)[..] else { panic!("nothing started") };
            let owner = owners[id].clone();
            if !this_round.insert(owner.clone()) {
                prop_assert!(left.iter().all(|(other, left)| *left == 0 || this_round.contains(other)), "{left:?} waited");
                this_round = BTreeSet::from([owner.clone()]);
            }
            *left.get_mut(&owner).unwrap() -= 1;
            queue.apply(Event::Done(id.clone(), made()), 0);
        }
    }
}

/// What the effects said.
#[derive(Debug, Default)]
struct Model {
    submitted: u8,
    alive: BTreeSet<JobId>,
    storing: BTreeSet<JobId>,
    preparing: BTreeSet<JobId>,
    running: Option<JobId>,
    ended: BTreeSet<JobId>,
}

impl Model {
    fn follow(&mut self, queue: &mut Queue, event: Event, now: Millis) -> Result<(), TestCaseError> {
        let line = queue.line();
        let is_take = event == Event::Take;
        match &event {
            Event::Stored(id) => drop(self.storing.remove(id)),
            Event::Prepared(id) => drop(self.preparing.remove(id)),
            Event::NotStarted(_) | Event::Done(..) => self.running = None,
            _ => {}
        }
        for effect in queue.apply(event, now) {
            match effect {
                Effect::Refuse(_) | Effect::Wake => {}
                Effect::Same(id) => prop_assert!(self.alive.contains(&id)),
                Effect::Store(id) => {
                    prop_assert!(self.alive.insert(id.clone()));
                    self.storing.insert(id);
                }
                Effect::Forget(id) => {
                    prop_assert!(self.alive.remove(&id) && self.storing.remove(&id));
                }
                Effect::Prepare(id) => {
                    prop_assert!(self.alive.contains(&id) && self.preparing.insert(id));
                }
                Effect::Start(id) => {
                    // Where the first in line was too late, its owner's turn is not over.
                    let first = line.first().filter(|first| self.alive.contains(*first));
                    prop_assert!(is_take && self.running.is_none());
                    prop_assert!(
                        first.is_none_or(|first| *first == id || line.iter().any(|id| !self.alive.contains(id)))
                    );
                    self.running = Some(id);
                }
                Effect::Stop(id) | Effect::Requeue(id) => prop_assert!(self.alive.contains(&id)),
                Effect::End(id, _) => {
                    prop_assert!(self.alive.remove(&id), "{id} ended and was not there");
                    self.preparing.remove(&id);
                    prop_assert!(self.ended.insert(id), "ended twice");
                }
            }
        }
        prop_assert_eq!(self.running.as_ref(), queue.running());
        Ok(())
    }
}
