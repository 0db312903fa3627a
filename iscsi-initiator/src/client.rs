//! A session on a link: the thin driver, and the handle by which others use it.
//!
//! One task per session runs turns: read what is there, hand out what it means, write
//! what is due, look at the clock; in this order, so that what arrived is known before any
//! deadline is judged. A command that comes alone is written by who submits it: see `Inner::send`.
//! All state lies in the session and in the handle, none in a future, so the task can be dropped
//! at any time.
//!
//! Ownership: the task holds the session; when the last [`Client`] is dropped the session is
//! aborted. No borrow is held while results are handed upward, so whoever is told may submit or
//! abort at once.

use crate::login::{LoggedIn, LoginFailure};
use crate::name::Portal;
use crate::net::{Coming, Link, Net};
use crate::scsi::sense::key;
use crate::session::task::Tag;
use crate::session::{Event, Function, Outcome, Progress, ScsiCommand, Session, SessionConfig};
use crate::session::{SubmitError, Transfer};
use blockdev::completion::{pair, Abandoned, Completion, Promise};
use blockdev::path::{CommandResult, Sense};
use blockdev::rt::Timed;
use blockdev::{Applied, Instant, Lateness, PathCause, Pool, Rt};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use thiserror::Error;

/// Reads of one turn before other tasks of the thread get theirs.
const READS_PER_TURN: usize = 16;
/// News kept for a reader that is slow; older ones are dropped, the end is not.
const NEWS_MAX: usize = 64;
/// Up to this many commands in flight every answer wakes us at once …
const COALESCE_ABOVE: usize = 4;
/// … unless so many bytes are due that they come in pieces anyway.
const COALESCE_BYTES: usize = 256 << 10;
/// The rest of an answer is awaited up to this size, in bytes.
const REST_ANSWER_BYTES_MAX: usize = 128 << 10;
/// How long it may take before its bytes are looked at as a sign of life.
const REST_WITHIN: Duration = Duration::from_millis(10);
/// How long an answer may lie below the receive mark.
const COALESCE_WITHIN: Duration = Duration::from_micros(100);

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// No connection.
    #[error("{0}")]
    Connect(String),
    /// The login failed.
    #[error("{0}")]
    Login(#[from] LoginFailure),
    /// The connection ended during the login.
    #[error("{0}")]
    Lost(PathCause),
}

/// News of a session beyond the results of its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A unit attention or deferred error.
    Attention {
        /// Whose, in the 8-byte form.
        lun: [u8; 8],
        /// What.
        sense: Sense,
    },
    /// The target wants a logout within this time.
    LogoutRequested(Duration),
    /// The session ended; the last news.
    Closed(PathCause),
}

impl Abandoned for Outcome {
    fn abandoned() -> Outcome {
        let cause = PathCause::Administrative("initiator dropped the task");
        Outcome::Lost {
            cause,
            applied: Applied::Unknown,
        }
    }
}

/// Turns an outcome into what a path's user is told.
pub(crate) type Map = fn(Outcome) -> CommandResult;

enum Waiter {
    Outcome(Promise<Outcome>),
    Mapped(Promise<CommandResult>, Map),
}

impl Waiter {
    fn tell(self, outcome: Outcome) {
        match self {
            Waiter::Outcome(promise) => promise.complete(outcome),
            Waiter::Mapped(promise, map) => promise.complete(map(outcome)),
        }
    }
}

type LoginResult = Result<LoggedIn, ConnectError>;

struct Core {
    session: Session,
    link: Option<Box<dyn Link>>,
    /// By slot of the tag.
    waiters: Vec<smallvec::SmallVec<[(Tag, Waiter); 1]>>,
    login: Option<LoginResult>,
    news: VecDeque<News>,
    /// Where the time is kept before which the target wants no other login.
    not_before: Option<Rc<Cell<Instant>>>,
}

struct Inner {
    me: Weak<Inner>,
    rt: Rt,
    core: RefCell<Core>,
    driver: RefCell<Option<Waker>>,
    /// Who waits for the login, then for news.
    reader: RefCell<Option<Waker>>,
    in_turn: Cell<bool>,
    dirty: Cell<bool>,
    armed: Cell<Instant>,
    /// Tasks that ended in this turn.
    answered: Cell<usize>,
    /// Commands taken since the last turn began, and the same before the last turn that found any.
    fresh: Cell<usize>,
    together: Cell<usize>,
    /// The link was told last that answers may gather.
    gathers: Cell<bool>,
    /// The last bytes that were received ended no task.
    was_vain: Cell<bool>,
    /// The time, as far as this turn has asked for it.
    clock: Cell<Option<Instant>>,
    late: Cell<Duration>,
}

/// A handle of a session that is logged in. Cloning shares it; dropping the last one aborts it.
#[derive(Clone)]
pub struct Client {
    guard: Rc<Guard>,
}

struct Guard(Rc<Inner>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort(PathCause::Administrative("closed"));
    }
}

impl Client {
    /// Connects and logs in. There is no time limit inside: dropping the future gives up and
    /// resets the connection.
    ///
    /// # Errors
    /// If there is no connection, the target refuses, or it breaks the protocol.
    pub async fn connect(
        rt: &Rt,
        net: &dyn Net,
        pool: &Pool,
        (portal, source): (Portal, Option<IpAddr>),
        config: SessionConfig,
    ) -> Result<(Client, LoggedIn), ConnectError> {
        let link = net.connect(portal, source).await;
        let link = link.map_err(|error| ConnectError::Connect(error.to_string()))?;
        let session = Session::new(config, pool.clone(), rt.now());
        let inner = Rc::new_cyclic(|me| Inner {
            me: me.clone(),
            rt: rt.clone(),
            core: RefCell::new(Core {
                session,
                link: Some(link),
                waiters: Vec::new(),
                login: None,
                news: VecDeque::new(),
                not_before: None,
            }),
            driver: RefCell::default(),
            reader: RefCell::default(),
            in_turn: Cell::new(false),
            dirty: Cell::new(false),
            armed: Cell::new(Instant::FAR),
            answered: Cell::default(),
            fresh: Cell::default(),
            together: Cell::default(),
            gathers: Cell::default(),
            was_vain: Cell::default(),
            clock: Cell::default(),
            late: Cell::default(),
        });
        let client = Client {
            guard: Rc::new(Guard(inner.clone())),
        };
        let driven = inner.clone();
        rt.spawn(poll_fn(move |cx| driven.turn(cx)));
        let done = poll_fn(|cx| match inner.core.borrow_mut().login.take() {
            Some(result) => Poll::Ready(result),
            None => {
                *inner.reader.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        });
        let logged_in = done.await?;
        Ok((client, logged_in))
    }

    fn inner(&self) -> &Rc<Inner> {
        &self.guard.0
    }

    /// Sends a command; the outcome is [`Outcome::Scsi`], `Bad`, `Withdrawn` or `Lost`.
    pub fn command(&self, command: ScsiCommand) -> Completion<Outcome> {
        self.begin(|session, _| session.submit(command)).1
    }

    /// The same for a CDB of more than 16 bytes, whose bytes from 16 on are `cdb_rest`; see
    /// [`Session::submit_long`].
    pub fn command_long(&self, command: ScsiCommand, cdb_rest: &[u8]) -> Completion<Outcome> {
        self.begin(|session, _| session.submit_long(command, cdb_rest))
            .1
    }

    /// Sends a command that yields data (or none, for `len` 0).
    pub fn read_command(&self, lun: [u8; 8], cdb: [u8; 16], len: u32) -> Completion<Outcome> {
        let transfer = if len == 0 {
            Transfer::None
        } else {
            Transfer::Read(len)
        };
        self.command(ScsiCommand {
            lun,
            cdb,
            transfer,
            attribute: Default::default(),
        })
    }

    /// Sends a command whose outcome `map` translates.
    pub(crate) fn command_mapped(
        &self,
        command: ScsiCommand,
        map: Map,
    ) -> (Option<Tag>, Completion<CommandResult>) {
        let (promise, completion) = pair();
        let waiter = Waiter::Mapped(promise, map);
        let inner = self.inner();
        let tag = inner.begin(waiter, |session, _| session.submit(command));
        if tag.is_some() {
            inner.send();
        }
        (tag, completion)
    }

    /// Sends a task management function; the outcome is [`Outcome::Tmf`], `Rejected` or `Lost`.
    pub fn manage(
        &self,
        function: Function,
        lun: [u8; 8],
        referenced: Option<Tag>,
    ) -> Completion<Outcome> {
        self.begin(|session, _| session.manage(function, lun, referenced))
            .1
    }

    /// LOGICAL UNIT RESET that ends no command of this session; see [`Session::reset_sparing`].
    pub(crate) fn reset_sparing(&self, lun: [u8; 8]) -> Completion<Outcome> {
        self.begin(|session, _| session.reset_sparing(lun)).1
    }

    /// Pings the target with `bytes` of data; the outcome is [`Outcome::Pong`] or `Lost`.
    pub fn ping(&self, bytes: usize) -> Completion<Outcome> {
        self.begin(|session, rt| session.ping(rt.now(), bytes)).1
    }

    /// Negotiates text; the outcome is [`Outcome::Text`] or `Lost`.
    pub fn text(&self, text: Vec<u8>) -> Completion<Outcome> {
        self.begin(|session, _| session.text(text)).1
    }

    /// Takes a command back of which no byte was sent; it ends as withdrawn.
    pub fn withdraw(&self, tag: Tag) -> bool {
        let done = self.inner().core.borrow_mut().session.withdraw(tag);
        self.inner().deliver();
        done
    }

    /// How far a task has come; `None` once it ended.
    pub fn progress(&self, tag: Tag) -> Option<Progress> {
        self.inner().core.borrow().session.progress(tag)
    }

    /// Looks at the session.
    pub fn with_session<T>(&self, look: impl FnOnce(&Session) -> T) -> T {
        look(&self.inner().core.borrow().session)
    }

    /// Whether the session takes commands.
    pub fn is_open(&self) -> bool {
        self.with_session(Session::is_open)
    }

    /// Whether the session still exists: it may be draining.
    pub fn is_alive(&self) -> bool {
        !self.with_session(Session::is_closed)
    }

    /// Resets the connection. Every task has ended when this returns.
    pub fn abort(&self, cause: PathCause) {
        self.inner().abort(cause);
    }

    /// Keeps in `not_before` until when the target wants to be left alone, should it say so when
    /// it ends the session; known before anybody is told of that end.
    pub(crate) fn keep_wait(&self, not_before: Rc<Cell<Instant>>) {
        self.inner().core.borrow_mut().not_before = Some(not_before);
    }

    /// Drains, logs out and closes; resets the connection at `deadline`.
    pub async fn logout(&self, deadline: Instant) {
        let (_, outcome) = self.begin(|session, _| session.logout());
        if self.inner().rt.by(deadline, outcome).await.is_err() {
            self.abort(PathCause::Administrative("logout took too long"));
        }
        self.abort(PathCause::Administrative("logged out"));
    }

    /// Drops the unit attentions that nobody has taken yet and that an identification has answered.
    pub(crate) fn forget_answered_attentions(&self) {
        let news = &mut self.inner().core.borrow_mut().news;
        news.retain(|news| !matches!(news, News::Attention { sense, .. } if is_answered_by_identification(sense)));
    }

    /// Clock and timers of the session.
    pub(crate) fn rt(&self) -> &Rt {
        &self.inner().rt
    }

    /// The next news; one reader.
    pub fn poll_news(&self, cx: &mut Context<'_>) -> Poll<News> {
        if let Some(news) = self.inner().core.borrow_mut().news.pop_front() {
            return Poll::Ready(news);
        }
        *self.inner().reader.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn begin(
        &self,
        request: impl FnOnce(&mut Session, &Rt) -> Result<Tag, SubmitError>,
    ) -> (Option<Tag>, Completion<Outcome>) {
        let (promise, completion) = pair();
        let tag = self.inner().begin(Waiter::Outcome(promise), request);
        if tag.is_some() {
            self.inner().wake();
        }
        (tag, completion)
    }
}

impl Inner {
    /// Takes a request in; the driver has to be told of it.
    fn begin(
        &self,
        waiter: Waiter,
        request: impl FnOnce(&mut Session, &Rt) -> Result<Tag, SubmitError>,
    ) -> Option<Tag> {
        let mut core = self.core.borrow_mut();
        match request(&mut core.session, &self.rt) {
            Ok(tag) => {
                let slot = tag.slot();
                if core.waiters.len() <= slot {
                    core.waiters.resize_with(slot + 1, smallvec::SmallVec::new);
                }
                core.waiters[slot].push((tag, waiter));
                Some(tag)
            }
            Err(error) => {
                drop(core);
                let lost = |why| Outcome::Lost {
                    cause: PathCause::Administrative(why),
                    applied: Applied::No,
                };
                waiter.tell(match error {
                    SubmitError::NotOpen => lost("session is closed"),
                    SubmitError::Full => lost("session is full"),
                    SubmitError::Discovery => lost("not in a discovery session"),
                    SubmitError::Leaving => Outcome::Withdrawn,
                });
                None
            }
        }
    }

    /// Sends a command that was taken. Commands that come together leave together, in the next
    /// turn; where they come one at a time, that turn would only be later, and cost its own.
    fn send(&self) {
        let fresh = self.fresh.replace(self.fresh.get() + 1);
        let is_single = fresh == 0 && self.together.get() == 1 && !self.in_turn.get();
        if !is_single || !self.send_now() {
            self.wake();
        }
    }

    /// Whether all was sent, and the next turn can wait for an answer.
    fn send_now(&self) -> bool {
        let driver = self.driver.borrow();
        let Some(waker) = driver.as_ref() else {
            return false;
        };
        self.clock.set(None);
        self.write(&mut Context::from_waker(waker)) && !lets_gather(&self.core.borrow().session)
    }

    fn wake(&self) {
        if self.in_turn.get() {
            self.dirty.set(true);
            return;
        }
        let waker = self.driver.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn abort(&self, cause: PathCause) {
        let link = {
            let mut core = self.core.borrow_mut();
            core.session.close(cause);
            core.link.take()
        };
        drop(link);
        self.deliver();
        self.wake();
    }

    /// Hands out every event. Runs to the end also when it is entered again from a completion.
    fn deliver(&self) {
        loop {
            let mut core = self.core.borrow_mut();
            let Some(event) = core.session.poll_event() else {
                return;
            };
            match event {
                Event::Done(tag, outcome) => {
                    let waiter = core.waiters.get_mut(tag.slot()).and_then(|here| {
                        let at = here.iter().position(|(t, _)| *t == tag)?;
                        Some(here.remove(at).1)
                    });
                    drop(core);
                    self.answered.set(self.answered.get() + 1);
                    self.was_vain.set(false);
                    if let Some(waiter) = waiter {
                        waiter.tell(outcome);
                    }
                }
                Event::LoggedIn(done) => {
                    core.login = Some(Ok(*done));
                    self.tell_reader(core);
                }
                Event::LoginFailed(failure) => {
                    core.login = Some(Err(failure.into()));
                    self.tell_reader(core);
                }
                Event::Attention { lun, sense } => {
                    self.note(core, News::Attention { lun, sense });
                }
                Event::LogoutRequested(within) => self.note(core, News::LogoutRequested(within)),
                Event::Closed(cause) => {
                    if core.login.is_none() {
                        core.login = Some(Err(ConnectError::Lost(cause.clone())));
                    }
                    let wait = core.session.time2wait();
                    if let (Some(wait), Some(not_before)) = (wait, &core.not_before) {
                        not_before.set(self.rt.now() + wait);
                    }
                    self.note(core, News::Closed(cause));
                }
            }
        }
    }

    fn note(&self, mut core: std::cell::RefMut<'_, Core>, news: News) {
        if core.news.len() >= NEWS_MAX {
            core.news.pop_front();
        }
        core.news.push_back(news);
        self.tell_reader(core);
    }

    fn tell_reader(&self, core: std::cell::RefMut<'_, Core>) {
        drop(core);
        let reader = self.reader.borrow_mut().take();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// One turn of the driver; `Ready` when the session is closed.
    fn turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self
            .driver
            .borrow()
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *self.driver.borrow_mut() = Some(cx.waker().clone());
        }
        self.in_turn.set(true);
        self.clock.set(None);
        if self.fresh.get() > 0 {
            self.together.set(self.fresh.take());
        }
        let mut again = self.read(cx);
        self.deliver();
        self.write(cx);
        self.judge();
        self.deliver();
        // What was submitted by those who were told leaves in this turn still.
        if self.dirty.take() {
            self.write(cx);
            self.deliver();
            again |= self.dirty.take();
        }
        self.in_turn.set(false);
        let closed = {
            let mut core = self.core.borrow_mut();
            let closed = core.session.is_closed();
            let link = if closed { core.link.take() } else { None };
            drop(core);
            drop(link);
            closed
        };
        if closed {
            self.deliver();
            return Poll::Ready(());
        }
        // Whoever was answered runs before the next turn, and often has the next command: only
        // then is it known what is due. One command alone makes no difference to a link that lets
        // nothing gather.
        let waits_for_more = match self.answered.take() {
            0 => false,
            1 => self.gathers.get(),
            _ => true,
        };
        if again || waits_for_more {
            cx.waker().wake_by_ref();
        } else {
            self.gather();
        }
        self.arm();
        Poll::Pending
    }

    /// Reads until nothing is there; `true` if there may be more.
    fn read(&self, cx: &mut Context<'_>) -> bool {
        for _ in 0..READS_PER_TURN {
            let mut core = self.core.borrow_mut();
            let Core {
                session,
                link: Some(link),
                ..
            } = &mut *core
            else {
                return false;
            };
            if session.is_closed() {
                return false;
            }
            let mut space = session.receive_space();
            let polled = link.poll_read(cx, &mut space);
            drop(space);
            match polled {
                Poll::Ready(Ok(bytes)) => {
                    self.was_vain.set(true);
                    session.received(self.now(), bytes);
                }
                Poll::Ready(Err(error)) => {
                    session.close(PathCause::Connection(error.to_string()));
                    return false;
                }
                Poll::Pending => return false,
            }
            drop(core);
            self.deliver();
        }
        true
    }

    /// Writes what is due; whether all of it was taken, and nothing went wrong.
    fn write(&self, cx: &mut Context<'_>) -> bool {
        let mut core = self.core.borrow_mut();
        let Core {
            session,
            link: Some(link),
            ..
        } = &mut *core
        else {
            return false;
        };
        loop {
            let slices = session.transmit();
            if slices.is_empty() {
                return true;
            }
            let polled = link.poll_write(cx, &slices);
            drop(slices);
            match polled {
                Poll::Ready(Ok(bytes)) => session.transmitted(self.now(), bytes),
                Poll::Ready(Err(error)) => {
                    session.close(PathCause::Connection(error.to_string()));
                    return false;
                }
                Poll::Pending => return false,
            }
        }
    }

    /// The time of this turn: asked for once, at or after the first read.
    fn now(&self) -> Instant {
        let now = self.clock.get().unwrap_or_else(|| self.rt.now());
        self.clock.set(Some(now));
        now
    }

    /// Looks at the clock, after the socket was read.
    fn judge(&self) {
        let now = self.now();
        let mut core = self.core.borrow_mut();
        let late = self.late.take();
        if Lateness(late).is_own_stall() {
            core.session.excuse(late);
        }
        if core.session.poll_timeout().is_some_and(|at| at <= now) {
            core.session.handle_timeout(now);
            self.dirty.set(true);
        }
    }

    /// Lets answers gather while many are due. Where the last bytes ended no task the target is too
    /// slow for that, and the rest of the answer is awaited; not of large ones, of which more than
    /// one PDU is due.
    fn gather(&self) {
        let mut core = self.core.borrow_mut();
        let Core {
            session,
            link: Some(link),
            ..
        } = &mut *core
        else {
            return;
        };
        let (due, left) = (session.due_bytes(), session.rest_of_pdu());
        let many = lets_gather(session);
        self.gathers.set(many);
        let is_small = due <= session.in_flight() * REST_ANSWER_BYTES_MAX;
        let is_slow = self.was_vain.get() && is_small;
        link.gather(match many {
            true if left > 0 && is_slow => Coming::Rest {
                left,
                within: REST_WITHIN,
            },
            true => Coming::Many {
                due,
                within: COALESCE_WITHIN,
            },
            false => Coming::Unknown,
        });
    }

    /// The next time at which something is due.
    fn due(&self) -> Instant {
        let session = &self.core.borrow().session;
        session.poll_timeout().unwrap_or(Instant::FAR)
    }

    fn arm(&self) {
        let at = self.due();
        if at < self.armed.get() {
            self.armed.set(at);
            let owner: Weak<dyn Timed> = self.me.clone();
            self.rt.arm(at, owner, 0);
        }
    }
}

/// Whether an identification has just read anew what a unit attention says has changed: reset (29),
/// mode parameters, ALUA state, capacity (2A), identity (3F). A deferred error is about data that
/// were acknowledged, and 2A/03 to 2A/05 about reservations: those remain news.
fn is_answered_by_identification(sense: &Sense) -> bool {
    !sense.deferred
        && sense.key == key::UNIT_ATTENTION
        && matches!(
            (sense.asc, sense.ascq),
            (0x29 | 0x3f, _) | (0x2a, 0x01 | 0x06 | 0x09)
        )
}

/// Whether so much is in flight that answers may gather.
fn lets_gather(session: &Session) -> bool {
    session.in_flight() > COALESCE_ABOVE || session.due_bytes() >= COALESCE_BYTES
}

impl Timed for Inner {
    fn fire(&self, _token: u64, due: Instant) {
        let now = self.rt.now();
        self.armed.set(Instant::FAR);
        self.late.set(self.late.get().max(now - due));
        // Times move later with every answer, but an armed timer stays: look again.
        if self.due() <= now {
            self.wake();
        } else {
            self.arm();
        }
    }
}
