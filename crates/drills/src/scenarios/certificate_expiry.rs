//! Certificates end while everything runs: each is renewed before, and nobody notices.

use super::{SERVER, SHORT_LIVED};
use crate::{
    Result,
    expectation::Expectation::{NoFailedApiCall, NoFailedRequest},
    scenario::Scenario,
    stage::Stage,
    workload::{APP, NAMESPACE},
};

pub const SCENARIO: Scenario = Scenario {
    name: "certificate-expiry",
    shows: "The certificates of all nodes and of the server end while they run: each is renewed before, and no call and no request fails.",
    kubernetes: "Kubelets renew theirs; those of the control plane end after a year unless somebody runs `kubeadm certs renew`.",
    topology: SHORT_LIVED,
    sabotage: "the controllers, who sign, are stopped",
    expects: &[NoFailedRequest, NoFailedApiCall],
    steps: |stage| Box::pin(steps(stage)),
};

/// What the server renews by itself.
const OF_SERVER: [&str; 4] = ["apiserver", "apiserver-kubelet-client", "scheduler.kubeconfig", "controller-manager.kubeconfig"];
/// How long the certificates live at first, in seconds; those that follow live as long as the topology says.
const LIFE_S: u64 = 75;
/// As they live in the sandbox.
const USUAL: &str = "8760h";
/// What each node has from the certificates API.
const OF_NODES: [&str; 2] = ["kubelet", "kubelet.kubeconfig"];

async fn steps(stage: &Stage) -> Result<()> {
    let mut directories = vec![stage.disk(SERVER)?.join("pki")];
    for worker in stage.workers() {
        directories.push(stage.disk(&worker)?.join("pki"));
    }
    let all = directories.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(",");
    let rotate = |validity: &str| {
        let (validity, directories) = (format!("--certificate-validity-period={validity}"), format!("--cert-dir={all}"));
        let names: Vec<&str> = OF_NODES.into_iter().chain(OF_SERVER).collect();
        let arguments: Vec<&str> = ["certs", "rotate"].into_iter().chain(names).chain([validity.as_str(), directories.as_str()]).collect();
        stage.regent(&arguments)
    };
    stage.fault(format!("every certificate lives for {LIFE_S} s from now on"));
    rotate(&format!("{LIFE_S}s"))?;
    if stage.sabotaged() {
        stage.stop(SERVER, "controller-manager")?;
    }
    // Twice their life: whoever does not renew is locked out by then.
    stage.hold(LIFE_S * 2).await;
    let ready = stage.view().nodes.values().filter(|node| node.ready == "True").count();
    stage.check("every node is Ready after the certificates' end", ready == stage.before().nodes.len(), format!("{ready} are"));
    let pod = stage.before().ready(APP).next().map(|pod| pod.name.clone()).unwrap_or_default();
    let said = stage.kubectl(&format!("logs -n {NAMESPACE} {pod} --tail=1"));
    stage.check("kubectl logs goes through to a node", said.is_ok(), said.map_or_else(|error| error.to_string(), |_| "so".into()));
    stage.heal("they live for a year again");
    rotate(USUAL)?;
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}
