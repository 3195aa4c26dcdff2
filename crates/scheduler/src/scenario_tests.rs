//! Scenarios: a cluster and a pod in a few words, the decision as text.

use std::collections::BTreeMap;

use client::Change;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::cycle::{Cursor, Profile};
use crate::pod::PodSelector;
use crate::preemption;
use crate::scenario::{node, pod, pod_object};
use crate::snapshot::{Budget, Snapshot, Workload};
use crate::state::State;

const PLAIN: &str = "cpu=4 memory=8Gi pods=10";

fn cluster(nodes: &[(&str, &str)], pods: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, spec) in nodes {
        snapshot.set_node(node(name, spec));
    }
    for (name, spec) in pods {
        let pod = pod(name, spec);
        let node = pod.node_name().expect("node=").to_owned();
        snapshot.place(&pod, &node);
    }
    snapshot
}

/// The node, or the message that users see; with preemption's answer.
fn decide(snapshot: &Snapshot, spec: &str) -> String {
    let (profile, mut rng) = (Profile::default(), StdRng::seed_from_u64(1));
    let pod = pod("new", spec);
    match profile.decide(snapshot, &pod, &mut Cursor::default(), &mut rng) {
        Ok(node) => node,
        Err(unschedulable) => match preemption::propose(&profile, snapshot, &pod, &unschedulable, &mut rng) {
            Err(reason) => format!("{} preemption: {reason}", unschedulable.message()),
            Ok(proposal) => {
                let victims: Vec<_> = proposal.victims.iter().map(|victim| victim.name.as_str()).collect();
                format!("preempts {} on {}", victims.join(" "), proposal.node)
            }
        },
    }
}

#[test]
fn the_message_counts_every_node() {
    let control_plane = format!("{PLAIN} taint=node-role.kubernetes.io/control-plane::NoSchedule");
    let snapshot = cluster(&[("server-1", &control_plane), ("w1", PLAIN), ("w2", PLAIN), ("w3", PLAIN)], &[]);
    assert_eq!(
        decide(&snapshot, "cpu=100"),
        "0/4 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, \
         3 Insufficient cpu. preemption: 0/4 nodes are available: 4 Preemption is not helpful for scheduling."
    );
    let full: Vec<_> = ["w1", "w2", "w3"].map(|name| (name, format!("cpu=3500m node={name}"))).into();
    let full: Vec<_> = full.iter().map(|(name, spec)| (*name, spec.as_str())).collect();
    let snapshot = cluster(&[("server-1", &control_plane), ("w1", PLAIN), ("w2", PLAIN), ("w3", PLAIN)], &full);
    assert_eq!(
        decide(&snapshot, "cpu=1"),
        "0/4 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, \
         3 Insufficient cpu. preemption: 0/4 nodes are available: 1 Preemption is not helpful for scheduling, \
         3 No preemption victims found for incoming pod."
    );
}

#[test]
fn no_nodes() {
    assert_eq!(
        Profile::default()
            .decide(&Snapshot::default(), &pod("p", ""), &mut Cursor::default(), &mut StdRng::seed_from_u64(1))
            .map_err(|unschedulable| unschedulable.message()),
        Err("no nodes available to schedule pods".to_owned())
    );
}

#[test]
fn every_plugin_refuses_in_its_own_words() {
    let first = |text: String| text.split(" preemption:").next().unwrap_or_default().to_owned();
    let check = |node: &str, pods: &[(&str, &str)], spec: &str, expected: &str| {
        let answer = first(decide(&cluster(&[("n1", node)], pods), spec));
        assert_eq!(answer, format!("0/1 nodes are available: 1 {expected}."));
    };
    check(&format!("{PLAIN} cordoned"), &[], "", "node(s) were unschedulable");
    check(&format!("{PLAIN} taint=gpu:yes:NoExecute"), &[], "", "node(s) had untolerated taint {gpu: yes}");
    check(PLAIN, &[], "selector=disk:ssd", "node(s) didn't match Pod's node affinity/selector");
    check(PLAIN, &[("a", "port=80 node=n1")], "port=80", "node(s) didn't have free ports for the requested pod ports");
    check("cpu=1 memory=1Gi pods=0", &[], "cpu=2 memory=2Gi", "Insufficient cpu, 1 Insufficient memory, 1 Too many pods");
    check(PLAIN, &[], "example.com/gpu=1", "Insufficient example.com/gpu");
    check(
        PLAIN,
        &[],
        r#"patch={"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]}}"#,
        "node(s) didn't match pod topology spread constraints (missing required label)",
    );
    check(
        PLAIN,
        &[],
        r#"patch={"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}}}}"#,
        "node(s) didn't match pod affinity rules",
    );
}

const APART: &str = r#"label=app:web patch={"spec": {"affinity": {"podAntiAffinity":
    {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname",
    "labelSelector": {"matchLabels": {"app": "web"}}}]}}}}"#;

#[test]
fn anti_affinity_holds_in_both_directions() {
    let web = [("a", "label=app:web node=n1")];
    let snapshot = cluster(&[("n1", PLAIN), ("n2", PLAIN)], &web);
    assert_eq!(decide(&snapshot, APART), "n2");

    let mut snapshot = cluster(&[("n1", PLAIN)], &[]);
    snapshot.place(&pod("shy", APART), "n1");
    assert!(decide(&snapshot, "label=app:web").contains("1 node(s) didn't satisfy existing pods anti-affinity rules."));
    assert_eq!(decide(&snapshot, "label=app:db"), "n1");
}

#[test]
fn affinity_follows_and_the_first_of_a_group_may_start() {
    let with = |app: &str| {
        format!(
            r#"label=app:web patch={{"spec": {{"affinity": {{"podAffinity":
            {{"requiredDuringSchedulingIgnoredDuringExecution": [{{"topologyKey": "topology.kubernetes.io/zone",
            "labelSelector": {{"matchLabels": {{"app": "{app}"}}}}}}]}}}}}}}}"#
        )
    };
    let nodes = [("n1", "cpu=4 memory=8Gi pods=10 zone=a"), ("n2", "cpu=4 memory=8Gi pods=10 zone=b")];
    assert_eq!(decide(&cluster(&nodes, &[("db", "label=app:db node=n2")]), &with("db")), "n2");
    assert!(decide(&cluster(&nodes, &[]), &with("db")).contains("2 node(s) didn't match pod affinity rules"));
    assert!(["n1", "n2"].contains(&decide(&cluster(&nodes, &[]), &with("web")).as_str()));
}

#[test]
fn required_spread_fills_the_emptiest_place() {
    let spread = r#"label=app:web patch={"spec": {"topologySpreadConstraints": [{"maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]}}"#;
    let nodes = [("n1", "cpu=4 memory=8Gi pods=10 zone=a"), ("n2", "cpu=4 memory=8Gi pods=10 zone=b")];
    let one = [("a", "label=app:web node=n1")];
    assert_eq!(decide(&cluster(&nodes, &one), spread), "n2");
    let full = [nodes[0], ("n2", "cpu=4 memory=8Gi pods=0 zone=b")];
    assert!(
        decide(&cluster(&full, &one), spread)
            .starts_with("0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints.")
    );
}

#[test]
fn pods_of_a_set_spread_over_nodes_by_default() {
    let nodes = [("n1", PLAIN), ("n2", "cpu=400 memory=800Gi pods=10")];
    let pods = ["a", "b", "c"].map(|name| (name, "label=app:web node=n2"));
    let owned = r#"label=app:web patch={"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "name": "web", "uid": "u", "controller": true}]}}"#;
    let mut snapshot = cluster(&nodes, &pods);
    assert_eq!(decide(&snapshot, owned), "n2");
    snapshot.set_workload(Workload {
        kind: "ReplicaSet",
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        selector: PodSelector::equal(&BTreeMap::from([("app".to_owned(), "web".to_owned())])),
    });
    assert_eq!(decide(&snapshot, owned), "n1");
}

#[test]
fn comparisons() {
    // The emptier node.
    let busy = [("a", "cpu=2 memory=4Gi node=n1")];
    assert_eq!(decide(&cluster(&[("n1", PLAIN), ("n2", PLAIN)], &busy), "cpu=1 memory=1Gi"), "n2");
    // The node that holds the image on as many nodes as any other has none.
    let with_image = format!("{PLAIN} image=app:1");
    assert_eq!(decide(&cluster(&[("n1", PLAIN), ("n2", &with_image)], &[]), ""), "n2");
    // The node without a discouraging taint.
    let discouraged = format!("{PLAIN} taint=a:b:PreferNoSchedule");
    assert_eq!(decide(&cluster(&[("n1", &discouraged), ("n2", PLAIN)], &[]), ""), "n2");
    // The preferred node.
    let preferring = r#"patch={"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}}"#;
    let fast = format!("{PLAIN} label=disk:ssd");
    assert_eq!(decide(&cluster(&[("n1", PLAIN), ("n2", &fast), ("n3", PLAIN)], &[]), preferring), "n2");
}

#[test]
fn a_pod_of_a_daemon_set_is_only_judged_on_its_node() {
    let pinned = r#"cpu=9 patch={"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}}}}"#;
    assert!(
        decide(&cluster(&[("n1", PLAIN), ("n2", PLAIN), ("n3", PLAIN)], &[]), pinned)
            .starts_with("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity].")
    );
}

#[test]
fn preemption_takes_the_least_harm() {
    let nodes = [("n1", PLAIN), ("n2", PLAIN)];
    let pods = [
        ("low-1", "cpu=2 priority=1 node=n1"),
        ("low-2", "cpu=2 priority=1 node=n1"),
        ("mid-1", "cpu=2 priority=5 node=n2"),
        ("low-3", "cpu=2 priority=1 node=n2"),
    ];
    let snapshot = cluster(&nodes, &pods);
    assert!(decide(&snapshot, "cpu=1 priority=1").contains("2 No preemption victims found"));
    let answer = decide(&snapshot, "cpu=2 priority=9");
    assert!(answer == "preempts low-3 on n2" || answer.starts_with("preempts low-") && answer.ends_with(" on n1"));
    assert_eq!(decide(&snapshot, "cpu=3 priority=9"), "preempts low-1 low-2 on n1");
    let never = r#"cpu=3 priority=9 patch={"spec": {"preemptionPolicy": "Never"}}"#;
    assert!(decide(&snapshot, never).ends_with("preemption: not eligible due to preemptionPolicy=Never."));
}

#[test]
fn preemption_spares_what_a_budget_protects() {
    let nodes = [("n1", PLAIN), ("n2", PLAIN)];
    let pods = [("guarded", "cpu=4 priority=1 label=app:db node=n1"), ("free", "cpu=4 priority=2 node=n2")];
    let mut snapshot = cluster(&nodes, &pods);
    assert_eq!(decide(&snapshot, "cpu=1 priority=9"), "preempts guarded on n1");
    let budget = Budget {
        namespace: "default".to_owned(),
        selector: PodSelector::equal(&BTreeMap::from([("app".to_owned(), "db".to_owned())])),
        disruptions_allowed: 0,
        disrupted: Default::default(),
    };
    snapshot.set_budget("default", "db", Some(budget));
    assert_eq!(decide(&snapshot, "cpu=1 priority=9"), "preempts free on n2");
}

#[test]
fn room_made_for_another_is_not_taken() {
    let mut snapshot = cluster(&[("n1", PLAIN)], &[]);
    snapshot.nominate(&pod("important", "cpu=4 priority=9"), "n1");
    assert!(decide(&snapshot, "cpu=1 priority=1").contains("1 Insufficient cpu"));
    assert_eq!(decide(&snapshot, "cpu=1 priority=10"), "n1");
}

fn applied<K>(object: &std::sync::Arc<K>) -> Change<K> {
    Change::Applied { old: None, new: object.clone() }
}

#[test]
fn an_assumed_pod_counts_until_the_api_shows_it() {
    let (mut state, now) = (State::new("default-scheduler"), Instant::now());
    state.node_changed(&applied(&node("n1", "cpu=1 memory=1Gi pods=10")), now);
    state.pod_changed(&applied(&pod_object("p", "cpu=1")), now);
    let popped = state.queue.pop(now).expect("the pod");
    state.assume(&popped, "n1");
    // A late update without a node changes nothing.
    state.pod_changed(&applied(&pod_object("p", "cpu=1 label=a:b")), now);
    assert_eq!(state.snapshot.node("n1").map(|node| node.requested.cpu_milli), Some(1000));
    assert!(state.queue.pop(now).is_none());
    state.pod_changed(&applied(&pod_object("p", "cpu=1 node=n1")), now);
    assert!(!state.is_assumed(&popped.uid));
    assert_eq!(state.snapshot.node("n1").map(|node| node.requested.cpu_milli), Some(1000));
    state.pod_changed(&applied(&pod_object("p", r#"cpu=1 node=n1 patch={"status": {"phase": "Succeeded"}}"#)), now);
    assert_eq!(state.snapshot.node("n1").map(|node| node.requested.cpu_milli), Some(0));
}

#[test]
fn a_pod_that_goes_makes_room_for_one_that_waits() {
    let (mut state, now) = (State::new("default-scheduler"), Instant::now());
    let mut rng = StdRng::seed_from_u64(1);
    state.node_changed(&applied(&node("n1", "cpu=1 memory=1Gi pods=10")), now);
    let first = pod_object("first", "cpu=1 node=n1");
    state.pod_changed(&applied(&first), now);
    state.pod_changed(&applied(&pod_object("second", "cpu=1")), now);
    let popped = state.queue.pop(now).expect("the pod");
    let decision = state.profile.decide(&state.snapshot, &popped, &mut Cursor::default(), &mut rng);
    let unschedulable = decision.expect_err("no room");
    state.queue.refused(&popped.uid, unschedulable.plugins, now);
    assert!(state.queue.pop(now).is_none());
    state.pod_changed(&Change::Deleted(first), now);
    assert_eq!(state.queue.pop(now).map(|pod| pod.name.clone()), Some("second".to_owned()));
}

/// Several hundred pods a second on 500 nodes is the promise; this keeps the cost per cycle in sight without a clock:
/// every pod must be placed, and evenly.
#[test]
fn five_hundred_nodes() {
    let mut snapshot = Snapshot::default();
    for number in 0..500 {
        let spec = format!("cpu=16 memory=64Gi pods=110 zone=z{}", number % 3);
        snapshot.set_node(node(&format!("n{number}"), &spec));
    }
    let (profile, mut cursor, mut rng) = (Profile::default(), Cursor::default(), StdRng::seed_from_u64(7));
    for number in 0..1000 {
        let pod = pod(&format!("p{number}"), "cpu=100m memory=128Mi label=app:web");
        let node = profile.decide(&snapshot, &pod, &mut cursor, &mut rng).expect("room");
        snapshot.place(&pod, &node);
    }
    let fullest = snapshot.nodes().iter().map(|node| node.pods.len()).max();
    assert!(fullest <= Some(4), "{fullest:?} pods on one node");
}

/// Claims and volumes as JSON: `{"claims": [...], "volumes": [...], "classes": [...]}`.
fn with_volumes(mut snapshot: Snapshot, objects: serde_json::Value) -> Snapshot {
    use std::sync::Arc;
    let list = |kind: &str| objects[kind].as_array().cloned().unwrap_or_default();
    for object in list("claims") {
        let claim: k8s_openapi::api::core::v1::PersistentVolumeClaim = serde_json::from_value(object).expect("a claim");
        snapshot.volumes.set_claim(client::Key::of(&claim), Some(Arc::new(claim)));
    }
    for object in list("volumes") {
        let volume: k8s_openapi::api::core::v1::PersistentVolume = serde_json::from_value(object).expect("a volume");
        snapshot.volumes.set_volume(&volume.metadata.name.clone().expect("a name"), Some(Arc::new(volume)));
    }
    for object in list("classes") {
        let class: k8s_openapi::api::storage::v1::StorageClass = serde_json::from_value(object).expect("a class");
        snapshot.volumes.set_class(&class.metadata.name.clone().expect("a name"), Some(Arc::new(class)));
    }
    snapshot
}

const WITH_CLAIM: &str = r#"cpu=1 patch={"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}"#;

fn local_volume(name: &str, node: &str) -> serde_json::Value {
    serde_json::json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local", "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn local_claim(extra: serde_json::Value) -> serde_json::Value {
    let mut claim = serde_json::json!({"metadata": {"name": "data", "namespace": "default", "uid": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}});
    for (key, value) in extra.as_object().into_iter().flatten() {
        for (name, value) in value.as_object().into_iter().flatten() {
            claim[key][name] = value.clone();
        }
    }
    claim
}

#[test]
fn a_pod_goes_where_its_volume_is() {
    use serde_json::json;
    let nodes = || cluster(&[("n1", PLAIN), ("n2", PLAIN)], &[]);
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "there"}});
    let objects = json!({"claims": [local_claim(bound.clone())], "volumes": [local_volume("there", "n2")]});
    assert_eq!(decide(&with_volumes(nodes(), objects), WITH_CLAIM), "n2");
    let objects = json!({"claims": [local_claim(bound)], "volumes": [local_volume("there", "n3")]});
    assert_eq!(
        decide(&with_volumes(nodes(), objects), WITH_CLAIM),
        "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity. \
         preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
}

#[test]
fn a_claim_that_waits_for_its_pod_gets_a_volume_near_it() {
    use serde_json::json;
    let nodes = || cluster(&[("n1", PLAIN), ("n2", PLAIN)], &[]);
    let class = |provisioner: &str| json!({"metadata": {"name": "local"}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
    let objects =
        json!({"claims": [local_claim(json!({}))], "volumes": [local_volume("there", "n2")], "classes": [class("kubernetes.io/no-provisioner")]});
    let mut snapshot = with_volumes(nodes(), objects);
    assert_eq!(decide(&snapshot, WITH_CLAIM), "n2");
    let pod = pod("other", WITH_CLAIM);
    let plan = snapshot.volumes.plan(&pod, snapshot.node("n2").expect("a node"));
    assert_eq!((plan.bind.len(), plan.provision.len()), (1, 0));
    // What was chosen for one pod is not there for another, until it is let go.
    snapshot.volumes.choose(&pod.uid, &plan);
    assert!(decide(&snapshot, WITH_CLAIM).starts_with("0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."));
    snapshot.volumes.release(&pod.uid);
    assert_eq!(decide(&snapshot, WITH_CLAIM), "n2");
    let objects = json!({"claims": [local_claim(json!({}))], "classes": [class("example.com/disk")]});
    let snapshot = with_volumes(nodes(), objects);
    assert_eq!(snapshot.volumes.plan(&pod, snapshot.node("n1").expect("a node")).provision.len(), 1);
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n2"}}});
    let objects = json!({"claims": [local_claim(selected)], "classes": [class("example.com/disk")]});
    assert_eq!(decide(&with_volumes(nodes(), objects), WITH_CLAIM), "n2");
}

#[test]
fn a_pod_without_its_claim_waits() {
    use serde_json::json;
    let nodes = || cluster(&[("n1", PLAIN)], &[]);
    let rest = " preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let check = |objects: serde_json::Value, expected: &str| {
        assert_eq!(decide(&with_volumes(nodes(), objects), WITH_CLAIM), format!("0/1 nodes are available: {expected}.{rest}"));
    };
    check(json!({}), "persistentvolumeclaim \"data\" not found");
    check(json!({"claims": [local_claim(json!({}))]}), "pod has unbound immediate PersistentVolumeClaims");
    let lost = json!({"status": {"phase": "Lost"}, "spec": {"volumeName": "v"}});
    check(json!({"claims": [local_claim(lost)]}), "persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"v\"");
}

#[test]
fn a_claim_for_one_pod_is_used_by_one() {
    use serde_json::json;
    let used = format!("node=n1 {WITH_CLAIM}");
    let alone = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v", "accessModes": ["ReadWriteOncePod"]}});
    let objects = json!({"claims": [local_claim(alone)], "volumes": [local_volume("v", "n1")]});
    let snapshot = with_volumes(cluster(&[("n1", PLAIN)], &[("old", &used)]), objects);
    let said = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert!(decide(&snapshot, WITH_CLAIM).contains(said), "{}", decide(&snapshot, WITH_CLAIM));
    let urgent = WITH_CLAIM.replace("cpu=1", "cpu=1 priority=5");
    assert_eq!(decide(&snapshot, &urgent), "preempts old on n1");
}
