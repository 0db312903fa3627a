//! The mirror on a chunk node of a [`super::site::Site`], and the disk under its witness.

use super::site::ChunkNode;
use blockdev::{BlockDevice, LocalFuture, Rt};
use mpath::Role;
use raid::assemble::{assemble, LegInput};
use raid::format::CreateOptions;
use raid::witness::{Witness, WitnessError, WitnessRecord};
use raid::{Array, Uuid};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The witness's file: it survives the node's processes.
#[derive(Clone)]
pub struct WitnessDisk {
    records: Rc<RefCell<BTreeMap<[u8; 16], WitnessRecord>>>,
    /// An fsync takes a quarter of this at least, and all of it at most.
    fsync: Duration,
}

impl WitnessDisk {
    /// A disk on which an fsync takes so long at most.
    pub fn new(fsync: Duration) -> WitnessDisk {
        let records = Rc::default();
        WitnessDisk { records, fsync }
    }
}

impl Default for WitnessDisk {
    fn default() -> WitnessDisk {
        WitnessDisk::new(Duration::from_millis(2))
    }
}

/// The witness as one life of the node sees it.
struct DiskWitness {
    rt: Rt,
    disk: WitnessDisk,
}

impl Witness for DiskWitness {
    fn record(&self, record: WitnessRecord) -> LocalFuture<Result<(), WitnessError>> {
        let (rt, disk) = (self.rt.clone(), self.disk.clone());
        Box::pin(async move {
            // An fsync: killed before its end, the record may be there or not.
            let quarter = disk.fsync / 4;
            let before = rt.random() % (3 * quarter.as_nanos() as u64);
            rt.sleep(Duration::from_nanos(before)).await;
            disk.records.borrow_mut().insert(record.array.0, record);
            rt.sleep(quarter).await;
            Ok(())
        })
    }

    fn read(&self, array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>> {
        let record = self.disk.records.borrow().get(&array.0).copied();
        Box::pin(async move { Ok(record) })
    }
}

/// Makes an array of a node's devices and begins to use it.
///
/// # Panics
/// If that fails on a healthy site.
pub async fn create(node: &ChunkNode, witness: &WitnessDisk) -> Rc<Array> {
    let rt = node.host.rt();
    let mut legs: Vec<Rc<dyn BlockDevice>> = Vec::new();
    for device in &node.devices {
        let opened = device.opened(rt.now() + Duration::from_secs(60)).await;
        opened.expect("a healthy site");
        legs.push(device.clone());
    }
    let options = CreateOptions {
        name: "vol1".to_owned(),
        equalise: false,
    };
    raid::format::create(&rt, &node.pool, &legs, &options, |_, _| {})
        .await
        .expect("the array is made");
    assembled(node, witness).await
}

/// Assembles the array of whatever legs answer, as often as it takes.
pub async fn assembled(node: &ChunkNode, witness: &WitnessDisk) -> Rc<Array> {
    let rt = &node.host.rt();
    loop {
        let mut legs = Vec::new();
        for device in &node.devices {
            let deadline = rt.now() + Duration::from_millis(500);
            let is_there = device.opened(deadline).await.is_ok();
            legs.push(LegInput {
                name: device.name(),
                device: is_there.then(|| device.clone() as Rc<dyn BlockDevice>),
            });
        }
        let disk: Rc<dyn Witness> = Rc::new(DiskWitness {
            rt: rt.clone(),
            disk: witness.clone(),
        });
        let mut options = raid::Options::new("vol1");
        let devices = node.devices.clone();
        options.on_alone = Some(Rc::new(move |leg, is_alone| {
            let role = if is_alone {
                Role::Alone
            } else {
                Role::MirrorLeg
            };
            devices[usize::from(leg.0)].set_role(role);
        }));
        let made = assemble(rt.clone(), node.pool.clone(), disk, options, legs, false).await;
        match made {
            Ok(array) => return array,
            Err(error) => {
                tracing::debug!(%error, "not assembled yet");
                rt.sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
