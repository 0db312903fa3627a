//! istgt: a second target implementation, so that the initiator is not fitted to tgt alone.
//!
//! It reads configuration files only; these are written into the state directory. One target, one
//! unit (LUN 0), one portal per portal group entry.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::wait_until;
use crate::daemon::Daemon;
use crate::net::Place;
use crate::scratch::Scratch;

/// What istgt's target names begin with.
pub const NODE_BASE: &str = "iqn.2024-12.example.istgt";

/// A running istgt.
#[derive(Debug)]
pub struct Istgt {
    name: String,
    place: Place,
    portals: Vec<SocketAddrV4>,
    dir: PathBuf,
    daemon: Option<Daemon>,
}

impl Istgt {
    /// Starts istgt with one unit of `size_bytes` (a multiple of 1 MiB) on `portals`; returns when all
    /// of them accept connections.
    pub fn start(
        scratch: &Scratch,
        place: Place,
        name: &str,
        portals: &[SocketAddrV4],
        size_bytes: u64,
    ) -> Self {
        let identity = ["ANTLER", "TESTDISK"];
        Self::start_as(identity, scratch, place, name, portals, size_bytes)
    }

    /// The same, with this vendor and product; it calls itself `FreeBSD`, `iSCSI DISK` if left alone.
    pub fn start_as(
        [vendor, product]: [&str; 2],
        scratch: &Scratch,
        place: Place,
        name: &str,
        portals: &[SocketAddrV4],
        size_bytes: u64,
    ) -> Self {
        let dir = scratch.sub(name);
        let write = |file: &str, text: &str| {
            let path = dir.join(file);
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        let mut portal_lines = String::new();
        for (n, portal) in portals.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(portal_lines, "  Portal DA{} {portal}", n + 1);
        }
        let image = dir.join("lun0.img");
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(size_bytes));
        made.unwrap_or_else(|e| panic!("cannot make {}: {e}", image.display()));
        let state = dir.display();
        write(
            "auth.conf",
            "[AuthGroup1]\n  Auth \"unused\" \"unusedunused\"\n",
        );
        write(
            "istgt.conf",
            &format!(
                "[Global]\n  NodeBase \"{NODE_BASE}\"\n  PidFile {state}/istgt.pid\n  \
                 AuthFile {state}/auth.conf\n  MediaDirectory {state}\n  LogFacility \"local7\"\n  \
                 Timeout 30\n  NopInInterval 20\n  DiscoveryAuthMethod Auto\n  MaxSessions 16\n  \
                 MaxConnections 4\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  DefaultTime2Wait 2\n  \
                 DefaultTime2Retain 60\n  FirstBurstLength 262144\n  MaxBurstLength 1048576\n  \
                 MaxRecvDataSegmentLength 262144\n  InitialR2T Yes\n  ImmediateData Yes\n  \
                 DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n  ErrorRecoveryLevel 0\n\
                 [UnitControl]\n  AuthMethod Auto\n  AuthGroup None\n\
                 [PortalGroup1]\n{portal_lines}\
                 [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask ALL\n\
                 [LogicalUnit1]\n  TargetName {name}\n  Mapping PortalGroup1 InitiatorGroup1\n  \
                 AuthMethod None\n  AuthGroup AuthGroup1\n  UseDigest Auto\n  UnitType Disk\n  \
                 UnitInquiry \"{vendor}\" \"{product}\" \"1\" \"{name}\"\n  QueueDepth 64\n  \
                 LUN0 Storage {state}/lun0.img {}MB\n",
                size_bytes >> 20
            ),
        );
        let mut istgt = Self {
            name: name.to_owned(),
            place,
            portals: portals.to_vec(),
            dir,
            daemon: None,
        };
        istgt.restart();
        istgt
    }

    /// Its target's name (IQN).
    pub fn target(&self) -> String {
        format!("{NODE_BASE}:{}", self.name)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Starts it (again).
    pub fn restart(&mut self) {
        self.kill();
        let mut command = self.place.command("istgt");
        command.arg("-D").arg("-c").arg(self.dir.join("istgt.conf"));
        command.arg("-p").arg(self.dir.join("istgt.pid"));
        let daemon = self
            .daemon
            .insert(Daemon::spawn("istgt", command, &self.dir));
        for portal in &self.portals {
            wait_until(
                &format!("istgt on {portal}"),
                Duration::from_secs(10),
                || {
                    daemon.assert_running();
                    self.place.enter(|| {
                        let limit = Duration::from_secs(1);
                        std::net::TcpStream::connect_timeout(&(*portal).into(), limit).is_ok()
                    })
                },
            );
        }
    }
}
