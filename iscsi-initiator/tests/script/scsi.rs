//! What the target's disk answers to a CDB.

use super::disk::{Disk, BLOCK_BYTES};
use super::wire::{u32_at, u64_at};

/// Persistent reservations, as far as a test needs them.
#[derive(Default)]
pub(crate) struct Reservations {
    pub(crate) generation: u32,
    /// Key by nexus.
    pub(crate) keys: Vec<(Vec<u8>, u64)>,
    /// Holder's nexus and type.
    pub(crate) holder: Option<(Vec<u8>, u8)>,
}

/// How a command ends.
pub(crate) struct Ended {
    pub(crate) status: u8,
    pub(crate) sense: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Ended {
    pub(crate) fn good(data: Vec<u8>) -> Ended {
        Ended {
            status: 0,
            sense: Vec::new(),
            data,
        }
    }

    pub(crate) fn check(key: u8, asc: u8, ascq: u8) -> Ended {
        let mut sense = vec![0; 18];
        (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, asc, ascq);
        Ended {
            status: 2,
            sense,
            data: Vec::new(),
        }
    }

    fn conflict() -> Ended {
        Ended {
            status: 0x18,
            sense: Vec::new(),
            data: Vec::new(),
        }
    }
}

/// First block, blocks, FUA of a READ or WRITE of either length.
pub(crate) fn extent(cdb: &[u8]) -> (u64, u64, bool) {
    let fua = cdb[1] & 0x08 != 0;
    match cdb[0] {
        0x28 | 0x2a => (
            u32_at(cdb, 2).into(),
            u64::from(u16::from_be_bytes([cdb[7], cdb[8]])),
            fua,
        ),
        _ => (u64_at(cdb, 2), u32_at(cdb, 10).into(), fua),
    }
}

/// Runs a command that has all its data.
pub(crate) fn execute(
    disk: &mut Disk,
    reservations: &mut Reservations,
    nexus: &[u8],
    cdb: &[u8],
    data: &[u8],
) -> Ended {
    let (lba, blocks, fua) = extent(cdb);
    let is_medium = matches!(cdb[0], 0x28 | 0x2a | 0x88 | 0x8a | 0x89 | 0x93);
    if is_medium && !disk.has(lba, blocks) {
        return Ended::check(5, 0x21, 0);
    }
    let writes = matches!(cdb[0], 0x2a | 0x8a | 0x89 | 0x93 | 0x42);
    if writes && !reservations.may_write(nexus) {
        return Ended::conflict();
    }
    match cdb[0] {
        0x00 => Ended::good(Vec::new()),
        0x03 => {
            let sense = match cdb[1] & 1 {
                0 => [0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
                _ => [0x72, 0, 0, 0, 0, 0, 0, 0].to_vec(),
            };
            Ended::good(sense)
        }
        0x12 => inquiry(cdb),
        0x1a => Ended::good(vec![
            15,
            0,
            0x10,
            0,
            8,
            10,
            u8::from(disk.write_cache) << 2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]),
        0x5a => Ended::good(vec![
            0,
            18,
            0,
            0x10,
            0,
            0,
            0,
            0,
            8,
            10,
            u8::from(disk.write_cache) << 2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]),
        0x25 => {
            let last = (disk.blocks() - 1) as u32;
            Ended::good([last.to_be_bytes(), (BLOCK_BYTES as u32).to_be_bytes()].concat())
        }
        0x9e => {
            let mut data = (disk.blocks() - 1).to_be_bytes().to_vec();
            data.extend((BLOCK_BYTES as u32).to_be_bytes());
            data.extend([0, 3, 0xc0, 0]);
            data.resize(32, 0);
            Ended::good(data)
        }
        0x28 | 0x88 => {
            let mut data = Vec::new();
            disk.read(lba, blocks, &mut data);
            Ended::good(data)
        }
        0x2a | 0x8a => {
            disk.write(lba, data, fua);
            Ended::good(Vec::new())
        }
        0x35 | 0x91 => {
            disk.flush();
            Ended::good(Vec::new())
        }
        0x42 => unmap(disk, data),
        0x93 => {
            for block in lba..lba + blocks {
                disk.write(block, data, false);
            }
            Ended::good(Vec::new())
        }
        0x89 => compare_and_write(disk, lba, cdb[13].into(), data, fua),
        0xa0 => {
            let mut list = vec![0, 0, 0, 8, 0, 0, 0, 0];
            list.extend([0, 1, 0, 0, 0, 0, 0, 0]);
            Ended::good(list)
        }
        0xa3 if cdb[1] == 0x0a => {
            Ended::good(vec![0, 0, 0, 12, 0, 0x0f, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1])
        }
        0x5e => reservations.tell(cdb[1] & 0x1f),
        0x5f => reservations.change(nexus, cdb, data),
        0xa3 => Ended::check(5, 0x24, 0),
        _ => Ended::check(5, 0x20, 0),
    }
}

fn inquiry(cdb: &[u8]) -> Ended {
    let page = |payload: &[u8]| {
        let mut data = vec![0, cdb[2], 0, payload.len() as u8];
        data.extend(payload);
        Ended::good(data)
    };
    match (cdb[1] & 1, cdb[2]) {
        (0, _) => {
            let mut data = b"\0\0\x05\x02\x1f\x10\0\x02ANTLER  SCRIPTED DISK   0001".to_vec();
            data.resize(36, b' ');
            Ended::good(data)
        }
        (_, 0x00) => page(&[0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]),
        (_, 0x80) => page(b"scripted"),
        (_, 0x83) => {
            let mut ids = vec![
                0x01, 0x03, 0, 16, 0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
            ];
            ids.extend([0x01, 0x15, 0, 4, 0, 0, 0, 1]);
            page(&ids)
        }
        (_, 0xb0) => {
            let mut limits = [0; 60];
            limits[1] = 255;
            limits[16..20].copy_from_slice(&8192u32.to_be_bytes());
            limits[20..24].copy_from_slice(&16u32.to_be_bytes());
            page(&limits)
        }
        (_, 0xb1) => page(&[0, 1, 0, 0]),
        (_, 0xb2) => page(&[0, 0xc4, 2, 0]),
        _ => Ended::check(5, 0x24, 0),
    }
}

fn unmap(disk: &mut Disk, data: &[u8]) -> Ended {
    let ranges = data.get(8..).unwrap_or_default().chunks_exact(16);
    for range in ranges {
        let (lba, blocks) = (u64_at(range, 0), u32_at(range, 8).into());
        if !disk.has(lba, blocks) {
            return Ended::check(5, 0x21, 0);
        }
        disk.write(lba, &vec![0; blocks as usize * BLOCK_BYTES], false);
    }
    Ended::good(Vec::new())
}

fn compare_and_write(disk: &mut Disk, lba: u64, blocks: u64, data: &[u8], fua: bool) -> Ended {
    let (expected, new) = data.split_at(blocks as usize * BLOCK_BYTES);
    let mut now = Vec::new();
    disk.read(lba, blocks, &mut now);
    let Some(at) = now.iter().zip(expected).position(|(a, b)| a != b) else {
        disk.write(lba, new, fua);
        return Ended::good(Vec::new());
    };
    let mut miscompare = Ended::check(0x0e, 0x1d, 0);
    miscompare.sense[0] |= 0x80;
    miscompare.sense[3..7].copy_from_slice(&(at as u32).to_be_bytes());
    miscompare
}

impl Reservations {
    fn key(&self, nexus: &[u8]) -> u64 {
        let found = self.keys.iter().find(|(name, _)| name == nexus);
        found.map_or(0, |(_, key)| *key)
    }

    fn may_write(&self, nexus: &[u8]) -> bool {
        match &self.holder {
            None => true,
            Some((holder, kind)) => holder == nexus || (*kind >= 5 && self.key(nexus) != 0),
        }
    }

    fn tell(&self, action: u8) -> Ended {
        let mut list = Vec::new();
        match action {
            0 => self
                .keys
                .iter()
                .for_each(|(_, key)| list.extend(key.to_be_bytes())),
            1 => {
                if let Some((holder, kind)) = &self.holder {
                    list.extend(self.key(holder).to_be_bytes());
                    list.extend([0, 0, 0, 0, 0, *kind, 0, 0]);
                }
            }
            2 => return Ended::good(vec![0, 8, 0x01, 0x80, 0xea, 0x01, 0, 0]),
            _ => return Ended::check(5, 0x24, 0),
        }
        let head = [
            self.generation.to_be_bytes(),
            (list.len() as u32).to_be_bytes(),
        ]
        .concat();
        Ended::good([head, list].concat())
    }

    fn change(&mut self, nexus: &[u8], cdb: &[u8], data: &[u8]) -> Ended {
        let (own, new, kind) = (u64_at(data, 0), u64_at(data, 8), cdb[2] & 0x0f);
        let action = cdb[1] & 0x1f;
        if action != 6 && self.key(nexus) != own {
            return Ended::conflict();
        }
        match action {
            0 | 6 => {
                self.generation += 1;
                self.keys.retain(|(name, _)| name != nexus);
                if new != 0 {
                    self.keys.push((nexus.to_vec(), new));
                }
            }
            1 => match &self.holder {
                Some((holder, _)) if holder != nexus => return Ended::conflict(),
                _ => self.holder = Some((nexus.to_vec(), kind)),
            },
            2 => self.holder = None,
            3 => {
                *self = Reservations {
                    generation: self.generation + 1,
                    ..Default::default()
                }
            }
            4 | 5 => {
                self.generation += 1;
                let held = self
                    .holder
                    .as_ref()
                    .is_some_and(|(holder, _)| self.key(holder) == new);
                self.keys.retain(|(name, key)| *key != new || name == nexus);
                if held {
                    self.holder = Some((nexus.to_vec(), kind));
                }
            }
            _ => return Ended::check(5, 0x24, 0),
        }
        Ended::good(Vec::new())
    }
}
