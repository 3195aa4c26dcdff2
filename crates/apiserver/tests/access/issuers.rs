//! Identities that others vouch for: OpenID Connect issuers and front proxies.

use super::*;
use apiserver::authentication::{front_proxy, oidc};
use hyper::service::service_fn;
use pki::oidc::TestIssuer;
use std::{
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// An issuer on loopback: its URL, its keys, and how often they were asked for.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
    authority: Authority,
}

async fn issuer(first: &TestIssuer) -> Issuer {
    let authority = Authority::generate("issuer").expect("an authority");
    let serving = authority.issue(&Identity::apiserver("127.0.0.1".parse().expect("an address"), "test", &[])).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://127.0.0.1:{}", listener.local_addr().expect("an address").port());
    let keys = Arc::new(Mutex::new(vec![first.jwk()]));
    let asked = Arc::new(AtomicUsize::new(0));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(pki::tls::server(&serving).expect("a TLS configuration")));
    let (own, set, count) = (url.clone(), keys.clone(), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let (own, set, count) = (own.clone(), set.clone(), count.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let document = if request.uri().path() == "/keys" {
                    count.fetch_add(1, Ordering::SeqCst);
                    json!({"keys": *set.lock().expect("the keys")})
                } else {
                    json!({"issuer": own, "jwks_uri": format!("{own}/keys")})
                };
                async move { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(document.to_string()))) }
            });
            // A client that leaves is no failure of this issuer.
            tokio::spawn(async move { drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await) });
        }
    });
    Issuer { url, keys, asked, authority }
}

async fn me(cluster: &Cluster, token: &str) -> (StatusCode, Value) {
    let bearer = format!("Bearer {token}");
    let (code, me) = cluster.call(None, "POST", SELF, &[("authorization", &bearer)], Some(json!({}))).await;
    (code, me["status"]["userInfo"].clone())
}

#[tokio::test]
async fn tokens_of_an_issuer_are_its_users() {
    let key = TestIssuer::generate("one").expect("a key");
    let issuer = issuer(&key).await;
    let configuration = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: '{}', audiences: [kubernetes]}}\n  claimMappings: {{username: {{claim: sub, prefix: 'oidc:'}}, groups: {{expression: 'claims.roles'}}}}\n  userValidationRules: [{{expression: \"user.groups.all(g, !g.startsWith('system:'))\", message: no system groups}}]\n",
        issuer.url
    );
    let (mut settings, _) = oidc::parse(&configuration).expect("a configuration");
    settings[0].authorities_pem = issuer.authority.certificate_pem().into();
    let cluster = cluster_with(|config, _| config.authentication.oidc = settings.into_iter().map(Arc::new).collect()).await;
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 0, "nothing is fetched before it is needed");
    let now = pki::now_unix_s();
    let claims =
        |sub: &str, life_s: i64, role: &str| json!({"iss": issuer.url, "aud": "kubernetes", "sub": sub, "exp": now + life_s, "roles": [role]});
    let token = key.sign(&claims("jane", 600, "devs")).expect("a token");
    for _ in 0..3 {
        let (code, user) = me(&cluster, &token).await;
        assert_eq!((code, user["username"].as_str()), (StatusCode::CREATED, Some("oidc:jane")));
        assert_eq!(user["groups"], json!(["devs", "system:authenticated"]));
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
    for (why, refused) in [
        ("expired", key.sign(&claims("jane", -1, "devs"))),
        ("a group of the cluster's own", key.sign(&claims("jane", 600, "system:masters"))),
        ("another audience", key.sign(&json!({"iss": issuer.url, "aud": "x", "sub": "jane", "exp": now + 600}))),
        ("another issuer", key.sign(&json!({"iss": "https://elsewhere", "aud": "kubernetes", "sub": "jane", "exp": now + 600}))),
        ("a key under the same name", TestIssuer::generate("one").expect("a key").sign(&claims("jane", 600, "devs"))),
    ] {
        assert_eq!(me(&cluster, &refused.expect("a token")).await.0, StatusCode::UNAUTHORIZED, "{why}");
    }
    // A review says the same of the token.
    let admin = cluster.certificate(&Identity::admin());
    let review = json!({"spec": {"token": token}});
    let (_, answer) = cluster.call(Some(&admin), "POST", "/apis/authentication.k8s.io/v1/tokenreviews", &[], Some(review)).await;
    assert_eq!((answer["status"]["authenticated"].as_bool(), answer["status"]["user"]["username"].as_str()), (Some(true), Some("oidc:jane")));
    // Unknown keys do not make this server ask again and again.
    let next = TestIssuer::generate("two").expect("a key");
    issuer.keys.lock().expect("the keys").push(next.jwk());
    for i in 0..5 {
        let unknown = TestIssuer::generate(&format!("unknown-{i}")).expect("a key").sign(&claims("eve", 600, "devs")).expect("a token");
        assert_eq!(me(&cluster, &unknown).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1, "it was asked a moment ago");
}

#[tokio::test]
async fn a_front_proxy_says_who_asks() {
    let proxies = Authority::generate("front-proxy-ca").expect("an authority");
    let pem = proxies.certificate_pem().to_string();
    let cluster = cluster_with(|config, _| config.authentication.front_proxy = Some(front_proxy::Config::new(&pem))).await;
    let proxy = proxies.issue(&Identity::front_proxy_client()).expect("a certificate");
    let headers = [("x-remote-user", "jane"), ("x-remote-group", "devs"), ("x-remote-extra-scopes", "all")];
    let (code, user) = cluster.call(Some(&proxy), "POST", SELF, &headers, Some(json!({}))).await;
    assert_eq!(code, StatusCode::CREATED, "{user}");
    let user = &user["status"]["userInfo"];
    assert_eq!((user["username"].as_str(), &user["groups"]), (Some("jane"), &json!(["devs", "system:authenticated"])));
    assert_eq!(user["extra"], json!({"scopes": ["all"]}));
    let (code, _) = cluster.call(Some(&proxy), "POST", SELF, &[], Some(json!({}))).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED, "its certificate alone is nobody's");
    let (_, user) = cluster.call(None, "POST", SELF, &headers, Some(json!({}))).await;
    assert_ne!(user["status"]["userInfo"]["username"], "jane", "headers alone are nothing");
    let mine = cluster.certificate(&Identity::client("joe", &[]));
    let (_, user) = cluster.call(Some(&mine), "POST", SELF, &headers, Some(json!({}))).await;
    assert_ne!(user["status"]["userInfo"]["username"], "jane", "nor with a certificate of another authority");
}
