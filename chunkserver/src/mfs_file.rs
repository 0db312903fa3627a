//! Chunk files as stock MooseFS keeps them: `DIR/HH/chunk_ID_VERSION.mfs` (its `hddspacemgr`).
//!
//! | bytes | what (big-endian) |
//! |---|---|
//! | 0 | `MFSC 1.0` or `MFSC 1.1` |
//! | 8, 16 | chunk id u64, version u32 |
//! | 4096 (old files: 1024) | CRC-32 of each of the 1024 blocks |
//! | 8192 (old files: 5120) | the blocks, 64 KiB each; holes allowed |
//!
//! The header's length follows from the file's: what is left of it without the table is a multiple of a block
//! and 1024 or 4096. A chunk may lie in any of the 256 subdirectories. `.metaid` holds the id of the file system,
//! `.lock` is locked (lockf) by a running mfschunkserver.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use chunk_api::crc::ZERO_BLOCK_CRC;
use chunk_api::{ChunkId, ChunkVersion, BLOCKS_PER_CHUNK, BLOCK_BYTES};

const MAGICS: [&[u8; 8]; 2] = [b"MFSC 1.0", b"MFSC 1.1"];
const TABLE_BYTES: u64 = BLOCKS_PER_CHUNK as u64 * 4;
const HEADER_BYTES: u64 = 4096;
const OLD_HEADER_BYTES: u64 = 1024;
/// Chunks that stock MooseFS puts into one subdirectory before it turns to the next.
const CHUNKS_PER_SUBDIR: u64 = 10_000;

/// A chunk by its file's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    pub(crate) id: ChunkId,
    pub(crate) version: ChunkVersion,
    pub(crate) path: PathBuf,
}

/// `chunk_000000000000001C_00000002.mfs`
pub(crate) fn file_name(id: ChunkId, version: ChunkVersion) -> String {
    format!("chunk_{id}_{version}.mfs")
}

/// The subdirectory of the `n`th chunk of a directory that is being filled.
pub(crate) fn subdir(n: u64) -> String {
    format!("{:02X}", n / CHUNKS_PER_SUBDIR % 256)
}

/// Reads a name; `None`: it is no chunk's.
pub(crate) fn parse_name(name: &OsStr) -> Option<(ChunkId, ChunkVersion)> {
    let (id, version) = name
        .to_str()?
        .strip_prefix("chunk_")?
        .strip_suffix(".mfs")?
        .split_once('_')?;
    let is_hex =
        |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(id, 16) || !is_hex(version, 8) {
        return None;
    }
    let id = u64::from_str_radix(id, 16).ok()?;
    let version = u32::from_str_radix(version, 16).ok()?;
    Some((ChunkId(id), ChunkVersion(version)))
}

/// Every chunk file below a directory: by id, of each id the newest version first. Links are not followed.
pub(crate) fn scan(directory: &Path) -> io::Result<Vec<Named>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if let (true, Some((id, version))) =
                (kind.is_file(), parse_name(&entry.file_name()))
            {
                let path = entry.path();
                found.push(Named { id, version, path });
            }
        }
    }
    found.sort_by(|a, b| {
        let newest_first = b.version.cmp(&a.version);
        a.id.cmp(&b.id).then(newest_first).then(a.path.cmp(&b.path))
    });
    Ok(found)
}

/// The file system that a directory's chunks belong to; `None`: the directory does not say.
pub(crate) fn metaid(directory: &Path) -> io::Result<Option<u64>> {
    match std::fs::read(directory.join(".metaid")) {
        Ok(bytes) => match <[u8; 8]>::try_from(bytes.as_slice()) {
            Ok(id) => Ok(Some(u64::from_be_bytes(id)).filter(|&id| id != 0)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(".metaid has {} bytes, not 8", bytes.len()),
            )),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Notes the file system that a directory's chunks belong to.
pub(crate) fn put_metaid(directory: &Path, metaid: u64) -> io::Result<()> {
    std::fs::write(directory.join(".metaid"), metaid.to_be_bytes())
}

/// The process that serves a directory with stock MooseFS, if one does.
pub(crate) fn holder(directory: &Path) -> io::Result<Option<i32>> {
    use nix::fcntl::{fcntl, FcntlArg};
    let lock = match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join(".lock"))
    {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut asked = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_GETLK(&mut asked))?;
    let is_free = asked.l_type == libc::F_UNLCK as libc::c_short;
    Ok((!is_free).then_some(asked.l_pid))
}

/// A chunk file that is read.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    table: Vec<u8>,
    data_at: u64,
    blocks: u16,
}

impl Reader {
    /// Opens a chunk's file. The inner error says why it is no good chunk file of that name; the outer one is
    /// the file system's.
    pub(crate) fn open(named: &Named) -> io::Result<Result<Reader, String>> {
        let file = File::open(&named.path)?;
        let bytes = file.metadata()?.len();
        let Some((data_at, blocks)) = shape(bytes) else {
            return Ok(Err(format!("{bytes} bytes are no length of a chunk file")));
        };
        let mut header = [0; 20];
        file.read_exact_at(&mut header, 0)?;
        if let Some(why) = misfit(&header, named) {
            return Ok(Err(why));
        }
        let mut table = vec![0; TABLE_BYTES as usize];
        file.read_exact_at(&mut table, data_at - TABLE_BYTES)?;
        Ok(Ok(Reader {
            file,
            table,
            data_at,
            blocks,
        }))
    }

    /// Blocks it has.
    pub(crate) fn blocks(&self) -> u16 {
        self.blocks
    }

    /// What the CRC-32 of a block should be.
    pub(crate) fn crc(&self, block: u16) -> u32 {
        let at = usize::from(block) * 4;
        let word = self.table.get(at..at + 4).and_then(|w| w.try_into().ok());
        word.map_or(0, u32::from_be_bytes)
    }

    /// Reads a block.
    pub(crate) fn read(&self, block: u16, to: &mut [u8]) -> io::Result<()> {
        let at = self.data_at + u64::from(block) * u64::from(BLOCK_BYTES);
        self.file.read_exact_at(to, at)
    }
}

/// Where the data of a file of so many bytes begins, and its blocks.
fn shape(bytes: u64) -> Option<(u64, u16)> {
    let rest = bytes.checked_sub(TABLE_BYTES)?;
    let header = rest % u64::from(BLOCK_BYTES);
    let blocks = u16::try_from(rest / u64::from(BLOCK_BYTES)).ok()?;
    let fits = [HEADER_BYTES, OLD_HEADER_BYTES].contains(&header) && blocks <= BLOCKS_PER_CHUNK;
    fits.then_some((header + TABLE_BYTES, blocks))
}

/// What in the header is not as the name says.
fn misfit(header: &[u8; 20], named: &Named) -> Option<String> {
    let (magic, rest) = header.split_at(8);
    let (id, version) = rest.split_at(8);
    if !MAGICS.iter().any(|known| known.as_slice() == magic) {
        return Some("no chunk header".to_owned());
    }
    let id = ChunkId(u64::from_be_bytes(id.try_into().ok()?));
    let version = ChunkVersion(u32::from_be_bytes(version.try_into().ok()?));
    ((id, version) != (named.id, named.version)).then(|| {
        format!(
            "its header says chunk {id} version {version}: mfschunktool -n or -r sets that right"
        )
    })
}

/// A chunk file that is being written. It has its name only once it is whole ([`Writer::finish`]).
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    table: Vec<u8>,
    unfinished: PathBuf,
    path: PathBuf,
}

impl Writer {
    /// Begins a file in `directory`.
    pub(crate) fn create(
        directory: &Path,
        id: ChunkId,
        version: ChunkVersion,
    ) -> io::Result<Writer> {
        let name = file_name(id, version);
        let unfinished = directory.join(format!(".{name}.new"));
        let mut file = File::create(&unfinished)?;
        let mut header = MAGICS[0].to_vec();
        header.extend(id.0.to_be_bytes());
        header.extend(version.0.to_be_bytes());
        file.write_all(&header)?;
        Ok(Writer {
            file,
            table: ZERO_BLOCK_CRC.to_be_bytes().repeat(BLOCKS_PER_CHUNK.into()),
            unfinished,
            path: directory.join(name),
        })
    }

    /// Writes a block that is not all zeros; those that are not written are holes.
    pub(crate) fn write<'a>(
        &mut self,
        block: u16,
        crc: u32,
        data: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let at = HEADER_BYTES + TABLE_BYTES + u64::from(block) * u64::from(BLOCK_BYTES);
        self.file.seek(SeekFrom::Start(at))?;
        for part in data {
            self.file.write_all(part)?;
        }
        let at = usize::from(block) * 4;
        self.table[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        Ok(())
    }

    /// Completes it: `blocks` long, and under its name. Its owner becomes that of `directory`, who is to serve it.
    pub(crate) fn finish(self, blocks: u16, owner: (u32, u32)) -> io::Result<()> {
        let bytes = HEADER_BYTES + TABLE_BYTES + u64::from(blocks) * u64::from(BLOCK_BYTES);
        self.file.set_len(bytes)?;
        self.file.write_all_at(&self.table, HEADER_BYTES)?;
        std::os::unix::fs::fchown(&self.file, Some(owner.0), Some(owner.1))?;
        std::fs::rename(&self.unfinished, &self.path)
    }

    /// Gives it up.
    pub(crate) fn discard(self) -> io::Result<()> {
        std::fs::remove_file(&self.unfinished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: u64, version: u32, path: PathBuf) -> Named {
        Named {
            id: ChunkId(id),
            version: ChunkVersion(version),
            path,
        }
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir =
                std::env::temp_dir().join(format!("antler-mfs-{name}-{}", std::process::id()));
            std::fs::create_dir_all(dir.join("00")).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn names_are_those_of_stock_moosefs() {
        let (id, version) = (ChunkId(0x1c), ChunkVersion(0xab));
        let name = file_name(id, version);
        assert_eq!(name, "chunk_000000000000001C_000000AB.mfs");
        assert_eq!(parse_name(OsStr::new(&name)), Some((id, version)));
        for bad in [
            "chunk_1C_000000AB.mfs",
            "chunk_000000000000001C_000000AB.mfs.new",
            "chunk_+00000000000001C_000000AB.mfs",
            ".chunk_000000000000001C_000000AB.mfs",
            "chunk_000000000000001C000000AB.mfs",
        ] {
            assert_eq!(parse_name(OsStr::new(bad)), None, "{bad}");
        }
        assert_eq!(
            (subdir(0), subdir(10_000 * 255), subdir(10_000 * 256)),
            ("00".into(), "FF".into(), "00".into())
        );
    }

    #[test]
    fn lengths_tell_the_header() {
        assert_eq!(shape(8192), Some((8192, 0)));
        assert_eq!(shape(8192 + 65_536 * 1024), Some((8192, 1024)));
        assert_eq!(shape(5120 + 65_536), Some((5120, 1)));
        for bad in [0, 20, 4096, 8191, 8193, 8192 + 65_535, 8192 + 65_536 * 1025] {
            assert_eq!(shape(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = Dir::new("whole");
        let (id, version) = (ChunkId(7), ChunkVersion(2));
        let mut writer = Writer::create(&dir.0.join("00"), id, version).unwrap();
        assert!(scan(&dir.0).unwrap().is_empty(), "it has no name yet");
        let block = vec![5; BLOCK_BYTES as usize];
        writer.write(1, 77, block.chunks(1000)).unwrap();
        let me = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        writer.finish(3, me).unwrap();
        let found = scan(&dir.0).unwrap();
        let path = dir.0.join("00").join(file_name(id, version));
        assert_eq!(found, [named(7, 2, path.clone())]);
        let reader = Reader::open(&found[0]).unwrap().unwrap();
        assert_eq!(
            (reader.blocks(), reader.crc(0), reader.crc(1)),
            (3, ZERO_BLOCK_CRC, 77)
        );
        let mut back = vec![1; BLOCK_BYTES as usize];
        reader.read(1, &mut back).unwrap();
        assert_eq!(back, block);
        reader.read(2, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 0));
        let other = named(7, 3, path);
        let why = Reader::open(&other).unwrap().unwrap_err();
        assert!(why.contains("version 00000002"), "{why}");
    }

    #[test]
    fn newest_versions_come_first_and_strangers_are_passed_over() {
        let dir = Dir::new("order");
        for name in [
            "00/chunk_0000000000000002_00000001.mfs",
            "chunk_0000000000000001_00000001.mfs",
            "chunk_0000000000000001_00000003.mfs",
            ".metaid",
            "00/readme",
        ] {
            std::fs::write(dir.0.join(name), b"x").unwrap();
        }
        let found: Vec<(u64, u32)> = scan(&dir.0)
            .unwrap()
            .iter()
            .map(|n| (n.id.0, n.version.0))
            .collect();
        assert_eq!(found, [(1, 3), (1, 1), (2, 1)]);
        assert!(metaid(&dir.0).unwrap_err().to_string().contains("1 bytes"));
        put_metaid(&dir.0, 0x1234).unwrap();
        assert_eq!(metaid(&dir.0).unwrap(), Some(0x1234));
        assert_eq!(holder(&dir.0).unwrap(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_judged_without_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64), blocks in 0u64..3, old: bool
        ) {
            let dir = Dir::new("fuzz");
            let path = dir.0.join("f");
            std::fs::write(&path, &bytes).unwrap();
            let length = TABLE_BYTES + blocks * 65_536 + if old { OLD_HEADER_BYTES } else { HEADER_BYTES };
            File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
            let _ = Reader::open(&named(1, 1, path)).unwrap();
        }
    }
}
