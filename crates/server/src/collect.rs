//! Numbers that are looked up when Prometheus asks: the queue, the store, the models.

use std::sync::{Arc, OnceLock};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

use crate::{blobs::Purpose, server::Server};

/// The server that is asked; empty until it is put together.
pub(crate) struct Collected(pub(crate) Arc<OnceLock<Server>>);

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collected")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(server) = self.0.get() else { return Ok(()) };
        let counts = server.jobs.counts();
        let (blobs, bytes) = server.blobs.used();
        let models = server.shelf.models();
        let loaded = models.iter().filter(|model| model.loaded).count();
        let held = server.blobs.list(|blob| blob.purpose == Purpose::Held).len();
        let gauges: [(&str, &str, i64); 8] = [
            ("jobs_queued", "Jobs that wait", counts.queued as i64),
            ("jobs_running", "Jobs that are computed", counts.running as i64),
            ("jobs_accepted", "Jobs accepted since the start", counts.accepted as i64),
            ("jobs_refused", "Jobs refused because the queue was full", counts.refused as i64),
            ("files", "Pictures and uploads that are kept", blobs as i64),
            ("files_bytes", "Their bytes", bytes as i64),
            ("files_held", "Flagged pictures that wait for a person", held as i64),
            ("models_loaded", "Models in memory", loaded as i64),
        ];
        for (name, about, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, about, None, gauge.metric_type())?)?;
        }
        let policy = server.shelf.stock().safety();
        let gauge = ConstGauge::new(1_i64);
        let about = "Which policy for prompts and pictures is in force, by its name in pictures; off: none";
        let mut described = encoder.encode_descriptor("safety_policy", about, None, gauge.metric_type())?;
        gauge.encode(described.encode_family(&[("policy", policy.name())])?)?;
        Ok(())
    }
}
