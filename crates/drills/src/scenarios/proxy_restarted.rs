//! The routing of one node's Services is stopped and started: what the kernel was told stands.

use super::{SINGLE, VICTIM};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "proxy-restarted",
    shows: "While the proxy of a node is stopped, and when it starts again, no request from that node fails and no connection breaks.",
    kubernetes: "The rules stay while kube-proxy is down; restarted with an API server, it goes on.",
    topology: SINGLE,
    sabotage: "the node's rules are flushed while its proxy is down",
    expects: &[NoFailedRequest, RecoveredWithin(10_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    for end in ["stopped", "killed"] {
        stage.fault(format!("the proxy of {VICTIM} is {end}"));
        if end == "stopped" {
            stage.stop(VICTIM, "proxy")?;
        } else {
            stage.kill(VICTIM, "proxy")?;
        }
        if stage.sabotaged() {
            stage.on_node(VICTIM, "nft flush ruleset")?;
        }
        stage.hold(4).await;
        stage.heal("it is started");
        stage.start(VICTIM, "proxy")?;
        stage.hold(3).await;
    }
    stage.recovered().await?;
    stage.check_same_pods();
    Ok(())
}
