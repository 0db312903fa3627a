//! The whole stack on a chunk node: sessions, multipath, mirror and chunk store, over two storage
//! nodes of a [`Site`].

use super::site::{ChunkNode, Site};
use blockdev::{BlockDevice, LocalFuture, Mirror, Rt};
use chunk_store::{FormatParams, Store};
use mpath::Role;
use raid::assemble::{assemble, LegInput};
use raid::format::CreateOptions;
use raid::witness::{Witness, WitnessError, WitnessRecord};
use raid::{Array, Uuid};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How long a start may take before it is said to hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The witness's file: it survives the node's processes.
#[derive(Clone, Default)]
pub struct WitnessDisk {
    records: Rc<RefCell<BTreeMap<[u8; 16], WitnessRecord>>>,
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
            let before = Duration::from_micros(rt.random() % 1500);
            rt.sleep(before).await;
            disk.records.borrow_mut().insert(record.array.0, record);
            rt.sleep(Duration::from_micros(500)).await;
            Ok(())
        })
    }

    fn read(&self, array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>> {
        let record = self.disk.records.borrow().get(&array.0).copied();
        Box::pin(async move { Ok(record) })
    }
}

/// One life of the stack.
pub struct Stack {
    /// Sessions and multipath devices, and the host all of it runs on.
    pub node: ChunkNode,
    /// The mirror.
    pub array: Rc<Array>,
    /// The chunks.
    pub store: Rc<Store>,
}

impl Stack {
    /// Makes array and volume on a new site. Nothing of it runs afterwards.
    ///
    /// # Panics
    /// If that fails on a healthy site.
    pub fn format(site: &Site, witness: &WitnessDisk) {
        let node = ChunkNode::start(site);
        let rt = node.host.rt();
        let (pool, devices) = (node.pool.clone(), node.devices.clone());
        let witness = witness.clone();
        site.world.block_on(async move {
            let mut legs: Vec<Rc<dyn BlockDevice>> = Vec::new();
            for device in &devices {
                device
                    .opened(rt.now() + PATIENCE)
                    .await
                    .expect("a healthy site");
                legs.push(device.clone());
            }
            let options = CreateOptions {
                name: "vol1".to_owned(),
                equalise: false,
            };
            raid::format::create(&rt, &pool, &legs, &options, |_, _| {})
                .await
                .expect("the array is made");
            let array = mirror(&rt, &node, &witness).await;
            let params = FormatParams::new("vol1", [7; 16], [9; 16]);
            chunk_store::format(array.clone(), &pool, &params)
                .await
                .expect("the volume is made");
            array.recovered();
            array.stop().await;
            for device in &devices {
                device.close().await;
            }
        });
    }

    /// Starts the node and opens the volume.
    ///
    /// # Panics
    /// If the volume is not served within a minute.
    pub fn start(site: &Site, witness: &WitnessDisk) -> Stack {
        let node = ChunkNode::start(site);
        let (rt, pool, witness) = (node.host.rt(), node.pool.clone(), witness.clone());
        let limit = rt.now() + PATIENCE;
        site.world.block_on(async move {
            let opening = async {
                let array = mirror(&rt, &node, &witness).await;
                let mirror: Rc<dyn Mirror> = array.clone();
                let options = chunk_store::Options {
                    cache_bytes: 1 << 20,
                    ..Default::default()
                };
                let store = Store::open(mirror, rt.clone(), pool, options).await;
                (array, store)
            };
            let opened = rt.by(limit, opening).await;
            let (array, store) = opened.expect("the volume is opened within a minute");
            let store = store.unwrap_or_else(|e| panic!("the volume opens: {e}"));
            Stack { node, array, store }
        })
    }

    /// Whether both legs are in sync.
    pub fn is_whole(&self) -> bool {
        (0..2).all(|leg| self.array.in_sync(blockdev::LegIndex(leg)))
    }

    /// State of the legs, for people.
    pub fn legs(&self) -> Vec<String> {
        let snapshot = self.array.snapshot();
        let legs = snapshot.legs.iter();
        legs.map(|leg| format!("{leg:?}")).collect()
    }

    /// SIGTERM: everything is flushed and says goodbye.
    pub fn stop(self, site: &Site) {
        let Stack { node, array, store } = self;
        let devices = node.devices.clone();
        site.world.block_on(async move {
            let stopped = store.stop().await;
            stopped.unwrap_or_else(|e| panic!("the store stops: {e:?}"));
            array.stop().await;
            for device in devices {
                device.close().await;
            }
        });
        node.kill();
    }
}

/// Assembles the array of whatever legs answer, as often as it takes.
async fn mirror(rt: &Rt, node: &ChunkNode, witness: &WitnessDisk) -> Rc<Array> {
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
