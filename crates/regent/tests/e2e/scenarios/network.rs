//! Services and names: NodePort on every node, ClusterIP and DNS from a pod, readiness, affinity.

use super::{busybox, nginx};
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, NODES, expect, has_all},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "services_are_reached_by_node_port_cluster_ip_and_name", run: reached, alone: false },
    Scenario { name: "a_service_without_endpoints_refuses_at_once", run: refused, alone: false },
    Scenario { name: "session_affinity_and_local_policy_are_kept", run: affinity, alone: false },
];

fn reached(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 3, "nginx:1.22"))?;
    cluster.kubectl(&format!("expose -n {namespace} deployment/web --type=NodePort --port=8000 --target-port=80"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let port = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.ports[0].nodePort}}"))?;
    for (node, address) in NODES {
        let page = cluster.wait(&format!("{node} to answer"), 10, || cluster.get(&format!("http://{address}:{port}/")))?;
        has_all(&page, &["Welcome to nginx!"])?;
        let own = cluster.on_node(node, &format!("curl -sS -m 3 http://{address}:{port}/"))?;
        has_all(&own, &["Welcome to nginx!"])?;
    }
    let ip = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.clusterIP}}"))?;
    cluster.apply(namespace, &busybox("client", "sleep 3600", "Always"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/client --timeout=60s"))?;
    let names = [ip, "web".to_string(), format!("web.{namespace}"), format!("web.{namespace}.svc.cluster.local")];
    for name in names {
        let page = cluster.wait(&format!("{name} from a pod"), 10, || {
            cluster.kubectl(&format!("exec -n {namespace} client -- timeout 3 wget -q -O - http://{name}:8000/"))
        })?;
        has_all(&page, &["Welcome to nginx!"])?;
    }
    // From every node to the ClusterIP, and from a pod of the Service to itself.
    let ip = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.clusterIP}}"))?;
    for (node, _) in NODES {
        has_all(&cluster.on_node(node, &format!("curl -sS -m 3 http://{ip}:8000/"))?, &["Welcome to nginx!"])?;
    }
    let pod = cluster.kubectl(&format!("get pods -n {namespace} -l app=web -o jsonpath={{.items[0].metadata.name}}"))?;
    for _ in 0..6 {
        has_all(&cluster.kubectl(&format!("exec -n {namespace} {pod} -- timeout 3 wget -q -O - http://{ip}:8000/"))?, &["Welcome to nginx!"])?;
    }
    let unknown = cluster.kubectl_fails(&format!("exec -n {namespace} client -- nslookup nothing-here.{namespace}.svc.cluster.local"), "")?;
    has_all(&unknown, &["NXDOMAIN"])
}

fn refused(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl(&format!("create service clusterip empty --tcp=80:80 -n {namespace}"))?;
    let ip = cluster.kubectl(&format!("get service empty -n {namespace} -o jsonpath={{.spec.clusterIP}}"))?;
    cluster.wait("the refusal", 10, || {
        let answer = cluster.on_node("worker-1", &format!("curl -sS -m 3 http://{ip}/ 2>&1; true"))?;
        expect(answer.contains("refused") || answer.contains("connect to server"), &answer)
    })
}

fn affinity(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 3, "nginx:1.22"))?;
    cluster.apply(
        namespace,
        "{apiVersion: v1, kind: Service, metadata: {name: sticky}, spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80}]}}",
    )?;
    cluster.apply(
        namespace,
        "{apiVersion: v1, kind: Service, metadata: {name: local}, spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80}]}}",
    )?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let pods = cluster.kubectl(&format!("get pods -n {namespace} -l app=web -o jsonpath={{.items[*].metadata.name}}"))?;
    for pod in pods.split_whitespace() {
        cluster.kubectl(&format!("exec -n {namespace} {pod} -- sh -c hostname>/usr/share/nginx/html/who"))?;
    }
    cluster.apply(namespace, &busybox("client", "sleep 3600", "Always"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/client --timeout=60s"))?;
    let ask = || cluster.kubectl(&format!("exec -n {namespace} client -- timeout 3 wget -q -O - http://sticky/who"));
    let first = cluster.wait("the sticky Service", 10, ask)?;
    for _ in 0..8 {
        let again = ask()?;
        expect(again == first, format!("with session affinity {first} then {again}"))?;
    }
    let port = cluster.kubectl(&format!("get service local -n {namespace} -o jsonpath={{.spec.ports[0].nodePort}}"))?;
    let hosts = cluster.kubectl(&format!("get pods -n {namespace} -l app=web -o jsonpath={{.items[*].spec.nodeName}}"))?;
    for (node, address) in NODES {
        let answer = cluster.get(&format!("http://{address}:{port}/who"));
        expect(answer.is_ok() == hosts.contains(node), format!("local policy on {node} (pods on {hosts}): {answer:?}"))?;
    }
    Ok(())
}
