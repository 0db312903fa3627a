//! TCP for sessions: the one file with sockets, on tokio's reactor.
//!
//! Options, set before the connection is made:
//! - `SO_LINGER {1, 0}`: even a process that is killed resets its sessions instead of letting the
//!   kernel deliver writes that nobody answers for.
//! - `TCP_NODELAY`: a session hands over all it has in one vectored write.
//! - `TCP_NOTSENT_LOWAT`: bounds what lies unsent in the kernel, where it could not be withdrawn.
//! - `SO_RCVLOWAT` follows [`Link::receive_mark`]: most of the cost of small reads is being woken
//!   once per answer.

use crate::name::Portal;
use crate::net::{Link, Net};
use blockdev::LocalFuture;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::task::{ready, Context, Poll};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Unsent bytes the kernel may hold before it says "not writable".
const NOTSENT_LOWAT_BYTES: u32 = 128 << 10;
/// The kernel clamps `SO_RCVLOWAT` to what its buffer can hold; marks stay well below that.
const MARK_BYTES_MAX: usize = 256 << 10;

/// Opens TCP connections. To be used inside a tokio runtime with I/O enabled.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn connect(&self, to: Portal, from: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>> {
        Box::pin(async move {
            let to = SocketAddr::new(to.address, to.port);
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
            if let Some(from) = from {
                socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
            }
            match socket.connect(&SockAddr::from(to)) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                Err(error) => return Err(error),
            }
            // SAFETY: the descriptor is owned by what is registered and never replaced.
            let socket = unsafe { AsyncFd::register(socket)? };
            // A socket becomes writable when it is connected, or has failed to be.
            socket.writable().await?.retain_ready();
            if let Some(error) = socket.get_ref().take_error()? {
                return Err(error);
            }
            Ok(Box::new(TcpLink { socket, mark: 1 }) as Box<dyn Link>)
        })
    }
}

struct TcpLink {
    socket: AsyncFd<Socket>,
    mark: usize,
}

impl Link for TcpLink {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            match guard.get_inner().read_vectored(bufs) {
                Ok(read) => {
                    // Epoll is edge-triggered: after a short read the next byte is a new edge, so
                    // the read that would only say "nothing more" is spared.
                    if read > 0 && read < offered {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(cx))?;
            match guard.get_inner().write_vectored(bufs) {
                Ok(written) => {
                    // As above: the room that is missing now will be a new edge.
                    if written < offered {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn receive_mark(&mut self, bytes: usize) -> bool {
        let bytes = bytes.clamp(1, MARK_BYTES_MAX);
        if bytes == self.mark {
            return true;
        }
        let value = bytes as libc::c_int;
        // SAFETY: the descriptor is open for as long as `self.socket` lives, and the option's
        // value is an int whose address and size are given.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        // A refused hint costs wake-ups, nothing else.
        if result == 0 {
            self.mark = bytes;
        }
        result == 0
    }

    fn read_below_mark(&mut self, bufs: &mut [IoSliceMut<'_>]) -> Option<io::Result<usize>> {
        if self.mark <= 1 {
            return None;
        }
        match self.socket.get_ref().read_vectored(bufs) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            other => Some(other),
        }
    }
}
