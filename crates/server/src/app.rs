//! The dialects' routes put together, and those that are about the server itself.

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderValue, Response, Uri, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;

use crate::{dialect::Answer, error::Fault, files, guard, http, openapi, server::Server};

/// All routes. The guard goes around them.
pub fn app(server: &Server) -> Router {
    Router::new()
        .merge(http::openai::router())
        .merge(http::fal::router())
        .merge(http::replicate::router())
        .merge(http::sdapi::router())
        .merge(http::native::router())
        .merge(http::admin::router())
        .merge(files::router())
        .route("/healthz", get(alive))
        .route("/health", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(document))
        .route("/docs", get(docs))
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .with_state(server.clone())
}

/// No such route, in the words of the clients that ask there: an empty answer is no error to most of them.
async fn nowhere(uri: Uri) -> Response<Body> {
    guard::refusal(guard::dialect(uri.path()), &Fault::NotFound("this route".into()))
}

async fn wrong_method(uri: Uri) -> Response<Body> {
    guard::refusal(guard::dialect(uri.path()), &Fault::WrongMethod)
}

/// The process answers.
async fn alive() -> Response<Body> {
    http::good(json!({"status": "ok"}))
}

/// Whether work is taken: the journal can be written, and the server is not on its way out.
async fn ready(State(server): State<Server>) -> Response<Body> {
    let problem = if !server.journal.is_writable().await {
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
