//! What a command's failure means: one function, one table.
//!
//! The cut is by what to do next, as the kernel's SCSI layer and dm-multipath do it, finer where
//! they lump together: a unit's own verdict (medium, no space, reserved) goes upward and never
//! fails a path; a doubtful way is left at once. Sense codes are of SPC-4 annex D; statuses of
//! SAM-5 §5.3.

use blockdev::path::{CommandError, Sense};
use blockdev::{Applied, PathCause, Refusal};

/// What to do about a failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The session is gone; another path, and a taint if `applied` is unknown.
    Lost {
        /// Why.
        cause: PathCause,
        /// Whether it may have been applied.
        applied: Applied,
    },
    /// Taken back before it was sent: route it again.
    Withdrawn,
    /// The same again at once; nothing is wrong with the path (unit attention, TASK ABORTED).
    Again,
    /// The same again after a pause of 1 to 50 ms: BUSY, TASK SET FULL.
    Busy,
    /// The same again after a longer pause: becoming ready.
    NotReady,
    /// As `NotReady`, and the port group of this path is in transition: elsewhere, if there is one.
    Transition,
    /// Once more here, then on another path (the path is failed): doubtful answers.
    OnceThenOtherPath(PathCause),
    /// Once more here, then upward as a medium error.
    OnceThenMedium(Option<u64>),
    /// Fail the path and go elsewhere.
    OtherPath(PathCause),
    /// Identify the unit again on this path before anything else goes there; then again.
    Recheck,
    /// Read the capacity again; then again.
    Capacity,
    /// Unreadable, at this LBA in logical blocks if the unit said so.
    Medium(Option<u64>),
    /// Out of space.
    NoSpace,
    /// The unit will not do it, on any path.
    Refused(Refusal),
    /// An *earlier* write failed after it had been answered; the command itself was not executed.
    EarlierWriteFailed,
}

/// Judges a failed command.
pub fn classify(error: &CommandError) -> Verdict {
    match error {
        CommandError::Lost { cause, applied } => Verdict::Lost {
            cause: cause.clone(),
            applied: *applied,
        },
        CommandError::Withdrawn => Verdict::Withdrawn,
        CommandError::BadAnswer(what) => {
            Verdict::OnceThenOtherPath(PathCause::Protocol((*what).into()))
        }
        CommandError::Status { status, sense } => match (status, sense) {
            (0x02, Some(sense)) => classify_sense(sense),
            // BUSY, TASK SET FULL, ACA ACTIVE.
            (0x08 | 0x28 | 0x30, _) => Verdict::Busy,
            // RESERVATION CONFLICT: somebody else owns the unit; no path will change that.
            (0x18, _) => Verdict::Refused(Refusal::Reserved),
            // TASK ABORTED: by a reset of ours or of another initiator.
            (0x40, _) => Verdict::Again,
            (0x02, None) => Verdict::OnceThenOtherPath(PathCause::Protocol(
                "CHECK CONDITION without sense".into(),
            )),
            (other, _) => {
                Verdict::OnceThenOtherPath(PathCause::Protocol(format!("scsi status {other:#04x}")))
            }
        },
    }
}

fn classify_sense(sense: &Sense) -> Verdict {
    let Sense { key, asc, ascq, .. } = *sense;
    if sense.deferred {
        return Verdict::EarlierWriteFailed;
    }
    let elsewhere = || Verdict::OtherPath(PathCause::Unit(key, asc, ascq));
    let refused = || Verdict::Refused(Refusal::Unit(key, asc, ascq));
    match (key, asc, ascq) {
        // Recovered error reported with CHECK CONDITION: the transfer itself is in doubt.
        (0x00 | 0x01, ..) => Verdict::OnceThenOtherPath(PathCause::Unit(key, asc, ascq)),
        // NOT READY: standby, unavailable, offline on this way; the rest becomes ready.
        (0x02, 0x04, 0x0B | 0x0C | 0x12) => elsewhere(),
        (0x02, 0x04, 0x0A) => Verdict::Transition,
        (0x02, 0x04, 0x00 | 0x01 | 0x04..=0x09 | 0x11 | 0x13..=0x1B) => Verdict::NotReady,
        (0x02, ..) => elsewhere(),
        (0x03, 0x11 | 0x13 | 0x14, _) => Verdict::Medium(sense.information),
        (0x03, ..) => Verdict::OnceThenMedium(sense.information),
        // HARDWARE ERROR: the unit's verdict, the same on every path.
        (0x04, ..) => refused(),
        (0x05, 0x25, 0x00) => elsewhere(),
        (0x05, 0x20, 0x00) => Verdict::Refused(Refusal::NotSupported),
        (0x05, 0x21, _) => Verdict::Refused(Refusal::Range),
        (0x05, ..) => refused(),
        (0x06, 0x3F, 0x03 | 0x0E) => Verdict::Recheck,
        (0x06, 0x2A, 0x09) => Verdict::Capacity,
        // Reservations or registrations taken from us: stop rather than write on.
        (0x06, 0x2A, 0x03..=0x05) => Verdict::Refused(Refusal::Reserved),
        // All other unit attentions (29/xx after every login and reset of our own among them) are
        // news, not failures.
        (0x06, ..) => Verdict::Again,
        (0x07, 0x27, 0x07) => Verdict::NoSpace,
        (0x07, 0x27, _) => Verdict::Refused(Refusal::ReadOnly),
        (0x07, ..) => refused(),
        // ABORTED COMMAND: 10 is a protection error and stays; anything else may be the wire.
        (0x0B, 0x10, _) => refused(),
        (0x0B, ..) => Verdict::OnceThenOtherPath(PathCause::Unit(key, asc, ascq)),
        _ => refused(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: u8, asc: u8, ascq: u8) -> Verdict {
        classify(&CommandError::Status {
            status: 2,
            sense: Some(Sense {
                key,
                asc,
                ascq,
                deferred: false,
                information: None,
            }),
        })
    }

    fn unit(key: u8, asc: u8, ascq: u8) -> PathCause {
        PathCause::Unit(key, asc, ascq)
    }

    #[test]
    fn sense_table() {
        let refused = |k, a, q| Verdict::Refused(Refusal::Unit(k, a, q));
        let table = [
            ((0x02, 0x04, 0x01), Verdict::NotReady),
            ((0x02, 0x04, 0x04), Verdict::NotReady),
            ((0x02, 0x04, 0x07), Verdict::NotReady),
            ((0x02, 0x04, 0x0A), Verdict::Transition),
            ((0x02, 0x04, 0x14), Verdict::NotReady),
            ((0x02, 0x04, 0x1B), Verdict::NotReady),
            (
                (0x02, 0x04, 0x0B),
                Verdict::OtherPath(unit(0x02, 0x04, 0x0B)),
            ),
            (
                (0x02, 0x04, 0x0C),
                Verdict::OtherPath(unit(0x02, 0x04, 0x0C)),
            ),
            (
                (0x02, 0x3A, 0x00),
                Verdict::OtherPath(unit(0x02, 0x3A, 0x00)),
            ),
            ((0x03, 0x11, 0x00), Verdict::Medium(None)),
            ((0x03, 0x13, 0x00), Verdict::Medium(None)),
            ((0x03, 0x14, 0x01), Verdict::Medium(None)),
            ((0x03, 0x0C, 0x00), Verdict::OnceThenMedium(None)),
            ((0x04, 0x44, 0x00), refused(0x04, 0x44, 0x00)),
            ((0x05, 0x20, 0x00), Verdict::Refused(Refusal::NotSupported)),
            ((0x05, 0x21, 0x00), Verdict::Refused(Refusal::Range)),
            ((0x05, 0x24, 0x00), refused(0x05, 0x24, 0x00)),
            (
                (0x05, 0x25, 0x00),
                Verdict::OtherPath(unit(0x05, 0x25, 0x00)),
            ),
            ((0x05, 0x26, 0x00), refused(0x05, 0x26, 0x00)),
            ((0x06, 0x29, 0x00), Verdict::Again),
            ((0x06, 0x2A, 0x06), Verdict::Again),
            ((0x06, 0x2A, 0x09), Verdict::Capacity),
            ((0x06, 0x2A, 0x03), Verdict::Refused(Refusal::Reserved)),
            ((0x06, 0x3F, 0x03), Verdict::Recheck),
            ((0x06, 0x3F, 0x0E), Verdict::Recheck),
            ((0x07, 0x27, 0x00), Verdict::Refused(Refusal::ReadOnly)),
            ((0x07, 0x27, 0x07), Verdict::NoSpace),
            ((0x0B, 0x10, 0x01), refused(0x0B, 0x10, 0x01)),
            (
                (0x0B, 0x47, 0x03),
                Verdict::OnceThenOtherPath(unit(0x0B, 0x47, 0x03)),
            ),
            ((0x0E, 0x1D, 0x00), refused(0x0E, 0x1D, 0x00)),
        ];
        for ((key, asc, ascq), verdict) in table {
            assert_eq!(
                check(key, asc, ascq),
                verdict,
                "{key:02x}/{asc:02x}/{ascq:02x}"
            );
        }
    }

    #[test]
    fn status_table() {
        let status = |status| {
            classify(&CommandError::Status {
                status,
                sense: None,
            })
        };
        assert_eq!(status(0x08), Verdict::Busy);
        assert_eq!(status(0x28), Verdict::Busy);
        assert_eq!(status(0x18), Verdict::Refused(Refusal::Reserved));
        assert_eq!(status(0x40), Verdict::Again);
        assert!(matches!(status(0x02), Verdict::OnceThenOtherPath(_)));
        assert!(matches!(status(0x77), Verdict::OnceThenOtherPath(_)));
        assert_eq!(classify(&CommandError::Withdrawn), Verdict::Withdrawn);
        assert!(matches!(
            classify(&CommandError::BadAnswer("short")),
            Verdict::OnceThenOtherPath(_)
        ));
    }

    #[test]
    fn a_deferred_error_is_about_an_earlier_write() {
        let sense = Sense {
            key: 3,
            asc: 0x0C,
            ascq: 0,
            deferred: true,
            information: None,
        };
        let error = CommandError::Status {
            status: 2,
            sense: Some(sense),
        };
        assert_eq!(classify(&error), Verdict::EarlierWriteFailed);
    }
}
