//! What a pod may ask of its node: volumes, environment, init containers and sidecars, hooks, images, limits.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, will_show},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "volumes_and_environment_come_from_all_sources", run: sources, alone: false },
    Scenario { name: "init_containers_sidecars_and_hooks_run_in_order", run: order, alone: false },
    Scenario { name: "images_are_pulled_refused_and_opened_by_secrets", run: images, alone: false },
    Scenario { name: "limits_are_cgroups_and_too_much_memory_is_killed", run: limits, alone: false },
    Scenario { name: "a_grpc_probe_decides_readiness", run: grpc, alone: false },
    Scenario { name: "a_host_port_answers_on_the_node", run: host_port, alone: false },
    Scenario { name: "a_pod_that_is_bound_by_hand_is_judged_by_its_node", run: by_hand, alone: false },
    Scenario { name: "logs_are_rotated_at_their_size", run: rotation, alone: false },
    Scenario { name: "a_pod_talks_to_the_api_with_its_token", run: token, alone: false },
];

fn sources(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl(&format!("create configmap settings -n {namespace} --from-literal=color=blue --from-literal=size=big"))?;
    cluster.kubectl(&format!("create secret generic keys -n {namespace} --from-literal=password=hush"))?;
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {tier: front}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo made > /scratch/file; sleep 3600"]
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {memory: 32Mi}}
    envFrom: [{configMapRef: {name: settings}, prefix: CFG_}]
    env:
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: JOINED, value: "$(COLOR)-$(PASSWORD)-$$(COLOR)"}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one/color, subPath: color}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: about, mountPath: /about}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /host, readOnly: true}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}]}}
  - name: all
    projected:
      sources:
      - {configMap: {name: settings, items: [{key: size, path: deep/size}]}}
      - {secret: {name: keys}}
      - {serviceAccountToken: {path: token, audience: here}}
  - {name: host, hostPath: {path: /etc, type: Directory}}
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/full --timeout=60s"))?;
    let shell = |command: &str| cluster.kubectl_with(&["exec", "-n", namespace, "full", "--", "sh", "-c", command], "");
    let environment = shell("env")?;
    let node = cluster.kubectl(&format!("get pod full -n {namespace} -o jsonpath={{.spec.nodeName}}"))?;
    let parts = [
        "CFG_color=blue",
        "CFG_size=big",
        "PASSWORD=hush",
        "JOINED=blue-hush-$(COLOR)",
        "POD_IP=10.244.",
        "MEMORY=33554432",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
    ];
    has_all(&environment, &parts)?;
    has_all(&environment, &[&format!("NODE={node}")])?;
    let files = shell(
        "cat /scratch/file /settings/size /one/color /keys/password /about/labels /about/memory /all/deep/size; ls -la /keys/..data/; df -m /memory | tail -1; wc -c < /all/token; head -c 20 /host/hostname",
    )?;
    has_all(&files, &["made", "big", "blue", "hush", "tier=\"front\"", "32", "-r--------", "tmpfs"])?;
    expect(shell("echo x > /keys/new").is_err(), "a read-only mount could be written")?;
    cluster
        .kubectl(&format!("create configmap settings -n {namespace} --from-literal=color=green --from-literal=size=big -o yaml --dry-run=client"))
        .and_then(|manifest| cluster.apply(namespace, &manifest))?;
    cluster.wait("the changed ConfigMap in the volume", 100, || {
        let color = shell("cat /settings/color")?;
        expect(color == "green", color)
    })?;
    expect(shell("cat /one/color")? == "blue", "a subPath must not change under the container")
}

fn order(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: steps}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  volumes: [{name: log, emptyDir: {}}]
  initContainers:
  - {name: first, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sh, -c, "echo first >> /log/all"], volumeMounts: [{name: log, mountPath: /log}]}
  - name: side
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    restartPolicy: Always
    command: [sh, -c, "echo side >> /log/all; touch /tmp/up; trap 'exit 0' TERM; sleep 3600 & wait"]
    startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: log, mountPath: /log}]
  - {name: second, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sh, -c, "echo second >> /log/all"], volumeMounts: [{name: log, mountPath: /log}]}
  containers:
  - name: main
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "while ! grep -q hook /log/all; do sleep 0.1; done; cat /log/all; echo done > /dev/termination-log"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo hook >> /log/all"]}}}
    volumeMounts: [{name: log, mountPath: /log}]
"#;
    cluster.apply(namespace, manifest)?;
    cluster.wait_for("the pod to end", &format!("get pod steps -n {namespace} -o jsonpath={{.status.phase}}"), |o| o == "Succeeded")?;
    let log = cluster.kubectl(&format!("logs -n {namespace} steps -c main"))?;
    expect(log == "first\nside\nsecond\nhook\n", &log)?;
    let message = cluster.kubectl(&format!("get pod steps -n {namespace} -o jsonpath={{.status.containerStatuses[0].state.terminated.message}}"))?;
    expect(message.trim() == "done", message)
}

fn images(cluster: &Cluster, namespace: &str) -> Outcome {
    let pod = |name: &str, image: &str, more: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: \"{image}\"}}]{more}}}}}"
        )
    };
    cluster.apply(namespace, &pod("always", "nginx", ""))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/always --timeout=60s"))?;
    will_show(
        || cluster.kubectl(&format!("describe pod always -n {namespace}")),
        &["Pulling image \"nginx\"", "Successfully pulled image", "nginx@sha256:"],
    )?;
    cluster.apply(namespace, &pod("missing", "nginx:no-such-tag", ""))?;
    cluster.wait_for("ImagePullBackOff", &format!("get pod missing -n {namespace}"), |o| o.contains("ImagePullBackOff"))?;
    will_show(|| cluster.kubectl(&format!("describe pod missing -n {namespace}")), &["Failed to pull image", "ErrImagePull"])?;
    cluster.apply(namespace, &pod("closed", "172.30.0.2:5001/private/nginx:1.22", ""))?;
    cluster.wait_for("the refusal", &format!("get pod closed -n {namespace}"), |o| o.contains("ImagePull"))?;
    let file = cluster.directory().join("nodes/registry/password");
    let password = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    cluster.kubectl(&format!(
        "create secret docker-registry key -n {namespace} --docker-server=172.30.0.2:5001 --docker-username=regent --docker-password={}",
        password.trim()
    ))?;
    cluster.apply(namespace, &pod("opened", "172.30.0.2:5001/private/nginx:1.22", ", imagePullSecrets: [{name: key}]"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/opened --timeout=60s")).map(|_| ())
}

fn limits(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; exec tail /dev/zero"]
    resources: {limits: {memory: 24Mi, cpu: 500m}}
"#;
    cluster.apply(namespace, manifest)?;
    cluster.wait_for("the kill", &format!("get pod greedy -n {namespace}"), |o| o.contains("OOMKilled"))?;
    has_all(&cluster.kubectl(&format!("get pod greedy -n {namespace} -o yaml"))?, &["qosClass: Guaranteed", "exitCode: 137"])?;
    has_all(&cluster.kubectl(&format!("logs -n {namespace} greedy"))?, &["25165824"])
}

/// The server is this very program (`health.rs`), which a busybox container runs with the machine's libraries.
fn grpc(cluster: &Cluster, namespace: &str) -> Outcome {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let manifest = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: health}}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - {{name: program, hostPath: {{path: {program}, type: File}}}}
  - {{name: usr, hostPath: {{path: /usr}}}}
  - {{name: lib, hostPath: {{path: /lib}}}}
  - {{name: lib64, hostPath: {{path: /lib64}}}}
  containers:
  - name: main
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [/program, {serve}, "9090"]
    readinessProbe: {{grpc: {{port: 9090, service: front}}, periodSeconds: 1, failureThreshold: 1}}
    volumeMounts:
    - {{name: program, mountPath: /program, readOnly: true}}
    - {{name: usr, mountPath: /usr, readOnly: true}}
    - {{name: lib, mountPath: /lib, readOnly: true}}
    - {{name: lib64, mountPath: /lib64, readOnly: true}}
"#,
        program = program.display(),
        serve = crate::health::COMMAND,
    );
    cluster.apply(namespace, &manifest)?;
    let ready = |status: &str| {
        let look = format!("get pod health -n {namespace} -o jsonpath={{.status.phase}}/{{.status.conditions[?(@.type==\"Ready\")].status}}");
        cluster.wait_for(&format!("Ready to be {status}"), &look, |o| o == format!("Running/{status}")).map(|_| ())
    };
    let shell = |command: &str| cluster.kubectl_with(&["exec", "-n", namespace, "health", "--", "sh", "-c", command], "");
    ready("False")?;
    will_show(|| cluster.kubectl(&format!("describe pod health -n {namespace}")), &["Readiness probe failed", "NOT_SERVING"])?;
    shell(&format!("echo front > {}", crate::health::SERVING))?;
    ready("True")?;
    shell(&format!("rm {}", crate::health::SERVING))?;
    ready("False")
}

fn host_port(cluster: &Cluster, namespace: &str) -> Outcome {
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 1, nodeSelector: {{kubernetes.io/hostname: worker-1}}, containers: [{{name: main, image: \"nginx:1.22\", imagePullPolicy: IfNotPresent, ports: [{{containerPort: 80, hostPort: 8088}}]}}]}}}}"
        )
    };
    cluster.apply(namespace, &pod("first"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/first --timeout=60s"))?;
    let get = || cluster.wait("the port to answer", 10, || has_all(&cluster.get("http://172.30.0.21:8088/")?, &["Welcome to nginx!"]));
    get()?;
    cluster.apply(namespace, &pod("second"))?;
    cluster.wait("the port to be taken", 30, || {
        will_show(|| cluster.kubectl(&format!("describe pod second -n {namespace}")), &["FailedScheduling", "didn't have free ports"])
    })?;
    cluster.kubectl(&format!("delete pod first -n {namespace}"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/second --timeout=60s"))?;
    get()
}

fn by_hand(cluster: &Cluster, namespace: &str) -> Outcome {
    let label = format!("regent.example.com/{namespace}");
    let pod = |name: &str, more: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: worker-2, terminationGracePeriodSeconds: 1, nodeSelector: {{{label}: here}}, containers: [{{name: main, image: \"nginx:1.22\", imagePullPolicy: IfNotPresent{more}}}]}}}}"
        )
    };
    let refused = |name: &str, words: &[&str]| {
        let told = format!("get pod {name} -n {namespace} -o jsonpath={{.status.phase}}/{{.status.reason}}:{{.status.message}}");
        cluster.wait_for(&format!("{name} to be refused"), &told, |told| words.iter().all(|word| told.contains(word))).map(drop)
    };
    let runs = |name: &str| cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/{name} --timeout=60s")).map(drop);
    let outcome = (|| {
        cluster.apply(namespace, &pod("early", ""))?;
        refused("early", &["Failed/NodeAffinity:", "Pod was rejected: Predicate NodeAffinity failed"])?;
        // The node is asked for anew, not judged by what it was some seconds ago.
        cluster.kubectl(&format!("label node worker-2 {label}=here"))?;
        let port = ", ports: [{containerPort: 80, hostPort: 8089}]";
        cluster.apply(namespace, &pod("late", port))?;
        runs("late")?;
        cluster.apply(namespace, &pod("third", port))?;
        refused("third", &["Failed/NodePorts:", "didn't have free ports"])
    })();
    cluster.kubectl(&format!("label node worker-2 {label}-"))?;
    outcome?;
    // What was taken stays, whatever becomes of the labels.
    runs("late")
}

fn rotation(cluster: &Cluster, namespace: &str) -> Outcome {
    // Twelve megabytes: more than one file may hold (10 MiB).
    let fill = "line=$(head -c 190 /dev/zero | tr '\\0' x); yes $line | head -n 60000; echo end; touch /tmp/full; while ! test -e /tmp/more; do sleep 0.2; done; echo after; sleep 3600";
    cluster.apply(namespace, &super::busybox("talker", fill, "Always"))?;
    let shell = |command: &str| cluster.kubectl_with(&["exec", "-n", namespace, "talker", "--", "sh", "-c", command], "");
    cluster.wait("the log to be written", 60, || shell("test -e /tmp/full"))?;
    let of = |path: &str| cluster.kubectl(&format!("get pod talker -n {namespace} -o jsonpath={{{path}}}"));
    let (node, uid) = (of(".spec.nodeName")?, of(".metadata.uid")?);
    let directory = format!("/var/log/pods/{namespace}_talker_{uid}/main");
    cluster.wait("the log to be put aside", 60, || {
        let files = cluster.on_node(&node, &format!("ls {directory}"))?;
        expect(files.split_whitespace().any(|file| file.starts_with("0.log.")), files)
    })?;
    shell("touch /tmp/more")?;
    cluster.wait_for("what was written after", &format!("logs talker -n {namespace} --tail=1"), |o| o == "after\n").map(|_| ())
}

fn token(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl(&format!("create role looker -n {namespace} --verb=get,list --resource=pods"))?;
    cluster.kubectl(&format!("create rolebinding looker -n {namespace} --role=looker --serviceaccount={namespace}:default"))?;
    cluster.apply(namespace, &super::nginx("asker", 1, "nginx:1.22"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/asker --timeout=60s"))?;
    // busybox' wget neither checks nor presents certificates well; the node's curl does, with the pod's own files.
    let read =
        |file: &str| cluster.kubectl(&format!("exec -n {namespace} deployment/asker -- cat /var/run/secrets/kubernetes.io/serviceaccount/{file}"));
    let (token, authority) = (read("token")?, read("ca.crt")?);
    expect(read("namespace")? == namespace, "the pod's namespace file")?;
    let file = cluster.scratch(namespace)?.join("ca.crt");
    std::fs::write(&file, authority).map_err(|e| e.to_string())?;
    let ask = |path: &str| {
        let command = format!("curl -sS -m 5 --cacert {} -H 'Authorization: Bearer {}' https://10.96.0.1{path}", file.display(), token.trim());
        cluster.on_node("worker-1", &command)
    };
    has_all(&ask(&format!("/api/v1/namespaces/{namespace}/pods"))?, &["PodList", "asker-"])?;
    has_all(
        &ask(&format!("/api/v1/namespaces/{namespace}/secrets"))?,
        &["403", &format!("system:serviceaccount:{namespace}:default"), "cannot list resource"],
    )
}
