//! With no server alive: a node that reboots, components that are killed, what was deleted, and the server's return.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all},
};
use std::{collections::BTreeMap, time::Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_node_reboots_without_a_server_and_its_pods_come_back", run: reboots, alone: true },
    Scenario { name: "what_was_deleted_before_the_outage_stays_deleted", run: deleted, alone: true },
];

/// How long a rebooted node's pods may take, and what is asked of them right after, in seconds.
const READY_S: u64 = 60;
const ANSWER_S: u64 = 30;
/// How long agreement may take once the server answers again, in seconds.
const AGREE_S: u64 = 30;

/// Pods of several sorts on worker-1: a Deployment with volumes and readiness, a StatefulSet, a sidecar.
const PODS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index.html: "from a ConfigMap\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: kept-secret}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: worker-1
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: nginx:1.22
        imagePullPolicy: Always
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: word, key: word}}}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
        volumeMounts: [{name: page, mountPath: /usr/share/nginx/html}, {name: word, mountPath: /word}]
      volumes: [{name: page, configMap: {name: page}}, {name: word, secret: {secretName: word}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      nodeName: worker-1
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: busybox:1.35
        command: [sh, -c, "date >> /data/starts; sleep 36000"]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: side}
spec:
  nodeName: worker-1
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: "busybox:1.35", command: ["true"]}
  - {name: helper, image: "busybox:1.35", restartPolicy: Always, command: [sleep, "36000"], startupProbe: {exec: {command: ["true"]}, periodSeconds: 1}}
  containers:
  - {name: main, image: "busybox:1.35", command: [sleep, "36000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: single}
spec:
  nodeName: worker-1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:1.35", command: [sleep, "36000"]}
"#;

/// `NAME -> (ready, address, its containers and how often each was restarted)`.
type View = BTreeMap<String, (bool, String, String)>;

/// What worker-1 itself says of the namespace's pods, with no server.
fn own_view(cluster: &Cluster, namespace: &str) -> Result<View, String> {
    view(&cluster.sandbox(&["exec", "worker-1", "--", env!("CARGO_BIN_EXE_regent"), "node", "pods", "-o", "json"])?, namespace)
}

/// What the API says of them.
fn api_view(cluster: &Cluster, namespace: &str) -> Result<View, String> {
    view(&cluster.kubectl(&format!("get pods -n {namespace} -o json"))?, namespace)
}

fn view(text: &str, namespace: &str) -> Result<View, String> {
    let list: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
    let mut out = BTreeMap::new();
    for pod in list["items"].as_array().into_iter().flatten().filter(|pod| pod["metadata"]["namespace"] == namespace) {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let ids: Vec<String> = containers.iter().map(|container| format!("{} {}", container["containerID"], container["restartCount"])).collect();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        out.insert(text(&pod["metadata"]["name"]), (ready, text(&pod["status"]["podIP"]), ids.join(" ")));
    }
    Ok(out)
}

fn addresses(view: &View) -> BTreeMap<&str, &str> {
    view.iter().map(|(name, (_, address, _))| (name.as_str(), address.as_str())).collect()
}

fn start(cluster: &Cluster, namespace: &str) -> Result<View, String> {
    cluster.wait_for("the service account", &format!("get serviceaccount default -n {namespace}"), |_| true)?;
    cluster.apply(namespace, PODS)?;
    cluster.wait("ten pods to be ready", 60, || {
        let view = own_view(cluster, namespace)?;
        expect(view.len() == 10 && view.values().all(|(ready, ..)| *ready), format!("{view:?}"))?;
        Ok(view)
    })
}

fn server_back(cluster: &Cluster) -> Outcome {
    cluster.sandbox(&["start", "server-1"])?;
    cluster.wait("the API server", 30, || cluster.kubectl("get --raw /readyz")).map(drop)
}

fn reboots(cluster: &Cluster, namespace: &str) -> Outcome {
    let before = start(cluster, namespace)?;
    let service = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.clusterIP}}"))?;
    let name = format!("web.{namespace}.svc.cluster.local");
    let host = format!("db-0.db.{namespace}.svc.cluster.local");
    cluster.sandbox(&["stop", "server-1"])?;
    let outcome = (|| {
        cluster.sandbox(&["reboot", "worker-1"])?;
        let after = cluster.wait("ten pods to be ready again, with no server", READY_S, || {
            let view = own_view(cluster, namespace)?;
            // Until it has looked, the node says what it last knew: only containers of this boot count.
            let anew =
                |(name, (ready, _, containers)): (&String, &(bool, String, String))| *ready && before.get(name).is_some_and(|b| b.2 != *containers);
            expect(view.len() == 10 && view.iter().all(anew), format!("{view:?}"))?;
            Ok(view)
        })?;
        expect(addresses(&before) == addresses(&after), format!("before {before:?}, after {after:?}"))?;
        let exec = |pod: &str, command: &str| {
            let pod = format!("{namespace}/{pod}");
            cluster.sandbox(&["exec", "worker-1", "--", env!("CARGO_BIN_EXE_regent"), "node", "exec", &pod, "--", "sh", "-c", command])
        };
        let look_up = format!("nslookup {name} 10.96.0.10; nslookup {host} 10.96.0.10");
        cluster.wait("Service and names", ANSWER_S, || {
            for node in ["worker-1", "worker-2"] {
                has_all(&cluster.on_node(node, &format!("curl -sS --max-time 1 http://{service}/"))?, &["from a ConfigMap"])?;
            }
            has_all(&exec("db-0", &look_up)?, &[&service, &after["db-0"].1])
        })?;
        let pod = after.keys().find(|name| name.starts_with("web-")).cloned().unwrap_or_default();
        has_all(
            &exec(&pod, "echo $WORD; cat /word/word; hostname; ls /var/run/secrets/kubernetes.io/serviceaccount")?,
            &["kept-secret", &pod, "token"],
        )?;
        // An emptyDir on disk outlives the reboot.
        expect(exec("db-0", "wc -l < /data/starts")?.trim() == "2", "the volume was not kept")?;
        for component in ["kubelet", "proxy", "dns"] {
            cluster.sandbox(&["stop", "worker-1", component, "--kill"])?;
        }
        has_all(&cluster.on_node("worker-1", &format!("curl -sS --max-time 2 http://{service}/"))?, &["from a ConfigMap"])?;
        for component in ["kubelet", "proxy", "dns"] {
            cluster.sandbox(&["start", "worker-1", component])?;
        }
        cluster.wait("Service and names again", ANSWER_S, || {
            has_all(&cluster.on_node("worker-1", &format!("curl -sS --max-time 1 http://{service}/"))?, &["from a ConfigMap"])?;
            has_all(&exec("db-0", &look_up)?, &[&service, &after["db-0"].1])
        })?;
        // And no container was started again with the agent.
        cluster.wait("the agent to find everything as it was", ANSWER_S, || {
            let view = own_view(cluster, namespace)?;
            expect(view == after, format!("{view:?} is not {after:?}"))?;
            Ok(view)
        })
    })();
    server_back(cluster)?;
    let away = outcome?;
    let began = Instant::now();
    cluster.wait("node and API to agree", AGREE_S, || {
        let said = api_view(cluster, namespace)?;
        expect(said == away, format!("after {:.1} s the node says {away:?}, the API says {said:?}", began.elapsed().as_secs_f64()))
    })?;
    let now = own_view(cluster, namespace)?;
    expect(away == now, format!("a container was restarted at the server's return: {away:?} and {now:?}"))
}

fn deleted(cluster: &Cluster, namespace: &str) -> Outcome {
    start(cluster, namespace)?;
    cluster.kubectl(&format!("delete pod side -n {namespace}"))?;
    cluster.kubectl(&format!("delete pod single -n {namespace} --grace-period=0 --force"))?;
    cluster.wait("two pods to be gone", 20, || {
        let view = own_view(cluster, namespace)?;
        expect(view.len() == 8, format!("{view:?}"))
    })?;
    cluster.sandbox(&["stop", "server-1"])?;
    let outcome = (|| {
        cluster.sandbox(&["reboot", "worker-1"])?;
        let view = cluster.wait("eight pods to be ready again", READY_S, || {
            let view = own_view(cluster, namespace)?;
            expect(view.len() >= 8 && view.values().all(|(ready, ..)| *ready), format!("{view:?}"))?;
            Ok(view)
        })?;
        expect(!view.contains_key("side") && !view.contains_key("single"), format!("it came back: {view:?}"))
    })();
    server_back(cluster)?;
    outcome
}
