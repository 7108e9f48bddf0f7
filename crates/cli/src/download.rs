//! What is told of a download: a bar in a terminal, a line for each file elsewhere, or events in JSON.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hub::watch::Event;
use indicatif::{ProgressBar, ProgressStyle};

use crate::readable::bytes;

/// How it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Not at all, but for errors.
    Quietly,
    /// On standard error, for people.
    People,
    /// On standard output, an event a line.
    Json,
}

/// Follows a download and stops it when it is interrupted.
pub(crate) struct Watch {
    told: Told,
    cancel: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Bytes that came over the network since it began.
    received: u64,
    began: Instant,
    last: Option<Instant>,
    verb: &'static str,
}

impl Watch {
    pub(crate) fn new(told: Told) -> Self {
        let (began, cancel) = (Instant::now(), Arc::default());
        Self { told, cancel, bar: None, total: 0, done: 0, received: 0, began, last: None, verb: "downloaded" }
    }

    /// From now on an interrupt is an orderly end. Before, while somebody is asked, it ends the program.
    pub(crate) fn stop_by(&mut self, cancel: Arc<AtomicBool>) {
        self.cancel = cancel;
    }

    /// So many bytes are to come, some of which are here.
    pub(crate) fn begin(&mut self, verb: &'static str, total: u64, here: u64) {
        (self.verb, self.total, self.done, self.received, self.began) = (verb, total, here, 0, Instant::now());
        if self.told == Told::People && std::io::stderr().is_terminal() && total > here {
            let bar = ProgressBar::new(total).with_position(here);
            let template =
                "{bar:24} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}, {eta} left  {wide_msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
    }

    /// A line that stays.
    pub(crate) fn note(&self, line: &str) {
        match (&self.bar, self.told) {
            (_, Told::Quietly | Told::Json) => {}
            (Some(bar), Told::People) => bar.suspend(|| eprintln!("{line}")),
            (None, Told::People) => eprintln!("{line}"),
        }
    }

    /// An event of the program's own.
    pub(crate) fn json(&self, event: &serde_json::Value) {
        if self.told == Told::Json {
            // A reader who went away does not stop a download.
            let _ = writeln!(std::io::stdout(), "{event}");
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Seconds since it began, and bytes a second over the network.
    pub(crate) fn pace(&self) -> (f64, f64) {
        let seconds = self.began.elapsed().as_secs_f64();
        (seconds, self.received as f64 / seconds.max(1e-3))
    }

    /// Bytes that came over the network.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes an event; `false` stops the download.
    pub(crate) fn event(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Asking { repository } => {
                self.json(&serde_json::json!({"event": "asking", "repository": repository}));
            }
            Event::Starting { file, size, have } => {
                self.json(&serde_json::json!({"event": "file", "file": file, "bytes": size, "here": have}));
                if let Some(bar) = &self.bar {
                    bar.set_message(file.to_owned());
                } else if size > have && size > 10_000_000 {
                    let kept = if have > 0 { format!(", {} of it are here", bytes(have)) } else { String::new() };
                    self.note(&format!("{file}: {}{kept}", bytes(size)));
                }
            }
            Event::Received { bytes } => {
                self.received += bytes;
                self.moved(self.done + bytes);
            }
            Event::Dropped { bytes } => self.moved(self.done.saturating_sub(bytes)),
            Event::Done { file } => {
                self.json(&serde_json::json!({"event": "file_done", "file": file}));
            }
            Event::Waiting { seconds, why } => {
                self.note(&format!("waiting {seconds:.0} s: {why}"));
                self.json(&serde_json::json!({"event": "waiting", "seconds": seconds, "why": why}));
            }
            Event::Locked { path } => {
                self.note(&format!(
                    "waiting for another program that downloads the same file (lock '{}')",
                    path.display()
                ));
                self.json(&serde_json::json!({"event": "locked", "lock": path}));
            }
            _ => {}
        }
        !self.cancel.load(Ordering::Relaxed)
    }

    fn moved(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let is_due = self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if self.told == Told::Json && is_due {
            self.last = Some(Instant::now());
            let (_, rate) = self.pace();
            let left = self.total.saturating_sub(done) as f64 / rate.max(1.0);
            self.json(&serde_json::json!({
                "event": "progress", "done_bytes": done, "total_bytes": self.total,
                "bytes_per_second": rate.round(), "seconds_left": left.round(),
            }));
        }
    }

    /// What was done, in a line.
    pub(crate) fn summary(&self) -> String {
        let (seconds, rate) = self.pace();
        format!("{} {} in {seconds:.1} s ({}/s)", self.verb, bytes(self.received), bytes(rate as u64))
    }
}
