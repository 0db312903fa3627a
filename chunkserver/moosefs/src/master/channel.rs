//! What goes between the control thread (driver) and the shard's thread (executor).
//!
//! Every message of a connection carries its *epoch*, which grows with each registration: answers
//! and reports of an earlier connection are recognised and dropped.

use crate::proto::info::Question;
use crate::proto::master::Command;
use chunk_api::{ChunkEntry, Report, Space};
use tokio::sync::{mpsc, watch};

/// Orders waiting between the threads; beyond them the socket is not read.
pub const ORDERS_WAITING_MAX: usize = 64;
/// Answers and reports waiting between the threads.
pub const NEWS_WAITING_MAX: usize = 256;

/// From the link to storage.
#[derive(Debug)]
pub enum Order {
    /// Accepted by a master of this file system: adopt it, then give the chunk list.
    List {
        /// Epoch of the connection, which begins with this message.
        epoch: u64,
        /// The file system's identity.
        metaid: u64,
    },
    /// An order of the master.
    Command {
        /// Epoch of the connection.
        epoch: u64,
        /// What to do.
        command: Command,
    },
    /// Information the master asks for.
    Question {
        /// Epoch of the connection.
        epoch: u64,
        /// What it asks.
        question: Question,
    },
}

/// From storage to the link.
#[derive(Debug)]
pub enum News {
    /// All chunks, or why there are none for this master.
    Inventory {
        /// Epoch of the [`Order::List`].
        epoch: u64,
        /// In ascending order of ids.
        chunks: Result<Vec<ChunkEntry>, String>,
    },
    /// An answer as a whole frame.
    Answer {
        /// Epoch of the order.
        epoch: u64,
        /// The frame.
        frame: Vec<u8>,
    },
    /// What storage reports unasked.
    Reports {
        /// Epoch of the last [`Order::List`] before them.
        epoch: u64,
        /// In order.
        reports: Vec<Report>,
    },
    /// Reports were lost: register again, from the inventory.
    RegisterAgain,
}

/// What storage publishes, refreshed once a second and on change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Space.
    pub space: Space,
    /// Work in progress, as `CSTOMA_CURRENT_LOAD` tells it.
    pub load: u32,
}

/// The link's ends.
#[derive(Debug)]
pub struct LinkEnds {
    /// Orders out.
    pub orders: mpsc::Sender<Order>,
    /// News in.
    pub news: mpsc::Receiver<News>,
    /// The latest facts; `None` until storage is there.
    pub facts: watch::Receiver<Option<Facts>>,
}

/// Storage's ends.
#[derive(Debug)]
pub struct StorageEnds {
    /// Orders in.
    pub orders: mpsc::Receiver<Order>,
    /// News out.
    pub news: mpsc::Sender<News>,
    /// Publishes facts.
    pub facts: watch::Sender<Option<Facts>>,
}

/// Makes both ends.
pub fn pair() -> (LinkEnds, StorageEnds) {
    let (orders, orders_in) = mpsc::channel(ORDERS_WAITING_MAX);
    let (news_out, news) = mpsc::channel(NEWS_WAITING_MAX);
    let (facts_out, facts) = watch::channel(None);
    let link = LinkEnds {
        orders,
        news,
        facts,
    };
    (
        link,
        StorageEnds {
            orders: orders_in,
            news: news_out,
            facts: facts_out,
        },
    )
}
