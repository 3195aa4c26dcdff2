//! Who may do what: no certificate, a foreign one, and beyond one's rights.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, run},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "strangers_are_refused", run: strangers, alone: false },
    Scenario { name: "rights_end_where_rbac_says", run: rights, alone: false },
    Scenario { name: "the_node_authorizer_keeps_nodes_apart", run: nodes, alone: false },
    Scenario { name: "nothing_listens_wider_than_it_must_and_keys_are_private", run: exposure, alone: false },
];

const API: &str = "https://172.30.0.11:6443";

fn strangers(cluster: &Cluster, namespace: &str) -> Outcome {
    let scratch = cluster.scratch(namespace)?;
    let path = scratch.display().to_string();
    let ask = |arguments: &[&str]| {
        let url = format!("{API}/api/v1/namespaces/{namespace}/pods");
        let mut all = vec!["-sk", "-m", "5", "-w", " %{http_code}", &url];
        all.extend(arguments);
        run("curl", &all)
    };
    has_all(
        &ask(&[])?,
        &[" 403", "pods is forbidden: User \\\"system:anonymous\\\" cannot list resource \\\"pods\\\" in API group \\\"\\\" in the namespace"],
    )?;
    has_all(&ask(&["-H", "Authorization: Bearer made-up"])?, &[" 401", "Unauthorized"])?;
    let make = format!(
        "cd {path} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k.pem -out c.pem -days 1 -subj '/O=system:masters/CN=mallory' 2>&1"
    );
    run("sh", &["-c", &make])?;
    let foreign = ask(&["--cert", &format!("{path}/c.pem"), "--key", &format!("{path}/k.pem")]);
    // Either the handshake or the request is refused; it is never taken for a member of system:masters.
    let refused = foreign.as_ref().map_or(true, |answer| answer.ends_with(" 401"));
    expect(refused, format!("{foreign:?}"))?;
    has_all(&run("curl", &["-sk", "-m", "5", &format!("{API}/version")])?, &["v1.36"])?;
    has_all(&run("curl", &["-sk", "-m", "5", "-w", " %{http_code}", "https://172.30.0.21:10250/pods"])?, &["401"])
}

fn rights(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl(&format!("create serviceaccount reader -n {namespace}"))?;
    cluster.kubectl(&format!("create rolebinding reader -n {namespace} --clusterrole=view --serviceaccount={namespace}:reader"))?;
    let who = format!("--as=system:serviceaccount:{namespace}:reader -n {namespace}");
    cluster.wait_for("the right to read", &format!("get pods {who}"), |_| true)?;
    let error = cluster.kubectl_fails(&format!("create configmap c {who}"), "")?;
    let words = format!(
        "configmaps is forbidden: User \"system:serviceaccount:{namespace}:reader\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"{namespace}\""
    );
    has_all(&error, &[&words])?;
    let error = cluster.kubectl_fails(&format!("get secrets {who}"), "")?;
    has_all(&error, &["cannot list resource \"secrets\""])?;
    let error = cluster.kubectl_fails(&format!("get nodes {who}"), "")?;
    has_all(&error, &["at the cluster scope"])
}

fn nodes(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl(&format!("create secret generic hidden -n {namespace} --from-literal=a=b"))?;
    let who = "--as=system:node:worker-1 --as-group=system:nodes";
    let error = cluster.kubectl_fails(&format!("get secret hidden -n {namespace} {who}"), "")?;
    has_all(&error, &["(Forbidden)", "no relationship found between node 'worker-1' and this object"])?;
    let error = cluster.kubectl_fails(&format!("label node worker-2 stolen=yes {who}"), "")?;
    has_all(&error, &["(Forbidden)"])
}

fn exposure(cluster: &Cluster, _namespace: &str) -> Outcome {
    let loose = run("sh", &["-c", &format!("find {} -name '*.key' -perm /077 -o -name '*kubeconfig' -perm /077", cluster.directory().display())])?;
    expect(loose.trim().is_empty(), format!("readable by others: {loose}"))?;
    // Beside the API, the node API and what is bound to the cluster's own addresses, everything listens on loopback only.
    let listening = cluster.on_node("worker-1", "ss -Htln 2>/dev/null || netstat -tln")?;
    let wide: Vec<&str> = listening
        .lines()
        .filter_map(|l| l.split_whitespace().find(|w| w.contains(':')))
        .filter(|address| !address.starts_with("127.") && !address.starts_with("[::1]") && !address.starts_with("10.96.0.10:"))
        .filter(|address| !address.ends_with(":10250"))
        .collect();
    expect(wide.is_empty(), format!("{wide:?}"))
}
