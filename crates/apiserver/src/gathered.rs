//! Many small writes made one: what stands between HTTP and TLS.
//!
//! HTTP/2 writes frame by frame, and a TLS stream makes of each write a record and of each record a system call. Here frames
//! are gathered until there is enough or until HTTP says that it has no more; then they go out as full records, many to one
//! call. A list of 24 MB is a few hundred calls instead of thousands; a change that two hundred watchers of one connection wait
//! for is a handful.
//!
//! HTTP/2 flushes after every frame of data, and once more at the end of each of its turns. It is told each time that it is
//! done, and gets one turn more: only that one's flush sends what is gathered ([`Gathered::of_http2`]).
//!
//! What must stay true: an idle connection holds no buffer.

use bytes::BufMut;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered before it goes out: four full TLS records. Twice and four times as much was not found to cost less.
const GATHERED_BYTES_MAX: usize = 64 * 1024;
/// So much room there is at first, which is all that most answers need.
const GATHERED_BYTES_FIRST: usize = 8 * 1024;
/// What stands unused before the first byte. TLS copies each record to a place five bytes behind the beginning of a page; from
/// the beginning of another page the C library's copy is ten times slower on some processors than from the middle of one.
const OFFSET_BYTES: usize = 2048;
/// Bytes are copied in pieces of this size, below which the C library does not use the instruction that is slow there.
const COPIED_BYTES_MAX: usize = 2048;

/// Appends bytes; see [`COPIED_BYTES_MAX`].
pub fn append(to: &mut impl BufMut, bytes: &[u8]) {
    bytes.chunks(COPIED_BYTES_MAX).for_each(|piece| to.put_slice(piece));
}

/// A stream that gathers what is written to it until it is flushed.
pub struct Gathered<S> {
    stream: S,
    /// Empty, or [`OFFSET_BYTES`] and what is gathered.
    bytes: Vec<u8>,
    /// How much of it has gone out.
    sent: usize,
    /// Whether others have had their turn to add to what is to be flushed.
    waited: bool,
    /// Whether whoever writes here first reads and in the end flushes in each of its turns, whatever an earlier flush has said.
    flushes_again: bool,
    /// Whether that turn has come.
    again: bool,
}

impl<S> Gathered<S> {
    pub fn new(stream: S) -> Gathered<S> {
        Gathered { stream, bytes: Vec::new(), sent: 0, waited: false, flushes_again: false, again: false }
    }

    /// For a connection that is HTTP/2 from its first byte on.
    pub fn of_http2(stream: S) -> Gathered<S> {
        Gathered { flushes_again: true, ..Gathered::new(stream) }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// How much is gathered.
    fn length(&self) -> usize {
        self.bytes.len().saturating_sub(OFFSET_BYTES)
    }

    /// Sends all that is gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.length() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.bytes[OFFSET_BYTES + self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.bytes.truncate(OFFSET_BYTES);
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes room; more is taken only when all before has gone out.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.length() >= GATHERED_BYTES_MAX {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(GATHERED_BYTES_MAX - self.length()))
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(OFFSET_BYTES + GATHERED_BYTES_FIRST.max(bytes.len()));
            self.bytes.resize(OFFSET_BYTES, 0);
        } else if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            // What does not fit into little room is the beginning of much.
            self.bytes.reserve_exact(OFFSET_BYTES + GATHERED_BYTES_MAX - self.bytes.len());
        }
        append(&mut self.bytes, bytes);
    }

    /// An idle connection holds no buffer.
    fn give_back(&mut self) {
        self.bytes = Vec::new();
        self.waited = false;
        self.again = false;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.again = self.waited;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx))?;
        let taken = bytes.len().min(room);
        self.take(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx))?;
        let mut left = room;
        for slice in slices {
            let taken = slice.len().min(left);
            self.take(&slice[..taken]);
            left -= taken;
            if left == 0 {
                break;
            }
        }
        Poll::Ready(Ok(room - left))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever is ready to write to the same connection comes first: one change has many watchers.
        let is_time = if self.flushes_again { self.again } else { self.waited };
        if !is_time && self.length() > 0 && self.length() < GATHERED_BYTES_MAX {
            self.waited = true;
            cx.waker().wake_by_ref();
            return if self.flushes_again { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        ready!(self.poll_send(cx))?;
        self.give_back();
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.give_back();
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn everything_arrives_in_order_and_nothing_is_held_after_a_flush() {
        let (near, mut far) = tokio::io::duplex(1000);
        let reader = tokio::spawn(async move {
            let mut all = vec![];
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut gathered = Gathered::new(near);
        let mut expected = vec![];
        for i in 0..3000u32 {
            let (head, body) = (i.to_be_bytes(), vec![i as u8; (i % 97) as usize]);
            for part in [&head[..], &body[..]] {
                gathered.write_all(part).await.unwrap();
                expected.extend_from_slice(part);
            }
        }
        let slices = [IoSlice::new(b"vec"), IoSlice::new(b""), IoSlice::new(b"tored")];
        assert_eq!(gathered.write_vectored(&slices).await.unwrap(), 8);
        expected.extend_from_slice(b"vectored");
        gathered.flush().await.unwrap();
        assert_eq!(gathered.bytes.capacity(), 0);
        let large = vec![7; 3 * GATHERED_BYTES_MAX];
        gathered.write_all(&large).await.unwrap();
        expected.extend_from_slice(&large);
        assert!(gathered.length() <= GATHERED_BYTES_MAX);
        gathered.shutdown().await.unwrap();
        drop(gathered);
        assert!(reader.await.unwrap() == expected);
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_go_out_together() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut gathered = Gathered::of_http2(near);
        for frame in [b"one", b"two", b"six"] {
            gathered.write_all(frame).await.unwrap();
            gathered.flush().await.unwrap();
        }
        let mut arrived = [0; 20];
        assert!(futures::poll!(std::pin::pin!(far.read(&mut arrived))).is_pending(), "the next turn sends");
        assert!(futures::poll!(std::pin::pin!(gathered.read(&mut arrived))).is_pending());
        gathered.flush().await.unwrap();
        assert_eq!(far.read(&mut arrived).await.unwrap(), 9);
        assert!(arrived.starts_with(b"onetwosix") && gathered.bytes.capacity() == 0);
    }
}
