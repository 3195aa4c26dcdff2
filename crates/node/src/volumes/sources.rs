//! What goes into the volumes that are made of API objects: configMap, secret, downwardAPI, projected.

use super::{
    Error, Volumes,
    atomic::{File, Payload},
};
use crate::spec::{self, env};
use k8s_openapi::api::core::v1::{ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};
use std::time::Duration;

/// Mode of files that nobody gave one.
const MODE: i32 = 0o644;
/// How long a projected token lasts if the volume does not say.
const TOKEN_SECONDS: i64 = 3600;

fn mode(bits: i32) -> u32 {
    (bits as u32) & 0o7777
}

fn file(data: impl Into<Vec<u8>>, bits: i32) -> File {
    File { data: data.into(), mode: mode(bits), owner: None }
}

/// Whose keys become files.
#[derive(Clone, Copy)]
enum Of {
    ConfigMap,
    Secret,
}

impl Of {
    fn missing(self, name: &str) -> String {
        match self {
            Of::ConfigMap => format!("configmap \"{name}\" not found"),
            Of::Secret => format!("secret \"{name}\" not found"),
        }
    }

    fn without_key(self, key: &str) -> String {
        match self {
            Of::ConfigMap => format!("configmap references non-existent config key: {key}"),
            Of::Secret => format!("references non-existent secret key: {key}"),
        }
    }
}

/// What a volume, or a part of one, says about the keys that it wants.
struct Keys<'a> {
    of: Of,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
}

/// A key that was asked for and is not there.
#[derive(Debug, PartialEq)]
struct Missing(String);

/// Picks the items of a map of files, or all of it.
fn pick(all: Vec<(String, Vec<u8>)>, items: Option<&[KeyToPath]>, optional: bool, bits: i32, out: &mut Payload) -> Result<(), Missing> {
    match items.filter(|items| !items.is_empty()) {
        None => out.extend(all.into_iter().map(|(key, data)| (key, file(data, bits)))),
        Some(items) => {
            for item in items {
                match all.iter().find(|(key, _)| *key == item.key) {
                    Some((_, data)) => {
                        out.insert(item.path.clone(), file(data.clone(), item.mode.unwrap_or(bits)));
                    }
                    None if optional => {}
                    None => return Err(Missing(item.key.clone())),
                }
            }
        }
    }
    Ok(())
}

fn config_map_files(map: &ConfigMap) -> Vec<(String, Vec<u8>)> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()))).collect()
}

fn secret_files(secret: &Secret) -> Vec<(String, Vec<u8>)> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

impl Volumes {
    /// The files of a volume, `None` if it is of another sort.
    pub(super) async fn payload(&self, pod: &Pod, volume: &Volume, facts: &env::Facts, age_max: Duration) -> Result<Option<Payload>, Error> {
        let failed = |message: String| Error { volume: volume.name.clone(), message };
        let mut out = Payload::new();
        if let Some(source) = &volume.config_map {
            let keys = Keys { of: Of::ConfigMap, name: &source.name, items: source.items.as_deref(), optional: source.optional };
            self.keys(pod, keys, source.default_mode.unwrap_or(MODE), age_max, &mut out).await.map_err(failed)?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let keys = Keys { of: Of::Secret, name, items: source.items.as_deref(), optional: source.optional };
            self.keys(pod, keys, source.default_mode.unwrap_or(MODE), age_max, &mut out).await.map_err(failed)?;
        } else if let Some(source) = &volume.downward_api {
            let bits = source.default_mode.unwrap_or(MODE);
            downward(pod, source.items.as_ref(), facts, bits, &mut out).map_err(failed)?;
        } else if let Some(source) = &volume.projected {
            let bits = source.default_mode.unwrap_or(MODE);
            for projection in source.sources.iter().flatten() {
                self.projection(pod, projection, facts, bits, age_max, &mut out).await.map_err(failed)?;
            }
        } else {
            return Ok(None);
        }
        Ok(Some(out))
    }

    /// The files that the keys of a ConfigMap or Secret become.
    async fn keys(&self, pod: &Pod, source: Keys<'_>, bits: i32, age_max: Duration, out: &mut Payload) -> Result<(), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (name, optional) = (source.name, source.optional.unwrap_or(false));
        let found = match source.of {
            Of::ConfigMap => self.objects.config_map(namespace, name, age_max).await.map(|map| map.map(|map| config_map_files(&map))),
            Of::Secret => self.objects.secret(namespace, name, age_max).await.map(|secret| secret.map(|secret| secret_files(&secret))),
        };
        match found.map_err(|error| error.to_string())? {
            Some(files) => pick(files, source.items, optional, bits, out).map_err(|Missing(key)| source.of.without_key(&key)),
            None if optional => Ok(()),
            None => Err(source.of.missing(name)),
        }
    }

    async fn projection(
        &self,
        pod: &Pod,
        projection: &VolumeProjection,
        facts: &env::Facts,
        bits: i32,
        age_max: Duration,
        out: &mut Payload,
    ) -> Result<(), String> {
        if let Some(source) = &projection.config_map {
            let keys = Keys { of: Of::ConfigMap, name: &source.name, items: source.items.as_deref(), optional: source.optional };
            self.keys(pod, keys, bits, age_max, out).await?;
        }
        if let Some(source) = &projection.secret {
            let keys = Keys { of: Of::Secret, name: &source.name, items: source.items.as_deref(), optional: source.optional };
            self.keys(pod, keys, bits, age_max, out).await?;
        }
        if let Some(source) = &projection.downward_api {
            downward(pod, source.items.as_ref(), facts, bits, out)?;
        }
        if let Some(source) = &projection.service_account_token {
            let audience = source.audience.as_deref().filter(|audience| !audience.is_empty());
            let token = self.tokens.get(pod, audience, source.expiration_seconds.unwrap_or(TOKEN_SECONDS)).await?;
            // Readable by the pod's one user if there is one, or by its group; otherwise by all of the container.
            let spec = spec::spec_of(pod);
            let grouped = spec.security_context.as_ref().and_then(|context| context.fs_group).is_some();
            let users: std::collections::BTreeSet<Option<i64>> =
                spec::containers(pod).iter().map(|(_, container)| spec::security::effective_user(pod, container)).collect();
            let (bits, owner) = match (grouped, users.len(), users.first().copied().flatten()) {
                (true, _, _) => (0o600 | 0o040, None),
                (false, 1, Some(user)) => (0o600, Some(user)),
                _ => (bits, None),
            };
            out.insert(source.path.clone(), File { data: token.into_bytes(), mode: mode(bits), owner });
        }
        if let Some(source) = &projection.cluster_trust_bundle
            && !source.optional.unwrap_or(false)
        {
            return Err(format!("cluster trust bundle for {} is not available on this node", source.path));
        }
        Ok(())
    }
}

fn downward(pod: &Pod, items: Option<&Vec<DownwardAPIVolumeFile>>, facts: &env::Facts, bits: i32, out: &mut Payload) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let text = if let Some(reference) = &item.field_ref {
            env::field(pod, facts, &reference.field_path).map_err(|error| error.to_string())?
        } else if let Some(reference) = &item.resource_field_ref {
            env::resource(pod, &Container::default(), facts, reference).map_err(|error| error.to_string())?
        } else {
            continue;
        };
        out.insert(item.path.clone(), file(text, item.mode.unwrap_or(bits)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    #[test]
    fn items_choose_paths_and_modes() {
        let map: ConfigMap = serde_json::from_value(json!({ "data": { "a": "1", "b": "2" } })).unwrap();
        let items = vec![KeyToPath { key: "a".into(), path: "x/y".into(), mode: Some(0o400) }];
        let mut out = Payload::new();
        pick(config_map_files(&map), Some(&items), false, MODE, &mut out).unwrap();
        assert_eq!(out.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(out["x/y"].mode, 0o400);
        let missing = vec![KeyToPath { key: "c".into(), path: "c".into(), mode: None }];
        assert_eq!(pick(config_map_files(&map), Some(&missing), false, MODE, &mut out), Err(Missing("c".into())));
        assert_eq!(Of::Secret.without_key("c"), "references non-existent secret key: c");
        assert!(pick(config_map_files(&map), Some(&missing), true, MODE, &mut out).is_ok());
    }

    #[test]
    fn labels_go_into_files_line_by_line() {
        let mut pod = pod(json!({ "containers": [] }));
        pod.metadata.labels = Some([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x\ny".to_owned())].into());
        let items: Vec<DownwardAPIVolumeFile> =
            serde_json::from_value(json!([{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }])).unwrap();
        let mut out = Payload::new();
        downward(&pod, Some(&items), &env::Facts::default(), MODE, &mut out).unwrap();
        assert_eq!(String::from_utf8(out["labels"].data.clone()).unwrap(), "a=\"1\"\nb=\"x\\ny\"");
    }
}
