//! Webhooks that have to be told, from the journal: what is in here is told sooner or later, also after a restart.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    clock::Millis,
    error::Fault,
    journal::Journal,
    records::{self, Notice},
};

/// The handle; clones share the same notices.
#[derive(Clone, Debug)]
pub struct Outbox {
    journal: Journal,
    news: Arc<Notify>,
}

impl Outbox {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal, news: Arc::default() }
    }

    /// Notices whose time has come, at most one of each job: the next only when [`Outbox::done`] was said of it.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn due(&self, now: Millis, limit: usize) -> Result<Vec<Notice>, Fault> {
        self.journal.read(move |connection| records::due_notices(connection, now, limit)).await
    }

    /// When the next notice is due; `None` if there is none.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub async fn next(&self) -> Result<Option<Millis>, Fault> {
        self.journal.read(records::next_notice).await
    }

    /// It was told, or is given up.
    ///
    /// # Errors
    /// If the journal cannot be written: it is told once more then.
    pub async fn done(&self, id: i64) -> Result<(), Fault> {
        self.journal.write(move |connection| records::remove_notice(connection, id)).await
    }

    /// It could not be told; it is tried again at `due`.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub async fn later(&self, id: i64, due: Millis) -> Result<(), Fault> {
        self.journal.write(move |connection| records::postpone_notice(connection, id, due)).await
    }

    /// Waits until there may be more.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    pub(crate) fn wake(&self) {
        self.news.notify_one();
    }
}
