//! Many small writes made one: what stands between HTTP and TLS.
//!
//! HTTP/2 writes frame by frame, and a TLS stream makes of each write a record and of each record a system call. Here frames
//! are gathered until there is enough or until HTTP has no more; then they go out as full records, many to one call. A list of
//! 24 MB is a few hundred calls instead of thousands; a change that two hundred watchers of one connection wait for is a handful.
//!
//! HTTP/2 flushes after every frame of data. So its end of the stream only says that it did, and whoever runs the connection sends
//! what is gathered when its turn is over ([`Outlet::poll_turn`]).
//!
//! What must stay true: an idle connection holds no buffer.

use bytes::BufMut;
use parking_lot::Mutex;
use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered before it goes out: nearly four full TLS records, which TCP takes in one piece. With their headers they are just
/// less than it gives the network at once, be that 45 segments of an Ethernet or one of the loopback device (65,483 bytes); a
/// few bytes more would be a packet of their own, each time. Twice and four times as much was not found to cost less.
const GATHERED_BYTES_MAX: usize = 64 * 1024 - 512;
/// So much room there is at first, which is all that most answers need.
const GATHERED_BYTES_FIRST: usize = 8 * 1024;
/// What stands unused before the first byte. TLS copies each record to a place five bytes behind the beginning of a page; from
/// the beginning of another page the C library's copy is ten times slower on some processors than from the middle of one.
const OFFSET_BYTES: usize = 2048;
/// A buffer for as much as is ever gathered.
const BUFFER_BYTES: usize = OFFSET_BYTES + GATHERED_BYTES_MAX;
/// Bytes are copied in pieces of this size, below which the C library does not use the instruction that is slow there.
const COPIED_BYTES_MAX: usize = 2048;

/// Appends bytes; see [`COPIED_BYTES_MAX`].
pub fn append(to: &mut impl BufMut, bytes: &[u8]) {
    bytes.chunks(COPIED_BYTES_MAX).for_each(|piece| to.put_slice(piece));
}

thread_local! {
    /// The large buffer that was given back last: its memory is in the processor's cache.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream that gathers what is written to it until it is flushed.
pub struct Gathered<S> {
    stream: S,
    /// Empty, or [`OFFSET_BYTES`] and what is gathered.
    bytes: Vec<u8>,
    /// How much of it has gone out.
    sent: usize,
    /// Whether the stream below may still hold some of what it has taken, as TLS does when the socket is full.
    unflushed: bool,
}

impl<S> Gathered<S> {
    pub fn new(stream: S) -> Gathered<S> {
        Gathered { stream, bytes: Vec::new(), sent: 0, unflushed: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// How much is gathered.
    fn length(&self) -> usize {
        self.bytes.len().saturating_sub(OFFSET_BYTES)
    }

    /// Whether anything written has surely not gone out.
    fn is_pending(&self) -> bool {
        self.unflushed || self.length() > 0
    }

    /// Gives the stream all that is gathered.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.length() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.bytes[OFFSET_BYTES + self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
            self.unflushed = true;
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
            self.bytes = SPARE.take();
            self.bytes.reserve_exact(OFFSET_BYTES + GATHERED_BYTES_FIRST.max(bytes.len()));
            self.bytes.resize(OFFSET_BYTES, 0);
        } else if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            // What does not fit into little room is the beginning of much.
            self.bytes.reserve_exact(BUFFER_BYTES - self.bytes.len());
        }
        append(&mut self.bytes, bytes);
    }

    /// Sends all, and holds no buffer then.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() >= BUFFER_BYTES {
            bytes.clear();
            SPARE.set(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
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
        ready!(self.poll_empty(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A gathered stream of which one end is HTTP's and the other is of whoever runs the connection. Both are in one task.
pub struct Outlet<S> {
    shared: Arc<Mutex<Gathered<S>>>,
    /// Whether the other end has had a turn since something was gathered.
    waited: bool,
}

/// HTTP's end of an [`Outlet`].
pub struct Inlet<S> {
    shared: Arc<Mutex<Gathered<S>>>,
    /// Whether a flush may wait for the end of the turn. HTTP/2 flushes frame by frame.
    by_turns: bool,
}

/// The two ends. `by_turns` for what is HTTP/2 from its first byte on.
pub fn outlet<S>(stream: S, by_turns: bool) -> (Outlet<S>, Inlet<S>) {
    let shared = Arc::new(Mutex::new(Gathered::new(stream)));
    (Outlet { shared: shared.clone(), waited: false }, Inlet { shared, by_turns })
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// At the end of a turn: sends what is gathered, now or, if that can wait, at the end of the next. The next is asked for, so
    /// that others who are ready to answer on the same connection come first.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>, can_wait: bool) -> Poll<io::Result<()>> {
        let mut gathered = self.shared.lock();
        if !gathered.is_pending() {
            return Poll::Ready(Ok(()));
        }
        if can_wait && !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut *gathered).poll_flush(cx))?;
        self.waited = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inlet<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.shared.lock()).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inlet<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.shared.lock()).poll_write(cx, bytes)
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.shared.lock()).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.by_turns { Poll::Ready(Ok(())) } else { Pin::new(&mut *self.shared.lock()).poll_flush(cx) }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.shared.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::{future::poll_fn, pin::pin};
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
    async fn frames_that_are_flushed_one_by_one_go_out_at_the_end_of_a_turn() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (mut outlet, mut inlet) = outlet(near, true);
        let mut turn = async |can_wait| poll!(poll_fn(|cx| outlet.poll_turn(cx, can_wait))).map(Result::unwrap);
        let mut arrived = [0; 20];
        for (can_wait, turns) in [(true, 2), (false, 1)] {
            for frame in [b"one", b"two", b"six"] {
                inlet.write_all(frame).await.unwrap();
                inlet.flush().await.unwrap();
            }
            for left in (0..turns).rev() {
                assert!(poll!(pin!(far.read(&mut arrived))).is_pending());
                assert_eq!(turn(can_wait).await.is_ready(), left == 0);
            }
            assert_eq!(far.read(&mut arrived).await.unwrap(), 9);
            assert!(arrived.starts_with(b"onetwosix") && inlet.shared.lock().bytes.capacity() == 0);
            assert!(turn(can_wait).await.is_ready(), "nothing is left");
        }
    }

    /// As TLS does: it takes what it is given, and what the socket does not take waits for a flush.
    #[tokio::test]
    async fn what_the_stream_below_holds_back_goes_out_in_later_turns() {
        const PIECE_BYTES: usize = 16_000;
        let (near, mut far) = tokio::io::duplex(PIECE_BYTES);
        let (mut outlet, mut inlet) = outlet(tokio::io::BufWriter::with_capacity(3 * GATHERED_BYTES_MAX, near), true);
        let mut turn = async || poll!(poll_fn(|cx| outlet.poll_turn(cx, false))).map(Result::unwrap);
        for length in [20_000, GATHERED_BYTES_MAX] {
            inlet.write_all(&vec![7; length]).await.unwrap();
            let (mut arrived, mut piece) = (0, [0; PIECE_BYTES]);
            while turn().await.is_pending() {
                arrived += far.read(&mut piece).await.unwrap();
            }
            while let Poll::Ready(more) = poll!(pin!(far.read(&mut piece))) {
                arrived += more.unwrap();
            }
            assert_eq!(arrived, length);
        }
    }
}
