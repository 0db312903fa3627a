//! Sockets of the data port: the listener and outgoing connections.
//!
//! The only file of the data side that knows tokio's sockets. Runs on a current-thread runtime
//! inside a `LocalSet`.

use crate::serve::{Connector, Server};
use crate::wire::Transport;
use blockdev::{LocalFuture, Rt};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Unsent bytes the kernel may hold per connection before it stops saying "writable": enough to
/// keep the wire busy, little enough that answers do not queue behind each other.
const UNSENT_BYTES: u32 = 512 << 10;
/// Pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 1024;

/// Opens the data port. Port 0 takes a free one.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    // A restarted server takes its port although old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections for ever (drop the future to stop).
pub async fn accept(listener: TcpListener, server: Rc<Server>, rt: Rt) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tune(&stream);
                server.accept(stream, peer.to_string());
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                rt.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn tune(stream: &TcpStream) {
    // Without these the connection still works: nothing to do about a failure.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES);
}

/// Connects by TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, to: SocketAddrV4) -> LocalFuture<io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            tune(&stream);
            Ok(Box::new(stream) as Box<dyn Transport>)
        })
    }
}
