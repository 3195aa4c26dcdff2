//! Proxy and DNS of a node start again while no server is there to ask.

use super::{
    SINGLE, VICTIM,
    without_master::{master_off, master_on},
};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "proxy-and-dns-restarted-without-master",
    shows: "With the only master gone, proxy and DNS of a node are killed and start again: no request and no look-up from there fails.",
    kubernetes: "A restarted kube-proxy programs nothing before its first list, a restarted CoreDNS answers SERVFAIL: all new connections fail until a master returns.",
    topology: SINGLE,
    sabotage: "the node's checkpoints are removed, as if the mechanism were not there, and its rules are flushed",
    expects: &[NoFailedRequest, RecoveredWithin(30_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    master_off(stage).await?;
    for component in ["proxy", "dns"] {
        stage.fault(format!("the {component} of {VICTIM} is killed"));
        stage.kill(VICTIM, component)?;
        if stage.sabotaged() {
            stage.on_node(VICTIM, "rm -rf /var/lib/regent/*/checkpoint /var/lib/regent/checkpoint; nft flush ruleset")?;
        }
        stage.start(VICTIM, component)?;
        stage.step("and started");
        stage.hold(6).await;
    }
    stage.fault("both are stopped together, and started");
    stage.stop(VICTIM, "proxy")?;
    stage.stop(VICTIM, "dns")?;
    stage.start(VICTIM, "dns")?;
    stage.start(VICTIM, "proxy")?;
    stage.hold(6).await;
    master_on(stage).await?;
    stage.check_same_pods();
    Ok(())
}
