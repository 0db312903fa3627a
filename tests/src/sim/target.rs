//! A simulated iSCSI target for real sessions of `iscsi-initiator`: RFC 7143 as far as those go,
//! written apart from the initiator's own encoders.
//!
//! Where the standard leaves room it behaves as was measured on tgt 1.0.85, which most rules about
//! fences rest upon:
//! - A login with the ISID of an older session ends that one only if it starts at security
//!   negotiation. A login that starts at operational negotiation leaves the old session alive and
//!   able to write.
//! - What a session had not handed to the back end dies with it; the rest takes effect.
//! - LOGICAL UNIT RESET: see [`Unit::reset`]; every session of the unit gets a unit attention.

use super::net::{Listener, ServerLink};
use super::unit::{Reply, Unit, RESET_OCCURRED};
use blockdev::sim::Chance;
use blockdev::Rt;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

const BHS: usize = 48;
const NO_TAG: u32 = u32::MAX;
/// Commands a session may have under way.
const WINDOW: u32 = 64;

/// What the target insists upon when keys are negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// Its MaxRecvDataSegmentLength.
    pub segment_bytes: u32,
    /// Most it lets FirstBurstLength be.
    pub first_burst: u32,
    /// Most it lets MaxBurstLength be.
    pub max_burst: u32,
}

impl Manners {
    /// Drawn from what targets in the field do.
    pub fn draw(chance: &Chance) -> Manners {
        let pick = |from: &[u32]| from[chance.below(from.len() as u64) as usize];
        Manners {
            initial_r2t: chance.coin(),
            immediate_data: chance.coin(),
            segment_bytes: pick(&[8192, 65_536, 262_144]),
            first_burst: pick(&[4096, 65_536, 262_144]),
            max_burst: pick(&[16_384, 262_144, 1_048_576]),
        }
    }
}

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Target {
    inner: Rc<Inner>,
}

struct Inner {
    rt: Rt,
    unit: Unit,
    manners: Manners,
    sessions: RefCell<Vec<Rc<Session>>>,
    is_down: Cell<bool>,
    itself: Weak<Inner>,
}

struct Session {
    link: ServerLink,
    name: RefCell<String>,
    isid: Cell<[u8; 6]>,
    /// Closed: nothing of it is answered any more.
    is_dead: Cell<bool>,
    stat_sn: Cell<u32>,
    exp_cmd_sn: Cell<u32>,
    attention: Cell<bool>,
    keys: Keys,
    writes: RefCell<BTreeMap<u32, Assembly>>,
}

/// What was negotiated.
struct Keys {
    /// The initiator's MaxRecvDataSegmentLength.
    segment_bytes: Cell<u32>,
    initial_r2t: Cell<bool>,
    first_burst: Cell<u32>,
    max_burst: Cell<u32>,
}

/// A write whose data are still coming.
struct Assembly {
    lun: u64,
    cdb: [u8; 16],
    data: Vec<u8>,
    got: usize,
    /// End of what was asked for, or may come unasked.
    until: usize,
    r2t_sn: u32,
}

impl Target {
    /// A target with one unit (LUN 1).
    pub fn new(rt: Rt, unit: Unit, manners: Manners) -> Target {
        Target {
            inner: Rc::new_cyclic(|itself| Inner {
                rt,
                unit,
                manners,
                sessions: RefCell::default(),
                is_down: Cell::new(false),
                itself: itself.clone(),
            }),
        }
    }

    /// Its unit.
    pub fn unit(&self) -> &Unit {
        &self.inner.unit
    }

    /// What the network calls.
    pub fn listener(&self) -> Weak<dyn Listener> {
        let listener: Weak<dyn Listener> = self.inner.itself.clone();
        listener
    }

    /// Sessions alive.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.borrow().len()
    }

    /// The process is killed: connections are reset; what is in the back end takes effect.
    pub fn kill(&self) {
        self.forget(ServerLink::reset);
    }

    /// The node loses power: nothing is said to anybody.
    pub fn power_off(&self) {
        self.forget(|_| {});
    }

    /// It serves again.
    pub fn start(&self) {
        self.inner.is_down.set(false);
    }

    fn forget(&self, end: impl Fn(&ServerLink)) {
        self.inner.is_down.set(true);
        let sessions = std::mem::take(&mut *self.inner.sessions.borrow_mut());
        for session in sessions {
            session.is_dead.set(true);
            end(&session.link);
        }
    }
}

impl Listener for Inner {
    fn accept(&self, link: ServerLink) {
        if self.is_down.get() {
            link.reset();
            return;
        }
        let Some(target) = self.itself.upgrade() else {
            return;
        };
        let session = Rc::new(Session {
            link,
            name: RefCell::default(),
            isid: Cell::new([0; 6]),
            is_dead: Cell::new(false),
            stat_sn: Cell::new(1),
            exp_cmd_sn: Cell::new(0),
            attention: Cell::new(true),
            keys: Keys {
                segment_bytes: Cell::new(8192),
                initial_r2t: Cell::new(true),
                first_burst: Cell::new(65_536),
                max_burst: Cell::new(262_144),
            },
            writes: RefCell::default(),
        });
        self.rt.spawn(async move {
            if target.login(&session).await {
                target.sessions.borrow_mut().push(session.clone());
                target.serve(&session).await;
            }
            target.end(&session);
        });
    }
}

/// A PDU as it came.
struct Pdu {
    head: [u8; BHS],
    data: Vec<u8>,
}

impl Pdu {
    fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([
            self.head[at],
            self.head[at + 1],
            self.head[at + 2],
            self.head[at + 3],
        ])
    }

    fn tag(&self) -> u32 {
        self.word(16)
    }

    /// The flat form alone: one byte.
    fn lun(&self) -> u64 {
        u64::from(self.head[9])
    }
}

impl Session {
    async fn receive(&self) -> Option<Pdu> {
        let mut head = [0; BHS];
        if !self.link.read(&mut head).await {
            return None;
        }
        let extra = usize::from(head[4]) * 4;
        let len = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let mut data = vec![0; extra + len.next_multiple_of(4)];
        if !self.link.read(&mut data).await {
            return None;
        }
        data.drain(..extra);
        data.truncate(len);
        Some(Pdu { head, data })
    }

    /// Sends a PDU; fills in lengths and the sequence numbers at 28 and 32.
    fn send(&self, mut head: [u8; BHS], data: &[u8]) {
        if self.is_dead.get() {
            return;
        }
        let len = (data.len() as u32).to_be_bytes();
        head[5..8].copy_from_slice(&len[1..]);
        let next = self.exp_cmd_sn.get();
        head[28..32].copy_from_slice(&next.to_be_bytes());
        head[32..36].copy_from_slice(&next.wrapping_add(WINDOW - 1).to_be_bytes());
        let mut bytes = head.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(BHS + data.len().next_multiple_of(4), 0);
        self.link.write(&bytes);
    }

    /// A header that carries status: StatSN is counted.
    fn status_head(&self, opcode: u8, tag: u32) -> [u8; BHS] {
        let mut head = [0; BHS];
        head[0] = opcode;
        head[1] = 0x80;
        head[16..20].copy_from_slice(&tag.to_be_bytes());
        let sn = self.stat_sn.get();
        self.stat_sn.set(sn.wrapping_add(1));
        head[24..28].copy_from_slice(&sn.to_be_bytes());
        head
    }

    /// Data-In and the response of a command.
    fn answer(&self, pdu_tag: u32, expected: usize, reply: Reply) {
        let (status, mut data, sense) = match reply {
            Reply::Good(data) => (0x00, data, Vec::new()),
            Reply::Check(sense, about) => (0x02, Vec::new(), sense_data(sense, about)),
            Reply::Busy => (0x08, Vec::new(), Vec::new()),
            Reply::Silence => return,
        };
        data.truncate(expected);
        let step = self.keys.segment_bytes.get() as usize;
        for (sn, from) in (0..data.len()).step_by(step).enumerate() {
            let part = &data[from..data.len().min(from + step)];
            let mut head = [0; BHS];
            head[0] = 0x25;
            head[1] = if from + part.len() == data.len() {
                0x80
            } else {
                0
            };
            head[16..20].copy_from_slice(&pdu_tag.to_be_bytes());
            head[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
            head[36..40].copy_from_slice(&(sn as u32).to_be_bytes());
            head[40..44].copy_from_slice(&(from as u32).to_be_bytes());
            self.send(head, part);
        }
        let mut head = self.status_head(0x21, pdu_tag);
        head[3] = status;
        let data_pdus = data.len().div_ceil(step) as u32;
        head[36..40].copy_from_slice(&data_pdus.to_be_bytes());
        let residual = expected - data.len();
        if residual > 0 && status == 0 && !data.is_empty() {
            head[1] |= 0x02;
            head[44..48].copy_from_slice(&(residual as u32).to_be_bytes());
        }
        self.send(head, &sense);
    }
}

impl Inner {
    /// `true` once in full feature phase.
    async fn login(&self, session: &Rc<Session>) -> bool {
        let mut is_first = true;
        let mut from_security = false;
        loop {
            let Some(pdu) = session.receive().await else {
                return false;
            };
            if pdu.opcode() != 0x03 || self.is_down.get() {
                return false;
            }
            let flags = pdu.head[1];
            let (transit, current, next) = (flags & 0x80 != 0, flags >> 2 & 3, flags & 3);
            let text = String::from_utf8_lossy(&pdu.data).into_owned();
            let mut answer = String::new();
            if is_first {
                is_first = false;
                from_security = current == 0;
                let mut isid = [0; 6];
                isid.copy_from_slice(&pdu.head[8..14]);
                session.isid.set(isid);
                session.exp_cmd_sn.set(pdu.word(24));
                let name = text
                    .split('\0')
                    .find_map(|p| p.strip_prefix("InitiatorName="));
                *session.name.borrow_mut() = name.unwrap_or_default().to_owned();
                answer.push_str("TargetPortalGroupTag=1\0");
            }
            for pair in text.split('\0').filter_map(|pair| pair.split_once('=')) {
                if let Some(value) = self.negotiate(session, pair.0, pair.1) {
                    answer.push_str(&format!("{}={value}\0", pair.0));
                }
            }
            let is_done = transit && next == 3;
            if is_done && from_security {
                self.reinstate(session);
            }
            let mut head = session.status_head(0x23, pdu.tag());
            head[1] = flags & if transit { 0x8f } else { 0x0c };
            head[8..14].copy_from_slice(&session.isid.get());
            head[15] = u8::from(is_done);
            session.send(head, answer.as_bytes());
            if is_done {
                return true;
            }
        }
    }

    /// Ends older sessions of the same initiator port.
    fn reinstate(&self, session: &Rc<Session>) {
        let older: Vec<Rc<Session>> = {
            let sessions = self.sessions.borrow();
            let same = sessions.iter().filter(|s| {
                s.isid.get() == session.isid.get() && *s.name.borrow() == *session.name.borrow()
            });
            same.cloned().collect()
        };
        for old in older {
            self.end(&old);
        }
    }

    fn end(&self, session: &Rc<Session>) {
        session.is_dead.set(true);
        session.writes.borrow_mut().clear();
        session.link.close();
        self.sessions
            .borrow_mut()
            .retain(|s| !Rc::ptr_eq(s, session));
    }

    /// The value to answer with, and what results.
    fn negotiate(&self, session: &Session, key: &str, value: &str) -> Option<String> {
        let keys = &session.keys;
        let offered: u32 = value.parse().unwrap_or(0);
        let yes = |on: bool| if on { "Yes" } else { "No" }.to_owned();
        let least = |cell: &Cell<u32>, most: u32| {
            cell.set(offered.min(most));
            cell.get().to_string()
        };
        Some(match key {
            "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias" => return None,
            "AuthMethod" | "HeaderDigest" | "DataDigest" => "None".to_owned(),
            "InitialR2T" => {
                keys.initial_r2t
                    .set(value == "Yes" || self.manners.initial_r2t);
                yes(keys.initial_r2t.get())
            }
            "ImmediateData" => yes(value == "Yes" && self.manners.immediate_data),
            "MaxRecvDataSegmentLength" => {
                keys.segment_bytes.set(offered);
                self.manners.segment_bytes.to_string()
            }
            "FirstBurstLength" => least(&keys.first_burst, self.manners.first_burst),
            "MaxBurstLength" => least(&keys.max_burst, self.manners.max_burst),
            "DataPDUInOrder" | "DataSequenceInOrder" => "Yes".to_owned(),
            "ErrorRecoveryLevel" => "0".to_owned(),
            "MaxConnections" | "MaxOutstandingR2T" => "1".to_owned(),
            "DefaultTime2Wait" | "DefaultTime2Retain" => value.to_owned(),
            _ => "NotUnderstood".to_owned(),
        })
    }

    async fn serve(self: &Rc<Self>, session: &Rc<Session>) {
        while let Some(pdu) = session.receive().await {
            if session.is_dead.get() {
                return;
            }
            let is_immediate = pdu.head[0] & 0x40 != 0;
            if pdu.opcode() != 0x05 && !is_immediate {
                session.exp_cmd_sn.set(pdu.word(24).wrapping_add(1));
            }
            match pdu.opcode() {
                0x00 => self.ping(session, &pdu),
                0x01 => self.command(session, &pdu),
                0x02 => self.manage(session, &pdu),
                0x05 => self.data_out(session, &pdu),
                0x06 => {
                    let head = session.status_head(0x26, pdu.tag());
                    session.send(head, &[]);
                    return;
                }
                _ => return,
            }
        }
    }

    fn ping(&self, session: &Session, pdu: &Pdu) {
        if pdu.tag() == NO_TAG {
            return;
        }
        let mut head = session.status_head(0x20, pdu.tag());
        head[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        session.send(head, &pdu.data);
    }

    fn command(self: &Rc<Self>, session: &Rc<Session>, pdu: &Pdu) {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&pdu.head[32..48]);
        let expected = pdu.word(20) as usize;
        let (is_final, writes) = (pdu.head[1] & 0x80 != 0, pdu.head[1] & 0x20 != 0);
        let reports_attention = !matches!(cdb[0], 0x12 | 0xa0);
        if reports_attention && session.attention.replace(false) {
            // Data that come unasked after this are for no command and are thrown away.
            session.answer(pdu.tag(), 0, Reply::Check(RESET_OCCURRED, None));
            return;
        }
        if !writes {
            let ordered = pdu.head[1] & 7 == 2;
            self.execute(session, pdu.tag(), expected, pdu.lun(), cdb, &[], ordered);
            return;
        }
        let first_burst = session.keys.first_burst.get() as usize;
        let unasked = if is_final || session.keys.initial_r2t.get() {
            pdu.data.len()
        } else {
            expected.min(first_burst)
        };
        let mut assembly = Assembly {
            lun: pdu.lun(),
            cdb,
            data: vec![0; expected],
            got: 0,
            until: unasked,
            r2t_sn: 0,
        };
        let now = pdu.data.len().min(expected);
        assembly.data[..now].copy_from_slice(&pdu.data[..now]);
        assembly.got = now;
        session.writes.borrow_mut().insert(pdu.tag(), assembly);
        self.go_on(session, pdu.tag());
    }

    fn data_out(self: &Rc<Self>, session: &Rc<Session>, pdu: &Pdu) {
        {
            let mut writes = session.writes.borrow_mut();
            let Some(write) = writes.get_mut(&pdu.tag()) else {
                return;
            };
            let offset = pdu.word(40) as usize;
            let Some(to) = write.data.get_mut(offset..offset + pdu.data.len()) else {
                return;
            };
            to.copy_from_slice(&pdu.data);
            write.got += pdu.data.len();
            if pdu.head[1] & 0x80 != 0 {
                // The burst ends here, whatever was expected of it.
                write.until = write.got;
            }
        }
        self.go_on(session, pdu.tag());
    }

    /// Asks for more data of a write, or executes it.
    fn go_on(self: &Rc<Self>, session: &Rc<Session>, tag: u32) {
        let mut writes = session.writes.borrow_mut();
        let Some(write) = writes.get_mut(&tag) else {
            return;
        };
        if write.got < write.until {
            return;
        }
        let left = write.data.len() - write.got;
        if left > 0 {
            let burst = left.min(session.keys.max_burst.get() as usize);
            write.until = write.got + burst;
            let mut head = [0; BHS];
            head[0] = 0x31;
            head[1] = 0x80;
            head[9] = write.lun as u8;
            head[16..20].copy_from_slice(&tag.to_be_bytes());
            head[20..24].copy_from_slice(&(tag ^ 0x5555).to_be_bytes());
            head[24..28].copy_from_slice(&session.stat_sn.get().to_be_bytes());
            head[36..40].copy_from_slice(&write.r2t_sn.to_be_bytes());
            head[40..44].copy_from_slice(&(write.got as u32).to_be_bytes());
            head[44..48].copy_from_slice(&(burst as u32).to_be_bytes());
            write.r2t_sn += 1;
            drop(writes);
            session.send(head, &[]);
            return;
        }
        let write = writes.remove(&tag).expect("just seen");
        drop(writes);
        self.execute(session, tag, 0, write.lun, write.cdb, &write.data, false);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one command")]
    fn execute(
        self: &Rc<Self>,
        session: &Rc<Session>,
        tag: u32,
        expected: usize,
        lun: u64,
        cdb: [u8; 16],
        data: &[u8],
        ordered: bool,
    ) {
        let unit = self.unit.clone();
        let execution = unit.execute(lun, &cdb, data);
        let session = session.clone();
        self.rt.spawn(async move {
            if ordered {
                unit.settled().await;
            }
            let reply = unit.reply(execution).await;
            session.answer(tag, expected, reply);
        });
    }

    /// Task management: LOGICAL UNIT RESET and ABORT TASK; both wait for the back end.
    fn manage(self: &Rc<Self>, session: &Rc<Session>, pdu: &Pdu) {
        let function = pdu.head[1] & 0x7f;
        let (target, session, tag) = (self.clone(), session.clone(), pdu.tag());
        self.rt.spawn(async move {
            let response = match function {
                5 => {
                    if !target.unit.reset().await {
                        return;
                    }
                    for other in target.sessions.borrow().iter() {
                        other.attention.set(true);
                    }
                    0
                }
                1 => {
                    target.unit.settled().await;
                    0
                }
                _ => 5, // not supported
            };
            let mut head = session.status_head(0x22, tag);
            head[2] = response;
            session.send(head, &[]);
        });
    }
}

/// Fixed format, with the length in front as a response carries it.
fn sense_data(sense: (u8, u8, u8), about: Option<u64>) -> Vec<u8> {
    let mut out = vec![0, 18, 0x70, 0, sense.0, 0, 0, 0, 0, 10];
    if let Some(about) = about {
        out[2] |= 0x80;
        out[5..9].copy_from_slice(&(about as u32).to_be_bytes());
    }
    out.resize(20, 0);
    out[14] = sense.1;
    out[15] = sense.2;
    out
}
