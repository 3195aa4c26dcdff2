//! What breaks and heals: a node's power, the API server under load.

use super::nginx;
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, NODES, expect, has_all, run, will_show},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_machine_joins_with_a_token", run: joins, alone: true },
    Scenario { name: "killing_the_api_server_loses_nothing_acknowledged", run: killed, alone: true },
    Scenario { name: "a_node_that_loses_power_is_replaced_and_nothing_moves_back", run: power_cut, alone: true },
    Scenario { name: "with_the_master_off_nginx_goes_on_serving", run: without_master, alone: true },
];

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

fn joins(cluster: &Cluster, _namespace: &str) -> Outcome {
    let regent = env!("CARGO_BIN_EXE_regent");
    let token = run(regent, &["token", "--kubeconfig", cluster.kubeconfig(), "create", "--ttl=10m"])?.trim().to_string();
    let parts = ["kubelet", "proxy", "dns"];
    for component in parts {
        cluster.sandbox(&["stop", "worker-3", component])?;
    }
    let home = "/var/lib/regent/joined";
    let command = format!(
        "ip address flush dev lo to 10.96.0.0/16; rm -rf {home}; mkdir -p {home}; \
         REGENT_TOKEN={token} setsid {regent} agent --server=https://172.30.0.11:6443 --node-name=joined --data-dir={home} \
         {} --cni-bin-dir={} >{home}/log 2>&1 & echo $!",
        cluster.cgroup_flag("worker-3")?,
        cluster.directory().join("nodes/worker-3/cni-bin").display()
    );
    let steps = || -> Outcome {
        let pid = cluster.on_node("worker-3", &command)?.trim().to_string();
        let seen = cluster.wait("the new node to be Ready", 60, || {
            let nodes = cluster
                .kubectl("get node joined --no-headers")
                .map_err(|e| format!("{e}\n{}", cluster.on_node("worker-3", &format!("tail -n 5 {home}/log")).unwrap_or_default()))?;
            expect(nodes.contains(" Ready"), nodes)
        });
        let _ = cluster.on_node("worker-3", &format!("kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done"));
        seen?;
        let requests = cluster.kubectl("get csr")?;
        has_all(&requests, &["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving", "Approved,Issued"])?;
        let open = cluster.on_node("worker-3", &format!("find {home} -name '*.key' -perm /077 -o -name '*.kubeconfig' -perm /077"))?;
        expect(open.trim().is_empty(), format!("readable by others: {open}"))?;
        // A token that is not the cluster's gets nowhere.
        let foreign = format!("{}::{}", "0".repeat(64), token.rsplit("::").next().unwrap_or_default());
        let refused = cluster.on_node("worker-3", &format!("REGENT_TOKEN={foreign} timeout 5 {regent} agent --server=https://172.30.0.11:6443 --node-name=forged --data-dir={home}/forged 2>&1; true"))?;
        has_all(&refused, &["the server is not of the token's cluster"])
    };
    let outcome = steps();
    let _ = cluster.kubectl("delete node joined --ignore-not-found");
    for component in parts {
        cluster.sandbox(&["start", "worker-3", component])?;
    }
    outcome?;
    cluster.wait("worker-3 to be Ready again", 60, || {
        let node = cluster.kubectl("get node worker-3 --no-headers")?;
        expect(node.contains(" Ready"), node)
    })
}

fn killed(cluster: &Cluster, namespace: &str) -> Outcome {
    let mut acknowledged = Vec::new();
    for i in 0..40 {
        let manifest = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{i}}}, data: {{n: \"{i}\"}}}}");
        if i % 10 == 5 {
            cluster.sandbox(&["stop", "server-1", "apiserver", "--kill"])?;
            expect(cluster.apply(namespace, &manifest).is_err(), "a write was acknowledged without an API server")?;
            cluster.sandbox(&["start", "server-1", "apiserver"])?;
            cluster.wait("the API server", 20, || cluster.kubectl("get --raw /readyz"))?;
        }
        if cluster.apply(namespace, &manifest).is_ok() {
            acknowledged.push(i);
        }
    }
    expect(acknowledged.len() >= 36, format!("only {} writes were acknowledged", acknowledged.len()))?;
    cluster.sandbox(&["stop", "server-1", "apiserver", "--kill"])?;
    cluster.sandbox(&["start", "server-1", "apiserver"])?;
    cluster.wait("the API server", 20, || cluster.kubectl("get --raw /readyz"))?;
    let there = cluster.kubectl(&format!("get configmaps -n {namespace} --no-headers -o custom-columns=N:.metadata.name"))?;
    for i in acknowledged {
        expect(there.lines().any(|l| l.trim() == format!("c{i}")), format!("c{i} was acknowledged and is gone"))?;
    }
    cluster.wait("the nodes to be Ready", 40, || {
        let nodes = cluster.kubectl("get nodes --no-headers")?;
        expect(nodes.matches(" Ready").count() == 4, nodes)
    })
}

fn power_cut(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 3, "nginx:1.22"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let pods = || cluster.kubectl(&format!("get pods -n {namespace} -o wide --no-headers"));
    let before = pods()?;
    expect(before.contains("worker-2"), format!("the spread left worker-2 out: {before}"))?;
    cluster.sandbox(&["stop", "worker-2"])?;
    let steps = || -> Outcome {
        cluster.wait("NotReady", 60, || {
            let node = cluster.kubectl("get node worker-2 --no-headers")?;
            expect(node.contains("NotReady"), node)
        })?;
        // The condition comes first, the taints follow from it.
        let described = ["NodeStatusUnknown", "Kubelet stopped posting node status.", "node.kubernetes.io/unreachable:NoExecute"];
        will_show(|| cluster.kubectl("describe node worker-2"), &described)?;
        cluster.wait("three ready pods elsewhere", 60, || {
            let seen = pods()?;
            let well = seen.lines().filter(|l| l.contains("1/1") && l.contains("Running") && !l.contains("worker-2")).count();
            expect(well == 3, seen)
        })?;
        // Nobody can say that it has stopped, so it stays, until a person says that the node is out of service.
        let seen = pods()?;
        expect(seen.lines().any(|l| l.contains("Terminating") && l.contains("worker-2")), seen)?;
        cluster.kubectl(&format!("taint node worker-2 {OUT_OF_SERVICE}=nodeshutdown:NoExecute"))?;
        cluster.wait("the dead node's pod to be forgotten", 60, || {
            let seen = pods()?;
            expect(seen.lines().count() == 3 && !seen.contains("worker-2"), seen)
        })
    };
    let outcome = steps();
    let _ = cluster.kubectl(&format!("taint node worker-2 {OUT_OF_SERVICE}-"));
    cluster.sandbox(&["start", "worker-2"])?;
    outcome?;
    cluster.wait("worker-2 to be Ready again", 60, || {
        let node = cluster.kubectl("get node worker-2 --no-headers")?;
        expect(node.contains(" Ready"), node)
    })?;
    let seen = pods()?;
    expect(seen.lines().count() == 3 && !seen.contains("worker-2"), seen)
}

fn without_master(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 3, "nginx:1.22"))?;
    cluster.kubectl(&format!("expose -n {namespace} deployment/web --type=NodePort --port=80"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let port = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.ports[0].nodePort}}"))?;
    let workers = &NODES[1..];
    for (_, address) in workers {
        cluster.wait("the Service", 10, || cluster.get(&format!("http://{address}:{port}/")))?;
    }
    cluster.sandbox(&["stop", "server-1"])?;
    let mut failures = Vec::new();
    for _ in 0..30 {
        for (_, address) in workers {
            failures.extend(cluster.get(&format!("http://{address}:{port}/")).err());
        }
    }
    cluster.sandbox(&["start", "server-1"])?;
    cluster.wait("the API server and its nodes", 60, || {
        let nodes = cluster.kubectl("get nodes --no-headers")?;
        expect(nodes.matches(" Ready").count() == 4, nodes)
    })?;
    expect(failures.is_empty(), format!("{} of 90 requests failed: {:?}", failures.len(), failures.first()))?;
    let restarts = cluster.kubectl(&format!("get pods -n {namespace} -l app=web -o jsonpath={{..restartCount}}"))?;
    expect(restarts == "0 0 0", format!("the return of the master restarted containers: {restarts}"))
}
