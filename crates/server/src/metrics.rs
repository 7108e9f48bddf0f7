//! What the server counts, in Prometheus' text form at `/metrics`. Names have no user, key or prompt in them.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Counters>);

struct Counters {
    registry: Registry,
    requests: Family<Request, Counter>,
    request_seconds: Family<ByDialect, Histogram, fn() -> Histogram>,
    requests_now: Gauge,
    refused: Family<Refused, Counter>,
    jobs: Family<Ended, Counter>,
    job_seconds: Family<ByDialect, Histogram, fn() -> Histogram>,
    pictures: Family<ByDialect, Counter>,
    flagged: Family<Flagged, Counter>,
    fetches: Family<Fetched, Counter>,
    webhooks: Family<Fetched, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    dialect: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDialect {
    dialect: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    by: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    dialect: &'static str,
    end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Flagged {
    gate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetched {
    result: &'static str,
}

/// 5 ms to about 5 s.
fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 11))
}

/// 0.1 s to about an hour.
fn long() -> Histogram {
    Histogram::new(exponential_buckets(0.1, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Metrics {
    /// All counters at zero. `more`: what is not counted but looked up when somebody asks: the queue, the store, the shelf.
    pub fn new(more: Vec<Box<dyn Collector>>) -> Self {
        let requests = Family::<Request, Counter>::default();
        let request_seconds = Family::new_with_constructor(short as fn() -> Histogram);
        let requests_now = Gauge::default();
        let refused = Family::<Refused, Counter>::default();
        let jobs = Family::<Ended, Counter>::default();
        let job_seconds = Family::new_with_constructor(long as fn() -> Histogram);
        let pictures = Family::<ByDialect, Counter>::default();
        let flagged = Family::<Flagged, Counter>::default();
        let fetches = Family::<Fetched, Counter>::default();
        let webhooks = Family::<Fetched, Counter>::default();

        let mut registry = Registry::with_prefix("darkroom");
        registry.register("http_requests", "Requests by dialect and status", requests.clone());
        let about = "How long until an answer began";
        registry.register_with_unit("http_request_duration", about, Unit::Seconds, request_seconds.clone());
        registry.register("http_requests_running", "Requests without an answer yet", requests_now.clone());
        registry.register("http_refused", "Requests that were refused before any handler saw them", refused.clone());
        registry.register("jobs_ended", "Jobs by dialect and how they ended", jobs.clone());
        registry.register_with_unit(
            "job_duration",
            "How long jobs that succeeded were computed",
            Unit::Seconds,
            job_seconds.clone(),
        );
        registry.register("pictures", "Finished pictures", pictures.clone());
        registry.register("flagged", "Prompts and pictures that a gate stopped", flagged.clone());
        registry.register("fetches", "Pictures fetched for requests", fetches.clone());
        registry.register("webhook_deliveries", "Deliveries of webhooks", webhooks.clone());
        for collector in more {
            registry.register_collector(collector);
        }
        Self(Arc::new(Counters {
            registry,
            requests,
            request_seconds,
            requests_now,
            refused,
            jobs,
            job_seconds,
            pictures,
            flagged,
            fetches,
            webhooks,
        }))
    }

    /// A request began; it runs until what is returned is dropped.
    pub fn request_began(&self) -> Running {
        self.0.requests_now.inc();
        Running(self.0.requests_now.clone())
    }

    /// A request was answered.
    pub fn request_answered(&self, dialect: &'static str, status: u16, seconds: f64) {
        self.0.requests.get_or_create(&Request { dialect, status }).inc();
        self.0.request_seconds.get_or_create(&ByDialect { dialect }).observe(seconds);
    }

    /// The guard refused a request; `by` which rule: `host`, `origin`, `key`, `size` …
    pub fn refused(&self, by: &'static str) {
        self.0.refused.get_or_create(&Refused { by }).inc();
    }

    /// A job ended; with `pictures`, after so many seconds of computing.
    pub fn job_ended(&self, dialect: &'static str, end: &'static str, seconds: f64, pictures: u64) {
        self.0.jobs.get_or_create(&Ended { dialect, end }).inc();
        if pictures > 0 {
            self.0.job_seconds.get_or_create(&ByDialect { dialect }).observe(seconds);
        }
        self.0.pictures.get_or_create(&ByDialect { dialect }).inc_by(pictures);
    }

    /// A gate, `prompt` or `picture`, stopped something.
    pub fn flagged(&self, gate: &'static str) {
        self.0.flagged.get_or_create(&Flagged { gate }).inc();
    }

    /// A picture was fetched, or not: `ok`, `refused`, `failed`.
    pub fn fetched(&self, result: &'static str) {
        self.0.fetches.get_or_create(&Fetched { result }).inc();
    }

    /// A webhook was delivered, or not: `ok`, `refused`, `failed`.
    pub fn webhook(&self, result: &'static str) {
        self.0.webhooks.get_or_create(&Fetched { result }).inc();
    }

    /// All of it as text, and the media type of that.
    pub fn text(&self) -> (&'static str, String) {
        let mut text = String::new();
        if encode(&mut text, &self.0.registry).is_err() {
            tracing::error!("the metrics cannot be written");
        }
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    }
}

/// A request that runs.
pub struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new(Vec::new());
        let running = metrics.request_began();
        metrics.request_answered("fal", 200, 0.01);
        metrics.refused("host");
        metrics.job_ended("openai", "succeeded", 3.0, 4);
        metrics.flagged("prompt");
        let (_, text) = metrics.text();
        for line in [
            "darkroom_http_requests_total{dialect=\"fal\",status=\"200\"} 1",
            "darkroom_http_requests_running 1",
            "darkroom_http_request_duration_seconds_count{dialect=\"fal\"} 1",
            "darkroom_http_refused_total{by=\"host\"} 1",
            "darkroom_pictures_total{dialect=\"openai\"} 4",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(running);
        assert!(metrics.text().1.contains("darkroom_http_requests_running 0"));
    }
}
