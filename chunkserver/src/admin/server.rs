//! The daemon's side of the admin socket.
//!
//! Runs on the control thread. Who may open the socket (mode 0660) may look; commands that change something
//! are for root and the service's own user, told by the peer's credentials (SO_PEERCRED, unix(7)), never by
//! what the request says.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::door::Door;
use super::{parse_request, Reply, Request, REQUEST_BYTES_MAX};
use crate::control::Plane;
use crate::dying::{self, Try};
use crate::exit::Failure;

/// Connections served at a time; one more ends the one that has been idle longest.
pub const CONNECTIONS_MAX: usize = 16;
/// A client that says nothing is sent away.
const IDLE: Duration = Duration::from_secs(60);
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: Option<std::os::unix::net::UnixListener>,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds it, with mode 0660. A file left by a daemon that died is replaced; a socket that somebody
    /// listens on is not, unless that was a daemon on its way out.
    pub fn bind(path: &Path) -> Result<AdminSocket, Failure> {
        let fail = |what: &str, e: io::Error| {
            Failure::problem(format!("admin socket {}: {what}: {e}", path.display()))
        };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| fail("its directory cannot be made", e))?;
        }
        dying::wait_for(|| match std::os::unix::net::UnixStream::connect(path) {
            Err(_) => Ok(Try::Ours(())),
            Ok(_) => Ok(Try::Taken(Failure::problem(format!(
                "admin socket {}: another `antler serve` listens on it",
                path.display()
            )))),
        })?;
        use std::os::unix::fs::FileTypeExt;
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            std::fs::remove_file(path).map_err(|e| fail("the old one cannot be removed", e))?;
        }
        let listener =
            std::os::unix::net::UnixListener::bind(path).map_err(|e| fail("cannot be made", e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(|e| fail("mode cannot be set", e))?;
        listener
            .set_nonblocking(true)
            .map_err(|e| fail("cannot be used", e))?;
        Ok(AdminSocket {
            listener: Some(listener),
            path: path.to_owned(),
        })
    }

    /// Serves for ever. Must be called within a tokio runtime, once.
    pub(crate) async fn serve(&mut self, plane: Arc<Plane>) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(e) => {
                tracing::error!("admin socket {}: {e}", self.path.display());
                return;
            }
        };
        let door = Door::new(CONNECTIONS_MAX);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let place = door.enter().await;
                    let (plane, door) = (plane.clone(), door.clone());
                    tokio::spawn(async move {
                        // A peer that hangs up is no event.
                        let _ = converse(stream, plane, &door).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!("admin socket {}: accept: {e}", self.path.display());
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers one connection's requests in turn.
async fn converse(stream: UnixStream, plane: Arc<Plane>, door: &Door) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let may_change = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = REQUEST_BYTES_MAX as u64 + 1;
        let mut limited = (&mut read).take(limit);
        let request = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line));
        match door.idle(request).await {
            None | Some(Err(_) | Ok(Ok(0))) => return Ok(()),
            Some(Ok(Err(e))) => return Err(e),
            Some(Ok(Ok(_))) => {}
        }
        let too_long = line.len() > REQUEST_BYTES_MAX;
        let reply = if too_long {
            Reply::Error(Failure::usage("malformed request: longer than 64 KiB"))
        } else {
            match parse_request(&line) {
                Ok(request) => answer(&plane, request, may_change, uid).await,
                Err(failure) => Reply::Error(failure),
            }
        };
        let mut bytes = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        bytes.push(b'\n');
        tokio::time::timeout(IDLE, write.write_all(&bytes))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if too_long {
            return Ok(()); // the rest of the line is not worth reading
        }
    }
}

async fn answer(plane: &Plane, request: Request, may_change: bool, uid: u32) -> Reply {
    if request.changes() && !may_change {
        return Reply::Error(Failure::problem(format!(
            "uid {uid} may look but not change: be root or the service's user"
        )));
    }
    let value = match request {
        Request::Status {} => serde_json::to_value(plane.status()),
        Request::Paths {} => serde_json::to_value(plane.paths()),
        Request::PathEvents {} => serde_json::to_value(plane.path_events()),
        Request::Arrays {} => serde_json::to_value(plane.arrays()),
        command => match plane.command(command).await {
            Ok(answer) => serde_json::to_value(answer),
            Err(failure) => return Reply::Error(failure),
        },
    };
    match value {
        Ok(value) => Reply::Ok(value),
        Err(e) => Reply::Error(Failure::problem(format!("answer cannot be written: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_daemon_is_dying_is_waited_for() {
        let path = std::env::temp_dir().join(format!("antler-dying-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let end = std::thread::spawn(move || {
            std::thread::sleep(3 * dying::LOOK);
            drop(dying);
        });
        let socket = AdminSocket::bind(&path).unwrap();
        end.join().unwrap();
        drop(socket);
        assert!(!path.exists());
    }
}
