//! Plays a minimal master for one chunkserver: accepts its registration and gives it orders.
//!
//! For `antler bench chunk --master` and for tests; it keeps no metadata. Works with stock servers
//! too, which refuse a master in 127/8.

use crate::proto::frame::{self, TO_MASTER_PAYLOAD_MAX};
use crate::proto::master::{auth_digest, Ack, Command, Register, ToMaster, NOP};
use crate::proto::{status, Malformed, Version};
use chunk_api::{ChunkEntry, ChunkId, ChunkVersion};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout, Interval, MissedTickBehavior};

/// Who connects registers within this; the next in the queue may be the server waited for.
const REGISTRATION: Duration = Duration::from_secs(10);
/// A server answers an order within this; it may have to wait for its devices.
const ORDER: Duration = Duration::from_secs(30);

/// How the played master presents itself.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its version.
    pub version: Version,
    /// Seconds of silence it allows.
    pub timeout_s: u16,
    /// The server id it gives to a server without one.
    pub csid: u16,
    /// Identity of its file system.
    pub metaid: u64,
    /// AUTH_CODE it wants; `None` = no challenge.
    pub auth_code: Option<Vec<u8>>,
}

impl Default for Script {
    fn default() -> Script {
        Script {
            version: Version::new(3, 0, 117),
            timeout_s: 10,
            csid: 1,
            metaid: 0x4142_4344_0000_0001,
            auth_code: None,
        }
    }
}

/// A listening master.
#[derive(Debug)]
pub struct Player {
    listener: TcpListener,
    script: Script,
}

impl Player {
    /// Listens; port 0 takes a free one.
    pub async fn listen(address: SocketAddr, script: Script) -> io::Result<Player> {
        Ok(Player {
            listener: TcpListener::bind(address).await?,
            script,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Waits for a server and accepts it. A server that fails to register is dropped and the next
    /// awaited.
    pub async fn accept(&self) -> io::Result<Registered> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            stream.set_nodelay(true)?;
            match timeout(REGISTRATION, self.register(stream, peer)).await {
                Ok(Ok(registered)) => return Ok(registered),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "registration failed"),
                Err(late) => tracing::debug!(%peer, %late, "registration failed"),
            }
        }
    }

    async fn register(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Registered> {
        let mut nops = interval(Duration::from_secs(1));
        nops.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut server = Registered {
            stream,
            received: Vec::new(),
            nops,
            data_port: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            claimed: Version::default(),
            chunks: Vec::new(),
            labels: 0,
            news: VecDeque::new(),
        };
        let challenge = [0x5A; 32];
        let wanted = self
            .script
            .auth_code
            .as_ref()
            .map(|code| auth_digest(&challenge, code));
        loop {
            let Register::Begin(digest, begin) = server.next_register().await? else {
                return Err(io::Error::other("no BEGIN"));
            };
            if wanted.is_some() && digest.is_none() {
                server.send(&Ack::Challenge(challenge).encode()).await?;
                continue;
            }
            if wanted != digest {
                return Err(io::Error::other("wrong password"));
            }
            let source = match peer.ip() {
                IpAddr::V4(ip) => ip,
                IpAddr::V6(_) => return Err(io::Error::other("a server by IPv6")),
            };
            let ip = *begin.address.ip();
            let ip = if ip.is_unspecified() { source } else { ip };
            server.data_port = SocketAddrV4::new(ip, begin.address.port());
            server.claimed = Version(begin.version);
            let csid = if begin.csid == 0 {
                self.script.csid
            } else {
                begin.csid
            };
            let ack = Ack::Accepted {
                version: Some(self.script.version),
                timeout_s: Some(self.script.timeout_s),
                csid: Some(csid),
                metaid: Some(self.script.metaid),
            };
            server.send(&ack.encode()).await?;
            break;
        }
        loop {
            match server.next_register().await? {
                Register::Chunks(part) => {
                    server.chunks.extend(part);
                    server.send(&Ack::PART_TAKEN.encode()).await?;
                }
                Register::End => return Ok(server),
                other => return Err(io::Error::other(format!("out of turn: {other:?}"))),
            }
        }
    }
}

/// A server that has registered.
#[derive(Debug)]
pub struct Registered {
    stream: TcpStream,
    received: Vec<u8>,
    nops: Interval,
    data_port: SocketAddrV4,
    claimed: Version,
    chunks: Vec<ChunkEntry>,
    labels: u32,
    news: VecDeque<ToMaster>,
}

impl Registered {
    /// Where it serves clients.
    pub fn data_port(&self) -> SocketAddrV4 {
        self.data_port
    }

    /// The version it claims.
    pub fn claimed(&self) -> Version {
        self.claimed
    }

    /// The chunks it listed.
    pub fn chunks(&self) -> &[ChunkEntry] {
        &self.chunks
    }

    /// Its labels, bit 0 = A.
    pub fn labels(&self) -> u32 {
        self.labels
    }

    /// Gives an order and waits for its answer; the status. Other packets are kept for
    /// [`Registered::next_news`].
    pub async fn order(&mut self, command: Command) -> io::Result<u8> {
        self.send(&command.encode()).await?;
        loop {
            let packet = self.receive().await?;
            match packet {
                ToMaster::Answer {
                    command: kind,
                    id,
                    status,
                } if kind == command.kind() && id == command.id() => {
                    return Ok(status);
                }
                other => self.keep(other),
            }
        }
    }

    /// Creates a chunk.
    pub async fn create(&mut self, id: ChunkId, version: ChunkVersion) -> io::Result<()> {
        self.must(Command::Create { id, version }).await
    }

    /// Deletes a chunk; version 0 means any, as a master orders that has lost track of it.
    pub async fn delete(&mut self, id: ChunkId, version: ChunkVersion) -> io::Result<()> {
        self.must(Command::Delete { id, version }).await
    }

    async fn must(&mut self, command: Command) -> io::Result<()> {
        let answer = timeout(ORDER, self.order(command)).await.map_err(|_| {
            let (peer, limit) = (self.data_port, ORDER.as_secs());
            let text = format!("{peer} did not answer {command:?} within {limit} s");
            io::Error::new(io::ErrorKind::TimedOut, text)
        })?;
        match answer? {
            status::OK => Ok(()),
            status => Err(io::Error::other(format!(
                "the server answered {command:?} with status {status} ({})",
                status::text(status)
            ))),
        }
    }

    /// The next packet that is neither a NOP nor an answer. Keeps the link alive while waiting.
    pub async fn next_news(&mut self) -> io::Result<ToMaster> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            let packet = self.receive().await?;
            self.keep(packet);
        }
    }

    /// Keeps the link alive until the server closes it.
    pub async fn keep_alive(&mut self) -> io::Error {
        loop {
            match self.receive().await {
                Ok(packet) => self.keep(packet),
                Err(error) => return error,
            }
        }
    }

    fn keep(&mut self, packet: ToMaster) {
        const NEWS_MAX: usize = 100_000;
        match packet {
            ToMaster::Nop => {}
            ToMaster::Labels(labels) => self.labels = labels,
            packet if self.news.len() < NEWS_MAX => self.news.push_back(packet),
            _ => {}
        }
    }

    async fn next_register(&mut self) -> io::Result<Register> {
        loop {
            match self.receive().await? {
                ToMaster::Register(register) => return Ok(register),
                other => self.keep(other),
            }
        }
    }

    /// Sends raw bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next packet of any kind. May be dropped while waiting.
    pub async fn receive(&mut self) -> io::Result<ToMaster> {
        loop {
            let wrong = |m: Malformed| io::Error::new(io::ErrorKind::InvalidData, m);
            let split = frame::split(&self.received, TO_MASTER_PAYLOAD_MAX).map_err(wrong)?;
            if let Some((header, payload, used)) = split {
                let packet = ToMaster::parse(header.kind, payload).map_err(wrong)?;
                self.received.drain(..used);
                return Ok(packet);
            }
            tokio::select! { biased;
                got = self.stream.read_buf(&mut self.received) => {
                    if got? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                _ = self.nops.tick() => self.stream.write_all(&NOP).await?,
            }
        }
    }
}
