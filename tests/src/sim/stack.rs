//! The whole stack on a chunk node: sessions, multipath, mirror and chunk store, over two storage
//! nodes of a [`Site`].

use super::mirror::{self, WitnessDisk};
use super::site::{ChunkNode, Site};
use blockdev::Mirror;
use chunk_store::{FormatParams, Store};
use raid::Array;
use std::rc::Rc;
use std::time::Duration;

/// How long a start may take before it is said to hang.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let (pool, devices) = (node.pool.clone(), node.devices.clone());
        let witness = witness.clone();
        site.world.block_on(async move {
            let array = mirror::create(&node, &witness).await;
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
                let array = mirror::assembled(&node, &witness).await;
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
