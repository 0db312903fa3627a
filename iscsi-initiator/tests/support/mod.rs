//! Real target daemons for interop tests, on loopback with free ports and state of their own.

// Each test binary uses a part of it.
#![allow(dead_code)]

use blockdev::driver::run_shard;
use blockdev::path::{Command as UnitCommand, LoginAs, LoginError, PathPort, PathSession};
use blockdev::{Durability, IoCtx, IoVec, Pool, Rt, Sector};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::name::Portal;
use iscsi_initiator::path::{IscsiPort, IscsiSession, PortConfig};
use iscsi_initiator::tcp::TcpNet;
use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const TARGET: &str = "iqn.2024-12.tp2.b3:data-chunk1";
pub(crate) const INITIATOR: &str = "iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator";
pub(crate) const LUN_BYTES: u64 = 64 << 20;

/// A port of 127.0.0.1 that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

/// A running `tgtd` with one target and one disk at LUN 1. Dropping it ends the process.
pub(crate) struct Tgt {
    child: Child,
    control: String,
    pub(crate) port: u16,
    dir: PathBuf,
}

impl Tgt {
    pub(crate) fn start() -> Tgt {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let control = (1000 + (std::process::id() * 16 + serial) % 31_000).to_string();
        let dir = std::env::temp_dir().join(format!("antler-tgt-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("state directory");
        let port = free_port();
        let child = Command::new("tgtd")
            .args([
                "-f",
                "-C",
                &control,
                "--iscsi",
                &format!("portal=127.0.0.1:{port}"),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tgtd is missing: apt-get install -y tgt");
        let tgt = Tgt {
            child,
            control,
            port,
            dir,
        };
        let ready = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(25));
            tgt.try_admin(&["--op", "show", "--mode", "sys"])
        });
        assert!(ready, "tgtd does not answer (is this root?)");
        tgt.admin(&[
            "--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET,
        ]);
        let disk = tgt.disk();
        let file = std::fs::File::create(&disk).expect("disk file");
        file.set_len(LUN_BYTES).expect("disk size");
        let disk = disk.to_str().expect("path").to_owned();
        tgt.admin(&[
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "-b",
            &disk,
        ]);
        let ids = "scsi_id=6001405d363af4e9a69472cbd4711629,scsi_sn=sto1";
        tgt.set_unit(ids);
        tgt.admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ]);
        tgt
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Lets a user log in, or with `--outgoing` the target prove itself as one.
    pub(crate) fn account(&self, user: &str, password: &str, direction: &[&str]) {
        let add = [
            "--op",
            "new",
            "--mode",
            "account",
            "--user",
            user,
            "--password",
            password,
        ];
        self.admin(&add);
        let bind = [
            "--op", "bind", "--mode", "account", "--tid", "1", "--user", user,
        ];
        self.admin(&[&bind, direction].concat());
    }

    /// Sets parameters of the disk.
    pub(crate) fn set_unit(&self, params: &str) {
        let unit = [
            "--op",
            "update",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
        ];
        self.admin(&[&unit[..], &["--params", params]].concat());
    }

    /// Sets a key of the target.
    pub(crate) fn set(&self, key: &str, value: &str) {
        self.admin(&[
            "--op", "update", "--mode", "target", "--tid", "1", "-n", key, "-v", value,
        ]);
    }

    pub(crate) fn admin(&self, args: &[&str]) {
        assert!(self.try_admin(args), "tgtadm {args:?}");
    }

    fn try_admin(&self, args: &[&str]) -> bool {
        Command::new("tgtadm")
            .args(["-C", &self.control, "--lld", "iscsi"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("tgtadm is missing: apt-get install -y tgt")
            .success()
    }

    pub(crate) fn portal(&self) -> Portal {
        format!("127.0.0.1:{}", self.port).parse().expect("portal")
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_file(format!("/var/run/tgtd/socket.{}", self.control));
        let _ = std::fs::remove_file(format!("/var/run/tgtd/socket.{}.lock", self.control));
    }
}

/// A running `istgt` with one target and one disk at LUN 0. Dropping it ends the process.
pub(crate) struct Istgt {
    child: Child,
    pub(crate) port: u16,
    dir: PathBuf,
}

impl Istgt {
    pub(crate) fn start() -> Istgt {
        Istgt::configured("", |config| config)
    }

    /// With these authentication groups, and its config as `change` makes it.
    pub(crate) fn configured(auth: &str, change: impl Fn(String) -> String) -> Istgt {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("antler-istgt-{}-{serial}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("state directory");
        let (port, control) = (free_port(), free_port());
        let file = std::fs::File::create(dir.join("disk")).expect("disk file");
        file.set_len(LUN_BYTES).expect("disk size");
        let at = dir.display();
        let config = format!(
            "[Global]\n NodeBase \"iqn.2024-12.tp2.b3\"\n PidFile {at}/pid\n AuthFile {at}/auth.conf\n \
             MediaDirectory {at}\n Timeout 30\n NopInInterval 20\n DiscoveryAuthMethod None\n \
             MaxSessions 16\n MaxConnections 4\n MaxR2T 32\n MaxOutstandingR2T 16\n \
             DefaultTime2Wait 2\n DefaultTime2Retain 60\n FirstBurstLength 262144\n \
             MaxBurstLength 1048576\n MaxRecvDataSegmentLength 262144\n InitialR2T Yes\n \
             ImmediateData Yes\n DataPDUInOrder Yes\n DataSequenceInOrder Yes\n \
             ErrorRecoveryLevel 0\n\
             [UnitControl]\n AuthMethod None\n Portal UC1 127.0.0.1:{control}\n Netmask 127.0.0.1\n\
             [PortalGroup1]\n Portal DA1 127.0.0.1:{port}\n\
             [InitiatorGroup1]\n InitiatorName \"ALL\"\n Netmask 127.0.0.0/8\n\
             [LogicalUnit1]\n TargetName data-chunk1\n Mapping PortalGroup1 InitiatorGroup1\n \
             AuthMethod None\n UseDigest Auto\n UnitType Disk\n LUN0 Storage {at}/disk Auto\n"
        );
        std::fs::write(dir.join("istgt.conf"), change(config)).expect("config");
        std::fs::write(dir.join("auth.conf"), auth).expect("auth file");
        let child = Command::new("istgt")
            .args(["-D", "-c"])
            .arg(dir.join("istgt.conf"))
            .arg("-p")
            .arg(dir.join("pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("istgt is missing: apt-get install -y istgt");
        let istgt = Istgt { child, port, dir };
        let ready = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(25));
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(ready, "istgt does not listen (is this root?)");
        istgt
    }

    pub(crate) fn portal(&self) -> Portal {
        format!("127.0.0.1:{}", self.port).parse().expect("portal")
    }
}

impl Drop for Istgt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// An initiator over real sockets.
pub(crate) fn initiator(rt: &Rt) -> Initiator {
    Initiator::new(rt.clone(), Rc::new(TcpNet), Pool::new(64 << 20), INITIATOR)
}

/// A port to `lun`; `shard` tells parallel sessions apart.
pub(crate) fn port(initiator: Initiator, portal: Portal, lun: u64, shard: u32) -> IscsiPort {
    let target = TARGET.to_owned();
    let config = PortConfig {
        portal,
        source: None,
        target,
        lun,
        role: Role::Serve,
        shard,
    };
    IscsiPort::new(initiator, config).expect("flat LUN")
}

/// Logs in to LUN 1 as shard 0.
pub(crate) async fn login(
    initiator: &Initiator,
    portal: Portal,
) -> Result<Rc<IscsiSession>, LoginError> {
    let port = port(initiator.clone(), portal, 1, 0);
    assert_eq!(port.name().portal, portal.to_string());
    port.open(LoginAs::Own, initiator.rt.now() + Duration::from_secs(5))
        .await
}

/// Runs a test on a real shard.
pub(crate) fn run<F, T>(main: F) -> T::Output
where
    F: FnOnce(Rt) -> T,
    T: Future,
{
    run_shard(main).expect("runtime")
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(pool: &Pool, at: Sector, bytes: usize, seed: u64) -> IoVec {
    let words = (0..bytes / 8).flat_map(|i| {
        let word = (at.0 * 64 + i as u64) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        word.to_be_bytes()
    });
    pool.copy_now(&words.collect::<Vec<u8>>())
}

/// Writes and reads back transfers around every limit, several in flight.
pub(crate) async fn exercise(session: &Rc<IscsiSession>, seed: u64) {
    let pool = Pool::new(64 << 20);
    let sizes = [
        512,
        4096,
        8192,
        8704,
        65_536,
        66_048,
        131_072,
        262_144,
        262_656,
        524_288,
        1 << 20,
    ];
    let mut at = Sector(8);
    let mut written = Vec::new();
    let mut pending = Vec::new();
    for size in sizes {
        let data = pattern(&pool, at, size, seed);
        let command = UnitCommand::Write {
            at,
            data: data.clone(),
            want: Durability::Cache,
        };
        pending.push(session.submit(command, IoCtx::foreground()).1);
        written.push((at, data));
        at = at + (size as u64 / 512 + 3);
    }
    for completion in pending {
        completion.await.expect("write");
    }
    let reads: Vec<_> = written
        .iter()
        .map(|(at, data)| {
            let sectors = (data.len() / 512) as u32;
            session
                .submit(UnitCommand::Read { at: *at, sectors }, IoCtx::foreground())
                .1
        })
        .collect();
    for (completion, (at, data)) in reads.into_iter().zip(&written) {
        let got = completion.await.expect("read").into_data();
        assert!(got == *data, "{} bytes at {at} differ", data.len());
        assert!(got.is_page_aligned());
    }
}
