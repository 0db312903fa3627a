//! What the process asks of the system at its start, and what it tells the service manager.
//!
//! Limits (NOFILE, MEMLOCK), niceness, umask and the OOM killer as MooseFS' options ask for; each failure is
//! one warning and never the end. Notification is sd_notify(3)'s protocol: a datagram of `KEY=VALUE` lines to
//! `$NOTIFY_SOCKET`.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::resource::{getrlimit, setrlimit, Resource};
use tracing_subscriber::EnvFilter;

use crate::config::{show_size, Chunkserver};

/// Clients, peers, sessions and files.
const NOFILE: u64 = 65_536;

/// Raises limits and applies the options that concern the whole process. `pool_bytes`: what will be locked
/// for registered buffers.
pub fn apply(options: &Chunkserver, pool_bytes: u64) {
    raise(
        Resource::RLIMIT_NOFILE,
        NOFILE,
        "open files (NOFILE)",
        |n| n.to_string(),
    );
    raise(
        Resource::RLIMIT_MEMLOCK,
        pool_bytes,
        "locked memory (MEMLOCK)",
        show_size,
    );
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(options.file_umask));
    if options.lock_memory {
        use nix::sys::mman::{mlockall, MlockAllFlags};
        if let Err(e) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
            tracing::warn!("lock_memory: {e}; raise MEMLOCK (LimitMEMLOCK=infinity)");
        }
    }
    // Both are privileges: a service without them runs as it is, as stock does.
    if options.disable_oom_killer {
        if let Err(e) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
            tracing::debug!("disable_oom_killer: {e}");
        }
    }
    if let Err(e) = set_nice(options.nice_level) {
        tracing::debug!("nice_level: {e}");
    }
}

/// By renice(1): setpriority(2) has no safe wrapper here, and once a start is seldom enough for a process.
fn set_nice(level: i32) -> std::io::Result<()> {
    let pid = std::process::id().to_string();
    let status = std::process::Command::new("renice")
        .args(["-n", &level.to_string(), "-p", &pid])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other("renice refused"))
    }
}

/// Raises a soft limit to what is wanted, as far as the hard limit (or privilege) lets it; one warning if it
/// stays below.
fn raise(resource: Resource, want: u64, name: &str, show: fn(u64) -> String) {
    let Ok((soft, hard)) = getrlimit(resource) else {
        return;
    };
    if soft >= want {
        return;
    }
    // Root may raise the hard limit as well.
    if setrlimit(resource, want, hard.max(want)).is_ok() {
        return;
    }
    let reach = want.min(hard);
    let reached = if setrlimit(resource, reach, hard).is_ok() {
        reach
    } else {
        soft
    };
    tracing::warn!(
        "limit of {name} is {}, wanted {}; raise it in the unit",
        show(reached),
        show(want)
    );
}

/// Starts logging: one line an event on standard error, colour on a terminal only, filtered by `ANTLER_LOG`
/// (default `info`). A malformed filter is named and the default used.
pub fn start_log() {
    use std::io::IsTerminal;
    let (filter, malformed) = match std::env::var("ANTLER_LOG") {
        Ok(text) if !text.is_empty() => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(e) => (
                EnvFilter::new("info"),
                Some(format!("ANTLER_LOG={text:?}: {e}")),
            ),
        },
        _ => (EnvFilter::new("info"), None),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    if let (Ok(()), Some(text)) = (started, malformed) {
        tracing::warn!("{text}; using info");
    }
}

/// Makes a panic one log line with its place, and the end of the process: a thread that lost its state must
/// not leave another serving (status 101, as a panic of the main thread).
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let what = info
            .payload()
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| info.payload().downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown".to_owned());
        let place = info
            .location()
            .map_or_else(String::new, |l| format!(" at {l}"));
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        tracing::error!("broken invariant{place}: {what}{trace}");
        std::process::exit(101);
    }));
}

/// The way to the service manager; silent where there is none.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// From `$NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub fn from_environment() -> Notifier {
        std::env::var_os("NOTIFY_SOCKET").map_or_else(Notifier::default, Notifier::to)
    }

    /// To that socket.
    pub fn to(name: OsString) -> Notifier {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            _ => SocketAddr::from_pathname(&name),
        };
        let socket = address.and_then(|a| Ok((UnixDatagram::unbound()?, a)));
        match socket {
            Ok((socket, address)) => {
                // A manager that does not read must not stop us.
                let _ = socket.set_nonblocking(true);
                Notifier {
                    socket: Some((socket, address)),
                }
            }
            Err(e) => {
                tracing::warn!("NOTIFY_SOCKET: {e}");
                Notifier::default()
            }
        }
    }

    /// Sends lines such as `READY=1\nSTATUS=…`.
    pub fn tell(&self, lines: &str) {
        if let Some((socket, address)) = &self.socket {
            if let Err(e) = socket.send_to_addr(lines.as_bytes(), address) {
                tracing::debug!("sd_notify: {e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifies_by_path_and_by_abstract_name() {
        let path = std::env::temp_dir().join(format!("antler-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let manager = UnixDatagram::bind(&path).unwrap();
        Notifier::to(path.clone().into_os_string()).tell("READY=1\nSTATUS=x");
        let mut buffer = [0; 64];
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1\nSTATUS=x");
        std::fs::remove_file(&path).unwrap();

        let name = format!("antler-notify-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::to(format!("@{name}").into()).tell("STOPPING=1");
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"STOPPING=1");
        Notifier::default().tell("READY=1");
    }
}
