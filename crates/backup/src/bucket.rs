//! Copies of snapshots in an S3-compatible bucket (MinIO, Ceph, Garage, AWS).
//!
//! Requests are signed in their URL (`rusty-s3`), so a body of any length streams. The bucket is addressed by path
//! (`ENDPOINT/BUCKET/KEY`), which every implementation understands.

use crate::{Error, Result, at};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use rusty_s3::{Bucket as Address, Credentials, S3Action, UrlStyle, actions::ListObjectsV2};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use url::Url;

/// The longest object that one request may carry, by S3's own rules.
const OBJECT_BYTES_MAX: u64 = 5 << 30;
/// An answer that is not an object: a list, an error.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long a signature is good.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(3600);
/// How long the bucket may take to be reached, and to answer once it has everything.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a whole transfer may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Objects that are listed in all.
const OBJECTS_MAX: usize = 100_000;
/// Attempts of a request that did not come through, and the pause before the next, doubled each time.
const ATTEMPTS: u32 = 4;
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Where a bucket is and who we are to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://s3.example.com`, `http://10.0.0.9:9000`.
    pub endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    /// Put before every name: `cluster-a/`.
    pub prefix: String,
    /// The authorities that the endpoint's certificate may be signed by; the machine's own list if `None`.
    pub authorities: Option<PathBuf>,
}

/// Where Debian keeps the authorities that a machine trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A bucket.
pub struct Bucket {
    address: Address,
    credentials: Credentials,
    prefix: String,
    tls: Option<tokio_rustls::TlsConnector>,
}

type Body = BoxBody<Bytes, std::io::Error>;

fn failed(what: &str) -> impl Fn(String) -> Error + '_ {
    move |detail| Error::Bucket { what: what.to_string(), detail }
}

/// An attempt that failed: whether another may do better.
struct Failure {
    again: bool,
    error: Error,
}

impl Bucket {
    pub fn new(config: &Config) -> Result<Bucket> {
        let wrong = failed("cannot be used");
        let endpoint: Url = config.endpoint.parse().map_err(|e| wrong(format!("--snapshot-s3-endpoint {}: {e}", config.endpoint)))?;
        let tls = (endpoint.scheme() == "https").then(|| connector(config.authorities.as_deref())).transpose()?;
        let address = Address::new(endpoint, UrlStyle::Path, config.bucket.clone(), config.region.clone()).map_err(|e| wrong(e.to_string()))?;
        let credentials = Credentials::new(config.access_key.clone(), config.secret_key.clone());
        Ok(Bucket { address, credentials, prefix: config.prefix.clone(), tls })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Stores a file under its name.
    pub async fn put(&self, name: &str, file: &Path) -> Result<()> {
        let what = format!("does not take {name}");
        let length = std::fs::metadata(file).map_err(at(format!("reading {}", file.display())))?.len();
        if length > OBJECT_BYTES_MAX {
            return Err(failed(&what)(format!("it has {length} bytes, one object has at most {OBJECT_BYTES_MAX}")));
        }
        let key = self.key(name);
        self.persist(&what, || async {
            let url = self.address.put_object(Some(&self.credentials), &key).sign(SIGNATURE_LIFETIME);
            let file = tokio::fs::File::open(file).await.map_err(at(format!("reading {}", file.display())))?;
            let stream = tokio_util::io::ReaderStream::with_capacity(file, 64 * 1024).map_ok(Frame::data);
            let body = StreamBody::new(stream).boxed();
            self.ask(&what, Method::PUT, &url, body, Some(length)).await.map(drop)
        })
        .await
    }

    /// Brings an object into a file, which is there whole or not at all.
    pub async fn get(&self, name: &str, file: &Path) -> Result<()> {
        let what = format!("does not give {name}");
        let key = self.key(name);
        let partial = file.with_extension("partial");
        let outcome = self
            .persist(&what, || async {
                let url = self.address.get_object(Some(&self.credentials), &key).sign(SIGNATURE_LIFETIME);
                let response = self.ask(&what, Method::GET, &url, empty(), None).await?;
                let writing = || at(format!("writing {}", partial.display()));
                let mut options = tokio::fs::OpenOptions::new();
                let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&partial).await.map_err(writing())?;
                let mut body = response.into_body();
                while let Some(frame) = timeout(ANSWER_TIMEOUT, body.frame()).await.map_err(|_| failed(&what)("it fell silent".into()))? {
                    let frame = frame.map_err(|e| Failure { again: true, error: failed(&what)(e.to_string()) })?;
                    if let Some(data) = frame.data_ref() {
                        out.write_all(data).await.map_err(writing())?;
                    }
                }
                out.sync_all().await.map_err(writing())?;
                Ok(())
            })
            .await;
        match outcome {
            Ok(()) => std::fs::rename(&partial, file).map_err(at(format!("writing {}", file.display()))),
            Err(error) => {
                let _ = std::fs::remove_file(&partial);
                Err(error)
            }
        }
    }

    /// The names of all objects under the prefix, with their sizes.
    pub async fn list(&self) -> Result<Vec<(String, u64)>> {
        let what = "does not list its objects";
        let (mut found, mut next) = (Vec::new(), None::<String>);
        loop {
            let answer = self
                .persist(what, || async {
                    let mut action = self.address.list_objects_v2(Some(&self.credentials));
                    action.with_prefix(self.prefix.as_str());
                    if let Some(next) = &next {
                        action.with_continuation_token(next.as_str());
                    }
                    let url = action.sign(SIGNATURE_LIFETIME);
                    Ok(text(what, self.ask(what, Method::GET, &url, empty(), None).await?).await?)
                })
                .await?;
            let page = ListObjectsV2::parse_response(&answer).map_err(|e| failed(what)(format!("its answer cannot be read: {e}")))?;
            for object in page.contents {
                if let Some(name) = object.key.strip_prefix(&self.prefix) {
                    found.push((name.to_string(), object.size.unwrap_or(0)));
                }
            }
            next = page.next_continuation_token;
            if next.is_none() || found.len() >= OBJECTS_MAX {
                return Ok(found);
            }
        }
    }

    pub async fn remove(&self, name: &str) -> Result<()> {
        let what = format!("does not remove {name}");
        let key = self.key(name);
        self.persist(&what, || async {
            let url = self.address.delete_object(Some(&self.credentials), &key).sign(SIGNATURE_LIFETIME);
            self.ask(&what, Method::DELETE, &url, empty(), None).await.map(drop)
        })
        .await
    }

    /// Removes scheduled snapshots of this node beyond the newest `keep`.
    pub async fn prune(&self, node: &str, keep: usize) -> Result<()> {
        let names = self.list().await?.into_iter().map(|(name, _)| name).collect();
        for name in crate::directory::surplus(names, node, keep) {
            self.remove(&name).await?;
        }
        Ok(())
    }

    /// Tries until it comes through, or until trying again is of no use.
    async fn persist<T, F: Future<Output = std::result::Result<T, Failure>>>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T> {
        let mut pause = RETRY_AFTER;
        for number in 1.. {
            let failure = match timeout(TRANSFER_TIMEOUT, attempt()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(failure)) => failure,
                Err(_) => Failure { again: false, error: failed(what)("it took too long".into()) },
            };
            if !failure.again || number == ATTEMPTS {
                return Err(failure.error);
            }
            tracing::debug!(error = %failure.error, "the bucket is asked again");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(failed(what)("it was never asked".into()))
    }

    /// One request; an answer that is no success is an error in the bucket's words.
    async fn ask(&self, what: &str, method: Method, url: &Url, body: Body, length: Option<u64>) -> std::result::Result<Response<Incoming>, Failure> {
        let wrong = |again| move |detail: String| Failure { again, error: failed(what)(detail) };
        let host = url.host_str().unwrap_or_default().to_string();
        let port = url.port_or_known_default().unwrap_or(443);
        let connect = TcpStream::connect((host.trim_matches(['[', ']']), port));
        let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| wrong(true)("it cannot be reached in time".into()))?;
        let stream = stream.map_err(|e| wrong(true)(format!("it cannot be reached: {e}")))?;
        let mut sender = match &self.tls {
            None => handshake(stream).await,
            Some(tls) => {
                let name = rustls_pki_types::ServerName::try_from(host.clone()).map_err(|e| wrong(false)(e.to_string()))?;
                handshake(tls.connect(name, stream).await.map_err(|e| wrong(false)(format!("TLS: {e}")))?).await
            }
        }
        .map_err(|e| wrong(true)(e.to_string()))?;
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, authority);
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        let request = request.body(body).map_err(|e| wrong(false)(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| wrong(true)(e.to_string()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        let said = text(what, response).await.unwrap_or_default();
        Err(wrong(again)(format!("it answers {status}{}", message(&said).map(|m| format!(" ({m})")).unwrap_or_default())))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { again: false, error }
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

async fn text(what: &str, response: Response<Incoming>) -> Result<String> {
    let body = timeout(ANSWER_TIMEOUT, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect()).await;
    let body = body.map_err(|_| failed(what)("it fell silent".into()))?.map_err(|e| failed(what)(e.to_string()))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// The sentence in an S3 error.
fn message(xml: &str) -> Option<&str> {
    let start = xml.find("<Message>")? + "<Message>".len();
    xml[start..].split_once("</Message>").map(|(message, _)| message)
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> hyper::Result<hyper::client::conn::http1::SendRequest<Body>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the request's last byte.
    tokio::spawn(connection);
    Ok(sender)
}

fn connector(authorities: Option<&Path>) -> Result<tokio_rustls::TlsConnector> {
    use rustls_pki_types::pem::PemObject;
    let file = authorities.unwrap_or(Path::new(AUTHORITIES));
    let pem = std::fs::read(file).map_err(at(format!("reading the authorities in {}", file.display())))?;
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_pki_types::CertificateDer::pem_slice_iter(&pem).filter_map(std::result::Result::ok));
    let wrong = failed("cannot be used");
    if added == 0 {
        return Err(wrong(format!("{} holds no authority", file.display())));
    }
    let config = rustls::ClientConfig::builder_with_provider(pki::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}
