//! Who we are to the master, kept over restarts.
//!
//! The file `chunkserverid.mfs` is the stock server's: 10 bytes, server id u16 and metaid u64,
//! big-endian. The server id lets the master know us under a new address; the metaid keeps us from
//! registering with a master of another file system, which would delete every chunk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Server id and file system, zero while unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Given by the master.
    pub csid: u16,
    /// The file system's identity.
    pub metaid: u64,
}

impl Identity {
    /// The file's ten bytes.
    pub fn encode(self) -> [u8; 10] {
        let mut out = [0; 10];
        out[..2].copy_from_slice(&self.csid.to_be_bytes());
        out[2..].copy_from_slice(&self.metaid.to_be_bytes());
        out
    }

    /// From the file's ten bytes; `None` if there are more or fewer.
    pub fn decode(bytes: &[u8]) -> Option<Identity> {
        let (csid, metaid) = bytes.split_first_chunk::<2>()?;
        let metaid: [u8; 8] = metaid.try_into().ok()?;
        Some(Identity {
            csid: u16::from_be_bytes(*csid),
            metaid: u64::from_be_bytes(metaid),
        })
    }
}

/// Where an [`Identity`] is kept. Called on the control thread.
pub trait NodeState: Send {
    /// The one stored last; the default if there is none.
    fn load(&mut self) -> io::Result<Identity>;
    /// Stores it: durable at `Ok`.
    fn store(&mut self, identity: Identity) -> io::Result<()>;
}

/// The file `chunkserverid.mfs` in `data_path`, replaced by rename.
#[derive(Debug)]
pub struct FileState {
    directory: PathBuf,
}

impl FileState {
    /// Name of the file, the stock server's.
    pub const NAME: &'static str = "chunkserverid.mfs";

    /// In `data_path`, which exists.
    pub fn new(data_path: &Path) -> FileState {
        FileState {
            directory: data_path.to_owned(),
        }
    }
}

impl NodeState for FileState {
    fn load(&mut self) -> io::Result<Identity> {
        let path = self.directory.join(Self::NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Identity::default()),
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        };
        Identity::decode(&bytes).ok_or_else(|| {
            let text = format!("{}: {} bytes instead of 10", path.display(), bytes.len());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    fn store(&mut self, identity: Identity) -> io::Result<()> {
        let path = self.directory.join(Self::NAME);
        let new = self.directory.join(format!("{}.new", Self::NAME));
        let mut file = File::create(&new)?;
        file.write_all(&identity.encode())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Kept in memory only: for tests and load generators.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryState(pub Identity);

impl NodeState for MemoryState {
    fn load(&mut self) -> io::Result<Identity> {
        Ok(self.0)
    }

    fn store(&mut self, identity: Identity) -> io::Result<()> {
        self.0 = identity;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_survives_and_garbage_is_refused() {
        let dir = std::env::temp_dir().join(format!("moosefs-state-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut state = FileState::new(&dir);
        assert_eq!(state.load().unwrap(), Identity::default());
        let identity = Identity {
            csid: 3,
            metaid: 0x5F3E_0000_0000_0001,
        };
        state.store(identity).unwrap();
        let bytes = fs::read(dir.join(FileState::NAME)).unwrap();
        assert_eq!(bytes, [0, 3, 0x5F, 0x3E, 0, 0, 0, 0, 0, 1]);
        assert_eq!(FileState::new(&dir).load().unwrap(), identity);
        fs::write(dir.join(FileState::NAME), b"short").unwrap();
        assert!(state.load().is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
