//! ALUA: which target port groups of the unit serve now (SPC-4 §5.15, §6.37), and the priorities of
//! paths that follow from it.
//!
//! The list is read after a login, at every check, when an attention says that it has changed, and
//! when a command was refused for it; one path's answer tells about the groups of all. A path whose
//! group does not serve keeps its session and gets no I/O. While a group is in transition the list
//! is read every 2 s; after the transition's time it counts as standby.

use crate::inner::Inner;
use crate::path::{Checker, Live, Path, Phase};
use crate::prio::Prio;
use crate::sweep::within;
use blockdev::alua::{port_groups, AccessState, PortGroups};
use blockdev::path::{Command, CommandError, UnitIdentity};
use blockdev::{Instant, IoCtx, PathCause};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Between looks at a group in transition.
pub(crate) const TRANSITION_POLL: Duration = Duration::from_secs(2);
/// A transition ends within this unless the unit says otherwise.
const TRANSITION_MAX: Duration = Duration::from_secs(60);
/// The list is answered by the target itself.
const REPORT_TIME: Duration = Duration::from_secs(2);
/// Attentions that may stand before the list.
const ATTENTIONS_MAX: u32 = 3;
/// What the preferred bit adds; to an optimized group only if asked for, for it needs no preference.
const PREFERRED: i32 = 80;

/// What the unit last said about a path's port group.
#[derive(Default)]
pub(crate) struct Access {
    state: Cell<Option<AccessState>>,
    is_preferred: Cell<bool>,
    /// In transition until this at the latest; zero: not in transition.
    until: Cell<Instant>,
}

impl Access {
    /// Whether commands may be sent there: yes, unless the unit says no.
    pub(crate) fn serves(&self) -> bool {
        self.state.get().is_none_or(AccessState::serves)
    }

    pub(crate) fn is_transitioning(&self) -> bool {
        self.state.get() == Some(AccessState::Transitioning)
    }

    /// The priority that `multipath` gives it; `None` if port groups do not decide.
    pub(crate) fn priority(&self, is_exclusive: bool) -> Option<i32> {
        let state = self.state.get()?;
        let base = match state {
            AccessState::Optimized => 50,
            AccessState::NonOptimized => 10,
            AccessState::LbaDependent => 5,
            AccessState::Standby => 1,
            _ => 0,
        };
        let is_lifted =
            self.is_preferred.get() && (is_exclusive || state != AccessState::Optimized);
        Some(base + if is_lifted { PREFERRED } else { 0 })
    }

    /// Takes note of a state; yields whether anything changed.
    fn set(&self, state: AccessState, is_preferred: bool, now: Instant, most: Duration) -> bool {
        let is_transition = state == AccessState::Transitioning;
        if !is_transition {
            self.until.set(Instant(0));
        } else if self.until.get() == Instant(0) {
            self.until.set(now + most);
        }
        let state = if is_transition && now >= self.until.get() {
            AccessState::Standby
        } else {
            state
        };
        let before = (self.state.replace(Some(state)), self.is_preferred.get());
        self.is_preferred.set(is_preferred);
        before != (Some(state), is_preferred)
    }
}

impl Inner {
    /// Whether the unit's port groups decide.
    pub(crate) fn uses_alua(&self, identity: &UnitIdentity) -> bool {
        let config = self.config.borrow();
        let is_told = config.prio == Prio::Alua || config.detect_prio;
        is_told && identity.tpgs != 0 && identity.target_port_group.is_some()
    }

    /// Reads the list on this path, if the unit has one.
    pub(crate) async fn look_at_access(&self, path: &Rc<Path>, live: &Live) {
        let identity = path.identity.borrow().clone();
        if !identity.is_some_and(|i| self.uses_alua(&i)) {
            return;
        }
        if let Some(list) = self.report(live).await {
            self.take_access(&list);
        }
    }

    async fn report(&self, live: &Live) -> Option<PortGroups> {
        let mut command = Command::ReportTargetPortGroupsExtended;
        let mut attentions = 0;
        loop {
            let deadline = self.rt.now() + REPORT_TIME;
            let (_, answer) = live.session.submit(command.clone(), IoCtx::metadata());
            match within(&self.rt, deadline, answer).await? {
                Ok(done) => return port_groups(&done.into_data().to_vec()),
                Err(CommandError::Status { sense: Some(s), .. })
                    if s.key == 6 && attentions < ATTENTIONS_MAX =>
                {
                    attentions += 1;
                }
                // The extended header is refused by units that do not know it.
                Err(CommandError::Status { sense: Some(s), .. })
                    if s.key == 5 && matches!(command, Command::ReportTargetPortGroupsExtended) =>
                {
                    command = Command::ReportTargetPortGroups;
                }
                Err(_) => return None,
            }
        }
    }

    fn take_access(&self, list: &PortGroups) {
        let now = self.rt.now();
        let most = list.transition.unwrap_or(TRANSITION_MAX);
        let mut has_changed = false;
        for path in self.all_paths() {
            let number = path
                .identity
                .borrow()
                .as_ref()
                .and_then(|i| i.target_port_group);
            let Some(group) = number.and_then(|n| list.group(n)) else {
                continue;
            };
            has_changed |= path.access.set(group.state, group.preferred, now, most);
            if path.phase.get() == Phase::Serving {
                let checker = if group.state.serves() {
                    Checker::Ready
                } else {
                    Checker::Ghost
                };
                path.checker.set(checker);
            }
        }
        if has_changed {
            self.regroup();
            self.mind_ways();
            self.changed.notify();
            self.release_queued();
        }
    }

    /// A command was refused because of the state of the path's port group: nothing else goes there
    /// until the list says otherwise. `false` if the unit has no port groups.
    pub(crate) fn access_denied(&self, path: &Rc<Path>, cause: &PathCause) -> bool {
        let state = match cause {
            PathCause::Unit(0x02, 0x04, 0x0A) => AccessState::Transitioning,
            PathCause::Unit(0x02, 0x04, 0x0B) => AccessState::Standby,
            PathCause::Unit(0x02, 0x04, 0x0C) => AccessState::Unavailable,
            _ => return false,
        };
        let identity = path.identity.borrow().clone();
        if !identity.is_some_and(|i| self.uses_alua(&i)) {
            return false;
        }
        let is_preferred = path.access.is_preferred.get();
        let now = self.rt.now();
        if path.access.set(state, is_preferred, now, TRANSITION_MAX) {
            path.checker.set(Checker::Ghost);
            self.regroup();
            self.mind_ways();
        }
        path.wants_access.set(true);
        path.signal.notify();
        true
    }
}
