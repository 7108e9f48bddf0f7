//! Many clients at once against a server that runs: `load URL [CLIENTS] [SECONDS] [PID]`.
//!
//! Each client submits a small job, asks where it stands until it has ended, fetches the picture and begins again. Told are errors,
//! how long asking took, and, with the server's process id (Linux), its memory over time. The server has to run without keys or with
//! `DARKROOM_KEY` in the environment.

#![expect(clippy::print_stdout, reason = "the result")]

use std::{
    env, fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

#[derive(Default)]
struct Seen {
    jobs: AtomicU64,
    turned_away: AtomicU64,
    errors: Mutex<Vec<String>>,
    /// Milliseconds of each status call.
    status: Mutex<Vec<f64>>,
}

impl Seen {
    fn error(&self, what: String) {
        if let Ok(mut errors) = self.errors.lock() {
            errors.push(what);
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without a provider named there is none: TLS is built with ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let url = arguments.first().ok_or("usage: load URL [CLIENTS] [SECONDS] [PID]")?.clone();
    let number = |index: usize, usual: u64| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (clients, seconds) = (number(1, 200), number(2, 300));
    let pid = arguments.get(3).cloned();
    let key = env::var("DARKROOM_KEY").unwrap_or_default();
    let client = reqwest::Client::builder().pool_max_idle_per_host(clients as usize).build()?;
    let seen = Arc::new(Seen::default());
    let end = Instant::now() + Duration::from_secs(seconds);
    let work = (0..clients).map(|index| {
        let (client, url, key, seen) = (client.clone(), url.clone(), key.clone(), seen.clone());
        tokio::spawn(async move {
            // Not all in the same millisecond.
            tokio::time::sleep(Duration::from_millis(index * 5)).await;
            while Instant::now() < end {
                if let Err(error) = one(&client, &url, &key, &seen, end).await {
                    seen.error(error.to_string());
                }
            }
        })
    });
    let work: Vec<_> = work.collect();
    let mut memory = Vec::new();
    let start = Instant::now();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(bytes) = pid.as_deref().and_then(resident) {
            memory.push((start.elapsed().as_secs_f64(), bytes));
        }
    }
    for task in work {
        let _ = task.await;
    }
    tell(&seen, &memory);
    Ok(())
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// A job from its beginning to its picture.
async fn one(client: &reqwest::Client, url: &str, key: &str, seen: &Seen, end: Instant) -> Result<(), Failed> {
    let ask = json!({"prompt": "a red apple", "size": "96x96", "steps": 4});
    let body = ask.to_string();
    let request = client
        .post(format!("{url}/api/v1/jobs"))
        .bearer_auth(key)
        .header("content-type", "application/json")
        .body(body);
    let answer = request.send().await?;
    if answer.status() == 429 {
        seen.turned_away.fetch_add(1, Ordering::Relaxed);
        let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let Some(after) = after else { return Err("429 without Retry-After".into()) };
        tokio::time::sleep(Duration::from_secs(after).min(end.saturating_duration_since(Instant::now()))).await;
        return Ok(());
    }
    let job = read(answer).await?;
    let id = job["id"].as_str().ok_or("a job without a name")?.to_owned();
    loop {
        let asked = Instant::now();
        let job = read(client.get(format!("{url}/api/v1/jobs/{id}")).bearer_auth(key).send().await?).await?;
        if let Ok(mut status) = seen.status.lock() {
            status.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        match job["state"].as_str() {
            Some("succeeded") => {
                let picture = job["pictures"][0]["url"].as_str().ok_or("a job without a picture")?;
                let picture = client.get(picture).send().await?.error_for_status()?.bytes().await?;
                if picture.is_empty() {
                    return Err("an empty picture".into());
                }
                seen.jobs.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Some("queued" | "running") if Instant::now() < end => tokio::time::sleep(Duration::from_millis(500)).await,
            Some("queued" | "running") => return Ok(()),
            _ => return Err(format!("a job that ended as {}: {}", job["state"], job["error"]).into()),
        }
    }
}

async fn read(answer: reqwest::Response) -> Result<Value, Failed> {
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(serde_json::from_slice(&body)?)
}

/// Bytes of a process in memory.
fn resident(pid: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? * 1024.0)
}

fn tell(seen: &Seen, memory: &[(f64, f64)]) {
    let mut status = seen.status.lock().map(|status| status.clone()).unwrap_or_default();
    status.sort_by(f64::total_cmp);
    let part = |share: f64| status.get(((status.len() as f64 * share) as usize).min(status.len().saturating_sub(1)));
    println!("jobs finished: {}", seen.jobs.load(Ordering::Relaxed));
    println!("turned away with 429: {}", seen.turned_away.load(Ordering::Relaxed));
    if let (Some(half), Some(most), Some(worst)) = (part(0.5), part(0.99), status.last()) {
        println!("status calls: {}, median {half:.1} ms, p99 {most:.1} ms, worst {worst:.1} ms", status.len());
    }
    // What the first fifth of the time allocates for good is not counted.
    let later = &memory[memory.len() / 5..];
    if later.len() > 2 {
        let count = later.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| later.iter().map(of).sum::<f64>() / count;
        let (time, bytes) = (mean(|point| point.0), mean(|point| point.1));
        let slope = later.iter().map(|point| (point.0 - time) * (point.1 - bytes)).sum::<f64>()
            / later.iter().map(|point| (point.0 - time).powi(2)).sum::<f64>();
        println!("memory: {:.1} MB on average, {:+.3} MB a minute", bytes / 1e6, slope * 60.0 / 1e6);
    }
    if let Ok(errors) = seen.errors.lock() {
        println!("errors: {}", errors.len());
        for error in errors.iter().take(10) {
            println!("  {error}");
        }
    }
}
