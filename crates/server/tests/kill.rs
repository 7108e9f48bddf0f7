//! Killed without warning at random moments under load: whatever was accepted ends exactly once, and what it left is there.
//!
//! The process that is killed is this program itself with `--child`. It says on standard output what it promised to whom:
//! `accepted JOB`, `ended JOB STATE BLOB`. The last one gets the time to finish; then what the journal has must be what was promised.

#![expect(clippy::unwrap_used, reason = "a test without libtest's harness")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use server::{
    ask::{Ask, Mode, OutputSize, Source},
    blobs::{BlobId, Blobs, Draft, NewBlob, Place, Purpose},
    clock::now,
    error::Fault,
    job::{Dialect, JobView, Made, Moment, NewJob, Webhook},
    jobs::{Jobs, Prepare, Run, Settings},
    journal::Journal,
    metrics::Metrics,
    owner::Owner,
    worker::{self, Engine},
};

/// How often the process is killed.
const KILLS: u32 = 50;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--child") {
        Some(at) => child(Path::new(&arguments[at + 1]), arguments.get(at + 2).is_some_and(|word| word == "finish")),
        None => parent(),
    }
}

fn parent() {
    killed();
    #[cfg(unix)]
    no_room();
}

fn killed() {
    let folder = tempfile::tempdir().unwrap();
    let promised = Arc::new(Mutex::new(Vec::new()));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..KILLS {
        let mut child = start(folder.path(), "load");
        let reader = follow(&mut child, &promised);
        thread::sleep(Duration::from_millis(random.below(450)));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        reader.join().unwrap();
    }
    let promised = std::mem::take(&mut *promised.lock().unwrap());
    println!("{KILLS} kills: {}", check(folder.path(), &promised, 50));
}

/// No file can grow beyond a size: the journal's writes fail, the process goes on; then it is killed, and there is room again.
#[cfg(unix)]
fn no_room() {
    let folder = tempfile::tempdir().unwrap();
    let promised = Arc::new(Mutex::new(Vec::new()));
    let limited = "ulimit -f 4000; trap '' XFSZ; exec \"$0\" --child \"$1\" load";
    let mut command = Command::new("sh");
    command.arg("-c").arg(limited).arg(std::env::current_exe().unwrap()).arg(folder.path());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let reader = follow(&mut child, &promised);
    let refused = |wanted: usize| {
        for _ in 0..600 {
            let told = promised.lock().unwrap().iter().filter(|line| line.starts_with("refused ")).count();
            if told >= wanted {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("no job was refused");
    };
    refused(1);
    refused(50); // it goes on
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    let promised = std::mem::take(&mut *promised.lock().unwrap());
    let wrong = promised.iter().find(|line| line.starts_with("refused ") && !line.contains("nothing new can be taken"));
    assert_eq!(wrong, None, "refused without saying why");
    println!("no room on the disk, then killed: {}", check(folder.path(), &promised, 1));
}

/// Gives a last process the time to finish, and compares what the journal has with what was promised, to at least so many.
fn check(folder: &Path, promised: &[String], least: usize) -> String {
    let finals = Arc::new(Mutex::new(Vec::new()));
    let mut child = start(folder, "finish");
    follow(&mut child, &finals).join().unwrap();
    assert!(child.wait().unwrap().success());

    let mut last: BTreeMap<String, (String, String, u32)> = BTreeMap::new();
    for line in finals.lock().unwrap().iter() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["final", job, state, blob, notices] = words[..] {
            let end = (state.to_owned(), blob.to_owned(), notices.parse().unwrap());
            assert!(last.insert(job.to_owned(), end).is_none(), "{job} is there twice");
        }
    }
    let mut accepted = BTreeSet::new();
    let mut told = BTreeSet::new();
    for line in promised {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["accepted", job] => {
                assert!(last.contains_key(job), "{job} was accepted and is lost");
                accepted.insert(job.to_owned());
            }
            ["ended", job, state, blob] => {
                assert!(told.insert(job.to_owned()), "{job} ended twice");
                let (last_state, last_blob, _) = &last[job];
                assert_eq!((state, blob), (last_state.as_str(), last_blob.as_str()), "{job} changed after its end");
            }
            _ => {}
        }
    }
    let mut states: BTreeMap<&str, u32> = BTreeMap::new();
    for (job, (state, blob, notices)) in &last {
        assert!(["Succeeded", "Failed", "Cancelled"].contains(&state.as_str()), "{job} is {state}");
        assert!(state != "Succeeded" || blob != "-", "{job} has no picture");
        assert_eq!(*notices, 1, "{job}: its webhook is told of its end once");
        *states.entry(state).or_default() += 1;
    }
    assert!(accepted.len() >= least, "there was no load: {} jobs", accepted.len());
    format!("{} jobs promised, {} ends told; in the journal: {states:?}", accepted.len(), told.len())
}

fn start(folder: &Path, what: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--child").arg(folder).arg(what).stdout(Stdio::piped()).spawn().unwrap()
}

/// Collects whole lines until the process ends; begins when it is ready.
fn follow(child: &mut std::process::Child, lines: &Arc<Mutex<Vec<String>>>) -> thread::JoinHandle<()> {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut ready = String::new();
    reader.read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    let lines = lines.clone();
    thread::spawn(move || {
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            // A line that was cut by the kill promised nothing.
            if let Some(whole) = line.strip_suffix('\n') {
                lines.lock().unwrap().push(whole.to_owned());
            }
            line.clear();
        }
    })
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn child(folder: &Path, finish: bool) {
    let journal = Journal::open(&folder.join("journal")).unwrap();
    let blobs = Blobs::open(&Place::Folder(folder.join("blobs")), 1 << 30).await.unwrap();
    let fetched = Fetched(blobs.clone());
    let jobs = Jobs::open(journal.clone(), Arc::new(fetched), Settings::default(), Metrics::default()).await.unwrap();
    let stored = blobs.clone();
    worker::spawn(jobs.clone(), move || Quick(stored)).unwrap();
    say("ready");
    if finish {
        return tell_all(&jobs, &journal, &blobs).await;
    }
    let mut random = Random(now() as u64 | 1);
    for _ in 0..10_000 {
        let jobs = jobs.clone();
        let (pictures, cancels) = (random.below(3) == 0, random.below(8) == 0);
        tokio::spawn(async move {
            let view = match jobs.submit(new_job(pictures)).await {
                Ok((view, _)) => view,
                Err(fault) => return say(&format!("refused {fault}")),
            };
            say(&format!("accepted {}", view.id));
            if cancels {
                jobs.cancel(&view.id).await;
            }
            let end = jobs.wait(&view.id).await.unwrap();
            say(&format!("ended {} {:?} {}", end.id, end.state, blob(&end)));
        });
        tokio::time::sleep(Duration::from_millis(random.below(12))).await;
    }
}

fn blob(view: &JobView) -> String {
    view.made().first().map_or("-".into(), |made| made.blob.0.clone())
}

/// Waits until all is done and says how each job ended, and how many webhooks are to be told of it.
async fn tell_all(jobs: &Jobs, journal: &Journal, blobs: &Blobs) {
    loop {
        let counts = jobs.counts();
        if counts.queued + counts.running == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    journal.flush().await;
    let notices = journal.read(|connection| {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        let mut statement = connection.prepare("SELECT job FROM notices WHERE moment = 'completed'")?;
        for job in statement.query_map([], |row| row.get::<_, String>(0))? {
            *counts.entry(job?).or_default() += 1;
        }
        Ok(counts)
    });
    let notices = notices.await.unwrap();
    for view in jobs.list(&Owner::anyone(), Dialect::Native, None, 1_000_000).await.unwrap() {
        for made in view.made() {
            assert_eq!(blobs.get(&made.blob).await.unwrap().1.len() as u64, made.bytes, "the picture is not whole");
        }
        let count = notices.get(view.id.as_str()).unwrap_or(&0);
        say(&format!("final {} {:?} {} {count}", view.id, view.state, blob(&view)));
    }
}

fn new_job(pictures: bool) -> NewJob {
    let url = || Source::Url { url: "https://example.com/a.png".into(), field: "image".into() };
    let ask = Ask {
        mode: if pictures { Mode::Image { strength: 0.5 } } else { Mode::Text },
        size: OutputSize::Exact { width: 64, height: 64 },
        steps: 4,
        seed: 42,
        given: pictures.then(url).into_iter().collect(),
        ..Ask::text("pocket", "a fox")
    };
    let webhook = Webhook { url: "http://example.com".into(), moments: vec![Moment::Completed], base: None };
    NewJob { webhook: Some(webhook), ..NewJob::plain(ask) }
}

/// Takes a few milliseconds and stores a "picture", as the true engine does.
struct Quick(Blobs);

impl Engine for Quick {
    fn make(&mut self, ask: &Ask, run: &Run) -> Result<Vec<Made>, Fault> {
        for _ in 0..ask.steps {
            if run.cancelled() {
                return Err(Fault::Cancelled);
            }
            thread::sleep(Duration::from_millis(2));
        }
        let bytes = run.id().as_str().repeat(100);
        let count = bytes.len() as u64;
        let put = self.0.put(
            bytes.into(),
            NewBlob::new(Purpose::Result, "image/png", "a.png", Duration::from_hours(24), run.owner()),
        );
        let blob = run.wait_for(put)?.id.clone();
        Ok(vec![Made { blob, mime: "image/png".into(), width: 64, height: 64, bytes: count, seed: 42, flagged: false }])
    }
}

struct Fetched(Blobs);

impl Prepare for Fetched {
    fn picture(&self, url: String, _field: String, owner: Owner) -> BoxFuture<'static, Result<Draft, Fault>> {
        let blobs = self.0.clone();
        async move { blobs.give(url.into(), "image/png", "a.png", &owner).await }.boxed()
    }

    fn discard(&self, given: Vec<BlobId>) -> BoxFuture<'static, ()> {
        let blobs = self.0.clone();
        async move {
            for id in given {
                blobs.discard(&id).await;
            }
        }
        .boxed()
    }
}

/// xorshift: moments that nobody chose.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
