//! The bucket, against a small HTTP server that checks every signature as S3 does.

use aws_lc_rs::{digest, hmac};
use backup::bucket::{Bucket, Config};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;

const ACCESS: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, Bytes>,
    /// Requests that are still to be answered with 503.
    busy: usize,
}

fn hex(bytes: &[u8]) -> String {
    pki::hex(bytes)
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Whether the signature in the URL is right, as S3's rules have it.
fn is_signed(request: &Request<Incoming>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs: Vec<(&str, &str)> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value).to_string();
    let (credential, time, signature) = (get("X-Amz-Credential").replace("%2F", "/"), get("X-Amz-Date"), get("X-Amz-Signature"));
    let scope: Vec<&str> = credential.split('/').collect();
    let [ACCESS, date, "eu-central-1", "s3", "aws4_request"] = scope[..] else { return false };
    if get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256" || get("X-Amz-SignedHeaders") != "host" || !time.starts_with(date) {
        return false;
    }
    pairs.retain(|(key, _)| *key != "X-Amz-Signature");
    pairs.sort_unstable();
    let canonical_query = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
    let host = request.headers().get("host").unwrap().to_str().unwrap();
    let canonical = format!("{}\n{}\n{canonical_query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD", request.method(), request.uri().path());
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{date}/eu-central-1/s3/aws4_request\n{hashed}");
    let key = ["eu-central-1", "s3", "aws4_request"].iter().fold(sign(format!("AWS4{SECRET}").as_bytes(), date), |key, part| sign(&key, part));
    hex(&sign(&key, &text)) == signature
}

async fn answer(shelf: Arc<Mutex<Shelf>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let say = |status: StatusCode, body: String| Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap());
    if !is_signed(&request) {
        return say(StatusCode::FORBIDDEN, "<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message></Error>".into());
    }
    {
        let mut shelf = shelf.lock().unwrap();
        if shelf.busy > 0 {
            shelf.busy -= 1;
            return say(StatusCode::SERVICE_UNAVAILABLE, "<Error><Message>Slow down.</Message></Error>".into());
        }
    }
    let (method, path, query) = (request.method().clone(), request.uri().path().to_string(), request.uri().query().unwrap_or_default().to_string());
    let Some(key) = path.strip_prefix("/backups").map(|key| key.trim_start_matches('/').to_string()) else {
        return say(StatusCode::NOT_FOUND, "<Error><Message>No such bucket.</Message></Error>".into());
    };
    match method {
        Method::PUT => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            shelf.lock().unwrap().objects.insert(key, body);
            say(StatusCode::OK, String::new())
        }
        Method::DELETE => {
            shelf.lock().unwrap().objects.remove(&key);
            say(StatusCode::NO_CONTENT, String::new())
        }
        _ if key.is_empty() => {
            let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default().replace("%2F", "/");
            let shelf = shelf.lock().unwrap();
            let after = query.split('&').find_map(|pair| pair.strip_prefix("continuation-token=")).unwrap_or_default().replace("%2F", "/");
            let mut found: Vec<_> = shelf.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && key.as_str() > after.as_str()).collect();
            let more = found.len() > 2;
            found.truncate(2);
            let next = if more { format!("<NextContinuationToken>{}</NextContinuationToken>", found[1].0) } else { String::new() };
            let contents: String =
                found.iter().map(|(key, body)| format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", body.len())).collect();
            say(
                StatusCode::OK,
                format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                     <Name>backups</Name><IsTruncated>{more}</IsTruncated>{contents}{next}</ListBucketResult>"
                ),
            )
        }
        _ => match shelf.lock().unwrap().objects.get(&key) {
            Some(body) => Ok(Response::new(Full::new(body.clone()))),
            None => say(StatusCode::NOT_FOUND, "<Error><Message>The key does not exist.</Message></Error>".into()),
        },
    }
}

/// A bucket's server on a port of its own, which ends with the test's runtime.
async fn serve() -> (String, Arc<Mutex<Shelf>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shelf = Arc::new(Mutex::new(Shelf::default()));
    let shared = shelf.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shelf = shared.clone();
            let service = service_fn(move |request| answer(shelf.clone(), request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, shelf)
}

fn config(endpoint: String) -> Config {
    Config {
        endpoint,
        bucket: "backups".into(),
        region: "eu-central-1".into(),
        access_key: ACCESS.into(),
        secret_key: SECRET.into(),
        prefix: "cluster a/".into(),
        authorities: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_and_come_back() {
    let (url, shelf) = serve().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let content: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let bucket = Bucket::new(&Config { prefix: "cluster-a/".into(), ..config(url) }).unwrap();
    shelf.lock().unwrap().busy = 2;
    let names: Vec<String> = (0..5).map(|i| format!("scheduled-n-2026-11-22T0{i}-00-00Z.snapshot")).collect();
    for name in &names {
        bucket.put(name, &file).await.unwrap();
    }
    assert!(shelf.lock().unwrap().objects.contains_key(&format!("cluster-a/{}", names[0])));
    let listed: Vec<String> = bucket.list().await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, names, "all pages are read");
    let back = directory.path().join("back");
    bucket.get(&names[1], &back).await.unwrap();
    assert_eq!(std::fs::read(&back).unwrap(), content);
    bucket.prune("n", 2).await.unwrap();
    assert_eq!(bucket.list().await.unwrap().len(), 2);
    let said = bucket.get("none", &directory.path().join("none")).await.unwrap_err().to_string();
    assert!(said.contains("404") && said.contains("The key does not exist."), "{said}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing half is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_said_in_the_buckets_words() {
    let (url, _) = serve().await;
    let bucket = Bucket::new(&Config { secret_key: "wrong".into(), ..config(url) }).unwrap();
    let said = bucket.list().await.unwrap_err().to_string();
    assert!(said.contains("403") && said.contains("The signature is wrong."), "{said}");
    assert!(Bucket::new(&config("not a url".into())).is_err());
    let nobody = Bucket::new(&config("http://127.0.0.1:1".into())).unwrap();
    assert!(nobody.list().await.unwrap_err().to_string().contains("cannot be reached"));
}
