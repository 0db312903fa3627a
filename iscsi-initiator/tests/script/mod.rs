//! A target of ours on a real socket that does what a script says: it sees every request and the
//! right answer to it, and may delay, reorder, cut, damage or drop that, answer with any field, or
//! split the stream at any byte. Its disk has a volatile cache that a power cut empties, reorders or
//! tears. Without a script it is plain: many requests by one read, their answers in one write, so
//! that it is not what limits a bench.
//!
//! It reads and writes bytes at offsets and shares no header type with the initiator. What the
//! initiator must never do (a wrong digest, padding, data against the negotiated limits) panics in
//! the connection's thread, and with it the test that owns the target.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub(crate) mod disk;
pub(crate) mod scsi;
pub(crate) mod wire;

use disk::{Disk, PowerCut, BLOCK_BYTES};
use scsi::{execute, extent, Ended, Reservations};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use wire::{seal, split, u32_at, Digests, Pdu, Request};

/// What the target offers and demands.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) disk_bytes: usize,
    pub(crate) write_cache: bool,
    /// Grants digests that are asked for.
    pub(crate) digests: bool,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) max_recv_data_segment: usize,
    pub(crate) max_burst: usize,
    pub(crate) first_burst: usize,
    /// Commands beyond ExpCmdSN that are taken.
    pub(crate) window: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            disk_bytes: 8 << 20,
            write_cache: true,
            digests: true,
            initial_r2t: true,
            immediate_data: true,
            max_recv_data_segment: 65_536,
            max_burst: 262_144,
            first_burst: 65_536,
            window: 128,
        }
    }
}

/// How StatSN goes into a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Its own, and the next one is one more.
    Yes,
    /// The next one is shown.
    Shows,
    /// None.
    No,
    /// All three counters stay as the script has written them.
    Kept,
}

/// How a connection goes on after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    No,
    /// FIN.
    Close,
    /// RST.
    Reset,
}

/// The answer to one request, as a script may change it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) pdus: Vec<(Pdu, Counts)>,
    /// Sleep before the first byte.
    pub(crate) delay: Duration,
    /// Write so many bytes at a time, 0 = all.
    pub(crate) piece: usize,
    /// Send no more than so many bytes of it.
    pub(crate) cut: Option<usize>,
    /// Bytes of it to be changed: where, and by which bits.
    pub(crate) damage: Vec<(usize, u8)>,
    pub(crate) end: End,
}

type Script = Box<dyn FnMut(&Request<'_>, &mut Reply) + Send>;

/// A nexus and the sending side of its connection.
type Session = (Vec<u8>, Arc<Mutex<Out>>);

struct Shared {
    settings: Settings,
    disk: Mutex<Disk>,
    reservations: Mutex<Reservations>,
    script: Mutex<Option<Script>>,
    is_scripted: AtomicBool,
    is_over: AtomicBool,
    conns: Mutex<Vec<Session>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    logins: Mutex<Vec<Vec<u8>>>,
}

/// Not poisoned by a test that failed while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running target. Dropping it ends its connections and fails the test if one of them saw the
/// initiator break a rule.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Target {
    pub(crate) fn start(settings: Settings) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            disk: Mutex::new(Disk::new(settings.disk_bytes, settings.write_cache)),
            settings,
            reservations: Mutex::default(),
            script: Mutex::default(),
            is_scripted: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            conns: Mutex::default(),
            threads: Mutex::default(),
            logins: Mutex::default(),
        });
        let of_thread = shared.clone();
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = of_thread.clone();
                let thread = std::thread::spawn(move || Conn::new(stream, shared).run());
                lock(&of_thread.threads).push(thread);
            }
        });
        Target {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Every request and its right reply pass through `script` from now on.
    pub(crate) fn script(&self, script: impl FnMut(&Request<'_>, &mut Reply) + Send + 'static) {
        *lock(&self.shared.script) = Some(Box::new(script));
        self.shared.is_scripted.store(true, Ordering::Relaxed);
    }

    /// Plain again.
    pub(crate) fn unscript(&self) {
        self.shared.is_scripted.store(false, Ordering::Relaxed);
        *lock(&self.shared.script) = None;
    }

    /// Sends a PDU that nobody asked for on every connection in full feature phase.
    pub(crate) fn inject(&self, pdu: &Pdu, counts: Counts) {
        for (_, out) in lock(&self.shared.conns).iter() {
            let mut out = lock(out);
            let mut bytes = Vec::new();
            out.stamp(&mut pdu.clone(), counts, &mut bytes);
            let _ = out.stream.write_all(&bytes);
        }
    }

    /// Commands taken beyond ExpCmdSN from now on; 0 closes the window.
    pub(crate) fn set_window(&self, window: u32) {
        for (_, out) in lock(&self.shared.conns).iter() {
            lock(out).window = window;
        }
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.shared.disk)
    }

    /// Power is lost: connections are reset and the cache is what `how` leaves of it.
    pub(crate) fn power_cut(&self, how: PowerCut) {
        let conns = std::mem::take(&mut *lock(&self.shared.conns));
        // Nothing is answered any more, and then nothing written.
        let mut disk = self.disk();
        for (_, out) in &conns {
            reset(&lock(out).stream);
        }
        disk.power_cut(how);
    }

    /// Text of the first request of every login so far.
    pub(crate) fn logins(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.logins).clone()
    }

    /// Connections in full feature phase.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.shared.conns).len()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (_, out) in lock(&self.shared.conns).iter() {
            let _ = lock(out).stream.shutdown(Shutdown::Both);
        }
        for thread in std::mem::take(&mut *lock(&self.shared.threads)) {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("the initiator broke a rule; see above");
            }
        }
    }
}

/// The sending side of a connection; others may inject.
struct Out {
    stream: TcpStream,
    digests: Digests,
    stat_sn: u32,
    exp_cmd_sn: u32,
    window: u32,
}

impl Out {
    fn counters(&mut self, header: &mut [u8], counts: Counts) {
        if counts == Counts::Kept {
            return;
        }
        if counts != Counts::No {
            header[24..28].copy_from_slice(&self.stat_sn.to_be_bytes());
        }
        if counts == Counts::Yes {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        let max = self.exp_cmd_sn.wrapping_add(self.window).wrapping_sub(1);
        header[28..32].copy_from_slice(&self.exp_cmd_sn.to_be_bytes());
        header[32..36].copy_from_slice(&max.to_be_bytes());
    }

    fn stamp(&mut self, pdu: &mut Pdu, counts: Counts, bytes: &mut Vec<u8>) {
        self.counters(&mut pdu.header, counts);
        pdu.encode(self.digests, bytes);
    }
}

fn reset(stream: &TcpStream) {
    // A connection with unread data answers a close by RST; SO_LINGER makes it sure.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Both);
}

/// A write whose data are still coming.
struct Writing {
    header: [u8; 48],
    data: Vec<u8>,
    received: usize,
    /// Unsolicited data are coming.
    unsolicited: bool,
    r2t_sn: u32,
    data_sn: u32,
    /// End of what was asked for.
    asked: usize,
}

struct Conn {
    shared: Arc<Shared>,
    stream: TcpStream,
    out: Arc<Mutex<Out>>,
    nexus: Vec<u8>,
    logged_in: bool,
    /// What the initiator takes in one data segment.
    segment: usize,
    initial_r2t: bool,
    immediate_data: bool,
    max_burst: usize,
    first_burst: usize,
    granted: Digests,
    login_text: Vec<u8>,
    writes: HashMap<u32, Writing>,
    reply: Vec<u8>,
}

impl Conn {
    fn new(stream: TcpStream, shared: Arc<Shared>) -> Conn {
        stream.set_nodelay(true).expect("a socket");
        let out = Out {
            stream: stream.try_clone().expect("a descriptor"),
            digests: Digests::default(),
            stat_sn: 1000,
            exp_cmd_sn: 0,
            window: shared.settings.window,
        };
        Conn {
            stream,
            out: Arc::new(Mutex::new(out)),
            nexus: Vec::new(),
            logged_in: false,
            segment: 8192,
            initial_r2t: true,
            immediate_data: true,
            max_burst: shared.settings.max_burst,
            first_burst: shared.settings.first_burst,
            granted: Digests::default(),
            login_text: Vec::new(),
            writes: HashMap::new(),
            reply: Vec::new(),
            shared,
        }
    }

    fn run(mut self) {
        let mut bytes = vec![0; 2 << 20];
        let mut have = 0;
        loop {
            let got = match self.stream.read(&mut bytes[have..]) {
                Ok(0) | Err(_) => break,
                Ok(got) => got,
            };
            have += got;
            let mut at = 0;
            loop {
                let digests = lock(&self.out).digests;
                let Some((request, len)) = split(&bytes[at..have], digests) else {
                    break;
                };
                if !self.serve(&request) {
                    return self.leave();
                }
                at += len;
            }
            if !self.send() {
                break;
            }
            bytes.copy_within(at..have, 0);
            have -= at;
            if have == bytes.len() {
                bytes.resize(2 * have, 0);
            }
        }
        self.leave();
    }

    fn leave(&self) {
        let mut conns = lock(&self.shared.conns);
        conns.retain(|(_, out)| !Arc::ptr_eq(out, &self.out));
    }

    /// Sends what has gathered.
    fn send(&mut self) -> bool {
        let done = self.stream.write_all(&self.reply).is_ok();
        self.reply.clear();
        done
    }

    /// `false` if the connection is over.
    fn serve(&mut self, request: &Request<'_>) -> bool {
        let is_scripted = self.shared.is_scripted.load(Ordering::Relaxed);
        self.count(request);
        let is_read = request.opcode() == 0x01 && matches!(request.cdb()[0], 0x28 | 0x88);
        if is_read && !is_scripted && self.logged_in && self.fast_read(request) {
            return true;
        }
        let mut reply = Reply {
            pdus: Vec::new(),
            delay: Duration::ZERO,
            piece: 0,
            cut: None,
            damage: Vec::new(),
            end: End::No,
        };
        self.answer(request, &mut reply);
        if is_scripted {
            if let Some(script) = lock(&self.shared.script).as_mut() {
                script(request, &mut reply);
            }
        }
        let is_login = request.opcode() == 0x03;
        let alive = self.deliver(reply);
        if is_login && self.logged_in {
            // The final response has none, everything after it has.
            lock(&self.out).digests = self.granted;
        }
        alive
    }

    /// CmdSN: in order, none left out.
    fn count(&mut self, request: &Request<'_>) {
        let mut out = lock(&self.out);
        let cmd_sn = request.u32(24);
        match request.opcode() {
            0x03 => out.exp_cmd_sn = cmd_sn,
            0x05 | 0x10 => {}
            _ if request.is_immediate() => assert_eq!(cmd_sn, out.exp_cmd_sn, "immediate CmdSN"),
            _ => {
                assert_eq!(cmd_sn, out.exp_cmd_sn, "CmdSN in order");
                out.exp_cmd_sn = cmd_sn.wrapping_add(1);
            }
        }
    }

    fn deliver(&mut self, mut reply: Reply) -> bool {
        let before = self.reply.len();
        {
            let mut out = lock(&self.out);
            for (pdu, counts) in &mut reply.pdus {
                out.stamp(pdu, *counts, &mut self.reply);
            }
        }
        for (at, bits) in &reply.damage {
            self.reply[before + at] ^= bits;
        }
        if let Some(cut) = reply.cut {
            self.reply.truncate(before + cut);
        }
        if reply.delay > Duration::ZERO {
            std::thread::sleep(reply.delay);
        }
        if reply.piece > 0 {
            for piece in std::mem::take(&mut self.reply).chunks(reply.piece) {
                if self.stream.write_all(piece).is_err() {
                    return false;
                }
            }
        }
        if reply.end == End::No {
            return true;
        }
        self.send();
        match reply.end {
            End::Reset => reset(&self.stream),
            _ => drop(self.stream.shutdown(Shutdown::Both)),
        }
        false
    }

    /// A READ without a script: straight from the disk into the outgoing bytes.
    fn fast_read(&mut self, request: &Request<'_>) -> bool {
        let (lba, blocks, _) = extent(request.cdb());
        let expected = u64::from(request.u32(20));
        let disk = lock(&self.shared.disk);
        if blocks * BLOCK_BYTES as u64 != expected || !disk.has(lba, blocks) || blocks == 0 {
            return false;
        }
        let mut out = lock(&self.out);
        let digests = out.digests;
        let step = (self.segment / BLOCK_BYTES) as u64;
        let (mut done, mut sn) = (0, 0u32);
        while done < blocks {
            let part = step.min(blocks - done);
            let is_last = done + part == blocks;
            let mut header = [0; 48];
            header[0] = 0x25;
            header[1] = if is_last { 0x81 } else { 0 };
            let len = (part as usize * BLOCK_BYTES) as u32;
            header[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
            header[16..20].copy_from_slice(&request.header[16..20]);
            header[20..24].fill(0xff);
            let counts = if is_last { Counts::Yes } else { Counts::No };
            out.counters(&mut header, counts);
            header[36..40].copy_from_slice(&sn.to_be_bytes());
            let offset = (done as usize * BLOCK_BYTES) as u32;
            header[40..44].copy_from_slice(&offset.to_be_bytes());
            let at = self.reply.len();
            self.reply.extend_from_slice(&header);
            seal(&mut self.reply, at, digests.header);
            let at = self.reply.len();
            disk.read(lba + done, part, &mut self.reply);
            seal(&mut self.reply, at, digests.data);
            done += part;
            sn += 1;
        }
        drop(out);
        drop(disk);
        if self.reply.len() > 1 << 20 {
            self.send();
        }
        true
    }

    fn answer(&mut self, request: &Request<'_>, reply: &mut Reply) {
        if !self.logged_in {
            assert_eq!(request.opcode(), 0x03, "a request before the login");
            return self.log_in(request, reply);
        }
        match request.opcode() {
            0x00 => self.nop(request, reply),
            0x01 => self.command(request, reply),
            0x02 => {
                let mut pdu = Pdu::new(0x22, 0x80);
                pdu.set_u32(16, request.tag());
                reply.pdus.push((pdu, Counts::Yes));
            }
            0x04 => self.text(request, reply),
            0x05 => self.data_out(request, reply),
            0x06 => {
                let mut pdu = Pdu::new(0x26, 0x80);
                pdu.set_u32(16, request.tag());
                reply.pdus.push((pdu, Counts::Yes));
                reply.end = End::Close;
            }
            other => panic!("opcode {other:#x} is none of an initiator"),
        }
    }

    fn nop(&mut self, request: &Request<'_>, reply: &mut Reply) {
        if request.tag() == u32::MAX {
            assert!(request.is_immediate(), "a NOP-Out without tag is immediate");
            return;
        }
        let mut pdu = Pdu::new(0x20, 0x80);
        pdu.set_u32(16, request.tag());
        pdu.set_u32(20, u32::MAX);
        pdu.data = request.data.to_vec();
        reply.pdus.push((pdu, Counts::Yes));
    }

    fn text(&mut self, request: &Request<'_>, reply: &mut Reply) {
        let mut pdu = Pdu::new(0x24, 0x80);
        pdu.set_u32(16, request.tag());
        pdu.set_u32(20, u32::MAX);
        if request.data.starts_with(b"SendTargets=") {
            let address = self.stream.local_addr().expect("connected");
            let list = format!("TargetName=iqn.2024-12.example:t\0TargetAddress={address},1\0");
            pdu.data = list.into_bytes();
        }
        reply.pdus.push((pdu, Counts::Yes));
    }

    fn command(&mut self, request: &Request<'_>, reply: &mut Reply) {
        if request.header[1] & 0x20 == 0 {
            let ended = self.execute(request.header, &[]);
            return self.end(request.header, ended, reply);
        }
        let expected = request.u32(20) as usize;
        let (first, is_final) = (request.data.len(), request.header[1] & 0x80 != 0);
        assert!(first <= self.shared.settings.max_recv_data_segment);
        assert!(first == 0 || self.immediate_data, "immediate data");
        assert!(is_final || !self.initial_r2t, "unsolicited data");
        assert!(first <= self.first_burst.min(expected));
        let mut data = vec![0; expected];
        data[..first].copy_from_slice(request.data);
        let writing = Writing {
            header: *request.header,
            data,
            received: first,
            unsolicited: !is_final,
            r2t_sn: 0,
            data_sn: 0,
            asked: if is_final {
                first
            } else {
                self.first_burst.min(expected)
            },
        };
        self.writes.insert(request.tag(), writing);
        if is_final {
            self.go_on(request.tag(), reply);
        }
    }

    fn data_out(&mut self, request: &Request<'_>, reply: &mut Reply) {
        let tag = request.tag();
        let Some(writing) = self.writes.get_mut(&tag) else {
            return; // Of a task that was ended before its data came.
        };
        assert!(request.data.len() <= self.shared.settings.max_recv_data_segment);
        assert_eq!(request.u32(20) == u32::MAX, writing.unsolicited, "TTT");
        assert_eq!(request.u32(36), writing.data_sn, "DataSN");
        assert_eq!(request.u32(40) as usize, writing.received, "offset");
        let end = writing.received + request.data.len();
        assert!(end <= writing.asked, "more data than asked for");
        writing.data[writing.received..end].copy_from_slice(request.data);
        writing.received = end;
        writing.data_sn += 1;
        let is_final = request.header[1] & 0x80 != 0;
        assert_eq!(is_final, end == writing.asked, "F");
        if is_final {
            writing.unsolicited = false;
            writing.data_sn = 0;
            self.go_on(tag, reply);
        }
    }

    /// Asks for the next burst, or executes.
    fn go_on(&mut self, tag: u32, reply: &mut Reply) {
        let writing = self.writes.get_mut(&tag).expect("under way");
        let left = writing.data.len() - writing.received;
        if left > 0 {
            let len = left.min(self.max_burst);
            writing.asked = writing.received + len;
            let mut r2t = Pdu::new(0x31, 0x80);
            r2t.header[8..16].copy_from_slice(&writing.header[8..16]);
            r2t.set_u32(16, tag);
            r2t.set_u32(20, 0x5000 + writing.r2t_sn);
            r2t.set_u32(36, writing.r2t_sn);
            r2t.set_u32(40, writing.received as u32);
            r2t.set_u32(44, len as u32);
            writing.r2t_sn += 1;
            return reply.pdus.push((r2t, Counts::Shows));
        }
        let writing = self.writes.remove(&tag).expect("under way");
        let ended = self.execute(&writing.header, &writing.data);
        self.end(&writing.header, ended, reply);
    }

    fn execute(&self, header: &[u8; 48], data: &[u8]) -> Ended {
        if header[8..16] != [0, 1, 0, 0, 0, 0, 0, 0] && header[32] != 0xa0 {
            return Ended::check(5, 0x25, 0);
        }
        let mut disk = lock(&self.shared.disk);
        let mut reservations = lock(&self.shared.reservations);
        execute(
            &mut disk,
            &mut reservations,
            &self.nexus,
            &header[32..48],
            data,
        )
    }

    /// Data-In PDUs and the status.
    fn end(&self, header: &[u8; 48], ended: Ended, reply: &mut Reply) {
        let (tag, expected) = (u32_at(header, 16), u32_at(header, 20) as usize);
        let reads = header[1] & 0x40 != 0;
        let whole = ended.data.len();
        let data = &ended.data[..whole.min(if reads { expected } else { 0 })];
        let (bit, residual) = match reads && ended.status == 0 {
            true if whole > expected => (0x04, whole - expected),
            true if whole < expected => (0x02, expected - whole),
            _ => (0, 0),
        };
        let mut sn = 0;
        for part in data.chunks(self.segment) {
            let mut pdu = Pdu::new(0x25, 0);
            pdu.set_u32(16, tag);
            pdu.set_u32(20, u32::MAX);
            pdu.set_u32(36, sn);
            pdu.set_u32(40, sn * self.segment as u32);
            pdu.data = part.to_vec();
            sn += 1;
            reply.pdus.push((pdu, Counts::No));
        }
        if let (Some((last, counts)), 0) = (reply.pdus.last_mut(), ended.status) {
            if last.opcode() == 0x25 {
                last.header[1] = 0x81 | bit;
                last.set_u32(44, residual as u32);
                *counts = Counts::Yes;
                return;
            }
        }
        let mut pdu = Pdu::new(0x21, 0x80 | bit);
        pdu.header[3] = ended.status;
        pdu.set_u32(16, tag);
        pdu.set_u32(36, sn);
        pdu.set_u32(44, residual as u32);
        if !ended.sense.is_empty() {
            pdu.data = (ended.sense.len() as u16).to_be_bytes().to_vec();
            pdu.data.extend(&ended.sense);
        }
        reply.pdus.push((pdu, Counts::Yes));
    }

    fn log_in(&mut self, request: &Request<'_>, reply: &mut Reply) {
        let flags = request.header[1];
        self.login_text.extend_from_slice(request.data);
        let mut pdu = Pdu::new(0x23, flags & 0x8f);
        pdu.header[8..14].copy_from_slice(&request.header[8..14]);
        pdu.set_u32(16, request.tag());
        if flags & 0x40 != 0 {
            return reply.pdus.push((pdu, Counts::Yes));
        }
        let text = String::from_utf8(std::mem::take(&mut self.login_text)).expect("UTF-8");
        let pairs: Vec<(&str, &str)> = text
            .split_terminator('\0')
            .map(|pair| pair.split_once('=').expect("a pair"))
            .collect();
        let mut answer = String::new();
        if self.nexus.is_empty() {
            lock(&self.shared.logins).push(text.clone().into_bytes());
            let name = pairs.iter().find(|(key, _)| *key == "InitiatorName");
            self.nexus = name.expect("InitiatorName").1.as_bytes().to_vec();
            self.nexus.extend_from_slice(&request.header[8..14]);
            answer.push_str("TargetPortalGroupTag=1\0");
        }
        for (key, value) in pairs {
            self.negotiate(key, value, &mut answer);
        }
        pdu.data = answer.into_bytes();
        if flags & 0x83 == 0x83 {
            pdu.header[14..16].copy_from_slice(&[0, 7]);
            self.logged_in = true;
            self.reinstate();
        }
        reply.pdus.push((pdu, Counts::Yes));
    }

    /// An earlier session of the same nexus ends.
    fn reinstate(&self) {
        let mut conns = lock(&self.shared.conns);
        conns.retain(|(nexus, out)| {
            let same = *nexus == self.nexus;
            if same {
                let _ = lock(out).stream.shutdown(Shutdown::Both);
            }
            !same
        });
        conns.push((self.nexus.clone(), self.out.clone()));
    }

    fn negotiate(&mut self, key: &str, value: &str, answer: &mut String) {
        let settings = &self.shared.settings;
        let number = value.parse::<usize>().unwrap_or(0);
        let yes = value == "Yes";
        let name = |on: bool| if on { "Yes" } else { "No" };
        let digest = value.split(',').any(|one| one == "CRC32C") && settings.digests;
        let digest_name = if digest { "CRC32C" } else { "None" };
        let reply = match key {
            "AuthMethod" => "None".to_owned(),
            "HeaderDigest" => {
                self.granted.header = digest;
                digest_name.to_owned()
            }
            "DataDigest" => {
                self.granted.data = digest;
                digest_name.to_owned()
            }
            "InitialR2T" => {
                self.initial_r2t = yes || settings.initial_r2t;
                name(self.initial_r2t).to_owned()
            }
            "ImmediateData" => {
                self.immediate_data = yes && settings.immediate_data;
                name(self.immediate_data).to_owned()
            }
            "MaxRecvDataSegmentLength" => {
                self.segment = number;
                settings.max_recv_data_segment.to_string()
            }
            "MaxBurstLength" => {
                self.max_burst = number.min(settings.max_burst);
                self.max_burst.to_string()
            }
            "FirstBurstLength" => {
                self.first_burst = number.min(settings.first_burst);
                self.first_burst.to_string()
            }
            "MaxConnections" | "MaxOutstandingR2T" => "1".to_owned(),
            "DefaultTime2Wait" | "DefaultTime2Retain" | "ErrorRecoveryLevel" => "0".to_owned(),
            "DataPDUInOrder" | "DataSequenceInOrder" => "Yes".to_owned(),
            "TaskReporting" => "RFC3720".to_owned(),
            _ => return,
        };
        answer.push_str(&format!("{key}={reply}\0"));
    }
}
