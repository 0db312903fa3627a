//! A whole chunkserver that keeps its chunks in memory: the protocol without a disk.
//!
//! `memserver MASTER:PORT LISTEN_IP:PORT DATA_DIR [AUTH_CODE]`. Prints `registered` and `lost`
//! lines; SIGTERM leaves gracefully.

use blockdev::driver::run_shard;
use blockdev::Pool;
use moosefs::master::link::LinkConfig;
use moosefs::master::{channel, Driver, FileState, MasterConfig, MasterEvent, MasterExecutor};
use moosefs::mem::MemChunks;
use moosefs::net::{accept, listen, TcpConnector};
use moosefs::proto::CLAIMED_VERSION;
use moosefs::replicate::Replicator;
use moosefs::serve::{ServeConfig, Server};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::rc::Rc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [master, address, data, rest @ ..] = &args[..] else {
        return Err("memserver MASTER:PORT LISTEN_IP:PORT DATA_DIR [AUTH_CODE]".into());
    };
    let (host, port) = master.rsplit_once(':').ok_or("MASTER:PORT")?;
    let address: SocketAddrV4 = address.parse()?;
    let link = LinkConfig {
        claim: CLAIMED_VERSION,
        listen: address,
        timeout_s: 0,
        labels: 1,
        auth_code: rest.first().map(|code| code.clone().into_bytes()),
        options: BTreeMap::new(),
    };
    let config = MasterConfig {
        masters: vec![(host.to_owned(), port.parse()?)],
        bind: None,
        link,
    };
    let (link_ends, storage_ends) = channel::pair();
    let tell = Box::new(|event: MasterEvent| println!("{} {event:?}", event.name()));
    let state = Box::new(FileState::new(data.as_ref()));
    let (driver, handle) = Driver::new(config, link_ends, state, tell)?;

    let control = std::thread::spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(driver.run());
        Ok(())
    });
    let leaving = handle.clone();
    run_shard(|rt| async move {
        let pool = Pool::new(256 << 20);
        let chunks = MemChunks::new(rt.clone(), pool.clone(), 8 << 30);
        let connector = Rc::new(TcpConnector);
        let replicator =
            Replicator::new(chunks.clone(), rt.clone(), pool.clone(), connector.clone());
        let owner = Rc::new(moosefs::master::executor::Unowned);
        let executor =
            MasterExecutor::new(chunks.clone(), owner, replicator, rt.clone(), storage_ends);
        rt.spawn(executor.run());
        let config = ServeConfig {
            master: Some(handle),
            ..ServeConfig::default()
        };
        let server = Server::new(chunks, rt.clone(), pool, connector, config);
        let listener = listen(address.into())?;
        rt.spawn(accept(listener, server, rt.clone()));
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        stop.recv().await;
        leaving.leave().await;
        std::io::Result::Ok(())
    })??;
    control
        .join()
        .map_err(|_| "the control thread panicked")??;
    Ok(())
}
