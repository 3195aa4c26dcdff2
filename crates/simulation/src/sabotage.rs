//! Mechanisms that can be switched off, so that it is seen that the checkers find it: `REGENT_SABOTAGE=suspicion`.

/// What is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nodes are no members: nobody hears of deaths. Found by: a dead endpoint is kept.
    Membership,
    /// A suspicion is taken for a death, whatever the majority sees. Found by: a live endpoint is dropped.
    Refutation,
    /// Whoever is lost counts as not ready by its own word, so nothing is kept for want of better. Found by: an emptied Service.
    LastEndpoint,
    /// A leader that has lost its lease goes on working. Found by: two leaders.
    Lease,
    /// The disk says that it has what it has not, and comes back as it was ten seconds ago. Found by: a resurrection.
    Disk,
    /// Half of a transaction reaches the kernel. Found by: a refused transaction, or routes that do not converge.
    Kernel,
    /// The node says nothing of its pods' readiness to its peers. Found by: an endpoint that is not ready is kept.
    Words,
    /// What was cut is not mended at the end. Found by: no convergence.
    Heal,
}

impl Sabotage {
    /// Every one of them, and a part of what the checker that finds it says.
    pub const ALL: &[(Sabotage, &str, &[&str])] = &[
        (Sabotage::Membership, "membership", &["is kept"]),
        (Sabotage::Refutation, "refutation", &["is dropped", "is alive and well"]),
        (Sabotage::LastEndpoint, "last-endpoint", &["is emptied"]),
        (Sabotage::Lease, "lease", &["leads while"]),
        (Sabotage::Disk, "disk", &["comes back", "is started again"]),
        (Sabotage::Kernel, "kernel", &["refused", "instead of", "is dropped", "is emptied", "is kept"]),
        (Sabotage::Words, "words", &["is kept"]),
        (Sabotage::Heal, "heal", &["at the end"]),
    ];

    /// The one that is asked for.
    pub fn asked() -> Option<Sabotage> {
        let name = std::env::var("REGENT_SABOTAGE").ok()?;
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(sabotage, ..)| *sabotage)
    }
}
