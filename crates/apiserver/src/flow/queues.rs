//! The queues of one priority level: who runs now, who waits, who is sent away. Pure; the clock is an argument.
//!
//! Each flow is dealt a few of the queues ([`deal`]) and its request joins the emptiest of them, so that a flow that floods
//! fills its own queues and those few flows that were dealt all the same ones. Seats that become free go to the queue
//! that has been served least, measured in seat-seconds on the level's own clock: a queue is charged an estimate
//! when one of its requests begins, and the truth when it ends.
//!
//! What must stay true: the seats in use exceed the limit only by a single request that is wider than the limit; a request
//! that waits is dispatched, leaves, or is refused, and none is forgotten.

use std::collections::VecDeque;

/// What a request is taken to last before one knows, in seconds.
const ESTIMATED_S: f64 = 0.003;

/// How the queues are laid out. No queues: what finds no seat is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub queues: usize,
    pub hand: usize,
    /// Requests that may wait in one queue.
    pub queue_length: usize,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has its seats. `queue` is charged for it.
    Runs { queue: usize },
    /// It waits in `queue` under this number.
    Waits { queue: usize, number: u64 },
    /// All its queues are full.
    Full,
    /// The level has no queues and no seat is free.
    Busy,
}

/// One level's queues. `T` is what a waiting request is woken with.
pub struct Queues<T> {
    shape: Shape,
    limit: usize,
    queues: Vec<Queue<T>>,
    seats_in_use: usize,
    executing: usize,
    waiting: usize,
    waiting_seats: usize,
    /// Queues with something in them.
    active: usize,
    /// Seat-seconds that a queue which was always served its share has had by now.
    virtual_s: f64,
    at_s: f64,
    /// The queue that was served last: among equals, the next one has its turn.
    last: usize,
    next_number: u64,
    /// The most seats that were wanted at one time since it was last asked for.
    watermark: usize,
}

struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    /// Seats of those of its requests that run.
    seats: usize,
    executing: usize,
    /// Seat-seconds that it has had.
    served_s: f64,
}

struct Waiting<T> {
    number: u64,
    width: usize,
    wake: T,
}

impl<T> Queue<T> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.executing == 0
    }
    fn load(&self) -> usize {
        self.seats + self.waiting.iter().map(|waiting| waiting.width).sum::<usize>()
    }
}

/// Deals `hand` different cards out of `deck`, always the same ones for a hash, and calls `take` with each.
pub fn deal(mut hash: u64, deck: usize, hand: usize, mut take: impl FnMut(usize)) {
    // The cards dealt so far, in order; a hand is small.
    let mut dealt = [0usize; HAND_MAX];
    let hand = hand.min(deck).min(HAND_MAX);
    for i in 0..hand {
        let left = (deck - i) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        let mut place = 0;
        while place < i && dealt[place] <= card {
            card += 1;
            place += 1;
        }
        dealt.copy_within(place..i, place + 1);
        dealt[place] = card;
        take(card);
    }
}

/// Cards of a hand beyond which more would not help; larger hands are cut to it.
const HAND_MAX: usize = 32;

impl<T> Queues<T> {
    pub fn new(shape: Shape, limit: usize) -> Queues<T> {
        let mut queues = Queues {
            shape,
            limit,
            queues: Vec::new(),
            seats_in_use: 0,
            executing: 0,
            waiting: 0,
            waiting_seats: 0,
            active: 0,
            virtual_s: 0.0,
            at_s: 0.0,
            last: 0,
            next_number: 0,
            watermark: 0,
        };
        queues.reshape(shape);
        queues
    }

    /// Takes another layout. What waits in queues that are no longer dealt is still served.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
        while self.queues.len() < shape.queues.max(1) {
            self.queues.push(Queue { waiting: VecDeque::new(), seats: 0, executing: 0, served_s: 0.0 });
        }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }
    pub fn limit(&self) -> usize {
        self.limit
    }
    pub fn seats_in_use(&self) -> usize {
        self.seats_in_use
    }
    pub fn executing(&self) -> usize {
        self.executing
    }
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The most seats that were wanted at one time since this was last asked.
    pub fn take_watermark(&mut self) -> usize {
        let now = self.seats_in_use + self.waiting_seats;
        std::mem::replace(&mut self.watermark, now).max(now)
    }

    fn advance(&mut self, now_s: f64) {
        let passed_s = (now_s - self.at_s).max(0.0);
        self.at_s = now_s;
        if self.active > 0 {
            let served = (self.seats_in_use + self.waiting_seats).min(self.limit.max(1)) as f64;
            self.virtual_s += passed_s * served / self.active as f64;
        }
    }

    fn fits(&self, width: usize) -> bool {
        self.seats_in_use + width <= self.limit || self.seats_in_use == 0
    }

    /// A request comes that needs `width` seats. `wake` is made only if it has to wait.
    pub fn arrive(&mut self, now_s: f64, flow: u64, width: usize, wake: impl FnOnce() -> T) -> Arrival {
        self.advance(now_s);
        let width = width.max(1);
        let (mut index, mut least) = (0, usize::MAX);
        if self.shape.queues > 0 {
            let queues = &self.queues;
            deal(flow, self.shape.queues, self.shape.hand, |card| {
                let load = queues[card].load();
                if load < least {
                    (index, least) = (card, load);
                }
            });
        }
        let runs = self.waiting == 0 && self.fits(width);
        if !runs {
            // What was wanted counts, whether it was given or not.
            self.watermark = self.watermark.max(self.seats_in_use + self.waiting_seats + width);
            if self.shape.queues == 0 {
                return Arrival::Busy;
            }
            if self.queues[index].waiting.len() >= self.shape.queue_length {
                return Arrival::Full;
            }
        }
        if self.queues[index].is_idle() {
            self.active += 1;
            self.queues[index].served_s = self.virtual_s;
        }
        if runs {
            self.begin(index, width);
            return Arrival::Runs { queue: index };
        }
        let number = self.next_number;
        self.next_number += 1;
        self.queues[index].waiting.push_back(Waiting { number, width, wake: wake() });
        self.waiting += 1;
        self.waiting_seats += width;
        Arrival::Waits { queue: index, number }
    }

    fn begin(&mut self, index: usize, width: usize) {
        let queue = &mut self.queues[index];
        queue.executing += 1;
        queue.seats += width;
        queue.served_s += ESTIMATED_S * width as f64;
        self.executing += 1;
        self.seats_in_use += width;
        self.watermark = self.watermark.max(self.seats_in_use + self.waiting_seats);
    }

    /// A request that ran has ended after `took_s`. Who can run now is given to `wake`.
    pub fn finish(&mut self, now_s: f64, queue: usize, width: usize, took_s: f64, wake: impl FnMut(T)) {
        self.advance(now_s);
        let width = width.max(1);
        let of = &mut self.queues[queue];
        of.executing -= 1;
        of.seats -= width;
        of.served_s += (took_s - ESTIMATED_S) * width as f64;
        if of.is_idle() {
            self.active -= 1;
        }
        self.executing -= 1;
        self.seats_in_use -= width;
        self.dispatch(wake);
    }

    /// A request waits no longer. `false` if it does not wait any more: then it has its seats, and must [`Queues::finish`].
    pub fn leave(&mut self, now_s: f64, queue: usize, number: u64, wake: impl FnMut(T)) -> bool {
        self.advance(now_s);
        let of = &mut self.queues[queue];
        let Some(place) = of.waiting.iter().position(|waiting| waiting.number == number) else { return false };
        if let Some(gone) = of.waiting.remove(place) {
            self.waiting -= 1;
            self.waiting_seats -= gone.width;
        }
        if of.is_idle() {
            self.active -= 1;
        }
        // A wide one may have kept narrower ones from running.
        self.dispatch(wake);
        true
    }

    /// Another limit holds from now on.
    pub fn set_limit(&mut self, now_s: f64, limit: usize, wake: impl FnMut(T)) {
        self.advance(now_s);
        self.limit = limit;
        self.dispatch(wake);
    }

    fn dispatch(&mut self, mut wake: impl FnMut(T)) {
        while self.waiting > 0 {
            let count = self.queues.len();
            let mut best: Option<(f64, usize, usize)> = None;
            for step in 1..=count {
                let index = (self.last + step) % count;
                let queue = &self.queues[index];
                let Some(first) = queue.waiting.front() else { continue };
                let end_s = queue.served_s + ESTIMATED_S * first.width as f64;
                if best.is_none_or(|(least_s, ..)| end_s < least_s) {
                    best = Some((end_s, index, first.width));
                }
            }
            let Some((_, index, width)) = best else { return };
            if !self.fits(width) {
                return;
            }
            let Some(next) = self.queues[index].waiting.pop_front() else { return };
            self.last = index;
            self.waiting -= 1;
            self.waiting_seats -= width;
            self.begin(index, width);
            wake(next.wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SHAPE: Shape = Shape { queues: 16, hand: 4, queue_length: 3 };

    fn hand(hash: u64, deck: usize, size: usize) -> Vec<usize> {
        let mut cards = Vec::new();
        deal(hash, deck, size, |card| cards.push(card));
        cards
    }

    #[test]
    fn a_hand_has_different_cards_and_is_always_the_same() {
        for hash in (0..2000u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            let cards = hand(hash, 64, 6);
            assert_eq!(cards.iter().collect::<BTreeSet<_>>().len(), 6);
            assert!(cards.iter().all(|card| *card < 64));
            assert_eq!(cards, hand(hash, 64, 6));
        }
        assert_eq!(hand(7, 3, 8).len(), 3, "no more cards than the deck has");
    }

    #[test]
    fn every_card_is_dealt_about_as_often() {
        let mut count = [0; 16];
        for hash in (0..16_000u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) {
            deal(hash, 16, 4, |card| count[card] += 1);
        }
        assert!(count.iter().all(|n| (3200..4800).contains(n)), "{count:?}");
    }

    #[test]
    fn seats_are_given_while_there_are_any_then_requests_wait_then_they_are_refused() {
        let mut queues: Queues<u32> = Queues::new(SHAPE, 2);
        assert!(matches!(queues.arrive(0.0, 1, 1, || 0), Arrival::Runs { .. }));
        let Arrival::Runs { queue } = queues.arrive(0.0, 1, 1, || 0) else { panic!("there was a second seat") };
        let mut waiting = 0;
        while let Arrival::Waits { .. } = queues.arrive(0.0, 1, 1, || waiting) {
            waiting += 1;
        }
        assert_eq!(waiting, 12, "four queues of three");
        assert!(matches!(queues.arrive(0.0, 1, 1, || 0), Arrival::Full));
        let mut woken = Vec::new();
        queues.finish(1.0, queue, 1, 1.0, |who| woken.push(who));
        assert_eq!((woken.len(), queues.seats_in_use(), queues.waiting()), (1, 2, 11));
        let mut reject: Queues<u32> = Queues::new(Shape { queues: 0, hand: 0, queue_length: 0 }, 1);
        assert!(matches!(reject.arrive(0.0, 1, 1, || 0), Arrival::Runs { .. }));
        assert_eq!(reject.arrive(0.0, 1, 1, || 0), Arrival::Busy);
    }

    #[test]
    fn a_wide_request_waits_for_all_its_seats_unless_it_is_wider_than_the_level() {
        let mut queues: Queues<&str> = Queues::new(SHAPE, 4);
        let Arrival::Runs { queue } = queues.arrive(0.0, 1, 1, || "") else { panic!("free") };
        let Arrival::Waits { .. } = queues.arrive(0.0, 2, 4, || "wide") else { panic!("too wide to run now") };
        let Arrival::Waits { queue: at, number } = queues.arrive(0.0, 3, 1, || "narrow") else { panic!("nobody overtakes who waits") };
        let mut woken = Vec::new();
        queues.finish(0.1, queue, 1, 0.1, |who| woken.push(who));
        assert!(!woken.is_empty());
        assert!(queues.seats_in_use() <= 4);
        queues.leave(0.2, at, number, |_| {});
        let mut alone: Queues<&str> = Queues::new(SHAPE, 2);
        assert!(matches!(alone.arrive(0.0, 1, 10, || ""), Arrival::Runs { .. }), "else it would never run");
    }

    #[test]
    fn who_leaves_is_forgotten_and_who_runs_is_not() {
        let mut queues: Queues<u8> = Queues::new(SHAPE, 1);
        let Arrival::Runs { queue: runs } = queues.arrive(0.0, 1, 1, || 0) else { panic!("free") };
        let Arrival::Waits { queue, number } = queues.arrive(0.0, 1, 1, || 1) else { panic!("not free") };
        assert!(queues.leave(0.1, queue, number, |_| {}));
        assert!(!queues.leave(0.1, queue, number, |_| {}));
        queues.finish(0.2, runs, 1, 0.2, |_| panic!("nobody waits"));
        assert_eq!((queues.waiting(), queues.seats_in_use(), queues.active), (0, 0, 0));
    }

    /// Whatever comes in whatever order: the limit holds, and everybody who waits runs, leaves, or is still there.
    #[test]
    fn nothing_is_forgotten_and_the_limit_holds() {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for round in 0..200 {
            let shape = Shape { queues: [0, 1, 4, 64][round % 4], hand: 1 + random(6) as usize, queue_length: 1 + random(8) as usize };
            let mut queues: Queues<usize> = Queues::new(shape, random(8) as usize);
            // What became of each request: its place in a queue, or the queue that it runs from.
            let mut waiting: Vec<(usize, usize, u64, usize)> = Vec::new();
            let mut running: Vec<(usize, usize)> = Vec::new();
            let mut now_s = 0.0;
            for id in 0..300 {
                now_s += random(10) as f64 / 1000.0;
                let mut woken = Vec::new();
                match random(6) {
                    0..3 => {
                        let width = 1 + random(4) as usize;
                        match queues.arrive(now_s, random(1000), width, || id) {
                            Arrival::Runs { queue } => running.push((queue, width)),
                            Arrival::Waits { queue, number } => waiting.push((id, queue, number, width)),
                            Arrival::Full => assert!(shape.queues > 0 && queues.waiting() >= shape.queue_length),
                            Arrival::Busy => assert!(shape.queues == 0),
                        }
                    }
                    3 if !running.is_empty() => {
                        let (queue, width) = running.swap_remove(random(running.len() as u64) as usize);
                        queues.finish(now_s, queue, width, random(20) as f64 / 1000.0, |id| woken.push(id));
                    }
                    4 if !waiting.is_empty() => {
                        let (_, queue, number, _) = waiting.swap_remove(random(waiting.len() as u64) as usize);
                        assert!(queues.leave(now_s, queue, number, |id| woken.push(id)), "it was waiting");
                    }
                    5 => queues.set_limit(now_s, random(12) as usize, |id| woken.push(id)),
                    _ => {}
                }
                let before = queues.seats_in_use();
                for id in woken {
                    let at = waiting.iter().position(|one| one.0 == id).expect("only who waits is woken");
                    let (_, queue, _, width) = waiting.swap_remove(at);
                    running.push((queue, width));
                }
                assert_eq!(before, running.iter().map(|one| one.1).sum::<usize>());
                assert_eq!((queues.executing(), queues.waiting()), (running.len(), waiting.len()));
                if !running.is_empty() && !waiting.is_empty() {
                    let narrowest = waiting.iter().map(|one| one.3).min().unwrap_or_default();
                    assert!(queues.limit() < before + 4 || narrowest > 1, "seats are free, and somebody waits");
                }
            }
            while let Some((queue, width)) = running.pop() {
                queues.finish(now_s, queue, width, 0.001, |id| {
                    let at = waiting.iter().position(|one| one.0 == id).expect("only who waits is woken");
                    let (_, queue, _, width) = waiting.swap_remove(at);
                    running.push((queue, width));
                });
            }
            assert_eq!((waiting.len(), queues.seats_in_use(), queues.active), (0, 0, 0));
        }
    }

    /// One flow keeps its queues full; another asks for little. Both get their share.
    #[test]
    fn a_flood_does_not_starve_another_flow() {
        let mut queues: Queues<bool> = Queues::new(Shape { queues: 64, hand: 6, queue_length: 50 }, 4);
        let (flood, other) = (11u64, 0x1234_5678_9ABC_DEF0u64);
        let mut running: VecDeque<usize> = VecDeque::new();
        let mut now_s = 0.0;
        let offer = |queues: &mut Queues<bool>, flow: u64, mine: bool| queues.arrive(now_s, flow, 1, || mine);
        for _ in 0..400 {
            if let Arrival::Runs { queue } = offer(&mut queues, flood, false) {
                running.push_back(queue);
            }
        }
        let Arrival::Waits { .. } = offer(&mut queues, other, true) else { panic!("all seats are taken") };
        // Each request takes 10 ms. Which queue a woken one is of does not matter to this test; it is the first one's.
        let mut ended = 0;
        let mut served = false;
        while !served {
            now_s += 0.0025;
            let queue = running.pop_front().expect("four always run");
            let mut woken = Vec::new();
            let before: Vec<usize> = queues.queues.iter().map(|queue| queue.executing).collect();
            queues.finish(now_s, queue, 1, 0.01, |mine| woken.push(mine));
            for mine in woken {
                served |= mine;
            }
            let begun = queues.queues.iter().enumerate().find(|(i, of)| of.executing > before[*i] - usize::from(*i == queue));
            running.push_back(begun.expect("one has begun").0);
            ended += 1;
        }
        assert!(ended <= 12, "it waited for {ended} of the flood's 300");
    }
}
