//! HTTP bodies: one boxed type for requests and responses, and the ways to make and to read one.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every request and response here, whatever transport it came from.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without content.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body made piece by piece.
pub fn stream(chunks: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    use futures::StreamExt;
    http_body_util::StreamBody::new(chunks.map(|chunk| chunk.map(http_body::Frame::data))).boxed_unsync()
}

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the connection broke while the body was read: {0}")]
    Broken(BoxError),
}

/// Reads a whole body of at most `limit_bytes`.
pub async fn read(mut body: Body, limit_bytes: usize) -> Result<Bytes, ReadError> {
    let mut first = None;
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else { continue };
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
