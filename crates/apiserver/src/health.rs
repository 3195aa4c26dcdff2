//! `/livez`, `/readyz`, `/healthz`, `/version` and the old `componentstatuses`.

use crate::{
    Body, Server,
    body::full,
    connect::{Answer, Call},
    encode::respond,
};
use api::{Status, request::Query};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio_util::sync::CancellationToken;

/// The version that Regent speaks, with its own behind it.
pub const GIT_VERSION: &str = concat!("v1.36.2+regent", env!("CARGO_PKG_VERSION"));

/// How the server is.
#[derive(Default)]
pub struct Health {
    bootstrapped: AtomicBool,
    retiring: CancellationToken,
}

impl Health {
    /// The objects of the first second are there.
    pub fn bootstrapped(&self) {
        self.bootstrapped.store(true, Relaxed);
    }
    pub fn is_bootstrapped(&self) -> bool {
        self.bootstrapped.load(Relaxed)
    }
    /// The server is about to stop.
    pub fn retire(&self) {
        self.retiring.cancel();
    }
    /// Waits until [`Health::retire`] was called.
    pub async fn retiring(&self) {
        self.retiring.cancelled().await;
    }
}

/// What one endpoint checks.
const CHECKS: &[(&str, &[&str])] = &[
    ("/livez", &["ping", "log", "etcd", "poststarthook/rbac/bootstrap-roles"]),
    ("/readyz", &["ping", "log", "etcd", "informer-sync", "poststarthook/rbac/bootstrap-roles", "shutdown"]),
    ("/healthz", &["ping", "log", "etcd", "poststarthook/rbac/bootstrap-roles"]),
];

/// The name of one of Kubernetes' start hooks that has no counterpart here counts as done.
const HOOK: &str = "poststarthook/";

fn split(path: &str) -> Option<(&'static str, &'static [&'static str], &str)> {
    CHECKS.iter().find_map(|(endpoint, checks)| {
        let rest = path.strip_prefix(endpoint)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| (*endpoint, *checks, rest.trim_start_matches('/')))
    })
}

/// Whether the path is one of health.
pub fn serves(path: &str) -> bool {
    split(path).is_some()
}

fn check(server: &Server, endpoint: &str, name: &str) -> Result<(), String> {
    match name {
        // A server that lives on without its store is not to be restarted for it, but nobody shall be sent to it.
        "etcd" if endpoint != "/livez" => match server.store.trouble() {
            Some(error @ (store::Error::Damaged(_) | store::Error::Undecryptable(_))) => Err(error.to_string()),
            _ => server.cache.lost().map_or(Ok(()), |why| Err(format!("the store does not answer: {why}"))),
        },
        "poststarthook/rbac/bootstrap-roles" if !server.health.is_bootstrapped() => Err("not finished".into()),
        "shutdown" if server.health.retiring.is_cancelled() || server.config.shutdown.is_cancelled() => Err("process is shutting down".into()),
        _ => Ok(()),
    }
}

/// Answers a path of health; `None` for a check that there is not.
pub fn answer(server: &Server, path: &str, query: &Query) -> Result<Option<Response<Body>>, Status> {
    let Some((endpoint, checks, only)) = split(path) else { return Ok(None) };
    let text = |code, text: String| {
        let mut response = respond(code, "text/plain; charset=utf-8", full(text));
        response.headers_mut().insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
        response
    };
    if !only.is_empty() {
        if !checks.contains(&only) && !only.starts_with(HOOK) {
            return Ok(None);
        }
        return Ok(Some(match check(server, endpoint, only) {
            Ok(()) => text(StatusCode::OK, "ok".into()),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        }));
    }
    let mut excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = String::new();
    let mut failed = false;
    for name in checks {
        if let Some(i) = excluded.iter().position(|excluded| excluded == name) {
            excluded.remove(i);
            lines += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        match check(server, endpoint, name) {
            Ok(()) => lines += &format!("[+]{name} ok\n"),
            Err(_) => {
                failed = true;
                lines += &format!("[-]{name} failed: reason withheld\n");
            }
        }
    }
    if !excluded.is_empty() {
        let names = excluded.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",");
        lines += &format!("warn: some health checks cannot be excluded: no matches for {names}\n");
    }
    let word = endpoint.trim_start_matches('/');
    Ok(Some(match (failed, query.get("verbose").is_some()) {
        (true, _) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{word} check failed\n")),
        (false, true) => text(StatusCode::OK, format!("{lines}{word} check passed\n")),
        (false, false) => text(StatusCode::OK, "ok".into()),
    }))
}

/// `/version`.
pub fn version() -> Response<Body> {
    let version = json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION, "gitCommit": option_env!("REGENT_COMMIT").unwrap_or(""), "gitTreeState": "clean",
        "buildDate": option_env!("REGENT_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"), "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }),
    });
    let text = serde_json::to_string_pretty(&version).unwrap_or_default();
    respond(StatusCode::OK, "application/json", full(text))
}

/// `componentstatuses`: deprecated, but `kubectl get cs` still asks.
pub async fn component_statuses(call: Call) -> Answer {
    let component = |name: &str| {
        let trouble = if name == "etcd-0" { call.server.store.trouble() } else { None };
        let (status, message) = trouble.map_or(("True", "ok".to_string()), |error| ("False", error.to_string()));
        json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [{"type": "Healthy", "status": status, "message": message}]})
    };
    let all: Vec<Value> = ["scheduler", "controller-manager", "etcd-0"].map(component).into();
    if call.info.name.is_empty() {
        let list = match call.output.shape {
            crate::encode::Shape::Table { version } => call.output.table(&call.view(), all.iter().cloned(), json!({}), true, version),
            _ => json!({"apiVersion": "v1", "kind": "ComponentStatusList", "metadata": {}, "items": all}),
        };
        return Ok(call.answer(StatusCode::OK, &list));
    }
    let found = all.into_iter().find(|component| component["metadata"]["name"] == call.info.name.as_str());
    let found = found.ok_or_else(|| Status::not_found(call.resource(), &call.info.name))?;
    Ok(call.output.object(StatusCode::OK, &call.view(), found))
}
