//! Answers that take their time: pictures of a 12-billion-parameter model on a processor take longer than most clients wait.
//!
//! Clients give up when they hear nothing for a while. So an answer that is not there after [`QUIET`] begins with status 200 and a
//! space now and then, which JSON allows before a value; what follows is the answer. An error that comes so late has status 200, too.

use std::{convert::Infallible, time::Duration};

use crate::dialect::Answer;
use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

/// How long an answer is waited for with nothing said. Below the shortest patience among clients that were seen: 60 s.
const QUIET: Duration = Duration::from_secs(50);

/// Between two spaces.
const PAUSE: Duration = Duration::from_secs(10);

/// Waits for `answer`, which is dropped when the caller goes away.
pub async fn patient<F>(answer: F) -> Response<Body>
where
    F: Future<Output = Answer> + Send + 'static,
{
    patient_for(QUIET, answer).await
}

/// The same with another time for which nothing is said; headers of an answer that comes after it are lost.
pub async fn patient_for<F>(quiet: Duration, answer: F) -> Response<Body>
where
    F: Future<Output = Answer> + Send + 'static,
{
    within(quiet, PAUSE, answer).await
}

async fn within<F>(quiet: Duration, pause: Duration, answer: F) -> Response<Body>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut answer = Box::pin(answer);
    if let Ok(answer) = tokio::time::timeout(quiet, &mut answer).await {
        return super::respond(&answer);
    }
    let end = stream::once(answer).map(|answer| Bytes::from(answer.body.to_string()));
    let mut response = Response::new(Body::from_stream(spaced(pause, end).map(Ok::<_, Infallible>)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Spaces until `end` has its one item.
fn spaced(
    pause: Duration,
    end: impl Stream<Item = Bytes> + Send + Unpin + 'static,
) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(Some(end), move |end| async move {
        let mut end = end?;
        match tokio::time::timeout(pause, end.next()).await {
            Err(_) => Some((Bytes::from_static(b" "), Some(end))),
            Ok(item) => item.map(|item| (item, None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn answered_after(millis: u64) -> (u16, Bytes) {
        let answer = async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Answer::new(418, json!({"a": 1}))
        };
        let response = within(Duration::from_millis(40), Duration::from_millis(10), answer).await;
        (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_late_answer_is_the_same_json() {
        assert_eq!(answered_after(0).await, (418, Bytes::from_static(br#"{"a":1}"#)));
        let (status, body) = answered_after(100).await;
        assert_eq!((status, body[0]), (200, b' '));
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"a": 1}));
    }
}
