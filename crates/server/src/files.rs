//! `GET /files/{token}/{name}`: blobs for whoever has the URL. The token is the blob's name and cannot be guessed, so no key is
//! asked for. Pictures are shown; all else is saved, never run. Parts (`Range`) and copies that are still right
//! (`If-None-Match`) are as RFC 9110 says.

use axum::{
    Router,
    body::Body,
    extract::{FromRef, Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    blobs::{Blob, BlobId, Blobs},
    clock::now,
    error::Fault,
};

/// The route. A `HEAD` is a `GET` without its body.
pub fn router<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Blobs: FromRef<S>,
{
    Router::new().route("/files/{token}", get(serve_nameless)).route("/files/{token}/{name}", get(serve))
}

async fn serve_nameless(
    blobs: State<Blobs>,
    Path(token): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    serve(blobs, Path((token, String::new())), method, headers).await
}

/// The name is for people; the token decides.
async fn serve(
    State(blobs): State<Blobs>,
    Path((token, _)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    match answer(&blobs, &token, &method, &headers).await {
        Ok(response) => response,
        Err(Fault::NotFound(_)) => plain(StatusCode::NOT_FOUND, "there is no such file, or its time is over"),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "the file cannot be read now"),
    }
}

async fn answer(blobs: &Blobs, token: &str, method: &Method, headers: &HeaderMap) -> Result<Response, Fault> {
    let id: BlobId = token.parse()?;
    let blob = blobs.meta(&id).filter(|blob| blob.purpose.is_public());
    let blob = blob.ok_or_else(|| Fault::NotFound("the file".into()))?;
    let about = described(&blob);
    let etag = format!("\"{}\"", blob.sha256);
    if wanted_none_of(headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, about).into_response());
    }
    let part = match part(headers, &etag, blob.bytes) {
        Part::All => None,
        Part::Some(from, to) => Some((from, to)),
        Part::Nothing => {
            let all = [(header::CONTENT_RANGE, format!("bytes */{}", blob.bytes))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, about, all).into_response());
        }
    };
    let (from, to) = part.unwrap_or((0, blob.bytes));
    let body = if *method == Method::HEAD || from == to {
        Body::empty()
    } else if part.is_none() && blob.bytes <= 1 << 20 {
        Body::from(blobs.get(&id).await?.1)
    } else {
        Body::from_stream(blobs.stream(&id, from, to).await?)
    };
    let mut response = (about, body).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    if part.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {from}-{}/{}", to - 1, blob.bytes);
        if let Ok(range) = HeaderValue::from_str(&range) {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    Ok(response)
}

/// What every answer about a blob says.
fn described(blob: &Blob) -> HeaderMap {
    let (mime, shown) =
        if blob.is_picture() { (blob.mime.as_str(), "inline") } else { ("application/octet-stream", "attachment") };
    let left = (blob.expires - now()).max(0) / 1000;
    let all: [(HeaderName, String); 8] = [
        (header::CONTENT_TYPE, mime.to_owned()),
        (header::CONTENT_DISPOSITION, format!("{shown}; filename=\"{}\"", blob.name)),
        (header::ETAG, format!("\"{}\"", blob.sha256)),
        (header::ACCEPT_RANGES, "bytes".into()),
        (header::CACHE_CONTROL, format!("private, max-age={left}, immutable")),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".into()),
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin".into()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?))).collect()
}

/// Whether the one who asks has it already.
fn wanted_none_of(headers: &HeaderMap, etag: &str) -> bool {
    let listed = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    listed
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    All,
    /// The end is not included.
    Some(u64, u64),
    Nothing,
}

/// One range of bytes; several at once, and what is not understood, are answered with all of it.
fn part(headers: &HeaderMap, etag: &str, bytes: u64) -> Part {
    if headers.get(header::IF_RANGE).is_some_and(|tag| tag.as_bytes() != etag.as_bytes()) {
        return Part::All;
    }
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|v| v.strip_prefix("bytes="));
    let Some((first, last)) = asked.and_then(|range| range.trim().split_once('-')) else { return Part::All };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(bytes)),
        (Ok(first), Err(_)) if last.is_empty() => (first, bytes),
        (Err(_), Ok(count)) if first.is_empty() => (bytes.saturating_sub(count), bytes),
        _ => return Part::All,
    };
    if range.0 < range.1 { Part::Some(range.0, range.1) } else { Part::Nothing }
}

fn plain(status: StatusCode, detail: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "detail": detail }))).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::Request;
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        blobs::{NewBlob, Place, Purpose},
        owner::Owner,
    };

    async fn ask(blobs: &Blobs, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let app: Router = router::<Blobs>().with_state(blobs.clone());
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn pictures_are_shown_and_everything_else_is_saved() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&Place::Folder(folder.path().into()), 1 << 30).await.unwrap();
        let (hour, owner) = (Duration::from_hours(1), Owner::anyone());
        let picture: Vec<u8> = b"\x89PNG\r\n\x1a\n".iter().copied().chain((0..3_000_000).map(|i| i as u8)).collect();
        let put = blobs
            .put(picture.clone().into(), NewBlob::new(Purpose::Result, "image/png", "0.png", hour, &owner))
            .await
            .unwrap();
        let path = format!("/files/{}/0.png", put.id);

        let (status, headers, body) = ask(&blobs, &path, &[]).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &picture[..]));
        assert_eq!(headers["content-type"], "image/png");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["content-length"], "3000008");
        let etag = headers["etag"].to_str().unwrap().to_owned();
        let (status, _, body) = ask(&blobs, &path, &[("if-none-match", &format!("\"x\", W/{etag}"))]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));

        let (status, headers, body) = ask(&blobs, &path, &[("range", "bytes=8-11")]).await;
        assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, &[0, 1, 2, 3][..]));
        assert_eq!(headers["content-range"], "bytes 8-11/3000008");
        let (_, _, body) = ask(&blobs, &path, &[("range", "bytes=-1000000")]).await;
        assert_eq!(body, picture[2_000_008..]);
        let (status, headers, _) = ask(&blobs, &path, &[("range", "bytes=3000008-")]).await;
        assert_eq!(
            (status, &headers["content-range"]),
            (StatusCode::RANGE_NOT_SATISFIABLE, &"bytes */3000008".parse().unwrap())
        );
        for strange in ["bytes=5-4", "bytes=0-1,4-5", "lines=1-2", "bytes=a-b", "bytes=99999999999999999999-"] {
            assert_eq!(ask(&blobs, &path, &[("range", strange)]).await.0, StatusCode::OK, "{strange}");
        }

        let page = Bytes::from_static(b"<script>alert(1)</script>");
        let page = blobs.put(page, NewBlob::new(Purpose::Upload, "text/html", "x.html", hour, &owner)).await.unwrap();
        let (_, headers, _) = ask(&blobs, &format!("/files/{}/x.html", page.id), &[]).await;
        assert_eq!(headers["content-type"], "application/octet-stream");
        assert_eq!(headers["content-disposition"], "attachment; filename=\"x.html\"");

        let outside = ["/files/../../etc/passwd/x", "/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd/x", "/files/0/x"];
        for path in outside {
            assert_eq!(ask(&blobs, path, &[]).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        for purpose in [Purpose::Internal, Purpose::Held] {
            let new = NewBlob::new(purpose, "image/png", "0.png", hour, &owner);
            let kept = blobs.put(picture.clone().into(), new).await.unwrap();
            for path in [format!("/files/{}/0.png", kept.id), format!("/files/{}", kept.id)] {
                assert_eq!(ask(&blobs, &path, &[]).await.0, StatusCode::NOT_FOUND, "{purpose:?}");
                let none = [("if-none-match", "*")];
                assert_eq!(ask(&blobs, &path, &none).await.0, StatusCode::NOT_FOUND, "{purpose:?}");
            }
        }
    }
}
