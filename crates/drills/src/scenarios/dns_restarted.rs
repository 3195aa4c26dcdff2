//! The cluster DNS of one node is restarted, as an upgrade does it.

use super::{SINGLE, VICTIM};
use crate::{
    Result,
    expectation::Expectation::{NoFailedRequest, RecoveredWithin},
    request::Way,
    scenario::Scenario,
    stage::Stage,
};

pub const SCENARIO: Scenario = Scenario {
    name: "dns-restarted",
    shows: "When the DNS of a node is restarted, look-ups wait for it and are answered: none is refused.",
    kubernetes: "A restarted CoreDNS answers SERVFAIL until it has read the API; other replicas answer meanwhile.",
    topology: SINGLE,
    sabotage: "the DNS is stopped for four seconds before it starts again",
    expects: &[NoFailedRequest, RecoveredWithin(10_000)],
    steps: |stage| Box::pin(steps(stage)),
};

async fn steps(stage: &Stage) -> Result<()> {
    for end in ["restarted", "killed and restarted"] {
        stage.fault(format!("the DNS of {VICTIM} is {end}"));
        if end == "restarted" {
            stage.stop(VICTIM, "dns")?;
        } else {
            stage.kill(VICTIM, "dns")?;
        }
        if stage.sabotaged() {
            stage.hold(4).await;
        }
        stage.start(VICTIM, "dns")?;
        stage.heal("it is started");
        stage.hold(3).await;
    }
    stage.recovered().await?;
    stage.check_same_pods();
    let repeated = |log: &crate::timeline::Log| log.requests.iter().filter(|r| r.way == Way::Name && !r.kept && r.ok() && r.attempts > 1).count();
    stage.figure("look-ups repeated", stage.recorder.with_log(repeated).to_string());
    Ok(())
}
