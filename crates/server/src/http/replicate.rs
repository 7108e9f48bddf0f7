//! `/v1/predictions`, `/v1/models/{owner}/{name}` and their kin for Replicate's clients; files and streams are in [`files`].
//!
//! A wait that runs out is answered as `starting` whatever the state: clients take any other for the end. Outputs are data URIs
//! where the public URL is plain http: clients make file objects of `https:` and `data:` only.

mod files;

use std::time::Duration;

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State, rejection::BytesRejection},
    http::{HeaderMap, Method, Response},
    response::IntoResponse,
    routing::{get, post},
};
use chrono::DateTime;
use serde_json::{Value, json};

use super::{object, random, random_seed, respond, text, whole, wish};
use crate::{
    auth::{Caller, Scope},
    clock::{after, now},
    config::VendorOutput,
    data_uri,
    dialect::{Answer, replicate, shortened},
    error::{Fault, Rule},
    guard::PublicUrl,
    hex::hex,
    job::{Dialect, JobId, JobView, NewJob, Webhook},
    server::Server,
};

/// Predictions of one page.
const PAGE: usize = 100;

/// The routes.
pub fn router() -> Router<Server> {
    Router::new()
        .route("/v1/predictions", get(list).post(create_by_version))
        .route("/v1/predictions/{id}", get(show))
        .route("/v1/predictions/{id}/cancel", post(cancel))
        .route("/v1/models/{owner}/{name}", get(model))
        .route("/v1/models/{owner}/{name}/predictions", post(create_by_model))
        .route("/v1/models/{owner}/{name}/versions", get(versions))
        .route("/v1/models/{owner}/{name}/versions/{version}", get(version))
        .route("/v1/deployments/{owner}/{name}/predictions", post(create_by_model))
        .route("/v1/models/{owner}/{name}/examples", get(nothing_of_a_model))
        .route("/v1/models/{owner}/{name}/readme", get(readme))
        .route("/v1/deployments", get(deployments))
        .route("/v1/deployments/{owner}/{name}", get(deployment))
        .route("/v1/collections", get(nothing))
        .route("/v1/trainings", get(nothing))
        .route("/v1/search", get(search))
        .route("/v1/account", get(account))
        .route("/v1/hardware", get(hardware))
        .route("/v1/webhooks/default/secret", get(webhook_secret))
        .merge(files::router())
}

/// The extensions that the guard leaves with every request.
type Asked = (Extension<Caller>, Extension<PublicUrl>);

fn answered(status: u16, body: Result<Value, Fault>) -> Response<Body> {
    respond(&body.map_or_else(|fault| replicate::fault(&fault), |body| Answer::new(status, body)))
}

/// Where a prediction's pictures are, or they themselves; `None` for one without pictures, or when they are gone.
pub(crate) async fn output(server: &Server, view: &JobView, base: &str) -> Option<Vec<String>> {
    let data = match server.config.replicate_output {
        VendorOutput::Auto => !base.starts_with("https:"),
        VendorOutput::Url => false,
        VendorOutput::Data => true,
    };
    let mut urls = Vec::new();
    for made in view.made() {
        urls.push(if data {
            data_uri::encode(&made.mime, &server.blobs.get(&made.blob).await.ok()?.1)
        } else {
            server.blobs.meta(&made.blob)?;
            server.blobs.url(&made.blob, base)
        });
    }
    (!urls.is_empty()).then_some(urls)
}

async fn shown(server: &Server, view: &JobView, base: &PublicUrl) -> Value {
    replicate::prediction(view, &base.0, output(server, view, &base.0).await)
}

/// The caller's own prediction.
async fn find(server: &Server, caller: &Caller, id: &str) -> Result<JobView, Fault> {
    let unknown = || Fault::NotFound("the prediction".into());
    let id: JobId = id.parse().map_err(|_| unknown())?;
    let mine = |job: &JobView| job.owner == caller.owner && job.dialect == Dialect::Replicate;
    server.jobs.view(&id).await.filter(mine).ok_or_else(unknown)
}

async fn create_by_model(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path((owner, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let made = async { create(&server, &caller, &base, &format!("{owner}/{name}"), &headers, &whole(body)?).await };
    answered(201, made.await)
}

async fn create_by_version(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let made = async {
        let body = whole(body)?;
        let asked = object(&body)?;
        let version = asked.get("version").or_else(|| asked.get("model")).and_then(Value::as_str);
        let missing = || Fault::invalid("version", Rule::Missing, "is required");
        let name = model_of(&server, version.ok_or_else(missing)?)?;
        create(&server, &caller, &base, &name, &headers, &body).await
    };
    answered(201, made.await)
}

/// The model that a `version` names.
fn model_of(server: &Server, version: &str) -> Result<String, Fault> {
    let named = replicate::named(version);
    let fits = |name: &str| named.version.is_none_or(|version| replicate::version_id(name) == version);
    let unknown = || Fault::UnknownModel(version.to_owned());
    match named.name {
        // Any version of a model that is named is the one there is: pinned ones of other servers, too.
        Some(name) => Ok(name.to_owned()),
        None => names(server).into_iter().find(|name| fits(name)).ok_or_else(unknown),
    }
}

/// Names that Replicate's clients can ask for.
fn names(server: &Server) -> Vec<String> {
    let mut names: Vec<_> =
        server.shelf.stock().listed().into_iter().filter(|name| name.matches('/').count() == 1).collect();
    if server.model(Some(replicate::MODEL)).is_ok() && !names.iter().any(|name| name == replicate::MODEL) {
        names.insert(0, replicate::MODEL.to_owned());
    }
    names
}

async fn create(
    server: &Server,
    caller: &Caller,
    base: &PublicUrl,
    name: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Value, Fault> {
    let model = server.model(Some(name))?;
    let body = object(body)?;
    let input = body.get("input").cloned().unwrap_or(Value::Null);
    let wait = replicate::wait(text(headers, "prefer"));
    let webhook = replicate::webhook(&body)?;
    let webhook = webhook.map(|webhook| Webhook { base: Some(base.0.to_string()), ..webhook });
    server.may_tell("webhook", webhook.as_ref())?;
    let time = replicate::cancel_after(text(headers, "cancel-after"))?;
    let new = NewJob {
        raw: shortened(&input),
        idempotency_key: text(headers, "idempotency-key").map(str::to_owned),
        finish_by: time.map(after),
        webhook,
        secret: Some(hex(&random::<20>())),
        ..NewJob::new(Dialect::Replicate, &caller.owner, name, Ok(replicate::ask(model, &input, random_seed())?))
    };
    let (job, _) = server.submit(caller, new).await?;
    let Some(wait) = wait else { return Ok(shown(server, &job, base).await) };
    Ok(match ended(server, &job.id, wait).await {
        Some(job) => shown(server, &job, base).await,
        None => replicate::still_starting(shown(server, &job, base).await),
    })
}

async fn ended(server: &Server, id: &JobId, wait: Duration) -> Option<JobView> {
    tokio::time::timeout(wait, server.jobs.wait(id)).await.ok()?.ok()
}

async fn show(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path(id): Path<String>,
) -> Response<Body> {
    let job = find(&server, &caller, &id).await;
    answered(
        200,
        match job {
            Ok(job) => Ok(shown(&server, &job, &base).await),
            Err(fault) => Err(fault),
        },
    )
}

async fn cancel(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Path(id): Path<String>,
) -> Response<Body> {
    /// How long a run takes to stop, for scripts that look at the answer alone.
    const STOPPING: Duration = Duration::from_secs(2);

    let cancelled = async {
        let job = find(&server, &caller, &id).await?;
        server.jobs.cancel(&job.id).await;
        let job = match ended(&server, &job.id, STOPPING).await {
            Some(job) => job,
            None => server.jobs.view(&job.id).await.unwrap_or(job),
        };
        Ok(shown(&server, &job, &base).await)
    };
    answered(200, cancelled.await)
}

async fn list(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    Query(query): Query<Vec<(String, String)>>,
) -> Response<Body> {
    let listed = async {
        let instant = |text: Option<&str>| {
            text.and_then(|text| DateTime::parse_from_rfc3339(text).ok()).map(|at| at.timestamp_millis())
        };
        let (after, before) = (instant(wish(&query, "created_after")), instant(wish(&query, "created_before")));
        // The cursor is the last prediction of the page before.
        let from = match wish(&query, "cursor") {
            Some(id) => find(&server, &caller, id).await.map(|job| Some((job.accepted, job.id)))?,
            // Names are compared as text, and nothing is below the lowest.
            None => before.map(|before| (before, JobId::from_random([0; 26]))),
        };
        let mut jobs = server.jobs.list(&caller.owner, Dialect::Replicate, from, PAGE).await?;
        let more = jobs.len() == PAGE;
        let whole = jobs.len();
        jobs.retain(|job| after.is_none_or(|after| job.accepted > after));
        // The newest come first: where one was too old, all that follow are.
        let last = jobs.last().filter(|_| more && jobs.len() == whole);
        let next = last.map(|job| {
            let mut next = url::form_urlencoded::Serializer::new(String::new());
            next.append_pair("cursor", job.id.as_str());
            if let Some(after) = wish(&query, "created_after") {
                next.append_pair("created_after", after);
            }
            format!("{}/v1/predictions?{}", base.0, next.finish())
        });
        // Data URIs would make a page hundreds of megabytes long.
        let urls = base.0.starts_with("https:") && server.config.replicate_output != VendorOutput::Data
            || server.config.replicate_output == VendorOutput::Url;
        let mut results = Vec::new();
        for job in &jobs {
            let output = if urls { output(&server, job, &base.0).await } else { None };
            results.push(replicate::prediction(job, &base.0, output));
        }
        Ok(json!({"previous": null, "next": next, "results": results}))
    };
    answered(200, listed.await)
}

async fn model(
    State(server): State<Server>,
    Extension(base): Extension<PublicUrl>,
    Path((owner, name)): Path<(String, String)>,
) -> Response<Body> {
    let name = format!("{owner}/{name}");
    match server.model(Some(&name)) {
        Ok(_) => answered(200, Ok(replicate::model(&name, &base.0))),
        Err(fault) => {
            // OpenAI's older clients ask here, too, for models with a slash in their name.
            let mut answer = replicate::fault(&fault);
            answer.body["error"] = crate::dialect::openai::error(&fault).body["error"].take();
            respond(&answer)
        }
    }
}

fn page(results: &[Value]) -> Value {
    json!({"previous": null, "next": null, "results": results})
}

/// Lists that are empty here: scripts walk through them.
async fn nothing() -> Response<Body> {
    answered(200, Ok(page(&[])))
}

async fn nothing_of_a_model(
    State(server): State<Server>,
    Path((owner, name)): Path<(String, String)>,
) -> Response<Body> {
    answered(200, server.model(Some(&format!("{owner}/{name}"))).map(|_| page(&[])))
}

/// A model's description as text.
async fn readme(
    State(server): State<Server>,
    Extension(base): Extension<PublicUrl>,
    Path((owner, name)): Path<(String, String)>,
) -> Response<Body> {
    let name = format!("{owner}/{name}");
    match server.model(Some(&name)) {
        Ok(_) => {
            let about = replicate::model(&name, &base.0)["description"].as_str().unwrap_or_default().to_owned();
            format!("# {name}\n\n{about}\n").into_response()
        }
        Err(fault) => answered(200, Err(fault)),
    }
}

/// Each model is a deployment of its own name, which predictions can be asked of.
async fn deployments(State(server): State<Server>, Extension(caller): Extension<Caller>) -> Response<Body> {
    let all: Vec<_> = names(&server).iter().map(|name| replicate::deployment(name, &caller.owner.0)).collect();
    answered(200, Ok(page(&all)))
}

async fn deployment(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    Path((owner, name)): Path<(String, String)>,
) -> Response<Body> {
    let name = format!("{owner}/{name}");
    answered(200, server.model(Some(&name)).map(|_| replicate::deployment(&name, &caller.owner.0)))
}

/// Models whose names fit what is looked for.
fn found(server: &Server, wish: &str, base: &str) -> Vec<Value> {
    let fits = |name: &&String| replicate::fits(name, wish);
    names(server).iter().filter(fits).map(|name| replicate::model(name, base)).collect()
}

async fn search(
    State(server): State<Server>,
    Extension(base): Extension<PublicUrl>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response<Body> {
    let wished = wish(&query, "query").unwrap_or_default();
    let models: Vec<_> = found(&server, wished, &base.0)
        .into_iter()
        .map(|model| json!({"model": model, "metadata": {"generated_description": null, "tags": [], "score": null}}))
        .collect();
    answered(200, Ok(json!({"query": wished, "models": models, "collections": [], "pages": []})))
}

/// The method `QUERY` on the list of models, with the words as the body.
pub(crate) async fn query_models(
    State(server): State<Server>,
    Extension(base): Extension<PublicUrl>,
    method: Method,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    if method.as_str() != "QUERY" {
        return answered(200, Err(Fault::WrongMethod));
    }
    let listed = whole(body).map(|body| {
        // The beta of 2.0 sends the words as a JSON string.
        let words = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
        page(&found(&server, &words, &base.0))
    });
    answered(200, listed)
}

async fn versions(State(server): State<Server>, Path((owner, name)): Path<(String, String)>) -> Response<Body> {
    let name = format!("{owner}/{name}");
    let listed = |_| page(&[replicate::version(&name)]);
    answered(200, server.model(Some(&name)).map(listed))
}

async fn version(
    State(server): State<Server>,
    Path((owner, name, version)): Path<(String, String, String)>,
) -> Response<Body> {
    let name = format!("{owner}/{name}");
    let known = server.model(Some(&name)).and_then(|_| {
        if replicate::version_id(&name) == version { Ok(()) } else { Err(Fault::NotFound("the version".into())) }
    });
    answered(200, known.map(|()| replicate::version(&name)))
}

async fn account(Extension(caller): Extension<Caller>) -> Response<Body> {
    let name = &*caller.owner.0;
    answered(200, Ok(json!({"type": "user", "username": name, "name": name, "github_url": null})))
}

async fn hardware() -> Response<Body> {
    answered(200, Ok(json!([{"name": "This machine", "sku": "cpu"}])))
}

async fn webhook_secret(State(server): State<Server>, Extension(caller): Extension<Caller>) -> Response<Body> {
    // Whoever has it can sign what looks like the server's.
    let may = caller.may(Scope::Generate);
    answered(200, may.map(|()| json!({"key": server.signing.secret(&caller.owner)})))
}

/// For the list of models that Replicate's and OpenAI's clients share a path for.
pub(crate) fn models(server: &Server, base: &str) -> Vec<Value> {
    names(server).iter().map(|name| replicate::model(name, base)).collect()
}

/// The identifier of an event: the time and a count.
fn event_id(count: usize) -> String {
    format!("{}:{count}", now())
}
