//! Answers over WebSocket: who cannot read a streamed body (a browser) asks for the events of a watch or the lines of a log as messages.
//!
//! A GET that asks for the upgrade is answered as any other; only then, and only if that went well, the connection is switched and the
//! answer's body goes out in messages. Errors are plain HTTP answers.
//!
//! What must stay true: nothing that a client sends here is kept, beyond the 125 bytes of one ping.

use crate::{Body, context::Server};
use api::Status;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// What the protocol mixes into a key to show that it was understood.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a control message.
const CONTROL_BYTES_MAX: u64 = 125;
/// Pings that wait for their answer; further ones wait to be read.
const PONGS_MAX: usize = 4;
/// What is read of a client's message at a time, to be thrown away.
const DISCARDED_BYTES: usize = 4096;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// How a body becomes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each line is a text.
    Lines,
    /// Bytes, as they come. Kubernetes begins with an empty message.
    Bytes,
    /// The same as texts.
    Base64,
}

/// The protocols in which streams of bytes can be read.
pub const READER_PROTOCOLS: &[(&str, Framing)] =
    &[("", Framing::Bytes), ("binary.k8s.io", Framing::Bytes), ("base64.binary.k8s.io", Framing::Base64)];

/// A request that asks for an upgrade.
pub struct Asked {
    client: OnUpgrade,
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
    framing: Framing,
}

/// Whether the request asks for an upgrade. `protocols` are those that are spoken; without any, the one that is offered is.
pub fn asked(request: &mut Request<Body>, protocols: &[(&str, Framing)]) -> Result<Option<Asked>, Status> {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    if request.method() != Method::GET || !text(header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Ok(None);
    }
    let key = text(header::SEC_WEBSOCKET_KEY);
    if key.is_empty() || text(header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err(Status::bad_request("unable to upgrade: Sec-WebSocket-Key and Sec-WebSocket-Version 13 are needed"));
    }
    let offered: Vec<&str> = text(header::SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let chosen = match (protocols, offered.as_slice()) {
        ([], [one]) => Some((*one, Framing::Lines)),
        ([], _) => Some(("", Framing::Lines)),
        (known, []) => known.iter().find(|(name, _)| name.is_empty()).copied(),
        (known, offered) => offered.iter().find_map(|name| known.iter().find(|(known, _)| known == name)).copied(),
    };
    let Some((protocol, framing)) = chosen else {
        return Err(Status::bad_request(format!("unable to upgrade: none of the protocols [{}] is spoken here", offered.join(" "))));
    };
    let accept = HeaderValue::try_from(accept(key)).map_err(Status::internal)?;
    let protocol = Some(protocol).filter(|protocol| !protocol.is_empty()).and_then(|protocol| HeaderValue::try_from(protocol).ok());
    Ok(Some(Asked { client: hyper::upgrade::on(request), accept, protocol, framing }))
}

/// What shows that a key was understood.
fn accept(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    STANDARD.encode(digest)
}

/// Switches the connection and sends the answer's body as messages, unless the answer is an error.
pub fn answer(server: &Server, asked: Option<Asked>, response: Response<Body>) -> Response<Body> {
    let Some(asked) = asked.filter(|_| response.status() == StatusCode::OK) else { return response };
    let shutdown = server.config.shutdown.clone();
    tokio::spawn(async move {
        let sent = async {
            let client = asked.client.await.map_err(io::Error::other)?;
            send(TokioIo::new(client), response.into_body(), asked.framing).await
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            sent = sent => if let Err(error) = sent {
                tracing::debug!(%error, "a WebSocket ended");
            },
        }
    });
    let mut switched = Response::new(crate::body::empty());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = switched.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, asked.accept);
    if let Some(protocol) = asked.protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    switched
}

/// Sends a body as messages, until it or the client ends.
async fn send(client: impl AsyncRead + AsyncWrite, body: Body, framing: Framing) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(client);
    let (pings, pongs) = mpsc::channel(PONGS_MAX);
    let ended = tokio::select! {
        ended = listen(&mut from, pings) => ended,
        ended = write(&mut to, body, framing, pongs) => ended,
    };
    if ended.is_ok() {
        to.write_all(&message(CLOSE, b"")).await?;
        to.shutdown().await?;
    }
    ended
}

async fn write(to: &mut (impl AsyncWrite + Unpin), mut body: Body, framing: Framing, mut pongs: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut line = BytesMut::new();
    if framing != Framing::Lines {
        to.write_all(&message(BINARY, b"")).await?;
    }
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            Some(ping) = pongs.recv() => {
                to.write_all(&message(PONG, &ping)).await?;
                continue;
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        match framing {
            Framing::Bytes => to.write_all(&message(BINARY, &data)).await?,
            Framing::Base64 => to.write_all(&message(TEXT, STANDARD.encode(&data).as_bytes())).await?,
            Framing::Lines => {
                // A line may come in several pieces, and several lines in one.
                let mut rest: &[u8] = &data;
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    line.extend_from_slice(&rest[..=end]);
                    to.write_all(&message(TEXT, &line)).await?;
                    line.clear();
                    rest = &rest[end + 1..];
                }
                line.extend_from_slice(rest);
            }
        }
        to.flush().await?;
    }
}

/// Reads what the client says until it ends: pings are passed on, all else is nothing to us.
async fn listen(from: &mut (impl AsyncRead + Unpin), pings: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let mut discarded = vec![0; DISCARDED_BYTES];
    loop {
        let mut head = [0; 2];
        if from.read_exact(&mut head).await.is_err() {
            return Ok(());
        }
        let (kind, is_masked) = (head[0] & 0x0f, head[1] & 0x80 != 0);
        let mut length = match head[1] & 0x7f {
            126 => u64::from(from.read_u16().await?),
            127 => from.read_u64().await?,
            length => u64::from(length),
        };
        let mut mask = [0; 4];
        if is_masked {
            from.read_exact(&mut mask).await?;
        }
        if kind >= CLOSE && length > CONTROL_BYTES_MAX {
            return Err(io::Error::other("a control message is too long"));
        }
        match kind {
            CLOSE => return Ok(()),
            PING => {
                let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
                from.read_exact(&mut payload).await?;
                payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
                if pings.send(payload).await.is_err() {
                    return Ok(());
                }
            }
            _ => {
                while length > 0 {
                    let some = usize::try_from(length).unwrap_or(usize::MAX).min(discarded.len());
                    from.read_exact(&mut discarded[..some]).await?;
                    length -= some as u64;
                }
            }
        }
    }
}

/// One whole message of the server's.
fn message(kind: u8, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 10);
    bytes.put_u8(0x80 | kind);
    match payload.len() {
        length @ 0..126 => bytes.put_u8(length as u8),
        length @ 126..65_536 => {
            bytes.put_u8(126);
            bytes.put_u16(length as u16);
        }
        length => {
            bytes.put_u8(127);
            bytes.put_u64(length as u64);
        }
    }
    bytes.put_slice(payload);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{BoxError, stream};

    fn request(protocols: &str) -> Request<Body> {
        let request = Request::get("/").header("upgrade", "WebSocket").header("connection", "Upgrade");
        let request = request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").header("sec-websocket-version", "13");
        let request = if protocols.is_empty() { request } else { request.header("sec-websocket-protocol", protocols) };
        request.body(crate::body::empty()).unwrap()
    }

    #[test]
    fn an_upgrade_is_accepted_in_a_protocol_that_is_spoken() {
        let check = |offered: &str, known: &[(&str, Framing)]| {
            let asked = asked(&mut request(offered), known).map_err(|status| status.code)?.expect("it asks");
            assert_eq!(asked.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455");
            Ok::<_, u16>((asked.protocol.map(|name| name.to_str().unwrap().to_string()), asked.framing))
        };
        assert_eq!(check("", READER_PROTOCOLS), Ok((None, Framing::Bytes)));
        assert_eq!(check("x, binary.k8s.io", READER_PROTOCOLS), Ok((Some("binary.k8s.io".into()), Framing::Bytes)));
        assert_eq!(check("base64.binary.k8s.io", READER_PROTOCOLS), Ok((Some("base64.binary.k8s.io".into()), Framing::Base64)));
        assert_eq!(check("x", READER_PROTOCOLS), Err(400));
        assert_eq!(check("x", &[]), Ok((Some("x".into()), Framing::Lines)));
        let mut plain = Request::get("/").body(crate::body::empty()).unwrap();
        assert!(asked(&mut plain, READER_PROTOCOLS).unwrap().is_none());
    }

    #[test]
    fn lengths_are_written_as_short_as_they_go() {
        assert_eq!(message(TEXT, b"ab")[..], [0x81, 2, b'a', b'b']);
        assert_eq!(message(BINARY, &[7; 126])[..4], [0x82, 126, 0, 126]);
        assert_eq!(message(BINARY, &[7; 65_536])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[tokio::test]
    async fn each_line_is_a_message_and_pings_are_answered() {
        let (lines, pieces) = mpsc::channel::<&'static str>(4);
        let pieces = futures::stream::unfold(pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (Ok::<_, BoxError>(Bytes::from_static(piece.as_bytes())), pieces))
        });
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let sending = tokio::spawn(send(ours, stream(pieces), Framing::Lines));
        for piece in ["one\ntw", "o\n"] {
            lines.send(piece).await.unwrap();
        }
        let mut read = vec![0; 6 + 6];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [&[0x81, 4][..], b"one\n", &[0x81, 4], b"two\n"].concat());
        // A text that nobody asked for, then a ping, both masked.
        theirs.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'x', 0x89, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]).await.unwrap();
        let mut read = vec![0; 4];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [0x8a, 2, b'h', b'i']);
        theirs.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        sending.await.unwrap().unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [0x88, 0], "it says good-bye");
    }

    #[tokio::test]
    async fn bytes_begin_with_an_empty_message_and_end_with_the_body() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        send(ours, crate::body::full("log\n"), Framing::Bytes).await.unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [&[0x82, 0, 0x82, 4][..], b"log\n", &[0x88, 0]].concat());
    }
}
