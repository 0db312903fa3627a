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
//!   shared, so each wait would cost a second wake-up and a second system call. Setting it is still
//!   the dearest call of a wait (11 µs on a virtual machine, whose timer hardware the host keeps), so
//!   there is no mark where answers come in bunches by themselves: see `Bunches`.

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
/// One of so many marked waits is followed by one without a mark, to see what it brings.
const TRIAL_EVERY: u32 = 128;
/// Unmarked waits in a row that may bring too little.
const POOR_MAX: u32 = 3;

/// Opens TCP connections. To be used inside a tokio runtime with I/O enabled.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn connect(&self, to: Portal, from: Option<IpAddr>) -> LocalFuture<io::Result<Box<dyn Link>>> {
        Box::pin(async move { Ok(Box::new(open(to, from).await?) as Box<dyn Link>) })
    }
}

async fn open(to: Portal, from: Option<IpAddr>) -> io::Result<TcpLink> {
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
    Ok(TcpLink {
        socket,
        writer,
        mark: 1,
        has_room: false,
        alarm: Alarm::register()?,
        waiting: None,
        fruitless: 0,
        bunches: Bunches::default(),
    })
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
    bunches: Bunches,
}

/// Whether answers come in bunches by themselves, as from a target that writes many at once or a
/// network card that coalesces. A wait without a mark that brings no less than the mark would have
/// brought saves the timer behind it. Where answers come one by one every wait is marked but for a
/// trial now and then.
#[derive(Debug)]
struct Bunches {
    /// Marked waits before the next trial; 0: waits go unmarked.
    marked_left: u32,
    /// Unmarked waits in a row that brought too little.
    poor: u32,
    /// What the wait is to bring, in bytes, and what it has brought.
    goal: usize,
    got: usize,
}

impl Default for Bunches {
    fn default() -> Bunches {
        Bunches {
            marked_left: TRIAL_EVERY,
            poor: 0,
            goal: 0,
            got: 0,
        }
    }
}

impl Bunches {
    fn took(&mut self, bytes: usize) {
        self.got += bytes;
    }

    /// Whether the next wait does without a mark of `goal` bytes.
    fn come_by_themselves(&mut self, goal: usize) -> bool {
        let got = std::mem::take(&mut self.got);
        if got > 0 {
            self.judge(got);
        }
        self.goal = goal;
        self.marked_left == 0
    }

    fn judge(&mut self, got: usize) {
        if self.marked_left > 0 {
            self.marked_left -= 1;
            // A trial fails by a single poor wait.
            self.poor = POOR_MAX;
        } else if got >= self.goal {
            self.poor = 0;
        } else if self.poor < POOR_MAX {
            self.poor += 1;
        } else {
            self.marked_left = TRIAL_EVERY;
        }
    }
}

/// What is to gather of so many bytes due: five eighths, in steps of an eighth of a power of two.
/// What is left keeps the target at work while we wake and send. With 16 in flight to a target of
/// one thread a half costs a third more CPU time, and three quarters gain little.
fn mark_for(due: usize) -> usize {
    let most = due * 5 / 8;
    let step = (1 << most.max(1).ilog2()) / 8;
    (most - most % step.max(1)).clamp(1, MARK_BYTES_MAX)
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

/// Reads into `bufs`. A single buffer needs no vector, which the kernel would copy and check.
fn receive(mut socket: &Socket, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    match bufs {
        [single] => socket.read(single),
        _ => socket.read_vectored(bufs),
    }
}

/// Writes from `bufs`, as [`receive`] reads.
fn send(mut socket: &Socket, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    match bufs {
        [single] => socket.write(single),
        _ => socket.write_vectored(bufs),
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
        match receive(self.socket.get_ref(), bufs) {
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
                self.bunches.took(*done.as_ref().unwrap_or(&0));
                Poll::Ready(done)
            }
        }
    }

    /// The mark for so many bytes due, moved seldom and never above what is due. None where it
    /// would save nothing.
    fn follow(&mut self, due: usize) {
        let worth = mark_for(due);
        let is_vain = self.fruitless >= FRUITLESS_MAX || self.bunches.come_by_themselves(worth);
        let wanted = if is_vain { 1 } else { worth };
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
            match receive(guard.get_inner(), bufs) {
                Ok(read) => {
                    (self.waiting, self.fruitless) = (None, 0);
                    self.bunches.took(read);
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
            match send(guard.get_inner(), bufs) {
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
            Coming::Unknown => return self.put_mark(1),
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
                Err(_) => self.put_mark(1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Marks of `waits` waits with a goal of 1000 bytes, each bringing `brings` if it has no mark,
    /// else the goal.
    fn marks(bunches: &mut Bunches, waits: u32, brings: usize) -> u32 {
        let mut marked = 0;
        for _ in 0..waits {
            let is_free = bunches.come_by_themselves(1000);
            bunches.took(if is_free { brings } else { 1000 });
            marked += u32::from(!is_free);
        }
        marked
    }

    #[test]
    fn answers_one_by_one_are_gathered_but_for_trials() {
        let mut bunches = Bunches::default();
        let waits = 10 * (TRIAL_EVERY + 1);
        assert_eq!(marks(&mut bunches, waits, 999), waits - 10);
    }

    #[test]
    fn bunches_need_no_mark() {
        let mut bunches = Bunches::default();
        assert_eq!(marks(&mut bunches, 1000, 1000), TRIAL_EVERY);
        assert_eq!(marks(&mut bunches, POOR_MAX, 10), 0, "a few poor waits");
        assert_eq!(marks(&mut bunches, 10, 1000), 0, "and all is well again");
        assert_eq!(
            marks(&mut bunches, TRIAL_EVERY, 10),
            TRIAL_EVERY - POOR_MAX - 1
        );
    }

    #[test]
    fn the_mark_leaves_the_target_some_work() {
        // 16 reads of 4 KiB: ten answers gather, six are still with the target.
        let answer = 48 + 4096;
        assert_eq!(mark_for(16 * answer).div_ceil(answer), 10);
        assert_eq!(mark_for(16 * 48).div_ceil(48), 10, "and of 16 writes");
        assert_eq!(mark_for(1), 1);
        assert_eq!(mark_for(64 << 20), MARK_BYTES_MAX);
        for due in 1..100_000 {
            let mark = mark_for(due);
            assert!(
                1 <= mark && mark <= due && mark <= (due * 5 / 8).max(1),
                "{due}: {mark}"
            );
            assert!(mark >= (due * 5 / 8) * 7 / 8, "{due}: {mark}");
        }
    }

    /// A turn in which nothing was read goes on with the same wait.
    #[test]
    fn a_wait_that_goes_on_is_not_judged() {
        let mut bunches = Bunches::default();
        marks(&mut bunches, TRIAL_EVERY + 1, 1000);
        for _ in 0..10 * POOR_MAX {
            assert!(bunches.come_by_themselves(1000));
            bunches.took(0);
        }
    }

    /// On a socket: 5 KiB at once are read without a mark in the end, and 16 bytes with one.
    #[test]
    fn a_link_marks_what_comes_in_drops_and_not_what_comes_in_bunches() {
        let due = Coming::Many {
            due: 8192,
            within: Duration::from_micros(100),
        };
        let done = blockdev::driver::run_shard(|_| async move {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let at = listener.local_addr().expect("bound");
            let portal = Portal {
                address: at.ip(),
                port: at.port(),
            };
            let mut link = open(portal, None).await.expect("connects");
            let (mut peer, _) = listener.accept().expect("accepts");
            for (bytes, waits, mark) in [(5120, TRIAL_EVERY + 2, 1), (16, POOR_MAX + 2, 5120)] {
                for _ in 0..waits {
                    link.gather(due);
                    peer.write_all(&vec![0; bytes]).expect("sent");
                    let mut left = bytes;
                    while left > 0 {
                        let mut buf = [0; 8192];
                        let read =
                            poll_fn(|cx| link.poll_read(cx, &mut [IoSliceMut::new(&mut buf)]));
                        left -= read.await.expect("received");
                    }
                }
                link.gather(due);
                assert_eq!(link.mark, mark, "{bytes} bytes at a time");
            }
        });
        done.expect("a shard");
    }
}
