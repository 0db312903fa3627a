//! Running programs to their end, in a namespace or in the host's, with a limit.
//!
//! A program that is missing panics with the command that installs it, so that a newcomer's first
//! failing test tells him what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::clock::Deadline;

/// Which Debian package brings a program that the tests use.
const PACKAGES: &[(&str, &str)] = &[
    ("tgtd", "tgt"),
    ("tgtadm", "tgt"),
    ("istgt", "istgt"),
    ("mfsmaster", "moosefs-master"),
    ("mfschunkserver", "moosefs-chunkserver"),
    ("mfsmount", "moosefs-client"),
    ("mfsfileinfo", "moosefs-client"),
    ("mfssetgoal", "moosefs-client"),
    ("mfsmakesnapshot", "moosefs-client"),
    ("mfscli", "moosefs-cli"),
    ("mdadm", "mdadm"),
    ("fio", "fio"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("fusermount3", "fuse3"),
    ("iscsi-ls", "libiscsi-bin"),
];

/// Finds `program` in `PATH` or the system directories (which a user's `PATH` may lack).
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The full path of `program`; panics with the installing command when it is missing.
pub fn require(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| {
        let package = PACKAGES
            .iter()
            .find(|(p, _)| *p == program)
            .map_or(program, |(_, k)| k);
        panic!("`{program}` is missing; install it with: apt-get install -y {package}")
    })
}

/// Panics unless the test runs as root: namespaces, mounts and raw sockets need it.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and mounts; run it as root: sudo ./test.sh interop"
    );
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; `None` when a signal (or our limit) ended it.
    pub code: Option<i32>,
    /// Standard output, lossily as text.
    pub stdout: String,
    /// Standard error, lossily as text.
    pub stderr: String,
    /// The command line, for messages.
    pub line: String,
}

impl Finished {
    /// Panics unless the program ended with status 0; returns its standard output.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.code == Some(0), "{}", self.describe());
        self.stdout
    }

    /// The whole story for a failure message.
    pub fn describe(&self) -> String {
        format!(
            "`{}` ended with {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.line, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs `command` with no input, at most for `limit`; a program that does not end is killed and has
/// `code: None`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let line = line_of(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start `{line}`: {e}"));
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel::<()>();
    // The output must be drained while the program runs, so the watch is a thread of its own.
    let watch = std::thread::spawn(move || {
        if finished.recv_timeout(limit).is_err() {
            crate::daemon::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let output: Output = child
        .wait_with_output()
        .unwrap_or_else(|e| panic!("cannot wait for `{line}`: {e}"));
    // The watch may have given up already; both outcomes are fine.
    let _ = done.send(());
    watch
        .join()
        .unwrap_or_else(|_| panic!("the watch of `{line}` panicked"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        line,
    }
}

/// As [`run`], for helpers that end at once: 20 s, and status 0 is required.
#[track_caller]
pub fn must(command: &mut Command) -> String {
    run(command, Duration::from_secs(20)).success()
}

/// The command as a person would type it.
pub fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// The last `lines` lines of a text file, for failure messages; empty when it cannot be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs until `deadline`, ignoring failures, as long as the program keeps failing.
pub fn until_success(what: &str, limit: Duration, mut command: impl FnMut() -> Command) -> String {
    let deadline = Deadline::after(limit);
    loop {
        let finished = run(&mut command(), Duration::from_secs(10));
        if finished.code == Some(0) {
            return finished.stdout;
        }
        assert!(!deadline.passed(), "{what}: {}", finished.describe());
        crate::clock::pause(Duration::from_millis(50));
    }
}
