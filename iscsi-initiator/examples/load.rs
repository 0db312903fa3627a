//! Random reads of 4 KiB for three seconds, and what they cost:
//! `load PORTAL TARGET LUN [MODE [BLOCK_BYTES [IODEPTH [SECONDS]]]]`.

use blockdev::driver::run_shard;
use blockdev::Pool;
use iscsi_initiator::bench::{run_iscsi, BenchConfig, Mode};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::PortConfig;
use iscsi_initiator::tcp::TcpNet;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [portal, target, lun, rest @ ..] = &args[..] else {
        return Err(
            "usage: load PORTAL TARGET LUN [MODE [BLOCK_BYTES [IODEPTH [SECONDS]]]]".into(),
        );
    };
    let unit = PortConfig {
        portal: portal.parse()?,
        source: None,
        target: target.clone(),
        lun: lun.parse()?,
        role: Role::Tool,
        shard: 0,
    };
    let arg = |at: usize, default: &str| rest.get(at).cloned().unwrap_or(default.to_owned());
    let config = BenchConfig {
        mode: Mode::from_name(&arg(0, "randread")).ok_or("unknown mode")?,
        block_bytes: arg(1, "4096").parse()?,
        iodepth: arg(2, "16").parse()?,
        runtime: Duration::from_secs(arg(3, "3").parse()?),
        size_bytes: None,
        offset_bytes: 0,
        span_bytes: None,
        seed: 1,
        trace: false,
    };
    let report = run_shard(|rt| async move {
        let name = "iqn.2024-12.tp2.b3:load";
        let initiator = Initiator::new(rt.clone(), Rc::new(TcpNet), Pool::new(64 << 20), name);
        let deadline = rt.now() + Duration::from_secs(5);
        run_iscsi(&initiator, &unit, 1, config, deadline).await
    })??;
    let cpu_us = (report.cpu_s.user + report.cpu_s.system) * 1e6 / report.ios.max(1) as f64;
    println!(
        "{} {} B x {}: {:.0} IOPS, {:.1} MB/s, {:.2} us CPU an I/O, p50 {} us, p99 {} us, {} errors",
        report.rw,
        report.bs_bytes,
        report.iodepth,
        report.iops,
        report.bytes_per_s as f64 / 1e6,
        cpu_us,
        report.lat_us.p50,
        report.lat_us.p99,
        report.errors,
    );
    Ok(())
}
