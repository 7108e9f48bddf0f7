//! Jobs from asking to the end, on a journal in a folder that goes away.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use serde_json::json;

use super::*;
use crate::{
    ask::{Ask, Previews, Source},
    job::{Moment, Priority},
    testing::{self, Fake, Unfetched, ask, job, until},
    worker,
};

/// Long enough for a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(30);

async fn wait(jobs: &Jobs, id: &JobId) -> JobView {
    tokio::time::timeout(PATIENCE, jobs.wait(id)).await.expect("in time").expect("known")
}

/// Jobs without a worker.
async fn idle(folder: &std::path::Path) -> Jobs {
    let journal = Journal::open(folder).unwrap();
    Jobs::open(journal, Arc::new(Unfetched::default()), Settings::default(), Metrics::default()).await.unwrap()
}

/// As if the process had died: nothing more is said to the journal.
async fn die(jobs: Jobs) {
    jobs.0.lock().closed = true;
    jobs.0.clock.notify_one();
    jobs.0.journal.flush().await;
}

/// Whoever holds this does not go before the process dies.
fn waits_for_good(hold: Hold) {
    hold.shared.lock().jobs.get_mut(&hold.id).unwrap().holders += 1;
    drop(hold);
}

/// As after a process that ended: the journal's lock is free when nobody holds it.
async fn reopened(folder: &std::path::Path) -> Jobs {
    for _ in 0..600 {
        if let Ok(journal) = Journal::open(folder) {
            return Jobs::open(journal, Arc::new(Unfetched::default()), Settings::default(), Metrics::default())
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the folder stays locked");
}

#[tokio::test]
async fn the_job_that_runs_is_found_behind_any_number_that_wait() {
    let (jobs, _folder) = testing::jobs(Fake::slow(500)).await;
    let owner = Owner("one".into());
    let new = || NewJob { dialect: Dialect::Sdapi, owner: owner.clone(), ..job("a fox") };
    assert!(jobs.current(&owner, Dialect::Sdapi).is_none());
    let first = jobs.submit(new()).await.unwrap().0.id;
    until("it runs", async || jobs.view(&first).await.is_some_and(|job| job.state == State::Running)).await;
    for _ in 0..60 {
        let _ = jobs.submit(new()).await.unwrap();
    }
    let current = jobs.current(&owner, Dialect::Sdapi).unwrap();
    assert_eq!((current.id, current.state), (first, State::Running));
    assert!(
        jobs.current(&owner, Dialect::Native).is_none() && jobs.current(&Owner::anyone(), Dialect::Sdapi).is_none()
    );
}

#[tokio::test]
async fn a_job_is_followed_to_its_end() {
    let (jobs, _folder) = testing::jobs(Fake::slow(20)).await;
    let mut new = job("a fox");
    new.ask = Ok(Ask { previews: Previews { count: 1, full_size: false }, pictures: 2, ..ask("a fox") });
    new.secret = Some("hidden".into());
    let taken = jobs.submit(new).await.unwrap().0;
    assert_eq!(taken.outcome, None);
    let mut seen = Vec::new();
    let mut previews = 0;
    let mut views = jobs.follow(&taken.id).await.unwrap();
    while let Some(view) = views.next().await {
        previews = previews.max(view.previews.len());
        seen.push((view.state, view.progress.map(|progress| (progress.picture, progress.step))));
    }
    seen.dedup();
    assert!(seen.contains(&(State::Running, Some((1, 2)))), "{seen:?}");
    assert_eq!(seen.last(), Some(&(State::Succeeded, None)));
    assert_eq!(previews, 2);
    let end = jobs.view(&taken.id).await.unwrap();
    assert_eq!(end.made().iter().map(|made| made.seed).collect::<Vec<_>>(), [42, 43]);
    assert_eq!(end.logs[0].message, "Using seed: 42");
    assert!(end.previews.is_empty() && end.started >= Some(end.accepted) && end.finished >= end.started);
    assert_eq!(jobs.by_secret("hidden").await.unwrap().id, taken.id);
    assert!(jobs.by_secret("another").await.is_none());
    let counts = jobs.counts();
    assert_eq!((counts.accepted, counts.succeeded, counts.pictures, counts.queued), (1, 1, 2, 0));
    // Who comes late sees the end at once.
    assert_eq!(jobs.follow(&taken.id).await.unwrap().count().await, 1);
}

#[tokio::test]
async fn failures_stay_their_own() {
    let (jobs, _folder) = testing::jobs(Fake::default()).await;
    let mut ends = Vec::new();
    for prompt in ["panic", "fail", "flag", "fine"] {
        let view = jobs.submit(job(prompt)).await.unwrap().0;
        ends.push(wait(&jobs, &view.id).await);
    }
    assert!(matches!(ends[0].fault(), Some(Fault::Failed(why)) if !why.contains("asked for")));
    assert_eq!(ends[1].fault(), Some(&Fault::Failed("the engine failed".into())));
    assert!(matches!(ends[2].fault(), Some(Fault::Flagged { .. })));
    assert_eq!(ends[3].state, State::Succeeded);
    // Accepted first, told later.
    let wrong = Fault::invalid("steps", crate::error::Rule::AtMost(50.0), "has to be at most 50");
    let view = jobs.submit(NewJob { ask: Err(wrong.clone()), ..job("x") }).await.unwrap().0;
    assert_eq!(wait(&jobs, &view.id).await.fault(), Some(&wrong));
}

#[tokio::test]
async fn pictures_are_fetched_first() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, prepare) = (Journal::open(folder.path()).unwrap(), Unfetched::default());
    let gone = prepare.gone.clone();
    let jobs = Jobs::open(journal, Arc::new(prepare), Settings::default(), Metrics::default()).await.unwrap();
    worker::spawn(jobs.clone(), Fake::default).unwrap();
    let source = |url: &str| Source::Url { url: url.into(), field: "image_url".into() };
    let given = |url: &str| NewJob { ask: Ok(Ask { given: vec![source(url)], ..ask("a fox") }), ..job("a fox") };
    let view = jobs.submit(given("data:image/gif;base64,AAAA")).await.unwrap().0;
    let end = wait(&jobs, &view.id).await;
    let blob = Source::Blob { id: Fake::blob(7), field: "image_url".into() };
    assert_eq!((end.state, &end.ask.unwrap().given[..]), (State::Succeeded, &[blob][..]));
    until("it went with its job", async || *gone.lock().unwrap() == [Fake::blob(7)]).await;
    // The first of two that cannot both be had goes, too.
    let two = Ask { mask: Some(source("data:broken")), ..given("http://a/b").ask.unwrap() };
    let view = jobs.submit(NewJob { ask: Ok(two), ..job("a fox") }).await.unwrap().0;
    assert_eq!(wait(&jobs, &view.id).await.state, State::Failed);
    assert_eq!(gone.lock().unwrap().len(), 2);
    let view = jobs.submit(given("data:broken")).await.unwrap().0;
    let end = wait(&jobs, &view.id).await;
    assert!(matches!(end.fault(), Some(Fault::Picture { field, .. }) if field == "image_url"));
    let left = Source::Url { url: "data:".into(), field: "image_url".into() };
    assert_eq!(end.ask.unwrap().given, [left], "nobody needs the data any more");
}

#[tokio::test]
async fn a_cancelled_job_ends_whether_it_waits_or_runs() {
    let (jobs, _folder) = testing::jobs(Fake::slow(50)).await;
    let long = || NewJob { ask: Ok(Ask { steps: 10_000, ..ask("long") }), ..job("long") };
    let first = jobs.submit(long()).await.unwrap().0;
    let second = jobs.submit(long()).await.unwrap().0;
    until("it runs", async || jobs.view(&first.id).await.unwrap().state == State::Running).await;
    assert_eq!(jobs.view(&second.id).await.unwrap().position, Some(0));
    assert_eq!(jobs.cancel(&second.id).await, Cancelling::Requested);
    assert_eq!(jobs.view(&second.id).await.unwrap().state, State::Cancelled);
    assert_eq!(jobs.cancel(&second.id).await, Cancelling::AlreadyFinal(State::Cancelled));
    assert_eq!(jobs.cancel(&first.id).await, Cancelling::Requested);
    assert_eq!(wait(&jobs, &first.id).await.fault(), Some(&Fault::Cancelled));
    assert_eq!(jobs.cancel(&JobId::from_random([1; 26])).await, Cancelling::Unknown);
}

#[tokio::test]
async fn what_only_a_caller_waits_for_ends_with_the_caller() {
    let (jobs, _folder) = testing::jobs(Fake::slow(50)).await;
    let steps = Ask { steps: 10_000, ..ask("long") };
    let held = NewJob { ask: Ok(steps), only_while_held: true, ..job("long") };
    let (view, one) = jobs.submit(held.clone()).await.unwrap();
    let other = jobs.hold(&view.id);
    until("it runs", async || jobs.view(&view.id).await.unwrap().state == State::Running).await;
    drop(one);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(jobs.view(&view.id).await.unwrap().state, State::Running);
    drop(other);
    assert_eq!(wait(&jobs, &view.id).await.state, State::Cancelled);
    // Gone before there was an answer.
    let before = jobs.counts().accepted;
    let mut asking = Box::pin(jobs.submit(held));
    assert!(futures_util::poll!(&mut asking).is_pending());
    drop(asking);
    until("it was taken and cancelled", async || {
        let counts = jobs.counts();
        counts.accepted == before + 1 && counts.cancelled == 2
    })
    .await;
}

#[tokio::test]
async fn the_same_key_is_the_same_job() {
    let (jobs, folder) = testing::jobs(Fake::default()).await;
    let keyed = || NewJob { idempotency_key: Some("k".into()), ..job("a fox") };
    let (one, two) = tokio::join!(jobs.submit(keyed()), jobs.submit(keyed()));
    let (one, two) = (one.unwrap().0, two.unwrap().0);
    assert_eq!(one.id, two.id);
    wait(&jobs, &one.id).await;
    assert_eq!(jobs.submit(keyed()).await.unwrap().0.id, one.id, "also when it has ended");
    jobs.drain(Duration::ZERO).await;
    drop(jobs);
    let jobs = reopened(folder.path()).await;
    assert_eq!(jobs.submit(keyed()).await.unwrap().0.id, one.id, "also after a restart");
}

#[tokio::test]
async fn a_key_is_for_one_request() {
    let (jobs, _folder) = testing::jobs(Fake::slow(5)).await;
    let keyed = |ask: Ask| NewJob { idempotency_key: Some("k".into()), ask: Ok(ask), ..job("") };
    let first = jobs.submit(keyed(ask("a fox"))).await.unwrap().0;
    // The seed was chosen by chance.
    assert_eq!(jobs.submit(keyed(Ask { seed: 7, ..ask("a fox") })).await.unwrap().0.id, first.id);
    let other = jobs.submit(keyed(ask("a hare"))).await;
    assert!(matches!(&other, Err(Fault::Invalid(wrong)) if wrong[0].field == "idempotency-key"), "{other:?}");
    let elsewhere = NewJob { dialect: Dialect::Fal, ..keyed(ask("a fox")) };
    assert!(jobs.submit(elsewhere).await.is_err());
    wait(&jobs, &first.id).await;

    // Who went away and comes back with the key gets a picture.
    let held = || NewJob {
        idempotency_key: Some("held".into()),
        only_while_held: true,
        ask: Ok(Ask { steps: 50, ..ask("a fox") }),
        ..job("")
    };
    let left = jobs.submit(held()).await.unwrap().0;
    let (again, _hold) = jobs.submit(held()).await.unwrap();
    assert_ne!(again.id, left.id);
    assert_eq!(wait(&jobs, &left.id).await.state, State::Cancelled);
    assert_eq!(wait(&jobs, &again.id).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_key_has_its_own_limit_however_many_ask_at_once() {
    let (jobs, _folder) = testing::jobs(Fake::slow(20)).await;
    let limited = || jobs.submit(NewJob { most_of_owner: Some(2), ..job("a fox") });
    let taken = futures_util::future::join_all((0..20).map(|_| limited())).await;
    assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 2);
    assert!(
        taken
            .iter()
            .any(|taken| matches!(taken, Err(Fault::Full { message, .. }) if message.contains("2 is the limit")))
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_left_out_of_a_list() {
    let (jobs, _folder) = testing::jobs(Fake::default()).await;
    let ids = [jobs.submit(job("one")).await.unwrap().0.id, jobs.submit(job("two")).await.unwrap().0.id];
    for id in &ids {
        wait(&jobs, id).await;
    }
    let spoilt = ids[0].to_string();
    let spoil = move |connection: &rusqlite::Connection| {
        connection.execute("UPDATE jobs SET ask = '{}' WHERE id = ?1", [&spoilt]).map(drop)
    };
    jobs.0.journal.write(spoil).await.unwrap();
    let listed = jobs.list(&Owner::anyone(), Dialect::Native, None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|view| &view.id).collect::<Vec<_>>(), [&ids[1]]);
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = idle(folder.path()).await;
    let first = jobs.submit(job("one")).await.unwrap().0;
    let (second, hold) = jobs.submit(NewJob { only_while_held: true, ..job("two") }).await.unwrap();
    waits_for_good(hold);
    let third = jobs.submit(NewJob { priority: Priority::Low, ..job("three") }).await.unwrap().0;
    // The worker began with the first, and the process died.
    let Next::Job(lost) = jobs.take(PATIENCE) else { panic!("nothing to do") };
    drop(lost);
    die(jobs).await;

    let jobs = reopened(folder.path()).await;
    assert_eq!(wait(&jobs, &second.id).await.state, State::Cancelled, "its caller is gone");
    let views = jobs.list(&Owner::anyone(), Dialect::Native, None, 10).await.unwrap();
    let listed: Vec<_> = views.iter().map(|view| (view.id.clone(), view.state, view.position)).collect();
    assert_eq!(listed.len(), 3);
    assert!(listed.contains(&(first.id.clone(), State::Queued, Some(0))), "{listed:?}");
    assert!(listed.contains(&(third.id.clone(), State::Queued, Some(1))), "{listed:?}");
    worker::spawn(jobs.clone(), Fake::default).unwrap();
    for id in [&first.id, &third.id] {
        let end = wait(&jobs, id).await;
        assert_eq!((end.state, end.made().len()), (State::Succeeded, 1));
    }
    // Pages.
    let views = jobs.list(&Owner::anyone(), Dialect::Native, None, 2).await.unwrap();
    let last = views.last().map(|view| (view.accepted, view.id.clone()));
    let rest = jobs.list(&Owner::anyone(), Dialect::Native, last, 2).await.unwrap();
    assert_eq!((views.len(), rest.len()), (2, 1));
    assert!(jobs.list(&Owner("else".into()), Dialect::Native, None, 2).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_that_takes_the_process_with_it_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut id = None;
    for start in 0..3 {
        let jobs = reopened(folder.path()).await;
        if start == 0 {
            id = Some(jobs.submit(job("deadly")).await.unwrap().0.id);
        }
        let Next::Job(taken) = jobs.take(PATIENCE) else { panic!("nothing to do") };
        drop(taken);
        die(jobs).await;
    }
    let jobs = reopened(folder.path()).await;
    let end = wait(&jobs, &id.unwrap()).await;
    assert!(matches!(end.fault(), Some(Fault::Failed(why)) if why.contains("3 times")), "{end:?}");
}

#[tokio::test]
async fn draining_lets_the_running_job_end_or_gives_it_back() {
    let (jobs, folder) = testing::jobs(Fake::slow(20)).await;
    let short = jobs.submit(job("short")).await.unwrap().0;
    until("it runs", async || jobs.view(&short.id).await.unwrap().state == State::Running).await;
    let waiting = jobs.submit(NewJob { ask: Ok(Ask { steps: 10_000, ..ask("long") }), ..job("long") }).await.unwrap().0;
    jobs.drain(PATIENCE).await;
    assert_eq!(jobs.view(&short.id).await.unwrap().state, State::Succeeded);
    assert_eq!(jobs.view(&waiting.id).await.unwrap().state, State::Queued);
    assert!(matches!(jobs.submit(job("late")).await, Err(Fault::Unavailable(_))));
    drop(jobs);

    let jobs = reopened(folder.path()).await;
    worker::spawn(jobs.clone(), || Fake::slow(20)).unwrap();
    until("it runs", async || jobs.view(&waiting.id).await.unwrap().state == State::Running).await;
    jobs.drain(Duration::ZERO).await;
    assert_eq!(jobs.view(&waiting.id).await.unwrap().state, State::Queued);
    drop(jobs);
    let journal = reopened(folder.path()).await.0.journal.clone();
    let id = waiting.id.clone();
    let record = journal.read(move |connection| records::by_id(connection, &id)).await.unwrap().unwrap();
    assert_eq!((record.state, record.starts), (State::Queued, 0), "a start that was taken back does not count");
}

#[tokio::test]
async fn deadlines_are_kept() {
    let (jobs, _folder) = testing::jobs(Fake::slow(20)).await;
    let long = || Ok(Ask { steps: 10_000, ..ask("long") });
    let cut = jobs.submit(NewJob { ask: long(), finish_by: Some(now() + 300), ..job("long") }).await.unwrap().0;
    let late = jobs.submit(NewJob { start_by: Some(now() + 100), ..job("late") }).await.unwrap().0;
    assert!(matches!(wait(&jobs, &late.id).await.fault(), Some(Fault::TimedOut(_))));
    assert_eq!(wait(&jobs, &cut.id).await.state, State::Cancelled);
}

#[tokio::test]
async fn webhooks_are_in_the_outbox_until_they_were_told() {
    let (jobs, folder) = testing::jobs(Fake::default()).await;
    let moments = vec![Moment::Start, Moment::Output, Moment::Logs, Moment::Completed];
    let webhook = Some(Webhook { url: "http://example.com/hook".into(), moments, base: Some("http://box.lan".into()) });
    let mut chatter = jobs.chatter();
    let view = jobs.submit(NewJob { webhook, ..job("a fox") }).await.unwrap().0;
    wait(&jobs, &view.id).await;
    assert_eq!(chatter.recv().await.unwrap(), view.id);
    jobs.drain(Duration::ZERO).await;
    drop(jobs);

    let jobs = reopened(folder.path()).await;
    let mut told = Vec::new();
    while let [notice] = &jobs.outbox().due(now(), 10).await.unwrap()[..] {
        if notice.tries == 0 {
            jobs.outbox().later(notice.id, now()).await.unwrap();
            continue;
        }
        assert_eq!((&notice.job, notice.url.as_str(), notice.tries), (&view.id, "http://example.com/hook", 1));
        assert_eq!(notice.base.as_deref(), Some("http://box.lan"));
        told.push(notice.moment);
        jobs.outbox().done(notice.id).await.unwrap();
    }
    assert_eq!(told, [Moment::Start, Moment::Output, Moment::Completed]);
    assert_eq!(jobs.outbox().next().await.unwrap(), None);
}

#[tokio::test]
async fn old_jobs_are_forgotten() {
    let (jobs, _folder) = testing::jobs(Fake::default()).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let view = jobs.submit(NewJob { raw: json!({}), ..job("a fox") }).await.unwrap().0;
        wait(&jobs, &view.id).await;
        ids.push(view.id);
    }
    let pruned = |before, most| jobs.0.journal.write(move |connection| records::prune(connection, before, most));
    assert_eq!(pruned(0, 3).await.unwrap(), 1);
    let left = jobs.list(&Owner::anyone(), Dialect::Native, None, 10).await.unwrap();
    assert!(left.len() == 3 && left.iter().all(|view| view.id != ids[0]));
    assert_eq!(pruned(now() + 1, 3).await.unwrap(), 3);
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let (jobs, _folder) = testing::jobs(Fake::slow(20)).await;
    let running = jobs.submit(NewJob { ask: Ok(Ask { steps: 20, ..ask("long") }), ..job("long") }).await.unwrap().0;
    let waiting = jobs.submit(job("waiting")).await.unwrap().0;
    until("it runs", async || jobs.view(&running.id).await.unwrap().state == State::Running).await;
    let journal = jobs.0.journal.clone();
    let most = |pages: u32| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        journal.write(move |connection| connection.execute_batch(&sql))
    };
    most(1).await.unwrap(); // as many as there are now: SQLite says that the disk is full
    // New ones are refused with a sentence, until there is no room at all.
    let large = || NewJob { raw: json!({"padding": "x".repeat(20_000)}), ..job("more") };
    let mut refused = None;
    for _ in 0..50 {
        match jobs.submit(large()).await {
            Ok((view, _)) => drop(jobs.cancel(&view.id).await),
            Err(fault) => refused = Some(fault),
        }
    }
    assert!(matches!(&refused, Some(Fault::Unavailable(why)) if why.contains("disk is full")), "{refused:?}");
    // The service goes on: what is known can be asked for, and what ends meanwhile is told when it is on the disk.
    assert!(jobs.view(&running.id).await.is_some() && jobs.view(&waiting.id).await.is_some());
    most(1_000_000).await.unwrap();
    assert_eq!(wait(&jobs, &running.id).await.state, State::Succeeded);
    assert_eq!(wait(&jobs, &waiting.id).await.state, State::Succeeded);
    let after = jobs.submit(job("after")).await.unwrap().0;
    assert_eq!(wait(&jobs, &after.id).await.state, State::Succeeded);
    assert!(!journal.is_failing());
    for id in [&running.id, &waiting.id, &after.id] {
        let of = id.clone();
        let record = journal.read(move |connection| records::by_id(connection, &of)).await.unwrap().unwrap();
        assert_eq!(record.state, State::Succeeded, "every end is on the disk in the end");
    }
}

/// Every prefix of the write-ahead log is a state that was promised: what is there reads, and no more is there than was sent.
#[tokio::test]
async fn a_journal_cut_anywhere_opens() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = idle(folder.path()).await;
    let mut sizes = Vec::new();
    let wal = folder.path().join(format!("{}-wal", crate::journal::FILE));
    for _ in 0..6 {
        let _ = jobs.submit(job("a fox")).await.unwrap();
        sizes.push(std::fs::metadata(&wal).unwrap().len());
    }
    let (main, log) = (std::fs::read(folder.path().join(crate::journal::FILE)).unwrap(), std::fs::read(&wal).unwrap());
    let last = *sizes.last().unwrap();
    // Every frame's ends, and cuts in between.
    let cuts = (0..=last).filter(|at| at % 2003 == 0 || sizes.iter().any(|size| at.abs_diff(*size) <= 1));
    for cut in cuts {
        let copy = tempfile::tempdir().unwrap();
        std::fs::write(copy.path().join(crate::journal::FILE), &main).unwrap();
        std::fs::write(copy.path().join(format!("{}-wal", crate::journal::FILE)), &log[..cut as usize]).unwrap();
        let journal = Journal::open(copy.path()).unwrap();
        let found = journal.read_here(records::unfinished);
        let promised = sizes.iter().filter(|size| **size <= cut).count();
        let found = found.unwrap();
        assert!(found.iter().all(Result::is_ok), "a job is half there");
        assert_eq!(found.len(), promised, "cut at {cut} of {last}");
    }
}

/// Those who look and the worker that shows want the lock on all jobs and the one on a view: nobody may hold a view's while he waits
/// for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn looking_while_a_job_begins_holds_nobody_up() {
    // In memory, where there is such a folder: a start that takes no time meets those who look.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (jobs, _folder) = testing::jobs_in(folder, Fake::default()).await;
    let many = async {
        for _ in 0..60 {
            let taken = jobs.submit(job("a fox")).await.unwrap().0;
            let looking = (0..200).map(|_| {
                let (jobs, id) = (jobs.clone(), taken.id.clone());
                tokio::spawn(async move { jobs.wait(&id).await.unwrap().state })
            });
            for state in futures_util::future::join_all(looking.collect::<Vec<_>>()).await {
                assert_eq!(state.unwrap(), State::Succeeded);
            }
        }
    };
    let minute = tokio::time::timeout(Duration::from_mins(1), many);
    if minute.await.is_err() {
        // The runtime would wait for the threads that are stuck.
        eprintln!("somebody holds a lock that somebody else waits for");
        std::process::abort();
    }
}
