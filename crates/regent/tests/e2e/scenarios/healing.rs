//! The cluster puts right what is broken: pods, containers, readiness, roll-outs.

use super::{busybox, nginx};
use crate::{
    Outcome, Scenario,
    cluster::{Cluster, NODES, expect, has_all, will_show},
};
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_deleted_pod_is_replaced", run: replaced, alone: false },
    Scenario { name: "a_crashing_container_is_restarted_with_back_off", run: restarted, alone: false },
    Scenario { name: "readiness_takes_a_pod_out_of_its_service_and_back", run: readiness, alone: false },
    Scenario { name: "a_failing_liveness_probe_restarts_the_container", run: liveness, alone: false },
    Scenario { name: "a_rolling_update_loses_no_request", run: rolling, alone: true },
];

fn replaced(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 2, "nginx:1.22"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let victim = cluster.kubectl(&format!("get pods -n {namespace} -o jsonpath={{.items[0].metadata.name}}"))?;
    cluster.kubectl(&format!("delete pod -n {namespace} {victim}"))?;
    cluster.wait("a replacement", 30, || {
        let pods = cluster.kubectl(&format!("get pods -n {namespace} --no-headers"))?;
        expect(!pods.contains(&victim) && pods.matches("1/1").count() == 2, pods)
    })
}

fn restarted(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &busybox("crash", "echo about to fail; sleep 1; exit 3", "Always"))?;
    cluster.wait_for("two restarts", &format!("get pod crash -n {namespace} --no-headers"), |o| {
        o.split_whitespace().nth(3).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n >= 2)
    })?;
    cluster.wait_for("the back-off", &format!("get pod crash -n {namespace} --no-headers"), |o| o.contains("CrashLoopBackOff"))?;
    will_show(
        || cluster.kubectl(&format!("describe pod crash -n {namespace}")),
        &["Exit Code:    3", "Back-off restarting failed container", "BackOff"],
    )?;
    has_all(&cluster.kubectl(&format!("logs -n {namespace} crash --previous"))?, &["about to fail"])?;
    // A container that is killed from outside is restarted at once and counted.
    cluster.apply(namespace, &busybox("steady", "trap exit TERM; sleep 3600 & wait", "Always"))?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/steady --timeout=60s"))?;
    let _ = cluster.kubectl(&format!("exec -n {namespace} steady -- sh -c kill${{IFS}}1"));
    cluster
        .wait_for("the restart", &format!("get pod steady -n {namespace} -o jsonpath={{..restartCount}}/{{..ready}}"), |o| o == "1/true")
        .map(|_| ())
}

fn readiness(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 2, "nginx:1.22"))?;
    cluster.kubectl(&format!("expose -n {namespace} deployment/web --port=80"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let ready = "{range .items[*].endpoints[*]}{.conditions.ready} {end}";
    let slices = || {
        cluster
            .kubectl_with(&["get", "endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=web", "-o", &format!("jsonpath={ready}")], "")
    };
    let count = |n: usize| {
        cluster.wait(&format!("{n} ready endpoints"), 20, || {
            let seen = slices()?;
            expect(seen.matches("true").count() == n, seen)
        })
    };
    count(2)?;
    let pod = cluster.kubectl(&format!("get pods -n {namespace} -o jsonpath={{.items[0].metadata.name}}"))?;
    let page = "/usr/share/nginx/html/index.html";
    cluster.kubectl(&format!("exec -n {namespace} {pod} -- mv {page} {page}.away"))?;
    count(1)?;
    will_show(|| cluster.kubectl(&format!("describe pod -n {namespace} {pod}")), &["Readiness probe failed"])?;
    cluster.kubectl(&format!("exec -n {namespace} {pod} -- mv {page}.away {page}"))?;
    count(2)
}

fn liveness(cluster: &Cluster, namespace: &str) -> Outcome {
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:1.35
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "touch /tmp/well; sleep 3600"]
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 2}
"#;
    cluster.apply(namespace, pod)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Ready pod/sick --timeout=60s"))?;
    cluster.kubectl(&format!("exec -n {namespace} sick -- rm /tmp/well"))?;
    cluster.wait_for("the restart", &format!("get pod sick -n {namespace} -o jsonpath={{..restartCount}}"), |o| o == "1")?;
    cluster
        .wait_for("the events", &format!("describe pod -n {namespace} sick"), |o| {
            o.contains("Liveness probe failed") && o.contains("will be restarted")
        })
        .map(|_| ())
}

fn rolling(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.apply(namespace, &nginx("web", 3, "nginx:1.22"))?;
    cluster.kubectl(&format!("expose -n {namespace} deployment/web --type=NodePort --port=80"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=60s"))?;
    let port = cluster.kubectl(&format!("get service web -n {namespace} -o jsonpath={{.spec.ports[0].nodePort}}"))?;
    let urls: Vec<String> = NODES.iter().map(|(_, address)| format!("http://{address}:{port}/")).collect();
    for url in &urls {
        cluster.wait("the Service", 10, || cluster.get(url))?;
    }
    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let failures = std::thread::scope(|scope| {
        let traffic: Vec<_> = urls
            .iter()
            .map(|url| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    while !done.load(Relaxed) {
                        asked.fetch_add(1, Relaxed);
                        if let Err(why) = cluster.get(url) {
                            failures.push(why);
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    failures
                })
            })
            .collect();
        let rollout = || -> Outcome {
            cluster.kubectl(&format!("set image -n {namespace} deployment/web nginx=nginx:stable"))?;
            cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=90s"))?;
            cluster.kubectl(&format!("rollout undo -n {namespace} deployment/web"))?;
            cluster.kubectl(&format!("rollout status -n {namespace} deployment/web --timeout=90s"))?;
            Ok(())
        };
        let outcome = rollout();
        done.store(true, Relaxed);
        let failures: Vec<String> = traffic.into_iter().filter_map(|t| t.join().ok()).flatten().collect();
        outcome.map(|()| failures)
    })?;
    let asked = asked.load(Relaxed);
    expect(asked > 100, format!("only {asked} requests were sent"))?;
    expect(failures.is_empty(), format!("{} of {asked} requests failed: {:?}", failures.len(), failures.first()))
}
