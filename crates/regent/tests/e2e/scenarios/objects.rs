//! What the controllers keep in order of objects as such: what quotas count, and who owns whom.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, has_all},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "what_a_quota_counts_of_a_custom_kind_is_given_back", run: quota_of_custom_kind, alone: false },
    Scenario { name: "an_owner_in_another_namespace_is_none_and_that_is_said", run: owner_elsewhere, alone: false },
];

fn quota_of_custom_kind(cluster: &Cluster, namespace: &str) -> Outcome {
    let group = "counted.example.com";
    let definition = format!(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: slots.{group}}}
spec:
  group: {group}
  names: {{kind: Slot, plural: slots}}
  scope: Namespaced
  versions:
  - {{name: v1, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object}}}}}}
"#
    );
    cluster.kubectl_with(&["apply", "-f", "-"], &definition)?;
    let outcome = (|| {
        cluster.kubectl(&format!("wait --for=condition=Established --timeout=60s crd/slots.{group}"))?;
        cluster.kubectl(&format!("create quota one -n {namespace} --hard=count/slots.{group}=1"))?;
        let used = |amount: &'static str| move |said: &str| said.trim() == amount;
        let ask = format!("get quota one -n {namespace} -o jsonpath={{.status.used.count/slots\\.{}}}", group.replace('.', "\\."));
        cluster.wait_for("the quota to be counted", &ask, used("0"))?;
        let slot = |name: &str| format!("apiVersion: {group}/v1\nkind: Slot\nmetadata: {{name: {name}}}\n");
        let create = ["create", "-n", namespace, "-f", "-"];
        cluster.kubectl_with(&create, &slot("first"))?;
        let refused = cluster.kubectl_fails(&create.join(" "), &slot("second"))?;
        has_all(&refused, &["(Forbidden)", "exceeded quota: one", "used: count/slots"])?;
        cluster.kubectl(&format!("delete slots.{group} first -n {namespace}"))?;
        cluster.wait_for("the quota to be free again", &ask, used("0"))?;
        cluster.kubectl_with(&create, &slot("second")).map(drop)
    })();
    cluster.kubectl(&format!("delete crd slots.{group} --ignore-not-found"))?;
    outcome
}

fn owner_elsewhere(cluster: &Cluster, namespace: &str) -> Outcome {
    let owner = cluster.kubectl("get configmap kube-root-ca.crt -n kube-system -o jsonpath={.metadata.uid}")?;
    let owned = format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata:
  name: owned
  ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: kube-root-ca.crt, uid: {}}}]
"#,
        owner.trim()
    );
    cluster.apply(namespace, &owned)?;
    let events = format!("get events -n {namespace} --field-selector reason=OwnerRefInvalidNamespace -o jsonpath={{.items[*].message}}");
    let said = cluster.wait_for("an event about the owner", &events, |said| !said.trim().is_empty())?;
    has_all(&said, &["kube-root-ca.crt", &format!("does not exist in namespace \"{namespace}\"")])?;
    let gone = format!("get configmap owned -n {namespace} --ignore-not-found -o name");
    cluster.wait_for("what it owned to be collected", &gone, |left| left.trim().is_empty()).map(drop)
}
