//! `antler`: the binary under test, its configuration, `serve` and the commands.
//!
//! The binary is built once (release: the interop tests move gigabytes) unless `ANTLER_BIN` names
//! one. The configuration is written as a user would write it, in the documented TOML.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::clock::{try_wait, wait_for};
use crate::command::{line_of, run, Finished};
use crate::daemon::Daemon;
use crate::net::Place;
use crate::scratch::Scratch;

/// Limit for a command that answers at once.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Limit for formatting a volume: both legs are read.
const CREATE_LIMIT: Duration = Duration::from_secs(120);
/// `serve` ends within 5 s of SIGTERM; the rest is room for a busy machine.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The path of the binary: `ANTLER_BIN`, or built here.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("ANTLER_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "-p", "chunkserver", "--bin", "antler"]);
    let status = command.current_dir(&root).status();
    let status = status.unwrap_or_else(|e| panic!("cannot start `{}`: {e}", line_of(&command)));
    assert!(status.success(), "`{}`: {status}", line_of(&command));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    // A relative CARGO_TARGET_DIR is relative to where cargo runs.
    root.join(target.unwrap_or_else(|| "target".into()))
        .join("release/antler")
}

/// A `[[device]]`.
#[derive(Clone, Debug)]
pub enum Device {
    /// A unit by all its paths.
    Iscsi {
        /// Name.
        name: String,
        /// Portals, `address:port`.
        portals: Vec<String>,
        /// Target name (IQN).
        target: String,
        /// LUN.
        lun: u32,
    },
    /// A file or disk.
    Local {
        /// Name.
        name: String,
        /// Path.
        path: PathBuf,
        /// Size in bytes that `volume create` makes it.
        size_bytes: u64,
    },
}

/// What `serve` is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Address or `host:port` of the master.
    pub master: String,
    /// Address that is listened on and registered; port 9422.
    pub listen: Ipv4Addr,
    /// Labels, such as `"A"`; may be empty.
    pub labels: String,
    /// What the master's AUTH_CODE is.
    pub auth_code: Option<String>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Volumes: name and the devices of its legs.
    pub volumes: Vec<(String, Vec<String>)>,
    /// Further TOML, appended; may be empty.
    pub more: String,
}

/// An installation of antler at one place: configuration, state, and `serve` while it runs.
#[derive(Debug)]
pub struct Antler {
    place: Place,
    dir: PathBuf,
    config: PathBuf,
    spec: Spec,
    daemon: Option<Daemon>,
}

impl Antler {
    /// Writes the configuration into a directory of `scratch`; starts nothing.
    pub fn install(scratch: &Scratch, name: &str, place: Place, spec: Spec) -> Self {
        let dir = scratch.sub(name);
        scratch.sub(&format!("{name}/data"));
        let antler = Self {
            place,
            config: dir.join("antler.toml"),
            dir,
            spec,
            daemon: None,
        };
        antler.write_config();
        antler
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is started with.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Changes what it is started with; a running `serve` sees it when told to reload.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Spec)) {
        change(&mut self.spec);
        self.write_config();
    }

    fn write_config(&self) {
        let text = self.toml();
        fs::write(&self.config, text)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", self.config.display()));
    }

    fn toml(&self) -> String {
        let spec = &self.spec;
        let state = self.dir.display();
        let mut auth = String::new();
        if let Some(code) = &spec.auth_code {
            let path = self.dir.join("auth");
            // Secrets that others can read are refused.
            fs::write(&path, code)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
                .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
            auth = format!("auth_code_file = \"{}\"\n", path.display());
        }
        let mut text = format!(
            "[chunkserver]\nmaster_host = \"{}\"\ncsserv_listen_host = \"{}\"\n\
             data_path = \"{state}/data\"\nlabels = \"{}\"\ncache_size = \"64MiB\"\n{auth}\n\
             [admin]\nsocket = \"{state}/admin.sock\"\nhttp = \"127.0.0.1:9424\"\n\n\
             [iscsi]\ninitiator_name = \"iqn.2024-12.tp2.b3:data-chunk1:chunk1-initiator\"\n",
            spec.master, spec.listen, spec.labels
        );
        for device in &spec.devices {
            // Writing to a String cannot fail.
            let _ = match device {
                Device::Iscsi {
                    name,
                    portals,
                    target,
                    lun,
                } => write!(
                    text,
                    "\n[[device]]\nname = \"{name}\"\nportals = {portals:?}\n\
                     target = \"{target}\"\nlun = {lun}\n"
                ),
                Device::Local {
                    name,
                    path,
                    size_bytes,
                } => write!(
                    text,
                    "\n[[device]]\nname = \"{name}\"\npath = \"{}\"\nsize = \"{}MiB\"\n",
                    path.display(),
                    size_bytes >> 20
                ),
            };
        }
        for (name, legs) in &spec.volumes {
            let _ = write!(text, "\n[[volume]]\nname = \"{name}\"\nmirror = {legs:?}\n");
        }
        text.push_str(&spec.more);
        text
    }

    /// A command line of antler with `-c`, at its place.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command_path(binary());
        command.args(args).arg("-c").arg(&self.config);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args), COMMAND_LIMIT)
    }

    /// Runs a command with `--json` that must succeed, and parses what it prints.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let finished = self.run(&with_json);
        let line = finished.line.clone();
        let text = finished.success();
        match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(e) => panic!("`{line}` printed {text:?}: {e}"),
        }
    }

    /// Formats a volume.
    pub fn create_volume(&self, name: &str) {
        run(&mut self.command(&["volume", "create", name]), CREATE_LIMIT).success();
    }

    /// Starts `serve`; registration is waited for separately.
    pub fn start(&mut self) {
        self.daemon = Some(Daemon::spawn("antler", self.command(&["serve"]), &self.dir));
    }

    /// Starts `serve` and waits until it has registered at the master.
    pub fn serve(&mut self) {
        self.start();
        self.wait_registered(Duration::from_secs(30));
    }

    /// `antler status`, or `None` while the daemon does not answer.
    pub fn try_status(&self) -> Option<Value> {
        let finished = self.run(&["status", "--json"]);
        (finished.code == Some(0)).then(|| serde_json::from_str(&finished.stdout).ok())?
    }

    /// `antler status`.
    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Waits until the master has accepted the server.
    pub fn wait_registered(&mut self, limit: Duration) {
        self.wait_status("antler to register", limit, |status| {
            status["master"]["state"] == "registered"
        });
    }

    /// Waits until the status satisfies `holds`; a daemon that ends meanwhile, or the limit, panics
    /// with the last status and the log.
    pub fn wait_status(&mut self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let held = try_wait(limit, || {
            if let Some(daemon) = &mut self.daemon {
                daemon.assert_running();
            }
            last = self.try_status().unwrap_or(Value::Null);
            holds(&last).then_some(())
        });
        if held.is_none() {
            panic!(
                "waited in vain for: {what}\nlast status: {last:#}\n{}",
                self.log_tail()
            );
        }
    }

    /// Waits until `antler arrays` shows the array of `volume` as `state`; returns the array.
    pub fn wait_array(&self, volume: &str, state: &str, limit: Duration) -> Value {
        wait_for(&format!("array of {volume} to be {state}"), limit, || {
            let finished = self.run(&["arrays", "--json"]);
            let arrays: Value = serde_json::from_str(&finished.stdout).ok()?;
            let array = arrays["arrays"]
                .as_array()?
                .iter()
                .find(|a| a["volume"] == volume)?;
            (array["state"] == state).then(|| array.clone())
        })
    }

    /// Waits until an event of this kind is on the status page; returns the last such.
    pub fn wait_event(&mut self, event: &str, limit: Duration) {
        self.wait_status(&format!("event {event}"), limit, |status| {
            status["events"]
                .as_array()
                .is_some_and(|all| all.iter().any(|e| e["event"] == event))
        });
    }

    /// SIGTERM; panics unless it ends with status 0.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let status = daemon.terminate(STOP_LIMIT);
            assert!(
                status.success(),
                "antler serve: {status}\n{}",
                daemon.log_tail()
            );
        }
    }

    /// SIGHUP: `serve` reads the configuration again.
    pub fn reload(&self) {
        crate::daemon::signal(self.pid(), nix::sys::signal::Signal::SIGHUP);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Panics with the log when `serve` has ended.
    pub fn assert_running(&mut self) {
        let daemon = self
            .daemon
            .as_mut()
            .unwrap_or_else(|| panic!("serve was not started"));
        daemon.assert_running();
    }

    /// Process id of `serve`.
    pub fn pid(&self) -> u32 {
        self.daemon
            .as_ref()
            .unwrap_or_else(|| panic!("serve was not started"))
            .pid()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        crate::command::tail(&self.dir.join("antler.log"), 60)
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("antler.log")).unwrap_or_default()
    }
}
