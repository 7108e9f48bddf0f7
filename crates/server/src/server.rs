//! The server as a whole: what its handlers share.

use std::{ops::Deref, sync::Arc};

use axum::extract::FromRef;

use crate::{
    auth::{Auth, Caller},
    blobs::Blobs,
    config::{Config, Wrong},
    error::{Fault, Rule, Stage},
    fetch::Fetcher,
    guard::Room,
    job::{JobView, NewJob, Webhook},
    jobs::{Hold, Jobs},
    journal::Journal,
    metrics::Metrics,
    reload::{Reload, ReloadError, Reloaded},
    shelf::Shelf,
    signing::Signing,
    uploads::Uploads,
};

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Parts>);

/// The parts of a server.
pub struct Parts {
    /// As configured.
    pub config: Arc<Config>,
    /// Who may ask.
    pub auth: Auth,
    /// Pictures given and made.
    pub blobs: Blobs,
    /// What is on the disk of jobs.
    pub journal: Journal,
    /// The queue.
    pub jobs: Jobs,
    /// What it asks of others.
    pub fetcher: Fetcher,
    /// Keys that webhooks are signed with.
    pub signing: Signing,
    /// What comes in is counted against it.
    pub room: Room,
    /// Files on their way in.
    pub uploads: Uploads,
    /// Models.
    pub shelf: Shelf,
    /// How the configuration is read again.
    pub reload: Reload,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// When the server started, seconds since 1970.
    pub started: i64,
}

impl Deref for Server {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl FromRef<Server> for Blobs {
    fn from_ref(server: &Server) -> Self {
        server.blobs.clone()
    }
}

impl Server {
    /// Of these parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The shelf's name of the model that a client named; of the first, if it named none.
    ///
    /// # Errors
    /// [`Fault::UnknownModel`].
    pub fn model(&self, asked: Option<&str>) -> Result<String, Fault> {
        self.shelf.stock().resolve(asked).ok_or_else(|| Fault::UnknownModel(asked.unwrap_or("any").to_owned()))
    }

    /// Hands a job to the queue, if the prompt passes the gate. One that does not is refused at once, or is a job that has failed where its vendor does so ([`Dialect::tells_later`]) and the caller
    /// does not wait.
    ///
    /// # Errors
    /// [`Fault::Full`], [`Fault::Flagged`], or what [`Jobs::submit`] says.
    pub async fn submit(&self, caller: &Caller, mut new: NewJob) -> Result<(JobView, Hold), Fault> {
        if let Ok(ask) = &mut new.ask {
            ask.keep_seconds = ask.keep_seconds.min(self.config.store.results.as_secs());
        }
        new.most_of_owner = caller.limits.queued.map(|most| most as usize);
        if let Ok(ask) = &new.ask
            && let Err(fault) = self.screen(ask.prompt.clone()).await
        {
            if new.only_while_held || !new.dialect.tells_later() {
                return Err(fault);
            }
            new.ask = Err(fault);
        }
        self.jobs.submit(new).await
    }

    /// Whether a webhook could be told at all; `field` is its vendor's name.
    ///
    /// # Errors
    /// [`Fault::Invalid`].
    pub fn may_tell(&self, field: &str, webhook: Option<&Webhook>) -> Result<(), Fault> {
        let Some(webhook) = webhook else { return Ok(()) };
        self.fetcher.may_tell(&webhook.url).map_err(|why| Fault::invalid(field, Rule::Other, why))
    }

    /// Asks the prompt gate.
    async fn screen(&self, prompt: String) -> Result<(), Fault> {
        let safety = self.shelf.stock().safety();
        // Up to 150 ms for the longest: the threads that serve have other things to do.
        let screened = tokio::task::spawn_blocking(move || safety.screen(&prompt).map(drop)).await;
        let screened = screened.map_err(|_| Fault::Failed("the prompt could not be looked at".into()))?;
        screened.map_err(|refused| {
            self.metrics.flagged(Stage::Prompt.name());
            Fault::from(&refused)
        })
    }

    /// Reads the configuration again; what is live is in force then.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing was changed then.
    pub async fn read_configuration(&self) -> Result<Reloaded, ReloadError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || this.reload.apply(&this.shelf)).await;
        done.unwrap_or_else(|_| Err(Wrong::Conflict("the configuration could not be read".into()).into()))
    }
}
