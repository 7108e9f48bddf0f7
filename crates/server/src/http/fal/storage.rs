//! fal's files: uploads in one piece and in parts, tokens for them and for web sockets, the public key of webhooks.
//!
//! An upload's URL and the file's own are told before the file comes, so the file's name is reserved first. Upload URLs carry a
//! token of [`crate::auth`]; parts wait as blobs that no URL leads to until the last one is there.

use std::time::Duration;

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Response},
    routing::{get, post, put},
};
use bytes::BytesMut;
use serde_json::{Map, Value, json};

use super::{Asked, refused};
use crate::{
    auth::{Caller, Use},
    blobs::{BlobId, NewBlob, Purpose, file_name},
    clock::after,
    dialect::{Answer, instant_with_offset},
    error::{Fault, Rule},
    guard::PublicUrl,
    http::{object, respond, text, whole},
    owner::Owner,
    server::Server,
    uploads::{LASTS, MOST_PARTS, Part as Kept},
};

/// The longest life of a token for web sockets.
const LONGEST_TOKEN: u64 = 24 * 3600;

/// The routes.
pub(super) fn router() -> Router<Server> {
    Router::new()
        .route("/fal/rest/storage/upload/initiate", post(initiate))
        .route("/fal/rest/storage/upload/initiate-multipart", post(initiate))
        .route("/fal/rest/storage/auth/token", post(upload_token))
        .route("/fal/rest/tokens", post(realtime_token))
        .route("/fal/rest/tokens/", post(realtime_token))
        .route("/fal/rest/.well-known/jwks.json", get(jwks))
        .route("/fal/cdn/files/upload", post(upload))
        .route("/fal/cdn/files/upload/multipart", post(begin))
        .route("/fal/cdn/put/{token}/{id}/{name}", put(put_whole))
        .route("/fal/cdn/put/{token}/{id}/{name}/complete", post(complete))
        .route("/fal/cdn/put/{token}/{id}/{name}/{part}", put(put_part))
        .route("/files/{id}/{name}/multipart/{token}/complete", post(complete_at))
        .route("/files/{id}/{name}/multipart/{token}/{part}", put(put_part_at))
}

fn answered(body: Result<Value, Fault>) -> Response<Body> {
    body.map_or_else(|fault| refused(&fault), |body| respond(&Answer::new(200, body)))
}

/// A body that may be missing.
fn optional(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    if body.is_empty() { Ok(Map::new()) } else { object(body) }
}

/// What a file is called in its URL.
fn called(name: Option<&str>) -> String {
    file_name(name.filter(|name| !name.is_empty()).unwrap_or("upload.bin"))
}

/// fal's own names for hosts are kept apart; here everything is one.
fn root(base: &PublicUrl) -> &str {
    &base.0
}

async fn initiate(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    answered(whole(body).and_then(|body| optional(&body)).and_then(|body| {
        let name = called(body.get("file_name").and_then(Value::as_str));
        let id = BlobId::random()?;
        let token = ticket(&server, &caller, &headers);
        let base = root(&base);
        Ok(json!({"upload_url": format!("{base}/fal/cdn/put/{token}/{id}/{name}"), "file_url": format!("{base}/files/{id}/{name}")}))
    }))
}

async fn upload_token(State(server): State<Server>, (Extension(caller), Extension(base)): Asked) -> Response<Body> {
    let token = server.auth.mint(&caller, Use::Upload, LASTS);
    let until = after(LASTS);
    answered(Ok(json!({"token": token, "token_type": "Bearer", "base_url": format!("{}/fal/cdn", root(&base)),
                       "expires_at": instant_with_offset(until)})))
}

async fn realtime_token(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    answered(whole(body).and_then(|body| optional(&body)).map(|body| {
        let seconds = body.get("token_expiration").and_then(Value::as_u64).unwrap_or(120).clamp(1, LONGEST_TOKEN);
        server.auth.mint(&caller, Use::Realtime, Duration::from_secs(seconds)).into()
    }))
}

async fn jwks(State(server): State<Server>) -> Response<Body> {
    answered(Ok(server.signing.jwks()))
}

fn mime(headers: &HeaderMap) -> String {
    text(headers, "content-type").unwrap_or("application/octet-stream").to_owned()
}

/// The seconds that a caller wants an upload to be kept, if it says so.
fn wished(headers: &HeaderMap) -> Option<u64> {
    let told =
        text(headers, "x-fal-object-lifecycle").or_else(|| text(headers, "x-fal-object-lifecycle-preference"))?;
    serde_json::from_str::<Value>(told).ok()?["expiration_duration_seconds"].as_u64()
}

/// How long an upload is kept: as asked, and at most as long as the operator keeps uploads.
fn keep(server: &Server, wish: Option<u64>) -> Duration {
    let most = server.config.store.uploads;
    wish.map_or(most, |seconds| Duration::from_secs(seconds.max(60)).min(most))
}

/// A token for an upload's URL. How long the file is to be kept is said when the upload begins and not with its bytes, so it stands
/// behind the token: `TOKEN~3600`.
fn ticket(server: &Server, caller: &Caller, headers: &HeaderMap) -> String {
    let token = server.auth.mint(caller, Use::Upload, LASTS);
    wished(headers).map_or_else(|| token.clone(), |seconds| format!("{token}~{seconds}"))
}

/// A token in a URL and the wish behind it.
fn parts_of(ticket: &str) -> (&str, Option<u64>) {
    ticket.split_once('~').map_or((ticket, None), |(token, seconds)| (token, seconds.parse().ok()))
}

/// A file in one piece.
async fn upload(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let name = called(text(&headers, "x-fal-file-name"));
    let kept = async {
        let keep = keep(&server, wished(&headers));
        server.blobs.put(whole(body)?, NewBlob::new(Purpose::Upload, &mime(&headers), &name, keep, &caller.owner)).await
    };
    answered(kept.await.map(|blob| json!({"access_url": server.blobs.url(&blob.id, root(&base))})))
}

/// A file in parts, as Python's client begins it: parts go to the file's own URL.
async fn begin(
    State(server): State<Server>,
    (Extension(caller), Extension(base)): Asked,
    headers: HeaderMap,
) -> Response<Body> {
    let name = called(text(&headers, "x-fal-file-name"));
    let token = ticket(&server, &caller, &headers);
    answered(
        BlobId::random()
            .map(|id| json!({"access_url": format!("{}/files/{id}/{name}", root(&base)), "uploadId": token})),
    )
}

/// Whose upload a token in a URL is, which file it names, and how long that is to be kept.
fn uploader(server: &Server, ticket: &str, id: &str) -> Result<(Caller, BlobId, Option<u64>), Fault> {
    let (token, wish) = parts_of(ticket);
    let caller = server.auth.redeem(token, Use::Upload).ok_or(Fault::Unauthenticated)?;
    Ok((caller, id.parse()?, wish))
}

async fn put_whole(
    State(server): State<Server>,
    Path((token, id, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let kept = async {
        let (caller, id, wish) = uploader(&server, &token, &id)?;
        let keep = keep(&server, wished(&headers).or(wish));
        let mime = mime(&headers);
        let new = NewBlob::new(Purpose::Upload, &mime, &name, keep, &caller.owner);
        server.blobs.put_told(id, whole(body)?, new).await
    };
    answered(kept.await.map(|_| json!({})))
}

type Part = (String, String, String, String);

async fn put_part(
    State(server): State<Server>,
    Path((token, id, _, part)): Path<Part>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    keep_part(&server, &token, &id, &part, body).await
}

async fn put_part_at(
    State(server): State<Server>,
    Path((id, _, token, part)): Path<Part>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    keep_part(&server, &token, &id, &part, body).await
}

/// JavaScript's client reads the part's name in the body, Python's in a header.
async fn keep_part(
    server: &Server,
    token: &str,
    id: &str,
    part: &str,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let kept = async {
        let (caller, id, _) = uploader(server, token, id)?;
        let number = part.parse().ok().filter(|number| (1..=MOST_PARTS).contains(number));
        let number = number
            .ok_or_else(|| Fault::invalid("part", Rule::Other, format!("has to be a number from 1 to {MOST_PARTS}")))?;
        let body = whole(body)?;
        server.uploads.may_add(&caller.owner, &id)?;
        let new = NewBlob::new(Purpose::Internal, "application/octet-stream", "part", LASTS, &caller.owner);
        let blob = server.blobs.put(body, new).await?;
        let part = Kept { blob: blob.id.clone(), bytes: blob.bytes, etag: blob.sha256.clone() };
        match server.uploads.add(&caller.owner, &id, number, part, server.config.limits.upload.0) {
            Ok(None) => {}
            Ok(Some(before)) => server.blobs.delete(&before).await?,
            Err(fault) => {
                let _ = server.blobs.delete(&blob.id).await;
                drop_parts(server, &caller.owner, &id).await;
                return Err(fault);
            }
        }
        Ok((number, blob.sha256.clone()))
    };
    match kept.await {
        Ok((number, etag)) => {
            let mut response = respond(&Answer::new(200, json!({"partNumber": number, "etag": etag})));
            if let Ok(etag) = HeaderValue::from_str(&format!("\"{etag}\"")) {
                response.headers_mut().insert(HeaderName::from_static("etag"), etag);
            }
            response
        }
        Err(fault) => refused(&fault),
    }
}

async fn drop_parts(server: &Server, owner: &Owner, id: &BlobId) {
    for part in server.uploads.take(owner, id).unwrap_or_default().kept.into_values() {
        // What cannot be deleted goes with its time.
        let _ = server.blobs.delete(&part.blob).await;
    }
}

async fn complete(
    State(server): State<Server>,
    Path((token, id, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    answered(put_together(&server, (&token, &id, &name), &headers, body).await)
}

async fn complete_at(
    State(server): State<Server>,
    Path((id, name, token)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    answered(put_together(&server, (&token, &id, &name), &headers, body).await)
}

/// The parts become the file. Until it is there they stay, so that what failed can be said again.
async fn put_together(
    server: &Server,
    (token, id, name): (&str, &str, &str),
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Value, Fault> {
    let (caller, id, wish) = uploader(server, token, id)?;
    let body = optional(&whole(body)?)?;
    let is_there = || {
        let there = server.blobs.meta(&id);
        there.is_some_and(|there| there.owner == caller.owner && there.purpose == Purpose::Upload)
    };
    // Said twice, perhaps at the same time.
    if is_there() {
        return Ok(json!({}));
    }
    let Some(parts) = server.uploads.parts(&caller.owner, &id) else {
        return Err(Fault::NotFound("the upload".into()));
    };
    let listed = parts.listed(&body)?;
    let bytes = listed.iter().map(|part| part.bytes).sum();
    let _room = server.room.take(bytes)?;
    let mut file = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(0));
    for part in listed {
        match server.blobs.get(&part.blob).await {
            Ok((_, bytes)) => file.extend_from_slice(&bytes),
            Err(_) if is_there() => return Ok(json!({})),
            Err(fault) => return Err(fault),
        }
    }
    let keep = keep(server, wished(headers).or(wish));
    // The type that was told at the beginning is forgotten; what the bytes begin like decides.
    let new = NewBlob::new(Purpose::Upload, "application/octet-stream", name, keep, &caller.owner);
    server.blobs.put_told(id.clone(), file.freeze(), new).await?;
    drop_parts(server, &caller.owner, &id).await;
    Ok(json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_file_is_kept_is_said_in_either_header() {
        let said = |name: &'static str, value: &'static str| {
            wished(&HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]))
        };
        let wish = r#"{"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide"}}"#;
        assert_eq!(said("x-fal-object-lifecycle", wish), Some(3600));
        assert_eq!(said("x-fal-object-lifecycle-preference", wish), Some(3600));
        assert_eq!((said("x-fal-object-lifecycle", "x"), wished(&HeaderMap::new())), (None, None));
    }

    #[test]
    fn a_wish_stands_behind_the_token() {
        assert_eq!(parts_of("dk.a_-b.c"), ("dk.a_-b.c", None));
        assert_eq!(parts_of("dk.a_-b.c~3600"), ("dk.a_-b.c", Some(3600)));
        assert_eq!(parts_of("dk.a_-b.c~soon"), ("dk.a_-b.c", None));
    }
}
