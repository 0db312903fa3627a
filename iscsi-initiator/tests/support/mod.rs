//! Real target daemons for interop tests, on loopback with free ports and state of their own.

use blockdev::driver::run_shard;
use blockdev::path::{LoginAs, LoginError, PathPort};
use blockdev::{Pool, Rt};
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
        tgt.admin(&[
            "--op",
            "update",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "--params",
            ids,
        ]);
        tgt.admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ]);
        tgt
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
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
