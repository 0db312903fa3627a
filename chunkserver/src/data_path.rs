//! The node's own directory: who the node is, and which of its processes has what.
//!
//! `serve` holds the lock `.lock`: one a directory. Each process that uses a unit, `serve` or a command, holds a
//! lock a path in `paths/`, named by the ISID that is derived for the path: a second login with it would end the
//! first one's session. (A file or disk has locks of its own.) So a command may work on one volume while `serve`
//! has others open. `node` holds the node's UUID, made at the first start: the claims on the legs name it (P11).
//! Witness files and `chunkserverid.mfs` lie beside it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use blockdev::path::Isid;
use iscsi_initiator::isid;
use raid::Uuid;

use crate::dying::{self, Try};
use crate::exit::Failure;
use crate::lock_file::LockFile;

/// The directory of a node, as one of its processes uses it.
#[derive(Debug)]
pub(crate) struct DataPath {
    directory: PathBuf,
    node: Uuid,
    /// `serve` has it.
    lock: Option<LockFile>,
    /// Another process serves, and may have volumes open under ISIDs that the configuration gives no more.
    served_by: Option<String>,
}

/// The paths of a unit, used by no other process of this node until it is dropped.
#[derive(Debug)]
pub(crate) struct PathLocks {
    _locks: Vec<LockFile>,
}

impl DataPath {
    /// For `serve`: makes the directory if need be, locks it and reads the node's UUID; `fresh` is taken if it
    /// has none yet. A holder that is on its way out is waited for.
    ///
    /// Fails (status 1) naming the holder if another process serves.
    pub(crate) fn lock_patiently(directory: &Path, fresh: Uuid) -> Result<DataPath, Failure> {
        dying::wait_for(|| {
            fs::create_dir_all(directory).map_err(|e| at(directory, "cannot be made", &e))?;
            let taken = LockFile::take(&directory.join(".lock"));
            Ok(match taken.map_err(|e| at(directory, "lock", &e))? {
                Try::Taken(by) => Try::Taken(Failure::problem(format!(
                    "data_path {} is in use by {by}: stop that `antler serve` first",
                    directory.display()
                ))),
                Try::Ours(lock) => Try::Ours(DataPath {
                    lock: Some(lock),
                    ..DataPath::enter(directory, fresh)?
                }),
            })
        })
    }

    /// For a command that works beside a `serve`, on what that has not open.
    pub(crate) fn enter(directory: &Path, fresh: Uuid) -> Result<DataPath, Failure> {
        fs::create_dir_all(directory).map_err(|e| at(directory, "cannot be made", &e))?;
        let served_by = LockFile::holder(&directory.join(".lock"));
        Ok(DataPath {
            directory: directory.to_owned(),
            node: node_uuid(directory, fresh).map_err(|e| at(directory, "node identity", &e))?,
            lock: None,
            served_by: served_by.map_err(|e| at(directory, "lock", &e))?,
        })
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Who we are.
    pub(crate) fn node(&self) -> Uuid {
        self.node
    }

    /// Whether no other process of this node serves.
    pub(crate) fn is_alone(&self) -> bool {
        self.lock.is_some() || self.served_by.is_none()
    }

    /// Keeps other processes of this node from logging in under `isids`, unless one does.
    pub(crate) fn lock_paths(&self, isids: &[Isid]) -> Result<Try<PathLocks, String>, Failure> {
        let directory = self.directory.join("paths");
        fs::create_dir_all(&directory).map_err(|e| at(&self.directory, "paths/", &e))?;
        let mut locks = Vec::new();
        for isid in isids {
            let taken = LockFile::take(&directory.join(isid::text(*isid)));
            match taken.map_err(|e| at(&self.directory, "paths/", &e))? {
                Try::Ours(lock) => locks.push(lock),
                Try::Taken(by) => return Ok(Try::Taken(by)),
            }
        }
        Ok(Try::Ours(PathLocks { _locks: locks }))
    }
}

fn at(directory: &Path, what: &str, e: &io::Error) -> Failure {
    Failure::problem(format!("data_path {}: {what}: {e}", directory.display()))
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
            let new = directory.join(format!("node.{}", std::process::id()));
            let mut file = File::create(&new)?;
            writeln!(file, "{fresh}")?;
            file.sync_all()?;
            // Another process may make it at the same time: the first one wins.
            let linked = fs::hard_link(&new, &path);
            fs::remove_file(&new)?;
            match linked {
                Ok(()) => {
                    File::open(directory)?.sync_all()?;
                    Ok(fresh)
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => node_uuid(directory, fresh),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pid() -> String {
        format!("pid {}", std::process::id())
    }

    /// A child that another test forks meanwhile has the lock, too, until it begins its own program.
    fn soon(holds: impl Fn() -> bool) {
        let mut looks = 0..200;
        assert!(looks.any(|_| {
            let held = holds();
            if !held {
                std::thread::sleep(dying::LOOK);
            }
            held
        }));
    }

    fn locks(node: &DataPath, isids: &[Isid]) -> Result<PathLocks, String> {
        match node.lock_paths(isids).unwrap() {
            Try::Ours(locks) => Ok(locks),
            Try::Taken(by) => Err(by),
        }
    }

    #[test]
    fn one_serves_and_the_node_is_the_same_after_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        let first = DataPath::lock_patiently(dir, Uuid([7; 16])).unwrap();
        assert!(first.is_alone());
        let refused = DataPath::lock_patiently(dir, Uuid([8; 16])).unwrap_err();
        assert!(refused.text.contains(&own_pid()), "{refused}");
        let beside = DataPath::enter(dir, Uuid([8; 16])).unwrap();
        assert!(!beside.is_alone());
        assert_eq!(beside.node(), first.node());
        let end = std::thread::spawn(move || {
            std::thread::sleep(3 * dying::LOOK);
            drop(first);
        });
        let next = DataPath::lock_patiently(dir, Uuid([9; 16])).unwrap();
        end.join().unwrap();
        assert_eq!(next.node(), Uuid([7; 16]));
        drop(next);
        soon(|| DataPath::enter(dir, Uuid([9; 16])).unwrap().is_alone());
        fs::write(dir.join("node"), "nonsense").unwrap();
        let malformed = DataPath::enter(dir, Uuid([9; 16])).unwrap_err();
        assert!(malformed.text.contains("no UUID"), "{malformed}");
    }

    #[test]
    fn a_path_is_one_process_s_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let isid = |n| Isid([0x80, 0, 0, 0, 0, n]);
        let (one, two) = (
            DataPath::enter(scratch.path(), Uuid([7; 16])).unwrap(),
            DataPath::enter(scratch.path(), Uuid([7; 16])).unwrap(),
        );
        let held = locks(&one, &[isid(1), isid(2)]).unwrap();
        assert_eq!(locks(&two, &[isid(3), isid(2)]).unwrap_err(), own_pid());
        locks(&two, &[isid(3)]).unwrap();
        drop(held);
        soon(|| locks(&two, &[isid(3), isid(2)]).is_ok());
    }
}
