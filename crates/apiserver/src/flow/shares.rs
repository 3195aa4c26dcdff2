//! How many seats each priority level has: its share of the server's, and what levels lend to each other. Pure.
//!
//! A level owns its nominal seats. What it does not use it lends, down to a minimum; what others do not use it borrows, up to
//! a maximum. Every few seconds the limits are set anew from how many seats each level wanted ([`limits`]): every level has
//! at least what it wanted of its own, and what is left goes to all in proportion to what they wanted.

/// What is configured of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// `nominalConcurrencyShares`.
    pub shares: u32,
    /// `lendablePercent`.
    pub lendable_percent: u32,
    /// `borrowingLimitPercent`; without, no limit.
    pub borrowing_percent: Option<u32>,
    /// Its requests never wait; it only lends what it does not use.
    pub exempt: bool,
}

/// What that comes to on this server, in seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub nominal: usize,
    pub min: usize,
    pub max: usize,
}

/// The seats that each level owns, and between which bounds its limit moves.
pub fn bounds(server_seats: usize, levels: &[Share]) -> Vec<Bounds> {
    let total: u64 = levels.iter().map(|level| u64::from(level.shares)).sum();
    let of = |level: &Share| {
        let nominal = (server_seats as u64 * u64::from(level.shares)).div_ceil(total.max(1)) as usize;
        let min = nominal - percent(nominal, level.lendable_percent.min(100));
        let max = match level.borrowing_percent {
            _ if level.exempt => usize::MAX,
            None => server_seats.max(nominal),
            Some(more) => nominal + percent(nominal, more),
        };
        Bounds { nominal, min, max }
    };
    levels.iter().map(of).collect()
}

fn percent(of: usize, percent: u32) -> usize {
    (of as f64 * f64::from(percent) / 100.0).round() as usize
}

/// The limits for the next while. `wanted` is how many seats each level wanted in the last.
pub fn limits(server_seats: usize, bounds: &[Bounds], wanted: &[usize]) -> Vec<usize> {
    let least: Vec<usize> = bounds.iter().zip(wanted).map(|(of, wanted)| of.min.max(of.nominal.min(*wanted))).collect();
    let given: usize = least.iter().sum();
    if given >= server_seats {
        return least;
    }
    // The part of what everybody wants that there is room for: found by halving, for the sum only grows with it.
    let share = |fraction: f64| -> Vec<f64> {
        (0..bounds.len()).map(|i| (fraction * wanted[i].max(1) as f64).clamp(least[i] as f64, bounds[i].max.max(least[i]) as f64)).collect()
    };
    let (mut low, mut high) = (0.0f64, server_seats as f64);
    for _ in 0..48 {
        let middle = (low + high) / 2.0;
        if share(middle).iter().sum::<f64>() > server_seats as f64 { high = middle } else { low = middle }
    }
    share(low).into_iter().map(|seats| (seats + 0.5).floor() as usize).collect()
}

/// How much of a level's demand is remembered while it falls: it rises at once.
const SMOOTHING: f64 = 0.977;

/// What a level wants, smoothed over the last minutes, after it wanted `now` seats at most in the last while.
pub fn smooth(before: f64, now: usize) -> f64 {
    let now = now as f64;
    now.max(before * SMOOTHING + now * (1.0 - SMOOTHING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(shares: u32, lendable_percent: u32) -> Share {
        Share { shares, lendable_percent, borrowing_percent: None, exempt: false }
    }

    /// catch-all, global-default, leader-election, node-high, system, workload-high, workload-low; exempt has no share.
    fn first() -> Vec<Share> {
        vec![level(5, 0), level(20, 50), level(10, 0), level(40, 25), level(30, 33), level(40, 50), level(100, 90)]
    }

    #[test]
    fn the_first_levels_have_the_seats_that_kubernetes_gives_them() {
        let bounds = bounds(600, &first());
        assert_eq!(bounds.iter().map(|level| level.nominal).collect::<Vec<_>>(), [13, 49, 25, 98, 74, 98, 245]);
        assert_eq!(bounds.iter().map(|level| level.min).collect::<Vec<_>>(), [13, 24, 25, 73, 50, 49, 24]);
        assert!(bounds.iter().all(|level| level.max == 600));
    }

    #[test]
    fn who_wants_gets_what_others_lend_and_nobody_loses_what_is_its_own() {
        let bounds = bounds(600, &first());
        let flood = limits(600, &bounds, &[0, 0, 0, 0, 0, 0, 10_000]);
        assert_eq!(&flood[..6], &[13, 24, 25, 73, 50, 49], "each keeps its minimum");
        assert_eq!(flood.iter().sum::<usize>(), 600, "and all the rest is lent: {flood:?}");
        let busy = limits(600, &bounds, &[0, 0, 25, 98, 0, 0, 10_000]);
        assert_eq!((busy[2], busy[3]), (25, 98), "what nodes and elections want of their own they have");
        assert!(busy.iter().sum::<usize>() <= 603);
    }

    #[test]
    fn borrowing_ends_at_its_limit() {
        let mut levels = first();
        levels[6].borrowing_percent = Some(0);
        let bounds = bounds(600, &levels);
        assert_eq!(limits(600, &bounds, &[0, 0, 0, 0, 0, 0, 10_000])[6], 245);
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        assert_eq!(smooth(10.0, 50), 50.0);
        assert!((40.0..50.0).contains(&smooth(50.0, 0)));
    }

    #[test]
    fn no_shares_at_all_are_no_division_by_zero() {
        assert_eq!(bounds(600, &[level(0, 0)])[0].nominal, 0);
        assert_eq!(limits(600, &[], &[]), Vec::<usize>::new());
    }
}
