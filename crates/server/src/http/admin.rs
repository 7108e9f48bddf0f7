//! `/api/v1/admin/*`: for keys with the scope `admin`. The configuration read again, models loaded and unloaded, and the
//! pictures that wait for a person.
//!
//! A picture that was flagged is kept as the policy says (`safety.hold`) and seen by reviewers alone: by nobody on a server without
//! keys, where everybody would be one.

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderName, HeaderValue, Response, header},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{good, native::refused, respond};
use crate::{
    auth::Caller,
    blobs::{Blob, BlobId, NewBlob, Purpose},
    dialect::{Answer, instant},
    error::{Fault, Rule},
    guard::PublicUrl,
    reload::ReloadError,
    server::Server,
    shelf::Wish,
};

/// The routes; the guard asks for the scope.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/api/v1/admin/reload", post(reload))
        .route("/api/v1/admin/models/{name}/load", post(load))
        .route("/api/v1/admin/models/{name}/unload", post(unload))
        .route("/api/v1/admin/held", get(held))
        .route("/api/v1/admin/held/{id}", get(look).delete(reject))
        .route("/api/v1/admin/held/{id}/release", post(release))
}

async fn reload(State(server): State<Server>) -> Response<Body> {
    match server.read_configuration().await {
        Ok(done) => good(json!(done)),
        Err(error) => {
            tracing::error!(%error, "the new configuration cannot be used; nothing was changed");
            let message = match &error {
                // Without the file: that is the machine's own matter.
                ReloadError::Config(crate::config::Wrong::Value { name, message, .. }) => format!("{name}: {message}"),
                ReloadError::Config(crate::config::Wrong::Unknown { name, hint, .. }) => {
                    format!("'{name}' is no setting{hint}")
                }
                _ => "cannot be used; the server's log says why".into(),
            };
            refused(&Fault::invalid("configuration", Rule::Other, format!("{message}; nothing was changed")))
        }
    }
}

async fn load(State(server): State<Server>, Path(name): Path<String>) -> Response<Body> {
    wished(&server, &name, Wish::Load)
}

async fn unload(State(server): State<Server>, Path(name): Path<String>) -> Response<Body> {
    wished(&server, &name, Wish::Unload)
}

/// The engine does it between two jobs; until then the model is shown as it is.
fn wished(server: &Server, name: &str, wish: fn(String) -> Wish) -> Response<Body> {
    let name = match server.model(Some(name)) {
        Ok(name) => name,
        Err(fault) => return refused(&fault),
    };
    server.shelf.wish(wish(name.clone()));
    let model = server.shelf.models().into_iter().find(|model| model.name == name);
    respond(&Answer::new(202, model.as_ref().map_or(Value::Null, super::native::model_shown)))
}

/// Reviewers have a key.
fn reviewer(caller: &Caller) -> Result<&str, Fault> {
    caller.key.as_deref().ok_or_else(|| {
        let message = "pictures that wait for a person are shown to keys with the scope 'admin' alone; \
            hint: darkroom keys add NAME --scope admin";
        Fault::Forbidden(message.into())
    })
}

fn find(server: &Server, id: &str) -> Result<Arc<Blob>, Fault> {
    let id: BlobId = id.parse()?;
    let held = server.blobs.meta(&id).filter(|blob| blob.purpose == Purpose::Held);
    held.ok_or_else(|| Fault::NotFound("the picture".into()))
}

/// What waits, the newest first, each with what it was made from.
async fn held(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
) -> Response<Body> {
    if let Err(fault) = reviewer(&caller) {
        return refused(&fault);
    }
    let mut pictures = Vec::new();
    for blob in server.blobs.list(|blob| blob.purpose == Purpose::Held) {
        let about = blob.about.clone().unwrap_or_default();
        let job = match about["job"].as_str().and_then(|id| id.parse().ok()) {
            Some(id) => server.jobs.view(&id).await,
            None => None,
        };
        let prompt = job.as_ref().and_then(|job| job.ask.as_ref()).map(|ask| ask.prompt.clone());
        let here = format!("{}/api/v1/admin/held/{}", base.0, blob.id);
        pictures.push(json!({
            "id": blob.id, "owner": blob.owner, "job": about["job"], "model": about["model"], "prompt": prompt,
            "seed": about["seed"], "category": about["category"], "score": about["score"],
            "content_type": blob.mime, "bytes": blob.bytes, "created": instant(blob.created), "expires": instant(blob.expires),
            "urls": {"picture": here, "release": format!("{here}/release")},
        }));
    }
    good(json!({"held": pictures}))
}

async fn look(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    let found = async {
        reviewer(&caller)?;
        server.blobs.get(&find(&server, &id)?.id).await
    };
    match found.await {
        Ok((blob, bytes)) => {
            let mime = HeaderValue::from_str(&blob.mime);
            let headers = [
                (header::CONTENT_TYPE, mime.unwrap_or(HeaderValue::from_static("application/octet-stream"))),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
            ];
            (headers, bytes).into_response()
        }
        Err(fault) => refused(&fault),
    }
}

/// It becomes a result of the job's owner, for as long as results are kept.
async fn release(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    Path(id): Path<String>,
) -> Response<Body> {
    let released = async {
        let by = reviewer(&caller)?;
        let (held, bytes) = server.blobs.get(&find(&server, &id)?.id).await?;
        let keep = server.config.store.results;
        let new = NewBlob {
            about: held.about.clone(),
            ..NewBlob::new(Purpose::Result, &held.mime, &held.name, keep, &held.owner)
        };
        let result = server.blobs.put(bytes, new).await?;
        server.blobs.delete(&held.id).await?;
        tracing::info!(
            by,
            job = held.about.as_ref().and_then(|about| about["job"].as_str()),
            "a held picture was released"
        );
        Ok(json!({"url": server.blobs.url(&result.id, &base.0), "expires": instant(result.expires)}))
    };
    released.await.map_or_else(|fault: Fault| refused(&fault), good)
}

async fn reject(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    let rejected = async {
        let by = reviewer(&caller)?;
        let held = find(&server, &id)?;
        server.blobs.delete(&held.id).await?;
        tracing::info!(
            by,
            job = held.about.as_ref().and_then(|about| about["job"].as_str()),
            "a held picture was rejected"
        );
        Ok(json!({"deleted": held.id}))
    };
    rejected.await.map_or_else(|fault: Fault| refused(&fault), good)
}
