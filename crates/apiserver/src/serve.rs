//! Serving: TLS with optional client certificates, HTTP/1.1 and HTTP/2, upgrades, graceful shutdown; and the same server
//! without any of it, as a tower service for components in this process.

use crate::{
    Body, BoxError, Identity, Server, User,
    audit::PeerAddress,
    encode::respond,
    gathered::outlet,
    streams::{Streams, Turns},
};
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, Version};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request, and to ask anything at all once it is connected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(32);
/// How long running requests get when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1000;
/// How often an HTTP/2 client is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

impl Server {
    /// Serves until `shutdown`, then lets running requests end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: ServerConfig, shutdown: CancellationToken) -> Result<(), crate::Error> {
        let mut tls = tls;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let place = tokio::select! {
                () = shutdown.cancelled() => break,
                place = places.clone().acquire_owned() => place,
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections.spawn(async move {
                        connection(server, acceptor, stream, peer.ip(), shutdown).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or the client left: neither is the end of the listener.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::info!(open = connections.len(), "connections were cut at the end");
        }
        if let Some(audit) = &self.audit {
            audit.flush().await;
        }
        Ok(())
    }

    /// The server for components in this process, acting as `user`.
    pub fn local_service(self: &Arc<Self>, user: User) -> LocalService {
        LocalService { server: self.clone(), user: Arc::new(user) }
    }
}

async fn connection(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream, peer: IpAddr, shutdown: CancellationToken) {
    // Small answers should not wait for more bytes; a socket that refuses this still works.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates().filter(|chain| !chain.is_empty());
    let identity =
        Identity::Peer(certificates.map(|chain| Arc::new(chain.iter().map(|certificate| CertificateDer::into_owned(certificate.clone())).collect())));
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let streams = Streams::default();
    let (outlet, inlet) = outlet(stream, is_http2);
    let mut turns = Turns::new(&streams, outlet);
    let placing = streams.clone();
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        asks.store(true, Relaxed);
        if request.version() == Version::HTTP_2 {
            request.extensions_mut().insert(placing.place());
        }
        if server.audit.is_some() {
            request.extensions_mut().insert(PeerAddress(peer));
        }
        let (server, identity) = (server.clone(), identity.clone());
        async move { Ok::<_, Infallible>(server.handle(request.map(Body::new), identity).await) }
    });
    let mut builder = auto::Builder::new(streams);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .adaptive_window(true);
    let running = builder.serve_connection_with_upgrades(TokioIo::new(inlet), service);
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = turns.run(running.as_mut()) => ended,
        () = silence(&asked) => return tracing::debug!("nothing was asked on a connection"),
        () = shutdown.cancelled() => {
            running.as_mut().graceful_shutdown();
            turns.run(running.as_mut()).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Ends when nothing has been asked on a connection in good time, and else never. Before hyper knows which HTTP it is, it waits for ever.
async fn silence(asked: &AtomicBool) {
    tokio::time::sleep(HEAD_TIMEOUT).await;
    if asked.load(Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// The server as a tower service without a network between.
#[derive(Clone)]
pub struct LocalService {
    server: Arc<Server>,
    user: Arc<User>,
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        Box::pin(async move {
            if server.config.shutdown.is_cancelled() {
                return Ok(respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", crate::body::full("shutting down")));
            }
            Ok(server.handle(request.map(Body::new), Identity::Local(user)).await)
        })
    }
}
