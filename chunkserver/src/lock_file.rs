//! A lock that ends with the process that has it, however that ends, and that names this process to others.
//!
//! flock(2) on a file that holds the owner's pid. The file stays when the lock is given back: removing it would
//! let two processes lock two files of one name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::dying::Try;

/// The lock; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock at `path`, or says who has it (`pid 4711`). The file is made if it does not exist.
    pub(crate) fn take(path: &Path) -> io::Result<Try<LockFile, String>> {
        let mut file = open(path)?;
        if !flock(&file, libc::LOCK_EX)? {
            return Ok(Try::Taken(holder(&mut file)));
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Try::Ours(LockFile { _file: file }))
    }

    /// Who has the lock at `path` now.
    pub(crate) fn holder(path: &Path) -> io::Result<Option<String>> {
        let mut file = open(path)?;
        Ok((!flock(&file, libc::LOCK_SH)?).then(|| holder(&mut file)))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Whether the lock was free.
fn flock(file: &File, kind: libc::c_int) -> io::Result<bool> {
    // SAFETY: flock on a descriptor that we own.
    if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    let _ = file.read_to_string(&mut pid);
    match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("pid {pid}"),
    }
}
