//! The ConfigMaps, Secrets and claims that a pod refers to: what its node must keep for it.

use super::{containers, env, spec_of};
use client::volumes::claim_of_pod;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashSet;

/// Namespace and name of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Referred {
    pub config_maps: HashSet<(String, String)>,
    pub secrets: HashSet<(String, String)>,
    pub claims: HashSet<(String, String)>,
}

impl Referred {
    /// Adds what another pod refers to.
    pub fn extend(&mut self, other: Referred) {
        self.config_maps.extend(other.config_maps);
        self.secrets.extend(other.secrets);
        self.claims.extend(other.claims);
    }
}

/// Everything that the pod's volumes, environments and image pulls read.
pub fn objects(pod: &Pod) -> Referred {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let (mut config_maps, mut secrets, mut claims) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (_, container) in containers(pod) {
        let (maps, hidden) = env::references(&container);
        config_maps.extend(maps);
        secrets.extend(hidden);
    }
    let spec = spec_of(pod);
    for volume in spec.volumes.iter().flatten() {
        claims.extend(claim_of_pod(pod, volume).map(|(name, _)| name));
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    secrets.extend(spec.image_pull_secrets.iter().flatten().map(|reference| reference.name.clone()));
    let placed = |names: HashSet<String>| names.into_iter().map(|name| (namespace.clone(), name)).collect();
    Referred { config_maps: placed(config_maps), secrets: placed(secrets), claims: placed(claims) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::testing::pod;
    use serde_json::json;

    #[test]
    fn every_way_to_refer_counts() {
        let mut pod = pod(json!({
            "imagePullSecrets": [{ "name": "pull" }],
            "initContainers": [{ "name": "i", "envFrom": [{ "configMapRef": { "name": "from" } }] }],
            "containers": [{ "name": "c", "env": [{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } }] }],
            "volumes": [
                { "name": "a", "configMap": { "name": "map" } },
                { "name": "b", "secret": { "secretName": "file" } },
                { "name": "d", "persistentVolumeClaim": { "claimName": "data" } },
                { "name": "c", "projected": { "sources": [{ "configMap": { "name": "kube-root-ca.crt" } }, { "secret": { "name": "part" } }] } }
            ]
        }));
        pod.metadata.namespace = Some("ns".into());
        let found = objects(&pod);
        let names = |set: &HashSet<(String, String)>| {
            let mut names: Vec<String> = set.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names(&found.config_maps), "ns/from ns/kube-root-ca.crt ns/map");
        assert_eq!(names(&found.secrets), "ns/env ns/file ns/part ns/pull");
        assert_eq!(names(&found.claims), "ns/data");
    }
}
