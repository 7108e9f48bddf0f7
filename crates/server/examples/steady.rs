//! Many jobs by the model in the box with swaps of models and LoRAs, while many callers ask how far they are: memory and waiting
//! times. `cargo run --release -p server --example steady -- JOBS CALLERS LORA.safetensors`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program")]

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flux::{image_file::MetadataLevel, model::ModelSpec};
use futures_util::{FutureExt as _, future::BoxFuture};
use server::{
    ask::{Ask, OutputSize},
    blobs::{BlobId, Blobs, Draft, Place},
    engine::Studio,
    error::Fault,
    job::NewJob,
    jobs::{Jobs, Prepare, Settings},
    journal::Journal,
    metrics::Metrics,
    owner::Owner,
    queue::Limits,
    shelf::Shelf,
    stock::{Served, Stock},
    worker,
};

struct Nothing;

impl Prepare for Nothing {
    fn picture(&self, _url: String, _field: String, _owner: Owner) -> BoxFuture<'static, Result<Draft, Fault>> {
        std::future::ready(Err(Fault::Failed("nothing is fetched here".into()))).boxed()
    }

    fn discard(&self, _given: Vec<BlobId>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let count = |at: usize, usual: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (jobs_wanted, callers) = (count(1, 200), count(2, 200));
    let lora = arguments.get(3).map(PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal")).unwrap();
    let blobs = Blobs::open(&Place::Folder(folder.path().join("blobs")), 1 << 30).await.unwrap();
    let limits = Limits { jobs: 100_000, jobs_of_owner: 100_000, ..Limits::default() };
    let jobs = Jobs::open(journal, Arc::new(Nothing), Settings { limits, ..Settings::default() }, Metrics::default())
        .await
        .unwrap();
    let models = ["one", "two"].map(|name| Served { name: name.into(), spec: ModelSpec::default() });
    let stock = || Stock {
        models: models.to_vec(),
        loras: lora.as_ref().and_then(|path| path.parent()).map(PathBuf::from),
        ..Stock::default()
    };
    let shelf = Shelf::new(stock());
    let (on_shelf, in_store) = (shelf.clone(), blobs.clone());
    worker::spawn(jobs.clone(), move || Studio::new(on_shelf, in_store, MetadataLevel::Full)).unwrap();

    // By tenths of a millisecond, the last for all that took longer: nothing that grows.
    let waited = Arc::new(Mutex::new(vec![0u64; 10_000]));
    let current = Arc::new(Mutex::new(None));
    for _ in 0..callers {
        let (jobs, waited, current) = (jobs.clone(), waited.clone(), current.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let id: Option<server::job::JobId> = current.lock().unwrap().clone();
                if let Some(id) = id {
                    let start = Instant::now();
                    jobs.view(&id).await.unwrap();
                    let bucket = (start.elapsed().as_micros() / 100).min(9_999) as usize;
                    waited.lock().unwrap()[bucket] += 1;
                }
            }
        });
    }
    let name = lora.as_ref().and_then(|path| path.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
    let start = Instant::now();
    let mut memory = Vec::new();
    for number in 0..jobs_wanted {
        let loras = name.iter().filter(|_| number % 3 == 0).map(|name| (name.clone(), 0.5)).collect();
        let taken =
            jobs.submit(new_job(if number % 2 == 0 { "one" } else { "two" }, number as u64, loras)).await.unwrap().0;
        *current.lock().unwrap() = Some(taken.id.clone());
        let end = jobs.wait(&taken.id).await.unwrap();
        assert!(end.fault().is_none(), "{:?}", end.fault());
        for made in end.made() {
            blobs.delete(&made.blob).await.unwrap();
        }
        if number % 50 == 49 {
            shelf.replace(stock()); // another list: everything is loaded again
        }
        if number >= 1050 {
            // From then on as many ended jobs are in memory as are kept there.
            memory.push((number as f64, resident()));
        }
        if number % 100 == 99 {
            println!("{:5} jobs, {:7.1} s, {} KiB", number + 1, start.elapsed().as_secs_f64(), resident());
        }
    }
    let waited = waited.lock().unwrap().clone();
    let all: u64 = waited.iter().sum();
    let within = |share: f64| {
        let mut left = (all as f64 * share) as u64;
        let bucket = waited.iter().position(|count| {
            let found = *count > left;
            left = left.saturating_sub(*count);
            found
        });
        (bucket.unwrap_or(9_999) + 1) as f64 / 10.0
    };
    println!(
        "{all} views asked for: half within {} ms, 99 % {} ms, 99.9 % {} ms",
        within(0.5),
        within(0.99),
        within(0.999)
    );
    println!("slope {:.3} KiB a job over {} jobs", slope(&memory), memory.len());
}

/// KiB of memory now.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    over / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>().max(1e-9)
}

fn new_job(model: &str, seed: u64, loras: Vec<(String, f32)>) -> NewJob {
    let size = OutputSize::Exact { width: 96, height: 96 };
    NewJob::plain(Ask { size, steps: 2, guidance: 3.0, seed, loras, ..Ask::text(model, "a red fox") })
}
