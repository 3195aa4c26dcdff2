//! A handful of quick drills, and one whose check is broken on purpose: a drill that cannot fail proves nothing.
//!
//! They bring their own sandbox up, so they run when the scenarios' is down. `make drills` runs all of them.

use crate::{Outcome, cluster::expect};
use std::{path::Path, process::Command};

/// Seconds each, not minutes.
const QUICK: [&str; 4] = ["api-server-stopped", "proxy-restarted", "dns-restarted", "drain-and-uncordon"];
/// The cheapest to break.
const BROKEN: &str = "dns-restarted";

/// Both runs, by name.
pub const ALL: [(&str, fn() -> Outcome); 2] = [("quick_drills_pass", quick), ("a_drill_fails_when_what_it_checks_is_broken", broken)];

fn quick() -> Outcome {
    let (passed, output) = drill(&QUICK, &["--keep"])?;
    expect(passed, &output)
}

fn broken() -> Outcome {
    let (passed, output) = drill(&[BROKEN], &["--sabotage"])?;
    expect(!passed && output.contains(&format!("FAILED {BROKEN}")), format!("the sabotaged drill did not fail:\n{output}"))
}

/// Whether the drills passed, and what was said.
fn drill(names: &[&str], flags: &[&str]) -> Result<(bool, String), String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let output = Command::new(env!("CARGO_BIN_EXE_regent"))
        .args(["drill", "run"])
        .args(names)
        .args(flags)
        .args(
            [("--dir", "e2e-drills"), ("--images", "images"), ("--report", "e2e-drills.html")]
                .into_iter()
                .flat_map(|(flag, path)| [flag.to_owned(), target.join(path).display().to_string()]),
        )
        .output()
        .map_err(|error| format!("regent drill: {error}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), text))
}
