//! A way to an API behind a Unix socket on this machine: the node agent's own, which needs no server.

use std::path::Path;

use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use tokio::net::UnixStream;
use tower::ServiceBuilder;

/// A client of the API at this socket. Nothing is connected yet.
pub fn client(path: &Path) -> kube::Client {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    });
    let connections: Client<_, Body> = Client::builder(TokioExecutor::new()).build(connector);
    // The address is of no meaning; HTTP wants one.
    let base = http::Uri::from_static("http://node");
    let service = ServiceBuilder::new().layer(kube::client::middleware::BaseUriLayer::new(base)).map_err(tower::BoxError::from).service(connections);
    kube::Client::new(service, "default")
}
