//! Against the real mfsmaster, mfsmount and mfschunkserver, in network namespaces of its own (the
//! stock programs refuse 127/8). Our node keeps its chunks in memory: this tests the protocol.
//!
//! Needs root and `apt-get install -y moosefs-master moosefs-chunkserver moosefs-client
//! moosefs-cli`.
#![allow(clippy::unwrap_used)] // helpers of tests, too

mod support;

use moosefs::master::MasterState;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::bytes;
use support::node::{Node, Setup};

const INSTALL: &str =
    "apt-get install -y moosefs-master moosefs-chunkserver moosefs-client moosefs-cli";
const MASTER: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 1);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 2);
const STOCK: Ipv4Addr = Ipv4Addr::new(10, 194, 0, 3);

/// Runs a program to its end; its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install it: {INSTALL}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{errors}"
    );
    text
}

fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Polls for at most three minutes: the master looks at each chunk once a minute, and passes over one
/// whose server has just gone or is just coming.
fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..900 {
        if reached() {
            return;
        }
        sleep_ms(200);
    }
    panic!("not within 3 minutes: {what}");
}

/// Three namespaces on one bridge, a master, a mount; all gone when dropped.
struct Lab {
    dir: PathBuf,
    prefix: String,
    pids: Vec<PathBuf>,
}

impl Lab {
    fn new() -> Lab {
        let pid = std::process::id();
        let dir = std::env::temp_dir().join(format!("moosefs-interop-{pid}"));
        let lab = Lab {
            dir,
            prefix: format!("mfsi{pid}"),
            pids: Vec::new(),
        };
        for part in ["master", "stock", "hdd", "mnt"] {
            fs::create_dir_all(lab.dir.join(part)).unwrap();
        }
        for node in ["m", "o", "s"] {
            run("ip", &["netns", "add", &lab.namespace(node)]);
            lab.ip(node, "link set lo up");
        }
        lab.ip("m", "link add br0 type bridge");
        lab.ip("m", &format!("addr add {MASTER}/24 dev br0"));
        lab.ip("m", "link set br0 up");
        for (node, address) in [("o", OURS), ("s", STOCK)] {
            let peer = lab.namespace(node);
            lab.ip(
                "m",
                &format!("link add v{node} type veth peer name e0 netns {peer}"),
            );
            lab.ip("m", &format!("link set v{node} master br0 up"));
            lab.ip(node, &format!("addr add {address}/24 dev e0"));
            lab.ip(node, "link set e0 up");
        }
        lab
    }

    fn namespace(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    fn ip(&self, node: &str, args: &str) {
        let namespace = self.namespace(node);
        let mut all = vec!["-n", &namespace];
        all.extend(args.split(' '));
        run("ip", &all);
    }

    /// Runs a program inside a namespace but not in a mount namespace of its own.
    fn inside(&self, node: &str, args: &[&str]) -> String {
        let net = format!("--net=/run/netns/{}", self.namespace(node));
        let mut all = vec![net.as_str(), "--"];
        all.extend(args);
        run("nsenter", &all)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn start_master(&mut self) {
        let dir = self.path("master");
        let empty = [
            "/var/lib/mfs/metadata.mfs.empty",
            "/usr/share/mfs/metadata.mfs.empty",
        ];
        let empty = empty.iter().find(|path| Path::new(path).exists());
        let empty = empty.unwrap_or_else(|| panic!("no empty metadata; install it: {INSTALL}"));
        fs::copy(empty, self.dir.join("master/metadata.mfs")).unwrap();
        fs::write(self.dir.join("exports"), "* / rw,alldirs,maproot=0:0\n").unwrap();
        fs::write(self.dir.join("topology"), "").unwrap();
        let config = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {dir}\n\
             EXPORTS_FILENAME = {0}/exports\nTOPOLOGY_FILENAME = {0}/topology\n\
             REPLICATIONS_DELAY_INIT = 0\nCHUNKS_LOOP_MIN_TIME = 60\nAUTH_CODE = secret\n",
            self.dir.display()
        );
        fs::write(self.dir.join("mfsmaster.cfg"), config).unwrap();
        self.inside(
            "m",
            &["mfsmaster", "-c", &self.path("mfsmaster.cfg"), "start"],
        );
        self.pids.push(self.dir.join("master/.mfsmaster.lock"));
    }

    fn mount(&self) -> PathBuf {
        let mount = self.path("mnt");
        let master = MASTER.to_string();
        let options = "mfscachemode=DIRECT";
        self.inside("m", &["mfsmount", &mount, "-H", &master, "-o", options]);
        self.dir.join("mnt")
    }

    fn start_stock(&mut self) {
        let dir = self.path("stock");
        fs::write(
            self.dir.join("mfshdd.cfg"),
            format!("{}\n", self.path("hdd")),
        )
        .unwrap();
        let config = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {dir}\n\
             HDD_CONF_FILENAME = {0}/mfshdd.cfg\nMASTER_HOST = {MASTER}\nAUTH_CODE = secret\n\
             CSSERV_LISTEN_HOST = {STOCK}\n",
            self.dir.display()
        );
        fs::write(self.dir.join("mfschunkserver.cfg"), config).unwrap();
        self.inside(
            "s",
            &[
                "mfschunkserver",
                "-c",
                &self.path("mfschunkserver.cfg"),
                "start",
            ],
        );
        self.pids.push(self.dir.join("stock/.mfschunkserver.lock"));
    }

    fn stop_stock(&mut self) {
        self.inside(
            "s",
            &[
                "mfschunkserver",
                "-c",
                &self.path("mfschunkserver.cfg"),
                "kill",
            ],
        );
    }

    fn start_ours(&self) -> Node {
        let master = SocketAddr::from((MASTER, 9420));
        let mut setup = Setup::new(&[master], SocketAddrV4::new(OURS, 9422));
        setup.namespace = Some(self.namespace("o"));
        setup.auth_code = Some("secret".into());
        let node = Node::start(setup);
        until("our node registers", || {
            node.handle.status().state == MasterState::Registered
        });
        node
    }

    fn tool(&self, args: &[&str]) -> String {
        self.inside("m", args)
    }

    /// Servers that hold a valid copy of the file's first chunk.
    fn copies(&self, file: &Path, of: Ipv4Addr) -> usize {
        let info = self.tool(&["mfsfileinfo", &file.display().to_string()]);
        let of = format!("{of}:9422");
        info.lines()
            .filter(|line| line.contains(&of) && line.contains("VALID"))
            .count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Each step may find nothing to do; the next ones are wanted all the same.
        let quiet = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            let _ = command
                .args(args)
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .status();
        };
        quiet("umount", &["-l", &self.path("mnt")]);
        for lock in &self.pids {
            if let Ok(pid) = fs::read_to_string(lock) {
                if !pid.trim().is_empty() {
                    quiet("kill", &["-9", pid.trim()]);
                }
            }
        }
        for node in ["m", "o", "s"] {
            quiet("ip", &["netns", "del", &self.namespace(node)]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A file and what must be in it.
struct Twin {
    path: PathBuf,
    content: Vec<u8>,
}

impl Twin {
    fn create(path: PathBuf, content: Vec<u8>) -> Twin {
        fs::write(&path, &content).unwrap();
        Twin { path, content }
    }

    fn overwrite(&mut self, at: usize, data: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(data, at as u64).unwrap();
        file.sync_all().unwrap();
        let end = self.content.len().max(at + data.len());
        self.content.resize(end, 0);
        self.content[at..at + data.len()].copy_from_slice(data);
    }

    fn truncate(&mut self, len: usize) {
        let file = fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.set_len(len as u64).unwrap();
        self.content.resize(len, 0);
    }

    fn check(&self, when: &str) {
        let got = fs::read(&self.path).unwrap();
        assert_eq!(
            got.len(),
            self.content.len(),
            "{when}: length of {:?}",
            self.path
        );
        let wrong = got.iter().zip(&self.content).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{when}: first wrong byte of {:?}", self.path);
    }
}

#[test]
fn files_live_through_chains_snapshots_and_replication_both_ways() {
    let mut lab = Lab::new();
    lab.start_master();
    let ours = lab.start_ours();
    lab.start_stock();
    until("two servers are listed", || {
        let listed = lab.tool(&["mfscli", "-H", &MASTER.to_string(), "-SCS", "-p"]);
        [OURS, STOCK]
            .iter()
            .all(|server| listed.contains(&server.to_string()))
    });
    let disks = lab.tool(&["mfscli", "-H", &MASTER.to_string(), "-SHD", "-p"]);
    assert!(disks.contains(&format!("{OURS}:9422:memory")), "{disks}");
    let mount = lab.mount();
    lab.tool(&["mfssetgoal", "-r", "2", &mount.display().to_string()]);

    // Chains of two, ours and the stock server in either order.
    let mut big = Twin::create(mount.join("big"), bytes(1, 70 << 20));
    let small = Twin::create(mount.join("small"), b"hello".to_vec());
    big.check("written");
    big.overwrite(70_001, b"abcdef");
    big.overwrite((64 << 20) - 3, b"across the chunks");
    big.check("overwritten");
    big.truncate(3_000_001);
    big.truncate(5_000_000);
    big.check("truncated and extended");
    let snapshot = mount.join("snapshot");
    let (from, to) = (
        big.path.display().to_string(),
        snapshot.display().to_string(),
    );
    lab.tool(&["mfsmakesnapshot", &from, &to]);
    let mut copy = Twin {
        path: snapshot,
        content: big.content.clone(),
    };
    copy.overwrite(100, b"XYZ");
    copy.truncate(4_000_000);
    big.check("beside its snapshot");
    copy.check("changed");
    // All copies have equal sums, ours computed by us and theirs by them.
    for file in [&from, &to] {
        let info = lab.tool(&["mfsfileinfo", "-c", file]);
        let sum = |line: &str| line.split("digest: ").nth(1).map(str::to_owned);
        let sums: Vec<_> = info.lines().filter_map(sum).collect();
        assert!(sums.len() == 2 && sums[0] == sums[1], "{info}");
    }

    // Ours dies and comes back empty: the stock server is the source.
    ours.kill();
    big.check("from the stock copy");
    let ours = lab.start_ours();
    for twin in [&big, &small, &copy] {
        until("replicated to ours", || lab.copies(&twin.path, OURS) == 1);
    }
    // The stock server dies and comes back empty: ours is the source.
    lab.stop_stock();
    for twin in [&big, &small, &copy] {
        twin.check("from our copy");
    }
    fs::remove_dir_all(lab.dir.join("hdd")).unwrap();
    fs::create_dir(lab.dir.join("hdd")).unwrap();
    lab.start_stock();
    for twin in [&big, &small, &copy] {
        until("replicated to the stock server", || {
            lab.copies(&twin.path, STOCK) == 1
        });
    }
    drop(ours);
    big.check("from what the stock server replicated");
    copy.check("from what the stock server replicated");
}
