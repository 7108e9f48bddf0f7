//! Replicate's files, and the streams of predictions, whose URLs begin like a file's: the Node client makes file objects of a
//! stream's outputs only there. A stream's URL is its own key.

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
    response::sse::Event,
    routing::get,
};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

use super::{Asked, answered, event_id, output};
use crate::{
    auth::Caller,
    blobs::{Blob, BlobId, NewBlob, Purpose},
    dialect::{ascii_json, replicate},
    error::{Fault, Rule},
    guard::PublicUrl,
    http::{events, form::Form},
    job::{JobView, State as JobState},
    server::Server,
};

/// The routes.
pub(super) fn router() -> Router<Server> {
    Router::new().route("/v1/files", get(list).post(upload)).route("/v1/files/{id}", get(show).delete(forget))
}

fn shown(server: &Server, base: &PublicUrl, blob: &Blob) -> Value {
    let nothing = json!({});
    replicate::file(&replicate::File {
        id: &blob.id.0,
        name: &blob.name,
        mime: &blob.mime,
        size: blob.bytes,
        sha256: &blob.sha256,
        metadata: blob.about.as_ref().unwrap_or(&nothing),
        created: blob.created,
        expires: blob.expires,
        url: &server.blobs.url(&blob.id, &base.0),
    })
}

async fn upload(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    request: Request,
) -> Response<Body> {
    let kept = async {
        let mut form = Form::read(request).await?;
        let metadata = form.files("metadata").next().and_then(|file| serde_json::from_slice(&file.bytes).ok());
        let metadata: Option<Value> = metadata
            .or_else(|| serde_json::from_str(form.values.get("metadata")?.as_str()?).ok())
            .filter(Value::is_object)
            .or_else(|| flat(&form, "metadata"));
        let at = form.files.iter().position(|file| file.name == "content");
        let missing = || Fault::invalid("content", Rule::Missing, "has to be a file");
        let file = form.files.swap_remove(at.ok_or_else(missing)?);
        let said = |name: &str| form.values.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let name = said("filename").or(file.called.as_deref()).unwrap_or("file");
        let mime = said("type").or(file.mime.as_deref()).unwrap_or("application/octet-stream");
        let keep = server.config.store.uploads;
        let new = NewBlob { about: metadata, ..NewBlob::new(Purpose::Upload, mime, name, keep, &caller.owner) };
        Ok(shown(&server, &base, &*server.blobs.put(file.bytes, new).await?))
    };
    answered(201, kept.await)
}

/// An object that came as `NAME[key]` values, as the beta of 2.0 sends it.
fn flat(form: &Form, name: &str) -> Option<Value> {
    let key = |field: &str| field.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']').map(str::to_owned);
    let members = form.values.iter().filter_map(|(field, value)| Some((key(field)?, value.clone())));
    let members: Map<String, Value> = members.collect();
    (!members.is_empty()).then_some(Value::Object(members))
}

async fn list(State(server): State<Server>, (Extension(caller), Extension(base)): Asked) -> Response<Body> {
    let files = server.blobs.list(|blob| blob.owner == caller.owner && blob.purpose == Purpose::Upload);
    let results: Vec<_> = files.iter().map(|blob| shown(&server, &base, blob)).collect();
    answered(200, Ok(json!({"previous": null, "next": null, "results": results})))
}

/// The caller's own file.
fn find(server: &Server, caller: &Caller, id: &str) -> Result<std::sync::Arc<Blob>, Fault> {
    let unknown = || Fault::NotFound("the file".into());
    let id: BlobId = id.parse()?;
    let mine = |blob: &std::sync::Arc<Blob>| blob.owner == caller.owner && blob.purpose == Purpose::Upload;
    server.blobs.meta(&id).filter(mine).ok_or_else(unknown)
}

async fn show(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path(id): Path<String>,
) -> Response<Body> {
    if let Some(secret) = id.strip_prefix("stream-") {
        return streamed(&server, secret, base).await;
    }
    answered(200, find(&server, &caller, &id).map(|blob| shown(&server, &base, &blob)))
}

async fn forget(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    let forgotten = async {
        let blob = find(&server, &caller, &id)?;
        server.blobs.delete(&blob.id).await
    };
    match forgotten.await {
        Ok(()) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(fault) => answered(200, Err(fault)),
    }
}

/// A prediction's log lines and outputs as events. Each has a name and an identifier: Python's client drops events without.
async fn streamed(server: &Server, secret: &str, base: PublicUrl) -> Response<Body> {
    let job = server.jobs.by_secret(secret).await;
    let views = match &job {
        Some(job) => server.jobs.follow(&job.id).await,
        None => None,
    };
    let Some(views) = views else { return answered(200, Err(Fault::NotFound("the stream".into()))) };
    let server = server.clone();
    let (mut lines, mut count) = (0, 0);
    let parts = views.then(move |view| {
        let new = view.logs.get(lines..).unwrap_or_default();
        let mut parts: Vec<(&str, String)> = new.iter().map(|line| ("logs", format!("{}\n", line.message))).collect();
        lines = view.logs.len();
        let (server, base) = (server.clone(), base.clone());
        let first = count;
        count += parts.len() + view.made().len() + 2;
        async move {
            parts.extend(last(&server, &view, &base).await);
            let event = move |(at, (name, data)): (usize, (&str, String))| {
                Event::default().event(name).id(event_id(first + at)).data(data)
            };
            stream::iter(parts.into_iter().enumerate().map(event).collect::<Vec<_>>())
        }
    });
    events(parts.flatten())
}

/// The events of an end.
async fn last(server: &Server, view: &JobView, base: &PublicUrl) -> Vec<(&'static str, String)> {
    if !view.state.is_final() {
        return Vec::new();
    }
    let mut parts: Vec<(&str, String)> = Vec::new();
    if view.state == JobState::Succeeded {
        let output = output(server, view, &base.0).await.unwrap_or_default();
        parts.extend(output.into_iter().map(|url| ("output", url)));
    }
    parts.extend(replicate::stream_error(view).map(|error| ("error", ascii_json(&error))));
    parts.push(("done", replicate::done(view).to_string()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_comes_in_brackets() {
        let values = json!({"metadata[a]": "1", "metadata[b c]": "x", "metadatas[d]": "y", "filename": "z"});
        let form = Form { values: values.as_object().cloned().unwrap(), ..Form::default() };
        assert_eq!(flat(&form, "metadata"), Some(json!({"a": "1", "b c": "x"})));
        assert_eq!(flat(&form, "other"), None);
    }
}
