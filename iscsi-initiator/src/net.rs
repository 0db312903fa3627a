//! What carries a session: a connection of bytes, behind two small traits.
//!
//! Production uses [`crate::tcp::TcpNet`]; a simulation runs the same sessions over a network in
//! memory under a virtual clock. Neither trait knows anything of iSCSI.

use crate::name::Portal;
use blockdev::LocalFuture;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::task::{Context, Poll};

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

    /// Asks to be woken for reading only when `bytes` bytes are there (at least 1). A hint that
    /// saves wake-ups; `false` if the link knows no marks, which is the default.
    fn receive_mark(&mut self, bytes: usize) -> bool {
        let _ = bytes;
        false
    }

    /// Reads what is there although the mark is not reached; `None` = nothing. The default is for
    /// links without marks, which have nothing that `poll_read` would not yield.
    fn read_below_mark(&mut self, bufs: &mut [IoSliceMut<'_>]) -> Option<io::Result<usize>> {
        let _ = bufs;
        None
    }
}
