//! What an operator wants to know: a short queue with one reader, and how often it is filled.
//!
//! Each kind of event is told at once, and then no more often than its interval: what happens
//! meanwhile is told together when the interval is over, the first few by name, the rest by
//! number. So a scrub that heals thousands of granules does not drive everything else out of a
//! reader's list, and nothing here grows.

use blockdev::{Instant, StateChange};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Events that wait for the reader at most; past that the oldest is dropped.
const WAITING_MAX: usize = 64;
/// Texts kept for one event that tells of several.
const NAMED_MAX: usize = 8;

/// Kinds of events, named as in the external interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    BlockHealed,
    ChunkDamaged,
    SpaceLow,
    ChunksQuarantined,
    StaleMaster,
}

const KINDS: usize = 5;

impl News {
    fn name(self) -> &'static str {
        match self {
            News::BlockHealed => "block_healed",
            News::ChunkDamaged => "chunk_damaged",
            News::SpaceLow => "space_low",
            News::ChunksQuarantined => "chunks_quarantined",
            News::StaleMaster => "stale_master_suspected",
        }
    }

    /// Deletions are daily business: once a minute is enough to see them.
    fn interval(self) -> Duration {
        match self {
            News::ChunksQuarantined => Duration::from_secs(60),
            _ => Duration::from_secs(1),
        }
    }
}

#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    texts: Vec<String>,
    more: u64,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<StateChange>,
    paces: [Pace; KINDS],
    waker: Option<Waker>,
}

/// See the module.
pub(crate) struct Newsroom {
    object: String,
    inner: RefCell<Inner>,
}

impl Newsroom {
    /// News about `object`.
    pub(crate) fn new(object: String) -> Newsroom {
        Newsroom {
            object,
            inner: RefCell::default(),
        }
    }

    /// Something happened. Returns when [`Newsroom::tell_rest`] is to be called, if it is now that it
    /// must be arranged.
    pub(crate) fn tell(&self, kind: News, now: Instant, text: String) -> Option<Instant> {
        let mut inner = self.inner.borrow_mut();
        let pace = &mut inner.paces[kind as usize];
        let due = pace.last.map(|last| last + kind.interval());
        match due {
            Some(due) if now < due || !pace.texts.is_empty() => {
                let first = pace.texts.is_empty();
                if pace.texts.len() < NAMED_MAX {
                    pace.texts.push(text);
                } else {
                    pace.more += 1;
                }
                first.then_some(due)
            }
            _ => {
                pace.last = Some(now);
                drop(inner);
                self.push(kind, text);
                None
            }
        }
    }

    /// The interval of `kind` is over: tells what was held back.
    pub(crate) fn tell_rest(&self, kind: News, now: Instant) {
        let text = {
            let mut inner = self.inner.borrow_mut();
            let pace = &mut inner.paces[kind as usize];
            if pace.texts.is_empty() {
                return;
            }
            pace.last = Some(now);
            let mut text = std::mem::take(&mut pace.texts).join("; ");
            let more = std::mem::take(&mut pace.more);
            if more > 0 {
                text.push_str(&format!("; and {more} more"));
            }
            text
        };
        self.push(kind, text);
    }

    fn push(&self, kind: News, text: String) {
        let waker = {
            let mut inner = self.inner.borrow_mut();
            if inner.waiting.len() == WAITING_MAX {
                inner.waiting.pop_front();
            }
            inner.waiting.push_back(StateChange {
                event: kind.name(),
                object: self.object.clone(),
                text,
                warn: kind != News::ChunksQuarantined,
            });
            inner.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<StateChange> {
        let mut inner = self.inner.borrow_mut();
        match inner.waiting.pop_front() {
            Some(change) => Poll::Ready(change),
            None => {
                inner.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Newsroom {
    /// Whoever reads learns that there will be no more.
    fn drop(&mut self) {
        let waker = self.inner.borrow_mut().waker.take();
        waker.into_iter().for_each(Waker::wake);
    }
}

/// How full a volume is, as far as an operator is told. Less than 5 % free, and again less than
/// 1 %, is worth an event; a level is told anew only after there was 2 % more than its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fullness {
    #[default]
    Roomy,
    Low,
    Exhausted,
}

impl Fullness {
    /// The level now, from the one before.
    pub(crate) fn next(self, free: u64, total: u64) -> Fullness {
        let below = |percent: u64| u128::from(free) * 100 < u128::from(total) * u128::from(percent);
        let (low, exhausted) = (below(5), below(1));
        let (stays_low, stays_exhausted) = (below(7), below(3));
        match self {
            _ if exhausted => Fullness::Exhausted,
            Fullness::Exhausted if stays_exhausted => Fullness::Exhausted,
            _ if low => Fullness::Low,
            Fullness::Low | Fullness::Exhausted if stays_low => Fullness::Low,
            _ => Fullness::Roomy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    fn next(news: &Newsroom) -> Option<StateChange> {
        let mut cx = Context::from_waker(Waker::noop());
        match news.poll(&mut cx) {
            Poll::Ready(change) => Some(change),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_together() {
        let news = Newsroom::new("vol1".into());
        let tell = |ms, text: &str| news.tell(News::BlockHealed, at(ms), text.into());
        assert_eq!(tell(0, "a"), None);
        assert_eq!(tell(10, "b"), Some(at(1000)));
        for i in 0..20 {
            assert_eq!(tell(20 + i, "c"), None);
        }
        let first = next(&news).expect("told at once");
        assert_eq!((first.event, first.text.as_str()), ("block_healed", "a"));
        assert_eq!(next(&news), None);
        news.tell_rest(News::BlockHealed, at(1000));
        let rest = next(&news).expect("told together").text;
        assert!(
            rest.starts_with("b; c; c") && rest.ends_with("and 13 more"),
            "{rest}"
        );
        assert_eq!(tell(1500, "d"), Some(at(2000)));
        assert_eq!(news.tell(News::SpaceLow, at(1500), "e".into()), None);
    }

    #[test]
    fn the_queue_is_bounded() {
        let news = Newsroom::new("vol1".into());
        for i in 0..200 {
            news.tell(News::ChunkDamaged, at(i * 2000), format!("{i}"));
        }
        let texts: Vec<String> = std::iter::from_fn(|| next(&news)).map(|c| c.text).collect();
        assert_eq!(texts.len(), WAITING_MAX);
        assert_eq!(texts.last().map(String::as_str), Some("199"));
    }

    #[test]
    fn low_space_is_told_once_a_level() {
        let told: Vec<Fullness> = [20, 6, 4, 6, 4, 1, 0, 2, 0, 4, 6, 8, 4]
            .into_iter()
            .scan(Fullness::Roomy, |level, free| {
                let before = *level;
                *level = level.next(free, 100);
                Some((before, *level))
            })
            .filter(|(before, now)| now > before)
            .map(|(_, now)| now)
            .collect();
        assert_eq!(told, [Fullness::Low, Fullness::Exhausted, Fullness::Low]);
    }
}
