//! The node's own directory: its lock, and who the node is.
//!
//! `data_path` belongs to one process at a time: `serve`, or one offline volume command. The lock is flock(2) on
//! `.lock`, which holds the owner's pid for those who are refused; it ends with the process, however that ends.
//! `node` holds the node's UUID, made at the first start: the claims on the legs name it (P11). Witness files and
//! `chunkserverid.mfs` lie beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use raid::Uuid;

use crate::dying::{self, Try};
use crate::exit::Failure;

/// The locked directory. Dropping it gives the lock back.
#[derive(Debug)]
pub struct DataPath {
    directory: PathBuf,
    _lock: File,
    node: Uuid,
}

impl DataPath {
    /// Makes the directory if need be, locks it and reads the node's UUID; `fresh` is taken if it has none yet.
    ///
    /// Fails (status 1) naming the holder if another process has it.
    pub fn lock(directory: &Path, fresh: Uuid) -> Result<DataPath, Failure> {
        match DataPath::attempt(directory, fresh)? {
            Try::Ours(locked) => Ok(locked),
            Try::Taken(failure) => Err(failure),
        }
    }

    /// The same; a holder that is on its way out is waited for.
    pub fn lock_patiently(directory: &Path, fresh: Uuid) -> Result<DataPath, Failure> {
        dying::wait_for(|| DataPath::attempt(directory, fresh))
    }

    fn attempt(directory: &Path, fresh: Uuid) -> Result<Try<DataPath>, Failure> {
        let at = |what: &str, e: io::Error| {
            Failure::problem(format!("data_path {}: {what}: {e}", directory.display()))
        };
        fs::create_dir_all(directory).map_err(|e| at("cannot be made", e))?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(".lock"))
            .map_err(|e| at("lock file", e))?;
        // SAFETY: flock on a descriptor that we own.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(at("lock", error));
            }
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let holder = holder.trim();
            let by = if holder.is_empty() {
                "another process".to_owned()
            } else {
                format!("pid {holder}")
            };
            return Ok(Try::Taken(Failure::problem(format!(
                "data_path {} is in use by {by}: stop that `antler` first",
                directory.display()
            ))));
        }
        let pid = std::process::id();
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{pid}"))
            .map_err(|e| at("lock file", e))?;
        let node = node_uuid(directory, fresh).map_err(|e| at("node identity", e))?;
        Ok(Try::Ours(DataPath {
            directory: directory.to_owned(),
            _lock: lock,
            node,
        }))
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Who we are.
    pub fn node(&self) -> Uuid {
        self.node
    }
}

fn node_uuid(directory: &Path, fresh: Uuid) -> io::Result<Uuid> {
    let path = directory.join("node");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let malformed = "the file `node` holds no UUID";
            Uuid::parse(text.trim())
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, malformed))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let new = directory.join("node.new");
            let mut file = File::create(&new)?;
            writeln!(file, "{fresh}")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()?;
            Ok(fresh)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_and_the_same_node_after_a_restart() {
        let dir = std::env::temp_dir().join(format!("antler-data-path-{}", std::process::id()));
        let first = DataPath::lock(&dir, Uuid([7; 16])).unwrap();
        let given = dir.clone();
        let refused = DataPath::lock(&dir, Uuid([8; 16])).unwrap_err();
        assert!(
            refused
                .text
                .contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        let end = std::thread::spawn(move || {
            std::thread::sleep(3 * dying::LOOK);
            drop(first);
        });
        drop(DataPath::lock_patiently(&given, Uuid([9; 16])).unwrap());
        end.join().unwrap();
        assert_eq!(
            DataPath::lock(&dir, Uuid([9; 16])).unwrap().node(),
            Uuid([7; 16])
        );
        fs::write(dir.join("node"), "nonsense").unwrap();
        assert!(DataPath::lock(&dir, Uuid([9; 16]))
            .unwrap_err()
            .text
            .contains("no UUID"));
        fs::remove_dir_all(dir).unwrap();
    }
}
