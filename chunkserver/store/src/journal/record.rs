//! What a frame says happened. Records name directory slots, not ids.

use crate::layout::{Ptr, Reader};
use smallvec::SmallVec;

/// Pointers of a Map record: at most one block's.
pub(crate) type Ptrs = SmallVec<[Ptr; 16]>;

/// One change of the store's metadata. Map, by far the most frequent, is the large one: it lives on
/// the stack of the write that makes it, without an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A new chunk, or with `replica` one under construction.
    Create {
        slot: u32,
        id: u64,
        version: u32,
        replica: bool,
    },
    /// Granules `first..` of a block lie there now; the chunk has at least `block + 1` blocks.
    Map {
        slot: u32,
        block: u16,
        first: u8,
        ptrs: Ptrs,
    },
    /// Another version.
    SetVersion { slot: u32, version: u32 },
    /// Cut or extended to `length` bytes; the granule that `length` cuts through lies at `edge`.
    Truncate {
        slot: u32,
        version: u32,
        length: u32,
        edge: Ptr,
    },
    /// A copy in `new` of what is in `old`, cut or extended as `Truncate`.
    Duplicate {
        new: u32,
        old: u32,
        id: u64,
        version: u32,
        length: Option<u32>,
        edge: Ptr,
    },
    /// Deleted, held back.
    Quarantine { slot: u32, at: u32, flags: u8 },
    /// Back from the quarantine.
    Restore { slot: u32 },
    /// Gone for good.
    Purge { slot: u32 },
    /// A replica becomes a chunk of `blocks` blocks.
    ReplicaCommit { slot: u32, blocks: u16 },
}

impl Record {
    /// Appends its bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Create {
                slot,
                id,
                version,
                replica,
            } => {
                out.push(1);
                out.extend(slot.to_le_bytes());
                out.extend(id.to_le_bytes());
                out.extend(version.to_le_bytes());
                out.push(u8::from(*replica));
            }
            Record::Map {
                slot,
                block,
                first,
                ptrs,
            } => {
                out.push(2);
                out.extend(slot.to_le_bytes());
                out.extend(block.to_le_bytes());
                out.extend([*first, ptrs.len() as u8]);
                ptrs.iter().for_each(|ptr| out.extend(ptr.encode()));
            }
            Record::SetVersion { slot, version } => {
                out.push(3);
                out.extend(slot.to_le_bytes());
                out.extend(version.to_le_bytes());
            }
            Record::Truncate {
                slot,
                version,
                length,
                edge,
            } => {
                out.push(4);
                out.extend(slot.to_le_bytes());
                out.extend(version.to_le_bytes());
                out.extend(length.to_le_bytes());
                out.extend(edge.encode());
            }
            Record::Duplicate {
                new,
                old,
                id,
                version,
                length,
                edge,
            } => {
                out.push(5);
                out.extend(new.to_le_bytes());
                out.extend(old.to_le_bytes());
                out.extend(id.to_le_bytes());
                out.extend(version.to_le_bytes());
                out.extend(length.unwrap_or(u32::MAX).to_le_bytes());
                out.extend(edge.encode());
            }
            Record::Quarantine { slot, at, flags } => {
                out.push(6);
                out.extend(slot.to_le_bytes());
                out.extend(at.to_le_bytes());
                out.push(*flags);
            }
            Record::Restore { slot } => {
                out.push(7);
                out.extend(slot.to_le_bytes());
            }
            Record::Purge { slot } => {
                out.push(8);
                out.extend(slot.to_le_bytes());
            }
            Record::ReplicaCommit { slot, blocks } => {
                out.push(9);
                out.extend(slot.to_le_bytes());
                out.extend(blocks.to_le_bytes());
            }
        }
    }

    /// The next record; `None`: these bytes are none.
    pub(crate) fn decode(r: &mut Reader<'_>) -> Option<Record> {
        let length = |n: u32| (n <= chunk_api::CHUNK_BYTES).then_some(n);
        Some(match r.u8()? {
            1 => Record::Create {
                slot: r.u32()?,
                id: r.u64()?,
                version: r.u32()?,
                replica: r.u8()? != 0,
            },
            2 => {
                let (slot, block, first, count) = (r.u32()?, r.u16()?, r.u8()?, r.u8()?);
                if block >= chunk_api::BLOCKS_PER_CHUNK || first.checked_add(count)? > 16 {
                    return None;
                }
                let ptrs = (0..count).map(|_| r.ptr()).collect::<Option<Ptrs>>()?;
                Record::Map {
                    slot,
                    block,
                    first,
                    ptrs,
                }
            }
            3 => Record::SetVersion {
                slot: r.u32()?,
                version: r.u32()?,
            },
            4 => Record::Truncate {
                slot: r.u32()?,
                version: r.u32()?,
                length: length(r.u32()?)?,
                edge: r.ptr()?,
            },
            5 => Record::Duplicate {
                new: r.u32()?,
                old: r.u32()?,
                id: r.u64()?,
                version: r.u32()?,
                length: match r.u32()? {
                    u32::MAX => None,
                    n => Some(length(n)?),
                },
                edge: r.ptr()?,
            },
            6 => Record::Quarantine {
                slot: r.u32()?,
                at: r.u32()?,
                flags: r.u8()?,
            },
            7 => Record::Restore { slot: r.u32()? },
            8 => Record::Purge { slot: r.u32()? },
            9 => Record::ReplicaCommit {
                slot: r.u32()?,
                blocks: r.u16()?,
            },
            _ => return None,
        })
    }

    /// Fresh units that the record points to: whose data was written along with it.
    pub(crate) fn fresh(&self) -> Ptrs {
        let mut out = match self {
            Record::Map { ptrs, .. } => ptrs.clone(),
            Record::Truncate { edge, .. } | Record::Duplicate { edge, .. } => {
                Ptrs::from_slice(&[*edge])
            }
            _ => Ptrs::new(),
        };
        out.retain(|ptr| !ptr.is_hole());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ptr() -> impl Strategy<Value = Ptr> {
        (0u64..1 << 40, any::<u32>()).prop_map(|(unit, crc)| Ptr { unit, crc })
    }

    fn record() -> impl Strategy<Value = Record> {
        let slot = any::<u32>;
        let length = || 0u32..=64 << 20;
        prop_oneof![
            (slot(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(
                |(slot, id, version, replica)| Record::Create {
                    slot,
                    id,
                    version,
                    replica
                }
            ),
            (slot(), 0u16..1024, prop::collection::vec(ptr(), 0..=16)).prop_map(
                |(slot, block, ptrs)| Record::Map {
                    slot,
                    block,
                    first: 16 - ptrs.len() as u8,
                    ptrs: ptrs.into(),
                }
            ),
            (slot(), any::<u32>(), length(), ptr()).prop_map(|(slot, version, length, edge)| {
                Record::Truncate {
                    slot,
                    version,
                    length,
                    edge,
                }
            }),
            (
                slot(),
                slot(),
                any::<u64>(),
                prop::option::of(length()),
                ptr()
            )
                .prop_map(|(new, old, id, length, edge)| Record::Duplicate {
                    new,
                    old,
                    id,
                    version: 3,
                    length,
                    edge,
                }),
            (slot(), any::<u32>(), any::<u8>()).prop_map(|(slot, at, flags)| Record::Quarantine {
                slot,
                at,
                flags
            }),
            slot().prop_map(|slot| Record::Purge { slot }),
            slot().prop_map(|slot| Record::Restore { slot }),
            (slot(), any::<u16>())
                .prop_map(|(slot, blocks)| Record::ReplicaCommit { slot, blocks }),
            (slot(), any::<u32>()).prop_map(|(slot, version)| Record::SetVersion { slot, version }),
        ]
    }

    proptest! {
        #[test]
        fn records_round_trip(records in prop::collection::vec(record(), 1..10)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|r| r.encode(&mut bytes));
            let mut reader = Reader(&bytes);
            for record in records {
                prop_assert_eq!(Record::decode(&mut reader), Some(record));
            }
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn any_bytes_are_judged_without_panic(kind in 0u8..12, mut bytes: Vec<u8>) {
            bytes.insert(0, kind);
            let mut reader = Reader(&bytes);
            while Record::decode(&mut reader).is_some() {}
        }
    }
}
