//! One long-running child process with a log file, ended on drop.
//!
//! Every daemon carries the environment variable [`MARK`] = its state directory; the next run finds
//! by it what a killed run left behind (`scratch`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::clock::try_wait;
use crate::command::{line_of, tail};

/// Environment variable that marks the processes of one state directory.
pub const MARK: &str = "ANTLER_LAB";

/// Sends `signal` to process `pid`; a process that is gone already is fine.
pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// A running child process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Starts `command`; both its outputs are appended to `state/NAME.log`.
    pub fn spawn(name: &str, mut command: Command, state: &Path) -> Self {
        let log = state.join(format!("{name}.log"));
        let open = || -> File {
            let file = File::options().create(true).append(true).open(&log);
            file.unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display()))
        };
        command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .env(MARK, state);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start `{}`: {e}", line_of(&command)));
        Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        }
        self.ended
    }

    /// Sends a signal.
    pub fn signal(&mut self, which: Signal) {
        if self.ended().is_none() {
            signal(self.pid(), which);
        }
    }

    /// SIGKILL, and waits for the end; also ends a stopped process.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
        }
    }

    /// SIGTERM, and the exit status; panics when it does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        match try_wait(limit, || self.ended()) {
            Some(status) => status,
            None => panic!(
                "{} did not end within {} s of SIGTERM\n{}",
                self.name,
                limit.as_secs(),
                self.log_tail()
            ),
        }
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log, 40)
    }

    /// Panics with the log when it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!(
                "{} ended unexpectedly ({status})\n{}",
                self.name,
                self.log_tail()
            );
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- end of {}\n{}", self.log.display(), self.log_tail());
        }
    }
}
