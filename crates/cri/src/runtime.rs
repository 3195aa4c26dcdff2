//! RuntimeService: sandboxes, containers, streaming addresses, statistics.

use crate::{Client, Error, channel::bounded, deadlines, v1};
use std::{collections::HashMap, time::Duration};

/// What a command run inside a container left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// A call whose "not found" means that the work is already done.
fn gone_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

impl Client {
    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<v1::VersionResponse, Error> {
        let request = v1::VersionRequest { version: "0.1.0".into() };
        bounded("Version", deadlines::READ, self.runtime.clone().version(request)).await
    }

    /// The runtime's own conditions (`RuntimeReady`, `NetworkReady`).
    pub async fn status(&self) -> Result<Vec<v1::RuntimeCondition>, Error> {
        let request = v1::StatusRequest { verbose: false };
        let answer = bounded("Status", deadlines::READ, self.runtime.clone().status(request)).await?;
        Ok(answer.status.map(|status| status.conditions).unwrap_or_default())
    }

    /// Makes and starts a pod sandbox, and returns its id.
    pub async fn run_pod_sandbox(&self, config: v1::PodSandboxConfig, runtime_handler: &str) -> Result<String, Error> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.into() };
        let answer = bounded("RunPodSandbox", deadlines::SANDBOX, self.runtime.clone().run_pod_sandbox(request)).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Stops a sandbox and everything in it at once. Done twice is done; gone is done.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_done(bounded("StopPodSandbox", deadlines::SANDBOX, self.runtime.clone().stop_pod_sandbox(request)).await.map(drop))
    }

    /// Removes a stopped sandbox with its containers. Gone is done.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_done(bounded("RemovePodSandbox", deadlines::SANDBOX, self.runtime.clone().remove_pod_sandbox(request)).await.map(drop))
    }

    /// One sandbox in full.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus, Error> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = bounded("PodSandboxStatus", deadlines::READ, self.runtime.clone().pod_sandbox_status(request)).await?;
        answer.status.ok_or_else(|| Error::NotFound(format!("sandbox {id} has no status")))
    }

    /// All sandboxes with these labels, ready or not.
    pub async fn list_pod_sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<v1::PodSandbox>, Error> {
        let filter = v1::PodSandboxFilter { label_selector: labels, ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(bounded("ListPodSandbox", deadlines::READ, self.runtime.clone().list_pod_sandbox(request)).await?.items)
    }

    /// Makes a container in a sandbox without starting it, and returns its id.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, Error> {
        let request = v1::CreateContainerRequest { pod_sandbox_id: sandbox_id.into(), config: Some(config), sandbox_config: Some(sandbox_config) };
        Ok(bounded("CreateContainer", deadlines::CHANGE, self.runtime.clone().create_container(request)).await?.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::StartContainerRequest { container_id: id.into() };
        bounded("StartContainer", deadlines::CHANGE, self.runtime.clone().start_container(request)).await.map(drop)
    }

    /// Asks the container to end, and kills it when `grace` is over. Returns once it has stopped. Gone is done.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let request = v1::StopContainerRequest { container_id: id.into(), timeout: grace.as_secs().try_into().unwrap_or(i64::MAX) };
        let deadline = grace.saturating_add(deadlines::CHANGE);
        gone_is_done(bounded("StopContainer", deadline, self.runtime.clone().stop_container(request)).await.map(drop))
    }

    /// Removes a container. Gone is done.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::RemoveContainerRequest { container_id: id.into() };
        gone_is_done(bounded("RemoveContainer", deadlines::CHANGE, self.runtime.clone().remove_container(request)).await.map(drop))
    }

    /// All containers with these labels, in any state.
    pub async fn list_containers(&self, labels: HashMap<String, String>) -> Result<Vec<v1::Container>, Error> {
        let filter = v1::ContainerFilter { label_selector: labels, ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(bounded("ListContainers", deadlines::READ, self.runtime.clone().list_containers(request)).await?.containers)
    }

    /// One container in full.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, Error> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = bounded("ContainerStatus", deadlines::READ, self.runtime.clone().container_status(request)).await?;
        answer.status.ok_or_else(|| Error::NotFound(format!("container {id} has no status")))
    }

    /// The PID of a container's first process, as this process' namespace numbers it. `None` if the runtime does not say it: CRI
    /// leaves it to the runtime's own words (`info` of a verbose answer), which containerd and CRI-O write alike.
    pub async fn container_pid(&self, id: &str) -> Result<Option<i32>, Error> {
        #[derive(serde::Deserialize)]
        struct Info {
            pid: Option<i32>,
        }
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = bounded("ContainerStatus", deadlines::READ, self.runtime.clone().container_status(request)).await?;
        let info = answer.info.get("info").and_then(|text| serde_json::from_str::<Info>(text).ok());
        Ok(info.and_then(|info| info.pid).filter(|pid| *pid > 0))
    }

    /// Changes the limits of a running container.
    pub async fn update_container_resources(&self, id: &str, linux: v1::LinuxContainerResources) -> Result<(), Error> {
        let request = v1::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
        bounded("UpdateContainerResources", deadlines::CHANGE, self.runtime.clone().update_container_resources(request)).await.map(drop)
    }

    /// Makes the runtime open the container's log file anew, after it was moved away.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let request = v1::ReopenContainerLogRequest { container_id: id.into() };
        bounded("ReopenContainerLog", deadlines::READ, self.runtime.clone().reopen_container_log(request)).await.map(drop)
    }

    /// Runs a command in a container and waits for its end, at most `timeout`.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<ExecOutput, Error> {
        let request = v1::ExecSyncRequest { container_id: id.into(), cmd: command, timeout: timeout.as_secs().max(1).try_into().unwrap_or(i64::MAX) };
        let deadline = timeout.saturating_add(deadlines::SLACK);
        let answer = bounded("ExecSync", deadline, self.runtime.clone().exec_sync(request)).await?;
        Ok(ExecOutput { stdout: answer.stdout, stderr: answer.stderr, exit_code: answer.exit_code })
    }

    /// The address at which the runtime will stream an exec, good for one connection.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, Error> {
        Ok(bounded("Exec", deadlines::READ, self.runtime.clone().exec(request)).await?.url)
    }

    /// The address at which the runtime will stream an attach, good for one connection.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, Error> {
        Ok(bounded("Attach", deadlines::READ, self.runtime.clone().attach(request)).await?.url)
    }

    /// The address at which the runtime will forward ports of a sandbox, good for one connection.
    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Error> {
        Ok(bounded("PortForward", deadlines::READ, self.runtime.clone().port_forward(request)).await?.url)
    }

    /// What all containers use right now.
    pub async fn list_container_stats(&self) -> Result<Vec<v1::ContainerStats>, Error> {
        let request = v1::ListContainerStatsRequest { filter: None };
        Ok(bounded("ListContainerStats", deadlines::READ, self.runtime.clone().list_container_stats(request)).await?.stats)
    }

    /// Tells the runtime the node's pod network range, for plugins whose configuration is made from a template.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Result<(), Error> {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.into() });
        let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        bounded("UpdateRuntimeConfig", deadlines::READ, self.runtime.clone().update_runtime_config(request)).await.map(drop)
    }
}
