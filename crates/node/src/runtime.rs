//! The runtime as workers use it: looking at one pod, making its sandbox, starting and stopping its containers.
//!
//! Everything here may be repeated, and everything says what it did as Kubernetes' events. Decisions are not made here
//! but in [`crate::pod`].

use crate::{
    agent::Context,
    hooks, images, logs, objects,
    pod::{Container, Observed, Sandbox, StartFailure, State},
    resize,
    spec::{self, PodId, Role, container, env, names, resources, sandbox},
    worker::container_reference,
};
use client::events::{Normal, Warning};
use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::Duration,
};

/// As much of a termination message as is kept.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Of a log that stands in for a message.
const MESSAGE_LOG_BYTES_MAX: u64 = 2048;
const MESSAGE_LOG_LINES_MAX: usize = 80;
/// The least that a container gets to end after its preStop hook.
const GRACE_MIN_S: i64 = 2;
/// When a start that failed for its configuration is tried again.
const RETRY_S: i64 = 10;
/// How long a pod waits for the RuntimeClasses to be known.
const CLASSES_WAIT: Duration = Duration::from_secs(10);

/// A CRI time, zero meaning none.
fn at(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok()).flatten()
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

/// The labels that select everything of one pod.
pub fn of_pod(uid: &str) -> HashMap<String, String> {
    HashMap::from([(names::POD_UID.to_owned(), uid.to_owned())])
}

/// Everything that the runtime has of a pod. `messages` keeps what ended containers have left, by id.
pub async fn observe(cx: &Context, id: &PodId, pod: &Pod, messages: &mut BTreeMap<String, String>) -> Result<Observed, cri::Error> {
    let path = resources::cgroup_path(&cx.config.cgroup_root, pod);
    let mut out = Observed { cgroup: cx.cgroups.limits(&path), ..Default::default() };
    for listed in cx.cri.list_pod_sandboxes(of_pod(&id.uid)).await? {
        let ready = listed.state() == v1::PodSandboxState::SandboxReady;
        let ips = if ready {
            match cx.cri.pod_sandbox_status(&listed.id).await {
                Ok(status) => addresses(&status),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            }
        } else {
            Vec::new()
        };
        out.sandboxes.push(Sandbox {
            ready,
            ips,
            attempt: listed.metadata.map(|metadata| metadata.attempt).unwrap_or_default(),
            created_at: at(listed.created_at).unwrap_or_default(),
            id: listed.id,
        });
    }
    for listed in cx.cri.list_containers(of_pod(&id.uid)).await? {
        let status = match cx.cri.container_status(&listed.id).await {
            Ok(status) => status,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let mut container = seen(status, listed.pod_sandbox_id);
        if container.state == State::Running {
            container.resources = cx.allocations.told(&id.uid, &container.id).or(container.resources);
            container.cgroup = cx.cgroups.limits(&format!("{path}/{}", container.id));
            // Made by an agent that did not note it yet: it has what is set aside now, before anything else is.
            if container.resources.is_none()
                && let Some((_, declared)) = spec::find_container(pod, &container.name)
            {
                let resources = declared.resources.unwrap_or_default();
                cx.allocations.note_told(&id.uid, &container.id, resources.clone());
                container.resources = Some(resources);
            }
        }
        if container.state == State::Exited && !messages.contains_key(&container.id) {
            let path = listed.annotations.get(names::TERMINATION_MESSAGE_FILE).cloned().unwrap_or_default();
            let from_log = listed.annotations.get(names::TERMINATION_MESSAGE_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
            messages.insert(container.id.clone(), termination_message(&path, from_log && container.exit_code != 0, &container.log_path).await);
        }
        out.containers.push(container);
    }
    messages.retain(|id, _| out.containers.iter().any(|container| container.id == *id));
    Ok(out.sorted())
}

fn addresses(status: &v1::PodSandboxStatus) -> Vec<String> {
    let Some(network) = &status.network else { return Vec::new() };
    let all = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip));
    all.filter(|ip| !ip.is_empty()).cloned().collect()
}

fn seen(status: v1::ContainerStatus, sandbox_id: String) -> Container {
    let state = match status.state() {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running,
        v1::ContainerState::ContainerExited => State::Exited,
        v1::ContainerState::ContainerUnknown => State::Unknown,
    };
    let label = |name: &str| status.labels.get(name).cloned().unwrap_or_default();
    let attempt = status.annotations.get(names::RESTART_COUNT).and_then(|text| text.parse().ok());
    Container {
        name: label(names::CONTAINER_NAME),
        sandbox_id,
        attempt: attempt.unwrap_or_else(|| status.metadata.as_ref().map(|metadata| metadata.attempt).unwrap_or_default()),
        state,
        created_at: at(status.created_at).unwrap_or_default(),
        started_at: at(status.started_at),
        finished_at: at(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: status.image_ref,
        hash: status.annotations.get(names::CONTAINER_HASH).cloned().unwrap_or_default(),
        log_path: status.log_path,
        resources: status.annotations.get(names::RESOURCES).and_then(|text| serde_json::from_str(text).ok()),
        cgroup: None,
        id: status.id,
    }
}

async fn termination_message(path: &str, from_log: bool, log_path: &str) -> String {
    let mut text = match tokio::fs::read(path).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(MESSAGE_BYTES_MAX)]).into_owned(),
        Err(_) => String::new(),
    };
    if text.is_empty() && from_log {
        text = logs::tail_text(log_path, MESSAGE_LOG_LINES_MAX, MESSAGE_LOG_BYTES_MAX).await;
    }
    text
}

/// What a sandbox could not be made for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SandboxError {
    #[error("network is not ready: container runtime network not ready")]
    Network,
    #[error("can't set `spec.hostUsers: false`, runtime does not support user namespaces")]
    UserNamespaces,
    #[error("its ResourceClaims need a DRA driver, and none can register on this node")]
    Devices,
    #[error("{0}")]
    Volume(crate::volumes::Error),
    #[error("failed to ensure that the pod: {uid} cgroups exist and are correctly applied: {message}")]
    Cgroup { uid: String, message: String },
    #[error("{0}")]
    Runtime(cri::Error),
}

/// Makes everything that a pod's containers need before the first of them: cgroup, volumes, sandbox.
pub async fn create_sandbox(cx: &Context, pod: &Pod, attempt: u32, stop: Vec<String>, facts: &env::Facts) -> Result<(), SandboxError> {
    let id = PodId::of(pod);
    let told = |type_, reason: &str, message: String| cx.recorder.about(pod, type_, reason, message);
    if !spec::host_network(pod) && !cx.network_ready() {
        told(Warning, "NetworkNotReady", "network is not ready: container runtime network not ready: NetworkReady=false".into());
        return Err(SandboxError::Network);
    }
    // Run without them it would have more rights than it asks for.
    if spec::spec_of(pod).host_users == Some(false) {
        told(Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {}", SandboxError::UserNamespaces));
        return Err(SandboxError::UserNamespaces);
    }
    // Nor without the devices that it asks for.
    if spec::spec_of(pod).resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        told(Warning, "FailedPrepareDynamicResources", format!("Failed to prepare dynamic resources: {}", SandboxError::Devices));
        return Err(SandboxError::Devices);
    }
    let (cgroups, path, limits) = (cx.cgroups.clone(), resources::cgroup_path(&cx.config.cgroup_root, pod), resources::pod_limits(pod));
    let made = tokio::task::spawn_blocking(move || cgroups.pod(&path, &limits)).await;
    if let Err(message) = made.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| error.to_string())) {
        let error = SandboxError::Cgroup { uid: id.uid.clone(), message };
        told(Warning, "FailedCreatePodContainer", error.to_string());
        return Err(error);
    }
    if let Err(error) = cx.volumes.set_up(pod, facts).await {
        told(Warning, "FailedMount", error.to_string());
        return Err(SandboxError::Volume(error));
    }
    if attempt > 0 {
        told(Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.".into());
    }
    for old in stop {
        cx.cri.stop_pod_sandbox(&old).await.map_err(SandboxError::Runtime)?;
    }
    let config = sandbox::config(pod, attempt, &cx.config.cgroup_root, &cx.config.log_dir, &cx.dns);
    if let Err(error) = tokio::fs::create_dir_all(&config.log_directory).await {
        tracing::warn!(pod = %id, %error, "cannot make the pod's log directory");
    }
    let handler = runtime_handler(cx, pod).await;
    match cx.cri.run_pod_sandbox(config, &handler).await {
        Ok(_) => Ok(()),
        Err(error) => {
            told(Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
            Err(SandboxError::Runtime(error))
        }
    }
}

/// The runtime's handler for the pod's RuntimeClass; the plain one if it names none or it cannot be read.
async fn runtime_handler(cx: &Context, pod: &Pod) -> String {
    let Some(name) = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.clone()).filter(|name| !name.is_empty()) else {
        return String::new();
    };
    // At the node's very first start they may not have arrived yet.
    let _ = tokio::time::timeout(CLASSES_WAIT, cx.runtime_classes.synced()).await;
    match cx.runtime_classes.get(&client::Key::new("", name.as_str())) {
        Some(class) => class.handler.clone(),
        None => {
            tracing::warn!(class = name, "there is no such RuntimeClass");
            name
        }
    }
}

fn failure(reason: &str, message: String, retry_at: Timestamp) -> StartFailure {
    StartFailure { retry_at, reason: reason.to_owned(), message }
}

fn later(count: i64) -> Timestamp {
    Timestamp::now().saturating_add(seconds(count)).unwrap_or(Timestamp::MAX)
}

/// The ConfigMaps, Secrets and Services that a container's environment reads.
async fn sources(cx: &Context, pod: &Pod, container: &ContainerSpec) -> Result<env::Sources, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let (config_maps, secrets) = env::references(container);
    let mut out = env::Sources::default();
    for name in config_maps {
        if let Some(map) = cx.objects.config_map(&namespace, &name, objects::FRESH).await.map_err(|error| error.to_string())? {
            out.config_maps.insert(name, map);
        }
    }
    for name in secrets {
        if let Some(secret) = cx.objects.secret(&namespace, &name, objects::FRESH).await.map_err(|error| error.to_string())? {
            out.secrets.insert(name, secret);
        }
    }
    if spec::spec_of(pod).enable_service_links.unwrap_or(true) {
        out.services = cx.services.in_namespace(&namespace);
    }
    if namespace != "default" || out.services.is_empty() {
        out.services.extend(cx.services.get(&client::informer::Key::new("default", "kubernetes")));
    }
    Ok(out)
}

async fn pull_credentials(cx: &Context, pod: &Pod, image: &str) -> Vec<v1::AuthConfig> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut secrets = Vec::new();
    for reference in spec::spec_of(pod).image_pull_secrets.iter().flatten() {
        match cx.objects.secret(&namespace, &reference.name, objects::FRESH).await {
            Ok(Some(secret)) => secrets.push(secret),
            Ok(None) => {
                let message =
                    format!("Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.", reference.name);
                cx.recorder.about(pod, Warning, "FailedToRetrieveImagePullSecret", message);
            }
            Err(error) => tracing::warn!(%error, "cannot read an image pull secret"),
        }
    }
    images::credentials(&secrets, image)
}

/// Starts one container: image, environment, mounts, creation, start, postStart hook.
pub async fn start(
    cx: &Arc<Context>,
    pod: &Pod,
    role: Role,
    container: &ContainerSpec,
    attempt: u32,
    sandbox: &Sandbox,
    facts: &env::Facts,
) -> Result<(), StartFailure> {
    let id = PodId::of(pod);
    let reference = container_reference(pod, role, &container.name);
    let told = |type_, reason: &str, message: String| cx.recorder.event(&reference, type_, reason, "", message);
    let image_name = container.image.clone().unwrap_or_default();
    let sandbox_config = sandbox::config(pod, sandbox.attempt, &cx.config.cgroup_root, &cx.config.log_dir, &cx.dns);

    let credentials = pull_credentials(cx, pod, &image_name).await;
    let pulling = || told(Normal, "Pulling", format!("Pulling image \"{image_name}\""));
    let has_server = cx.contact.is_there().await;
    let policy = container.image_pull_policy.as_deref();
    let ensured = cx.images.ensure(&image_name, policy, credentials, Some(sandbox_config.clone()), has_server, pulling).await;
    let present = match ensured {
        Ok(present) => {
            told(Normal, "Pulled", images::pulled_message(&image_name, &present.got));
            present
        }
        Err(error) => {
            let retry_at = match &error {
                images::Error::BackOff { until, image, .. } => {
                    told(Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
                    *until
                }
                images::Error::Pull { message } => {
                    told(Warning, "Failed", format!("Failed to pull image \"{image_name}\": {message}"));
                    later(2)
                }
                images::Error::InvalidName { .. } => {
                    told(Warning, "InspectFailed", error.to_string());
                    later(RETRY_S)
                }
                images::Error::Never { .. } => {
                    told(Warning, "ErrImageNeverPull", error.to_string());
                    later(RETRY_S)
                }
                images::Error::Inspect { .. } => later(RETRY_S),
            };
            told(Warning, "Failed", format!("Error: {}", error.reason()));
            return Err(failure(error.reason(), error.to_string(), retry_at));
        }
    };

    let config_error = |message: String| {
        told(Warning, "Failed", format!("Error: {message}"));
        failure("CreateContainerConfigError", message, later(RETRY_S))
    };
    let image = container::Image {
        reference: present.image.id.clone(),
        user: present.image.uid.as_ref().map(|uid| uid.value),
        user_name: present.image.username.clone(),
    };
    spec::security::check_non_root(pod, container, image.user, &image.user_name).map_err(|error| config_error(error.to_string()))?;
    let sources = sources(cx, pod, container).await.map_err(config_error)?;
    let environment = env::environment(pod, container, facts, &sources).map_err(|error| config_error(error.to_string()))?;
    let known: HashMap<String, String> = environment.iter().cloned().collect();
    let expand = |text: &str| env::expand_path(text, |name| known.get(name).cloned());
    let mut binds = cx.volumes.binds(pod, container, expand).await.map_err(config_error)?;
    let message_file = prepare_files(cx, pod, container, attempt, facts, &mut binds).map_err(|error| config_error(error.to_string()))?;

    let parts =
        container::Parts { attempt, image, environment, binds, termination_message_file: message_file, node_memory_bytes: cx.machine.memory_bytes };
    let mut config = container::config(pod, container, &parts);
    if role == Role::Ephemeral {
        share_processes(cx, &id, pod, container, &mut config).await;
    }
    let log_directory = cx.config.log_dir.join(spec::log_directory_name(&id)).join(&container.name);
    if let Err(error) = fs::create_dir_all(&log_directory) {
        return Err(config_error(format!("cannot make the log directory: {error}")));
    }
    let container_id = match create(cx, &id, sandbox, container, attempt, config, sandbox_config).await {
        Ok(container_id) => container_id,
        Err(error) => {
            told(Warning, "Failed", format!("Error: {error}"));
            return Err(failure("CreateContainerError", error.message().to_owned(), later(RETRY_S)));
        }
    };
    told(Normal, "Created", "Container created".into());
    if let Err(error) = cx.cri.start_container(&container_id).await {
        told(Warning, "Failed", format!("Error: {error}"));
        return Err(failure("RunContainerError", error.message().to_owned(), Timestamp::now()));
    }
    told(Normal, "Started", "Container started".into());

    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) {
        let pod_ip = facts.pod_ips.first().cloned().unwrap_or_default();
        if let Err(error) = hooks::run(&cx.cri, hook, container, &container_id, &pod_ip).await {
            told(Warning, "FailedPostStartHook", format!("PostStartHook failed: {error}"));
            stop(cx, pod, role, container, &container_id, 2, "FailedPostStartHook", true).await;
            return Err(failure("PostStartHookError", "PostStartHookError".into(), Timestamp::now()));
        }
    }
    Ok(())
}

/// A container that debugs another sees the other's processes.
async fn share_processes(cx: &Context, id: &PodId, pod: &Pod, container: &ContainerSpec, config: &mut v1::ContainerConfig) {
    let spec = spec::spec_of(pod);
    let own = spec.ephemeral_containers.iter().flatten().find(|own| own.name == container.name);
    let Some(target) = own.and_then(|own| own.target_container_name.clone()).filter(|name| !name.is_empty()) else { return };
    let Ok(listed) = cx.cri.list_containers(of_pod(&id.uid)).await else { return };
    let found = listed.into_iter().find(|listed| {
        listed.state() == v1::ContainerState::ContainerRunning && listed.labels.get(names::CONTAINER_NAME).is_some_and(|name| *name == target)
    });
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    if let (Some(found), Some(namespaces)) = (found, context.and_then(|context| context.namespace_options.as_mut())) {
        namespaces.pid = v1::NamespaceMode::Target.into();
        namespaces.target_id = found.id;
    }
}

/// Creates a container; one of the same attempt that never ran (the agent was stopped in between) makes way.
async fn create(
    cx: &Context,
    id: &PodId,
    sandbox: &Sandbox,
    container: &ContainerSpec,
    attempt: u32,
    config: v1::ContainerConfig,
    sandbox_config: v1::PodSandboxConfig,
) -> Result<String, cri::Error> {
    let first = cx.cri.create_container(&sandbox.id, config.clone(), sandbox_config.clone()).await;
    let Err(error) = first else { return first };
    if !error.message().contains("is reserved for") {
        return Err(error);
    }
    for listed in cx.cri.list_containers(of_pod(&id.uid)).await? {
        let same = listed.metadata.as_ref().is_some_and(|metadata| metadata.name == container.name && metadata.attempt == attempt);
        if same && listed.state() == v1::ContainerState::ContainerCreated {
            cx.cri.remove_container(&listed.id).await?;
            return cx.cri.create_container(&sandbox.id, config, sandbox_config).await;
        }
    }
    Err(error)
}

/// Files that a container gets beside its volumes: its hosts file and the place for its last words. Returns the latter.
fn prepare_files(
    cx: &Context,
    pod: &Pod,
    container: &ContainerSpec,
    attempt: u32,
    facts: &env::Facts,
    binds: &mut Vec<container::Bind>,
) -> std::io::Result<String> {
    let directory = cx.volumes.pod_directory(pod.metadata.uid.as_deref().unwrap_or_default());
    let mounted = |binds: &[container::Bind], path: &str| binds.iter().any(|bind| bind.container_path.trim_end_matches('/') == path);
    if !mounted(binds, "/etc/hosts") {
        let (host_name, domain) = sandbox::host_name_and_domain(pod, &cx.dns.cluster_domain);
        let node_hosts = if spec::host_network(pod) { Some(fs::read_to_string("/etc/hosts").unwrap_or_default()) } else { None };
        let text = sandbox::hosts_file(pod, &facts.pod_ips, &host_name, &domain, node_hosts.as_deref());
        let path = directory.join("etc-hosts");
        if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        binds.push(container::Bind { host_path: path.to_string_lossy().into_owned(), container_path: "/etc/hosts".into(), ..Default::default() });
    }
    let message_path = container::termination_message_path(container);
    if mounted(binds, &message_path) {
        return Ok(String::new());
    }
    let own = directory.join("containers").join(&container.name);
    fs::create_dir_all(&own)?;
    let file = own.join(format!("{attempt}.termination"));
    fs::write(&file, b"")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    let file = file.to_string_lossy().into_owned();
    binds.push(container::Bind { host_path: file.clone(), container_path: message_path, ..Default::default() });
    Ok(file)
}

/// Changes limits in place, step by step. The error is for the pod's status; what was done before it stays done.
pub async fn resize(cx: &Arc<Context>, pod: &Arc<Pod>, steps: &[resize::Step]) -> Result<(), String> {
    let path = resources::cgroup_path(&cx.config.cgroup_root, pod);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for step in steps {
        match step {
            resize::Step::Pod(limits) => {
                refuse_below_usage(cx, "pod", &path, limits.memory_limit)?;
                let (cgroups, path, limits) = (cx.cgroups.clone(), path.clone(), *limits);
                let made = tokio::task::spawn_blocking(move || cgroups.pod(&path, &limits)).await;
                made.map_err(|error| error.to_string()).and_then(|result| result.map_err(|error| format!("failed to set pod limits: {error}")))?;
            }
            resize::Step::Container { id, name } => {
                let Some((_, container)) = spec::find_container(pod, name) else { continue };
                let figures = resources::container_resources(pod, &container, cx.machine.memory_bytes);
                let limit = Some(figures.memory_limit_in_bytes).filter(|limit| *limit > 0);
                refuse_below_usage(cx, "container", &format!("{path}/{id}"), limit)?;
                cx.cri.update_container_resources(id, figures).await.map_err(|error| error.message().to_owned())?;
                cx.allocations.note_told(uid, id, container.resources.clone().unwrap_or_default());
            }
        }
    }
    Ok(())
}

/// A limit below what is in use would have the kernel kill what runs; it waits until less is used.
fn refuse_below_usage(cx: &Context, what: &str, path: &str, limit: Option<i64>) -> Result<(), String> {
    let falls = limit.filter(|limit| cx.cgroups.limits(path).and_then(|now| now.memory_limit).is_none_or(|now| *limit < now));
    let used = cx.cgroups.working_set(path).and_then(|used| i64::try_from(used).ok());
    match (falls, used) {
        (Some(limit), Some(used)) if used > limit => Err(format!("attempting to set {what} memory limit ({limit}) below current usage ({used})")),
        _ => Ok(()),
    }
}

/// Ends a container: preStop hook, then the signal, then the kill, all within the grace.
pub async fn stop(cx: &Context, pod: &Pod, role: Role, container: &ContainerSpec, id: &str, grace_s: i64, message: &str, quiet: bool) -> bool {
    let reference = container_reference(pod, role, &container.name);
    if !quiet {
        cx.recorder.event(&reference, Normal, "Killing", "", message);
    }
    let began = Timestamp::now();
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let (Some(hook), true) = (hook, grace_s > 0 && !quiet) {
        let pod_ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        let limit = Duration::from_secs(grace_s.unsigned_abs());
        match tokio::time::timeout(limit, hooks::run(&cx.cri, hook, container, id, &pod_ip)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => cx.recorder.event(&reference, Warning, "FailedPreStopHook", "", format!("PreStopHook failed: {error}")),
            Err(_) => tracing::warn!(pod = %PodId::of(pod), container = container.name, "the preStop hook took the whole grace period"),
        }
    }
    let spent = Timestamp::now().duration_since(began).as_secs();
    let left = if grace_s == 0 { 0 } else { (grace_s - spent).max(GRACE_MIN_S) };
    match cx.cri.stop_container(id, Duration::from_secs(left.unsigned_abs())).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(pod = %PodId::of(pod), container = container.name, %error, "cannot stop the container");
            false
        }
    }
}
