//! `fence = pr`: persistent reservations in place of reinstatement (SPC-4 §5.12).
//!
//! Every path registers a key of its own at each login, under a reservation Write Exclusive –
//! Registrants Only. A fence takes the key of a closed session away by PREEMPT AND ABORT: what still
//! arrives from it meets RESERVATION CONFLICT. This needs no portal in the old one's group, nor the
//! old one's target. What is in the back end already is waited for by the barrier, as ever.

use crate::config::FencePolicy;
use crate::inner::Inner;
use crate::path::{Live, Path};
use crate::sweep::within;
use blockdev::path::{Command, CommandError, Isid};
use blockdev::reserve::{keys, reservation, ReserveIn, ReserveKind, ReserveOut};
use blockdev::{Done, IoCtx, IoVec, PathCause};
use std::rc::Rc;
use std::time::Duration;

const KIND: ReserveKind = ReserveKind::WriteExclusiveRegistrants;
/// Reservations are the target's own business.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Attentions (29/00, 2A/03 to 05) that may stand before an answer.
const ATTENTIONS_MAX: u32 = 6;
const RESERVATION_CONFLICT: u8 = 0x18;

enum Failed {
    Conflict,
    Other(String),
}

impl Inner {
    pub(crate) fn fences_by_key(&self) -> bool {
        self.config.borrow().fence == FencePolicy::Pr
    }

    /// The key of a path: `reservation_key` and the path's number, or its ISID with a mark of ours,
    /// so that every path of every node has another one.
    fn key(&self, path: &Path) -> u64 {
        let base = self.config.borrow().reservation_key;
        match base {
            Some(key) => key.wrapping_add(path.index as u64),
            None => {
                let Isid([a, b, c, d, e, f]) = path.isid;
                u64::from_be_bytes([b'A', b'r', a, b, c, d, e, f])
            }
        }
    }

    /// Registers the path's key, and sees to it that there is a reservation.
    pub(crate) async fn register_key(&self, path: &Path, live: &Live) -> Result<(), PathCause> {
        if !self.fences_by_key() {
            return Ok(());
        }
        let own = self.key(path);
        let register = ReserveOut::RegisterAndIgnore {
            new: own,
            persist: false,
            all_ports: false,
        };
        let failed = |what: &str, failed: Failed| {
            let why = match failed {
                Failed::Conflict => "reservation conflict".to_string(),
                Failed::Other(why) => why,
            };
            PathCause::Connection(format!("{what}: {why}"))
        };
        self.reserve_out(live, register)
            .await
            .map_err(|e| failed("registering a reservation key", e))?;
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
                        Err(PathCause::Connection(text))
                    }
                }
            }
            Err(other) => Err(failed("reserving", other)),
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
        let data = self.reserve_in(live, ReserveIn::Keys).await;
        let data = data.map_err(|e| e.text("reading keys"))?;
        let list = keys(&data.to_vec()).ok_or("the list of keys is malformed")?;
        if !list.complete {
            return Err("the list of keys is cut short".into());
        }
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
        let mut victims: Vec<u64> = list.keys.iter().copied().filter(is_victim).collect();
        victims.sort_unstable();
        victims.dedup();
        let mut result = Ok(());
        for victim in victims {
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
        for path in closed {
            if result.is_ok() {
                path.stale.borrow_mut().clear();
            }
            path.reserved.set(false);
            path.signal.notify();
        }
        result
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
                    let text = format!("refused ({:x}/{:02x}/{:02x})", s.key, s.asc, s.ascq);
                    return Err(Failed::Other(text));
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
            Failed::Other(why) => format!("{what}: {why}"),
        }
    }
}
