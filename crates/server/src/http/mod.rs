//! HTTP around the dialects: bodies in, answers out. What all of them need is here.

pub mod admin;
pub mod fal;
pub mod form;
pub mod native;
pub mod openai;
pub mod patience;
pub mod replicate;
pub mod sdapi;
pub mod values;

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::rejection::BytesRejection,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::Stream;
use serde_json::{Map, Value};

use crate::{
    dialect::Answer,
    error::{Fault, Rule},
};

/// How often a stream that has nothing to say shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a dialect answers as HTTP. `application/json` and nothing else: `@fal-ai/client` takes no other type for an error.
pub fn respond(answer: &Answer) -> Response<Body> {
    let mut response = Response::new(Body::from(answer.body.to_string()));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in &answer.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// A body with status 200.
pub fn good(body: Value) -> Response<Body> {
    respond(&Answer::new(200, body))
}

/// Events, with comments in between so that nobody thinks the connection is dead. Dropping the answer drops `events`.
pub fn events<S>(events: S) -> Response<Body>
where
    S: Stream<Item = Event> + Send + 'static,
{
    use axum::response::IntoResponse;
    use futures_util::StreamExt;

    let events = events.map(Ok::<_, std::convert::Infallible>);
    let mut answer = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("")).into_response();
    // nginx holds answers back otherwise.
    answer.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    answer
}

/// A body that has to be a JSON object.
///
/// # Errors
/// [`Fault::Invalid`] about `body`.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    let wrong = |message: String| Fault::invalid("body", Rule::Body, message);
    match values::json(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("has to be a JSON object".into())),
        // The error tells line and column, and nothing of the content.
        Err(error) => Err(wrong(format!("is not JSON: {error}"))),
    }
}

/// A body as it came, for dialects that word what is wrong with it themselves.
///
/// # Errors
/// [`Fault::TooLarge`]; [`Fault::Invalid`] about `body` if it broke off.
pub fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Fault> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Fault::TooLarge("the body is larger than this server takes".into()),
        _ => Fault::invalid("body", Rule::Body, "did not come to its end"),
    })
}

/// The first value of a name in a query.
pub fn wish<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(this, _)| this == name).map(|(_, value)| value.as_str())
}

/// A header's text, if there is one that is text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A seed that people can write down and JavaScript does not round: 0 to 2³² − 1.
pub fn random_seed() -> u32 {
    u32::from_le_bytes(random())
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Linux, macOS and Windows do not fail here; a program that cannot get random bytes must not make up secrets.
    if getrandom::fill(&mut bytes).is_err() {
        std::process::abort();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_or_an_error_about_it() {
        assert_eq!(object(br#"{"a": 1}"#).unwrap()["a"], 1);
        let deep = "[".repeat(100_000);
        for wrong in [&b"[1]"[..], b"", b"{", b"\xff", deep.as_bytes(), br#"{"a": 1} x"#] {
            let Err(Fault::Invalid(problems)) = object(wrong) else { panic!("taken") };
            assert_eq!((problems[0].field.as_str(), &problems[0].rule), ("body", &Rule::Body));
        }
    }
}
