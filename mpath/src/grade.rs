//! How far a target can be trusted to tell that an old command is dead.
//!
//! The table rests on measurements and sources named in `failover-rules.md` §1 and
//! `multipath.md` §7.4:
//! - tgt (vendor `IET`): reinstatement, by any portal of the target, ends the input of the old
//!   session but not what is in the back end; LOGICAL UNIT RESET is answered only when that is
//!   done.
//! - LIO (`LIO-ORG`): LOGICAL UNIT RESET skips commands of connections being torn down, so the
//!   barrier is a TEST UNIT READY with the ORDERED attribute.
//! - istgt (`FreeBSD` `iSCSI DISK`): nothing waits for the back end: no proof is possible. Its
//!   PREEMPT AND ABORT keeps the oldest registration whichever key it is told to take away.
//! - others: assumed to follow SAM-5 (a reset is answered when the commands it ends are ended).

use crate::config::FencePolicy;
use blockdev::path::UnitIdentity;

/// What a completed fence proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceGrade {
    /// Shown by a test on this product.
    Proven,
    /// Follows from the standard or the source.
    Assumed,
    /// Nothing: only time is left (`fence_assume`).
    None,
}

impl FenceGrade {
    /// The grade of a unit when the configuration leaves the fence to us.
    pub fn of(unit: &UnitIdentity) -> FenceGrade {
        fencing(FencePolicy::Auto, unit).grade
    }

    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            FenceGrade::Proven => "proven",
            FenceGrade::Assumed => "assumed",
            FenceGrade::None => "none",
        }
    }
}

/// The command whose answer proves that earlier ones are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    LunReset,
    OrderedTestUnitReady,
    /// There is none.
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fencing {
    pub(crate) grade: FenceGrade,
    pub(crate) barrier: Barrier,
    /// Reinstatement works through any portal of the target, not only of the same group.
    pub(crate) any_portal: bool,
    /// The barrier ends commands of its own session without an answer (SAM-5 §7.6); elsewhere they
    /// go on and are answered.
    pub(crate) ends_commands: bool,
    /// PREEMPT AND ABORT is not known to do something else.
    pub(crate) can_preempt: bool,
}

/// How the unit is fenced.
pub(crate) fn fencing(policy: FencePolicy, unit: &UnitIdentity) -> Fencing {
    let table = match (unit.vendor.as_str(), unit.product.as_str()) {
        ("IET", _) => Fencing {
            grade: FenceGrade::Proven,
            barrier: Barrier::LunReset,
            any_portal: true,
            ends_commands: false,
            can_preempt: true,
        },
        ("LIO-ORG", _) => Fencing {
            grade: FenceGrade::Assumed,
            barrier: Barrier::OrderedTestUnitReady,
            any_portal: false,
            ends_commands: false,
            can_preempt: true,
        },
        ("FreeBSD", "iSCSI DISK") => Fencing {
            grade: FenceGrade::None,
            barrier: Barrier::Time,
            any_portal: false,
            ends_commands: false,
            can_preempt: false,
        },
        _ => Fencing {
            grade: FenceGrade::Assumed,
            barrier: Barrier::LunReset,
            any_portal: false,
            ends_commands: true,
            can_preempt: true,
        },
    };
    match policy {
        FencePolicy::Auto => table,
        FencePolicy::Pr if table.can_preempt => Fencing {
            grade: FenceGrade::Assumed,
            ..table
        },
        FencePolicy::Pr => table,
        FencePolicy::Reinstate if table.barrier == Barrier::Time => Fencing {
            grade: FenceGrade::Assumed,
            barrier: Barrier::LunReset,
            ends_commands: true,
            ..table
        },
        FencePolicy::Reinstate => table,
        FencePolicy::None => Fencing {
            grade: FenceGrade::None,
            barrier: Barrier::Time,
            ..table
        },
    }
}
