//! `fence = pr`: persistent reservations in place of reinstatement (SPC-4 §5.12).
//!
//! Every path registers a key of its own at each login, under a reservation Write Exclusive –
//! Registrants Only; an orderly end clears both. A unit without PREEMPT AND ABORT (tgt), or known for
//! a wrong one (istgt), is refused at the login, before anything is reserved. A fence takes the key of a closed session away by PREEMPT AND ABORT: what still
//! arrives from it meets RESERVATION CONFLICT. This needs no portal in the old one's group, nor the
//! old one's target. What is in the back end already is waited for by the barrier, as ever.

use crate::config::FencePolicy;
use crate::inner::Inner;
use crate::keeper::Unfit;
use crate::path::{Live, Path};
use crate::sweep::within;
use blockdev::path::{Command, CommandError, Isid};
use blockdev::reserve::{keys, reservation, ReserveIn, ReserveKind, ReserveOut};
use blockdev::{Done, IoCtx, IoVec, PathCause};
use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

const KIND: ReserveKind = ReserveKind::WriteExclusiveRegistrants;
/// Reservations are the target's own business.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Attentions (29/00, 2A/03 to 05) that may stand before an answer.
const ATTENTIONS_MAX: u32 = 6;
const RESERVATION_CONFLICT: u8 = 0x18;

/// CHECK CONDITIONs of a unit that lacks a command, or a service action of it.
const INVALID_OPCODE: (u8, u8, u8) = (5, 0x20, 0);
const INVALID_FIELD_IN_CDB: (u8, u8, u8) = (5, 0x24, 0);

enum Failed {
    Conflict,
    Sense(u8, u8, u8),
    Other(String),
}

/// Whether a device fences by keys, and by which. Fixed while it is open: a key that is registered
/// can only be taken back by whoever still knows it.
pub(crate) struct Keys {
    are_used: bool,
    /// `reservation_key` when the first path registered.
    base: OnceCell<Option<u64>>,
    /// The unit has granted a PREEMPT AND ABORT.
    can_preempt: Cell<bool>,
}

impl Keys {
    pub(crate) fn new(fence: FencePolicy) -> Keys {
        Keys {
            are_used: fence == FencePolicy::Pr,
            base: OnceCell::new(),
            can_preempt: Cell::new(false),
        }
    }
}

fn register(new: u64) -> ReserveOut {
    ReserveOut::RegisterAndIgnore {
        new,
        persist: false,
        all_ports: false,
    }
}

impl Inner {
    pub(crate) fn fences_by_key(&self) -> bool {
        self.keys.are_used
    }

    /// `fence`, as far as it may change while the device is open.
    pub(crate) fn fence_policy(&self) -> FencePolicy {
        match self.config.borrow().fence {
            _ if self.keys.are_used => FencePolicy::Pr,
            FencePolicy::Pr => FencePolicy::Auto,
            other => other,
        }
    }

    /// The key of a path: `reservation_key` and the path's number, or its ISID with a mark of ours,
    /// so that every path of every node has another one.
    fn key(&self, path: &Path) -> u64 {
        let base = self
            .keys
            .base
            .get_or_init(|| self.config.borrow().reservation_key);
        match base {
            Some(key) => key.wrapping_add(path.index as u64),
            None => {
                let Isid([a, b, c, d, e, f]) = path.isid;
                u64::from_be_bytes([b'A', b'r', a, b, c, d, e, f])
            }
        }
    }

    /// Registers the path's key, and sees to it that there is a reservation.
    pub(crate) async fn register_key(&self, path: &Path, live: &Live) -> Result<(), Unfit> {
        if !self.fences_by_key() {
            return Ok(());
        }
        if self.fencing().is_some_and(|f| !f.can_preempt) {
            return Err(Unfit::Misconfigured(
                "fence = \"pr\", and this target's PREEMPT AND ABORT takes away other keys than the \
                 one named: use fence = \"auto\""
                    .into(),
            ));
        }
        let own = self.key(path);
        let failed =
            |what: &str, failed: Failed| Unfit::Lost(PathCause::Connection(failed.text(what)));
        self.reserve_out(live, register(own))
            .await
            .map_err(|e| failed("registering a reservation key", e))?;
        if !self.keys.can_preempt.get() {
            self.try_preempt(own, live).await?;
        }
        match self
            .reserve_out(live, ReserveOut::Reserve { own, kind: KIND })
            .await
        {
            Ok(()) => Ok(()),
            // Another registrant holds it: of the same kind it admits us all.
            Err(Failed::Conflict) => {
                let data = self.reserve_in(live, ReserveIn::Reservation).await;
                let data = data.map_err(|e| failed("reading the reservation", e))?;
                let holder = reservation(&data.to_vec()).and_then(|r| r.holder);
                match holder.and_then(|h| h.kind) {
                    Some(KIND) => Ok(()),
                    kind => {
                        let text = format!("the unit is reserved as {kind:?}");
                        Err(Unfit::Lost(PathCause::Connection(text)))
                    }
                }
            }
            Err(other) => Err(failed("reserving", other)),
        }
    }

    /// Asks for PREEMPT AND ABORT of a key that nobody has, so that a unit without it is known before
    /// a fence is needed. Such a unit is left as it was found.
    async fn try_preempt(&self, own: u64, live: &Live) -> Result<(), Unfit> {
        let nobody = ReserveOut::PreemptAndAbort {
            own,
            victim: !own,
            kind: KIND,
        };
        match self.reserve_out(live, nobody).await {
            // Some units say that there is no such key, others that it is gone.
            Ok(()) | Err(Failed::Conflict) => {
                self.keys.can_preempt.set(true);
                Ok(())
            }
            Err(Failed::Sense(key, asc, ascq))
                if [INVALID_OPCODE, INVALID_FIELD_IN_CDB].contains(&(key, asc, ascq)) =>
            {
                let unregister = ReserveOut::Register {
                    own,
                    new: 0,
                    persist: false,
                    all_ports: false,
                };
                // Not reserved, so a key that stays keeps nobody out.
                let _ = self.reserve_out(live, unregister).await;
                Err(Unfit::Misconfigured(format!(
                    "fence = \"pr\", and the unit has no PREEMPT AND ABORT \
                     ({key:x}/{asc:02x}/{ascq:02x}): use fence = \"auto\""
                )))
            }
            Err(other) => {
                let text = other.text("PREEMPT AND ABORT of nobody's key");
                Err(Unfit::Lost(PathCause::Connection(text)))
            }
        }
    }

    /// At an orderly end: no reservation is left behind that would keep out whoever comes next
    /// without keys. With anything unanswered it stays, for it is what keeps that out.
    pub(crate) async fn clear_keys(&self) {
        let paths = self.all_paths();
        let is_quiet = self.taints.borrow().is_empty()
            && self.attempts.borrow().iter().next().is_none()
            && paths.iter().all(|p| p.stale.borrow().is_empty());
        if !self.fences_by_key() || !is_quiet {
            return;
        }
        for path in paths.iter().filter(|p| p.is_serving()) {
            let Some(live) = path.live() else { continue };
            let clear = ReserveOut::Clear {
                own: self.key(path),
            };
            match self.reserve_out(&live, clear).await {
                // Another owner has taken the key away: what is reserved is reserved by it.
                Ok(()) | Err(Failed::Conflict) => return,
                Err(other) => {
                    let text = other.text("clearing the reservation");
                    tracing::warn!("{}: {text}", path.object(&self.name()));
                }
            }
        }
    }

    /// Takes away every key but those of sessions that live: of closed ones with unanswered
    /// commands, and in the first fence of a run of whoever else there is.
    pub(crate) async fn preempt(
        &self,
        on: &Rc<Path>,
        live: &Live,
        is_first: bool,
    ) -> Result<(), String> {
        let listed = self.listed_keys(live).await?;
        let paths = self.all_paths();
        let own = self.key(on);
        let (mut closed, mut alive) = (Vec::new(), vec![own]);
        for path in paths.iter().filter(|p| p.index != on.index) {
            let has_stale = !path.stale.borrow().is_empty();
            if has_stale && path.live().is_none() {
                // Its own recovery waits, or it would register again meanwhile (rule 6).
                path.reserved.set(true);
                path.signal.notify();
                closed.push(path.clone());
            } else if path.live().is_some() {
                alive.push(self.key(path));
            }
        }
        let is_victim = |key: &u64| {
            *key != own
                && ((is_first && !alive.contains(key))
                    || closed.iter().any(|p| self.key(p) == *key))
        };
        let mut victims: Vec<u64> = listed.iter().copied().filter(is_victim).collect();
        victims.sort_unstable();
        victims.dedup();
        let mut result = Ok(());
        for &victim in &victims {
            let preempt = ReserveOut::PreemptAndAbort {
                own,
                victim,
                kind: KIND,
            };
            if let Err(failed) = self.reserve_out(live, preempt).await {
                result = Err(failed.text("PREEMPT AND ABORT"));
                break;
            }
        }
        if result.is_ok() && !victims.is_empty() {
            result = self.check_preempted(&victims, live).await;
        }
        for path in closed {
            if result.is_ok() {
                path.stale.borrow_mut().clear();
            }
            path.reserved.set(false);
            path.signal.notify();
        }
        result
    }

    /// Every key that is registered with the unit.
    async fn listed_keys(&self, live: &Live) -> Result<Vec<u64>, String> {
        let data = self.reserve_in(live, ReserveIn::Keys).await;
        let data = data.map_err(|e| e.text("reading keys"))?;
        let list = keys(&data.to_vec()).ok_or("the list of keys is malformed")?;
        if !list.complete {
            return Err("the list of keys is cut short".into());
        }
        Ok(list.keys)
    }

    /// A good answer is not taken for the deed: istgt 0.4 takes away other keys than the one named,
    /// its sender's too. What of ours is gone is registered again.
    async fn check_preempted(&self, victims: &[u64], live: &Live) -> Result<(), String> {
        let listed = self.listed_keys(live).await?;
        for path in self.all_paths().iter().filter(|p| p.is_serving()) {
            let own = self.key(path);
            if let (false, Some(live)) = (listed.contains(&own), path.live()) {
                let registered = self.reserve_out(&live, register(own)).await;
                registered.map_err(|e| e.text("registering again"))?;
            }
        }
        match victims.iter().find(|victim| listed.contains(victim)) {
            None => Ok(()),
            Some(victim) => Err(format!(
                "PREEMPT AND ABORT was answered, and the unit still lists the key {victim:#x}"
            )),
        }
    }

    async fn reserve_out(&self, live: &Live, request: ReserveOut) -> Result<(), Failed> {
        self.reserve(live, &Command::ReserveOut(request))
            .await
            .map(|_| ())
    }

    async fn reserve_in(&self, live: &Live, request: ReserveIn) -> Result<IoVec, Failed> {
        let done = self.reserve(live, &Command::ReserveIn(request)).await?;
        Ok(done.into_data())
    }

    async fn reserve(&self, live: &Live, command: &Command) -> Result<Done, Failed> {
        let mut attentions = 0;
        loop {
            let deadline = self.rt.now() + ANSWER_TIME;
            let (_, answer) = live.session.submit(command.clone(), IoCtx::metadata());
            match within(&self.rt, deadline, answer).await {
                Some(Ok(done)) => return Ok(done),
                Some(Err(CommandError::Status { sense: Some(s), .. }))
                    if s.key == 6 && attentions < ATTENTIONS_MAX =>
                {
                    attentions += 1;
                }
                Some(Err(CommandError::Status {
                    status: RESERVATION_CONFLICT,
                    ..
                })) => return Err(Failed::Conflict),
                Some(Err(CommandError::Status { sense: Some(s), .. })) => {
                    return Err(Failed::Sense(s.key, s.asc, s.ascq));
                }
                Some(Err(error)) => return Err(Failed::Other(error.to_string())),
                None => return Err(Failed::Other("not answered".into())),
            }
        }
    }
}

impl Failed {
    fn text(&self, what: &str) -> String {
        match self {
            Failed::Conflict => format!("{what}: reservation conflict"),
            Failed::Sense(key, asc, ascq) => {
                format!("{what}: refused ({key:x}/{asc:02x}/{ascq:02x})")
            }
            Failed::Other(why) => format!("{what}: {why}"),
        }
    }
}
