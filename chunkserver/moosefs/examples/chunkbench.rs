//! Loads a chunkserver that has come to a played master:
//! `chunkbench MASTER_IP:PORT MODE BLOCK_BYTES IODEPTH SECONDS`.

use blockdev::driver::run_shard;
use blockdev::Pool;
use moosefs::bench::{self, BenchConfig};
use moosefs::net::TcpConnector;
use moosefs::player::{Player, Script};
use std::rc::Rc;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, mode, block_bytes, iodepth, seconds] = &args[..] else {
        return Err("chunkbench MASTER_IP:PORT MODE BLOCK_BYTES IODEPTH SECONDS".into());
    };
    let (address, mode) = (address.parse()?, mode.parse()?);
    let (block_bytes, iodepth) = (block_bytes.parse()?, iodepth.parse()?);
    let runtime_s: u64 = seconds.parse()?;
    run_shard(|rt| async move {
        let player = Player::listen(address, Script::default()).await?;
        let mut server = player.accept().await?;
        let chunks = bench::create_chunks(&mut server, 4).await?;
        let config = BenchConfig {
            server: server.data_port(),
            chunks: chunks.clone(),
            mode,
            block_bytes,
            iodepth,
            sessions: 1,
            runtime: Some(Duration::from_secs(runtime_s)),
            size_bytes: None,
            offset_bytes: 0,
            span_bytes: None,
            seed: 1,
        };
        let pool = Pool::new(512 << 20);
        let load = bench::run(config, rt, pool, Rc::new(TcpConnector), None);
        tokio::pin!(load);
        let result = tokio::select! { biased;
            result = &mut load => result?,
            error = server.keep_alive() => return Err(error.into()),
        };
        println!("{result:#?}");
        for (id, version) in chunks {
            server.delete(id, version).await?;
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    })?
}
