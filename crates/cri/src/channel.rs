//! The connection: one lazy HTTP/2 channel over the runtime's Unix socket, remade by itself when the runtime restarts.

use crate::Error;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use std::{future::Future, path::PathBuf, time::Duration};
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

/// The largest answer that is read: a node with many containers lists a lot.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A client of one container runtime. Cheap to clone; all clones share the connection.
#[derive(Clone)]
pub struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

impl Client {
    /// A client for `endpoint`, a path or `unix://` address. Nothing is connected yet: the first call does that, and
    /// fails with [`Error::Unavailable`] as long as the runtime is not there.
    pub fn new(endpoint: &str) -> Client {
        let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }));
        Client {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            images: ImageServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX),
        }
    }
}

/// Runs one call under its deadline and sorts its failure.
pub(crate) async fn bounded<T>(
    call: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(call, status)),
        Err(_) => Err(Error::Timeout { call, message: format!("no answer within {} s", deadline.as_secs()) }),
    }
}
