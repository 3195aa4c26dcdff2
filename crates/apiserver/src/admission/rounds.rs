//! Mutating admission goes round twice at most: what somebody outside (a webhook, a policy) has made of an object, the server's own
//! plugins see once more, and so do those outside who have asked for it (`reinvocationPolicy: IfNeeded`).

use parking_lot::Mutex;
use std::collections::HashMap;

/// What is remembered of one request's rounds.
#[derive(Default)]
pub struct Rounds(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether anybody outside has changed the object.
    changed: bool,
    is_second: bool,
    /// Who has seen the object and wants to see it again once it has changed, and whether it has.
    seen: HashMap<String, bool>,
}

impl Rounds {
    /// Begins the second round, if there is to be one.
    pub(super) fn begin_second(&self) -> bool {
        let mut state = self.0.lock();
        state.is_second = state.changed;
        state.changed
    }
    /// Whether anybody outside has changed the object.
    pub fn has_changed(&self) -> bool {
        self.0.lock().changed
    }
    /// Whether it is somebody's turn who wants to be asked again (or does not).
    pub(super) fn concern(&self, who: &str) -> bool {
        let state = self.0.lock();
        !state.is_second || state.seen.get(who) == Some(&true)
    }
    /// Somebody has been asked who wants to be asked again.
    pub(super) fn asked(&self, who: String) {
        self.0.lock().seen.insert(who, false);
    }
    /// The object is not any more as it was: by somebody outside, or, in the second round, by a plugin.
    pub(super) fn changed(&self) {
        let mut state = self.0.lock();
        state.changed = true;
        state.seen.values_mut().for_each(|seen| *seen = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_again_about_what_has_not_changed_since() {
        let rounds = Rounds::default();
        assert!(rounds.concern("a") && rounds.concern("b"));
        rounds.asked("a".into());
        assert!(!rounds.begin_second(), "nothing has changed");
        rounds.changed();
        rounds.asked("b".into());
        assert!(rounds.begin_second());
        assert!(rounds.concern("a"), "b has changed what a had seen");
        assert!(!rounds.concern("b"), "nobody came after b");
        assert!(!rounds.concern("c"), "who does not want to is not asked again");
        rounds.asked("a".into());
        rounds.changed();
        assert!(rounds.concern("b"));
    }
}
