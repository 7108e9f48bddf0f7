//! Uploads that come in parts: which parts are there, until the last one is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    blobs::BlobId,
    clock::{Millis, now},
    error::Fault,
};

/// How long an upload may take from its first word to its last part.
pub(crate) const LASTS: Duration = Duration::from_hours(1);

/// Most uploads in parts at the same time.
const MOST_UPLOADS: usize = 100;

/// Uploads in parts that are not finished.
#[derive(Clone, Debug, Default)]
pub struct Uploads(Arc<Mutex<HashMap<BlobId, Parts>>>);

/// The parts that are there.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    until: Millis,
    pub(crate) bytes: u64,
    pub(crate) kept: BTreeMap<u32, (BlobId, u64)>,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<BlobId, Parts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a part; gives back the one that it replaces.
    pub(crate) fn add(
        &self,
        id: &BlobId,
        number: u32,
        part: (BlobId, u64),
        most: u64,
    ) -> Result<Option<BlobId>, Fault> {
        let mut all = self.lock();
        let now = now();
        all.retain(|_, parts| parts.until > now);
        if all.len() >= MOST_UPLOADS && !all.contains_key(id) {
            return Err(Fault::Full { retry_after: 30, message: "too many uploads are under way".into() });
        }
        let parts = all.entry(id.clone()).or_default();
        parts.until = now + i64::try_from(LASTS.as_millis()).unwrap_or(i64::MAX);
        let size = part.1;
        let before = parts.kept.insert(number, part);
        parts.bytes = (parts.bytes + size).saturating_sub(before.as_ref().map_or(0, |(_, size)| *size));
        if parts.bytes > most {
            return Err(Fault::TooLarge(format!("the file is larger than this server takes: {most} bytes")));
        }
        Ok(before.map(|(id, _)| id))
    }

    pub(crate) fn take(&self, id: &BlobId) -> Option<Parts> {
        self.lock().remove(id)
    }
}
