//! What goes into the volumes that are made of API objects: configMap, secret, downwardAPI, projected.

use super::{
    Error, Volumes,
    atomic::{File, Payload},
};
use crate::spec::{self, env};
use k8s_openapi::api::core::v1::{ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};
use std::{sync::Arc, time::Duration};

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

/// Picks the items of a map of files, or all of it.
fn pick(all: Vec<(&String, Vec<u8>)>, items: Option<&Vec<KeyToPath>>, optional: bool, bits: i32, out: &mut Payload) -> Result<(), String> {
    match items.filter(|items| !items.is_empty()) {
        None => out.extend(all.into_iter().map(|(key, data)| (key.clone(), file(data, bits)))),
        Some(items) => {
            for item in items {
                match all.iter().find(|(key, _)| **key == item.key) {
                    Some((_, data)) => {
                        out.insert(item.path.clone(), file(data.clone(), item.mode.unwrap_or(bits)));
                    }
                    None if optional => {}
                    None => return Err("references non-existent config key: ".to_owned() + &item.key),
                }
            }
        }
    }
    Ok(())
}

fn config_map_files(map: &ConfigMap) -> Vec<(&String, Vec<u8>)> {
    let text = map.data.iter().flatten().map(|(key, value)| (key, value.clone().into_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(key, value)| (key, value.0.clone()))).collect()
}

fn secret_files(secret: &Secret) -> Vec<(&String, Vec<u8>)> {
    secret.data.iter().flatten().map(|(key, value)| (key, value.0.clone())).collect()
}

impl Volumes {
    /// The files of a volume, `None` if it is of another sort.
    pub(super) async fn payload(&self, pod: &Pod, volume: &Volume, facts: &env::Facts, age_max: Duration) -> Result<Option<Payload>, Error> {
        let failed = |message: String| Error { volume: volume.name.clone(), message };
        let mut out = Payload::new();
        if let Some(source) = &volume.config_map {
            let (optional, bits) = (source.optional.unwrap_or(false), source.default_mode.unwrap_or(MODE));
            self.config_map(pod, &source.name, source.items.as_ref(), optional, bits, age_max, &mut out).await.map_err(failed)?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            let (optional, bits) = (source.optional.unwrap_or(false), source.default_mode.unwrap_or(MODE));
            self.secret(pod, &name, source.items.as_ref(), optional, bits, age_max, &mut out).await.map_err(failed)?;
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

    async fn config_map(
        &self,
        pod: &Pod,
        name: &str,
        items: Option<&Vec<KeyToPath>>,
        optional: bool,
        bits: i32,
        age_max: Duration,
        out: &mut Payload,
    ) -> Result<(), String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let found: Option<Arc<ConfigMap>> = self.objects.config_map(&namespace, name, age_max).await.map_err(|error| error.to_string())?;
        match found {
            Some(map) => pick(config_map_files(&map), items, optional, bits, out).map_err(|error| format!("configmap {error}")),
            None if optional => Ok(()),
            None => Err(format!("configmap \"{name}\" not found")),
        }
    }

    async fn secret(
        &self,
        pod: &Pod,
        name: &str,
        items: Option<&Vec<KeyToPath>>,
        optional: bool,
        bits: i32,
        age_max: Duration,
        out: &mut Payload,
    ) -> Result<(), String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let found: Option<Arc<Secret>> = self.objects.secret(&namespace, name, age_max).await.map_err(|error| error.to_string())?;
        match found {
            Some(secret) => pick(secret_files(&secret), items, optional, bits, out).map_err(|error| error.replace("config key", "secret key")),
            None if optional => Ok(()),
            None => Err(format!("secret \"{name}\" not found")),
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
            self.config_map(pod, &source.name, source.items.as_ref(), source.optional.unwrap_or(false), bits, age_max, out).await?;
        }
        if let Some(source) = &projection.secret {
            self.secret(pod, &source.name, source.items.as_ref(), source.optional.unwrap_or(false), bits, age_max, out).await?;
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
        assert!(pick(config_map_files(&map), Some(&missing), false, MODE, &mut out).is_err());
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
