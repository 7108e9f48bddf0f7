//! The server's life: parts put together, ports opened, work done until a signal asks for the end. SIGHUP reads the configuration
//! again.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    app::app,
    auth::Auth,
    blobs::{BlobId, Blobs, Draft, Place, Purpose},
    clock::now,
    collect::Collected,
    config::{Config, Wrong},
    engine::Studio,
    error::Fault,
    fetch::Fetcher,
    guard::Guard,
    http,
    jobs::{Jobs, Prepare, Settings},
    journal::{Journal, OpenError},
    listen::{ListenError, Listeners},
    metrics::Metrics,
    owner::Owner,
    queue::Limits,
    reload::{Again, Reload},
    server::{Parts, Server},
    shelf::Shelf,
    signing::Signing,
    stock::{Stock, Surroundings},
    uploads::Uploads,
    webhook, worker,
};

/// How often blobs whose time is over are looked for.
const SWEEP: Duration = Duration::from_mins(1);

/// Why the server does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] Wrong),
    /// The folder cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A port or TLS cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A model that is to be served cannot be found or used.
    #[error(transparent)]
    Model(#[from] flux::Error),
    /// A part does not come up.
    #[error(transparent)]
    Part(#[from] Fault),
    /// The system gives no thread or signal.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Runs a server until SIGTERM or SIGINT, then ends it in good order. `again` reads the configuration once more, on SIGHUP;
/// `listening` hears the URLs when the server can be reached.
///
/// # Errors
/// [`StartError`].
pub async fn serve(
    config: Config,
    again: Again,
    surroundings: Surroundings,
    listening: impl FnOnce(&[String]),
) -> Result<(), StartError> {
    let end = signal()?;
    let (listeners, running) = Running::start(config, again, surroundings).await?;
    #[cfg(unix)]
    tokio::spawn(read_on_hangup(running.server.clone())?);
    listening(&listeners.urls());
    running.until(listeners, end).await
}

/// A server whose parts are put together.
pub struct Running {
    /// What its handlers share.
    pub server: Server,
    guard: Guard,
    worker: std::thread::JoinHandle<()>,
}

impl Running {
    /// Binds the ports and puts the parts together.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: Config,
        again: Again,
        surroundings: Surroundings,
    ) -> Result<(Listeners, Self), StartError> {
        let stock = Stock::configured(&config, &surroundings)?;
        let reload = Reload::new(again, surroundings, config.clone());
        let config = Arc::new(config);
        let folder = &config.data_dir;
        std::fs::create_dir_all(folder).map_err(|source| StartError::Folder { path: folder.clone(), source })?;
        // Before the journal: of two servers on one folder and port this error is the clearer one.
        let listeners = Listeners::bind(&config)?;
        let journal = Journal::open(folder)?;
        let auth = Auth::new(&config.api_keys, Some(folder), seal(&journal).await?)?;
        config.may_listen(auth.has_keys())?;
        let blobs = Blobs::open(&Place::configured(&config)?, config.store.quota.0).await?;
        let looked_up = Arc::new(OnceLock::new());
        let metrics = Metrics::new(vec![Box::new(Collected(looked_up.clone()))]);
        let fetcher = Fetcher::new(&config, blobs.clone(), metrics.clone())?;
        let settings = Settings {
            limits: Limits {
                jobs: config.queue.total,
                jobs_of_owner: config.queue.per_key,
                bytes: usize::try_from(config.queue.bytes.0).unwrap_or(usize::MAX),
                ..Limits::default()
            },
            keep: config.jobs.keep,
            most: config.jobs.count,
        };
        // What the process before has left of jobs that ended.
        let left = blobs.list(|blob| matches!(blob.purpose, Purpose::Given | Purpose::Internal));
        let fetching = Fetching { fetcher: fetcher.clone(), blobs: blobs.clone() };
        let jobs = Jobs::open(journal.clone(), Arc::new(fetching), settings, metrics.clone()).await?;
        let needed = jobs.given();
        for blob in left.iter().filter(|blob| !needed.contains(&blob.id)) {
            if let Err(fault) = blobs.delete(&blob.id).await {
                tracing::warn!(%fault, "a picture of a job that ended stays until its time is over");
            }
        }
        let shelf = Shelf::new(stock);
        let signing = Signing::open(&journal).await?;
        let guard = Guard::new(config.clone(), auth.clone(), metrics.clone());
        let server = Server::new(Parts {
            config: config.clone(),
            auth: auth.clone(),
            blobs: blobs.clone(),
            journal,
            jobs: jobs.clone(),
            fetcher,
            signing,
            room: guard.room(),
            uploads: Uploads::default(),
            shelf: shelf.clone(),
            reload,
            metrics: metrics.clone(),
            started: now() / 1000,
        });
        let _ = looked_up.set(server.clone()); // the only place where it is set
        // All addresses of a machine are none that anybody can ask.
        let base = listeners.urls().into_iter().next().unwrap_or_default();
        let base = base.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
        tokio::spawn(webhook::deliver(server.clone(), base));
        let studio = (shelf, blobs.clone(), config.metadata);
        let worker = worker::spawn(jobs, move || Studio::new(studio.0, studio.1, studio.2))?;
        tokio::spawn(blobs.keep_sweeping(SWEEP));
        tokio::spawn(auth.keep_reading());
        Ok((listeners, Self { server, guard, worker }))
    }

    /// Serves until `end`; then takes nothing more, lets what runs end within the configured time, and comes back when all of it is on
    /// the disk.
    ///
    /// # Errors
    /// What the system says of the sockets.
    pub async fn until(
        self,
        listeners: Listeners,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        /// Those who wait for a job that was put back hear of it.
        const LAST_WORDS: Duration = Duration::from_secs(2);

        let app = app(&self.server);
        let (plain, tls) = (self.guard.around(app.clone(), false), self.guard.around(app, true));
        let (jobs, grace) = (self.server.jobs.clone(), self.server.config.drain);
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let drained = tokio::spawn(async move {
            end.await;
            tracing::info!("ending: nothing more is accepted");
            drop(tell);
            jobs.drain(grace).await;
        });
        let stop = async move {
            let _ = told.await; // its end is the message
        };
        listeners.run(plain, tls, stop, grace.saturating_add(LAST_WORDS)).await?;
        if let Err(error) = drained.await {
            tracing::error!(%error, "the jobs were not ended in order");
        }
        let ended = tokio::task::spawn_blocking(move || self.worker.join());
        if tokio::time::timeout(Duration::from_secs(5), ended).await.is_err() {
            tracing::warn!("the worker did not end in time");
        }
        Ok(())
    }
}

/// Pictures by address become blobs of the server itself; they are nobody's to look at.
struct Fetching {
    fetcher: Fetcher,
    blobs: Blobs,
}

impl Prepare for Fetching {
    fn picture(&self, url: String, field: String, owner: Owner) -> BoxFuture<'static, Result<Draft, Fault>> {
        let fetcher = self.fetcher.clone();
        async move { fetcher.given(&url, &field, &owner).await }.boxed()
    }

    fn discard(&self, given: Vec<BlobId>) -> BoxFuture<'static, ()> {
        let blobs = self.blobs.clone();
        async move {
            for id in given {
                blobs.discard(&id).await;
            }
        }
        .boxed()
    }
}

/// What signs the server's own tokens; kept, so that they outlive a restart.
async fn seal(journal: &Journal) -> Result<[u8; 32], Fault> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let kept = journal.meta_or("seal", BASE64_STANDARD.encode(http::random::<32>())).await?;
    let bytes = BASE64_STANDARD.decode(&kept).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Fault::Failed("the journal's seal is damaged".into()))
}

/// Reads the configuration whenever the operator asks for it by SIGHUP.
#[cfg(unix)]
fn read_on_hangup(server: Server) -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            if let Err(error) = server.read_configuration().await {
                // The operator's own file and names, for the operator.
                tracing::error!(%error, "the new configuration cannot be used; nothing was changed");
            }
        }
    })
}

/// Comes back when the operator or the system asks for the end.
#[cfg(unix)]
fn signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Comes back when the operator asks for the end.
#[cfg(not(unix))]
fn signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::{Ask, Mode, Source},
        job::NewJob,
        testing::Unfetched,
    };

    #[tokio::test]
    async fn pictures_of_jobs_that_ended_go_at_a_start_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::in_folder(folder.path()) };
        let blobs = Blobs::open(&Place::configured(&config).unwrap(), 1 << 20).await.unwrap();
        let give = async || {
            let draft = blobs.give("GIF89a".into(), "image/gif", "image", &Owner::anyone()).await.unwrap();
            let id = draft.id().clone();
            draft.keep();
            id
        };
        let (left, waiting) = (give().await, give().await);
        let journal = Journal::open(folder.path()).unwrap();
        let metrics = Metrics::default();
        let jobs = Jobs::open(journal, Arc::new(Unfetched::default()), Settings::default(), metrics).await.unwrap();
        let given = vec![Source::Blob { id: waiting.clone(), field: "image".into() }];
        let ask = Ask { mode: Mode::Image { strength: 0.5 }, given, ..Ask::text("pocket", "a fox") };
        let _ = jobs.submit(NewJob::plain(ask)).await.unwrap();
        jobs.drain(Duration::ZERO).await;
        drop(jobs);

        let start = || {
            let same = config.clone();
            Running::start(config.clone(), Box::new(move || Ok(same.clone())), Surroundings::default())
        };
        let mut started = start().await;
        for _ in 0..100 {
            // The journal's lock goes with its thread.
            let Err(StartError::Journal(_)) = &started else { break };
            tokio::time::sleep(Duration::from_millis(20)).await;
            started = start().await;
        }
        let (_listeners, running) = started.unwrap_or_else(|error| panic!("{error}"));
        let there = |id| running.server.blobs.meta(id).is_some();
        assert!(!there(&left) && there(&waiting));
        running.server.jobs.drain(Duration::ZERO).await;
    }
}
