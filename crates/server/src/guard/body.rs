//! A body that ends with an error when it is larger than it may be, when nothing of it comes for too long, or when all of it comes
//! too slowly; and one that holds on to something until it is read.

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

/// Bytes a second that have to come on the whole, after a beginning of twice the silence: half of what a slow uplink has. A byte
/// now and then is no silence, and would hold room for good.
const SLOWEST: u64 = 32 * 1024;

pub(super) struct Bounded {
    inner: Limited<Body>,
    silence: Duration,
    /// When it was asked for, and how many bytes came since.
    began: Option<Instant>,
    came: u64,
    /// Runs while something is waited for.
    until: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    pub(super) fn new(body: Body, limit: u64, silence: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let silence = silence.min(Duration::from_hours(24));
        Self { inner: Limited::new(body, limit), silence, began: None, came: 0, until: None }
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
        let began = *self.began.get_or_insert_with(Instant::now);
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    self.came += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                self.until = None;
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let (silence, came) = (self.silence, Duration::from_millis(self.came * 1000 / SLOWEST));
                let until = self.until.get_or_insert_with(|| {
                    let end = (began + 2 * silence + came).min(Instant::now() + silence);
                    Box::pin(tokio::time::sleep_until(end))
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

/// A body, and what lasts until it is read or dropped.
pub(super) struct Holding<T> {
    inner: Body,
    _held: T,
}

impl<T: Send + Unpin + 'static> Holding<T> {
    pub(super) fn body(inner: Body, held: T) -> Body {
        Body::new(Self { inner, _held: held })
    }
}

impl<T: Send + Unpin + 'static> axum::body::HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
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

    #[tokio::test]
    async fn a_byte_now_and_then_is_too_slow_and_a_slow_uplink_is_not() {
        let piece = |bytes: usize, pause: u64| {
            move |left: u32| async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let piece = Bytes::from(vec![b'a'; bytes]);
                (left > 0).then(|| (Ok::<_, std::io::Error>(piece), left - 1))
            }
        };
        let silence = Duration::from_millis(200);
        let dripping = Body::from_stream(Box::pin(stream::unfold(100, piece(1, 20))));
        let began = Instant::now();
        let error = Bounded::new(dripping, 1000, silence).collect().await.unwrap_err();
        assert!(error.is::<Silent>() && began.elapsed() < Duration::from_millis(1500), "{error} {:?}", began.elapsed());
        // 64 KiB a second, for longer than a body may take that brings nothing.
        let slow = Body::from_stream(Box::pin(stream::unfold(16, piece(3277, 50))));
        let whole = Bounded::new(slow, 1 << 20, silence).collect().await.unwrap().to_bytes();
        assert_eq!(whole.len(), 16 * 3277);
    }
}
