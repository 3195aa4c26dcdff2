//! An unchanged kubectl: what its commands print, and with which exit code.

use super::{busybox, nginx};
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, run, will_show},
};
use std::io::Read;

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "kubectl_shows_nodes_and_kinds", run: shows, alone: false },
    Scenario { name: "kubectl_runs_the_life_of_a_deployment", run: deployment, alone: false },
    Scenario { name: "kubectl_reaches_into_pods", run: reaches, alone: false },
    Scenario { name: "kubectl_watches_and_forwards", run: streams, alone: false },
    Scenario { name: "kubectl_cordons_taints_and_drains", run: drains, alone: true },
];

fn shows(cluster: &Cluster, namespace: &str) -> Outcome {
    has_all(&cluster.kubectl("get nodes -o wide")?, &["server-1", "worker-3", "control-plane", "172.30.0.21", "containerd://1", "v1.36", "Ready"])?;
    will_show(
        || cluster.kubectl("describe node worker-1"),
        &["Capacity:", "PodCIDR:", "10.244.", "Allocated resources:", "KubeletReady", "Conditions:"],
    )?;
    will_show(|| cluster.kubectl("describe node server-1"), &["node-role.kubernetes.io/control-plane:NoSchedule"])?;
    has_all(&cluster.kubectl("api-resources")?, &["deployments", "deploy", "apps/v1", "statefulsets", "cronjobs", "poddisruptionbudgets"])?;
    has_all(&cluster.kubectl("api-versions")?, &["apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1"])?;
    has_all(&cluster.kubectl("version")?, &["Server Version: v1.36"])?;
    has_all(&cluster.kubectl("explain deployment.spec.strategy")?, &["rollingUpdate", "FIELDS"])?;
    has_all(&cluster.kubectl("explain pod --recursive")?, &["terminationGracePeriodSeconds", "readinessProbe"])?;
    has_all(&cluster.kubectl("get --raw /readyz?verbose")?, &["ok"])?;
    has_all(&cluster.kubectl("cluster-info")?, &["control plane", "https://172.30.0.11:6443"])?;
    has_all(&cluster.kubectl("auth can-i create deployments")?, &["yes"])?;
    has_all(&cluster.kubectl_fails(&format!("auth can-i delete nodes --as=system:serviceaccount:{namespace}:default"), "")?, &["no"])?;
    has_all(&cluster.kubectl("auth whoami")?, &["kubernetes-admin", "system:masters"])?;
    has_all(&cluster.kubectl("get all -A")?, &["service/kubernetes"])?;
    cluster.kubectl_fails("get pod no-such-pod", "").and_then(|e| has_all(&e, &["(NotFound)", "pods \"no-such-pod\" not found"]))
}

fn deployment(cluster: &Cluster, namespace: &str) -> Outcome {
    let kubectl = |arguments: &str| cluster.kubectl(&format!("-n {namespace} {arguments}"));
    let first = nginx("web", 2, "nginx:1.22");
    cluster.apply(namespace, &first)?;
    has_all(&cluster.apply(namespace, &first)?, &["unchanged"])?;
    kubectl("rollout status deployment/web --timeout=60s")?;
    has_all(&kubectl("get deployment web -o wide")?, &["2/2", "nginx:1.22", "app=web"])?;
    has_all(&kubectl("get all")?, &["pod/web-", "replicaset.apps/web-", "deployment.apps/web", "Running"])?;
    will_show(|| kubectl("describe deployment web"), &["ScalingReplicaSet", "NewReplicaSetAvailable", "2 available"])?;
    kubectl("scale deployment/web --replicas=4")?;
    cluster.wait_for("four replicas", &format!("get deployment web -n {namespace}"), |o| o.contains("4/4"))?;
    let second = nginx("web", 4, "nginx:stable");
    let difference = cluster.kubectl_fails(&format!("diff -n {namespace} -f -"), &second)?;
    let line = |sign: char, image: &str| difference.lines().any(|l| l.starts_with(sign) && l.ends_with(&format!("image: {image}")));
    expect(line('-', "nginx:1.22") && line('+', "nginx:stable"), &difference)?;
    has_all(&cluster.apply(namespace, &second)?, &["configured"])?;
    kubectl("rollout status deployment/web --timeout=90s")?;
    has_all(&kubectl("rollout history deployment/web")?, &["1", "2"])?;
    kubectl("rollout undo deployment/web")?;
    kubectl("rollout status deployment/web --timeout=90s")?;
    expect(kubectl("get deployment web -o jsonpath={..image}")?.contains("nginx:1.22"), "undo did not bring the image back")?;
    kubectl("rollout restart deployment/web")?;
    kubectl("rollout status deployment/web --timeout=90s")?;
    kubectl("rollout pause deployment/web")?;
    kubectl("set image deployment/web nginx=nginx:1.22.1")?;
    expect(kubectl("get replicasets -o jsonpath={..image}")?.split_whitespace().all(|i| i != "nginx:1.22.1"), "a paused Deployment rolled out")?;
    kubectl("rollout resume deployment/web")?;
    kubectl("rollout status deployment/web --timeout=90s")?;
    kubectl("label deployment web tier=front")?;
    kubectl("annotate deployment web note=hello")?;
    has_all(&kubectl("get deployment -l tier=front -o jsonpath={..annotations.note}")?, &["hello"])?;
    let config = format!("KUBECONFIG={}", cluster.kubeconfig());
    let edit = run("env", &[&config, "KUBE_EDITOR=sed -i s/front/back/", "kubectl", "-n", namespace, "edit", "deployment/web"])?;
    has_all(&edit, &["edited"])?;
    has_all(&kubectl("get deployment -l tier=back")?, &["web"])?;
    kubectl("expose deployment/web --port=80 --name=front")?;
    will_show(|| kubectl("describe service front"), &["Endpoints:", ":80"])?;
    will_show(|| kubectl("get events"), &["ScalingReplicaSet", "Scheduled", "Pulled", "Started"])?;
    kubectl("delete deployment web --wait=true --timeout=60s")?;
    cluster.wait_for("its pods to go", &format!("get pods -n {namespace} -l app=web"), |o| o.trim().is_empty()).map(|_| ())
}

fn reaches(cluster: &Cluster, namespace: &str) -> Outcome {
    let kubectl = |arguments: &str| cluster.kubectl(&format!("-n {namespace} {arguments}"));
    kubectl("run sleeper --image=busybox:1.35 --image-pull-policy=IfNotPresent -- sleep 3600")?;
    kubectl("wait --for=condition=Ready pod/sleeper --timeout=60s")?;
    kubectl("delete pod sleeper --now")?;
    cluster.apply(namespace, &busybox("talker", "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; sleep 3600", "Always"))?;
    kubectl("wait --for=condition=Ready pod/talker --timeout=60s")?;
    // Its two streams are two pipes: each keeps its order, between them there is none.
    let log = cluster.wait_for("its log", &format!("logs -n {namespace} talker"), |o| o.contains("oops") && o.contains("line 5"))?;
    has_all(&log.replace("oops\n", ""), &["line 1\nline 2\nline 3\nline 4\nline 5\n"])?;
    let tail = kubectl("logs talker --tail=2")?;
    expect(tail.lines().count() == 2, &tail)?;
    has_all(&kubectl("logs talker --timestamps --tail=-1")?, &["Z oops", "Z line 3"])?;
    has_all(&kubectl("exec talker -- sh -c hostname")?, &["talker"])?;
    let code = cluster.kubectl_with(&["-n", namespace, "exec", "talker", "--", "sh", "-c", "exit 7"], "").err().unwrap_or_default();
    has_all(&code, &["exit code 7"])?;
    let echoed = cluster.kubectl_with(&["-n", namespace, "exec", "-i", "talker", "--", "cat"], "through standard input")?;
    expect(echoed == "through standard input", &echoed)?;
    let terminal =
        format!("KUBECONFIG={} script -qec 'kubectl -n {namespace} exec -it talker -- sh -c \"tty; stty size\"' /dev/null", cluster.kubeconfig());
    has_all(&run("sh", &["-c", &terminal])?, &["/dev/pts/0"])?;
    let scratch = cluster.scratch(namespace)?;
    let here = scratch.join("here.txt");
    std::fs::write(&here, "carried over\n").map_err(|e| e.to_string())?;
    kubectl(&format!("cp {} talker:/tmp/there.txt", here.display()))?;
    has_all(&kubectl("exec talker -- cat /tmp/there.txt")?, &["carried over"])?;
    kubectl(&format!("cp talker:/tmp/there.txt {}", scratch.join("back.txt").display()))?;
    expect(std::fs::read_to_string(scratch.join("back.txt")).is_ok_and(|t| t == "carried over\n"), "the file did not come back")?;
    will_show(|| kubectl("describe pod talker"), &["Node:", "IP:", "10.244.", "Started", "QoS Class:", "busybox:1.35", "kube-api-access"])?;
    has_all(&kubectl("get pod talker -o wide")?, &["Running", "1/1", "worker-"])
}

fn streams(cluster: &Cluster, namespace: &str) -> Outcome {
    let mut watch = cluster.kubectl_start(&["-n", namespace, "get", "pods", "-o", "wide", "-w"])?;
    cluster.apply(namespace, &nginx("web", 1, "nginx:1.22"))?;
    cluster.kubectl(&format!("-n {namespace} rollout status deployment/web --timeout=60s"))?;
    cluster.apply(namespace, &busybox("talker", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done", "Always"))?;
    cluster.kubectl(&format!("-n {namespace} wait --for=condition=Ready pod/talker --timeout=60s"))?;
    let mut follow = cluster.kubectl_start(&["-n", namespace, "logs", "-f", "talker"])?;
    let mut bytes = [0u8; 64];
    let mut seen = String::new();
    if let Some(out) = follow.stdout.as_mut() {
        while !seen.contains("line 12\n") {
            let count = out.read(&mut bytes).map_err(|e| e.to_string())?;
            expect(count > 0, format!("logs -f ended: {seen}"))?;
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
    let _ = follow.kill();
    let _ = follow.wait();
    let mut forward = cluster.kubectl_start(&["-n", namespace, "port-forward", "deployment/web", "31880:80"])?;
    let page = cluster.wait("the forwarded port", 15, || cluster.get("http://127.0.0.1:31880/"));
    let again = cluster.get("http://127.0.0.1:31880/");
    let _ = forward.kill();
    let _ = forward.wait();
    has_all(&page?, &["Welcome to nginx!"])?;
    has_all(&again?, &["Welcome to nginx!"])?;
    let _ = watch.kill();
    let mut seen = String::new();
    if let Some(out) = watch.stdout.as_mut() {
        let _ = out.read_to_string(&mut seen);
    }
    let _ = watch.wait();
    has_all(&seen, &["web-", "Pending", "ContainerCreating", "Running", "1/1"])
}

fn drains(cluster: &Cluster, namespace: &str) -> Outcome {
    let kubectl = |arguments: &str| cluster.kubectl(&format!("-n {namespace} {arguments}"));
    cluster.apply(namespace, &nginx("web", 4, "nginx:1.22"))?;
    kubectl("create poddisruptionbudget web --selector=app=web --min-available=3")?;
    kubectl("rollout status deployment/web --timeout=60s")?;
    cluster.wait_for("the budget", &format!("get pdb web -n {namespace} -o jsonpath={{.status.disruptionsAllowed}}"), |o| o == "1")?;
    let undo = || {
        let _ = cluster.kubectl("uncordon worker-1 worker-2");
        let _ = cluster.kubectl("taint node worker-2 testing-");
    };
    let steps = || -> Outcome {
        has_all(&kubectl("drain worker-1 --ignore-daemonsets --delete-emptydir-data --force --timeout=90s")?, &["drained"])?;
        has_all(&cluster.kubectl("get node worker-1")?, &["Ready,SchedulingDisabled"])?;
        let placed = kubectl("get pods -l app=web -o wide --field-selector=spec.nodeName=worker-1 --no-headers")?;
        expect(!placed.contains("Running"), &placed)?;
        kubectl("rollout status deployment/web --timeout=60s")?;
        cluster.kubectl("uncordon worker-1")?;
        let placed = kubectl("get pods -l app=web -o wide --no-headers")?;
        expect(!placed.contains("worker-1"), format!("uncordon moved pods back: {placed}"))?;
        cluster.kubectl("taint node worker-2 testing=now:NoExecute")?;
        cluster.wait("worker-2 to be left", 60, || {
            let placed = kubectl("get pods -l app=web -o wide --no-headers")?;
            expect(!placed.contains("worker-2"), placed)
        })?;
        kubectl("rollout status deployment/web --timeout=60s").map(|_| ())
    };
    let outcome = steps();
    undo();
    outcome
}
