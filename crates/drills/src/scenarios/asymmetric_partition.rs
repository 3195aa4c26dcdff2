//! A cable that carries in one direction only.

use super::{SERVER, SINGLE, VICTIM};
use crate::{Result, expectation::Expectation::RoutedAroundWithin, scenario::Scenario, stage::Stage};

pub const SCENARIO: Scenario = Scenario {
    name: "asymmetric-partition",
    shows: "When frames from a node to the master are lost, but not those back, nothing is evicted and nothing leaves a Service; the other way round likewise. The two themselves turn to other endpoints.",
    kubernetes: "NotReady after 40 to 50 s, its endpoints emptied, its pods evicted after 5 minutes, though the node is well.",
    topology: SINGLE,
    sabotage: "the node is cut from everyone",
    expects: &[RoutedAroundWithin(3_000)],
    steps: |stage| Box::pin(steps(stage)),
};

const CUT_S: u64 = 40;

async fn steps(stage: &Stage) -> Result<()> {
    for (from, to) in [(VICTIM, SERVER), (SERVER, VICTIM)] {
        stage.fault(format!("frames from {from} to {to} are lost"));
        stage.cut_one_way(from, to)?;
        if stage.sabotaged() {
            stage.cut(VICTIM, &["worker-1".into(), "worker-3".into()])?;
        }
        stage.hold(CUT_S).await;
        stage.heal("it is mended");
        stage.mend_one_way(from, to)?;
        stage.hold(5).await;
    }
    stage.recovered().await?;
    stage.check_nothing_changed();
    stage.check_same_pods();
    Ok(())
}
