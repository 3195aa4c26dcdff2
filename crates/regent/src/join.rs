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
use pki::{
    Identity, Issued, JoinToken, Kubeconfig,
    files::{self, Access},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Pause between two attempts to reach a server or to read an answer.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long the signing of a certificate may take.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(60);

/// The file of the cluster's authority, below the agent's directory.
const AUTHORITY: &str = "ca.crt";
const REFUSED: &str = "the server refuses the token: it has expired or was revoked; `regent token create` on a server makes a new one";

/// Who signs, and for what.
#[derive(Clone, Copy)]
pub struct Signer {
    name: &'static str,
    usage: &'static str,
}

pub const KUBELET_CLIENT: Signer = Signer { name: "kubernetes.io/kube-apiserver-client-kubelet", usage: "client auth" };
pub const KUBELET_SERVING: Signer = Signer { name: "kubernetes.io/kubelet-serving", usage: "server auth" };

/// What a node has when it has joined.
pub struct Joined {
    pub kubeconfig: PathBuf,
    pub authority_pem: String,
}

/// Whom to believe that it is a server of the cluster: what is kept from joining, or what the token says.
pub fn trust(directory: &Path, token: Option<&JoinToken>) -> Result<rustls::ClientConfig> {
    if let Some(authority_pem) = files::read(&directory.join(AUTHORITY))? {
        return Ok(pki::tls::client(&authority_pem, None)?);
    }
    let token = token.context("this node has not joined yet, and needs --token; `regent token create` on a server prints one")?;
    Ok(pki::tls::pinned_client(fingerprint(token)?)?)
}

fn fingerprint(token: &JoinToken) -> Result<&str> {
    token.fingerprint.as_deref().context("the token has no fingerprint of the cluster; `regent token create` prints whole ones")
}

/// Joins the cluster, or finds that this node has. Waits for a server as long as it takes; a token that is refused is an error.
pub async fn join(server: &str, token: Option<&JoinToken>, directory: &Path, name: &str) -> Result<Joined> {
    files::create_directory(directory)?;
    let kubeconfig = directory.join("kubelet.kubeconfig");
    let authority_file = directory.join(AUTHORITY);
    if let (true, Some(authority_pem)) = (kubeconfig.exists(), files::read(&authority_file)?) {
        return Ok(Joined { kubeconfig, authority_pem });
    }
    let token = token.context("this node has not joined yet, and needs --token; `regent token create` on a server prints one")?;
    let authority_pem = authority(server, fingerprint(token)?).await?;
    // The key is kept before it is asked for, so that a node which is stopped in between asks for the same again.
    let key_file = directory.join("kubelet-client.key");
    let key_pem = match files::read(&key_file)? {
        Some(key_pem) => key_pem,
        None => {
            let (_, key_pem) = pki::request::create(&Identity::node(name))?;
            files::replace(&key_file, &key_pem, Access::Private)?;
            key_pem
        }
    };
    let issued = loop {
        match client_with_token(server, &authority_pem, token, directory, name, &key_pem).await {
            Ok(issued) => break issued,
            Err(error) if is_refusal(&error) => bail!(REFUSED),
            Err(error) => tracing::warn!("no certificate yet: {error:#}"),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    };
    files::replace(&authority_file, &authority_pem, Access::Public)?;
    Kubeconfig::of(server, &issued, &Identity::node(name).common_name).write(&kubeconfig)?;
    std::fs::remove_file(&key_file).context("removing the key that is in the kubeconfig now")?;
    tracing::info!(node = name, "joined the cluster");
    Ok(Joined { kubeconfig, authority_pem })
}

/// The node's certificate as a client, asked for with a token.
pub async fn client_with_token(server: &str, authority_pem: &str, token: &JoinToken, directory: &Path, name: &str, key_pem: &str) -> Result<Issued> {
    let bootstrap = directory.join("bootstrap.kubeconfig");
    Kubeconfig::with_token(server, authority_pem, &token.bearer(), "bootstrap").write(&bootstrap)?;
    let client = client::transport::from_kubeconfig(&bootstrap).await;
    std::fs::remove_file(&bootstrap).context("removing the token")?;
    let certificate_pem = signed(&client?, key_pem, &Identity::node(name), KUBELET_CLIENT).await?;
    Ok(Issued { certificate_pem, key_pem: key_pem.into(), authority_pem: authority_pem.into() })
}

/// Whether the server has understood and says no, so that asking again is of no use.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if matches!(status.code, 401 | 403)))
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

/// Asks for a certificate for this key, and waits until it is signed.
pub async fn signed(client: &kube::Client, key_pem: &str, identity: &Identity, signer: Signer) -> Result<String> {
    let request_pem = pki::request::create_for(key_pem, identity)?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request_pem.into_bytes()),
            signer_name: signer.name.into(),
            usages: Some(vec!["digital signature".into(), signer.usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let asked = tokio::time::timeout(SIGNING_TIMEOUT, requests.create(&PostParams::default(), &wanted)).await;
    let made = asked.context("the API does not answer")?.with_context(|| format!("asking for a certificate of {}", signer.name))?;
    let signed = async {
        loop {
            let now = requests.get(&made.name_any()).await?;
            if let Some(certificate) = now.status.and_then(|status| status.certificate) {
                return anyhow::Ok(String::from_utf8(certificate.0)?);
            }
            tokio::time::sleep(RETRY_EVERY / 4).await;
        }
    };
    tokio::time::timeout(SIGNING_TIMEOUT, signed)
        .await
        .map_err(|_| anyhow::anyhow!("the request {} was not signed; does the controller manager run? (`kubectl get csr`)", made.name_any()))?
}
