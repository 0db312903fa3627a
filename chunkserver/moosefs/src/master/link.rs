//! One connection to a master as a state machine: no socket, clock or task inside.
//!
//! ```text
//! Begun ──ACK 3──▶ Begun (with digest)          ──ACK 1──▶ over: redirected
//!   │ └──ACK 2──▶ Waiting ──ACK 0──┐
//!   └──────ACK 0──────────────────▶ Adopting ──inventory──▶ Listing ⟲ ACK each ──▶ Registered
//! ```
//! The metaid is compared before anything of ours is told (P8), and storage adopts it before the
//! list is made. Reports wait until the list is through. Commands are carried out in every phase
//! after the ACK.
//!
//! Timing: NOP when nothing was written for 1 s; space when it changed; load every 5 s (every 1 s,
//! with the transferring byte, where both sides are at 4.32); dead after the silence the ACK names
//! (10 s unless told otherwise). A driver reads its socket before it calls
//! [`Link::handle_timeout`], and says so when it does not read for want of queue space
//! ([`Link::handle_paused`]), so our own lateness is not taken for the master's.

use super::channel::Facts;
use super::finder::Ending;
use super::state::Identity;
use crate::proto::frame::{self, FROM_MASTER_PAYLOAD_MAX};
use crate::proto::info::{self, Question};
use crate::proto::master::{
    self, auth_digest, Ack, BeginFields, Command, FromMaster, Register, REGISTER_CHUNKS_MAX,
    REPORT_IDS_MAX,
};
use crate::proto::{kind, Malformed, Version, VERSION_TRANSFERRING};
use blockdev::Instant;
use chunk_api::{ChunkEntry, ChunkId, Report, Space};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddrV4;
use std::time::Duration;

const NOP_AFTER: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(10);
const LOAD_EVERY: Duration = Duration::from_secs(5);
const LOAD_EVERY_TRANSFERRING: Duration = Duration::from_secs(1);
/// `CURRENT_LOAD`'s overload byte: not overloaded.
const NOT_OVERLOADED: u8 = 1;

/// What a link says of its node.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// The version we claim.
    pub claim: Version,
    /// Address and port for clients; 0.0.0.0 = the master takes the connection's source.
    pub listen: SocketAddrV4,
    /// Seconds of silence to ask for; 0 = the master decides, otherwise at least 10.
    pub timeout_s: u16,
    /// Labels, bit 0 = A.
    pub labels: u32,
    /// AUTH_CODE, sent only as the digest of a challenge.
    pub auth_code: Option<Vec<u8>>,
    /// What `GET_CONFIG` may tell: options of mfschunkserver.cfg by their upper-case names.
    pub options: BTreeMap<String, String>,
}

/// What the driver must do or tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Told to hold the line.
    Waiting,
    /// Accepted: storage must adopt this metaid and give its list ([`Link::handle_inventory`]).
    Accepted {
        /// The master's version.
        version: Version,
        /// The file system's identity.
        metaid: u64,
    },
    /// Storage has adopted it: to be stored, before anything of ours is told.
    Identity(Identity),
    /// The whole list is told.
    Registered,
    /// An order for storage.
    Command(Command),
    /// A question for storage.
    Question(Question),
    /// The connection is to be closed, and why.
    Ended(Ending, String),
}

#[derive(Debug)]
enum Phase {
    Begun {
        challenged: bool,
    },
    Waiting,
    Adopting {
        identity: Identity,
    },
    Listing {
        chunks: Vec<ChunkEntry>,
        told: usize,
    },
    Registered,
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    identity: Identity,
    facts: Facts,
    space_told: Space,
    phase: Phase,
    version: Version,
    silence: Duration,
    last_in: Instant,
    last_out: Instant,
    next_load: Instant,
    reports: VecDeque<Report>,
    out: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    unknown_told: bool,
}

impl Link {
    /// On a connection just made: queues BEGIN.
    pub fn new(now: Instant, config: LinkConfig, identity: Identity, facts: Facts) -> Link {
        let asked = Duration::from_secs(config.timeout_s.into());
        let mut link = Link {
            config,
            identity,
            facts,
            space_told: facts.space,
            phase: Phase::Begun { challenged: false },
            version: Version::default(),
            silence: asked.max(SILENCE),
            last_in: now,
            last_out: now,
            next_load: Instant::FAR,
            reports: VecDeque::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            unknown_told: false,
        };
        link.begin(None);
        link
    }

    /// Whether the master accepted us on this connection.
    pub fn accepted(&self) -> bool {
        !matches!(self.phase, Phase::Begun { .. } | Phase::Waiting)
    }

    /// Whether the whole list is told.
    pub fn registered(&self) -> bool {
        matches!(self.phase, Phase::Registered)
    }

    /// The reports that were not sent, for the next connection.
    pub fn into_unsent_reports(self) -> VecDeque<Report> {
        self.reports
    }

    fn begin(&mut self, digest: Option<[u8; 16]>) {
        self.space_told = self.facts.space;
        let fields = BeginFields {
            version: self.config.claim.0,
            address: self.config.listen,
            timeout_s: self.config.timeout_s,
            csid: self.identity.csid,
            space: self.facts.space.into(),
        };
        self.out.push_back(Register::Begin(digest, fields).encode());
    }

    fn end(&mut self, ending: Ending, why: impl Into<String>) {
        if !matches!(self.phase, Phase::Over) {
            self.phase = Phase::Over;
            self.events.push_back(Event::Ended(ending, why.into()));
        }
    }

    /// How a conversation ends that breaks off now.
    fn broken(&self) -> Ending {
        if self.accepted() {
            Ending::Lost
        } else {
            Ending::Rejected
        }
    }

    /// Bytes came; returns how many were taken (whole packets). Garbage ends the connection.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.last_in = now;
        let mut taken = 0;
        while !matches!(self.phase, Phase::Over) {
            let rest = bytes.get(taken..).unwrap_or_default();
            let handled = match frame::split(rest, FROM_MASTER_PAYLOAD_MAX) {
                Ok(None) => break,
                Ok(Some((header, payload, used))) => {
                    taken += used;
                    self.handle_packet(now, header.kind, payload)
                }
                Err(malformed) => Err(malformed),
            };
            if let Err(malformed) = handled {
                self.end(self.broken(), malformed.to_string());
            }
        }
        taken
    }

    fn handle_packet(&mut self, now: Instant, kind: u32, payload: &[u8]) -> Result<(), Malformed> {
        match FromMaster::parse(kind, payload)? {
            FromMaster::Nop | FromMaster::RegisterFirst(_) => {}
            // Not answering means "busy"; never asked at the version we claim.
            FromMaster::ChunkStatus(_) => {}
            FromMaster::Ack(ack) => self.handle_ack(now, ack),
            FromMaster::ForceTimeout(s) => {
                self.silence = Duration::from_secs(s.into()).max(SILENCE);
            }
            FromMaster::Command(command) => self.events.push_back(Event::Command(command)),
            FromMaster::Question(Question::Version(id)) => {
                let text = self.config.claim.to_string();
                self.out
                    .push_back(info::version(id, self.config.claim, &text));
            }
            FromMaster::Question(Question::Config { message_id, option }) => {
                let value = self.config.options.get(&option).map_or("", String::as_str);
                self.out.push_back(info::config_value(message_id, value));
            }
            FromMaster::Question(question) => self.events.push_back(Event::Question(question)),
            // A newer master's packet is no reason to lose all service.
            FromMaster::Unknown(kind) => {
                if !self.unknown_told {
                    self.unknown_told = true;
                    tracing::warn!(kind, "the master sent a packet of an unknown type; ignored");
                }
            }
        }
        Ok(())
    }

    fn handle_ack(&mut self, now: Instant, ack: Ack) {
        match (ack, &self.phase) {
            (Ack::Challenge(bytes), Phase::Begun { challenged: false }) => {
                let Some(code) = &self.config.auth_code else {
                    let why = "the master asks for a password and AUTH_CODE is not set";
                    return self.end(Ending::Rejected, why);
                };
                let digest = auth_digest(&bytes, code);
                self.phase = Phase::Begun { challenged: true };
                self.begin(Some(digest));
            }
            (Ack::Redirect(leader), Phase::Begun { .. } | Phase::Waiting) => {
                self.end(
                    Ending::Redirected(leader),
                    format!("redirected to leader {leader}"),
                );
            }
            (
                Ack::Wait {
                    timeout_s,
                    metaid,
                    version,
                },
                Phase::Begun { .. } | Phase::Waiting,
            ) => {
                if metaid.is_some() && self.refused(metaid) {
                    return;
                }
                self.version = version;
                self.silence = Duration::from_secs(timeout_s.into()).max(SILENCE);
                self.phase = Phase::Waiting;
                self.events.push_back(Event::Waiting);
            }
            (
                Ack::Accepted {
                    version,
                    timeout_s,
                    csid,
                    metaid,
                },
                Phase::Begun { .. } | Phase::Waiting,
            ) => {
                if self.refused(metaid) {
                    return;
                }
                self.version = version.unwrap_or(self.version);
                if let Some(s) = timeout_s {
                    self.silence = Duration::from_secs(s.into()).max(SILENCE);
                }
                let metaid = metaid.unwrap_or(0);
                let csid = csid.filter(|&id| id != 0).unwrap_or(self.identity.csid);
                self.phase = Phase::Adopting {
                    identity: Identity { csid, metaid },
                };
                self.events.push_back(Event::Accepted {
                    version: self.version,
                    metaid,
                });
            }
            (ack, Phase::Listing { .. }) if ack == Ack::PART_TAKEN => self.list(now),
            (_, Phase::Over) => {}
            (ack, _) => self.end(
                self.broken(),
                format!("the master sent {ack:?} out of turn"),
            ),
        }
    }

    /// The guard: another file system's master, or one that does not say, gets nothing of ours.
    fn refused(&mut self, metaid: Option<u64>) -> bool {
        let ours = self.identity.metaid;
        let why = match metaid {
            None | Some(0) => "the master does not tell its metaid".to_owned(),
            Some(theirs) if ours != 0 && theirs != ours => {
                format!("the master's metaid is {theirs:016x}, ours is {ours:016x}")
            }
            Some(_) => return false,
        };
        self.end(Ending::OtherFileSystem, why);
        true
    }

    /// Storage has adopted the metaid and lists its chunks; or refuses, for the reason given.
    pub fn handle_inventory(&mut self, now: Instant, chunks: Result<Vec<ChunkEntry>, String>) {
        let Phase::Adopting { identity } = self.phase else {
            return;
        };
        match chunks {
            Err(why) => self.end(Ending::OtherFileSystem, why),
            Ok(chunks) => {
                if identity != self.identity {
                    self.identity = identity;
                    self.events.push_back(Event::Identity(identity));
                }
                self.out.push_back(master::labels(self.config.labels));
                self.phase = Phase::Listing { chunks, told: 0 };
                self.list(now);
            }
        }
    }

    /// Tells the next part of the list, or that it is complete.
    fn list(&mut self, now: Instant) {
        let Phase::Listing { chunks, told } = &mut self.phase else {
            return;
        };
        let part = chunks.get(*told..).unwrap_or_default();
        let part = &part[..part.len().min(REGISTER_CHUNKS_MAX)];
        if !part.is_empty() {
            self.out.push_back(master::encode_chunks(part));
            *told += part.len();
            return;
        }
        self.out.push_back(Register::End.encode());
        self.phase = Phase::Registered;
        self.next_load = now;
        self.events.push_back(Event::Registered);
        self.tell_space();
        self.tell_reports();
        self.handle_timeout(now);
    }

    /// New facts of storage.
    pub fn handle_facts(&mut self, facts: Facts) {
        self.facts = facts;
        if self.registered() {
            self.tell_space();
        }
    }

    fn tell_space(&mut self) {
        if self.space_told != self.facts.space {
            self.space_told = self.facts.space;
            self.out.push_back(master::space(self.facts.space));
        }
    }

    /// Reports to tell, now or once registered.
    pub fn handle_reports(&mut self, reports: impl IntoIterator<Item = Report>) {
        self.reports.extend(reports);
        if self.registered() {
            self.tell_reports();
        }
    }

    /// Runs of one kind become one packet each, so that "lost" and "new" keep their order.
    fn tell_reports(&mut self) {
        while let Some(first) = self.reports.front() {
            let kind = std::mem::discriminant(first);
            let same = |r: &&Report| std::mem::discriminant(*r) == kind;
            let run = self
                .reports
                .iter()
                .take_while(same)
                .take(REPORT_IDS_MAX)
                .count();
            let run: Vec<Report> = self.reports.drain(..run).collect();
            let (mut ids, mut new): (Vec<ChunkId>, Vec<ChunkEntry>) = (Vec::new(), Vec::new());
            for report in &run {
                match *report {
                    Report::Damaged(id) | Report::Lost(id) => ids.push(id),
                    Report::New {
                        id,
                        version,
                        removing,
                    } => {
                        new.push(ChunkEntry {
                            id,
                            version,
                            removing,
                        });
                    }
                    Report::ErrorOccurred => {}
                }
            }
            match run.first() {
                Some(Report::Damaged(_)) => {
                    self.out.push_back(master::ids(kind::CHUNK_DAMAGED, &ids));
                }
                Some(Report::Lost(_)) => self.out.push_back(master::ids(kind::CHUNK_LOST, &ids)),
                Some(Report::New { .. }) => self.out.push_back(master::new_chunks(&new)),
                // One packet for a run: it only counts "errors" shown to people.
                Some(Report::ErrorOccurred) => self.out.push_back(master::error_occurred()),
                None => {}
            }
        }
    }

    /// An answer of storage to an order or question of *this* connection, as a whole frame.
    pub fn handle_answer(&mut self, frame: Vec<u8>) {
        if self.accepted() && !matches!(self.phase, Phase::Over) {
            self.out.push_back(frame);
        }
    }

    /// Other settings. Labels that differ are told at once if accepted; the rest holds from where it is next used.
    pub fn reconfigure(&mut self, config: LinkConfig) {
        let differ = self.config.labels != config.labels;
        self.config = config;
        if differ && matches!(self.phase, Phase::Listing { .. } | Phase::Registered) {
            self.out.push_back(master::labels(self.config.labels));
        }
    }

    /// A graceful leave; `false` if there is nothing to leave.
    pub fn leave(&mut self) -> bool {
        let registered = self.registered();
        if registered {
            self.out.push_back(Register::Leave.encode());
            self.phase = Phase::Over;
        }
        registered
    }

    /// The socket was not read for our own reasons until now.
    pub fn handle_paused(&mut self, now: Instant) {
        self.last_in = now;
    }

    /// The socket is closed or failed.
    pub fn handle_closed(&mut self, why: impl Into<String>) {
        let why = why.into();
        let why = match &self.phase {
            Phase::Begun { challenged: true } => format!("{why} (wrong AUTH_CODE?)"),
            Phase::Begun { .. } => format!("{why} before the master accepted us"),
            _ => why,
        };
        self.end(self.broken(), why);
    }

    /// Time passed: NOP, load, death by silence.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if now.since(self.last_in) >= self.silence {
            let silence = self.silence.as_secs();
            return self.end(
                self.broken(),
                format!("the master was silent for {silence} s"),
            );
        }
        if self.registered() && now >= self.next_load {
            let both = self.version.min(self.config.claim);
            let (every, transferring) = match both >= VERSION_TRANSFERRING {
                // The list is complete before we register: nothing is being transferred.
                true => (LOAD_EVERY_TRANSFERRING, Some(0)),
                false => (LOAD_EVERY, None),
            };
            self.next_load = now + every;
            self.out
                .push_back(master::load(self.facts.load, NOT_OVERLOADED, transferring));
        }
        if self.out.is_empty() && now.since(self.last_out) >= NOP_AFTER {
            self.out.push_back(master::NOP.to_vec());
        }
    }

    /// When [`Link::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        if matches!(self.phase, Phase::Over) {
            return Instant::FAR;
        }
        (self.last_in + self.silence)
            .min(self.last_out + NOP_AFTER)
            .min(self.next_load)
    }

    /// The next frame to write. While one cannot be written, no NOP is added.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let frame = self.out.pop_front();
        if frame.is_some() {
            self.last_out = now;
        }
        frame
    }

    /// A frame is still being written: nothing is due before it is through.
    pub fn handle_writing(&mut self, now: Instant) {
        self.last_out = now;
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::master::ToMaster;
    use crate::proto::CLAIMED_VERSION;
    use chunk_api::ChunkVersion;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const MS: u64 = 1_000_000;
    const METAID: u64 = 0x5F3E_0000_0000_0001;

    fn config() -> LinkConfig {
        LinkConfig {
            claim: CLAIMED_VERSION,
            listen: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9422),
            timeout_s: 0,
            labels: 5,
            auth_code: None,
            options: BTreeMap::from([("DATA_PATH".to_owned(), "/var/lib/x".to_owned())]),
        }
    }

    fn accepted(version: Version, metaid: u64) -> Vec<u8> {
        Ack::Accepted {
            version: Some(version),
            timeout_s: Some(10),
            csid: Some(7),
            metaid: Some(metaid),
        }
        .encode()
    }

    fn sent(link: &mut Link, now: Instant) -> Vec<ToMaster> {
        std::iter::from_fn(|| link.poll_transmit(now))
            .map(|frame| {
                let (header, payload, _) = frame::split(&frame, frame::TO_MASTER_PAYLOAD_MAX)
                    .unwrap()
                    .unwrap();
                ToMaster::parse(header.kind, payload).unwrap()
            })
            .collect()
    }

    fn events(link: &mut Link) -> Vec<Event> {
        std::iter::from_fn(|| link.poll_event()).collect()
    }

    fn entry(id: u64) -> ChunkEntry {
        ChunkEntry {
            id: ChunkId(id),
            version: ChunkVersion(1),
            removing: false,
        }
    }

    fn registered(version: Version, now: Instant) -> Link {
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        let ack = accepted(version, METAID);
        assert_eq!(link.handle_bytes(now, &ack), ack.len());
        link.handle_inventory(now, Ok(Vec::new()));
        assert!(link.registered());
        sent(&mut link, now);
        events(&mut link);
        link
    }

    #[test]
    fn a_whole_registration() {
        let now = Instant(MS);
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        assert!(matches!(
            sent(&mut link, now)[..],
            [ToMaster::Register(Register::Begin(
                None,
                BeginFields { csid: 0, .. }
            ))]
        ));
        link.handle_bytes(now, &accepted(Version::new(3, 0, 117), METAID));
        let version = Version::new(3, 0, 117);
        assert_eq!(
            events(&mut link),
            [Event::Accepted {
                version,
                metaid: METAID
            }]
        );
        assert_eq!(
            sent(&mut link, now),
            [],
            "nothing is told before storage has adopted"
        );
        let chunks: Vec<_> = (1..=25_000).map(entry).collect();
        link.handle_inventory(now, Ok(chunks));
        assert_eq!(
            events(&mut link),
            [Event::Identity(Identity {
                csid: 7,
                metaid: METAID
            })]
        );
        let mut told = 0;
        for part in 0..3 {
            for packet in sent(&mut link, now) {
                match packet {
                    ToMaster::Labels(5) if part == 0 => {}
                    ToMaster::Register(Register::Chunks(chunks)) => told += chunks.len(),
                    other => panic!("{other:?}"),
                }
            }
            assert!(!link.registered());
            link.handle_bytes(now, &Ack::PART_TAKEN.encode());
        }
        assert_eq!(told, 25_000);
        assert_eq!(events(&mut link), [Event::Registered]);
        assert_eq!(
            sent(&mut link, now),
            [
                ToMaster::Register(Register::End),
                ToMaster::Load(0, Some(1), None)
            ]
        );
    }

    #[test]
    fn a_challenge_is_answered_once() {
        let now = Instant(MS);
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        sent(&mut link, now);
        // Also with a password that a reload brought.
        link.reconfigure(LinkConfig {
            auth_code: Some(b"secret".to_vec()),
            ..config()
        });
        let challenge = [7; 32];
        link.handle_bytes(now, &Ack::Challenge(challenge).encode());
        match &sent(&mut link, now)[..] {
            [ToMaster::Register(Register::Begin(Some(digest), _))] => {
                assert_eq!(*digest, auth_digest(&challenge, b"secret"));
            }
            other => panic!("{other:?}"),
        }
        link.handle_closed("closed");
        match &events(&mut link)[..] {
            [Event::Ended(Ending::Rejected, why)] => assert!(why.contains("AUTH_CODE"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_file_system_gets_nothing() {
        let now = Instant(MS);
        let ours = Identity { csid: 7, metaid: 1 };
        for metaid in [0, 2] {
            let mut link = Link::new(now, config(), ours, Facts::default());
            sent(&mut link, now);
            link.handle_bytes(now, &accepted(Version::new(3, 0, 117), metaid));
            let events = events(&mut link);
            assert!(matches!(
                events[..],
                [Event::Ended(Ending::OtherFileSystem, _)]
            ));
            assert_eq!(sent(&mut link, now), []);
            assert_eq!(link.poll_timeout(), Instant::FAR);
        }
        // Nor does one that storage refuses, and its metaid is not stored.
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        sent(&mut link, now);
        link.handle_bytes(now, &accepted(Version::new(3, 0, 117), 9));
        link.handle_inventory(now, Err("vol1 belongs to another".into()));
        let events = events(&mut link);
        assert!(matches!(
            events[..],
            [
                Event::Accepted { .. },
                Event::Ended(Ending::OtherFileSystem, _)
            ]
        ));
        assert_eq!(sent(&mut link, now), []);
    }

    #[test]
    fn redirect_and_wait() {
        let now = Instant(MS);
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        let leader = Ipv4Addr::new(10, 0, 0, 3);
        link.handle_bytes(now, &Ack::Redirect(leader).encode());
        assert!(
            matches!(events(&mut link)[..], [Event::Ended(Ending::Redirected(ip), _)] if ip == leader)
        );

        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        sent(&mut link, now);
        let version = Version::new(3, 0, 117);
        let wait = Ack::Wait {
            version,
            timeout_s: 10,
            metaid: None,
        };
        link.handle_bytes(now, &wait.encode());
        assert_eq!(events(&mut link), [Event::Waiting]);
        // NOPs go on for as long as the master speaks.
        let mut at = now;
        for _ in 0..30 {
            at = at + Duration::from_secs(1);
            link.handle_bytes(at, &master::NOP);
            link.handle_timeout(at);
            assert_eq!(sent(&mut link, at), [ToMaster::Nop]);
        }
        link.handle_timeout(at + Duration::from_secs(10));
        assert!(matches!(
            events(&mut link)[..],
            [Event::Ended(Ending::Rejected, _)]
        ));
    }

    #[test]
    fn nops_load_and_silence() {
        let now = Instant(MS);
        let mut link = registered(Version::new(4, 59, 2), now);
        let (mut nops, mut loads) = (0, 0);
        let mut at = now;
        while at < now + Duration::from_millis(9_900) {
            at = link.poll_timeout();
            link.handle_timeout(at);
            for packet in sent(&mut link, at) {
                match packet {
                    ToMaster::Nop => nops += 1,
                    ToMaster::Load(0, Some(1), None) => loads += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(nops >= 8 && loads == 1, "{nops} {loads}");
        assert!(matches!(
            events(&mut link)[..],
            [Event::Ended(Ending::Lost, _)]
        ));
        assert!(at <= now + Duration::from_secs(10));
    }

    #[test]
    fn the_longer_load_only_where_both_sides_know_it() {
        let now = Instant(MS);
        for (claim, theirs, long) in [
            (Version::new(4, 59, 2), Version::new(4, 59, 2), true),
            (Version::new(4, 59, 2), Version::new(3, 0, 117), false),
            (CLAIMED_VERSION, Version::new(4, 59, 2), false),
        ] {
            let config = LinkConfig { claim, ..config() };
            let mut link = Link::new(now, config, Identity::default(), Facts::default());
            link.handle_bytes(now, &accepted(theirs, METAID));
            link.handle_inventory(now, Ok(Vec::new()));
            let loads = sent(&mut link, now);
            let expected = ToMaster::Load(0, Some(1), long.then_some(0));
            assert_eq!(loads.last(), Some(&expected));
        }
    }

    #[test]
    fn reports_wait_for_the_end_of_the_list_and_keep_their_order() {
        let now = Instant(MS);
        let mut link = Link::new(now, config(), Identity::default(), Facts::default());
        let new = Report::New {
            id: ChunkId(3),
            version: ChunkVersion(2),
            removing: true,
        };
        link.handle_reports([Report::Damaged(ChunkId(1)), Report::Lost(ChunkId(3)), new]);
        link.handle_bytes(now, &accepted(Version::new(3, 0, 117), METAID));
        let before = sent(&mut link, now);
        assert!(matches!(before[..], [ToMaster::Register(_)]), "{before:?}");
        link.handle_inventory(now, Ok(Vec::new()));
        let told = sent(&mut link, now);
        let at = told
            .iter()
            .position(|p| *p == ToMaster::Register(Register::End))
            .unwrap();
        let entry = ChunkEntry {
            id: ChunkId(3),
            version: ChunkVersion(2),
            removing: true,
        };
        assert_eq!(
            told[at + 1..at + 4],
            [
                ToMaster::Ids(kind::CHUNK_DAMAGED, vec![ChunkId(1)]),
                ToMaster::Ids(kind::CHUNK_LOST, vec![ChunkId(3)]),
                ToMaster::New(vec![entry]),
            ]
        );
        link.handle_reports((0..60_000).map(|id| Report::Lost(ChunkId(id))));
        let sizes: Vec<usize> = sent(&mut link, now)
            .iter()
            .filter_map(|p| match p {
                ToMaster::Ids(_, ids) => Some(ids.len()),
                _ => None,
            })
            .collect();
        assert_eq!(sizes, [25_000, 25_000, 10_000]);
    }

    #[test]
    fn space_is_told_on_change_only() {
        let now = Instant(MS);
        let mut link = registered(Version::new(3, 0, 117), now);
        link.handle_facts(Facts {
            load: 9,
            ..Facts::default()
        });
        assert_eq!(sent(&mut link, now), []);
        let space = Space {
            used_bytes: 4096,
            ..Space::default()
        };
        link.handle_facts(Facts { space, load: 0 });
        assert_eq!(sent(&mut link, now), [ToMaster::Space(space.into())]);
    }

    #[test]
    fn questions_of_the_link_itself() {
        let now = Instant(MS);
        let mut link = registered(Version::new(3, 0, 117), now);
        link.handle_bytes(now, &frame::encode(kind::GET_VERSION, |_| {}));
        assert_eq!(sent(&mut link, now), [ToMaster::Information(kind::VERSION)]);
        assert!(link.leave());
        assert_eq!(sent(&mut link, now), [ToMaster::Register(Register::Leave)]);
        assert!(!link.leave());
    }

    #[test]
    fn an_ack_out_of_turn_ends_the_connection() {
        let now = Instant(MS);
        let mut link = registered(Version::new(3, 0, 117), now);
        link.handle_bytes(now, &Ack::PART_TAKEN.encode());
        assert!(matches!(
            events(&mut link)[..],
            [Event::Ended(Ending::Lost, _)]
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_however_they_are_cut(
            packets in prop::collection::vec(
                (0u32..310, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            cuts in prop::collection::vec(1usize..50, 1..20),
        ) {
            let mut stream = accepted(Version::new(3, 0, 117), METAID);
            for (kind, payload) in packets {
                stream.extend(frame::encode(kind, |out| out.extend(payload)));
            }
            let mut link = Link::new(Instant(1), config(), Identity::default(), Facts::default());
            let (mut buffer, mut rest) = (Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                buffer.extend_from_slice(now);
                rest = later;
                let taken = link.handle_bytes(Instant(2), &buffer);
                buffer.drain(..taken);
                if let Some(Event::Accepted { .. }) = link.poll_event() {
                    link.handle_inventory(Instant(2), Ok(vec![entry(1)]));
                }
            }
        }
    }
}
