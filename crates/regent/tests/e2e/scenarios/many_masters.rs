//! Several masters: three servers over etcd behind HAProxy. Any of them answers, one may die, a majority may die, and a
//! further one joins.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, run},
};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "masters_answer_alike", run: masters_answer_alike, alone: true },
    Scenario { name: "a_clean_stop_hands_over", run: a_clean_stop_hands_over, alone: true },
    Scenario { name: "a_master_is_lost", run: a_master_is_lost, alone: true },
    Scenario { name: "quorum_is_lost", run: quorum_is_lost, alone: true },
    Scenario { name: "a_further_server_joins", run: a_further_server_joins, alone: true },
];

/// The servers' own addresses, beside the balancer that the kubeconfig names.
const SERVERS: [&str; 3] = ["https://172.30.0.11:6443", "https://172.30.0.12:6443", "https://172.30.0.13:6443"];

fn servers_listed(c: &Cluster) -> Result<String, String> {
    c.kubectl("get endpointslice kubernetes -n default -o jsonpath={.endpoints[*].addresses[0]}")
}

fn all_listed(c: &Cluster) -> Result<(), String> {
    let listed = servers_listed(c)?;
    expect(listed == "172.30.0.11 172.30.0.12 172.30.0.13", listed)
}

/// Who holds a Lease, by the node's name.
fn leader(c: &Cluster, lease: &str) -> Result<String, String> {
    let holder = c.kubectl(&format!("get lease {lease} -n kube-system -o jsonpath={{.spec.holderIdentity}}"))?;
    let node = holder.split('_').next().unwrap_or_default();
    if node.is_empty() { Err(format!("nobody holds {lease}")) } else { Ok(node.to_string()) }
}

fn masters_answer_alike(c: &Cluster, ns: &str) -> Outcome {
    c.wait("all servers in the Service kubernetes", 20, || all_listed(c))?;
    // What one server has acknowledged, the others show.
    for (i, writer) in SERVERS.iter().enumerate() {
        c.kubectl(&format!("--server {writer} create configmap c{i} -n {ns}"))?;
        for reader in SERVERS {
            c.kubectl(&format!("--server {reader} get configmap c{i} -n {ns}"))?;
        }
    }
    // Three servers give out addresses and ports at the same time.
    std::thread::scope(|scope| -> Outcome {
        let writers: Vec<_> = (SERVERS.iter().enumerate())
            .map(|(i, server)| {
                scope.spawn(move || {
                    (0..10).try_for_each(|n| c.kubectl(&format!("--server {server} create service nodeport s{i}-{n} --tcp 80 -n {ns}")).map(drop))
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| Err("a writer panicked".into())))
    })?;
    for field in ["{.spec.clusterIP}", "{.spec.ports[0].nodePort}"] {
        let output = c.kubectl_with(&["get", "services", "-n", ns, "-o", &format!("jsonpath={{range .items[*]}}{field}{{\"\\n\"}}{{end}}")], "")?;
        let mut seen: Vec<&str> = output.lines().collect();
        seen.sort_unstable();
        seen.dedup();
        expect(seen.len() == 30, format!("{field} of 30 Services: {output}"))?;
    }
    Ok(())
}

fn a_clean_stop_hands_over(c: &Cluster, _ns: &str) -> Outcome {
    for lease in ["kube-scheduler", "kube-controller-manager"] {
        let component = lease.trim_start_matches("kube-");
        let before = c.wait("a leader", 20, || leader(c, lease))?;
        let stopped = Instant::now();
        c.sandbox(&["stop", &before, component])?;
        let after = c.wait("another leader", 20, || leader(c, lease).and_then(|now| if now == before { Err(now) } else { Ok(now) }))?;
        let took = stopped.elapsed();
        c.sandbox(&["start", &before, component])?;
        expect(took < Duration::from_secs(4), format!("{lease} went from {before} to {after} in {took:?}"))?;
    }
    Ok(())
}

fn a_master_is_lost(c: &Cluster, ns: &str) -> Outcome {
    let lost = leader(c, "kube-controller-manager")?;
    let number = lost.trim_start_matches("server-");
    c.sandbox(&["stop", &lost])?;
    let began = Instant::now();
    c.wait("a write", 10, || c.kubectl(&format!("create configmap after -n {ns} --request-timeout=3s")))?;
    expect(began.elapsed() < Duration::from_secs(8), format!("the first write succeeded after {:?}", began.elapsed()))?;
    c.wait("another leader", 25, || {
        let now = leader(c, "kube-controller-manager")?;
        expect(now != lost, now)
    })?;
    c.kubectl(&format!("create deployment after --image nginx -n {ns}"))?;
    c.wait_for("the new leader at work", &format!("get pods -n {ns} --no-headers"), |text| text.contains("after-"))?;
    c.wait("the lost one out of the endpoints", 20, || {
        let listed = servers_listed(c)?;
        expect(!listed.contains(&format!("172.30.0.1{number}")) && listed.split(' ').count() == 2, listed)
    })?;
    c.sandbox(&["start", &lost])?;
    c.wait("all servers again", 30, || all_listed(c))
}

fn quorum_is_lost(c: &Cluster, ns: &str) -> Outcome {
    c.kubectl(&format!("create configmap before -n {ns}"))?;
    let running = processes(c)?;
    for server in ["server-2", "server-3"] {
        c.sandbox(&["stop", server, "etcd", "--kill"])?;
    }
    for server in SERVERS {
        c.wait("a server that says that it is not ready", 15, || {
            let ready = run("curl", &["-sk", "--max-time", "3", &format!("{server}/readyz")])?;
            expect(ready.contains("[-]etcd"), ready)
        })?;
        has_all(&run("curl", &["-sk", "--max-time", "3", &format!("{server}/livez")])?, &["ok"])?;
        c.kubectl(&format!("--server {server} get configmap before -n {ns}"))?;
        let asked = Instant::now();
        let refused = c.kubectl_fails(&format!("--server {server} create configmap while -n {ns}"), "")?;
        has_all(&refused, &["the store is unavailable"])?;
        expect(asked.elapsed() < Duration::from_secs(5), format!("refused after {:?}", asked.elapsed()))?;
    }
    // Through the balancer too.
    c.kubectl(&format!("get configmap before -n {ns}"))?;
    for server in ["server-2", "server-3"] {
        c.sandbox(&["start", server, "etcd"])?;
    }
    c.wait("a write", 20, || c.kubectl(&format!("create configmap after -n {ns} --request-timeout=3s")))?;
    c.kubectl(&format!("create deployment after --image nginx -n {ns}"))?;
    c.wait_for("the controllers at work", &format!("get pods -n {ns} --no-headers"), |text| text.contains("after-"))?;
    // etcd was started again, nothing else was.
    let now = processes(c)?;
    expect(now == running, format!("some were started again: {running:?} became {now:?}"))
}

/// The processes of the control plane beside etcd, with their PIDs, as `status` shows them: `apiserver (12)`.
fn processes(c: &Cluster) -> Result<Vec<String>, String> {
    let status = c.sandbox(&["status"])?;
    let words: Vec<&str> = status.lines().filter(|line| line.starts_with("server-")).flat_map(str::split_whitespace).collect();
    let pairs = words.windows(2).filter(|pair| ["apiserver", "scheduler", "controller-manager"].contains(&pair[0]));
    Ok(pairs.map(|pair| format!("{} {}", pair[0], pair[1].trim_matches(['(', ')', ',']))).collect())
}

fn a_further_server_joins(c: &Cluster, ns: &str) -> Outcome {
    // The machine that joins is a worker whose components are down: its ports are free.
    for component in ["kubelet", "proxy", "dns"] {
        c.sandbox(&["stop", "worker-2", component])?;
    }
    let regent = env!("CARGO_BIN_EXE_regent");
    let token = run(regent, &["token", "create", "--server", "--ttl", "10m", "--kubeconfig", c.kubeconfig()])?;
    let node_token = run(regent, &["token", "create", "--ttl", "10m", "--kubeconfig", c.kubeconfig()])?;
    let start = |token: &str, log: &str| {
        let flags = "--data-dir /var/lib/regent/joined --disable agent --advertise-address 172.30.0.22 --node-name worker-2";
        c.on_node(
            "worker-2",
            &format!(
                "nohup {regent} server --server https://172.30.0.3:6443 --token {} {flags} >/var/lib/regent/{log} 2>&1 & echo $! >/run/joined.pid",
                token.trim()
            ),
        )
    };
    start(&node_token, "refused.log")?;
    c.wait("a node's token to be refused", 20, || has_all(&c.on_node("worker-2", "cat /var/lib/regent/refused.log")?, &["it must be a server's"]))?;
    start(&token, "joined.log")?;
    let members = || c.on_node("worker-2", &format!("{regent} etcd members --data-dir /var/lib/regent/joined"));
    c.wait("the new server to be ready", 60, || {
        let ready = run("curl", &["-sk", "--max-time", "3", "https://172.30.0.22:6443/readyz"])?;
        expect(ready == "ok", format!("{ready}; {}", c.on_node("worker-2", "tail -n 3 /var/lib/regent/joined.log").unwrap_or_default()))
    })?;
    let listed = members()?;
    expect(listed.lines().count() == 5 && !listed.contains("learner"), &listed)?;
    c.kubectl(&format!("--server https://172.30.0.22:6443 create configmap joined -n {ns}"))?;
    c.kubectl(&format!("--server {} get configmap joined -n {ns}", SERVERS[0]))?;
    c.wait("the new server in the Service kubernetes", 20, || has_all(&servers_listed(c)?, &["172.30.0.22"]))?;
    // It goes cleanly: out of the endpoints at once. Then it is removed for good.
    c.on_node("worker-2", "kill $(cat /run/joined.pid)")?;
    c.wait("the new server to be gone from the Service kubernetes", 8, || {
        let listed = servers_listed(c)?;
        expect(!listed.contains("172.30.0.22"), listed)
    })?;
    c.wait("its member to be removed", 20, || c.on_node("worker-2", &format!("{regent} etcd remove worker-2 --data-dir /var/lib/regent/joined")))?;
    expect(members()?.lines().count() == 4, members()?)?;
    for component in ["kubelet", "proxy", "dns"] {
        c.sandbox(&["start", "worker-2", component])?;
    }
    Ok(())
}
