//! A configured device of a volume, leg or spare, as far as it is there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use blockdev::{BlockDevice, Instant, Rt};

use crate::assemble::{self, Base, Credentials, Leg, Opening};
use crate::config::{Device, DeviceKind};
use crate::node::metered::Metered;

/// See the module.
pub(crate) struct LegSlot {
    /// As at the start. A reload changes how it is used, not what or where it is.
    pub(crate) device: Device,
    /// As the last reload left it.
    current: RefCell<Device>,
    /// What its logins prove themselves with.
    credentials: Credentials,
    /// It waits for a leg to fail.
    pub(crate) is_spare: bool,
    pub(crate) leg: RefCell<Option<(Leg, Rc<Metered>)>>,
    pub(crate) problem: RefCell<Option<String>>,
    opening: Cell<bool>,
    /// Given to the array that runs.
    pub(crate) attached: Cell<bool>,
    /// Since when the array does without it.
    pub(crate) out_since: Cell<Option<Instant>>,
    /// Bytes copied onto it: by arrays that ended, and by the one that runs or ran last.
    copied: Cell<(u64, u64)>,
    /// The WWID that an alias was looked for, and the alias.
    pub(crate) alias: RefCell<(String, Option<String>)>,
}

impl LegSlot {
    pub(crate) fn new(device: &Device, is_spare: bool) -> Rc<LegSlot> {
        Rc::new(LegSlot {
            device: device.clone(),
            current: RefCell::new(device.clone()),
            credentials: Credentials::default(),
            is_spare,
            leg: RefCell::new(None),
            problem: RefCell::new(None),
            opening: Cell::new(false),
            attached: Cell::new(false),
            out_since: Cell::new(None),
            copied: Cell::default(),
            alias: RefCell::default(),
        })
    }

    /// Bytes that copies have written to it since the start; `now` is the running array's count, which
    /// begins anew with each array.
    pub(crate) fn copied_in_all(&self, now: Option<u64>) -> u64 {
        let (ended, last) = self.copied.get();
        let copied = match now {
            None => (ended, last),
            Some(now) if now < last => (ended + last, now),
            Some(now) => (ended, now),
        };
        self.copied.set(copied);
        copied.0 + copied.1
    }

    pub(crate) fn leg(&self) -> Option<Leg> {
        self.leg.borrow().as_ref().map(|(leg, _)| leg.clone())
    }

    pub(crate) fn block(&self) -> Option<Rc<dyn BlockDevice>> {
        let leg = self.leg.borrow();
        leg.as_ref()
            .map(|(_, metered)| metered.clone() as Rc<dyn BlockDevice>)
    }

    pub(crate) fn unit(&self) -> Option<Rc<mpath::MultipathDevice>> {
        match self.leg() {
            Some(Leg::Unit(unit)) => Some(unit),
            _ => None,
        }
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.opening.get()
    }

    /// Whether it can be used now.
    pub(crate) async fn is_ready(&self, rt: &Rt) -> bool {
        self.unready(rt).await.is_none()
    }

    /// Why it cannot be used now.
    pub(crate) async fn unready(&self, rt: &Rt) -> Option<String> {
        match self.leg() {
            Some(leg) => Some(leg.ready(rt, Duration::ZERO).await.err()?.text),
            None => {
                let problem = self.problem.borrow().clone();
                Some(problem.unwrap_or_else(|| format!("{}: not opened yet", self.device.name)))
            }
        }
    }

    /// Opens the device, if that is not done or under way, as a task of its own: one that does not answer
    /// delays no other (P7).
    pub(crate) fn begin_opening(self: &Rc<Self>, base: &Base, volume: &str, how: Opening) {
        if self.leg.borrow().is_some() || self.opening.replace(true) {
            return;
        }
        let (me, base, volume) = (self.clone(), base.clone(), volume.to_owned());
        base.rt.clone().spawn(async move {
            let how = Opening {
                credentials: me.credentials.clone(),
                ..how
            };
            let device = me.current.borrow().clone();
            match Leg::open(&base, &device, how).await {
                Ok(leg) => {
                    let metered = Metered::new(base.rt.clone(), leg.block());
                    *me.leg.borrow_mut() = Some((leg, metered));
                    *me.problem.borrow_mut() = None;
                }
                Err(failure) => me.note_problem(&volume, failure.text),
            }
            me.opening.set(false);
        });
    }

    /// Takes over how a reload wants it to be used; logins to come use new secrets.
    pub(crate) fn reconfigure(&self, device: &Device, in_mirror: bool) {
        // The new configuration may give it another one.
        self.alias.replace(Default::default());
        *self.current.borrow_mut() = device.clone();
        let (Some(unit), DeviceKind::Iscsi(changed)) = (self.unit(), &device.kind) else {
            return;
        };
        match assemble::chap(&changed.iscsi) {
            Ok(chap) => *self.credentials.borrow_mut() = chap,
            Err(failure) => tracing::error!("device {}: {failure}", device.name),
        }
        unit.reconfigure(assemble::multipath_config(device, changed, in_mirror));
    }

    /// Whether this is another problem than the one that was told last.
    pub(crate) fn is_news(&self, text: &str) -> bool {
        self.problem.borrow().as_deref() != Some(text)
    }

    /// Notes why it is not used, and says so if that is news.
    pub(crate) fn note_problem(&self, volume: &str, text: String) {
        if self.is_news(&text) {
            tracing::warn!("volume {volume}: {text}");
            *self.problem.borrow_mut() = Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeviceKind, LocalDevice};

    #[test]
    fn bytes_copied_never_fall() {
        let slot = LegSlot::new(
            &Device {
                name: "d1".to_owned(),
                kind: DeviceKind::Local(LocalDevice {
                    path: "/nowhere".into(),
                    size_bytes: None,
                }),
                wwid: None,
                allow_duplicate_wwid: false,
            },
            false,
        );
        // An array that copies, none, one that begins anew.
        let told = [Some(0), Some(40), Some(50), None, Some(0), Some(7), None];
        let counted: Vec<u64> = told.into_iter().map(|n| slot.copied_in_all(n)).collect();
        assert_eq!(counted, [0, 40, 50, 50, 50, 57, 57]);
    }
}
