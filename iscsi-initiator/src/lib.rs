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
//! - [`establish`], [`identify`], [`path`], [`discover`], [`mod@bench`]: logins with redirects, what the
//!   unit is, the path that `mpath` uses, SendTargets, the load generator.
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
//! # RFC 7143, feature by feature
//!
//! | Feature | |
//! |---|---|
//! | Login stages, C bit, T = 0 answers, redirects, status classes | supported; every login begins at SecurityNegotiation |
//! | Operational keys of §13 | all negotiated, each answer checked against its result function |
//! | AuthMethod | None, CHAP one-way and mutual: MD5, SHA-1, SHA-256, SHA3-256; Kerberos and SRP are not offered |
//! | HeaderDigest, DataDigest | CRC32C; one that is demanded and refused fails the login |
//! | Command window, immediate requests, CmdSN, StatSN, DataSN, R2TSN | supported and checked |
//! | Immediate and unsolicited data, R2T, MaxOutstandingR2T > 1 | supported |
//! | DataPDUInOrder, DataSequenceInOrder = No | supported when offered |
//! | Task management | ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM and COLD RESET; CLEAR ACA (NACA is never set), TASK REASSIGN (level 2) are not sent |
//! | NOP both ways, async messages, Reject, text negotiation, SendTargets | supported |
//! | Session reinstatement | supported: fixed ISIDs, TSIH 0 |
//! | ErrorRecoveryLevel 1 and 2, SNACK, MC/S | refused: level 0 and one connection are negotiated; whatever breaks ends the session |
//! | TaskReporting | ResponseFence and RFC3720 offered; FastAbort is not |
//! | iSCSIProtocolLevel 2 (RFC 7144) | not offered |
//! | AHS (long and bidirectional CDBs) | not sent; refused in responses, where RFC 7143 has none |
//! | Markers | refused, as RFC 7143 §13.25 asks |

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
