//! A body that ends with an error when it is larger than it may be, or when nothing of it comes for too long.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::Limited;
use tokio::time::{Instant, Sleep};

pub(super) struct Bounded {
    inner: Limited<Body>,
    silence: Duration,
    /// Runs while something is waited for.
    until: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    pub(super) fn new(body: Body, limit: u64, silence: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { inner: Limited::new(body, limit), silence, until: None }
    }
}

/// Nothing came for too long.
#[derive(Debug)]
pub(super) struct Silent;

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the rest of the body did not come")
    }
}

impl Error for Silent {}

impl axum::body::HttpBody for Bounded {
    type Data = Bytes;
    // As axum wants it, so that it finds `LengthLimitError` and answers 413.
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                self.until = None;
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let silence = self.silence;
                let until = self.until.get_or_insert_with(|| {
                    Box::pin(tokio::time::sleep_until(Instant::now() + silence.min(Duration::from_hours(24))))
                });
                match until.as_mut().poll(context) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(Silent.into()))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        axum::body::HttpBody::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        axum::body::HttpBody::size_hint(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, LengthLimitError};

    use super::*;

    #[tokio::test]
    async fn too_much_and_too_slow_are_errors() {
        let pieces =
            || stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"12345")), Ok(Bytes::from_static(b"678"))]);
        let long = Duration::from_mins(1);
        let whole = Bounded::new(Body::from_stream(pieces()), 8, long).collect().await.unwrap().to_bytes();
        assert_eq!(&whole[..], b"12345678");
        let error = Bounded::new(Body::from_stream(pieces()), 7, long).collect().await.unwrap_err();
        assert!(error.is::<LengthLimitError>(), "{error}");
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = Bounded::new(never, 7, Duration::from_millis(10)).collect().await.unwrap_err();
        assert!(error.is::<Silent>(), "{error}");
    }
}
