//! Which master address to try when: a state machine without socket or clock.
//!
//! All addresses of all names are candidates, each with a time before which it is not tried. Tries
//! overlap: while one is under way the next starts 0.25 s later, so that silent addresses cost
//! little; the first that connects is asked, and only one is asked at a time.
//!
//! Pauses (each ± 20 %): 0.25 s for two minutes after the loss, then 1 s; 0.5 s when every address
//! says that it does not know the leader; 5 s at a master of another file system, since each try
//! leaves a trace there. A loss starts a try at once. A redirect is followed at once; when the
//! leader fails, the configured names are tried, not the leader again.

use blockdev::Instant;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Time a connection attempt is given.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const STAGGER: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_LATER: Duration = Duration::from_secs(1);
const PAUSE_LEADERLESS: Duration = Duration::from_millis(500);
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
const PATIENT_AFTER: Duration = Duration::from_secs(120);
/// The random number that leaves a pause as it is.
const MIDDLE: u64 = 511;
/// Addresses considered at most; more A records than this are ignored.
pub const CANDIDATES_MAX: usize = 64;

/// How a conversation with a master ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After registration.
    Lost,
    /// Closed, silent or garbled before it accepted us.
    Rejected,
    /// It named the leader (0.0.0.0: it knows none).
    Redirected(Ipv4Addr),
    /// It belongs to another file system.
    OtherFileSystem,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    not_before: Instant,
    started: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct Finder {
    candidates: Vec<Candidate>,
    leader: Option<SocketAddr>,
    leader_started: Option<Instant>,
    last_start: Instant,
    searching_since: Instant,
    asking: Option<SocketAddr>,
}

impl Finder {
    /// A search that begins at `now`, without candidates yet.
    pub fn new(now: Instant) -> Finder {
        Finder {
            candidates: Vec::new(),
            leader: None,
            leader_started: None,
            last_start: Instant(0),
            searching_since: now,
            asking: None,
        }
    }

    /// Replaces the candidates by what the names resolve to now; those known keep their times.
    pub fn set_addresses(&mut self, addresses: &[SocketAddr]) {
        let mut next: Vec<Candidate> = Vec::with_capacity(addresses.len());
        for &address in addresses {
            if next.len() == CANDIDATES_MAX || next.iter().any(|c| c.address == address) {
                continue;
            }
            let known = self
                .candidates
                .iter()
                .find(|c| c.address == address)
                .copied();
            let fresh = Candidate {
                address,
                not_before: Instant(0),
                started: None,
            };
            next.push(known.unwrap_or(fresh));
        }
        self.candidates = next;
    }

    /// Whether a search is on (nobody is being asked).
    pub fn searching(&self) -> bool {
        self.asking.is_none()
    }

    /// An address to start connecting to now; call until `None`.
    pub fn poll_connect(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.asking.is_some() {
            return None;
        }
        if let (Some(leader), None) = (self.leader, self.leader_started) {
            self.leader_started = Some(now);
            self.last_start = now;
            return Some(leader);
        }
        if now < self.stagger_until() {
            return None;
        }
        // The one that has waited longest: all get their turn.
        let next = self
            .candidates
            .iter_mut()
            .filter(|c| c.started.is_none() && c.not_before <= now)
            .min_by_key(|c| c.not_before)?;
        next.started = Some(now);
        self.last_start = now;
        Some(next.address)
    }

    /// When [`Finder::poll_connect`] may have something; `FAR` while somebody is asked.
    pub fn poll_timeout(&self) -> Instant {
        if self.asking.is_some() {
            return Instant::FAR;
        }
        if self.leader.is_some() && self.leader_started.is_none() {
            return Instant(0);
        }
        let waiting = self.candidates.iter().filter(|c| c.started.is_none());
        match waiting.map(|c| c.not_before).min() {
            Some(at) => at.max(self.stagger_until()),
            None => Instant::FAR,
        }
    }

    fn stagger_until(&self) -> Instant {
        let under_way =
            self.candidates.iter().any(|c| c.started.is_some()) || self.leader_started.is_some();
        if under_way {
            self.last_start + STAGGER
        } else {
            Instant(0)
        }
    }

    /// A connection attempt failed. `random` spreads the next one.
    pub fn handle_failed(&mut self, now: Instant, address: SocketAddr, random: u64) {
        self.forget_leader(address);
        let pause = self.pause(now);
        self.rest(now, address, pause, random);
    }

    /// A connection stands: this one is asked. The driver drops the other attempts.
    pub fn handle_connected(&mut self, address: SocketAddr) {
        self.asking = Some(address);
        self.leader_started = None;
        self.candidates.iter_mut().for_each(|c| c.started = None);
    }

    /// The conversation is over.
    pub fn handle_ended(&mut self, now: Instant, ending: Ending, random: u64) {
        let Some(address) = self.asking.take() else {
            return;
        };
        self.forget_leader(address);
        match ending {
            Ending::Lost => {
                self.searching_since = now;
                self.candidates
                    .iter_mut()
                    .for_each(|c| c.not_before = c.not_before.min(now));
                // The same address first: a restarted master is found by its first try.
                self.rest(now, address, Duration::ZERO, 0);
                if let Some(c) = self.candidates.iter_mut().find(|c| c.address == address) {
                    c.not_before = Instant(0);
                }
            }
            Ending::Rejected => {
                let pause = self.pause(now);
                self.rest(now, address, pause, random);
            }
            // Not spread: the right master is to be found within six seconds.
            Ending::OtherFileSystem => self.rest(now, address, PAUSE_REFUSED, MIDDLE),
            Ending::Redirected(leader) => {
                self.rest(now, address, PAUSE_LEADERLESS, random);
                if !leader.is_unspecified() {
                    self.leader = Some(SocketAddr::new(leader.into(), address.port()));
                }
            }
        }
    }

    fn forget_leader(&mut self, address: SocketAddr) {
        if self.leader == Some(address) {
            self.leader = None;
            self.leader_started = None;
        }
    }

    fn pause(&self, now: Instant) -> Duration {
        if now.since(self.searching_since) < PATIENT_AFTER {
            PAUSE
        } else {
            PAUSE_LATER
        }
    }

    /// Counted from the start of the try, so that slow failures do not slow the search.
    fn rest(&mut self, now: Instant, address: SocketAddr, pause: Duration, random: u64) {
        let spread = pause.mul_f64(0.8 + 0.4 * (random % 1024) as f64 / 1023.0);
        if let Some(c) = self.candidates.iter_mut().find(|c| c.address == address) {
            let from = c.started.take().unwrap_or(now);
            c.not_before = (from + spread).max(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 9420))
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Host {
        Refuses,
        Silent,
        Accepts,
    }

    /// Plays one search; the time in ms at which the host that accepts was connected, and all
    /// tries.
    fn search(hosts: &[Host], from: Instant, seed: u64) -> (u64, Vec<(u64, SocketAddr)>) {
        let mut finder = Finder::new(from);
        let list: Vec<_> = (0..hosts.len()).map(|i| address(i as u8)).collect();
        finder.set_addresses(&list);
        let (mut now, mut random) = (from, seed);
        let mut fails: Vec<(Instant, SocketAddr)> = Vec::new();
        let mut tries = Vec::new();
        loop {
            while let Some(to) = finder.poll_connect(now) {
                tries.push(((now.0 - from.0) / MS, to));
                let index = list.iter().position(|a| *a == to).unwrap();
                match hosts[index] {
                    Host::Accepts => return ((now.0 - from.0) / MS, tries),
                    Host::Refuses => fails.push((now + Duration::from_millis(1), to)),
                    Host::Silent => fails.push((now + CONNECT_TIMEOUT, to)),
                }
            }
            let failed = fails.iter().map(|f| f.0).min().unwrap_or(Instant::FAR);
            now = failed.min(finder.poll_timeout()).max(now);
            assert!(now < Instant::FAR && now.0 - from.0 < 200_000 * MS);
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            fails.retain(|&(at, to)| {
                if at <= now {
                    finder.handle_failed(now, to, random >> 33);
                }
                at > now
            });
        }
    }

    #[test]
    fn two_of_three_dead() {
        for seed in 0..50 {
            for place in 0..3 {
                for (dead, bound_ms) in [(Host::Refuses, 600), (Host::Silent, 1500)] {
                    let mut hosts = [dead; 3];
                    hosts[place] = Host::Accepts;
                    let (at, _) = search(&hosts, Instant(MS), seed);
                    assert!(at <= bound_ms, "{at} ms with the live one at {place}");
                }
            }
        }
    }

    #[test]
    fn a_lone_address_is_tried_four_times_a_second_then_once() {
        let mut finder = Finder::new(Instant(0));
        finder.set_addresses(&[address(1)]);
        let mut tries = Vec::new();
        let mut now = Instant(0);
        while now.0 < 180_000 * MS {
            if let Some(to) = finder.poll_connect(now) {
                tries.push(now.0 / MS);
                finder.handle_failed(now, to, 511);
            }
            now = finder.poll_timeout();
        }
        let early = tries.iter().filter(|&&at| at < 120_000).count();
        let late = tries.len() - early;
        assert!(
            (470..=490).contains(&early) && (58..=62).contains(&late),
            "{early} {late}"
        );
    }

    #[test]
    fn a_redirect_is_followed_at_once_and_not_twice() {
        let mut finder = Finder::new(Instant(0));
        finder.set_addresses(&[address(1), address(2)]);
        let now = Instant(5 * MS);
        assert_eq!(finder.poll_connect(now), Some(address(1)));
        finder.handle_connected(address(1));
        assert_eq!(finder.poll_timeout(), Instant::FAR);
        finder.handle_ended(now, Ending::Redirected(Ipv4Addr::new(10, 0, 0, 9)), 0);
        assert_eq!(finder.poll_connect(now), Some(address(9)));
        finder.handle_failed(now, address(9), 0);
        assert_eq!(
            finder.poll_connect(now),
            Some(address(2)),
            "the names, not the leader again"
        );
    }

    #[test]
    fn a_loss_is_followed_by_a_try_at_once_at_the_same_address() {
        let mut finder = Finder::new(Instant(0));
        finder.set_addresses(&[address(1), address(2)]);
        finder.poll_connect(Instant(1));
        finder.handle_connected(address(1));
        let now = Instant(900_000 * MS);
        finder.handle_ended(now, Ending::Lost, 7);
        assert_eq!(finder.poll_timeout().max(now), now);
        assert_eq!(finder.poll_connect(now), Some(address(1)));
        finder.handle_failed(now, address(1), 0);
        assert_eq!(finder.poll_connect(now), Some(address(2)));
        finder.handle_failed(now, address(2), 0);
        let pause = finder.poll_timeout() - now;
        assert!(
            pause <= Duration::from_millis(300),
            "{pause:?}: fast again after a loss"
        );
    }

    #[test]
    fn another_file_system_is_asked_every_five_seconds_while_others_are_tried() {
        let mut finder = Finder::new(Instant(0));
        finder.set_addresses(&[address(1), address(2)]);
        let now = Instant(MS);
        assert_eq!(finder.poll_connect(now), Some(address(1)));
        finder.handle_connected(address(1));
        finder.handle_ended(now, Ending::OtherFileSystem, 511);
        assert_eq!(finder.poll_connect(now), Some(address(2)));
        finder.handle_failed(now, address(2), 511);
        let mut at = now;
        loop {
            at = finder.poll_timeout().max(at);
            match finder.poll_connect(at) {
                Some(to) if to == address(1) => break,
                Some(to) => finder.handle_failed(at, to, 511),
                None => {}
            }
        }
        let pause = at - now;
        assert!(
            pause > Duration::from_secs(4) && pause <= Duration::from_secs(6),
            "{pause:?}"
        );
    }
}
