//! Mutating and validating admission webhooks: servers outside that are asked about a write, and may change or refuse it.
//!
//! Mutating ones are asked one after the other, each seeing what those before have made; validating ones all at once. A
//! webhook that cannot be asked refuses the write or is passed over, as its failure policy says. Answers are bounded in size
//! and time. What a webhook has changed is read by the kind's schema like any other body.

use super::{
    AdmissionContext, Operation, Plugin, connections,
    expressions::{self, Input},
    matching, review,
};
use crate::{
    Server,
    body::{self, full},
    cache::ResourceCache,
    conversion,
};
use api::{
    Status, Value,
    cel::{Program, Type, policy::Scope},
    merge,
    object::ObjectExt,
    structure,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Request, header};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const GROUP: &str = "admissionregistration.k8s.io";
/// Bytes of a webhook's answer.
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How long a webhook may take that does not say.
const TIMEOUT_DEFAULT_S: i64 = 10;
/// What the match conditions of one webhook may cost.
const CONDITIONS_COST_MAX: u64 = 2_500_000;

/// Match conditions by their text, compiled.
type Conditions = Arc<Vec<(String, Option<Program>)>>;

/// Webhooks of one sort.
pub struct Webhooks {
    mutating: bool,
    cache: OnceLock<Arc<ResourceCache>>,
    conditions: Mutex<HashMap<String, Conditions>>,
}

impl Webhooks {
    pub fn mutating() -> Webhooks {
        Webhooks { mutating: true, cache: OnceLock::new(), conditions: Mutex::default() }
    }
    pub fn validating() -> Webhooks {
        Webhooks { mutating: false, ..Webhooks::mutating() }
    }

    /// Their configurations.
    fn cache(&self, cx: &AdmissionContext<'_>) -> &Arc<ResourceCache> {
        let resource = if self.mutating { "mutatingwebhookconfigurations" } else { "validatingwebhookconfigurations" };
        self.cache.get_or_init(|| cx.server.cache.resource(GROUP, resource))
    }

    /// All webhooks, in order of their configurations' names.
    fn all(&self, cx: &AdmissionContext<'_>) -> Vec<Value> {
        let cache = self.cache(cx);
        if cache.is_empty() || matching::is_exempt(cx) {
            return vec![];
        }
        cache.snapshot().entries(None).flat_map(|entry| entry.value().list_at("webhooks").to_vec()).collect()
    }

    /// The version in which a webhook wants to be asked about the request; `None` if it does not.
    fn concerns(&self, webhook: &Value, cx: &AdmissionContext<'_>, object: &Value) -> Result<Option<String>, Status> {
        let Some(version) = matching::matches(webhook, "rules", cx, object) else { return Ok(None) };
        let given = webhook.list_at("matchConditions");
        if given.is_empty() {
            return Ok(Some(version));
        }
        let key = json!(given).to_string();
        let conditions = self.conditions.lock().get(&key).cloned();
        let conditions = conditions.unwrap_or_else(|| {
            let scope = Scope { authorizer: true, ..Scope::default() };
            let text = |condition: &Value, key: &str| condition.str_at(key).unwrap_or_default().to_string();
            let compile = |condition: &Value| (text(condition, "name"), scope.check(&text(condition, "expression"), &[Type::Bool]).ok());
            let made: Conditions = Arc::new(given.iter().map(compile).collect());
            self.conditions.lock().insert(key, made.clone());
            made
        });
        let input = Input::of(cx, object, &version, Value::Null);
        let asker = expressions::Asker::new(cx);
        let names = expressions::variables(&input, Some(&asker));
        let mut budget = CONDITIONS_COST_MAX;
        match expressions::conditions_hold(&conditions, &names, &mut budget) {
            Ok(holds) => Ok(holds.then_some(version)),
            Err(_) if webhook.str_at("failurePolicy") == Some("Ignore") => Ok(None),
            Err(why) => Err(cx.forbidden(object, why)),
        }
    }
}

#[async_trait::async_trait]
impl Plugin for Webhooks {
    fn name(&self) -> &'static str {
        if self.mutating { "MutatingAdmissionWebhook" } else { "ValidatingAdmissionWebhook" }
    }

    fn asks_outside(&self) -> bool {
        self.mutating
    }
    fn shows(&self, cx: &AdmissionContext<'_>) -> bool {
        !self.cache(cx).is_empty()
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if !self.mutating {
            return Ok(());
        }
        for (index, webhook) in self.all(cx).iter().enumerate() {
            let who = format!("webhook {index} {}", webhook.str_at("name").unwrap_or_default());
            if !cx.rounds.concern(&who) {
                continue;
            }
            let Some(changed) = self.ask_to_change(webhook, cx, object).await? else { continue };
            if changed {
                cx.rounds.changed();
            }
            if webhook.str_at("reinvocationPolicy") == Some("IfNeeded") {
                cx.rounds.asked(who);
            }
        }
        Ok(())
    }

    async fn validate(&self, cx: &AdmissionContext<'_>, object: &Value) -> Result<(), Status> {
        if self.mutating {
            return Ok(());
        }
        let webhooks = self.all(cx);
        let asked = webhooks.iter().map(|webhook| async move {
            let Some(version) = self.concerns(webhook, cx, object)? else { return Ok(()) };
            ask(webhook, cx, object, &version).await.map(drop)
        });
        futures::future::join_all(asked).await.into_iter().collect()
    }
}

impl Webhooks {
    /// Asks one webhook, and does what it says. Answers whether the object has changed; `None` if it was not asked.
    async fn ask_to_change(&self, webhook: &Value, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<Option<bool>, Status> {
        let Some(version) = self.concerns(webhook, cx, object)? else { return Ok(None) };
        let Some(patch) = ask(webhook, cx, object, &version).await? else { return Ok(Some(false)) };
        if matches!(cx.operation, Operation::Delete | Operation::Connect) {
            return Ok(Some(false));
        }
        let shown = cx.converted(object, &version).await?;
        let patched = merge::json_patch(&shown, &patch).map_err(|status| Status::internal(status.message))?;
        if connections::is_posted(cx) {
            let changed = patched != *object;
            *object = patched;
            return Ok(Some(changed));
        }
        let fitted = structure::conform(patched, cx.kind, &version).map_err(Status::internal)?;
        let mut changed = conversion::object(cx.server, cx.kind, cx.stored(fitted, &version), cx.request_version()).await?;
        if changed == *object {
            return Ok(Some(false));
        }
        cx.kind.hooks.default(&mut changed);
        *object = changed;
        Ok(Some(true))
    }
}

/// Asks one webhook about the request. Gives the patch, if it wants one.
async fn ask(webhook: &Value, cx: &AdmissionContext<'_>, object: &Value, version: &str) -> Result<Option<bytes::Bytes>, Status> {
    let name = webhook.str_at("name").unwrap_or_default();
    if cx.dry_run && !matches!(webhook.str_at("sideEffects"), Some("None" | "NoneOnDryRun")) {
        return Err(Status::bad_request(format!("admission webhook {name:?} does not support dry run")));
    }
    let ignored = webhook.str_at("failurePolicy") == Some("Ignore");
    match call(webhook, cx, object, version).await {
        Ok(response) => judge(name, cx, &response),
        Err(why) if ignored => {
            tracing::warn!(webhook = name, why, "a webhook could not be asked; its failure policy lets the request pass");
            Ok(None)
        }
        Err(why) => Err(Status::internal(format!("failed calling webhook {name:?}: {why}"))),
    }
}

/// What an answer means.
fn judge(name: &str, cx: &AdmissionContext<'_>, response: &Value) -> Result<Option<bytes::Bytes>, Status> {
    for warning in response.list_at("warnings").iter().filter_map(Value::as_str) {
        cx.warnings.add(warning);
    }
    for (key, value) in response.map_at("auditAnnotations").into_iter().flatten() {
        cx.warnings.annotate(&format!("{name}/{key}"), value.as_str().unwrap_or_default());
    }
    if response.bool_at("allowed") == Some(true) {
        let Some(patch) = response.str_at("patch").filter(|patch| !patch.is_empty()) else { return Ok(None) };
        let decoded = STANDARD.decode(patch).map_err(|error| Status::internal(format!("the patch of webhook {name:?} is not base64: {error}")))?;
        return Ok(Some(decoded.into()));
    }
    let result = response.get("status").cloned().unwrap_or_default();
    let (message, reason) = (result.str_at("message").unwrap_or_default(), result.str_at("reason").unwrap_or_default());
    let denied = format!("admission webhook {name:?} denied the request");
    let text = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = result.i64_at("code").and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code)).unwrap_or(403);
    let reason = if reason.is_empty() && code == 403 { "Forbidden" } else { reason };
    let mut status = Status::custom(code, reason.to_string(), text);
    if let Some(known) =
        Status::from_value(&json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "details": result.get("details")}))
    {
        status.details = known.details;
    }
    Err(status)
}

/// Sends the review and reads the answer. The error is text for the client.
async fn call(webhook: &Value, cx: &AdmissionContext<'_>, object: &Value, version: &str) -> Result<Value, String> {
    let uid = uuid::Uuid::new_v4().to_string();
    let mut request = review::request(cx, &uid, version, object);
    let converted = async |object: &Value| cx.converted(object, version).await.map_err(|status| status.message);
    request["object"] = if cx.operation == Operation::Delete { Value::Null } else { converted(object).await? };
    request["oldObject"] = match cx.old {
        Some(old) => converted(old).await?,
        None => Value::Null,
    };
    let speaks = webhook.list_at("admissionReviewVersions").iter().filter_map(Value::as_str).find(|version| matches!(*version, "v1" | "v1beta1"));
    let api_version = format!("admission.k8s.io/{}", speaks.unwrap_or("v1"));
    let body = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
    let seconds = webhook.i64_at("timeoutSeconds").unwrap_or(TIMEOUT_DEFAULT_S).clamp(1, 30);
    let client = webhook.get("clientConfig").cloned().unwrap_or_default();
    let answer = post(cx.server, &client, &format!("?timeout={seconds}s"), &body, Duration::from_secs(seconds as u64))
        .await
        .map_err(|why| format!("failed to call webhook: {why}"))?;
    let response = answer.get("response").filter(|response| response.is_object()).cloned();
    let Some(response) = response else { return Err("expected response.response to be set, got nothing".into()) };
    if response.str_at("uid") != Some(&uid) {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.str_at("uid").unwrap_or_default()));
    }
    if answer.api_version() != api_version || answer.kind() != "AdmissionReview" {
        return Err(format!(
            "expected webhook response of {api_version}, Kind=AdmissionReview, got {}, Kind={}",
            answer.api_version(),
            answer.kind()
        ));
    }
    Ok(response)
}

/// Where a webhook is: how it is named in errors, its host for TLS, the address to connect to, and its path.
struct Place {
    url: String,
    host: String,
    address: (String, u16),
    path: String,
}

fn place(server: &Server, client: &Value, query: &str) -> Result<Place, String> {
    if let Some(url) = client.str_at("url") {
        let rest = url.strip_prefix("https://").ok_or_else(|| format!("{url:?} is not an https URL"))?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| format!("{port:?} is no port"))?),
            _ => (authority, 443),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        return Ok(Place { url: format!("{url}{query}"), address: (host.clone(), port), host, path: format!("{path}{query}") });
    }
    let service = client.get("service").ok_or("neither url nor service is set")?;
    let (namespace, name) = (service.str_at("namespace").unwrap_or_default(), service.str_at("name").unwrap_or_default());
    let port = service.i64_at("port").and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let path = format!("/{}", service.str_at("path").unwrap_or_default().trim_start_matches('/'));
    let host = format!("{name}.{namespace}.svc");
    let url = format!("https://{host}:{port}{path}{query}");
    let found = server.lookup("", "services", namespace, name).ok().flatten();
    let object = found.ok_or_else(|| format!("Post {url:?}: service {name:?} not found"))?.value();
    let address = endpoint(server, &object, port).ok_or_else(|| format!("Post {url:?}: no endpoints available for service {name:?}"))?;
    Ok(Place { url, host, address, path: format!("{path}{query}") })
}

/// A ready endpoint of a Service's port: the server needs no proxy of its own to reach pods.
pub(crate) fn endpoint(server: &Server, service: &Value, port: u16) -> Option<(String, u16)> {
    let wanted = service.list_at("spec.ports").iter().find(|known| known.i64_at("port") == Some(i64::from(port)))?;
    let port_name = wanted.str_at("name").unwrap_or_default();
    let slices = server.entries("discovery.k8s.io", "endpointslices", Some(service.namespace())).ok()?;
    for slice in slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some(service.name())) {
        let slice = slice.value();
        let target =
            slice.list_at("ports").iter().find(|known| known.str_at("name").unwrap_or_default() == port_name).and_then(|known| known.i64_at("port"));
        let ready = slice.list_at("endpoints").iter().find(|endpoint| endpoint.bool_at("conditions.ready") != Some(false));
        let address = ready.and_then(|endpoint| endpoint.list_at("addresses").first().and_then(Value::as_str).map(String::from));
        if let (Some(address), Some(target)) = (address, target.and_then(|target| u16::try_from(target).ok())) {
            return Some((address, target));
        }
    }
    let cluster_ip = service.str_at("spec.clusterIP").filter(|ip| !ip.is_empty() && *ip != "None")?;
    Some((cluster_ip.to_string(), port))
}

/// What the kernel's complaint is in Go's words.
pub(crate) fn dial_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        std::io::ErrorKind::TimedOut => "i/o timeout".into(),
        _ => error.to_string(),
    }
}

/// POSTs JSON to a webhook and reads its JSON. Shared by admission and by conversion of custom resources.
pub async fn post(server: &Server, client: &Value, query: &str, body: &Value, timeout: Duration) -> Result<Value, String> {
    let place = place(server, client, query)?;
    let asked = async {
        let authorities = client.str_at("caBundle").map(|bundle| STANDARD.decode(bundle)).transpose().map_err(|error| error.to_string())?;
        let pem = authorities.map(|pem| String::from_utf8_lossy(&pem).into_owned()).unwrap_or_default();
        let dialled = TcpStream::connect((place.address.0.as_str(), place.address.1)).await;
        let tcp = dialled.map_err(|error| format!("dial tcp {}:{}: {}", place.address.0, place.address.1, dial_error(&error)))?;
        let tls = pki::tls::client(&pem, None).map_err(|error| format!("the webhook's caBundle cannot be used: {error}"))?;
        let name = ServerName::try_from(place.host.clone()).map_err(|_| format!("{:?} is not a name that can be certified", place.host))?;
        let io = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| format!("tls: {error}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, crate::Body>(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        let running = tokio::spawn(connection);
        let request = Request::post(&place.path)
            .header(header::HOST, &place.host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(full(body.to_string()))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let code = response.status();
        let read = body::read(crate::Body::new(response.into_body()), ANSWER_BYTES_MAX).await.map_err(|error| error.to_string());
        running.abort();
        let bytes = read?;
        if !code.is_success() {
            let shown: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
            return Err(format!("an error on the server ({shown:?}) has prevented the request from succeeding"));
        }
        serde_json::from_slice::<Value>(&bytes).map_err(|error| format!("the answer is not JSON: {error}"))
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(outcome) => outcome.map_err(|why| format!("Post {:?}: {why}", place.url)),
        Err(_) => Err(format!("Post {:?}: context deadline exceeded", place.url)),
    }
}
