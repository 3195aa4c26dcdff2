//! Heard time: the time in which this process ran and could have heard something.
//!
//! A process that is paused, starved or swapped out comes back to timers that are all over, and to a socket full of
//! answers to them. So a gap counts only up to [`limits::HEARD_STEP_MAX_MS`], whatever the wall says, and after a gap this
//! node is patient with the others for a while: it is more likely slow itself. (Lifeguard calls this local health.)

use crate::limits;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct HeardClock {
    last_ms: Option<u64>,
    heard_ms: u64,
    slow_until_ms: u64,
}

impl HeardClock {
    /// Takes in the monotonic clock, and says what time it is.
    pub fn advance(&mut self, now_ms: u64) -> u64 {
        let gap = self.last_ms.map_or(0, |last| now_ms.saturating_sub(last));
        self.last_ms = Some(self.last_ms.map_or(now_ms, |last| last.max(now_ms)));
        self.heard_ms += gap.min(limits::HEARD_STEP_MAX_MS);
        if gap > limits::HEARD_STEP_MAX_MS {
            self.slow_until_ms = self.heard_ms + limits::SLOW_FOR_MS;
        }
        self.heard_ms
    }

    /// The time as of the last [`HeardClock::advance`].
    pub fn now(&self) -> u64 {
        self.heard_ms
    }

    /// By how much every patience is to be multiplied.
    pub fn patience(&self) -> u64 {
        if self.heard_ms < self.slow_until_ms { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_against_nobody() {
        let mut clock = HeardClock::default();
        assert_eq!(clock.advance(1_000_000), 0);
        assert_eq!(clock.advance(1_000_050), 50);
        assert_eq!(clock.patience(), 1);
        assert_eq!(clock.advance(1_060_050), 50 + limits::HEARD_STEP_MAX_MS);
        assert_eq!(clock.patience(), 2);
        assert_eq!(clock.advance(1_000_000), 50 + limits::HEARD_STEP_MAX_MS);
    }
}
