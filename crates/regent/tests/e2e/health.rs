//! A gRPC server of the standard health protocol (`grpc.health.v1.Health/Check`), for the scenario of gRPC probes: this
//! program, run in a container as `e2e serve-health PORT`.
//!
//! It serves the service whose name stands in the file [`SERVING`]; every other one it calls not serving.

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Bytes, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;

/// What this program is asked for on its command line to be the server.
pub const COMMAND: &str = "serve-health";
/// Names the one service that is well.
pub const SERVING: &str = "/tmp/serving";

/// Serves until the process ends.
pub fn serve(port: u16) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await.map_err(|e| e.to_string())?;
        loop {
            let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service_fn(check)));
        }
    })
}

/// Answers `HealthCheckRequest { service = 1 }` with `HealthCheckResponse { status = 1 }`: 1 is SERVING, 2 is NOT_SERVING.
async fn check(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    // Five bytes of framing, then the tag and the length of the name.
    let service = asked.get(7..).unwrap_or_default();
    let serving = std::fs::read_to_string(SERVING).is_ok_and(|name| name.trim().as_bytes() == service);
    let message = Bytes::from_static(if serving { &[0, 0, 0, 0, 2, 8, 1] } else { &[0, 0, 0, 0, 2, 8, 2] });
    let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))]);
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.map_frame(|frame: Frame<Bytes>| frame).boxed());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    Ok(response)
}
