//! The server as a whole: what its handlers share, and all routes in one table.

use std::{ops::Deref, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{FromRef, State},
    http::{HeaderValue, Response, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;

use crate::{
    auth::{Auth, Caller},
    blobs::Blobs,
    config::Config,
    dialect::Answer,
    error::Fault,
    fetch::Fetcher,
    files,
    http::{self, fal::storage::Uploads},
    job::{JobView, NewJob},
    jobs::Jobs,
    journal::Journal,
    metrics::Metrics,
    names, openapi,
    shelf::Shelf,
    webhook::Signing,
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
    /// Files on their way in.
    pub uploads: Uploads,
    /// Models.
    pub shelf: Shelf,
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
        let found = names::resolve(asked, &self.shelf_names(), &self.config.aliases).map(str::to_owned);
        found.ok_or_else(|| Fault::UnknownModel(asked.unwrap_or("any").to_owned()))
    }

    /// Hands a job to the queue, if its caller's key may have one more that has not ended.
    ///
    /// # Errors
    /// [`Fault::Full`], or what [`Jobs::submit`] says.
    pub async fn submit(&self, caller: &Caller, new: NewJob) -> Result<JobView, Fault> {
        /// Seconds until it is worth another try: a picture's time, roughly.
        const LATER: u32 = 5;

        let has = self.jobs.unfinished(&caller.owner);
        match caller.limits.queued {
            Some(most) if has >= most as usize => {
                let message = format!("this key may have {most} jobs that have not ended, and has {has}");
                Err(Fault::Full { retry_after: LATER, message })
            }
            _ => self.jobs.submit(new).await,
        }
    }

    /// The names that clients are shown.
    pub fn model_names(&self) -> Vec<String> {
        names::listed(&self.shelf_names(), &self.config.aliases)
    }

    fn shelf_names(&self) -> Vec<String> {
        self.shelf.models().into_iter().map(|model| model.name).collect()
    }

    /// All routes. The guard goes around them.
    pub fn app(&self) -> Router {
        Router::new()
            .merge(http::openai::router())
            .merge(http::fal::router())
            .merge(http::replicate::router())
            .merge(http::sdapi::router())
            .merge(http::native::router())
            .merge(files::router())
            .route("/healthz", get(alive))
            .route("/health", get(alive))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(document))
            .route("/docs", get(docs))
            .with_state(self.clone())
    }
}

/// The process answers.
async fn alive() -> Response<Body> {
    http::good(json!({"status": "ok"}))
}

/// Whether work is taken: the journal can be written, and the server is not on its way out.
async fn ready(State(server): State<Server>) -> Response<Body> {
    let problem = if server.journal.is_failing() {
        Some("the journal cannot be written")
    } else if server.jobs.is_closed() {
        Some("the server is shutting down")
    } else {
        None
    };
    match problem {
        None => http::good(json!({"status": "ready"})),
        Some(problem) => {
            http::respond(&Answer::new(503, json!({"status": "not ready", "problem": problem})).retry_after(5))
        }
    }
}

async fn metrics(State(server): State<Server>) -> Response<Body> {
    let (mime, text) = server.metrics.text();
    ([(header::CONTENT_TYPE, HeaderValue::from_static(mime))], text).into_response()
}

async fn document() -> Response<Body> {
    http::good(openapi::document())
}

/// The same for people: one page without scripts.
async fn docs() -> Response<Body> {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
    ];
    (headers, openapi::page()).into_response()
}
