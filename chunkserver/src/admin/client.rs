//! The commands' side of the admin socket: one request, one reply, blocking.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Reply, Request, ANSWER_DEADLINE};
use crate::exit::Failure;

/// A reply is never longer: some thousand devices, volumes and events.
const REPLY_BYTES_MAX: u64 = 64 << 20;
/// The daemon's own deadline comes first, and with a better message.
const PATIENCE: Duration = ANSWER_DEADLINE.saturating_add(Duration::from_secs(5));

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Client {
    /// Connects. The failure (status 3) names the socket.
    pub fn connect(socket: &Path) -> Result<Client, Failure> {
        let failed = |e: std::io::Error| {
            let hint = match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    "is `antler serve` running?"
                }
                std::io::ErrorKind::PermissionDenied => "be root, or a member of its group",
                _ => "the daemon cannot be reached",
            };
            Failure::unreachable(format!("{}: {e}; {hint}", socket.display()))
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Client {
            stream: BufReader::new(stream),
            socket: socket.to_owned(),
        })
    }

    /// Asks. The failure is the daemon's own, or (status 3) that it did not answer, or (status 1) that it
    /// answered something else.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Failure> {
        let lost = |what: &str| {
            Failure::unreachable(format!("{}: the daemon {what}", self.socket.display()))
        };
        let broken = |e: serde_json::Error| {
            Failure::problem(format!("{}: unexpected answer: {e}", self.socket.display()))
        };
        let mut line = serde_json::to_vec(request).map_err(broken)?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(|e| lost(&format!("hung up: {e}")))?;
        let mut reply = Vec::new();
        let read = (&mut self.stream)
            .take(REPLY_BYTES_MAX)
            .read_until(b'\n', &mut reply);
        match read {
            Ok(0) => return Err(lost("hung up")),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(lost("did not answer in time"))
            }
            Err(e) => return Err(lost(&format!("hung up: {e}"))),
        }
        match serde_json::from_slice::<Reply>(&reply).map_err(broken)? {
            Reply::Ok(value) => serde_json::from_value(value).map_err(broken),
            Reply::Error(failure) => Err(failure),
        }
    }
}
