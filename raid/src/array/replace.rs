//! Puts another device into the slot of a leg.
use super::LegState;
use super::{Array, ControlError};
use crate::probe::Found;
use blockdev::BlockDevice;
use std::rc::Rc;

impl Array {
    /// Puts another device, or a blank one of the same name, into the slot of a leg. A leg still
    /// in sync is failed first, so the volume has one leg until the copy is done.
    pub async fn replace(
        &self,
        old: &str,
        name: &str,
        device: Rc<dyn BlockDevice>,
        full: bool,
        force: bool,
    ) -> Result<(), ControlError> {
        let leg = self.named(old)?;
        if let (Found::Foreign(what), false) = (crate::probe::examine(&*device).await?, force) {
            return Err(ControlError::Occupied {
                device: name.into(),
                what,
            });
        }
        if leg.state() != LegState::Out && leg.state() != LegState::Absent {
            self.fail(old).await?;
        }
        leg.attempts.set(leg.attempts.get() + 1);
        self.fill(leg, name, device, full).await
    }
}
