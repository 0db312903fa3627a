//! A disk in memory with a volatile write cache, and what a power cut does to it.

/// Bytes of a logical block.
pub(crate) const BLOCK_BYTES: usize = 512;

/// What becomes of the writes in the cache when power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerCut {
    /// All are gone.
    Drop,
    /// Some are on the medium, chosen without regard to the order in which they were answered.
    Reorder(u64),
    /// The same, and one of them only in part, cut at a block.
    Tear(u64),
}

struct Cached {
    at: usize,
    data: Vec<u8>,
}

/// The disk of a target.
pub(crate) struct Disk {
    media: Vec<u8>,
    cache: Vec<Cached>,
    /// Whether writes stay in the cache until they are flushed.
    pub(crate) write_cache: bool,
}

impl Disk {
    pub(crate) fn new(bytes: usize, write_cache: bool) -> Disk {
        assert_eq!(bytes % BLOCK_BYTES, 0);
        Disk {
            media: vec![0; bytes],
            cache: Vec::new(),
            write_cache,
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        (self.media.len() / BLOCK_BYTES) as u64
    }

    /// Whether the blocks exist.
    pub(crate) fn has(&self, lba: u64, blocks: u64) -> bool {
        lba.checked_add(blocks)
            .is_some_and(|end| end <= self.blocks())
    }

    /// What a READ sees: the medium under the cache.
    pub(crate) fn read(&self, lba: u64, blocks: u64, out: &mut Vec<u8>) {
        let at = lba as usize * BLOCK_BYTES;
        let len = blocks as usize * BLOCK_BYTES;
        let from = out.len();
        out.extend_from_slice(&self.media[at..at + len]);
        for cached in &self.cache {
            let (first, last) = (
                cached.at.max(at),
                (cached.at + cached.data.len()).min(at + len),
            );
            if first < last {
                let part = &cached.data[first - cached.at..last - cached.at];
                out[from + first - at..from + last - at].copy_from_slice(part);
            }
        }
    }

    pub(crate) fn write(&mut self, lba: u64, data: &[u8], fua: bool) {
        let at = lba as usize * BLOCK_BYTES;
        if self.write_cache && !fua {
            let data = data.to_vec();
            return self.cache.push(Cached { at, data });
        }
        // What is older in the cache must not come over it later.
        if !self.cache.is_empty() {
            self.flush();
        }
        self.media[at..at + data.len()].copy_from_slice(data);
    }

    pub(crate) fn flush(&mut self) {
        for cached in std::mem::take(&mut self.cache) {
            self.media[cached.at..cached.at + cached.data.len()].copy_from_slice(&cached.data);
        }
    }

    /// Blocks written since the last flush that a power cut may take.
    pub(crate) fn unflushed_blocks(&self) -> usize {
        let bytes: usize = self.cache.iter().map(|cached| cached.data.len()).sum();
        bytes / BLOCK_BYTES
    }

    pub(crate) fn power_cut(&mut self, how: PowerCut) {
        let mut cache = std::mem::take(&mut self.cache);
        let mut seed = match how {
            PowerCut::Drop => return,
            PowerCut::Reorder(seed) | PowerCut::Tear(seed) => seed,
        };
        let mut dice = move |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below.max(1)
        };
        let mut torn = matches!(how, PowerCut::Tear(_));
        while !cache.is_empty() {
            let mut one = cache.swap_remove(dice(cache.len()));
            if std::mem::take(&mut torn) {
                let blocks = one.data.len() / BLOCK_BYTES;
                one.data.truncate(dice(blocks) * BLOCK_BYTES);
            } else if dice(2) == 0 {
                continue;
            }
            self.media[one.at..one.at + one.data.len()].copy_from_slice(&one.data);
        }
    }

    /// The medium alone: what a power cut now would leave at least.
    pub(crate) fn media(&self, lba: u64, blocks: u64) -> &[u8] {
        let at = lba as usize * BLOCK_BYTES;
        &self.media[at..at + blocks as usize * BLOCK_BYTES]
    }
}
