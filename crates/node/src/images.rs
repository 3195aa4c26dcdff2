//! Images: whether to pull, with whose credentials, how long to wait after a failure, and what to remove when the disk
//! is full.
//!
//! What must stay true: an image that a container uses is never removed; a failed pull is not repeated before its delay
//! is over, for whatever pod; pulls of the same image at once are one pull.
//!
//! With no server alive `Always` counts as `IfNotPresent`: only pods that were given to this node while there was a server
//! run here, they were entitled to their images then, and a restart must not hang on a registry that may be a victim of the
//! same outage. With a server `Always` is what it is in Kubernetes.

use crate::backoff::{Backoffs, go_duration};
use base64::Engine as _;
use cri::v1::{AuthConfig, PodSandboxConfig};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// How docker's own configuration calls it.
const DEFAULT_REGISTRY_KEY: &str = "https://index.docker.io/v1/";

/// Why a container has no image; the reasons are what users see in its status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format")]
    InvalidName { image: String },
    #[error("Container image \"{image}\" is not present with pull policy of Never")]
    Never { image: String },
    #[error("{message}")]
    Pull { message: String },
    #[error("Back-off pulling image \"{image}\": ErrImagePull: {last}")]
    BackOff { image: String, last: String, until: Timestamp },
    #[error("{message}")]
    Inspect { message: String },
}

impl Error {
    /// The reason in the container's waiting state.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::InvalidName { .. } => "InvalidImageName",
            Error::Never { .. } => "ErrImageNeverPull",
            Error::Pull { .. } => "ErrImagePull",
            Error::BackOff { .. } => "ImagePullBackOff",
            Error::Inspect { .. } => "ImageInspectError",
        }
    }
}

/// The name with the tag that it means: `latest` if it says none.
pub fn normalized(image: &str) -> Result<String, Error> {
    let invalid = || Error::InvalidName { image: image.to_owned() };
    let name = image.split('@').next().unwrap_or_default();
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let mut parts = path.split('/').peekable();
    let first = path.split('/').next().unwrap_or_default();
    let has_registry = path.contains('/') && (first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()));
    if has_registry {
        parts.next();
    }
    let mut any = false;
    for part in parts {
        any = true;
        let ends_well = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if !part.chars().all(allowed) || !ends_well(part.chars().next()) || !ends_well(part.chars().last()) {
            return Err(invalid());
        }
    }
    let tag_is_well = tag.is_none_or(|tag| {
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && !tag.starts_with(['.', '-'])
    });
    if !any || !tag_is_well {
        return Err(invalid());
    }
    Ok(if tag.is_none() && !image.contains('@') { format!("{image}:latest") } else { image.to_owned() })
}

/// The pull policy, which depends on the tag if it is not given.
pub fn policy(given: Option<&str>, image: &str) -> String {
    match given.filter(|policy| !policy.is_empty()) {
        Some(policy) => policy.to_owned(),
        None if normalized(image).is_ok_and(|name| name.ends_with(":latest")) => "Always".into(),
        None => "IfNotPresent".into(),
    }
}

/// The policy that counts: see the module for what it is without a server.
pub fn effective_policy(given: Option<&str>, image: &str, has_server: bool) -> String {
    match policy(given, image) {
        always if always == "Always" && !has_server => "IfNotPresent".into(),
        other => other,
    }
}

/// The registry that an image name leads to.
pub fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => DEFAULT_REGISTRY,
    }
}

fn bare(key: &str) -> &str {
    key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/')
}

/// The credentials that the Secrets hold for an image, longest match first.
pub fn credentials(secrets: &[Arc<Secret>], image: &str) -> Vec<AuthConfig> {
    let registry = registry(image);
    let repository = image.split('@').next().unwrap_or(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for secret in secrets {
        let Some(data) = &secret.data else { continue };
        let auths: serde_json::Value = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
            (Some(text), _) => serde_json::from_slice::<serde_json::Value>(&text.0).map(|value| value["auths"].clone()).unwrap_or_default(),
            (None, Some(text)) => serde_json::from_slice(&text.0).unwrap_or_default(),
            (None, None) => continue,
        };
        for (key, entry) in auths.as_object().into_iter().flatten() {
            let key_name = bare(key);
            let hits = if registry == DEFAULT_REGISTRY {
                key == DEFAULT_REGISTRY_KEY || matches!(key_name, "docker.io" | "index.docker.io" | "index.docker.io/v1")
            } else {
                let host = key_name.split('/').next().unwrap_or_default();
                let wild = host.strip_prefix("*.").is_some_and(|rest| registry.split_once('.').is_some_and(|(_, domain)| domain == rest));
                wild || host == registry
                    && (key_name == host
                        || matches!(key_name, _ if key_name == format!("{host}/v1") || key_name == format!("{host}/v2"))
                        || repository.starts_with(key_name))
            };
            if !hits {
                continue;
            }
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let (mut username, mut password) = (text("username"), text("password"));
            if let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(text("auth").trim())
                && let Some((user, word)) = String::from_utf8_lossy(&pair).split_once(':')
                && username.is_empty()
            {
                (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
            }
            found.push((key_name.len(), AuthConfig { username, password, identity_token: text("identitytoken"), ..Default::default() }));
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// What was done to have the image, for the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    AlreadyThere,
    Pulled { took: SignedDuration, waited: SignedDuration, size: u64 },
}

/// An image that is here now.
#[derive(Debug, Clone)]
pub struct Present {
    pub image: cri::v1::Image,
    pub got: Got,
}

struct LastFailure {
    failed_at: Timestamp,
    message: String,
}

/// The node's images.
pub struct Images {
    cri: cri::Client,
    backoffs: Mutex<(Backoffs, HashMap<String, LastFailure>)>,
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    slots: tokio::sync::Semaphore,
    last_used: Mutex<HashMap<String, Timestamp>>,
}

impl Images {
    pub fn new(cri: cri::Client, parallel_pulls: usize) -> Images {
        Images {
            cri,
            backoffs: Mutex::default(),
            pulling: Mutex::default(),
            slots: tokio::sync::Semaphore::new(parallel_pulls.max(1)),
            last_used: Mutex::default(),
        }
    }

    /// Whether the image is on the node.
    pub async fn find(&self, image: &str) -> Result<Option<cri::v1::Image>, Error> {
        self.cri.image_status(image).await.map_err(|error| Error::Inspect { message: format!("Failed to inspect image \"{image}\": {error}") })
    }

    /// Makes sure that the image is on the node. `pulling` is called when a pull begins.
    pub async fn ensure(
        &self,
        image: &str,
        pull_policy: Option<&str>,
        credentials: Vec<AuthConfig>,
        sandbox: Option<PodSandboxConfig>,
        has_server: bool,
        pulling: impl FnOnce(),
    ) -> Result<Present, Error> {
        let name = normalized(image)?;
        let pull_policy = effective_policy(pull_policy, image, has_server);
        let here = self.find(&name).await?;
        match (pull_policy.as_str(), here) {
            ("Never", None) => return Err(Error::Never { image: image.to_owned() }),
            ("Never" | "IfNotPresent", Some(image)) => return Ok(Present { image, got: Got::AlreadyThere }),
            _ => {}
        }
        let now = Timestamp::now();
        {
            let guard = self.backoffs.lock();
            if let Some(last) = guard.1.get(&name)
                && let Some(waiting) = guard.0.waiting(&name, last.failed_at, now)
            {
                return Err(Error::BackOff { image: image.to_owned(), last: last.message.clone(), until: waiting.until });
            }
        }
        let turn = self.pulling.lock().entry(name.clone()).or_default().clone();
        let guard = turn.lock().await;
        let _slot = self.slots.acquire().await;
        pulling();
        let began = Timestamp::now();
        let result = self.pull(&name, credentials, sandbox).await;
        drop(guard);
        {
            let mut map = self.pulling.lock();
            if map.get(&name).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
                map.remove(&name);
            }
        }
        let ended = Timestamp::now();
        match result {
            Ok(found) => {
                let mut guard = self.backoffs.lock();
                guard.0.forget(&name);
                guard.1.remove(&name);
                let got = Got::Pulled { took: ended.duration_since(began), waited: ended.duration_since(now), size: found.size };
                Ok(Present { image: found, got })
            }
            Err(message) => {
                let mut guard = self.backoffs.lock();
                guard.0.tried(&name, ended, ended);
                guard.1.insert(name, LastFailure { failed_at: ended, message: message.clone() });
                Err(Error::Pull { message })
            }
        }
    }

    async fn pull(&self, name: &str, credentials: Vec<AuthConfig>, sandbox: Option<PodSandboxConfig>) -> Result<cri::v1::Image, String> {
        let mut attempts: Vec<Option<AuthConfig>> = credentials.into_iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut last = String::new();
        for auth in attempts {
            match self.cri.pull_image(name, auth, sandbox.clone()).await {
                Ok(reference) => {
                    let found = match self.cri.image_status(name).await {
                        Ok(Some(image)) => Ok(Some(image)),
                        _ => self.cri.image_status(&reference).await,
                    };
                    return match found {
                        Ok(Some(image)) => Ok(image),
                        Ok(None) => Err("the image is gone right after it was pulled".into()),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// Removes images that nothing uses, least recently used first, until `to_free` bytes are gone or none is left.
    pub async fn collect(&self, to_free: u64, min_age: SignedDuration) -> Result<u64, cri::Error> {
        let now = Timestamp::now();
        let images = self.cri.list_images().await?;
        let containers = self.cri.list_containers(HashMap::new()).await?;
        let used: HashSet<String> =
            containers.into_iter().flat_map(|c| [c.image_ref, c.image.map(|image| image.image).unwrap_or_default()]).collect();
        let victims = {
            let mut last_used = self.last_used.lock();
            last_used.retain(|id, _| images.iter().any(|image| image.id == *id));
            choose(&images, &used, &mut last_used, now, min_age)
        };
        let mut freed = 0;
        for (id, size) in victims {
            if freed >= to_free {
                break;
            }
            self.cri.remove_image(&id).await?;
            freed += size;
        }
        Ok(freed)
    }
}

/// The images that may go, first the one that has been idle longest.
fn choose(
    images: &[cri::v1::Image],
    used: &HashSet<String>,
    last_used: &mut HashMap<String, Timestamp>,
    now: Timestamp,
    min_age: SignedDuration,
) -> Vec<(String, u64)> {
    let mut idle: BTreeMap<(Timestamp, String), u64> = BTreeMap::new();
    for image in images {
        let in_use = std::iter::once(&image.id).chain(&image.repo_tags).chain(&image.repo_digests).any(|name| used.contains(name));
        let since = last_used.entry(image.id.clone()).or_insert(now);
        if in_use {
            *since = now;
        } else if !image.pinned && !image.repo_tags.iter().any(|tag| tag.contains("pause")) && now.duration_since(*since) >= min_age {
            idle.insert((*since, image.id.clone()), image.size);
        }
    }
    idle.into_iter().map(|((_, id), size)| (id, size)).collect()
}

/// The words of the `Pulled` event.
pub fn pulled_message(image: &str, got: &Got) -> String {
    match got {
        Got::AlreadyThere => format!("Container image \"{image}\" already present on machine and can be accessed by the pod"),
        Got::Pulled { took, waited, size } => {
            let (took, waited) = (go_duration(*took), go_duration(*waited));
            format!("Successfully pulled image \"{image}\" in {took} ({waited} including waiting). Image size: {size} bytes.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_checked_and_completed() {
        for (input, expected) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1", Some("nginx:1")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("Nginx", None),
            ("nginx:", None),
            ("a//b", None),
            ("x@sha256:0", Some("x@sha256:0")),
            ("", None),
        ] {
            assert_eq!(normalized(input).ok().as_deref(), expected, "{input}");
        }
        assert_eq!(policy(None, "nginx"), "Always");
        assert_eq!(policy(None, "nginx:1"), "IfNotPresent");
        assert_eq!(policy(Some("Never"), "nginx"), "Never");
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let config =
            json!({ "auths": { "registry.test:5000": { "auth": "dTpw" }, "https://index.docker.io/v1/": { "username": "hub", "password": "x" } } });
        let secret: Secret =
            serde_json::from_value(json!({ "data": { ".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(config.to_string()) } }))
                .unwrap();
        let secrets = [Arc::new(secret)];
        let found = credentials(&secrets, "registry.test:5000/app:1");
        assert_eq!((found.len(), found[0].username.as_str(), found[0].password.as_str()), (1, "u", "p"));
        assert_eq!(credentials(&secrets, "nginx")[0].username, "hub");
        assert!(credentials(&secrets, "other.test/app").is_empty());
    }

    #[test]
    fn only_idle_images_go_oldest_first() {
        let image = |id: &str, size| cri::v1::Image { id: id.into(), size, ..Default::default() };
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut last = HashMap::from([("a".to_owned(), at(50)), ("b".to_owned(), at(10)), ("c".to_owned(), at(0))]);
        let used = HashSet::from(["c".to_owned()]);
        let chosen =
            choose(&[image("a", 1), image("b", 2), image("c", 3), image("new", 4)], &used, &mut last, at(200), SignedDuration::from_secs(120));
        assert_eq!(chosen, [("b".to_owned(), 2), ("a".to_owned(), 1)]);
    }
}
