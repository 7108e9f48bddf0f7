//! The rules, asked from outside.

use axum::{Extension, routing::any};
use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::config::{Secret, Size};

fn inner() -> Router {
    let echo = |Extension(caller): Extension<Caller>, Extension(public): Extension<PublicUrl>, request: Request| async move {
        let path = request.uri().to_string();
        let body = request.into_body().collect().await;
        assert_ne!(path, "/panic");
        let length = body.map_or(0, |body| body.to_bytes().len());
        if path == "/v1/files/takes-its-time" {
            std::future::pending::<()>().await;
        }
        json!({"path": path, "owner": &*caller.owner.0, "public": &*public.0, "length": length}).to_string()
    };
    Router::new().fallback(any(echo))
}

fn guarded(change: impl FnOnce(&mut Config)) -> Router {
    let mut config = Config::in_folder("unused");
    change(&mut config);
    let auth = Auth::new(&config.api_keys, None, [3; 32]).unwrap();
    Guard::new(config.into(), auth, Metrics::new(Vec::new())).around(inner(), false)
}

async fn ask(
    app: &Router,
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (u16, HeaderMap, Value) {
    let mut request = Request::builder().method(method).uri(uri);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost:8000");
    }
    for (name, value) in headers.iter().filter(|(_, value)| *value != "-") {
        request = request.header(*name, *value);
    }
    let response = app.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body: Bytes = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused_in_the_words_of_the_dialect() {
    let app = guarded(|config| {
        config.allowed_hosts = vec!["box.lan".into()];
        config.public_url = Some("https://pictures.example/".into());
    });
    for good in [
        "localhost",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.1.5",
        "a.localhost:1",
        "box.lan:8000",
        "pictures.example",
        "LOCALHOST",
    ] {
        let (status, _, body) = ask(&app, "GET", "/v1/models", &[("host", good)], "").await;
        assert_eq!((status, &body["public"]), (200, &json!("https://pictures.example")), "{good}");
    }
    for evil in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "0x7f.evil",
    ] {
        let (status, _, body) = ask(&app, "POST", "/v1/images/generations", &[("host", evil)], "").await;
        assert_eq!((status, body["error"]["message"].is_string()), (403, true), "{evil}");
        let (status, headers, body) = ask(&app, "POST", "/fal/run/fal-ai/flux", &[("host", evil)], "").await;
        assert_eq!((status, body["detail"].is_string()), (403, true), "{evil}");
        assert!(headers.contains_key("x-fal-request-id") && headers["content-type"] == "application/json");
        let (status, _, body) = ask(&app, "POST", "/v1/predictions", &[("host", evil)], "").await;
        assert_eq!((status, &body["status"]), (403, &json!(403)), "{evil}");
    }
    for wrong in ["", "a b", "a/b", "user@localhost"] {
        assert_eq!(ask(&app, "GET", "/", &[("host", wrong)], "").await.0, 400, "'{wrong}'");
    }
    assert_eq!(ask(&app, "GET", "/", &[("host", "-")], "").await.0, 400, "none");
    assert_eq!(ask(&app, "GET", "/", &[("host", "localhost"), ("host", "evil.example")], "").await.0, 400, "two");
    assert_eq!(
        ask(&app, "GET", "http://evil.example/", &[("host", "localhost")], "").await.0,
        400,
        "one in each place"
    );
}

#[tokio::test]
async fn pages_of_others_may_not_ask() {
    let app = guarded(|config| config.cors_origins = vec!["https://app.example".into()]);
    let asks = |origin: &'static str| {
        let app = app.clone();
        async move { ask(&app, "POST", "/v1/images/generations", &[("origin", origin)], "{}").await }
    };
    for evil in [
        "https://evil.example",
        "null",
        "http://localhost:9000",
        "http://localhost:8000.evil.example",
        "https://app.example.evil",
        "",
    ] {
        let (status, headers, _) = asks(evil).await;
        assert_eq!((status, headers.get("access-control-allow-origin")), (403, None), "{evil}");
    }
    assert_eq!(asks("http://localhost:8000").await.0, 200, "our own page");
    let (status, headers, _) = asks("https://app.example").await;
    assert_eq!((status, &headers["access-control-allow-origin"]), (200, &"https://app.example".parse().unwrap()));
    assert_eq!(headers["vary"], "origin");

    let preflight = [("origin", "https://app.example"), ("access-control-request-headers", "authorization, x-a")];
    let (status, headers, _) = ask(&app, "OPTIONS", "/v1/images/generations", &preflight, "").await;
    assert_eq!((status, &headers["access-control-allow-headers"]), (204, &"authorization, x-a".parse().unwrap()));
    assert_eq!(ask(&app, "OPTIONS", "/v1/x", &[("origin", "https://evil.example")], "").await.0, 403);
    assert_eq!(ask(&app, "OPTIONS", "/v1/x", &[], "").await.0, 204, "no page");

    let image = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
    assert_eq!(ask(&app, "GET", "/sdapi/v1/options", &image, "").await.0, 403, "an <img> of a page");
    assert_eq!(ask(&app, "GET", "/files/0/0.png", &image, "").await.0, 200, "that is what files are for");
    let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(ask(&app, "GET", "/", &link, "").await.0, 200, "a link");

    let all = guarded(|config| config.cors_origins = vec!["*".into()]);
    let (status, headers, _) = ask(&all, "POST", "/v1/x", &[("origin", "https://any.example")], "").await;
    assert_eq!((status, &headers["access-control-allow-origin"]), (200, &"*".parse().unwrap()));
}

#[tokio::test]
async fn a_key_is_asked_for_where_the_url_is_none() {
    let app = guarded(|config| config.api_keys = vec![Secret("right-key".into())]);
    let key = [("authorization", "Key right-key")];
    let (status, headers, body) = ask(&app, "POST", "/openai/v1/images/generations", &[], "{}").await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_api_key")));
    assert!(headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    assert_eq!(
        ask(&app, "POST", "/fal-ai/flux/krea", &[], "{}").await.2,
        json!({"detail": "no valid API key was given"})
    );
    let body = ask(&app, "GET", "/v1/predictions", &[("authorization", "Token wrong")], "").await.2;
    assert_eq!((&body["title"], &body["status"]), (&json!("Unauthenticated"), &json!(401)));
    let (_, headers, body) = ask(&app, "GET", "/sdapi/v1/options", &[], "").await;
    assert_eq!(
        (&headers["www-authenticate"], &body["error"]),
        (&"Basic realm=\"darkroom\"".parse().unwrap(), &json!("HTTPException"))
    );
    assert_eq!(ask(&app, "GET", "/metrics", &[], "").await.0, 401);
    for open in ["/files/x/y", "/v1/files/stream-abc", "/.well-known/jwks.json", "/health", "/readyz"] {
        assert_eq!(ask(&app, "GET", open, &[], "").await.0, 200, "{open}");
    }
    let (status, _, body) = ask(&app, "POST", "/fal-ai/flux/krea?x=1", &key, "{}").await;
    assert_eq!((status, &body["path"]), (200, &json!("/fal/run/fal-ai/flux/krea?x=1")));
    assert!(body["owner"].as_str().unwrap().starts_with("given-"), "{body}");

    let auth = Auth::new(&[Secret("right-key".into())], None, [3; 32]).unwrap();
    let named = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("right-key"))]);
    let caller = auth.caller(&named).unwrap();
    let token = auth.mint(&caller, Use::Realtime, Duration::from_mins(1));
    for (path, status) in [
        ("/fal-ai/flux/krea/realtime", 200),
        ("/fal-ai/flux/krea/stream", 200),
        ("/fal-ai/flux/krea", 401),
        ("/fal/queue/a/stream", 401),
    ] {
        assert_eq!(ask(&app, "GET", &format!("{path}?fal_jwt_token={token}"), &[], "").await.0, status, "{path}");
    }
    let token = format!("Bearer {}", auth.mint(&caller, Use::Upload, Duration::from_mins(1)));
    for (path, status) in [("/fal/cdn/files/upload", 200), ("/fal/run/fal-ai/flux", 401)] {
        assert_eq!(ask(&app, "POST", path, &[("authorization", &token)], "").await.0, status, "{path}");
    }
}

#[tokio::test]
async fn bodies_are_limited_before_they_are_read() {
    let app = guarded(|config| {
        config.limits.body = Size(1 << 20);
        config.limits.upload = Size(4 << 20);
        config.limits.bodies = Size(6 << 20);
    });
    let (status, _, body) =
        ask(&app, "POST", "/v1/images/generations", &[("content-length", "104857600")], Body::empty()).await;
    assert_eq!((status, &body["error"]["type"]), (413, &json!("invalid_request_error")));
    let large = || Bytes::from(vec![b'a'; 2 << 20]);
    let length = (2 << 20).to_string();
    let known = [("content-length", length.as_str())];
    assert_eq!(ask(&app, "POST", "/fal/run/a", &known, large()).await.0, 413);
    let (status, _, body) = ask(&app, "POST", "/v1/files", &known, large()).await;
    assert_eq!((status, &body["length"]), (200, &json!(2 << 20)), "uploads may be larger");
    // Nothing was said of its length.
    let (status, _, body) = ask(&app, "POST", "/fal/run/a", &[], large()).await;
    assert_eq!((status, body["detail"].is_string()), (413, true));
    let pieces = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("gone"))];
    let broken = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(ask(&app, "POST", "/fal/run/a", &[], broken).await.0, 422);
    assert_eq!(ask(&app, "GET", "/panic", &[], Body::empty()).await.0, 500, "a panic is an answer");

    // Two uploads of 4 MiB are more than all bodies together may be.
    let silent = || Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let four = ("content-length", "4194304");
    let upload = [four];
    let mut first = Box::pin(ask(&app, "POST", "/v1/files", &upload, silent()));
    assert!(futures_util::poll!(&mut first).is_pending());
    let (status, headers, _) = ask(&app, "POST", "/v1/files", &[four], silent()).await;
    assert_eq!((status, &headers["retry-after"]), (429, &"2".parse().unwrap()));
    drop(first);
    assert_eq!(ask(&app, "POST", "/v1/files", &known, large()).await.0, 200, "there is room again");
    // Who has come in waits for an answer without keeping others out.
    let four_long = || Bytes::from(vec![b'a'; 4 << 20]);
    let mut first = Box::pin(ask(&app, "POST", "/v1/files/takes-its-time", &upload, four_long()));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert_eq!(ask(&app, "POST", "/v1/files", &upload, four_long()).await.0, 200);
}

#[tokio::test]
async fn nobody_takes_room_without_a_key() {
    let app = guarded(|config| {
        config.api_keys = vec![Secret("right-key".into())];
        config.limits.bodies = Size(300 << 20);
    });
    let silent = || Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let large = [("content-length", "268435456")];
    for (method, path) in [
        ("POST", "/v1/files/stream-x"),
        ("POST", "/files/x/y"),
        ("PUT", "/files/x/y/multipart/drt_x.y/1"),
        ("PUT", "/fal/cdn/put/drt_x.y/0/a"),
        ("POST", "/fal/cdn/put/drt_x.y/0/a/complete"),
        ("DELETE", "/v1/files/stream-x"),
        ("PATCH", "/healthz"),
    ] {
        assert_eq!(ask(&app, method, path, &large, silent()).await.0, 401, "{method} {path}");
        let (status, _, body) = ask(&app, method, path, &[], silent()).await;
        assert_eq!(status, 401, "{method} {path}");
        let fal = path.contains("drt_");
        assert_eq!(body["detail"].is_string(), fal || path.starts_with("/v1/"), "{method} {path}: {body}");
    }
    assert_eq!(ask(&app, "GET", "/v1/files/stream-x", &large, silent()).await.0, 413);

    let auth = Auth::new(&[Secret("right-key".into())], None, [3; 32]).unwrap();
    let named = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("right-key"))]);
    let token = auth.mint(&auth.caller(&named).unwrap(), Use::Upload, Duration::from_mins(1));
    for path in [
        format!("/fal/cdn/put/{token}/0/a"),
        format!("/fal/cdn/put/{token}~3600/0/a"),
        format!("/fal/cdn/put/{token}%7E3600/0/a/1"),
        format!("/files/0/a/multipart/{token}~60/1"),
    ] {
        let (status, _, body) = ask(&app, "PUT", &path, &[], "content").await;
        assert_eq!((status, &body["length"]), (200, &json!(7)), "{path}");
    }
}

#[tokio::test]
async fn strange_paths_and_methods() {
    let app = guarded(|_| ());
    for path in [
        "/files/../../etc/passwd",
        "/files/%2e%2e/%2e%2e/etc/passwd",
        "/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/a%00",
        &format!("/{}", "a".repeat(20_000)),
    ] {
        assert_eq!(ask(&app, "GET", path, &[], "").await.0, 400, "{path:.40}");
    }
    assert_eq!(ask(&app, "TRACE", "/", &[], "").await.0, 400);
    let (_, _, body) = ask(&app, "GET", "//v1//models/", &[], "").await;
    assert_eq!((&body["path"], &body["public"]), (&json!("/v1/models"), &json!("http://localhost:8000")));
    let forwarded = [("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.example")];
    assert_eq!(ask(&app, "GET", "/", &forwarded, "").await.2["public"], "http://localhost:8000", "not believed");
    let behind = guarded(|config| {
        config.trust_proxy = true;
        config.allowed_hosts = vec!["pictures.example".into()];
    });
    assert_eq!(ask(&behind, "GET", "/", &forwarded, "").await.2["public"], "https://localhost:8000");
    let forwarded = [("x-forwarded-proto", "https"), ("x-forwarded-host", "pictures.example")];
    assert_eq!(ask(&behind, "GET", "/", &forwarded, "").await.2["public"], "https://pictures.example");
}
