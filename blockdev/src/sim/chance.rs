//! Seeded chance: numbers, odds and service times.

use std::cell::Cell;
use std::time::Duration;

/// A stream of random numbers (SplitMix64) that depends on its seed alone, so that what one
/// device draws does not change what another one draws.
#[derive(Debug)]
pub struct Chance(Cell<u64>);

impl Chance {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Chance {
        Chance(Cell::new(seed))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether something of these odds happens.
    pub fn happens(&self, odds: PerMillion) -> bool {
        // Nothing is drawn for what never happens: adding a kind of fault leaves old seeds alone.
        odds.0 > 0 && self.below(1_000_000) < u64::from(odds.0)
    }

    /// Heads or tails.
    pub fn coin(&self) -> bool {
        self.next() & 1 == 1
    }
}

/// Odds in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerMillion(pub u32);

/// How long something takes: `least` plus up to `spread`, and sometimes a `tail` on top.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// Shortest time.
    pub least: Duration,
    /// Added evenly distributed between nothing and this.
    pub spread: Duration,
    /// How often the tail strikes.
    pub tail_odds: PerMillion,
    /// What it adds.
    pub tail: Duration,
}

impl Latency {
    /// Always the same.
    pub const fn fixed(time: Duration) -> Latency {
        Latency {
            least: time,
            spread: Duration::ZERO,
            tail_odds: PerMillion(0),
            tail: Duration::ZERO,
        }
    }

    /// Between the two, evenly.
    pub fn between(least: Duration, most: Duration) -> Latency {
        Latency {
            spread: most.saturating_sub(least),
            ..Latency::fixed(least)
        }
    }

    /// One draw.
    pub fn draw(&self, chance: &Chance) -> Duration {
        let spread = u64::try_from(self.spread.as_nanos()).unwrap_or(u64::MAX);
        let mut time = self.least + Duration::from_nanos(chance.below(spread));
        if chance.happens(self.tail_odds) {
            time += self.tail;
        }
        time
    }
}
