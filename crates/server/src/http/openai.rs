//! `/v1/images/*` and `/v1/models` for OpenAI's clients: one answer, or a stream of events with pictures of progress.
//!
//! A job lives as long as its caller waits. Streams carry neither ids nor empty data, which break the Python client.

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, Request, Response},
    response::sse::Event,
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

use super::{events, form::Form, good, object, patience::patient, random_seed, respond, text};
use crate::{
    ask::{Ask, Source},
    auth::Caller,
    blobs::{Blobs, Draft},
    dialect::{
        Answer,
        openai::{self, Common, Deliver, Files, Route, Shown},
    },
    error::{Fault, Rule},
    guard::PublicUrl,
    job::{Dialect, JobId, JobView, Made, NewJob, State as JobState},
    server::Server,
};

/// The routes.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/images/variations", post(variations))
        .route("/v1/models", get(models).fallback(super::replicate::query_models))
        .route("/v1/models/{id}", get(model))
        // The guard limits bodies, by their kind.
        .layer(DefaultBodyLimit::disable())
}

fn refused(fault: &Fault) -> Response<Body> {
    respond(&openai::error(fault))
}

async fn generations(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let made = match object(&body) {
        Ok(body) => {
            let asked = (Route::Generations, &body, Files::default(), Vec::new());
            make(&server, &caller, &base, &headers, asked).await
        }
        Err(fault) => Err(fault),
    };
    made.unwrap_or_else(|fault| refused(&fault))
}

async fn edits(
    server: State<Server>,
    caller: Extension<Caller>,
    base: Extension<PublicUrl>,
    request: Request<Body>,
) -> Response<Body> {
    from_picture(server, caller, base, request, Route::Edits).await
}

async fn variations(
    server: State<Server>,
    caller: Extension<Caller>,
    base: Extension<PublicUrl>,
    request: Request<Body>,
) -> Response<Body> {
    from_picture(server, caller, base, request, Route::Variations).await
}

async fn from_picture(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Extension(base): Extension<PublicUrl>,
    request: Request<Body>,
    route: Route,
) -> Response<Body> {
    let headers = request.headers().clone();
    let made = async {
        let (body, files, drafts) = pictures(&server.blobs, &caller, request).await?;
        make(&server, &caller, &base, &headers, (route, &body, files, drafts)).await
    };
    made.await.unwrap_or_else(|fault| refused(&fault))
}

/// A form's files as blobs, which go again unless a job has them; or a JSON body with `images: [{"image_url": …}]`.
async fn pictures(
    blobs: &Blobs,
    caller: &Caller,
    request: Request<Body>,
) -> Result<(Map<String, Value>, Files, Vec<Draft>), Fault> {
    let is_json = text(request.headers(), "content-type").is_some_and(|kind| kind.starts_with("application/json"));
    if is_json {
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        let body = object(&body.map_err(|_| Fault::TooLarge("the body is larger than this server takes".into()))?)?;
        let url = |value: &Value, field: &str| {
            let url =
                value.as_str().or_else(|| value["image_url"].as_str()).or_else(|| value["image_url"]["url"].as_str());
            url.map(|url| Source::Url { url: url.to_owned(), field: field.into() })
        };
        let all = |field: &str| -> Result<Vec<Source>, Fault> {
            let given = match body.get(field) {
                None | Some(Value::Null) => &[],
                Some(Value::Array(given)) => given.as_slice(),
                Some(one) => std::slice::from_ref(one),
            };
            let message =
                "has to be given as {\"image_url\": …}, a URL or a data URI; no files are kept by their names";
            let wrong = || Fault::invalid(field, Rule::Other, message);
            // Only the first is used; the others have to be ones, too.
            given.iter().map(|image| url(image, field).ok_or_else(wrong)).collect()
        };
        let mut images = all("images")?;
        images.extend(all("image")?);
        let files = Files { images, mask: all("mask")?.into_iter().next() };
        return Ok((body, files, Vec::new()));
    }
    let form = Form::read(request).await?;
    let mut files = Files::default();
    let mut drafts = Vec::new();
    let mut store = async |field: &str| {
        // Only the first is used; what is not used is not kept.
        let Some(file) = form.files(field).next() else { return Ok::<_, Fault>(None) };
        let mime = file.mime.as_deref().unwrap_or("application/octet-stream");
        let name = file.called.as_deref().unwrap_or("image");
        let draft = blobs.give(file.bytes.clone(), mime, name, &caller.owner).await?;
        let source = Source::Blob { id: draft.id().clone(), field: field.to_owned() };
        drafts.push(draft);
        Ok(Some(source))
    };
    files.images.extend(store("image").await?);
    files.mask = store("mask").await?;
    let mut body = form.values;
    // A picture may come as an address in a form, too.
    if let Some(url) = body.remove("image").filter(|_| files.images.is_empty()).as_ref().and_then(Value::as_str) {
        files.images.push(Source::Url { url: url.to_owned(), field: "image".into() });
    }
    Ok((body, files, drafts))
}

async fn make(
    server: &Server,
    caller: &Caller,
    base: &PublicUrl,
    headers: &HeaderMap,
    (route, body, files, drafts): (Route, &Map<String, Value>, Files, Vec<Draft>),
) -> Result<Response<Body>, Fault> {
    let asked = openai::ask(route, body, files, &|name| server.model(name), random_seed())?;
    let endpoint = match route {
        Route::Generations => "images/generations",
        Route::Edits => "images/edits",
        Route::Variations => "images/variations",
    };
    let new = NewJob {
        idempotency_key: text(headers, "idempotency-key").map(str::to_owned),
        only_while_held: true,
        ..NewJob::new(Dialect::OpenAi, &caller.owner, endpoint, Ok(asked.ask.clone()))
    };
    let (job, hold) = server.submit(caller, new).await?;
    // Those of a job that was asked for before stay with it, and these go.
    let its = |draft: &Draft| job.ask.iter().any(|ask| ask.blobs().any(|id| id == draft.id()));
    drafts.into_iter().filter(its).for_each(Draft::keep);
    let base = base.0.clone();
    let server = server.clone();
    if asked.stream {
        return Ok(streamed(server, job, route, asked.ask, hold).await);
    }
    let answer = async move {
        let answer = finished(&server, &job.id, &asked.ask, asked.deliver, &base).await;
        drop(hold);
        answer.unwrap_or_else(|fault| openai::error(&fault))
    };
    Ok(patient(answer).await)
}

async fn finished(server: &Server, id: &JobId, ask: &Ask, deliver: Deliver, base: &str) -> Result<Answer, Fault> {
    let job = server.jobs.wait(id).await?;
    if let Some(fault) = job.fault() {
        return Err(fault.clone());
    }
    let mut shown = Vec::new();
    for made in job.made() {
        let content = match deliver {
            Deliver::Url => server.blobs.url(&made.blob, base),
            Deliver::Base64 => base64(&server.blobs, made).await?,
            Deliver::DataUri => format!("data:{};base64,{}", made.mime, base64(&server.blobs, made).await?),
        };
        shown.push(Shown { content, deliver, seed: made.seed });
    }
    Ok(Answer::new(200, openai::answer(&common(&job, ask), &ask.prompt, &shown)))
}

async fn base64(blobs: &Blobs, made: &Made) -> Result<String, Fault> {
    let (_, bytes) = blobs.get(&made.blob).await?;
    Ok(BASE64_STANDARD.encode(&bytes))
}

fn common(job: &JobView, ask: &Ask) -> Common {
    let size = job.made().first().map_or((0, 0), |made| (made.width, made.height));
    Common {
        created: job.accepted / 1000,
        size: format!("{}x{}", size.0, size.1),
        format: ask.format.to_string(),
        tokens: ask.prompt.split_whitespace().count(),
    }
}

/// Waits until there is something to see, so that what fails at once fails with its own status; then events.
async fn streamed(server: Server, job: JobView, route: Route, ask: Ask, hold: crate::jobs::Hold) -> Response<Body> {
    /// How long a failure may take to have a status of its own.
    const FIRST: std::time::Duration = std::time::Duration::from_secs(5);

    let Some(views) = server.jobs.follow(&job.id).await else {
        return refused(&Fault::Failed("the job is not known any more".into()));
    };
    let mut views = Box::pin(views.peekable());
    let begun = async {
        while let Some(view) = views.as_mut().peek().await {
            let begun = view.progress.is_some_and(|progress| progress.step > 0) || !view.previews.is_empty();
            if begun || view.state.is_final() {
                break;
            }
            views.next().await;
        }
    };
    // Nothing is lost: what is not yet taken stays in the stream.
    let _ = tokio::time::timeout(FIRST, begun).await;
    let seen = futures_util::FutureExt::now_or_never(views.as_mut().peek()).flatten();
    if let Some(fault) = seen.and_then(|view| view.fault().cloned()) {
        return refused(&fault);
    }
    let state = (views, 0_usize, server, Arc::new(ask), hold);
    let parts = stream::unfold(state, move |(mut views, mut shown, server, ask, hold)| async move {
        let view = views.next().await?;
        let mut parts = Vec::new();
        for preview in view.previews.iter().skip(shown) {
            shown += 1;
            let common = Common { size: format!("{}x{}", preview.width, preview.height), ..common(&view, &ask) };
            let content = BASE64_STANDARD.encode(&preview.bytes);
            parts.push(openai::event(route, &common, &content, Some(preview.index), ask.seed));
        }
        if view.state == JobState::Succeeded {
            for made in view.made() {
                let common = Common { size: format!("{}x{}", made.width, made.height), ..common(&view, &ask) };
                match base64(&server.blobs, made).await {
                    Ok(content) => parts.push(openai::event(route, &common, &content, None, made.seed)),
                    Err(fault) => parts.push(failed(&fault)),
                }
            }
        } else if let Some(fault) = view.fault() {
            parts.push(failed(fault));
        }
        Some((stream::iter(parts), (views, shown, server, ask, hold)))
    });
    events(parts.flatten().map(|(name, data)| Event::default().event(name).data(data.to_string())))
}

/// An error after the first event.
fn failed(fault: &Fault) -> (String, Value) {
    ("error".into(), json!({"type": "error", "error": openai::error(fault).body["error"]}))
}

/// The list that OpenAI's and Replicate's clients ask for at the same address: each finds its own key.
async fn models(State(server): State<Server>, Extension(base): Extension<PublicUrl>) -> Response<Body> {
    let names = server.shelf.stock().listed();
    let data: Vec<Value> = names.iter().map(|name| openai::model(name, server.started)).collect();
    let results = super::replicate::models(&server, &base.0);
    good(json!({"object": "list", "data": data, "results": results, "next": null, "previous": null}))
}

async fn model(State(server): State<Server>, Path(id): Path<String>) -> Response<Body> {
    match server.model(Some(&id)) {
        Ok(_) => good(openai::model(&id, server.started)),
        Err(fault) => refused(&fault),
    }
}
