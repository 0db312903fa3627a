//! Answers to information packets.

use super::Server;
use crate::proto::info::{self, ChunkInfo, Question, Which};
use chunk_api::Chunks;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// The answer to a question about one chunk, also for the master's link; `None` for others.
pub(crate) async fn about_chunk(chunks: &dyn Chunks, question: &Question) -> Option<Vec<u8>> {
    let table = |which: Which| {
        let reply = chunks.checksum_table(which.id, which.version);
        async move { reply.await.map_err(|e| e.status()) }
    };
    Some(match *question {
        Question::Blocks(which) => {
            let blocks = chunks.open(which.id, which.version);
            info::blocks(which, blocks.map_err(|e| e.status()))
        }
        Question::Checksum(which) => {
            let table = table(which).await;
            info::checksum(which, table.as_deref().map_err(|status| *status))
        }
        Question::ChecksumTable(which) => {
            let table = table(which).await;
            info::checksum_table(which, table.as_deref().map_err(|status| *status))
        }
        Question::Info(request) => {
            let which = Which {
                id: request.id,
                version: request.version,
            };
            let blocks = chunks.open(which.id, which.version).map_err(|e| e.status());
            let answer = match (blocks, table(which).await) {
                (Ok(blocks), Ok(table)) => {
                    // There is no file; the name it would have says what is meant.
                    let path = format!("chunk_{}_{}.mfs", which.id, which.version);
                    Ok(ChunkInfo {
                        blocks,
                        table,
                        path,
                    })
                }
                (Err(status), _) | (_, Err(status)) => Err(status),
            };
            info::chunk_info(request, answer.as_ref().map_err(|status| *status))
        }
        _ => return None,
    })
}

pub(super) async fn answer(server: &Server, question: &Question) -> Vec<u8> {
    if let Some(answer) = about_chunk(&*server.chunks, question).await {
        return answer;
    }
    let config = &server.config;
    match question {
        Question::Version(id) => info::version(*id, config.claim, &config.claim.to_string()),
        Question::Config { message_id, option } => {
            let value = config.options.get(option).map_or("", String::as_str);
            info::config_value(*message_id, value)
        }
        // Errors are counted per leg and path, and clear themselves when it is well again.
        Question::ClearErrors(_) => info::errors_cleared(0),
        Question::MonotonicData => info::monotonic_data(&server.chunks.disks()),
        Question::Chart => info::empty_chart(),
        Question::ChartData => {
            let now_s = server.rt.wall().0 / 1_000_000;
            info::empty_chart_data(u32::try_from(now_s).unwrap_or(u32::MAX))
        }
        Question::ModuleInfo => {
            let status = config
                .master
                .as_ref()
                .map(|master| master.status())
                .unwrap_or_default();
            let address = match status.address {
                Some(SocketAddr::V4(address)) => address,
                _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            };
            info::module_info(config.claim, status.csid, status.metaid, address)
        }
        Question::HddList => info::hdd_list(&server.chunks.disks()),
        Question::Blocks(_)
        | Question::Checksum(_)
        | Question::ChecksumTable(_)
        | Question::Info(_) => unreachable!("answered above"),
    }
}
