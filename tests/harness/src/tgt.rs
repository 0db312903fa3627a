//! tgt (`tgtd`, `tgtadm`): a storage node with file-backed units.
//!
//! Two facts shape this file. tgtd's management socket is `/var/run/tgtd/socket.N` for the whole
//! machine, N = control port, so every daemon needs a number of its own. And two tgt nodes give
//! equal identities to equal target and unit numbers, so each unit gets its own `scsi_id` and
//! `scsi_sn`. tgtd does not end on SIGTERM while it has targets; it is always killed.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clock::{try_wait, wait_until};
use crate::command::{must, run, until_success};
use crate::daemon::Daemon;
use crate::net::Place;
use crate::scratch::Scratch;

/// Control ports tried for one daemon before giving up.
const CONTROL_PORT_TRIES: u32 = 50;
static CONTROL_PORTS: AtomicU32 = AtomicU32::new(0);

/// Target parameters of the typical site, as `tgtadm --op update --name NAME --value VALUE`.
const PARAMETERS: &[(&str, &str)] = &[
    ("MaxRecvDataSegmentLength", "262144"),
    ("MaxXmitDataSegmentLength", "262144"),
    ("MaxBurstLength", "1048576"),
    ("FirstBurstLength", "262144"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
];

/// One logical unit: a sparse file.
#[derive(Clone, Debug)]
pub struct Unit {
    /// LUN; 0 is tgt's controller.
    pub lun: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Serial (`scsi_sn`, VPD 80) and, with a prefix, the identity (`scsi_id`, VPD 83).
    pub serial: String,
    /// Further `tgtadm --params`, e.g. `thin_provisioning=1`; may be empty.
    pub params: String,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct TgtSpec {
    /// Name of the node; names its files.
    pub name: String,
    /// Target name (IQN).
    pub target: String,
    /// Portals; the address must exist in the place.
    pub portals: Vec<SocketAddrV4>,
    /// Units.
    pub units: Vec<Unit>,
    /// CHAP user and secret that initiators must give; `None` for no authentication.
    pub chap: Option<(String, String)>,
    /// Further environment of the daemon, as a [`crate::slow_backend::SlowBackend`] needs it.
    pub environment: Vec<(String, String)>,
}

impl TgtSpec {
    /// A target with one unit (LUN 1) of `size_bytes`.
    pub fn single(name: &str, target: &str, portals: &[SocketAddrV4], size_bytes: u64) -> Self {
        let unit = Unit {
            lun: 1,
            size_bytes,
            serial: format!("{name}-1"),
            params: String::new(),
        };
        Self {
            name: name.to_owned(),
            target: target.to_owned(),
            portals: portals.to_vec(),
            units: vec![unit],
            chap: None,
            environment: Vec::new(),
        }
    }
}

/// A running (or killed, to be started again) tgtd.
#[derive(Debug)]
pub struct Tgt {
    spec: TgtSpec,
    place: Place,
    dir: PathBuf,
    control_port: u32,
    daemon: Option<Daemon>,
}

impl Tgt {
    /// Starts tgtd at `place`, with its unit files in a directory of `scratch`; returns when every
    /// portal listens and every unit is online.
    pub fn start(scratch: &Scratch, place: Place, spec: TgtSpec) -> Self {
        let dir = scratch.sub(&spec.name);
        for unit in &spec.units {
            let path = dir.join(format!("lun{}.img", unit.lun));
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path);
            let sized = file.and_then(|file| file.set_len(unit.size_bytes));
            sized.unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        }
        let mut tgt = Self {
            spec,
            place,
            dir,
            control_port: 0,
            daemon: None,
        };
        tgt.run();
        tgt
    }

    /// A tgt on 127.0.0.1 and free ports, for tests of the initiator alone: one target with one unit
    /// (LUN 1) and `portals` portals.
    pub fn on_loopback(scratch: &Scratch, name: &str, portals: usize, size_bytes: u64) -> Self {
        let portals: Vec<_> = free_ports(portals)
            .into_iter()
            .map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
            .collect();
        let target = format!("iqn.2024-12.example.test:{name}");
        Self::start(
            scratch,
            Place::host(),
            TgtSpec::single(name, &target, &portals, size_bytes),
        )
    }

    /// What it was started with.
    pub fn spec(&self) -> &TgtSpec {
        &self.spec
    }

    /// The file behind a unit; read it only while nobody writes.
    pub fn backing_file(&self, lun: u32) -> PathBuf {
        self.dir.join(format!("lun{lun}.img"))
    }

    /// Process id of the running daemon.
    pub fn pid(&self) -> u32 {
        self.daemon
            .as_ref()
            .unwrap_or_else(|| panic!("{} is not running", self.spec.name))
            .pid()
    }

    /// SIGKILL: a storage node dies. Its units keep what the file system got, as a node with a
    /// battery-backed cache would.
    pub fn kill(&mut self) {
        self.daemon = None;
        self.remove_sockets();
    }

    /// Kills it and starts it anew; initiators must give this secret from now on.
    pub fn restart_with_chap(&mut self, user: &str, secret: &str) {
        self.spec.chap = Some((user.to_owned(), secret.to_owned()));
        self.restart();
    }

    /// Starts it again after [`Tgt::kill`], with the same units.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// SIGSTOP: a node that freezes; its kernel still acknowledges TCP.
    pub fn freeze(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::SIGSTOP);
        }
    }

    /// Ends [`Tgt::freeze`].
    pub fn thaw(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::SIGCONT);
        }
    }

    /// `tgtadm` with this daemon's control port; `args` are split at blanks.
    pub fn admin(&self, args: &str) -> Command {
        let mut command = admin_command(&self.place, self.control_port);
        command.args(args.split_whitespace());
        command
    }

    fn run(&mut self) {
        // tgtd reads the port as a signed 16-bit number.
        let first = std::process::id().wrapping_mul(7);
        for _ in 0..CONTROL_PORT_TRIES {
            let step = CONTROL_PORTS.fetch_add(1, Ordering::Relaxed);
            self.control_port = 2000 + first.wrapping_add(step) % 30_000;
            if self.try_run() {
                self.configure();
                return;
            }
        }
        panic!(
            "{}: no free control port for tgtd\n{}",
            self.spec.name,
            self.log_tail()
        );
    }

    /// False when another tgtd has this control port.
    fn try_run(&mut self) -> bool {
        if lock_path(self.control_port).exists() {
            return false;
        }
        let portals: Vec<String> = self
            .spec
            .portals
            .iter()
            .map(|portal| format!("portal={portal}"))
            .collect();
        let mut command = self.place.command("tgtd");
        command.envs(self.spec.environment.iter().cloned());
        command.args(["-f", "-C", &self.control_port.to_string()]);
        // Given twice, `--iscsi` forgets the first; several portals are one argument.
        command.args(["--iscsi", &portals.join(",")]);
        let daemon = self
            .daemon
            .insert(Daemon::spawn("tgtd", command, &self.dir));
        let mut ended = || daemon.ended().is_some();
        let show = || {
            let mut show = admin_command(&self.place, self.control_port);
            show.args(["--mode", "target", "--op", "show"]);
            run(&mut show, Duration::from_secs(5)).code == Some(0)
        };
        let up = try_wait(Duration::from_secs(10), || {
            if ended() {
                return Some(false);
            }
            // Looked at again after the answer: another tgtd may have given it.
            (show() && !ended()).then_some(true)
        });
        match up {
            Some(true) => true,
            Some(false) => {
                self.daemon = None;
                false
            }
            None => panic!(
                "{}: tgtd does not answer tgtadm\n{}",
                self.spec.name,
                self.log_tail()
            ),
        }
    }

    fn configure(&self) {
        let admin = |args: &str| must(&mut self.admin(args));
        let listening = admin("--mode portal --op show");
        for portal in &self.spec.portals {
            assert!(
                listening.contains(&portal.to_string()),
                "{}: tgtd does not listen on {portal}\n{}",
                self.spec.name,
                self.log_tail()
            );
        }
        admin(&format!(
            "--mode target --op new --tid 1 -T {}",
            self.spec.target
        ));
        for (name, value) in PARAMETERS {
            admin(&format!(
                "--mode target --op update --tid 1 --name {name} --value {value}"
            ));
        }
        for unit in &self.spec.units {
            let lun = unit.lun;
            let path = self.backing_file(lun);
            must(
                self.admin(&format!("--mode logicalunit --op new --tid 1 --lun {lun}"))
                    .arg("-b")
                    .arg(&path),
            );
            // VPD 83 carries the first 16 bytes of scsi_id as a T10 and an NAA-like identifier.
            let mut params = format!("scsi_id=Antler-{0},scsi_sn={0}", unit.serial);
            if !unit.params.is_empty() {
                params = format!("{params},{}", unit.params);
            }
            admin(&format!(
                "--mode logicalunit --op update --tid 1 --lun {lun} --params {params}"
            ));
        }
        if let Some((user, secret)) = &self.spec.chap {
            admin(&format!(
                "--mode account --op new --user {user} --password {secret}"
            ));
            admin(&format!("--mode account --op bind --tid 1 --user {user}"));
        }
        // Last: initiators that retry meanwhile must not see a target without its units.
        admin("--mode target --op bind --tid 1 -I ALL");
        until_success("tgt target", Duration::from_secs(5), || {
            self.admin("--mode target --op show")
        });
    }

    /// The sessions (I_T nexuses) logged in now.
    pub fn sessions(&self) -> usize {
        must(&mut self.admin("--mode target --op show"))
            .matches("I_T nexus: ")
            .count()
    }

    /// Waits until exactly `count` sessions are logged in.
    pub fn wait_sessions(&self, count: usize, limit: Duration) {
        let what = format!("{count} sessions on {}", self.spec.name);
        wait_until(&what, limit, || self.sessions() == count);
    }

    fn log_tail(&self) -> String {
        crate::command::tail(&self.dir.join("tgtd.log"), 40)
    }

    fn remove_sockets(&self) {
        // Missing when tgtd never came up.
        let _ = std::fs::remove_file(socket_path(self.control_port));
        let _ = std::fs::remove_file(lock_path(self.control_port));
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        self.kill();
    }
}

fn admin_command(place: &Place, control_port: u32) -> Command {
    let mut command = place.command("tgtadm");
    command.args(["-C", &control_port.to_string(), "--lld", "iscsi"]);
    command
}

fn socket_path(control_port: u32) -> PathBuf {
    Path::new("/var/run/tgtd").join(format!("socket.{control_port}"))
}

fn lock_path(control_port: u32) -> PathBuf {
    Path::new("/var/run/tgtd").join(format!("socket.{control_port}.lock"))
}

/// Free TCP ports of 127.0.0.1, all different. Another process could take one before it is used; a
/// daemon that cannot bind says so.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .unwrap_or_else(|e| panic!("no free port on 127.0.0.1: {e}"))
        })
        .collect();
    listeners
        .iter()
        .map(|l| {
            l.local_addr()
                .unwrap_or_else(|e| panic!("a listener without address: {e}"))
                .port()
        })
        .collect()
}
