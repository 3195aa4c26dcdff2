//! Who gets in, what they may, and the way to nodes: over real TLS on loopback, on the memory store.

use apiserver::{Config, Server};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pki::{Authority, Identity, Issued, JoinToken};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use store::memory::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A cluster's authority and its API server, listening.
struct Cluster {
    authority: Authority,
    server: Arc<Server>,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[path = "access/audit.rs"]
mod audit;
#[path = "access/flow.rs"]
mod flow;
#[path = "access/issuers.rs"]
mod issuers;
#[path = "access/parameters.rs"]
mod parameters;
#[path = "access/shutdown.rs"]
mod shutdown;

async fn cluster() -> Cluster {
    cluster_with(|_, _| {}).await
}

/// The same with another configuration.
async fn cluster_with(change: impl FnOnce(&mut Config, &Authority)) -> Cluster {
    let authority = Authority::generate("kubernetes").expect("an authority");
    let mut config = Config::new(Arc::new(Memory::default()));
    config.authentication.client_authorities_pem = Some(authority.certificate_pem().into());
    config.bootstrap.authority_pem = Some(authority.certificate_pem().into());
    config.tunnel.client = Some(authority.issue(&Identity::apiserver_kubelet_client()).expect("a certificate"));
    change(&mut config, &authority);
    let shutdown = config.shutdown.clone();
    let server = Server::new(config).await.expect("the server starts");
    tokio::time::timeout(Duration::from_secs(20), async {
        while !server.health.is_bootstrapped() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the first objects are made in time");
    let serving = authority.issue(&Identity::apiserver("10.96.0.1".parse().expect("an address"), "cluster.local", &[])).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(server.clone().serve(listener, pki::tls::server(&serving).expect("a TLS configuration"), shutdown.clone()));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    server.create_internal("", "serviceaccounts", "default", account).await.expect("the account is made");
    Cluster { authority, server, address, shutdown }
}

impl Cluster {
    fn certificate(&self, identity: &Identity) -> Issued {
        self.authority.issue(identity).expect("a certificate")
    }

    /// Sends one request on a connection of its own.
    async fn send(&self, issued: Option<&Issued>, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let tls = pki::tls::client(self.authority.certificate_pem(), issued).expect("a TLS configuration");
        let tcp = TcpStream::connect(self.address).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.expect("a handshake");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.expect("an answer")
    }

    /// The code and the JSON of an answer.
    async fn call(&self, issued: Option<&Issued>, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = self.send(issued, request.body(Full::from(body)).expect("a request")).await;
        let code = answer.status();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
    }

    async fn make(&self, resource: &str, object: Value) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_string();
        self.server.create_internal("", resource, &namespace, object).await.expect("the object is made")
    }
}

const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

#[tokio::test]
async fn certificates_and_strangers() {
    let cluster = cluster().await;
    let namespaces = "/api/v1/namespaces";
    let admin = cluster.certificate(&Identity::admin());
    let (code, list) = cluster.call(Some(&admin), "GET", namespaces, &[], None).await;
    assert_eq!((code, list["kind"].as_str()), (StatusCode::OK, Some("NamespaceList")));

    let (code, status) = cluster.call(None, "GET", namespaces, &[], None).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        status["message"],
        r#"namespaces is forbidden: User "system:anonymous" cannot list resource "namespaces" in API group "" at the cluster scope"#
    );

    let jane = cluster.certificate(&Identity::client("jane", &["devs"]));
    let (code, status) = cluster.call(Some(&jane), "GET", "/api/v1/namespaces/default/pods", &[], None).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(status["message"], r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#);
    let (_, me) = cluster.call(Some(&jane), "POST", SELF, &[], Some(json!({}))).await;
    assert_eq!(me["status"]["userInfo"]["groups"], json!(["devs", "system:authenticated"]));

    let foreign = Authority::generate("kubernetes").expect("an authority").issue(&Identity::admin()).expect("a certificate");
    let (code, status) = cluster.call(Some(&foreign), "GET", namespaces, &[], None).await;
    assert_eq!((code, status["message"].as_str()), (StatusCode::UNAUTHORIZED, Some("Unauthorized")));
    let (code, _) = cluster.call(None, "GET", "/version", &[("authorization", "Bearer wrong")], None).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED, "a wrong token is refused even where none is needed");
}

#[tokio::test]
async fn tokens_live_as_long_as_what_they_are_bound_to() {
    let cluster = cluster().await;
    let admin = cluster.certificate(&Identity::admin());
    let pod = json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, pod) = cluster.call(Some(&admin), "POST", "/api/v1/namespaces/default/pods", &[], Some(pod)).await;
    assert_eq!(code, StatusCode::CREATED, "{pod}");
    assert!(pod["spec"]["volumes"][0]["name"].as_str().expect("a volume").starts_with("kube-api-access-"));
    let request = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let (code, answer) = cluster.call(Some(&admin), "POST", "/api/v1/namespaces/default/serviceaccounts/default/token", &[], Some(request)).await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    let bearer = format!("Bearer {}", answer["status"]["token"].as_str().expect("a token"));
    let (code, me) = cluster.call(None, "POST", SELF, &[("authorization", &bearer)], Some(json!({}))).await;
    assert_eq!(code, StatusCode::CREATED);
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    assert_eq!(me["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));

    cluster.server.delete_internal("", "pods", "default", "p").await.expect("the pod goes");
    let (code, _) = cluster.call(None, "POST", SELF, &[("authorization", &bearer)], Some(json!({}))).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED);

    let join = JoinToken::generate(&cluster.authority.fingerprint());
    cluster.make("secrets", join.to_secret("for a test", None)).await;
    let bearer = format!("Bearer {}", join.bearer());
    let (_, me) = cluster.call(None, "POST", SELF, &[("authorization", &bearer)], Some(json!({}))).await;
    assert_eq!(me["status"]["userInfo"]["username"], format!("system:bootstrap:{}", join.id));
    let review =
        json!({"spec": {"resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create"}}});
    let (_, answer) =
        cluster.call(None, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &[("authorization", &bearer)], Some(review)).await;
    assert_eq!(answer["status"]["allowed"], true, "a joining machine may ask for a certificate: {answer}");
    let (code, info) = cluster.call(None, "GET", "/api/v1/namespaces/kube-public/configmaps/cluster-info", &[], None).await;
    assert_eq!(code, StatusCode::OK, "anyone may read where the cluster is: {info}");
}

#[tokio::test]
async fn a_node_reads_what_its_pods_use_and_writes_what_is_its_own() {
    let cluster = cluster().await;
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"}});
    cluster.make("secrets", secret("used")).await;
    cluster.make("secrets", secret("other")).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {
        "nodeName": "n1", "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {"secretName": "used"}}]}});
    let pod = cluster.make("pods", pod).await;
    let (n1, n2) = (cluster.certificate(&Identity::node("n1")), cluster.certificate(&Identity::node("n2")));
    let get = async |node: &Issued, path: &str| cluster.call(Some(node), "GET", path, &[], None).await.0.as_u16();
    assert_eq!(get(&n1, "/api/v1/namespaces/default/secrets/used").await, 200);
    assert_eq!(get(&n2, "/api/v1/namespaces/default/secrets/used").await, 403);
    assert_eq!(get(&n1, "/api/v1/namespaces/default/secrets/other").await, 403);
    assert_eq!(get(&n1, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await, 200);
    assert_eq!(get(&n1, "/api/v1/pods").await, 403);
    let post = async |node: &Issued, path: &str, body: Value| cluster.call(Some(node), "POST", path, &[], Some(body)).await;
    assert_eq!(post(&n1, "/api/v1/nodes", json!({"metadata": {"name": "n1"}})).await.0, StatusCode::CREATED);
    let (code, status) = post(&n2, "/api/v1/nodes", json!({"metadata": {"name": "n3"}})).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(status["message"], r#"nodes "n3" is forbidden: node "n2" is not allowed to modify node "n3""#);
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(post(&n1, leases, lease("n1")).await.0, StatusCode::CREATED);
    assert_eq!(post(&n1, leases, lease("n2")).await.0, StatusCode::FORBIDDEN);
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]}}});
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (code, answer) = post(&n1, token, bound.clone()).await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    assert_eq!(post(&n2, token, bound).await.0, StatusCode::FORBIDDEN);
}

/// A node that says one line of log, and echoes what is sent into exec.
async fn node(listener: TcpListener, serving: Issued, authorities_pem: String) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::tls::server(&serving).expect("a TLS configuration")));
    let verifier = pki::tls::ClientVerifier::new(&authorities_pem).expect("a verifier");
    while let Ok((tcp, _)) = listener.accept().await {
        let stream = acceptor.accept(tcp).await.expect("a handshake");
        let chain: Vec<_> = stream.get_ref().1.peer_certificates().expect("a certificate").to_vec();
        let caller = verifier.verify(&chain, pki::now_unix_s()).expect("a trusted caller");
        assert_eq!(caller.common_name, "kube-apiserver-kubelet-client");
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| async move {
            let path = request.uri().path_and_query().map(|path| path.to_string()).unwrap_or_default();
            let mut response: Response<Full<Bytes>> = Response::new(Full::from(path.clone()));
            if path.starts_with("/containerLogs/default/broken") {
                *response.status_mut() = StatusCode::BAD_REQUEST;
                *response.body_mut() = Full::from("container \"c\" in pod \"broken\" is waiting to start: ContainerCreating");
            } else if path.starts_with("/exec/") {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("connection", "Upgrade".parse().expect("a value"));
                response.headers_mut().insert("upgrade", "SPDY/3.1".parse().expect("a value"));
                response.headers_mut().insert("x-path", path.parse().expect("a value"));
                tokio::spawn(async move {
                    let mut upgraded = TokioIo::new(hyper::upgrade::on(&mut request).await.expect("an upgrade"));
                    let mut buffer = [0; 64];
                    while let Ok(n) = upgraded.read(&mut buffer).await
                        && n > 0
                    {
                        upgraded.write_all(&buffer[..n]).await.expect("an echo");
                    }
                });
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
    }
}

#[tokio::test]
async fn logs_and_exec_go_to_the_pods_node() {
    let cluster = cluster().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = cluster.certificate(&Identity::node_serving("n1", &[]));
    tokio::spawn(node(listener, serving, cluster.authority.certificate_pem().into()));
    cluster.make("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).await;
    let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    let change = |node: &mut Value| {
        node["status"] = status.clone();
        Ok(true)
    };
    cluster.server.update_internal("", "nodes", "", "n1", "status", change).await.expect("the status is written");
    for name in ["p", "broken"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": "n1", "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}});
        cluster.make("pods", pod).await;
    }
    let admin = cluster.certificate(&Identity::admin());

    let (code, text) = cluster.call(Some(&admin), "GET", "/api/v1/namespaces/default/pods/p/log?tailLines=5&timestamps=true&odd=1", &[], None).await;
    assert_eq!((code, text), (StatusCode::OK, json!("/containerLogs/default/p/c?timestamps=true&tailLines=5")));
    let (code, status) = cluster.call(Some(&admin), "GET", "/api/v1/namespaces/default/pods/broken/log", &[], None).await;
    assert_eq!(
        (code, &status["message"]),
        (StatusCode::BAD_REQUEST, &json!("container \"c\" in pod \"broken\" is waiting to start: ContainerCreating"))
    );
    let (code, status) = cluster.call(Some(&admin), "GET", "/api/v1/namespaces/default/pods/p/log?container=z", &[], None).await;
    assert_eq!((code, &status["message"]), (StatusCode::BAD_REQUEST, &json!("container z is not valid for pod p")));

    let exec = "/api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&command=echo%20a&stdin=true&stdout=true&tty=true&stderr=true";
    let (code, _) = cluster
        .call(
            Some(&admin),
            "GET",
            exec,
            &[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")],
            None,
        )
        .await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "the newer protocol is refused, and the client goes back to SPDY");
    let request = Request::post(exec)
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Full::default())
        .expect("a request");
    let mut answer = cluster.send(Some(&admin), request).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["x-path"], "/exec/default/p/c?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20a");
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut answer).await.expect("an upgrade"));
    tunnel.write_all(b"hello").await.expect("a write");
    let mut echo = [0; 5];
    tokio::time::timeout(Duration::from_secs(5), tunnel.read_exact(&mut echo)).await.expect("an echo in time").expect("an echo");
    assert_eq!(&echo, b"hello");
}
