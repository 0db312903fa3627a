//! Waiting for a process that was killed and is not gone yet.
//!
//! After `kill -9` the kernel first frees the memory of the process; its ports, sockets and locks last as long. A
//! service manager starts the next one at once, and that must not fail for what is free a moment later. Everything
//! that only one process can have is therefore asked for here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::exit::Failure;

/// A process that was killed may take so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it is gone.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// One try to have something.
pub(crate) enum Try<T, By = Failure> {
    /// It is ours.
    Ours(T),
    /// Somebody has it: who, or the failure if that stays so.
    Taken(By),
}

/// Tries until it is ours, for [`PATIENCE`] at most. An `Err` of the try itself is nothing that time cures.
///
/// Looks are counted, not timed: on a busy machine the wait grows and never shrinks.
pub(crate) fn wait_for<T>(
    mut attempt: impl FnMut() -> Result<Try<T>, Failure>,
) -> Result<T, Failure> {
    let mut looks = PATIENCE.as_millis() / LOOK.as_millis();
    loop {
        match attempt()? {
            Try::Ours(it) => return Ok(it),
            Try::Taken(failure) if looks == 0 => return Err(failure),
            Try::Taken(_) => {}
        }
        looks -= 1;
        std::thread::sleep(LOOK);
    }
}

/// A port to listen on. `what` is for people, `option` chooses another address.
pub(crate) fn listen<T>(
    what: &str,
    address: SocketAddr,
    option: &str,
    bind: impl Fn() -> io::Result<T>,
) -> Result<T, Failure> {
    let port = address.port();
    let taken = || {
        Failure::problem(format!(
            "{what} {address}: the port is in use, perhaps by another `antler serve` or \
             mfschunkserver (`ss -ltnp 'sport = :{port}'` names the process): stop it, or choose \
             another by {option}"
        ))
    };
    wait_for(|| match bind() {
        Ok(listener) => Ok(Try::Ours(listener)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(Try::Taken(taken())),
        Err(e) => Err(Failure::problem(format!(
            "{what} {address}: {e}; {option} chooses another address"
        ))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_that_becomes_free_is_taken_and_one_that_does_not_is_named() {
        let dying = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = dying.local_addr().unwrap();
        let mut dying = Some(dying);
        let mut tries = 0;
        let listener = wait_for(|| {
            tries += 1;
            if tries == 3 {
                dying.take();
            }
            Ok(match TcpListener::bind(address) {
                Ok(listener) => Try::Ours(listener),
                Err(e) => Try::Taken(Failure::problem(e.to_string())),
            })
        })
        .unwrap();
        assert_eq!(tries, 3);

        let refused = listen("http", address, "admin.http", || TcpListener::bind(address));
        let text = refused.unwrap_err().text;
        for part in [
            format!("http {address}: the port is in use"),
            format!("sport = :{}'", address.port()),
            "admin.http".to_owned(),
        ] {
            assert!(text.contains(&part), "no {part:?} in {text}");
        }
        drop(listener);
    }

    #[test]
    fn what_no_wait_cures_is_told_at_once() {
        let elsewhere: SocketAddr = "192.0.2.1:9424".parse().unwrap();
        let tries = std::cell::Cell::new(0);
        let refused = listen("http", elsewhere, "admin.http", || {
            tries.set(tries.get() + 1);
            TcpListener::bind(elsewhere)
        });
        assert!(refused.unwrap_err().text.contains("192.0.2.1:9424"));
        assert_eq!(tries.get(), 1);
    }
}
