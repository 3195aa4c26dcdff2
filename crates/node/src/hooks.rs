//! Lifecycle hooks: what a container is told right after its start and right before its end.

use crate::{http, probes};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::time::Duration;

/// How long a hook may run at most; a preStop hook is bounded by the pod's grace as well.
const RUN_TIMEOUT: Duration = Duration::from_secs(3600);

/// Runs a hook to its end.
pub async fn run(cri: &cri::Client, hook: &LifecycleHandler, container: &Container, id: &str, pod_ip: &str) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match cri.exec_sync(id, command, RUN_TIMEOUT).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "Exec lifecycle hook ([{shown}]) failed - error: command '{shown}' exited with {}: {}",
                output.exit_code,
                String::from_utf8_lossy(&output.stderr)
            )),
            Err(error) => Err(format!("Exec lifecycle hook ([{shown}]) failed - error: {error}")),
        };
    }
    if let Some(get) = &hook.http_get {
        let request = probes::http_request(get, container, pod_ip).ok_or("invalid port")?;
        return match http::get(&request).await {
            Ok((code, _)) if code < 400 => Ok(()),
            Ok((code, body)) => Err(format!("HTTP lifecycle hook ({}) failed - code {code}: {body}", request.path)),
            Err(error) => Err(format!("HTTP lifecycle hook ({}) failed - error: {error}", request.path)),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    Err("no handler specified".into())
}
