//! A TCP proxy that stands for a network which keeps what it was given and delivers it later.
//!
//! While it holds, bytes are still taken from both sides and go nowhere; a client's close is not
//! passed on either. When it delivers, what was held arrives on the old connections, although
//! their client may be long gone: the packets that a healed network still had in it. New
//! connections are refused from `hold` to `reopen`, so that a delivery meets no new login.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How often an idle listener looks whether the proxy is gone.
const ACCEPT_POLL: Duration = Duration::from_millis(10);
/// How often a direction without traffic looks whether it may deliver.
const LOOK: Duration = Duration::from_millis(5);
/// An old connection stays open this long after its client's end, to hear the target out.
const LINGER: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
struct State {
    holds: bool,
    refuses: bool,
    is_over: bool,
    held_bytes: u64,
    connections: Vec<[TcpStream; 2]>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A running proxy; it ends with this value.
#[derive(Debug)]
pub struct HoldingProxy {
    address: SocketAddrV4,
    shared: Arc<Shared>,
}

impl HoldingProxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target`.
    pub fn start(target: SocketAddrV4) -> Self {
        let fail = |e: std::io::Error| -> ! { panic!("proxy to {target}: {e}") };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|e| fail(e));
        listener.set_nonblocking(true).unwrap_or_else(|e| fail(e));
        let SocketAddr::V4(address) = listener.local_addr().unwrap_or_else(|e| fail(e)) else {
            unreachable!("bound to an IPv4 address");
        };
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        std::thread::spawn(move || accept(&listener, target, &own));
        Self { address, shared }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// From now on nothing passes, either way, and nobody is told.
    pub fn hold(&self) {
        let mut state = self.shared.lock();
        state.holds = true;
        state.refuses = true;
    }

    /// Bytes of clients that have not been passed on.
    pub fn held_bytes(&self) -> u64 {
        self.shared.lock().held_bytes
    }

    /// Everything held arrives. New connections are still refused.
    pub fn deliver(&self) {
        self.shared.lock().holds = false;
    }

    /// New connections pass again.
    pub fn reopen(&self) {
        self.shared.lock().refuses = false;
    }

    /// The loud failure: every connection ends with a FIN, and no new one is let in.
    pub fn fail(&self) {
        let mut state = self.shared.lock();
        state.refuses = true;
        for stream in state.connections.drain(..).flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for HoldingProxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        for stream in state.connections.iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddrV4, shared: &Arc<Shared>) {
    loop {
        if shared.lock().is_over {
            return;
        }
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(ACCEPT_POLL);
            continue;
        };
        if shared.lock().refuses {
            continue;
        }
        let Ok(server) = TcpStream::connect(target) else {
            continue;
        };
        let ready = client.set_nonblocking(false).is_ok()
            && client.set_nodelay(true).is_ok()
            && server.set_nodelay(true).is_ok();
        let copies = (client.try_clone(), server.try_clone());
        if let (true, (Ok(a), Ok(b))) = (ready, copies) {
            join(client, server, [a, b], shared);
        }
    }
}

/// Starts the two directions of a connection.
fn join(client: TcpStream, server: TcpStream, kept: [TcpStream; 2], shared: &Arc<Shared>) {
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    shared.lock().connections.push(kept);
    let own = shared.clone();
    std::thread::spawn(move || forward(client, server, true, &own));
    let own = shared.clone();
    std::thread::spawn(move || forward(server_too, client_too, false, &own));
}

/// What one look at a socket found.
enum Found {
    Bytes(usize),
    Nothing,
    End,
}

fn look(from: &mut TcpStream, buffer: &mut [u8]) -> Found {
    match from.read(buffer) {
        Ok(0) => Found::End,
        Ok(count) => Found::Bytes(count),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Found::Nothing,
        // A reset is an end too.
        Err(_) => Found::End,
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_upward: bool, shared: &Shared) {
    let mut buffer = vec![0; 256 << 10];
    let mut held = Vec::new();
    let mut is_ended = from.set_read_timeout(Some(LOOK)).is_err();
    loop {
        if is_ended {
            std::thread::sleep(LOOK);
        } else {
            match look(&mut from, &mut buffer) {
                Found::Bytes(count) => {
                    held.extend_from_slice(&buffer[..count]);
                    if is_upward {
                        shared.lock().held_bytes += count as u64;
                    }
                }
                Found::Nothing => {}
                Found::End => is_ended = true,
            }
        }
        {
            let state = shared.lock();
            if state.is_over {
                return;
            }
            if state.holds {
                continue;
            }
        }
        let is_sent = to.write_all(&held).is_ok();
        if is_upward {
            shared.lock().held_bytes -= held.len() as u64;
        }
        held.clear();
        if !is_sent {
            return;
        }
        if is_ended {
            if is_upward {
                std::thread::sleep(LINGER);
            }
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}
