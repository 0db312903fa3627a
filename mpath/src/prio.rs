//! Prioritizers: what makes one path better than another (multipath.conf(5), `prio`).
//!
//! Where the unit has port groups and they are asked for, they decide (module `access`). Otherwise
//! `weightedpath` looks at a path's name and `path_latency` at what reads on it take, measured after
//! each login and at every check.

use crate::config::Config;
use crate::ere::Ere;
use crate::inner::Inner;
use crate::path::{Live, Path, Phase};
use crate::sweep::{alive, within};
use blockdev::path::{Command, CommandError};
use blockdev::{IoCtx, Rt, Sector};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// `prio`: what makes one group better than another.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Prio {
    /// Nothing: all are equal.
    #[default]
    Const,
    /// The ALUA state of the path's target port group.
    Alua,
    /// What patterns say of the path's name.
    WeightedPath(Weights),
    /// What reads take on the path.
    PathLatency(LatencyScale),
}

impl Prio {
    /// `prio` and `prio_args` of multipath.conf(5).
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn parse(name: &str, args: &str) -> Result<Prio, String> {
        match name {
            "const" => Ok(Prio::Const),
            "alua" | "sysfs" => Ok(Prio::Alua),
            "weightedpath" => Weights::parse(args).map(Prio::WeightedPath),
            "path_latency" => LatencyScale::parse(args).map(Prio::PathLatency),
            _ => Err(format!("there is no prioritizer {name:?}")),
        }
    }
}

/// What a weight's pattern is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The portal, which is the device node of tables.
    Devname,
    /// The unit's serial number (VPD 80h).
    Serial,
    /// The target's name.
    Wwn,
}

/// Arguments of `weightedpath`: `devname|serial|wwn REGEX PRIO …`. The first pattern that matches
/// counts; a path that none matches has priority 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    subject: Subject,
    weights: Vec<(Ere, i32)>,
}

impl Weights {
    fn parse(args: &str) -> Result<Weights, String> {
        let mut words = args.split_whitespace();
        let subject = match words.next() {
            Some("devname") => Subject::Devname,
            Some("serial") => Subject::Serial,
            Some("wwn") => Subject::Wwn,
            Some("hbtl") => {
                return Err(
                    "weightedpath: a portal has no host:bus:target:lun; use devname, which is its \
                     address:port"
                        .into(),
                )
            }
            _ => return Err(
                "weightedpath wants \"devname|serial|wwn REGEX PRIO\", the last two as often as \
                     needed"
                    .into(),
            ),
        };
        let mut weights = Vec::new();
        while let Some(regex) = words.next() {
            let pattern = Ere::new(regex).map_err(|e| format!("weightedpath: {regex:?}: {e}"))?;
            let priority = words.next().and_then(|word| word.parse().ok());
            let priority = priority
                .ok_or_else(|| format!("weightedpath: {regex:?} has no priority behind it"))?;
            weights.push((pattern, priority));
        }
        if weights.is_empty() {
            return Err("weightedpath has no pattern".into());
        }
        Ok(Weights { subject, weights })
    }

    fn of(&self, path: &Path) -> i32 {
        let identity = path.identity.borrow();
        let text = match self.subject {
            Subject::Devname => &path.name.portal,
            Subject::Wwn => &path.name.target,
            Subject::Serial => match &*identity {
                Some(identity) => &identity.serial,
                None => return 0,
            },
        };
        let found = self
            .weights
            .iter()
            .find(|(pattern, _)| pattern.matches(text));
        found.map_or(0, |&(_, priority)| priority)
    }
}

/// Priority of every path with `prio const`.
pub(crate) const PRIO_CONST: i32 = 1;

/// Shortest and longest average that `path_latency` tells apart, in microseconds.
const LATENCY_MIN_US: f64 = 1.0;
const LATENCY_MAX_US: f64 = 100_000_000.0;
/// A read that takes longer counts as this long.
const READ_MAX: Duration = Duration::from_secs(2);
/// Sectors of a read.
const READ_SECTORS: u32 = 8;

/// Arguments of `path_latency`: `io_num=20…200 base_num=1.1…10`. Averages whose ratio is below
/// `base_num` have equal priorities, as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyScale {
    /// Reads of one measurement.
    reads: u32,
    /// Base of the logarithm, in thousandths.
    base_thousandths: u32,
}

impl Default for LatencyScale {
    fn default() -> LatencyScale {
        LatencyScale {
            reads: 100,
            base_thousandths: 1500,
        }
    }
}

impl LatencyScale {
    fn parse(args: &str) -> Result<LatencyScale, String> {
        let mut scale = LatencyScale::default();
        for word in args.split_whitespace() {
            match word.split_once('=') {
                Some(("io_num", value)) => match value.parse() {
                    Ok(reads @ 20..=200) => scale.reads = reads,
                    _ => return Err(format!("path_latency: io_num is 20 to 200, not {value}")),
                },
                Some(("base_num", value)) => match value.parse::<f64>() {
                    Ok(base) if (1.1..=10.0).contains(&base) => {
                        scale.base_thousandths = (base * 1000.0).round() as u32;
                    }
                    _ => return Err(format!("path_latency: base_num is 1.1 to 10, not {value}")),
                },
                _ => {
                    return Err(format!(
                        "path_latency knows io_num and base_num, not {word:?}"
                    ))
                }
            }
        }
        Ok(scale)
    }

    /// The higher, the shorter; 0 at 100 s.
    fn priority(self, average: Duration) -> i32 {
        let us = average.as_secs_f64() * 1e6;
        let us = us.clamp(LATENCY_MIN_US, LATENCY_MAX_US);
        let base = f64::from(self.base_thousandths) / 1000.0;
        // The little more keeps whole numbers whole.
        ((LATENCY_MAX_US / us).log(base) + 1e-9) as i32
    }
}

/// The priority of `path`.
pub(crate) fn priority(config: &Config, path: &Path) -> i32 {
    if let Some(by_state) = path.access.priority(config.exclusive_pref_bit) {
        return by_state;
    }
    match &config.prio {
        Prio::Const | Prio::Alua => PRIO_CONST,
        Prio::WeightedPath(weights) => weights.of(path),
        Prio::PathLatency(scale) => path.latency.get().map_or(0, |time| scale.priority(time)),
    }
}

impl Inner {
    /// Measures the path, if that is how it gets its priority. Its I/O goes on meanwhile.
    pub(crate) fn measure(&self, path: &Rc<Path>, live: &Live) {
        let Prio::PathLatency(scale) = self.config.borrow().prio else {
            return;
        };
        if path.is_measured.replace(true) {
            return;
        }
        let task = measure(
            self.me.clone(),
            path.clone(),
            live.clone(),
            self.rt.clone(),
            scale.reads,
        );
        self.rt.spawn(task);
    }
}

async fn measure(device: Weak<Inner>, path: Rc<Path>, live: Live, rt: Rt, reads: u32) {
    if let Some(average) = average(&path, &live, &rt, reads).await {
        path.latency.set(Some(average));
        if let Some(inner) = alive(&device) {
            inner.regroup();
            inner.changed.notify();
        }
    }
    path.is_measured.set(false);
}

/// What `reads` reads one after the other take on average; `None` if the session ends before.
async fn average(path: &Path, live: &Live, rt: &Rt, reads: u32) -> Option<Duration> {
    let mut total = Duration::ZERO;
    for _ in 0..reads {
        if path.epoch() != Some(live.epoch) || path.phase.get() != Phase::Serving {
            return None;
        }
        let read = Command::Read {
            at: Sector(0),
            sectors: READ_SECTORS,
        };
        let begun = rt.now();
        let answer = live.session.submit(read, IoCtx::metadata()).1;
        match within(rt, begun + READ_MAX, answer).await {
            Some(Err(CommandError::Lost { .. })) => return None,
            // Any answer tells how long the way is.
            Some(_) => total += rt.now() - begun,
            None => total += READ_MAX,
        }
    }
    Some(total / reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_prioritizers() {
        assert_eq!(Prio::parse("const", ""), Ok(Prio::Const));
        assert_eq!(Prio::parse("sysfs", ""), Ok(Prio::Alua));
        let scale = |reads, base_thousandths| {
            Ok(Prio::PathLatency(LatencyScale {
                reads,
                base_thousandths,
            }))
        };
        assert_eq!(Prio::parse("path_latency", ""), scale(100, 1500));
        assert_eq!(
            Prio::parse("path_latency", "io_num=20 base_num=10"),
            scale(20, 10_000)
        );
        assert!(Prio::parse("weightedpath", "devname 10\\.3\\. 50 . 10").is_ok());
        for (name, args) in [
            ("path_latency", "io_num=19"),
            ("path_latency", "base_num=1.05"),
            ("path_latency", "io_num"),
            ("weightedpath", ""),
            ("weightedpath", "devname"),
            ("weightedpath", "devname sd. x"),
            ("weightedpath", "hbtl 1:.:.:. 2"),
            ("weightedpath", "serial ( 2"),
            ("random", ""),
        ] {
            assert!(Prio::parse(name, args).is_err(), "{name} {args}");
        }
    }

    #[test]
    fn ten_times_the_latency_is_one_step_less_at_base_ten() {
        let scale = LatencyScale {
            reads: 20,
            base_thousandths: 10_000,
        };
        let of = |us| scale.priority(Duration::from_micros(us));
        assert_eq!([of(0), of(1), of(50), of(500), of(5000)], [8, 8, 6, 5, 4]);
        assert_eq!(scale.priority(Duration::from_secs(1000)), 0);
    }
}
