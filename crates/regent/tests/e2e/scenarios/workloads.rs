//! The other workloads: Job, CronJob, DaemonSet, StatefulSet.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, will_show},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a_job_runs_to_completion", run: job, alone: false },
    Scenario { name: "a_failing_job_gives_up", run: failing_job, alone: false },
    Scenario { name: "a_cron_job_starts_jobs", run: cron_job, alone: false },
    Scenario { name: "a_daemon_set_is_on_every_node", run: daemon_set, alone: false },
    Scenario { name: "a_stateful_set_comes_up_in_order_with_stable_names", run: stateful_set, alone: false },
];

fn job(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sh, -c, "echo index $JOB_COMPLETION_INDEX"]}]
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Complete job/sum --timeout=60s"))?;
    has_all(&cluster.kubectl(&format!("get job sum -n {namespace}"))?, &["3/3", "Complete"])?;
    let logs = cluster.kubectl(&format!("logs -n {namespace} -l job-name=sum --tail=-1"))?;
    has_all(&logs, &["index 0", "index 1", "index 2"])?;
    will_show(|| cluster.kubectl(&format!("describe job sum -n {namespace}")), &["SuccessfulCreate", "Completed", "3 Succeeded"])?;
    cluster.kubectl(&format!("delete job sum -n {namespace}"))?;
    cluster.wait_for("its pods to go", &format!("get pods -n {namespace}"), |o| o.trim().is_empty()).map(|_| ())
}

fn failing_job(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: ["false"]}]
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("wait -n {namespace} --for=condition=Failed job/hopeless --timeout=60s"))?;
    has_all(&cluster.kubectl(&format!("get job hopeless -n {namespace} -o yaml"))?, &["BackoffLimitExceeded", "failed: 2"])
}

fn cron_job(cluster: &Cluster, namespace: &str) -> Outcome {
    cluster.kubectl_with(&["create", "cronjob", "tick", "-n", namespace, "--image=busybox:1.35", "--schedule=* * * * *", "--", "date"], "")?;
    has_all(&cluster.kubectl(&format!("get cronjob tick -n {namespace}"))?, &["* * * * *", "False"])?;
    cluster.kubectl(&format!("create job by-hand --from=cronjob/tick -n {namespace}"))?;
    cluster.wait("a Job on the minute", 90, || {
        let jobs = cluster.kubectl(&format!("get jobs -n {namespace} --no-headers"))?;
        expect(jobs.lines().any(|l| l.starts_with("tick-") && l.contains("Complete")), jobs)
    })
}

fn daemon_set(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers: [{name: main, image: "busybox:1.35", imagePullPolicy: IfNotPresent, command: [sleep, "3600"]}]
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("rollout status -n {namespace} daemonset/everywhere --timeout=60s"))?;
    let pods = cluster.kubectl(&format!("get pods -n {namespace} -o wide --no-headers"))?;
    has_all(&pods, &["server-1", "worker-1", "worker-2", "worker-3"])?;
    expect(pods.lines().count() == 4, &pods)?;
    cluster.kubectl(&format!("set env -n {namespace} daemonset/everywhere COLOR=blue"))?;
    cluster.kubectl(&format!("rollout status -n {namespace} daemonset/everywhere --timeout=90s"))?;
    has_all(&cluster.kubectl(&format!("rollout history -n {namespace} daemonset/everywhere"))?, &["1", "2"])
}

fn stateful_set(cluster: &Cluster, namespace: &str) -> Outcome {
    let manifest = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80, name: http}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busybox:1.35
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "hostname > /tmp/index.html; exec httpd -f -h /tmp"]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
"#;
    cluster.apply(namespace, manifest)?;
    cluster.kubectl(&format!("rollout status -n {namespace} statefulset/db --timeout=90s"))?;
    let started =
        cluster.kubectl_with(&["get", "pods", "-n", namespace, "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.startTime} {end}"], "")?;
    let times: Vec<&str> = started.split_whitespace().filter_map(|s| s.split_once('=').map(|(_, t)| t)).collect();
    expect(times.len() == 3 && times.is_sorted(), &started)?;
    for i in 0..3 {
        let host = format!("db-{i}.db.{namespace}.svc.cluster.local");
        let answer = cluster.wait(&host, 10, || cluster.kubectl(&format!("exec -n {namespace} db-0 -- timeout 3 wget -q -O - http://{host}/")))?;
        expect(answer.trim() == format!("db-{i}"), answer)?;
    }
    let uid = || cluster.kubectl(&format!("get pod db-1 -n {namespace} -o jsonpath={{.metadata.uid}}"));
    let before = uid()?;
    cluster.kubectl(&format!("delete pod db-1 -n {namespace}"))?;
    cluster.wait("db-1 to come back under its name", 40, || {
        let now = uid()?;
        let ready = cluster.kubectl(&format!("get pod db-1 -n {namespace} --no-headers"))?;
        expect(now != before && ready.contains("1/1"), ready)
    })?;
    cluster.kubectl(&format!("scale -n {namespace} statefulset/db --replicas=1"))?;
    cluster
        .wait_for("the highest to go first", &format!("get pods -n {namespace} -l app=db --no-headers"), |o| {
            o.lines().count() == 1 && o.starts_with("db-0")
        })
        .map(|_| ())
}
