//! How a machine becomes a node: from a token to certificates.
//!
//! 1. The server's authority comes from the ConfigMap `kube-public/cluster-info`, over a connection that is trusted only if
//!    the authority's fingerprint is the token's. 2. With the token as credential, two CertificateSigningRequests are made,
//!    for the node as a client and as a server; the controllers approve and sign them. 3. The keys never leave the node.
//!
//! What is there already is used: a node that has joined needs neither token nor server to start again.

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use node::Serving;
use pki::{
    Identity, Issued, JoinToken, Kubeconfig,
    files::{self, Access},
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;

/// Pause between two attempts to reach a server or to read an answer.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long the signing of a certificate may take.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(60);

/// What a node has when it has joined.
pub struct Joined {
    pub kubeconfig: PathBuf,
    pub authority_pem: String,
}

/// Joins the cluster, or finds that this node has.
pub async fn join(server: &str, token: &str, directory: &Path, name: &str) -> Result<Joined> {
    files::create_directory(directory)?;
    let kubeconfig = directory.join("kubelet.kubeconfig");
    let authority_file = directory.join("ca.crt");
    if let (true, Some(authority_pem)) = (kubeconfig.exists(), files::read(&authority_file)?) {
        return Ok(Joined { kubeconfig, authority_pem });
    }
    let token = JoinToken::parse(token)?;
    let fingerprint = token.fingerprint.as_deref().context("the token has no fingerprint of the cluster; `regent token create` prints whole ones")?;
    let authority_pem = authority(server, fingerprint).await?;
    let bootstrap = directory.join("bootstrap.kubeconfig");
    Kubeconfig::with_token(server, &authority_pem, &token.bearer(), "bootstrap").write(&bootstrap)?;
    let client = client::transport::from_kubeconfig(&bootstrap).await?;
    let node = Identity::node(name);
    let own = certificate(&client, directory, "kubelet-client", &node, "kubernetes.io/kube-apiserver-client-kubelet", "client auth").await?;
    let issued = Issued { certificate_pem: own.0, key_pem: own.1, authority_pem: authority_pem.clone() };
    files::replace(&authority_file, &authority_pem, Access::Public)?;
    Kubeconfig::of(server, &issued, &node.common_name).write(&kubeconfig)?;
    std::fs::remove_file(&bootstrap).context("removing the token")?;
    tracing::info!(node = name, "joined the cluster");
    Ok(Joined { kubeconfig, authority_pem })
}

/// The certificate of the node's own API: the one that is kept, or a new one as soon as the cluster grants it.
pub fn serving(kubeconfig: PathBuf, directory: PathBuf, name: String, address: IpAddr) -> watch::Receiver<Option<Serving>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            match get_serving(&kubeconfig, &directory, &name, address).await {
                Ok(serving) => break sender.send_replace(Some(serving)),
                Err(error) => tracing::warn!("the node's API has no certificate yet: {error:#}"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    });
    receiver
}

async fn get_serving(kubeconfig: &Path, directory: &Path, name: &str, address: IpAddr) -> Result<Serving> {
    let file = directory.join("kubelet.crt");
    if let (Some(certificate_pem), Some(key_pem)) = (files::read(&file)?, files::read(&directory.join("kubelet.key"))?) {
        return Ok(Serving { certificate_pem, key_pem });
    }
    let client = client::transport::from_kubeconfig(kubeconfig).await?;
    let identity = Identity::node_serving(name, &[address]);
    let (certificate_pem, key_pem) = certificate(&client, directory, "kubelet", &identity, "kubernetes.io/kubelet-serving", "server auth").await?;
    files::replace(&file, &certificate_pem, Access::Public)?;
    Ok(Serving { certificate_pem, key_pem })
}

/// The cluster's authority, as the server tells it to everyone, over a connection pinned to its fingerprint.
pub async fn authority(server: &str, fingerprint: &str) -> Result<String> {
    let uri: http::Uri = server.parse().with_context(|| format!("{server} is not an address such as https://10.0.0.1:6443"))?;
    if uri.scheme_str() != Some("https") {
        bail!("{server}: a server is reached by https");
    }
    loop {
        match ask_authority(&uri, fingerprint).await {
            Ok(pem) => return Ok(pem),
            Err(error) => tracing::warn!("{server} cannot be asked for the cluster's authority yet: {error:#}"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn ask_authority(uri: &http::Uri, fingerprint: &str) -> Result<String> {
    use http_body_util::BodyExt;
    let (host, port) = (uri.host().context("no host in the server's address")?, uri.port_u16().unwrap_or(443));
    let stream = tokio::net::TcpStream::connect((host, port)).await?;
    let mut tls = pki::tls::pinned_client(fingerprint)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server_name = rustls::pki_types::ServerName::try_from(host.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls))
        .connect(server_name, stream)
        .await
        .context("the server is not of the token's cluster")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/api/v1/namespaces/kube-public/configmaps/cluster-info")
        .header(http::header::HOST, host)
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        bail!("it answers {}", response.status());
    }
    let map: serde_json::Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    let text = map.pointer("/data/kubeconfig").and_then(|v| v.as_str()).context("cluster-info holds no kubeconfig")?;
    let config: serde_json::Value = serde_saphyr::from_str(text).context("cluster-info's kubeconfig")?;
    let data =
        config.pointer("/clusters/0/cluster/certificate-authority-data").and_then(|v| v.as_str()).context("cluster-info holds no authority")?;
    use base64::Engine;
    let pem = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data)?)?;
    let told = Issued { certificate_pem: pem.clone(), key_pem: String::new(), authority_pem: String::new() };
    if pki::authority::fingerprint(&told.certificate()?) != fingerprint {
        bail!("the authority that it tells is not the token's");
    }
    Ok(pem)
}

/// Asks for a certificate with a key that is made here (or was, by an attempt before), and waits until it is signed.
async fn certificate(
    client: &kube::Client,
    directory: &Path,
    stem: &str,
    identity: &Identity,
    signer: &str,
    usage: &str,
) -> Result<(String, String)> {
    let key_file = directory.join(format!("{stem}.key"));
    let (request_pem, key_pem) = match files::read(&key_file)? {
        Some(key) => (pki::request::create_for(&key, identity)?, key),
        None => pki::request::create(identity)?,
    };
    files::replace(&key_file, &key_pem, Access::Private)?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request_pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = requests.create(&PostParams::default(), &wanted).await.with_context(|| format!("asking for a certificate of {signer}"))?;
    let signed = async {
        loop {
            let now = requests.get(&made.name_any()).await?;
            if let Some(certificate) = now.status.and_then(|status| status.certificate) {
                return anyhow::Ok(String::from_utf8(certificate.0)?);
            }
            tokio::time::sleep(RETRY_EVERY / 4).await;
        }
    };
    let certificate = tokio::time::timeout(SIGNING_TIMEOUT, signed)
        .await
        .map_err(|_| anyhow::anyhow!("the request {} was not signed; does the controller manager run? (`kubectl get csr`)", made.name_any()))??;
    Ok((certificate, key_pem))
}
