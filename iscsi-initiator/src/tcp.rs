//! TCP for sessions: the one file with sockets, on tokio's reactor.
//!
//! Options, set before the connection is made:
//! - `SO_LINGER {1, 0}`: even a process that is killed resets its sessions instead of letting the
//!   kernel deliver writes that nobody answers for.
//! - `TCP_NODELAY`: a session hands over all it has in one vectored write.
//! - `TCP_NOTSENT_LOWAT`: bounds what lies unsent in the kernel, where it could not be withdrawn.
//! - `SO_RCVLOWAT` follows [`Link::gather`]: most of the cost of small reads is being woken once per
//!   answer. Behind each mark stands a `timerfd` of the link's own, because error answers are shorter
//!   than data answers and commands can hang. The timers of [`blockdev::Rt`] would do, but they are
//!   shared, so each wait would cost a second wake-up and a second system call.

use crate::name::Portal;
use crate::net::{Coming, Link, Net};
use blockdev::LocalFuture;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{ready, Context, Poll};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Unsent bytes the kernel may hold before it says "not writable".
const NOTSENT_LOWAT_BYTES: u32 = 128 << 10;
/// A mark makes the kernel's buffer grow and closes the receive window to the mark. So the first
/// one is preceded by this, of which the window keeps several marks; a peer then never waits for
/// us to wake.
const BUFFER_BYTES: usize = 1 << 20;
/// Highest mark: some wake-ups for each MiB.
const MARK_BYTES_MAX: usize = 256 << 10;
/// After so many waits in vain something hangs: answers are then taken one by one.
const FRUITLESS_MAX: u32 = 3;

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
            let writer = socket.try_clone()?;
            // SAFETY: the descriptor is owned by what is registered and never replaced.
            let writer = unsafe { AsyncFd::register_with_interest(writer, Interest::WRITABLE)? };
            // A socket becomes writable when it is connected, or has failed to be.
            writer.writable().await?.retain_ready();
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // SAFETY: as above.
            let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
            let link = TcpLink {
                socket,
                writer,
                mark: 1,
                has_room: false,
                alarm: Alarm::register()?,
                waiting: None,
                fruitless: 0,
            };
            Ok(Box::new(link) as Box<dyn Link>)
        })
    }
}

/// The socket is registered twice, once for each direction: a registration for both is woken by
/// data below the receive mark too, only to hear that the socket is still writable.
struct TcpLink {
    socket: AsyncFd<Socket>,
    writer: AsyncFd<Socket>,
    mark: usize,
    /// The receive buffer has been made to hold [`BUFFER_BYTES`].
    has_room: bool,
    /// Ends a wait below the mark. Every read asks for it, so that a waker is always there.
    alarm: AsyncFd<Alarm>,
    /// The alarm is set to end the wait after this long, and nothing was read since.
    waiting: Option<Duration>,
    /// Waits that ended with nothing to read, since the last byte.
    fruitless: u32,
}

struct Alarm(TimerFd);

impl Alarm {
    fn register() -> io::Result<AsyncFd<Alarm>> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let alarm = Alarm(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        // SAFETY: the descriptor is owned by what is registered and never replaced.
        Ok(unsafe { AsyncFd::register_with_interest(alarm, Interest::READABLE)? })
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl TcpLink {
    /// Whether the wait is over; if not, the waker is kept.
    fn poll_alarm(&self, cx: &mut Context<'_>) -> bool {
        let mut is_over = false;
        while let Poll::Ready(Ok(mut guard)) = self.alarm.poll_read_ready(cx) {
            guard.clear_ready();
            is_over = true;
        }
        is_over
    }

    /// Reads what lies below the mark.
    fn read_now(&mut self, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        match self.socket.get_ref().read_vectored(bufs) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                self.fruitless += 1;
                Poll::Pending
            }
            done => {
                self.fruitless = 0;
                Poll::Ready(done)
            }
        }
    }

    /// The mark for so many bytes due: half of them, a power of two so that it seldom changes, and
    /// never above what is due.
    fn follow(&mut self, due: usize) {
        let wanted = match self.fruitless < FRUITLESS_MAX {
            true => (1 << (due / 2).max(1).ilog2()).min(MARK_BYTES_MAX),
            false => 1,
        };
        let mark = self.mark;
        let is_low = wanted < mark && (wanted == 1 || due < mark || wanted <= mark / 4);
        if wanted > mark || is_low {
            self.put_mark(wanted);
        }
    }

    fn put_mark(&mut self, wanted: usize) {
        if wanted == self.mark {
            return;
        }
        if !std::mem::replace(&mut self.has_room, true) {
            self.set_mark(BUFFER_BYTES);
        }
        // A refused hint costs wake-ups, nothing else.
        if self.set_mark(wanted) {
            self.mark = wanted;
        }
    }

    fn set_alarm(&self, within: Duration) -> io::Result<()> {
        let after = Expiration::OneShot(TimeSpec::from_duration(within));
        let alarm = &self.alarm.get_ref().0;
        Ok(alarm.set(after, TimerSetTimeFlags::empty())?)
    }

    fn set_mark(&self, bytes: usize) -> bool {
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
        result == 0
    }
}

impl Link for TcpLink {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        let is_over = self.poll_alarm(cx);
        loop {
            let mut guard = match self.socket.poll_read_ready(cx) {
                Poll::Ready(guard) => guard?,
                Poll::Pending if is_over && self.waiting.take().is_some() => {
                    return self.read_now(bufs);
                }
                Poll::Pending => return Poll::Pending,
            };
            match guard.get_inner().read_vectored(bufs) {
                Ok(read) => {
                    (self.waiting, self.fruitless) = (None, 0);
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
            let mut guard = ready!(self.writer.poll_write_ready(cx))?;
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

    fn gather(&mut self, coming: Coming) {
        let within = match coming {
            Coming::Unknown if self.mark == 1 => return,
            Coming::Unknown => return self.follow(0),
            Coming::Many { due, within } => {
                self.follow(due);
                within
            }
            Coming::Rest { left, within } => {
                self.put_mark(left.min(MARK_BYTES_MAX));
                within
            }
        };
        // A longer bound does not hold for what is awaited now.
        let is_bounded = self.waiting.is_some_and(|bound| bound <= within);
        if self.mark > 1 && !is_bounded {
            // Without its bound there is no mark.
            match self.set_alarm(within) {
                Ok(()) => self.waiting = Some(within),
                Err(_) => self.follow(0),
            }
        }
    }
}
