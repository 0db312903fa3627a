//! The claim: who owns a leg (promise P11).
//!
//! A claim is a record of its own in 8 rotating slots of each leg's headroom, outside the array.
//! Its owner refreshes it every 2 s with a higher counter; whoever else wants the volume sees it
//! and stays away, or takes it: writes its own claim, fences the recorded ISIDs, reads it back.
//! The owner reads the claim on each new session before its first write there ([`ClaimGate`]),
//! and stops for good when it is another's. Claim slots alone may be written before the fence.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ANTLCLM1` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags, 0 |
//! | 16 | 16 | array UUID |
//! | 32 | 16 | node UUID of the owner |
//! | 48 | 8 | counter: the highest on a leg is the newest |
//! | 56 | 8 | written, µs since 1970 |
//! | 64 | 2 | bytes of the initiator name |
//! | 66 | 2 | number of ISIDs |
//! | 72 | 224 | initiator name, UTF-8 |
//! | 296 | 6 each | ISIDs that may have written |
//! | 4092 | 4 | CRC-32 of all before |

use crate::bytes::{is_sealed, Fields, Page};
use crate::layout::{Places, CLAIM_SLOTS, SLOT_BYTES, SLOT_SECTORS};
use crate::uuid::Uuid;
use blockdev::path::Isid;
use blockdev::rt::Wall;
use blockdev::{
    Admission, BlockDevice, Durability, IoCtx, IoError, IoVec, Kind, LocalFuture, Op, Pool,
    ReadSectors, Refusal,
};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;

const MAGIC: &[u8; 8] = b"ANTLCLM1";
const VERSION: u32 = 1;
const NAME_BYTES_MAX: usize = 224;
const ISIDS_AT: usize = 296;
/// ISIDs that a claim has room for: the paths of one array, all legs and spares together.
pub const ISIDS_MAX: usize = (SLOT_BYTES - 4 - ISIDS_AT) / 6;

/// How often an owner refreshes its claim.
pub const REFRESH: Duration = Duration::from_secs(2);
/// A claim that advanced within this time has a living owner.
pub const ALIVE: Duration = Duration::from_secs(6);

/// Who claims, without counter and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Identity of the node.
    pub node: Uuid,
    /// iSCSI name under which it logs in, at most 224 bytes.
    pub initiator_name: String,
    /// ISIDs of every session that may write, at most [`ISIDS_MAX`].
    pub isids: Vec<Isid>,
}

/// A claim as it lies in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Array it was made for.
    pub array: Uuid,
    /// Whose it is.
    pub owner: Owner,
    /// The highest on a leg is the newest.
    pub counter: u64,
    /// When it was written.
    pub time: Wall,
}

impl Claim {
    /// The 4 KiB of its slot.
    ///
    /// # Panics
    /// If name or ISIDs exceed the slot.
    pub fn encode(&self) -> Box<[u8; SLOT_BYTES]> {
        let name = self.owner.initiator_name.as_bytes();
        assert!(name.len() <= NAME_BYTES_MAX, "initiator name too long");
        assert!(self.owner.isids.len() <= ISIDS_MAX, "too many sessions");
        let mut page = Page::new();
        page.put(0, MAGIC)
            .put(8, &VERSION.to_le_bytes())
            .put(16, &self.array.0)
            .put(32, &self.owner.node.0)
            .put(48, &self.counter.to_le_bytes())
            .put(56, &self.time.0.to_le_bytes())
            .put(64, &(name.len() as u16).to_le_bytes())
            .put(66, &(self.owner.isids.len() as u16).to_le_bytes())
            .put(72, name);
        for (i, isid) in self.owner.isids.iter().enumerate() {
            page.put(ISIDS_AT + 6 * i, &isid.0);
        }
        page.seal();
        page.0
    }

    /// Reads a slot; `None` if it holds no whole claim.
    pub fn parse(page: &[u8]) -> Option<Claim> {
        let fields = Fields(page);
        if !is_sealed(page) || fields.array::<8>(0) != *MAGIC || fields.u32(8) != VERSION {
            return None;
        }
        let name_bytes = usize::from(fields.u16(64));
        let isids = usize::from(fields.u16(66));
        if name_bytes > NAME_BYTES_MAX || isids > ISIDS_MAX {
            return None;
        }
        let name = page.get(72..72 + name_bytes)?;
        let owner = Owner {
            node: Uuid(fields.array(32)),
            initiator_name: String::from_utf8(name.to_vec()).ok()?,
            isids: (0..isids)
                .map(|i| Isid(fields.array(ISIDS_AT + 6 * i)))
                .collect(),
        };
        Some(Claim {
            array: Uuid(fields.array(16)),
            owner,
            counter: fields.u64(48),
            time: Wall(fields.u64(56)),
        })
    }

    /// The newest claim among the slots of a leg.
    pub fn newest(slots: &[u8]) -> Option<Claim> {
        slots
            .chunks(SLOT_BYTES)
            .filter_map(Claim::parse)
            .max_by_key(|claim| claim.counter)
    }
}

/// Reads the newest claim of a leg.
pub async fn read_claim(
    device: &dyn BlockDevice,
    places: &Places,
) -> Result<Option<Claim>, IoError> {
    let op = Op::Read {
        at: places.claims,
        sectors: (CLAIM_SLOTS * SLOT_SECTORS) as u32,
    };
    let slots = device.submit(op, IoCtx::metadata()).await?.into_data();
    Ok(Claim::newest(&slots.to_vec()))
}

/// Writes a claim to the next slot of a leg that no unanswered write may still hit.
pub async fn write_claim(
    device: &dyn BlockDevice,
    pool: &Pool,
    places: &Places,
    claim: &Claim,
) -> Result<(), IoError> {
    let slot = (0..CLAIM_SLOTS)
        .map(|skip| places.claim_slot(claim.counter + skip))
        .find(|slot| !device.tainted(slot.clone()))
        .unwrap_or_else(|| places.claim_slot(claim.counter));
    let op = Op::Write {
        at: slot.start,
        data: pool.copy_now(&claim.encode()[..]),
        want: Durability::Fua,
    };
    device.submit(op, IoCtx::metadata()).await.map(|_| ())
}

/// Why a claim could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TakeError {
    /// A leg failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The old owner's sessions could not be fenced.
    #[error("the former owner could not be fenced: {0}")]
    Fence(IoError),
    /// Another node took it at the same time.
    #[error("claimed by node {0} meanwhile")]
    Lost(Uuid),
}

/// Takes over one leg: claim written, *then* `fence` (of the ISIDs recorded before, which it is
/// given), *then* the claim read back. Any other order lets two owners live.
pub async fn take_claim(
    device: &dyn BlockDevice,
    pool: &Pool,
    places: &Places,
    array: Uuid,
    owner: &Owner,
    now: Wall,
    fence: impl FnOnce(Option<Claim>) -> LocalFuture<Result<(), IoError>>,
) -> Result<Claim, TakeError> {
    let before = read_claim(device, places).await?;
    let claim = Claim {
        array,
        owner: owner.clone(),
        counter: before.as_ref().map_or(1, |c| c.counter.saturating_add(1)),
        time: now,
    };
    write_claim(device, pool, places, &claim).await?;
    fence(before).await.map_err(TakeError::Fence)?;
    if !blockdev::mutation::off("claim.read-back") {
        match read_claim(device, places).await? {
            Some(found) if found.owner.node == owner.node => {}
            Some(found) => return Err(TakeError::Lost(found.owner.node)),
            None => return Err(TakeError::Lost(Uuid::default())),
        }
    }
    Ok(claim)
}

/// Asked on each new session of a leg: is the claim still ours?
pub struct ClaimGate {
    node: Uuid,
    places: Places,
    lost: Cell<Option<Uuid>>,
    on_loss: Box<dyn Fn(Uuid)>,
}

impl ClaimGate {
    /// For a leg with these places. `on_loss` is told the new owner, once.
    pub fn new(node: Uuid, places: Places, on_loss: impl Fn(Uuid) + 'static) -> ClaimGate {
        ClaimGate {
            node,
            places,
            lost: Cell::new(None),
            on_loss: Box::new(on_loss),
        }
    }

    fn judge(&self, slots: &IoVec) -> Result<(), IoError> {
        let owner = Claim::newest(&slots.to_vec()).map(|claim| claim.owner.node);
        match owner {
            Some(node) if node != self.node => {
                if self.lost.replace(Some(node)).is_none() {
                    (self.on_loss)(node);
                }
                Err(IoError::not_applied(Kind::Refused(Refusal::NotOwner)))
            }
            _ => Ok(()),
        }
    }
}

/// The gate as devices want it.
pub(crate) struct SharedGate(pub(crate) Rc<ClaimGate>);

impl Admission for SharedGate {
    fn admit(&self, session: Rc<dyn ReadSectors>) -> LocalFuture<Result<(), IoError>> {
        let gate = self.0.clone();
        Box::pin(async move {
            let sectors = (CLAIM_SLOTS * SLOT_SECTORS) as u32;
            let slots = session.read(gate.places.claims, sectors).await?;
            gate.judge(&slots)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::tests::sample;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::Geometry;
    use proptest::prelude::*;

    fn claim(node: u8, counter: u64) -> Claim {
        Claim {
            array: Uuid([1; 16]),
            owner: owner(node),
            counter,
            time: Wall(5),
        }
    }

    fn owner(node: u8) -> Owner {
        Owner {
            node: Uuid([node; 16]),
            initiator_name: "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator".into(),
            isids: vec![Isid([0x80, 1, 2, 3, 4, 5])],
        }
    }

    fn leg(world: &VirtualRt, pool: &Pool) -> (MemDevice, Places) {
        let geometry = Geometry::plain(700_000);
        let device = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
        (device, Places::of(&sample(), 319).expect("places"))
    }

    #[test]
    fn claims_rotate_and_the_newest_counts() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let (device, places) = leg(&world, &pool);
        let read = world.block_on(async move {
            for counter in 1..=20 {
                write_claim(&device, &pool, &places, &claim(1, counter)).await?;
            }
            read_claim(&device, &places).await
        });
        assert_eq!(read, Ok(Some(claim(1, 20))));
    }

    #[test]
    fn a_take_over_reads_its_claim_back() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let (device, places) = leg(&world, &pool);
        let taken = world.block_on(async move {
            let rival = (device.clone(), pool.clone());
            let fence = move |_: Option<Claim>| -> LocalFuture<Result<(), IoError>> {
                Box::pin(
                    async move { write_claim(&rival.0, &rival.1, &places, &claim(2, 9)).await },
                )
            };
            let me = owner(1);
            take_claim(&device, &pool, &places, Uuid([1; 16]), &me, Wall(1), fence).await
        });
        assert_eq!(
            taken,
            Err(TakeError::Lost(Uuid([2; 16]))),
            "claim.read-back"
        );
    }

    #[test]
    fn the_gate_refuses_a_foreign_claim_and_tells_once() {
        let world = VirtualRt::new(1);
        let pool = Pool::new(1 << 20);
        let (device, places) = leg(&world, &pool);
        let told = Rc::new(Cell::new(0));
        let counted = told.clone();
        let gate = Rc::new(ClaimGate::new(Uuid([1; 16]), places, move |_| {
            counted.set(counted.get() + 1);
        }));
        struct Session(MemDevice);
        impl ReadSectors for Session {
            fn read(
                &self,
                at: blockdev::Sector,
                sectors: u32,
            ) -> LocalFuture<Result<IoVec, IoError>> {
                let read = self.0.submit(Op::Read { at, sectors }, IoCtx::metadata());
                Box::pin(async move { read.await.map(blockdev::Done::into_data) })
            }
        }
        world.block_on(async move {
            let session: Rc<dyn ReadSectors> = Rc::new(Session(device.clone()));
            let gate = SharedGate(gate);
            assert!(gate.admit(session.clone()).await.is_ok(), "no claim yet");
            write_claim(&device, &pool, &places, &claim(1, 1))
                .await
                .expect("own");
            assert!(gate.admit(session.clone()).await.is_ok(), "our own");
            write_claim(&device, &pool, &places, &claim(2, 2))
                .await
                .expect("foreign");
            for _ in 0..2 {
                let refused = gate.admit(session.clone()).await.expect_err("foreign");
                assert_eq!(refused.kind, Kind::Refused(Refusal::NotOwner));
            }
        });
        assert_eq!(told.get(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(page in prop::collection::vec(any::<u8>(), 4096)) {
            prop_assert_eq!(Claim::parse(&page), None);
        }

        #[test]
        fn what_is_written_is_read(node in any::<u8>(), counter in any::<u64>(), isids in 0usize..632) {
            let mut claim = claim(node, counter);
            claim.owner.isids = vec![Isid([9; 6]); isids];
            prop_assert_eq!(Claim::parse(&claim.encode()[..]), Some(claim));
        }
    }
}
