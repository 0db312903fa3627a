//! How often the same line may be logged: once a second, with the number of lines left out since.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A line about the same thing is logged no more often.
const PAUSE: Duration = Duration::from_secs(1);
/// Things remembered; beyond it the oldest is forgotten.
const KEPT: usize = 1024;

/// Remembers what was logged when. `K` is what makes two lines the same.
#[derive(Debug)]
pub struct Repeats<K>(BTreeMap<K, Last>);

#[derive(Debug, Clone, Copy)]
struct Last {
    at: Duration,
    left_out: u64,
}

/// Lines left out since the last of their like; empty in words if there were none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this in between)"),
        }
    }
}

impl<K> Default for Repeats<K> {
    fn default() -> Repeats<K> {
        Repeats(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Repeats<K> {
    /// Whether a line may be logged now, by a clock that never goes back.
    pub fn may_log(&mut self, key: &K, now: Duration) -> Option<LeftOut> {
        if let Some(last) = self.0.get_mut(key) {
            if now.saturating_sub(last.at) < PAUSE {
                last.left_out += 1;
                return None;
            }
            let left_out = std::mem::take(&mut last.left_out);
            last.at = now;
            return Some(LeftOut(left_out));
        }
        if self.0.len() >= KEPT {
            let oldest = self.0.iter().min_by_key(|(_, last)| last.at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
        let (at, left_out) = (now, 0);
        self.0.insert(key.clone(), Last { at, left_out });
        Some(LeftOut(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_per_key() {
        let mut repeats = Repeats::default();
        let mut at = |key: u32, ms| repeats.may_log(&key, Duration::from_millis(ms));
        assert_eq!(at(1, 0), Some(LeftOut(0)));
        assert_eq!(at(2, 1), Some(LeftOut(0)));
        assert_eq!((at(1, 500), at(1, 999)), (None, None));
        assert_eq!(at(1, 1000), Some(LeftOut(2)));
        assert_eq!(at(1, 2000), Some(LeftOut(0)));
        for key in 0..2 * KEPT as u32 {
            at(key, 3000 + u64::from(key));
        }
        assert!(repeats.0.len() <= KEPT);
    }
}
