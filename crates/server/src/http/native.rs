//! `/api/v1/*`: jobs, their events, models, health.

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, Response},
    response::sse::Event,
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{events, good, object, patience::patient, random_seed, respond, text, wish};
use crate::{
    auth::Caller,
    blobs::Purpose,
    clock::now,
    dialect::{Answer, instant, native},
    error::{Fault, Rule, Stage},
    guard::PublicUrl,
    job::{Dialect, JobId, JobView, Made, NewJob, Webhook},
    server::Server,
    shelf::ModelState,
};

/// Jobs of one page.
const PAGE: usize = 100;

/// The routes.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/api/v1/jobs", get(list).post(submit))
        .route("/api/v1/jobs/{id}", get(show).delete(cancel))
        .route("/api/v1/jobs/{id}/events", get(follow))
        .route("/api/v1/jobs/{id}/cancel", post(cancel))
        .route("/api/v1/models", get(models))
}

pub(super) fn refused(fault: &Fault) -> Response<Body> {
    respond(&native::error(fault))
}

fn shown(server: &Server, base: &PublicUrl, job: &JobView) -> Value {
    let mut shown = native::job(job, &base.0, &|made: &Made| server.blobs.url(&made.blob, &base.0));
    if was_flagged(job) {
        let job_name = job.id.as_str();
        let released = server.blobs.list(|blob| {
            let of = blob.about.as_ref().and_then(|about| about["job"].as_str());
            blob.purpose == Purpose::Result && of == Some(job_name)
        });
        shown["released"] = released.iter().map(|blob| Value::from(server.blobs.url(&blob.id, &base.0))).collect();
    }
    shown
}

/// Whether a picture of it may wait for a person, or may have waited.
fn was_flagged(job: &JobView) -> bool {
    let missing = job.ask.as_ref().is_some_and(|ask| job.made().len() < ask.pictures as usize);
    match job.fault() {
        Some(fault) => matches!(fault, Fault::Flagged { stage: Stage::Picture, .. }),
        None => job.state.is_final() && (missing || job.made().iter().any(|made| made.flagged)),
    }
}

async fn submit(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let submitted = async {
        let asked = native::ask(&object(&body)?, &|name| server.model(name), random_seed(), now())?;
        server.may_tell("webhook", asked.webhook.as_ref())?;
        let new = NewJob {
            priority: asked.priority,
            idempotency_key: text(&headers, "idempotency-key").map(str::to_owned),
            start_by: asked.start_by,
            finish_by: asked.finish_by,
            only_while_held: asked.wait,
            webhook: asked.webhook.map(|webhook| Webhook { base: Some(base.0.to_string()), ..webhook }),
            ..NewJob::new(Dialect::Native, &caller.owner, "jobs", Ok(asked.ask))
        };
        let (job, hold) = server.submit(&caller, new).await?;
        Ok((job, asked.wait.then_some(hold)))
    };
    match submitted.await {
        Err(fault) => refused(&fault),
        Ok((job, None)) => respond(&Answer::new(202, shown(&server, &base, &job))),
        Ok((job, Some(hold))) => {
            patient(async move {
                let job = server.jobs.wait(&job.id).await.unwrap_or(job);
                drop(hold);
                match job.fault() {
                    Some(fault) => native::error(fault),
                    None => Answer::new(200, shown(&server, &base, &job)),
                }
            })
            .await
        }
    }
}

/// The caller's own job.
async fn find(server: &Server, caller: &Caller, id: &str) -> Result<JobView, Fault> {
    let unknown = || Fault::NotFound("the job".into());
    let id: JobId = id.parse().map_err(|_| unknown())?;
    server.jobs.view(&id).await.filter(|job| job.owner == caller.owner).ok_or_else(unknown)
}

async fn show(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    Path(id): Path<String>,
) -> Response<Body> {
    match find(&server, &caller, &id).await {
        Ok(job) => good(shown(&server, &base, &job)),
        Err(fault) => refused(&fault),
    }
}

async fn cancel(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    Path(id): Path<String>,
) -> Response<Body> {
    let job = match find(&server, &caller, &id).await {
        Ok(job) => job,
        Err(fault) => return refused(&fault),
    };
    server.jobs.cancel(&job.id).await;
    let job = server.jobs.view(&job.id).await.unwrap_or(job);
    respond(&Answer::new(202, shown(&server, &base, &job)))
}

async fn list(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response<Body> {
    let found = async {
        // The last job of the page before.
        let before = match wish(&query, "before") {
            Some(id) => find(&server, &caller, id).await.map(|job| Some((job.accepted, job.id)))?,
            None => None,
        };
        let limit = match wish(&query, "limit").map(str::parse::<usize>) {
            Some(Ok(limit)) => limit.clamp(1, PAGE),
            Some(Err(_)) => {
                return Err(Fault::invalid("limit", Rule::Other, format!("has to be a number from 1 to {PAGE}")));
            }
            None => PAGE,
        };
        server.jobs.list(&caller.owner, Dialect::Native, before, limit).await
    };
    match found.await {
        Ok(jobs) => {
            let jobs: Vec<Value> = jobs.iter().map(|job| shown(&server, &base, job)).collect();
            good(json!({"jobs": jobs}))
        }
        Err(fault) => refused(&fault),
    }
}

/// The job at each change as `event: job`, previews as `event: preview`; ends with the job.
async fn follow(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    Path(id): Path<String>,
) -> Response<Body> {
    let found = find(&server, &caller, &id).await;
    let views = match &found {
        Ok(job) => server.jobs.follow(&job.id).await.ok_or_else(|| Fault::NotFound("the job".into())),
        Err(fault) => Err(fault.clone()),
    };
    let views = match views {
        Ok(views) => views,
        Err(fault) => return refused(&fault),
    };
    let mut seen = 0;
    let parts = views.flat_map(move |job| {
        let mut parts: Vec<Event> = Vec::new();
        for preview in job.previews.iter().skip(seen) {
            seen += 1;
            let data = json!({"picture": preview.picture, "step": preview.step, "width": preview.width, "height": preview.height,
                "content_type": preview.mime, "base64": BASE64_STANDARD.encode(&preview.bytes)});
            parts.push(Event::default().event("preview").data(data.to_string()));
        }
        parts.push(Event::default().event("job").data(shown(&server, &base, &job).to_string()));
        stream::iter(parts)
    });
    events(parts)
}

async fn models(State(server): State<Server>) -> Response<Body> {
    let models: Vec<Value> = server.shelf.models().iter().map(model_shown).collect();
    good(json!({"models": models, "names": server.shelf.stock().listed(), "loras": server.shelf.loras().await}))
}

/// A model as this dialect shows it.
pub(super) fn model_shown(model: &ModelState) -> Value {
    json!({"name": model.name, "family": model.family, "notice": model.notice, "loaded": model.loaded,
        "bytes": model.bytes, "last_used": model.last_used.map(instant)})
}
