//! A user-space iSCSI initiator: RFC 7143, one connection a session, ErrorRecoveryLevel 0.
//!
//! For those who must know what became of a write: every command ends exactly once, and a lost one
//! says whether it can have been executed. Sessions keep a fixed identity, so that a login fences
//! the session before it. Nothing here retries, hedges or queues beyond a session; that is the
//! business of a multipath layer above, which drives a unit through [`blockdev::path`].
//!
//! Layers, each usable without those above it:
//! - [`pdu`], [`text`], [`serial`], [`digest`], [`scsi`]: bytes to values and back.
//! - [`login`], [`session`]: state machines without sockets or clocks. Bytes go in and out, time is
//!   an argument.
//! - [`net`], [`tcp`], [`client`]: a link, and the thin driver that runs a session on it. The clock
//!   is [`blockdev::Rt`], so the same code runs under a virtual one.
//! - [`establish`], [`identify`], [`path`], [`commands`], [`discover`], [`mod@bench`]: logins with
//!   redirects, what the unit is, the path that `mpath` uses, other commands with typed answers,
//!   SendTargets, the load generator.
//!
//! ```no_run
//! use blockdev::path::{Command, LoginAs, PathSession};
//! use blockdev::{IoCtx, Pool, Sector};
//! use iscsi_initiator::establish::Initiator;
//! use iscsi_initiator::isid::Role;
//! use iscsi_initiator::path::{IscsiPort, PortConfig};
//! use iscsi_initiator::tcp::TcpNet;
//! use std::{rc::Rc, time::Duration};
//!
//! # async fn first_sector(rt: blockdev::Rt) -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::new(64 << 20);
//! let name = "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator";
//! let initiator = Initiator::new(rt.clone(), Rc::new(TcpNet), pool, name);
//! let unit = PortConfig {
//!     portal: "10.3.1.1:3260".parse()?,
//!     source: None,
//!     target: "iqn.2024-12.tp2.b3:data-chunk1".to_owned(),
//!     lun: 1,
//!     role: Role::Tool,
//!     shard: 0,
//! };
//! let port = IscsiPort::new(initiator, unit).ok_or("no flat LUN")?;
//! let session = port.open(LoginAs::Own, rt.now() + Duration::from_secs(5)).await?;
//! println!("{:?}", session.identity());
//! let read = Command::Read { at: Sector(0), sectors: 8 };
//! let (_ticket, done) = session.submit(read, IoCtx::foreground());
//! let data = done.await?.into_data();
//! assert!(data.is_page_aligned());
//! session.logout(rt.now() + Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The state machines need no runtime at all; whoever has bytes and a clock can run them:
//!
//! ```
//! use blockdev::path::Isid;
//! use blockdev::{Instant, Pool};
//! use iscsi_initiator::login::{keys::Offer, LoginConfig};
//! use iscsi_initiator::session::{Event, Session, SessionConfig};
//!
//! let login = LoginConfig {
//!     initiator_name: "iqn.2024-12.example:i".to_owned(),
//!     target_name: Some("iqn.2024-12.example:t".to_owned()),
//!     isid: Isid([0x80, 1, 2, 3, 0, 1]),
//!     chap: None,
//!     offer: Offer::default(),
//!     entropy: [1, 2, 3, 4],
//!     first_cmd_sn: 1,
//! };
//! let mut session = Session::new(SessionConfig::new(login), Pool::new(1 << 20), Instant(0));
//! let sent: Vec<u8> = session.transmit().iter().flat_map(|part| part.to_vec()).collect();
//! session.transmitted(Instant(0), sent.len());
//! assert_eq!(sent[0], 0x43, "a login request, immediate");
//! assert!(sent[48..].starts_with(b"InitiatorName=iqn.2024-12.example:i\0"));
//!
//! // Whatever is no login response ends it.
//! session.handle_bytes(Instant(1), &[0x20; 48]);
//! let last = std::iter::from_fn(|| session.poll_event()).last();
//! assert!(matches!(last, Some(Event::Closed(_))));
//! ```
//!
//! # RFC 7143, feature by feature
//!
//! *Refused* says how: what is negotiated away, what ends a login, what closes a session.
//!
//! | Feature | |
//! |---|---|
//! | Login stages, C bit, T = 0 answers, status classes (§6.3, §11.12, §11.13) | supported; every login begins at SecurityNegotiation, so that an earlier session of the same name and ISID is reinstated also by targets that look for it only there |
//! | Redirects, temporary and permanent (§11.13.5) | followed to a numeric address, at most three; permanent ones are warned of |
//! | Operational keys (§13) | all negotiated, each answer checked against its result function; what the target proposes is answered: unknown keys with NotUnderstood, keys of §13 out of place with Reject. InitiatorAlias and X#NodeArchitecture, which decide nothing, are not sent |
//! | AuthMethod (§12) | None, CHAP one-way and mutual: MD5, SHA-1, SHA-256, SHA3-256; secrets of 1–255 bytes, short ones warned of; reflections and equal secrets refused. Kerberos and SRP are not offered |
//! | HeaderDigest, DataDigest (§13.1) | CRC32C; one that is demanded and refused fails the login; a mismatch closes the session |
//! | CmdSN window, also closed, immediate requests, StatSN, DataSN, R2TSN, ExpDataSN (§4.2.2, §7.9) | supported and checked; a gap closes the session |
//! | Immediate and unsolicited data, R2T, MaxOutstandingR2T > 1 (§4.2.5) | supported; R2Ts against the rules close the session, and GOOD for a write whose data were not all fetched, or had not all left, is no success |
//! | DataPDUInOrder, DataSequenceInOrder = No (§13.18, §13.19) | supported when offered |
//! | AHS (§11.2.2) | extended CDBs are sent ([`client::Client::command_long`]); bidirectional commands are not; an AHS in a response, where RFC 7143 has none, closes the session |
//! | Task management (§11.5) | ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM and COLD RESET, the answers taken as evidence; CLEAR ACA (NACA is never set) and TASK REASSIGN (level 2) are not sent |
//! | TaskReporting (§13.23) | ResponseFence and RFC3720; FastAbort on demand ([`login::keys::Offer::fast_abort`]) |
//! | NOP both ways (§11.18, §11.19) | supported, echoes compared; acknowledges within 1 s when nothing else is sent; a target that pings on and on and does not read the answers loses the session |
//! | Async messages (§11.9) | 0 sense as news; 1 nothing new is sent, what is under way is answered, then a logout in time, by ourselves if nobody asks for it; 2 and 3 end the session, Time2Wait is kept; 4 answered by a text request; 5 in FastAbort sessions, else a protocol error; others logged |
//! | Reject (§11.17) | 06 fails one immediate request, or has an answer to a ping sent again; any other closes the session, because a command it names leaves a hole in CmdSN |
//! | Text in full feature phase, SendTargets (§11.10, app. C) | supported in pieces both ways; MaxRecvDataSegmentLength takes effect when the negotiation is over. A discovery session sends text and a logout, and answers pings; nothing else (§13.21) |
//! | Logout (§11.14) | reason 0, close the session, after what is outstanding; waited for no longer than for a ping. Reason 1 would say the same of the only connection. Reason 2, remove a connection for recovery, is not sent: it leads to task reassignment, which is level 2. Recovery at level 0 is a reset connection and a login that reinstates the session |
//! | Session reinstatement (§6.3.5) | supported: fixed ISIDs, TSIH 0 |
//! | ErrorRecoveryLevel 1 and 2, SNACK, MC/S (§7) | refused: level 0 and one connection are negotiated; whatever breaks ends the session, and each command with it, as `applied: no` or unknown |
//! | iSCSIProtocolLevel 2 (RFC 7144) | not offered |
//! | Markers (§13.25) | refused by No and Reject |
//!
//! SCSI: READ and WRITE (10) and (16) with FUA, SYNCHRONIZE CACHE, UNMAP, WRITE SAME(16) with data,
//! COMPARE AND WRITE, PERSISTENT RESERVE IN and OUT, REPORT LUNS, REPORT TARGET PORT GROUPS, INQUIRY
//! with VPD 00, 80, 83, B0, B1, B2, READ CAPACITY, MODE SENSE (6) and (10), REQUEST SENSE, sense in
//! both formats: see [`commands`]. Unit attentions and deferred errors are news of the session
//! beside the answer that carried them. After TASK SET FULL or BUSY fewer commands are sent at a
//! time until good answers open it again. Formatted protection information is refused.

pub mod bench;
pub mod client;
pub mod commands;
pub mod digest;
pub mod discover;
pub mod establish;
pub mod identify;
pub mod isid;
pub mod login;
pub mod name;
pub mod net;
pub mod path;
pub mod pdu;
pub mod scsi;
pub mod serial;
pub mod session;
pub mod tcp;
pub mod text;
