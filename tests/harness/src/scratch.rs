//! State directories, the lock that serialises tests, and the ends of killed runs.
//!
//! A run's names carry its process id and a counter: directory `antler-lab-PID-START-N` under the
//! temporary directory, namespaces `al-PID-N-NODE`. `START` is the process' start time in clock ticks
//! (`/proc/PID/stat` field 22), because process ids are reused. Before a new lab is made, whatever
//! belongs to a process that is gone is ended: processes in its namespaces, processes that carry its
//! mark, its mounts, its namespaces, its directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{umount2, MntFlags};
use nix::sys::signal::Signal;

use crate::command::require;
use crate::daemon::{signal, MARK};

const DIR_PREFIX: &str = "antler-lab-";
const NS_PREFIX: &str = "al-";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A state directory that vanishes with the test.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    ns_prefix: String,
    /// Held for labs that would overload a small machine together.
    _turn: Option<Flock<File>>,
}

impl Scratch {
    /// A directory for a test that only uses 127/8 and may run beside others.
    pub fn shared() -> Self {
        Self::make(None)
    }

    /// A directory for a test with namespaces and mounts; such tests run one at a time, also across
    /// processes, so that a small machine is not overloaded.
    pub fn exclusive() -> Self {
        let path = std::env::temp_dir().join("antler-lab.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        let turn = Flock::lock(file, FlockArg::LockExclusive)
            .unwrap_or_else(|(_, e)| panic!("cannot lock {}: {e}", path.display()));
        Self::make(Some(turn))
    }

    fn make(turn: Option<Flock<File>>) -> Self {
        reap();
        let pid = std::process::id();
        let start = start_of(pid).unwrap_or_else(|| panic!("/proc/{pid}/stat is unreadable"));
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("{DIR_PREFIX}{pid}-{start}-{n}"));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        Self {
            dir,
            ns_prefix: format!("{NS_PREFIX}{pid}-{n}-"),
            _turn: turn,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes and returns a directory inside.
    pub fn sub(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        dir
    }

    /// What the names of this run's namespaces begin with.
    pub fn ns_prefix(&self) -> &str {
        &self.ns_prefix
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Daemons belong to fields dropped before this one; what is left here are their children.
        end_marked(&self.dir);
        end_namespaces(|name| name.starts_with(&self.ns_prefix));
        unmount_below(&self.dir);
        if std::env::var_os("ANTLER_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// Start time of a process in clock ticks since boot; `None` when there is no such process, or only
/// its zombie.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, field 2, may hold anything, also spaces and parentheses.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Ends what runs left behind whose process is gone.
fn reap() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(DIR_PREFIX)) else {
            continue;
        };
        let mut parts = rest.split('-').map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(start)), Some(Ok(n))) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let alive = u32::try_from(pid).ok().and_then(start_of) == Some(start);
        if !alive {
            end_marked(&entry.path());
            let prefix = format!("{NS_PREFIX}{pid}-{n}-");
            end_namespaces(|name| name.starts_with(&prefix));
            unmount_below(&entry.path());
            // Another process may be reaping the same directory.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    // Namespaces whose directory is gone or lay under another temporary directory.
    end_namespaces(|name| {
        let pid = name
            .strip_prefix(NS_PREFIX)
            .and_then(|rest| rest.split('-').next());
        pid.and_then(|p| p.parse().ok())
            .is_some_and(|pid: u32| start_of(pid).is_none())
    });
}

/// SIGKILLs every process that carries the mark of `dir`.
fn end_marked(dir: &Path) {
    let want = format!("{MARK}={}", dir.display());
    // Daemons carry the path of their own directory, which may lie inside.
    let inside = format!("{want}/");
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(environ) = fs::read(entry.path().join("environ")) else {
            continue;
        };
        let marked = environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == want.as_bytes() || variable.starts_with(inside.as_bytes()));
        if marked && pid != std::process::id() {
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// Kills the processes of the matching namespaces and deletes these.
fn end_namespaces(matching: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| matching(name)) else {
            continue;
        };
        let ip = require("ip");
        if let Ok(pids) = Command::new(&ip).args(["netns", "pids", name]).output() {
            for pid in String::from_utf8_lossy(&pids.stdout).lines() {
                if let Ok(pid) = pid.trim().parse() {
                    signal(pid, Signal::SIGKILL);
                }
            }
        }
        let _ = Command::new(&ip).args(["netns", "del", name]).output();
    }
}

/// Detaches every mount at or below `dir`.
pub fn unmount_below(dir: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    for line in mounts.lines() {
        if let Some(point) = line.split(' ').nth(4) {
            if Path::new(point).starts_with(dir) {
                let _ = umount2(point, MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Whether something is mounted at `point`.
pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|p| Path::new(p) == point)
}
