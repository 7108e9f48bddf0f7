//! `/sdapi/v1/*` for AUTOMATIC1111's clients and front ends.

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::Response,
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{good, object, patience::patient, random_seed, respond, wish};
use crate::{
    auth::Caller,
    dialect::{Answer, sdapi},
    error::Fault,
    job::{Dialect, JobView, NewJob},
    server::Server,
};

/// The routes.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(interrupt))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/loras", get(loras))
        .route("/sdapi/v1/{list}", get(list).post(nothing))
}

fn refused(fault: &Fault) -> Response<Body> {
    respond(&sdapi::error(fault))
}

async fn txt2img(server: State<Server>, caller: Extension<Caller>, body: Bytes) -> Response<Body> {
    make(server, caller, body, false).await
}

async fn img2img(server: State<Server>, caller: Extension<Caller>, body: Bytes) -> Response<Body> {
    make(server, caller, body, true).await
}

async fn make(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
    from_picture: bool,
) -> Response<Body> {
    let made = async {
        let body = object(&bytes)?;
        // The answer may take minutes.
        drop(bytes);
        let asked = sdapi::ask(&body, from_picture, &|name| server.model(name), random_seed())?;
        let endpoint = if from_picture { "img2img" } else { "txt2img" };
        let new = NewJob {
            only_while_held: true,
            ..NewJob::new(Dialect::Sdapi, &caller.owner, endpoint, Ok(asked.ask.clone()))
        };
        let (job, hold) = server.submit(&caller, new).await?;
        let server = server.clone();
        let answer = async move {
            let answer = finished(&server, &job, &asked, &body).await;
            drop(hold);
            answer.unwrap_or_else(|fault| sdapi::error(&fault))
        };
        Ok(patient(answer).await)
    };
    made.await.unwrap_or_else(|fault| refused(&fault))
}

async fn finished(
    server: &Server,
    job: &JobView,
    asked: &sdapi::Asked,
    body: &serde_json::Map<String, Value>,
) -> Result<Answer, Fault> {
    let job = server.jobs.wait(&job.id).await?;
    // Front ends that interrupted look at an answer without pictures, not at an error.
    if let Some(fault) = job.fault().filter(|fault| **fault != Fault::Cancelled) {
        return Err(fault.clone());
    }
    let mut pictures = Vec::new();
    for made in job.made() {
        let (_, bytes) = server.blobs.get(&made.blob).await?;
        pictures.push((made.seed, if asked.send_images { BASE64_STANDARD.encode(&bytes) } else { String::new() }));
    }
    let (width, height) = job.made().first().map_or((0, 0), |made| (made.width, made.height));
    let mut answer = sdapi::answer(&asked.ask, body, &pictures, width, height);
    if !asked.send_images {
        answer["images"] = json!([]);
    }
    Ok(Answer::new(200, answer))
}

async fn progress(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response<Body> {
    let job = server.jobs.current(&caller.owner, Dialect::Sdapi);
    let skip = wish(&query, "skip_current_image").is_some_and(|skip| skip.eq_ignore_ascii_case("true"));
    let preview = job.as_ref().filter(|_| !skip).and_then(|job| job.previews.last());
    let preview = preview.map(|preview| BASE64_STANDARD.encode(&preview.bytes));
    good(sdapi::progress(job.as_ref(), preview.as_deref(), crate::clock::now()))
}

async fn interrupt(State(server): State<Server>, Extension(caller): Extension<Caller>) -> Response<Body> {
    if let Some(job) = server.jobs.current(&caller.owner, Dialect::Sdapi) {
        server.jobs.cancel(&job.id).await;
    }
    good(json!({}))
}

async fn options(State(server): State<Server>) -> Response<Body> {
    good(sdapi::options(server.shelf.stock().listed().first().map_or("", String::as_str)))
}

/// Options belong to the operator; front ends send theirs and look only whether that went well.
async fn set_options() -> Response<Body> {
    good(Value::Null)
}

async fn models(State(server): State<Server>) -> Response<Body> {
    let models: Vec<Value> = server.shelf.stock().listed().iter().map(|name| sdapi::model(name)).collect();
    good(json!(models))
}

async fn loras(State(server): State<Server>) -> Response<Body> {
    let loras: Vec<Value> = server
        .shelf
        .loras()
        .await
        .iter()
        .map(|name| json!({"name": name, "alias": name, "path": name, "metadata": {}}))
        .collect();
    good(json!(loras))
}

async fn list(Path(name): Path<String>) -> Response<Body> {
    match sdapi::list(&name) {
        Some(list) => good(list),
        None => refused(&Fault::NotFound("this route".into())),
    }
}

/// `refresh-checkpoints`, `reload-checkpoint` …: the shelf looks after itself.
async fn nothing(Path(name): Path<String>) -> Response<Body> {
    match name.as_str() {
        "refresh-checkpoints" | "refresh-loras" | "refresh-vae" | "reload-checkpoint" | "unload-checkpoint" => {
            good(json!({}))
        }
        _ => refused(&Fault::NotFound("this route".into())),
    }
}
