//! HTTP bodies: one boxed type for requests and responses, and the ways to make and to read one.

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep};

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and response here, whatever transport it came from.
///
/// The lock is never contended: it is there to make the type `Sync`, so that a request can be borrowed across threads.
pub struct Body(Mutex<UnsyncBoxBody<Bytes, BoxError>>);

impl Body {
    pub fn new<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Body(Mutex::new(body.map_err(Into::into).boxed_unsync()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(self.get_mut().0.get_mut()).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Body::new(Full::new(bytes.into()))
}

/// A body without content.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body made piece by piece.
pub fn stream(chunks: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    use futures::StreamExt;
    Body::new(http_body_util::StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))
}

/// The same body for as long as a sender may take: at the deadline it fails, wherever it is waited for.
pub fn until(body: Body, deadline: Instant) -> Body {
    Body(Mutex::new(Until { body, deadline, alarm: None }.boxed_unsync()))
}

/// A body that fails at its deadline. The alarm is set when something is waited for at all.
struct Until {
    body: Body,
    deadline: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The sender of a body took too long.
#[derive(Debug, thiserror::Error)]
#[error("the body did not come in time")]
struct TooSlow;

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let deadline = this.deadline;
        let alarm = this.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        alarm.as_mut().poll(cx).map(|()| Some(Err(TooSlow.into())))
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not come in time")]
    TooSlow,
    #[error("the connection broke while the body was read: {0}")]
    Broken(BoxError),
}

impl ReadError {
    fn of(error: BoxError) -> ReadError {
        if error.is::<TooSlow>() { ReadError::TooSlow } else { ReadError::Broken(error) }
    }
}

/// Reads a whole body of at most `limit_bytes`.
pub async fn read(mut body: Body, limit_bytes: usize) -> Result<Bytes, ReadError> {
    let mut first = None;
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadError::of)?.into_data() else { continue };
        let held = joined.len() + first.as_ref().map_or(0, Bytes::len);
        if held + data.len() > limit_bytes {
            return Err(ReadError::TooLarge(limit_bytes));
        }
        if first.is_none() && joined.is_empty() {
            first = Some(data);
            continue;
        }
        if let Some(first) = first.take() {
            joined.extend_from_slice(&first);
        }
        joined.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| joined.freeze()))
}
