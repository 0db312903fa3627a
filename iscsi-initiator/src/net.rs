//! What carries a session: a connection of bytes, behind two small traits.
//!
//! Production uses [`crate::tcp::TcpNet`]; a simulation runs the same sessions over a network in
//! memory under a virtual clock. Neither trait knows anything of iSCSI.

use crate::name::Portal;
use blockdev::LocalFuture;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Duration;

/// Opens connections.
pub trait Net {
    /// Connects to `to`, from the local address `from` if given. There is no time limit inside:
    /// dropping the future gives up.
    fn connect(&self, to: Portal, from: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>>;
}

/// One connection. Dropping it resets it: what was not sent is never sent (RST, not FIN), so that
/// no write leaves a session that was given up.
pub trait Link {
    /// Reads into `bufs` in order. `Ok(0)` = the peer closed. On `Pending` the waker of `cx` is
    /// kept.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Writes from `bufs` in order, as much as is taken. On `Pending` the waker of `cx` is kept.
    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>])
        -> Poll<io::Result<usize>>;

    /// Called before a wait, with what is sure to come. A hint that saves wake-ups; links without
    /// it do nothing, which is the default.
    fn gather(&mut self, coming: Coming) {
        let _ = coming;
    }
}

/// What a reader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coming {
    /// Every byte is to wake it.
    Unknown,
    /// So many bytes in all: a good half of them may gather, but nothing that came may lie unread
    /// longer than `within`.
    Many {
        /// Bytes.
        due: usize,
        /// Bound of the wait.
        within: Duration,
    },
    /// The rest of something that is of no use before it is whole.
    Rest {
        /// Bytes.
        left: usize,
        /// Bound of the wait, so that a peer that trickles is seen to be alive.
        within: Duration,
    },
}
