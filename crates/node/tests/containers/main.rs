//! The agent against a real containerd: pods in, containers, statuses, logs and exec out. Needs root and Debian's
//! containerd, runc and CNI plugins; leaves nothing behind.
//!
//! The API is a stand-in in memory ([`api`]), the runtime a private one ([`machine`]). One test, as one machine serves
//! all of it, and the scenarios run beside each other.

mod api;
mod machine;
mod peer;

use api::Api;
use machine::{IMAGE, Machine};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// As long as anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const PORT: u16 = 21250;

/// Waits until `look` finds something, and says what was last seen if it does not.
async fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if begun.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; last seen: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn pod_until(api: &Api, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(&format!("{name}: {what}"), || match api.get("pods", "default", name) {
        Some(pod) if holds(&pod) => Ok(pod),
        Some(pod) => Err(format!("{:#}\nevents: {:#?}", pod["status"], events(api, name))),
        None => Err("no pod".into()),
    })
    .await
}

fn events(api: &Api, name: &str) -> Vec<String> {
    let own = api.list("events").into_iter().filter(|event| event["involvedObject"]["name"] == name);
    own.map(|event| format!("{} {}", event["reason"].as_str().unwrap_or_default(), event["message"].as_str().unwrap_or_default())).collect()
}

fn condition<'a>(pod: &'a Value, type_: &str) -> &'a str {
    let all = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|condition| condition["type"] == type_).and_then(|condition| condition["status"].as_str()).unwrap_or("absent")
}

fn create(api: &Api, name: &str, mut spec: Value) {
    spec["nodeName"] = "n1".into();
    spec["terminationGracePeriodSeconds"] = spec.get("terminationGracePeriodSeconds").cloned().unwrap_or(json!(1));
    api.create(
        "pods",
        json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": name } }, "spec": spec, "status": { "phase": "Pending" } }),
    );
}

fn container(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script] })
}

fn start_agent(api: &Api, machine: &Machine, authority: &pki::Authority) -> (CancellationToken, tokio::task::JoinHandle<Result<(), node::Error>>) {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let serving = authority.issue(&pki::Identity::node_serving("n1", &[ip])).unwrap();
    let informers = client::Informers::new(api.client());
    let config = node::Config {
        runtime_endpoint: machine.endpoint(),
        data_dir: machine.directory.join("node"),
        log_dir: machine.directory.join("logs"),
        bind_address: ip,
        port: PORT,
        cgroup_root: machine.cgroup(),
        // How full the disk of the machine is, is not what these scenarios are about.
        eviction: "nodefs.available<0%,nodefs.inodesFree<0%".parse().unwrap(),
        ..node::Config::new(
            "n1",
            ip,
            informers,
            node::Serving::known(serving.chain_pem(), serving.key_pem.clone()),
            authority.certificate_pem().to_owned(),
        )
    };
    let shutdown = CancellationToken::new();
    (shutdown.clone(), tokio::spawn(node::run(config, shutdown)))
}

/// The scenarios run on a runtime of their own: when one fails it ends first, and the agent with it, so that the machine
/// is taken away without anyone starting pods on it.
#[test]
fn pods_run_and_say_so() {
    let machine = Machine::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(scenarios(&machine))));
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(machine);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn scenarios(machine: &Machine) {
    let authority = pki::Authority::generate("test").unwrap();
    let api = Api::new();
    api.create("services", json!({ "metadata": { "name": "kubernetes", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.1", "ports": [{ "name": "https", "port": 443 }] } }));
    api.create("configmaps", json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "color": "blue", "size": "3" } }));
    api.create("secrets", json!({ "metadata": { "name": "hidden", "namespace": "default" }, "data": { "word": "c2VzYW1l" } }));
    let (shutdown, agent) = start_agent(&api, machine, &authority);

    node_registers(&api).await;
    tokio::join!(
        a_web_server_becomes_ready(&api, &authority),
        volumes_and_environment(&api),
        init_and_sidecars_then_the_end(&api),
        crashes_back_off(&api),
        bad_pods_say_why(&api),
        liveness_restarts(&api),
    );

    // A new agent finds what runs, and leaves it alone.
    let before = api.get("pods", "default", "web").unwrap();
    shutdown.cancel();
    agent.await.unwrap().unwrap();
    let (shutdown, agent) = start_agent(&api, machine, &authority);
    create(&api, "later", json!({ "containers": [container("a", "sleep 1000")] }));
    pod_until(&api, "later", "running", |pod| condition(pod, "Ready") == "True").await;
    let after = api.get("pods", "default", "web").unwrap();
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
    assert_eq!(before["status"]["conditions"], after["status"]["conditions"]);

    for pod in api.list("pods") {
        api.delete_gracefully("default", pod["metadata"]["name"].as_str().unwrap(), 1);
    }
    until("all pods gone", || match api.list("pods").as_slice() {
        [] => Ok(()),
        left => Err(left.iter().map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"])).collect()),
    })
    .await;
    until("all directories gone", || match std::fs::read_dir(machine.directory.join("node/pods")).unwrap().count() {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    })
    .await;
    shutdown.cancel();
    agent.await.unwrap().unwrap();
}

async fn node_registers(api: &Api) {
    let node = until("the node is ready", || match api.get("nodes", "", "n1") {
        Some(node) if condition(&node, "Ready") == "True" => Ok(node),
        other => Err(format!("{other:#?}")),
    })
    .await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert!(node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().starts_with("containerd://1."));
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    until("the lease is held", || {
        api.get("leases", "kube-node-lease", "n1").filter(|lease| lease["spec"]["holderIdentity"] == "n1").ok_or("none".into())
    })
    .await;
}

async fn a_web_server_becomes_ready(api: &Api, authority: &pki::Authority) {
    let mut web = container("web", "mkdir /www; echo hello >/www/index.html; echo begun; exec httpd -f -p 8080 -h /www");
    web["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    web["readinessProbe"] = json!({ "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 1 });
    create(api, "web", json!({ "containers": [web] }));
    let running = pod_until(api, "web", "running", |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(condition(&running, "Ready"), "False");
    let ip = running["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.89.77."), "{ip}");

    for word in ["Pulled", "Created", "Started", "Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404"] {
        until(&format!("{word} is told"), || {
            let told = events(api, "web");
            told.iter().any(|event| event.starts_with(word)).then_some(()).ok_or(format!("{told:#?}"))
        })
        .await;
    }

    let node = peer::Peer::new(authority, PORT);
    let (status, text) = node.get("/containerLogs/default/web/web?tailLines=1").await;
    assert_eq!((status, text.as_str()), (200, "begun\n"));
    let (status, text) = node.get("/containerLogs/default/web/web?previous=true").await;
    assert_eq!((status, text.as_str()), (400, "previous terminated container \"web\" in pod \"web\" not found"));
    let (output, code) = node.exec("/exec/default/web/web?command=sh&command=-c&command=echo+out;touch+/www/ready;hostname&output=1&error=1").await;
    assert_eq!((output.as_str(), code), ("out\nweb\n", "Success"));

    let ready = pod_until(api, "web", "ready", |pod| condition(pod, "Ready") == "True").await;
    assert_eq!(ready["status"]["containerStatuses"][0]["ready"], true);
    assert_eq!(ready["status"]["qosClass"], "BestEffort");
    assert_eq!(peer::Peer::stranger(authority, PORT).get("/pods").await.0, 403);
    assert_eq!(peer::Peer::anonymous(authority, PORT).get("/pods").await.0, 401);
    let (_, summary) = node.get("/stats/summary").await;
    assert!(summary.contains("\"name\":\"web\""), "{summary}");
}

async fn volumes_and_environment(api: &Api) {
    let script = "set -e; test \"$color\" = blue; test \"$WORD\" = sesame; test \"$NAME\" = files; test \"$KUBERNETES_SERVICE_HOST\" = 10.96.0.1; \
        test \"$(cat /cm/color)\" = blue; test \"$(cat /one)\" = 3; test \"$(cat /projected/token)\" = a-token; test \"$(cat /projected/labels)\" = 'app=\"files\"'; \
        test \"$(cat /secret/word)\" = sesame; echo x >/scratch/x; test \"$(id -u)\" = 7; test -f /sub/x; \
        echo ok >/dev/termination-log; exit 0";
    let mut own = container("a", script);
    own["envFrom"] = json!([{ "configMapRef": { "name": "settings" } }]);
    own["env"] = json!([
        { "name": "WORD", "valueFrom": { "secretKeyRef": { "name": "hidden", "key": "word" } } },
        { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
    ]);
    own["securityContext"] = json!({ "runAsUser": 7, "allowPrivilegeEscalation": false });
    own["resources"] = json!({ "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } });
    own["volumeMounts"] = json!([
        { "name": "cm", "mountPath": "/cm" }, { "name": "cm", "mountPath": "/one", "subPath": "size" },
        { "name": "secret", "mountPath": "/secret" }, { "name": "projected", "mountPath": "/projected" },
        { "name": "scratch", "mountPath": "/scratch" }, { "name": "scratch", "mountPath": "/sub", "subPathExpr": "." },
    ]);
    let spec = json!({
        "restartPolicy": "Never", "containers": [own], "securityContext": { "fsGroup": 9 },
        "volumes": [
            { "name": "cm", "configMap": { "name": "settings" } },
            { "name": "secret", "secret": { "secretName": "hidden", "defaultMode": 0o400 } },
            { "name": "scratch", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
            { "name": "projected", "projected": { "sources": [
                { "serviceAccountToken": { "path": "token" } },
                { "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
            ] } },
        ],
    });
    create(api, "files", spec);
    let done = pod_until(api, "files", "over", |pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))).await;
    let ended = &done["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["message"].as_str()), (Some(0), Some("ok\n")), "{:#}", done["status"]);
    assert_eq!(done["status"]["qosClass"], "Burstable");
}

async fn init_and_sidecars_then_the_end(api: &Api) {
    let mut sidecar = container("side", "trap 'exit 0' TERM; while true; do sleep 1; done");
    sidecar["restartPolicy"] = "Always".into();
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [container("first", "echo 1 >/shared/order"), sidecar],
        "containers": [container("main", "cat /shared/order; exit 3")],
        "volumes": [{ "name": "shared", "emptyDir": {} }],
    });
    let mut spec = spec;
    for list in ["initContainers", "containers"] {
        for own in spec[list].as_array_mut().unwrap() {
            own["volumeMounts"] = json!([{ "name": "shared", "mountPath": "/shared" }]);
        }
    }
    create(api, "job", spec);
    let done = pod_until(api, "job", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3, "{:#}", done["status"]);
    assert_eq!(done["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed", "{:#}", done["status"]);
    assert!(done["status"]["initContainerStatuses"][1]["state"]["terminated"].is_object(), "{:#}", done["status"]);
}

async fn crashes_back_off(api: &Api) {
    let mut own = container("a", "echo dying; exit 1");
    own["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    create(api, "crash", json!({ "containers": [own] }));
    let waiting = pod_until(api, "crash", "CrashLoopBackOff", |pod| {
        let own = &pod["status"]["containerStatuses"][0];
        own["state"]["waiting"]["reason"] == "CrashLoopBackOff" && own["restartCount"].as_i64() >= Some(1)
    })
    .await;
    let own = &waiting["status"]["containerStatuses"][0];
    assert_eq!(own["lastState"]["terminated"]["message"], "dying\n");
    assert!(own["state"]["waiting"]["message"].as_str().unwrap().starts_with("back-off 10s restarting failed container=a pod=crash_default("));
    pod_until(api, "crash", "restarted again", |pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(2)).await;
}

async fn bad_pods_say_why(api: &Api) {
    let mut never = container("a", "true");
    never["image"] = "docker.io/library/absent:1".into();
    never["imagePullPolicy"] = "Never".into();
    create(api, "absent", json!({ "containers": [never] }));
    let mut missing = container("a", "true");
    missing["envFrom"] = json!([{ "configMapRef": { "name": "nowhere" } }]);
    create(api, "missing", json!({ "containers": [missing] }));
    create(api, "unmounted", json!({ "containers": [container("a", "true")], "volumes": [{ "name": "v", "secret": { "secretName": "nowhere" } }] }));
    let reason = |reason: &'static str| move |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason;
    pod_until(api, "absent", "ErrImageNeverPull", reason("ErrImageNeverPull")).await;
    let missing = pod_until(api, "missing", "CreateContainerConfigError", reason("CreateContainerConfigError")).await;
    assert_eq!(missing["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"nowhere\" not found");
    until("FailedMount is told", || {
        let told = events(api, "unmounted");
        told.iter()
            .any(|event| event == "FailedMount MountVolume.SetUp failed for volume \"v\" : secret \"nowhere\" not found")
            .then_some(())
            .ok_or(format!("{told:?}"))
    })
    .await;
}

async fn liveness_restarts(api: &Api) {
    let mut own = container("a", "touch /tmp/alive; sleep 3; rm /tmp/alive; sleep 1000");
    own["livenessProbe"] = json!({ "exec": { "command": ["cat", "/tmp/alive"] }, "periodSeconds": 1, "failureThreshold": 2 });
    create(api, "ill", json!({ "containers": [own] }));
    let restarted = pod_until(api, "ill", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)).await;
    assert_eq!(restarted["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
    assert!(
        events(api, "ill").iter().any(|event| event == "Killing Container a failed liveness probe, will be restarted"),
        "{:#?}",
        events(api, "ill")
    );
}
