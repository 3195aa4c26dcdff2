//! Replays transcripts (not kept).
use apiserver::{Config, Identity, Server, User};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn fill(text: &str, vars: &BTreeMap<String, String>) -> String {
    let mut t = text.to_string();
    for (k, v) in vars { t = t.replace(&format!("{{{k}}}"), v); }
    t
}
fn enc(s: &str) -> String {
    s.bytes().map(|b| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}
async fn call(server: &Arc<Server>, method: &str, path: &str, headers: &[(String, String)], body: Option<Vec<u8>>, local: bool) -> (u16, Value) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (n, v) in headers { request = request.header(n.as_str(), v.as_str()); }
    if body.is_some() && !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-type")) { request = request.header("content-type", "application/json"); }
    let body = apiserver::body::full(body.unwrap_or_default());
    let identity = if local { Identity::Local(Arc::new(User::new("admin", &["system:masters", "system:authenticated"]))) } else { Identity::Peer(None) };
    let answer = server.handle(request.body(body).unwrap(), identity).await;
    let code = answer.status().as_u16();
    let warnings: Vec<String> = answer.headers().get_all("warning").iter().map(|w| w.to_str().unwrap_or_default().to_string()).collect();
    let bytes = match tokio::time::timeout(Duration::from_secs(2), answer.into_body().collect()).await { Ok(Ok(b)) => b.to_bytes(), _ => Default::default() };
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    (code, json!({"body": value, "warnings": warnings}))
}
#[tokio::test]
async fn replay() {
    let Ok(dir) = std::env::var("TRANSCRIPTS") else { return };
    let mut config = Config::new(Arc::new(store::memory::Memory::default()));
    config.authentication.service_account_issuer = "https://kubernetes.default.svc".into();
    config.admission.disabled = vec!["NodeRestriction".into()];
    let server = Server::new(config).await.unwrap();
    while !server.health.is_bootstrapped() { tokio::task::yield_now().await; }
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let only = std::env::var("ONLY").ok();
    for (n, file) in files.iter().enumerate() {
        let name = file.file_stem().unwrap().to_string_lossy().to_string();
        if only.as_ref().is_some_and(|o| !o.split(',').any(|o| name.contains(o))) { continue; }
        let t: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let mut vars: BTreeMap<String, String> = BTreeMap::new();
        vars.insert("u".into(), format!("u{n}")); vars.insert("ns".into(), format!("ns{n}"));
        if t["namespace"] != json!(false) {
            call(&server, "POST", "/api/v1/namespaces", &[], Some(json!({"metadata": {"name": vars["ns"]}}).to_string().into_bytes()), true).await;
            call(&server, "POST", &format!("/api/v1/namespaces/{}/serviceaccounts", vars["ns"]), &[], Some(json!({"metadata": {"name": "default"}}).to_string().into_bytes()), true).await;
        }
        for step in t["steps"].as_array().unwrap() {
            let Some(line) = step["call"].as_str() else { continue };
            let line = fill(line, &vars);
            let (method, path) = line.split_once(' ').unwrap();
            let mut path = path.replace(' ', "%20");
            if let Some(q) = step["query"].as_object() {
                let mut pairs = vec![];
                for (k, v) in q {
                    for v in v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]) {
                        pairs.push(format!("{}={}", enc(k), enc(&fill(&v.as_str().map(String::from).unwrap_or(v.to_string()), &vars))));
                    }
                }
                path = format!("{path}?{}", pairs.join("&"));
            }
            let mut headers = vec![]; let mut local = true;
            for (k, v) in step["headers"].as_object().into_iter().flatten() {
                if k == "Authorization" { local = false; if v == "" { continue } }
                headers.push((k.clone(), fill(v.as_str().unwrap_or_default(), &vars)));
            }
            if let Some(who) = step["as"].as_str() { headers.push(("Impersonate-User".into(), fill(who, &vars))); }
            let body = step.get("body").filter(|b| !b.is_null()).map(|b| fill(&b.as_str().map(String::from).unwrap_or(b.to_string()), &vars).into_bytes())
                .or_else(|| step.get("text").or(step.get("raw")).and_then(|b| b.as_str()).map(|b| fill(b, &vars).into_bytes()));
            if step["watch"].is_number() { continue; }
            let (code, out) = call(&server, method, &path, &headers, body, local).await;
            for (k, at) in step["set"].as_object().into_iter().flatten() {
                let value = at.as_str().unwrap().split('.').fold(&out["body"], |v, p| v.get(p).unwrap_or(&Value::Null));
                vars.insert(k.clone(), value.as_str().map(String::from).unwrap_or(value.to_string()));
            }
            println!("@@{}", json!({"t": name, "id": step["id"], "code": code, "out": out, "expect": step["expect"], "vars": vars, "line": line}));
        }
    }
}
