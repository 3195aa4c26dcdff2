//! Only the cable between a node and the master is cut.

use super::{SERVER, SINGLE, VICTIM};
use crate::{Result, expectation::Expectation::RoutedAroundWithin, scenario::Scenario, stage::Stage};

pub const SCENARIO: Scenario = Scenario {
    name: "master-link-cut",
    shows: "When only the link between a node and the master is cut, its peers vouch for it: nothing is evicted, nothing leaves a Service; the master itself, which cannot reach it, turns to the other endpoints.",
    kubernetes: "NotReady after 40 to 50 s, its endpoints emptied, its pods evicted after 5 minutes, though the node is well.",
    topology: SINGLE,
    sabotage: "the node is cut from its peers too",
    expects: &[RoutedAroundWithin(3_000)],
    steps: |stage| Box::pin(steps(stage)),
};

/// Longer than the grace period (20 s here) and the tolerations (5 s here) together.
const CUT_S: u64 = 50;

async fn steps(stage: &Stage) -> Result<()> {
    stage.fault(format!("the cable between {VICTIM} and {SERVER} is cut"));
    let peers: Vec<String> = if stage.sabotaged() { vec![SERVER.into(), "worker-1".into(), "worker-3".into()] } else { vec![SERVER.into()] };
    stage.cut(VICTIM, &peers)?;
    stage.hold(CUT_S).await;
    stage.heal("it is mended");
    stage.mend(VICTIM, &peers)?;
    stage.recovered().await?;
    stage.check_nothing_changed();
    stage.check_same_pods();
    Ok(())
}
