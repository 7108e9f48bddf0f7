//! `/fal/*` for fal's clients: apps at once, as a stream, on a web socket and in the queue; the proxy protocol; see [`storage`] for
//! files, tokens and the key of webhooks.
//!
//! What is asked is decided by the path, never by `Accept`. The queue takes wrong bodies and says what is wrong as the result.

mod realtime;
pub mod storage;

use std::time::Duration;

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{
        Path, Query, State,
        rejection::BytesRejection,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri},
    response::sse::Event,
    routing::{any, post},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{events, object, patience::patient_for, random_seed, respond, text, whole, wish};
use crate::{
    auth::Caller,
    blobs::Blobs,
    clock::now,
    data_uri,
    dialect::{
        Answer, ascii_json,
        fal::{self, App, Door},
    },
    error::Fault,
    guard::{self, PublicUrl},
    job::{Dialect, JobId, JobView, Moment, NewJob, Priority, State as JobState, Webhook},
    jobs::{Cancelling, Hold},
    server::Server,
};

/// How long an answer at once is waited for before the client is kept patient: Node gives up after 300 s without headers.
const QUIET: Duration = Duration::from_mins(4);

/// How long a stream waits with its first byte, so that a picture that cannot be fetched is an ordinary error.
const EARLY: Duration = Duration::from_secs(20);

/// The routes.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/fal/run/{*path}", any(run))
        .route("/fal/queue/{*path}", any(queue))
        .route("/fal/proxy", any(proxy))
        .merge(storage::router())
}

/// The extensions that the guard leaves with every request.
type Asked = (Extension<Caller>, Extension<PublicUrl>);

/// With the job's name, which JavaScript's client reads from this header only.
fn named(mut response: Response<Body>, id: &JobId) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(HeaderName::from_static("x-fal-request-id"), value);
    }
    response
}

fn refused(fault: &Fault) -> Response<Body> {
    respond(&fal::fault(fault))
}

fn wrong_method() -> Response<Body> {
    refused(&Fault::WrongMethod)
}

/// The output of a job that ended.
///
/// # Errors
/// If a picture is gone that the output has to hold.
pub(crate) async fn output(blobs: &Blobs, view: &JobView, base: &str) -> Result<Value, Fault> {
    output_as(blobs, view, base, fal::wants_data(&view.raw)).await
}

async fn output_as(blobs: &Blobs, view: &JobView, base: &str, data: bool) -> Result<Value, Fault> {
    let mut urls = Vec::new();
    for made in view.made() {
        urls.push(if data {
            let (_, bytes) = blobs.get(&made.blob).await?;
            data_uri::encode(&made.mime, &bytes)
        } else {
            blobs.url(&made.blob, base)
        });
    }
    let mut urls = urls.into_iter();
    Ok(fal::output(view, |_| urls.next().unwrap_or_default()))
}

/// The result's answer, for a job that ended.
async fn result(server: &Server, view: &JobView, base: &str) -> Answer {
    if let Some(fault) = view.fault() {
        return fal::fault(fault);
    }
    match output(&server.blobs, view, base).await {
        Ok(output) => Answer::new(200, output),
        Err(fault) => fal::fault(&fault),
    }
}

/// The app of a path and its model, if it is served here.
fn served(server: &Server, path: &str) -> Option<(App, String)> {
    let app = fal::app(path)?;
    let model = server.model(Some(&app.model)).ok()?;
    Some((app, model))
}

/// What is asked for, whether it can be met or not.
fn new_job(app: &App, model: String, caller: &Caller, headers: &HeaderMap, body: &[u8]) -> NewJob {
    let keep = fal::keep_seconds(text(headers, "x-fal-object-lifecycle-preference"));
    let read = object(body).map(Value::Object);
    let ask = read.clone().and_then(|body| fal::ask(app, model, &body, random_seed(), keep));
    let timeout = text(headers, "x-fal-request-timeout").and_then(|text| text.trim().parse::<f64>().ok());
    let timeout = timeout.filter(|seconds| seconds.is_finite() && *seconds > 0.0 && *seconds < 1e9);
    NewJob {
        raw: read.map_or(Value::Null, |body| fal::kept(&body)),
        priority: match text(headers, "x-fal-queue-priority") {
            Some("low") => Priority::Low,
            _ => Priority::Normal,
        },
        idempotency_key: text(headers, "idempotency-key").map(str::to_owned),
        start_by: timeout.map(|seconds| now() + (seconds * 1000.0) as i64),
        only_while_held: true,
        ..NewJob::new(Dialect::Fal, &caller.owner, &app.endpoint, ask)
    }
}

#[expect(clippy::too_many_arguments, reason = "one for each part of a request")]
async fn run(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path(path): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    method: Method,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let Some((app, model)) = served(&server, &path) else { return respond(&fal::no_app(&path)) };
    if app.door == Door::Realtime {
        let waiting = wish(&query, "max_buffering").and_then(|most| most.parse().ok());
        let waiting = waiting.unwrap_or(realtime::USUALLY_WAITING);
        return realtime::Talk { server, caller, app, model, waiting }.open(socket);
    }
    if method != Method::POST {
        return wrong_method();
    }
    let body = match whole(body) {
        Ok(body) => body,
        Err(fault) => return refused(&fault),
    };
    let new = new_job(&app, model, &caller, &headers, &body);
    if let Err(fault) = &new.ask {
        return refused(fault);
    }
    let (job, hold) = match server.submit(&caller, new).await {
        Ok(taken) => taken,
        Err(fault) => return refused(&fault),
    };
    let id = job.id.clone();
    let response = if app.door == Door::Stream {
        streamed(server, job, hold, base).await
    } else {
        let finished = async move {
            let job = server.jobs.wait(&job.id).await.unwrap_or(job);
            drop(hold);
            result(&server, &job, &base.0).await
        };
        patient_for(QUIET, finished).await
    };
    named(response, &id)
}

/// Outputs with pictures of progress, and the whole output in the end.
async fn streamed(server: Server, job: JobView, hold: Hold, base: PublicUrl) -> Response<Body> {
    let Some(mut views) = server.jobs.follow(&job.id).await else {
        return refused(&Fault::NotFound("the request".into()));
    };
    let begun = async {
        while let Some(view) = views.next().await {
            if view.state != JobState::Queued {
                return Some(view);
            }
        }
        None
    };
    let first = tokio::time::timeout(EARLY, begun).await.ok().flatten();
    if let Some(fault) = first.as_ref().and_then(JobView::fault) {
        return refused(fault);
    }
    let mut seen = 0;
    let parts = stream::iter(first).chain(views).then(move |view| {
        let _held = &hold;
        let previews = view.previews.iter().skip(seen);
        let mut parts: Vec<_> = previews.map(|preview| fal::preview(&view, preview)).collect();
        seen = seen.max(view.previews.len());
        let (server, base) = (server.clone(), base.clone());
        async move {
            if view.state.is_final() {
                parts.push(result(&server, &view, &base.0).await.body);
            }
            stream::iter(parts).map(|part| Event::default().data(ascii_json(&part)))
        }
    });
    events(parts.flatten())
}

/// Where the queue is for whoever asked: vendors' own host names have it at their root.
fn queue_url(base: &PublicUrl) -> String {
    let host = base.0.split("://").nth(1).unwrap_or_default();
    if host.starts_with("queue.") { base.0.to_string() } else { format!("{}/fal/queue", base.0) }
}

async fn queue(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path(path): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    method: Method,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let Some((_, request)) = path.split_once("/requests/") else {
        if method != Method::POST {
            return wrong_method();
        }
        let webhook = wish(&query, "fal_webhook").filter(|url| !url.is_empty());
        return match whole(body) {
            Ok(body) => submit(&server, &caller, &base, &path, webhook, &headers, &body).await,
            Err(fault) => refused(&fault),
        };
    };
    let (id, verb) = request.split_once('/').unwrap_or((request, ""));
    let Some(job) = find(&server, &caller, id).await else {
        return respond(&match verb {
            "cancel" => Answer::new(404, json!({"status": "NOT_FOUND"})),
            _ => Answer::new(404, json!({"detail": "Request not found"})),
        });
    };
    let lines = wish(&query, "logs").is_some_and(|logs| matches!(logs, "1" | "true" | "True")).then_some(0);
    let response = match (verb, method) {
        ("", Method::GET) if job.state.is_final() => respond(&result(&server, &job, &base.0).await),
        ("", Method::GET) => respond(&fal::unfinished()),
        ("status", Method::GET) => respond(&fal::status(&job, &queue_url(&base), lines)),
        ("status/stream", Method::GET) => states(&server, &job, queue_url(&base), lines).await,
        ("cancel", Method::PUT | Method::POST) => respond(&match server.jobs.cancel(&job.id).await {
            Cancelling::Requested => Answer::new(202, json!({"status": "CANCELLATION_REQUESTED"})),
            Cancelling::AlreadyFinal(_) => Answer::new(400, json!({"status": "ALREADY_COMPLETED"})),
            Cancelling::Unknown => Answer::new(404, json!({"status": "NOT_FOUND"})),
        }),
        ("" | "status" | "status/stream" | "cancel", _) => wrong_method(),
        _ => respond(&fal::no_app(&path)),
    };
    named(response, &job.id)
}

async fn submit(
    server: &Server,
    caller: &Caller,
    base: &PublicUrl,
    path: &str,
    webhook: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<Body> {
    let Some((app, model)) = served(server, path) else { return respond(&fal::no_app(path)) };
    let webhook = webhook.map(|url| Webhook {
        url: url.to_owned(),
        moments: vec![Moment::Completed],
        base: Some(base.0.to_string()),
    });
    if let Err(fault) = server.may_tell("fal_webhook", webhook.as_ref()) {
        return refused(&fault);
    }
    let app = App { door: Door::Run, ..app };
    let new = NewJob { only_while_held: false, webhook, ..new_job(&app, model, caller, headers, body) };
    match server.submit(caller, new).await {
        Ok((job, _)) => named(respond(&Answer::new(200, fal::submitted(&job, &queue_url(base)))), &job.id),
        Err(fault) => refused(&fault),
    }
}

/// The caller's own request.
async fn find(server: &Server, caller: &Caller, id: &str) -> Option<JobView> {
    let id: JobId = id.parse().ok()?;
    server.jobs.view(&id).await.filter(|job| job.owner == caller.owner && job.dialect == Dialect::Fal)
}

/// The status at each change, with the lines that are new.
async fn states(server: &Server, job: &JobView, queue: String, mut lines: Option<usize>) -> Response<Body> {
    let Some(views) = server.jobs.follow(&job.id).await else {
        return respond(&Answer::new(404, json!({"detail": "Request not found"})));
    };
    events(views.map(move |view| {
        let status = fal::status(&view, &queue, lines);
        lines = lines.map(|seen| seen.max(view.logs.len()));
        Event::default().data(ascii_json(&status.body))
    }))
}

/// Requests that say in a header where they were meant to go: led there inside of this server, never fetched.
async fn proxy(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    request: Request<Body>,
) -> Response<Body> {
    let wrong = |detail: &str| respond(&Answer::new(400, json!({"detail": detail})));
    let Some(target) = text(request.headers(), "x-fal-target-url").and_then(|url| url::Url::parse(url).ok()) else {
        return wrong("the header x-fal-target-url has to be a URL of fal's");
    };
    let host = target.host_str().unwrap_or_default();
    let known = fal::HOSTS.iter().any(|(known, _)| *known == host);
    let Some(path) = known.then(|| guard::reroute(host, target.path().trim_end_matches('/'))).flatten() else {
        return wrong("the header x-fal-target-url has to be a URL of fal's");
    };
    let path = target.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let Ok(uri) = path.parse::<Uri>() else { return wrong("the header x-fal-target-url has no readable path") };
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.headers.remove("x-fal-target-url");
    parts.extensions.insert(caller);
    parts.extensions.insert(base);
    let routes: Router = router().fallback(post(nowhere).get(nowhere)).with_state(server);
    match routes.oneshot(Request::from_parts(parts, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn nowhere(uri: Uri) -> Response<Body> {
    respond(&fal::no_app(uri.path().trim_start_matches('/')))
}
