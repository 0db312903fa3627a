//! Stock MooseFS: master, chunkserver, mount and tools, each with its own directory and
//! configuration, all as root (no system users needed).
//!
//! Stock programs refuse 127/8 addresses, so they live in namespaces. The master's timers are set
//! to their shortest, so that replications and deletions begin at once.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clock::wait_until;
use crate::command::{run, tail, Finished};
use crate::daemon::{signal, Daemon};
use crate::net::Place;
use crate::scratch::{is_mounted, unmount_below, Scratch};

/// The empty file system that mfsmaster 3.0.117 accepts: 8 bytes, as the package ships it.
const EMPTY_METADATA: &[u8] = b"MFSM NEW";

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}

/// A stock mfsmaster.
#[derive(Debug)]
pub struct Master {
    place: Place,
    dir: PathBuf,
    address: Ipv4Addr,
    daemon: Option<Daemon>,
}

impl Master {
    /// Starts a master with an empty file system at `place`, known to others as `address`.
    /// `auth_code`: what chunkservers must know, or `None`.
    pub fn start(
        scratch: &Scratch,
        name: &str,
        place: Place,
        address: Ipv4Addr,
        auth_code: Option<&str>,
    ) -> Self {
        let dir = scratch.sub(name);
        fs::write(dir.join("metadata.mfs"), EMPTY_METADATA)
            .unwrap_or_else(|e| panic!("cannot write into {}: {e}", dir.display()));
        write(
            &dir.join("exports.cfg"),
            "* / rw,alldirs,admin,maproot=0:0\n* . rw\n",
        );
        let auth = auth_code
            .map(|code| format!("AUTH_CODE = {code}\n"))
            .unwrap_or_default();
        let state = dir.display();
        write(
            &dir.join("mfsmaster.cfg"),
            &format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\nDATA_PATH = {state}\n\
                 EXPORTS_FILENAME = {state}/exports.cfg\nREPLICATIONS_DELAY_INIT = 0\n\
                 CHUNKS_LOOP_MIN_TIME = 60\nCHUNKS_LOOP_MAX_CPS = 10000000\n\
                 CHUNKS_SOFT_DEL_LIMIT = 100\nCHUNKS_HARD_DEL_LIMIT = 250\n\
                 CHUNKS_WRITE_REP_LIMIT = 5,5,5,5\nINODE_REUSE_DELAY = 100\n{auth}"
            ),
        );
        let mut master = Self {
            place,
            dir,
            address,
            daemon: None,
        };
        master.restart();
        master
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Stops it cleanly (it saves its metadata), which takes stock masters about 5 s.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let status = daemon.terminate(Duration::from_secs(30));
            assert!(
                status.success(),
                "mfsmaster: {status}\n{}",
                daemon.log_tail()
            );
        }
    }

    /// Starts it again, after a kill from its change logs; returns when it listens.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = self.place.command("mfsmaster");
        command
            .args(["-f", "-a", "-c"])
            .arg(self.dir.join("mfsmaster.cfg"))
            .arg("start");
        let daemon = self
            .daemon
            .insert(Daemon::spawn("mfsmaster", command, &self.dir));
        wait_until("mfsmaster to listen", Duration::from_secs(20), || {
            daemon.assert_running();
            self.place.enter(|| {
                std::net::TcpStream::connect_timeout(
                    &(self.address, 9421).into(),
                    Duration::from_secs(1),
                )
                .is_ok()
            })
        });
    }

    /// `mfscli` with `sections` such as `["-SCS"]`; fields are separated by `|`.
    pub fn cli(&self, sections: &[&str]) -> String {
        let mut command = self.place.command("mfscli");
        command
            .args(["-H", &self.address.to_string(), "-n", "-p", "-s|"])
            .args(sections);
        run(&mut command, Duration::from_secs(20)).success()
    }

    /// The chunkservers connected now, as the lines of `mfscli -SCS`.
    pub fn chunkservers(&self) -> Vec<String> {
        // Columns: title, address, port, id, labels, version, load, maintenance, chunks, used bytes,
        // total bytes, ...; "-" as version means gone.
        self.cli(&["-SCS"])
            .lines()
            .filter(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                fields.len() > 5 && fields[5].starts_with(|c: char| c.is_ascii_digit())
            })
            .map(str::to_owned)
            .collect()
    }

    /// Waits until exactly `count` chunkservers are connected and have told how much space they have:
    /// before that (stock ones scan their disk first) the master puts no chunk on them.
    pub fn wait_chunkservers(&self, count: usize, limit: Duration) {
        wait_until(
            &format!("{count} chunkservers at the master"),
            limit,
            || {
                let servers = self.chunkservers();
                let told =
                    |line: &String| line.split('|').nth(10).is_some_and(|total| total != "0");
                servers.len() == count && servers.iter().all(told)
            },
        );
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.dir.join("mfsmaster.log"), 60)
    }
}

/// A stock mfschunkserver with one directory as its disk.
#[derive(Debug)]
pub struct StockChunkserver {
    place: Place,
    dir: PathBuf,
    address: Ipv4Addr,
    daemon: Option<Daemon>,
}

impl StockChunkserver {
    /// Starts it; `labels` such as `"B"`, or empty.
    pub fn start(
        scratch: &Scratch,
        name: &str,
        place: Place,
        address: Ipv4Addr,
        master: &Master,
        labels: &str,
        auth_code: Option<&str>,
    ) -> Self {
        let dir = scratch.sub(name);
        let disk = scratch.sub(&format!("{name}/disk"));
        write(&dir.join("mfshdd.cfg"), &format!("{}\n", disk.display()));
        let auth = auth_code
            .map(|code| format!("AUTH_CODE = {code}\n"))
            .unwrap_or_default();
        let state = dir.display();
        write(
            &dir.join("mfschunkserver.cfg"),
            &format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\nDATA_PATH = {state}\n\
                 HDD_CONF_FILENAME = {state}/mfshdd.cfg\nHDD_TEST_SPEED = 0\n\
                 HDD_LEAVE_SPACE_DEFAULT = 64MiB\nMASTER_HOST = {}\n\
                 MASTER_RECONNECTION_DELAY = 1\nCSSERV_LISTEN_HOST = {address}\n\
                 LABELS = {labels}\n{auth}",
                master.address()
            ),
        );
        let mut server = Self {
            place,
            dir,
            address,
            daemon: None,
        };
        server.restart();
        server
    }

    /// Its address; its data port is 9422.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Stops it cleanly: what it keeps of open files is written.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let status = daemon.terminate(Duration::from_secs(30));
            assert!(
                status.success(),
                "mfschunkserver: {status}\n{}",
                daemon.log_tail()
            );
        }
    }

    /// Starts it (again); registration is the master's to tell.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = self.place.command("mfschunkserver");
        command
            .args(["-f", "-c"])
            .arg(self.dir.join("mfschunkserver.cfg"))
            .arg("start");
        self.daemon = Some(Daemon::spawn("mfschunkserver", command, &self.dir));
    }
}

/// A mounted MooseFS, with the tools that work on it.
#[derive(Debug)]
pub struct Mount {
    place: Place,
    dir: PathBuf,
    point: PathBuf,
    master: Ipv4Addr,
    daemon: Option<Daemon>,
    /// Dropped when the mount ends, which ends the watch.
    watch: Option<Sender<()>>,
}

/// How long one mount may last. A file operation waits for a lost chunk for ever and cannot be
/// interrupted; the client's death ends it with an error, and the test with a message.
const MOUNT_LIMIT: Duration = Duration::from_secs(900);

fn watch(pid: u32) -> Sender<()> {
    let (ended, mount_ended) = channel();
    std::thread::spawn(move || {
        if mount_ended.recv_timeout(MOUNT_LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "the mount is {} s old: killing mfsmount {pid}",
                MOUNT_LIMIT.as_secs()
            );
            signal(pid, Signal::SIGKILL);
        }
    });
    ended
}

impl Mount {
    /// Mounts the root of `master` at `STATE/NAME/mnt`. The kernel's page cache is off: what is read
    /// comes from the chunkserver, not from memory.
    pub fn start(scratch: &Scratch, name: &str, place: Place, master: &Master) -> Self {
        let dir = scratch.sub(name);
        let point = scratch.sub(&format!("{name}/mnt"));
        let mut mount = Self {
            place,
            dir,
            point,
            master: master.address(),
            daemon: None,
            watch: None,
        };
        mount.mount();
        mount
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Unmounts (which flushes) and mounts again, so that nothing is read from a cache of the client.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    fn mount(&mut self) {
        // DIRECT would forbid mmap; NEVER drops pages at open.
        let mut command = self.place.command("mfsmount");
        command.args(["-f", "-H", &self.master.to_string()]);
        command
            .args(["-o", "mfscachemode=NEVER,mfsioretries=60"])
            .arg(&self.point);
        let daemon = self
            .daemon
            .insert(Daemon::spawn("mfsmount", command, &self.dir));
        wait_until("mfsmount", Duration::from_secs(20), || {
            daemon.assert_running();
            is_mounted(&self.point)
        });
        self.watch = Some(watch(daemon.pid()));
    }

    /// Unmounts and waits until the client has ended.
    pub fn unmount(&mut self) {
        let mut command = Place::host().command("umount");
        run(command.arg(&self.point), Duration::from_secs(60)).success();
        self.watch = None;
        if let Some(mut daemon) = self.daemon.take() {
            wait_until("mfsmount to end", Duration::from_secs(20), || {
                daemon.ended().is_some()
            });
        }
    }

    /// Runs a MooseFS tool (`mfsfileinfo`, `mfssetgoal`, `mfsmakesnapshot`, ...) with `args`; names of
    /// files are relative to the mount. The tools ask the mount's own proxy, hence its place.
    pub fn tool(&self, program: &str, args: &[&str]) -> Finished {
        run(self.command(program).args(args), Duration::from_secs(60))
    }

    /// A program in the mount's place, with the mount as its working directory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.place.command(program);
        command.current_dir(&self.point);
        command
    }

    /// Sets the goal (number of copies) of a file or directory.
    pub fn set_goal(&self, goal: u8, name: &str) {
        self.tool("mfssetgoal", &["-r", &goal.to_string(), name])
            .success();
    }

    /// A lazy snapshot: chunks are shared until one side is written.
    pub fn snapshot(&self, from: &str, to: &str) {
        self.tool("mfsmakesnapshot", &[from, to]).success();
    }

    /// The copies of a file, or of each file in a folder, chunk by chunk, as `mfsfileinfo -c` reads
    /// them from the servers.
    pub fn copies(&self, name: &str) -> Vec<ChunkCopies> {
        let mut command = self.command("mfsfileinfo");
        command.arg("-c");
        match fs::read_dir(self.point.join(name)) {
            Ok(folder) => command.args(folder.flatten().map(|entry| entry.path())),
            Err(_) => command.arg(name),
        };
        parse_copies(&run(&mut command, Duration::from_secs(60)).success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Detached first: a client that cannot reach its servers would hold `umount` for minutes.
        unmount_below(&self.point);
    }
}

/// One chunk of a file and its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkCopies {
    /// `ID_VERSION`, both in hexadecimal.
    pub chunk: String,
    /// `(address:port, checksum digest)`; the digest is empty when the server gave none.
    pub copies: Vec<(String, String)>,
}

fn parse_copies(text: &str) -> Vec<ChunkCopies> {
    let mut chunks: Vec<ChunkCopies> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chunk ") {
            let chunk = rest.split_whitespace().nth(1).unwrap_or_default();
            // A hole as long as a chunk: nothing is stored.
            if chunk != "empty" {
                chunks.push(ChunkCopies {
                    chunk: chunk.to_owned(),
                    copies: Vec::new(),
                });
            }
        } else if let Some(rest) = line.strip_prefix("copy ") {
            let address = rest
                .split_whitespace()
                .nth(1)
                .unwrap_or_default()
                .to_owned();
            let digest = rest.split("checksum digest: ").nth(1).unwrap_or_default();
            let digest = digest.trim_end_matches(')').to_owned();
            if let Some(chunk) = chunks.last_mut() {
                chunk.copies.push((address, digest));
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_read_from_mfsfileinfo() {
        let text = "x:\n\tchunk 0: empty\n\tchunk 1: 0000000000000001_00000002 / (id:1 ver:2)\n\
                    \t\tcopy 1: 10.194.0.12:9422 (status:VALID ; blocks: 96 ; checksum digest: F1B5)\n\
                    \t\tcopy 2: 10.194.0.11:9422 (status:VALID)\n";
        let chunks = parse_copies(text);
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].chunk, "0000000000000001_00000002");
        assert_eq!(
            chunks[0].copies[0],
            ("10.194.0.12:9422".into(), "F1B5".into())
        );
        assert_eq!(
            chunks[0].copies[1],
            ("10.194.0.11:9422".into(), String::new())
        );
    }
}
