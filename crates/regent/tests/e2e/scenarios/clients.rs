//! Unchanged clients of other makers: kubectl of several versions, Helm, Python's and Node's own (`cargo xtask clients` fetches
//! them), and Rust's.

use crate::{
    Outcome, Scenario,
    cluster::{Cluster, expect, has_all, run, will_show},
};
use std::path::PathBuf;

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "kubectl_of_many_versions_drives_the_cluster", run: kubectls, alone: false },
    Scenario { name: "helm_installs_upgrades_rolls_back_and_uninstalls", run: helm, alone: false },
    Scenario { name: "the_rust_client_drives_the_cluster", run: super::kube_client::drives, alone: false },
    Scenario { name: "the_python_client_drives_the_cluster", run: python, alone: false },
    Scenario { name: "the_node_client_drives_the_cluster", run: node, alone: false },
];

/// Where the clients are.
fn fetched(name: &str) -> Result<String, String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/clients").join(name);
    let path = path.canonicalize().map_err(|e| format!("{}: {e}; `cargo xtask clients` fetches it", path.display()))?;
    Ok(path.display().to_string())
}

/// A file of this test.
fn own(name: &str) -> String {
    format!("{}/tests/e2e/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn kubectls(cluster: &Cluster, namespace: &str) -> Outcome {
    for version in ["1.24", "1.30", "1.35"] {
        let program = fetched(&format!("kubectl-{version}"))?;
        let name = format!("web-{}", version.replace('.', "-"));
        let config = format!("--kubeconfig={}", cluster.kubeconfig());
        let kubectl = |arguments: &str| {
            let mut all = vec![config.as_str(), "-n", namespace];
            all.extend(arguments.split_whitespace());
            run(&program, &all)
        };
        has_all(&kubectl("version -o json")?, &[&format!("\"gitVersion\": \"v{version}"), "\"serverVersion\"", "\"v1.36"])?;
        kubectl(&format!("create deployment {name} --image=busybox:1.35 --replicas=2 -- sleep 3600"))?;
        // A client of another age knows the kind by what the server says of it.
        has_all(&kubectl("explain deployment.spec.strategy.rollingUpdate")?, &["maxSurge", "maxUnavailable"])?;
        kubectl(&format!("rollout status deployment/{name} --timeout=60s"))?;
        has_all(&kubectl(&format!("get deployment {name} -o wide"))?, &["2/2", "busybox:1.35"])?;
        kubectl(&format!("scale deployment/{name} --replicas=1"))?;
        kubectl(&format!("annotate deployment/{name} by={version}"))?;
        kubectl(&format!("patch deployment/{name} --type=json -p=[{{\"op\":\"add\",\"path\":\"/metadata/labels/x\",\"value\":\"y\"}}]"))?;
        will_show(|| kubectl(&format!("describe deployment/{name}")), &["x=y", &format!("by: {version}"), "ScalingReplicaSet"])?;
        cluster.wait("one pod", 30, || has_all(&kubectl(&format!("get deployment {name}"))?, &["1/1"]))?;
        expect(kubectl(&format!("exec deployment/{name} -- echo said"))? == "said\n", "exec")?;
        let manifest = cluster.scratch(namespace)?.join(format!("{name}.yaml"));
        let text = kubectl(&format!("get deployment {name} -o yaml"))?.replace("replicas: 1", "replicas: 2");
        std::fs::write(&manifest, text).map_err(|e| e.to_string())?;
        kubectl(&format!("apply --server-side --force-conflicts -f {}", manifest.display()))?;
        has_all(&kubectl(&format!("get deployment {name} -o jsonpath={{.spec.replicas}}"))?, &["2"])?;
        kubectl(&format!("delete deployment/{name} --timeout=60s"))?;
    }
    Ok(())
}

fn helm(cluster: &Cluster, namespace: &str) -> Outcome {
    let program = fetched("helm")?;
    let (config, chart) = (format!("--kubeconfig={}", cluster.kubeconfig()), own("chart"));
    let helm = |arguments: &[&str]| {
        let mut all = vec![config.as_str(), "-n", namespace];
        all.extend(arguments);
        run(&program, &all)
    };
    let color = || cluster.kubectl(&format!("get color,configmap -n {namespace} -o jsonpath={{..spec.value}}/{{..data.color}}"));
    let steps = || -> Outcome {
        has_all(&helm(&["install", "sample", &chart, "--wait", "--timeout=90s"])?, &["STATUS: deployed", "REVISION: 1"])?;
        has_all(&color()?, &["blue/", "blue"])?;
        has_all(&cluster.kubectl(&format!("logs -n {namespace} job/sample-before"))?, &["before blue"])?;
        has_all(&helm(&["upgrade", "sample", &chart, "--set=color=green,replicas=2", "--wait", "--timeout=90s"])?, &["REVISION: 2"])?;
        has_all(&color()?, &["green/"])?;
        has_all(&cluster.kubectl(&format!("get deployment sample -n {namespace}"))?, &["2/2"])?;
        // What the CRD's schema forbids is refused, and nothing of it stays.
        let refused = helm(&["upgrade", "sample", &chart, "--set=color=red", "--timeout=60s"]).err().unwrap_or_default();
        has_all(&refused, &["Unsupported value", "red"])?;
        helm(&["rollback", "sample", "1", "--wait", "--timeout=90s"])?;
        has_all(&color()?, &["blue/"])?;
        has_all(&helm(&["history", "sample"])?, &["Rollback to 1"])?;
        has_all(&helm(&["uninstall", "sample", "--wait", "--timeout=90s"])?, &["uninstalled"])?;
        cluster.wait("everything to go", 60, || {
            let left = cluster.kubectl(&format!("get deployment,service,color -n {namespace} -o name"))?;
            expect(left.is_empty(), left)
        })
    };
    let outcome = steps();
    let _ = cluster.kubectl("delete crd colors.sample.regent.dev --ignore-not-found");
    outcome
}

fn python(cluster: &Cluster, namespace: &str) -> Outcome {
    let path = format!("PYTHONPATH={}", fetched("python")?);
    has_all(&run("env", &[&path, "python3", &own("client.py"), cluster.kubeconfig(), namespace])?, &["ok"])
}

fn node(cluster: &Cluster, namespace: &str) -> Outcome {
    // Node looks for packages beside the program.
    let program = format!("{}/client.mjs", fetched("node")?);
    std::fs::copy(own("client.mjs"), &program).map_err(|e| format!("{program}: {e}"))?;
    has_all(&run("node", &[&program, cluster.kubeconfig(), namespace])?, &["ok"])
}
