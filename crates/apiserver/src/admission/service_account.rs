//! ServiceAccount: every pod runs as a service account, and finds its token where clients look for it.

use super::{AdmissionContext, Operation, Plugin, list_mut};
use api::{Status, Value, object::ObjectExt};
use rand::Rng;
use serde_json::json;
use std::time::Duration;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// The life of a pod's token, in Kubernetes' number: the kubelet fetches a new one long before.
const TOKEN_LIFE_S: i64 = 3607;
/// A namespace this young may still wait for its default account; so does the pod, for a moment.
const YOUNG_NAMESPACE_S: i64 = 10;
const ACCOUNT_ATTEMPTS: u32 = 10;
const ACCOUNT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct ServiceAccount;

#[async_trait::async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, cx: &AdmissionContext<'_>, object: &mut Value) -> Result<(), Status> {
        if !cx.is(Operation::Create, "", "pods") {
            return Ok(());
        }
        if object.annotation("kubernetes.io/config.mirror").is_some() {
            return check_mirror(object).map_err(|message| cx.forbidden(object, message));
        }
        let given = |path| object.str_at(path).filter(|name| !name.is_empty()).map(String::from);
        let name = given("spec.serviceAccountName").or_else(|| given("spec.serviceAccount")).unwrap_or_else(|| "default".into());
        object.set("spec.serviceAccountName", name.as_str());
        object.set("spec.serviceAccount", name.as_str());
        let Some(account) = account(cx, &name).await? else {
            let message = format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", cx.namespace);
            return Err(cx.forbidden(object, message));
        };
        let automount = |object: &Value, path| object.bool_at(path);
        if automount(object, "spec.automountServiceAccountToken").or(automount(&account, "automountServiceAccountToken")).unwrap_or(true) {
            let suffix: String = (0..5).map(|_| char::from(SUFFIX[rand::rng().random_range(0..SUFFIX.len())])).collect();
            mount_token(object, &suffix);
        }
        if object.list_at("spec.imagePullSecrets").is_empty() && !account.list_at("imagePullSecrets").is_empty() {
            object.set("spec.imagePullSecrets", account.list_at("imagePullSecrets").to_vec());
        }
        Ok(())
    }
}

/// Letters and digits that cannot make words.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

async fn account(cx: &AdmissionContext<'_>, name: &str) -> Result<Option<Value>, Status> {
    for attempt in 0..ACCOUNT_ATTEMPTS {
        if let Some(account) = cx.find("", "serviceaccounts", cx.namespace, name)? {
            return Ok(Some(account));
        }
        let young = cx.find("", "namespaces", "", cx.namespace)?.is_some_and(|namespace| {
            let made = namespace.creation_timestamp().and_then(|time| time.parse::<jiff::Timestamp>().ok());
            made.is_some_and(|made| pki::now_unix_s() - made.as_second() < YOUNG_NAMESPACE_S)
        });
        if name != "default" || !young || attempt + 1 == ACCOUNT_ATTEMPTS {
            break;
        }
        tokio::time::sleep(ACCOUNT_PAUSE).await;
    }
    Ok(None)
}

/// A mirror pod only shows what a node runs by itself; it has no rights of its own.
fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if pod.str_at("spec.serviceAccountName").is_some_and(|name| !name.is_empty()) {
        return Err("a mirror pod may not reference service accounts");
    }
    let token = |volume: &Value| volume.list_at("projected.sources").iter().any(|source| source.get("serviceAccountToken").is_some());
    if pod.list_at("spec.volumes").iter().any(token) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// Mounts the token in every container that has nothing there yet.
fn mount_token(pod: &mut Value, suffix: &str) {
    let is_ours = |volume: &Value| volume.str_at("name").is_some_and(|name| name.starts_with(VOLUME_PREFIX));
    let known = pod.list_at("spec.volumes").iter().find(|volume| is_ours(volume)).and_then(|volume| volume.str_at("name")).map(String::from);
    let volume = known.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut mounted = false;
    for list in ["spec.initContainers", "spec.containers"] {
        let Some(containers) = pod.at_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let taken = container.list_at("volumeMounts").iter().any(|mount| mount.str_at("mountPath") == Some(MOUNT_PATH));
            if taken {
                continue;
            }
            if let Some(mounts) = list_mut(container, "volumeMounts") {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted
        && known.is_none()
        && let Some(volumes) = list_mut(pod, "spec.volumes")
    {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE_S, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_is() {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
            "volumes": [{"name": "own", "emptyDir": {}}]}});
        mount_token(&mut pod, "abcde");
        let mount = json!([{"name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"], mount);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "own");
        assert_eq!(pod["spec"]["volumes"][1], token_volume("kube-api-access-abcde"));
    }

    #[test]
    fn no_volume_that_nobody_mounts() {
        let mut pod = json!({"spec": {"containers": [{"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        let before = pod.clone();
        mount_token(&mut pod, "abcde");
        assert_eq!(pod, before);
    }
}
