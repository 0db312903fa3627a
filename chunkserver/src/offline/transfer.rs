//! `antler volume export` and `import`: chunks out to and in from the files of stock MooseFS.
//!
//! Export only looks at the volume. Import writes each chunk as a replica, which is invisible until it is whole
//! and durable; an older version that is held goes into the quarantine first, and comes back if the newer file
//! turns out to be bad.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use blockdev::{Mirror, Pool};
use chunk_api::crc::{crc32, ZERO_BLOCK_CRC};
use chunk_api::{
    ChunkEntry, ChunkError, ChunkId, ChunkVersion, Chunks, ReadPiece, Reply, BLOCK_BYTES,
};
use chunk_store::{Store, ANY_METAID};

use super::{about, enter, on_shard, open_array, store_options, view_array, Legs};
use crate::assemble::Base;
use crate::cli::Import;
use crate::config::{Config, Volume};
use crate::data_path::DataPath;
use crate::exit::Failure;
use crate::mfs_file::{self, Named, Reader, Writer};
use crate::names;
use crate::report::{Exported, Imported};

/// Blocks of a chunk that are read or written at once.
const BLOCKS_IN_FLIGHT: usize = 16;
/// Imported chunks that wait for their flush together.
const COMMITS_IN_FLIGHT: usize = 32;

/// See [`crate::ops::Ops::volume_export`].
pub fn export(
    config: &Config,
    name: &str,
    dir: &Path,
    chunk: Option<u64>,
) -> Result<Exported, Failure> {
    let volume = names::volume(config, name)?;
    std::fs::create_dir_all(dir).map_err(|e| at(dir, &e))?;
    unused(dir)?;
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open(&base, config, volume, &data_path).await?;
        let exported = write_out(&base, volume, &legs, &data_path, dir, chunk).await;
        legs.close().await;
        exported
    })
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::problem(format!("{}: {error}", path.display()))
}

/// A directory that a stock chunkserver serves is left alone.
fn unused(dir: &Path) -> Result<(), Failure> {
    match mfs_file::holder(dir).map_err(|e| at(dir, &e))? {
        None => Ok(()),
        Some(pid) => Err(Failure::problem(format!(
            "{} is in use by pid {pid}: stop that mfschunkserver first",
            dir.display()
        ))),
    }
}

async fn write_out(
    base: &Base,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
    dir: &Path,
    chunk: Option<u64>,
) -> Result<Exported, Failure> {
    let mirror: Rc<dyn Mirror> = view_array(base, volume, legs, data_path).await?;
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    let store = Store::view(mirror, rt, pool, store_options(volume)).await;
    let store = store.map_err(about(volume))?;
    let chunks = match chunk {
        None => store.inventory(),
        Some(id) => vec![one(&store, volume, ChunkId(id))?],
    };
    mark(&store, volume, dir)?;
    let mut exporter = Exporter::new(&store, dir)?;
    for entry in chunks {
        exporter.export(entry).await?;
    }
    // One sync for all: a file system's journal makes that far cheaper than one a file.
    let synced = std::fs::File::open(dir).and_then(|d| Ok(nix::unistd::syncfs(&d)?));
    synced.map_err(|e| at(dir, &e))?;
    Ok(exporter.done)
}

fn one(store: &Rc<Store>, volume: &Volume, id: ChunkId) -> Result<ChunkEntry, Failure> {
    match store.held(id) {
        Some(version) => Ok(ChunkEntry {
            id,
            version,
            removing: false,
        }),
        None => Err(Failure::problem(format!(
            "volume {} has no chunk {id}",
            volume.name
        ))),
    }
}

/// The directory says which file system its chunks belong to, as a stock chunkserver's does.
fn mark(store: &Rc<Store>, volume: &Volume, dir: &Path) -> Result<(), Failure> {
    let ours = Some(store.metaid()).filter(|&id| id != 0 && id != ANY_METAID);
    match (mfs_file::metaid(dir).map_err(|e| at(dir, &e))?, ours) {
        (Some(there), Some(ours)) if there != ours => Err(Failure::problem(format!(
            "{} holds chunks of the MooseFS instance with metaid {there:016x}, volume {} of {ours:016x}: \
             export to another directory",
            dir.display(),
            volume.name
        ))),
        (None, Some(ours)) => mfs_file::put_metaid(dir, ours).map_err(|e| at(dir, &e)),
        _ => Ok(()),
    }
}

struct Exporter<'a> {
    store: &'a Rc<Store>,
    dir: &'a Path,
    /// Who is to serve the files.
    owner: (u32, u32),
    /// The newest version of each chunk that lies there.
    there: BTreeMap<ChunkId, ChunkVersion>,
    done: Exported,
}

impl Exporter<'_> {
    fn new<'a>(store: &'a Rc<Store>, dir: &'a Path) -> Result<Exporter<'a>, Failure> {
        let owner = std::fs::metadata(dir).map_err(|e| at(dir, &e))?;
        let mut there = BTreeMap::new();
        for named in mfs_file::scan(dir).map_err(|e| at(dir, &e))? {
            there.entry(named.id).or_insert(named.version);
        }
        Ok(Exporter {
            store,
            dir,
            owner: (owner.uid(), owner.gid()),
            there,
            done: Exported {
                exported: 0,
                skipped: 0,
                damaged: 0,
            },
        })
    }

    async fn export(&mut self, entry: ChunkEntry) -> Result<(), Failure> {
        let ChunkEntry { id, version, .. } = entry;
        if self.there.get(&id).is_some_and(|there| *there >= version) {
            self.done.skipped += 1;
            return Ok(());
        }
        let nth = self.there.len() as u64 + self.done.exported;
        let subdir = self.dir.join(mfs_file::subdir(nth));
        let made = match std::fs::create_dir(&subdir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
            Ok(()) => std::os::unix::fs::chown(&subdir, Some(self.owner.0), Some(self.owner.1)),
        };
        made.map_err(|e| at(&subdir, &e))?;
        let mut writer = Writer::create(&subdir, id, version).map_err(|e| at(&subdir, &e))?;
        let filled = match self.store.open(id, version) {
            Ok(blocks) => self.fill(id, version, blocks, &mut writer).await,
            Err(error) => Err(Unfilled::Chunk(error)),
        };
        match filled {
            Ok(blocks) => {
                let finished = writer.finish(blocks, self.owner);
                finished.map_err(|e| at(&subdir, &e))?;
                self.done.exported += 1;
            }
            Err(Unfilled::Chunk(error)) => {
                writer.discard().map_err(|e| at(&subdir, &e))?;
                tracing::warn!("chunk {id} version {version} is not exported: {error}");
                self.done.damaged += 1;
            }
            Err(Unfilled::File(error)) => {
                let failure = at(&subdir, &error);
                drop(writer.discard());
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Copies the blocks that are not all zeros; returns how many there are.
    async fn fill(
        &self,
        id: ChunkId,
        version: ChunkVersion,
        blocks: u16,
        writer: &mut Writer,
    ) -> Result<u16, Unfilled> {
        let mut reads: VecDeque<(u16, Reply<ReadPiece>)> = VecDeque::new();
        let mut next = 0;
        loop {
            while next < blocks && reads.len() < BLOCKS_IN_FLIGHT {
                let read = self.store.read(id, version, next, 0, BLOCK_BYTES);
                reads.push_back((next, read));
                next += 1;
            }
            let Some((block, read)) = reads.pop_front() else {
                return Ok(blocks);
            };
            let piece = read.await.map_err(Unfilled::Chunk)?;
            if piece.crc == ZERO_BLOCK_CRC && piece.data.is_zero() {
                continue;
            }
            let written = writer.write(block, piece.crc, piece.data.segments());
            written.map_err(Unfilled::File)?;
        }
    }
}

/// Why a file was not filled.
enum Unfilled {
    Chunk(ChunkError),
    File(io::Error),
}

/// See [`crate::ops::Ops::volume_import`].
pub fn import(config: &Config, import: &Import) -> Result<Imported, Failure> {
    let volume = names::volume(config, &import.name)?;
    let dir = import.dir.as_path();
    let files = mfs_file::scan(dir).map_err(|e| at(dir, &e))?;
    unused(dir)?;
    let metaid = match import.metaid {
        Some(given) => Some(given),
        None => mfs_file::metaid(dir).map_err(|e| at(dir, &e))?,
    };
    on_shard(|base| async move {
        let data_path = enter(config, &base.rt)?;
        let legs = Legs::open(&base, config, volume, &data_path).await?;
        let source = Source { dir, files, metaid };
        let imported = read_in(&base, config, volume, &legs, &data_path, source).await;
        legs.close().await;
        imported
    })
}

/// What is imported.
struct Source<'a> {
    dir: &'a Path,
    files: Vec<Named>,
    metaid: Option<u64>,
}

async fn read_in(
    base: &Base,
    config: &Config,
    volume: &Volume,
    legs: &Legs,
    data_path: &Rc<DataPath>,
    source: Source<'_>,
) -> Result<Imported, Failure> {
    let array = open_array(base, config, volume, legs, data_path).await?;
    let (rt, pool) = (base.rt.clone(), base.pool.clone());
    let opened = Store::open(array.clone(), rt, pool.clone(), store_options(volume)).await;
    let done = match opened {
        Err(error) => Err(about(volume)(error)),
        Ok(store) => {
            let imported = match adopt(&store, volume, &source).await {
                Ok(()) => Importer::new(&store, pool).all(source.files).await,
                Err(failure) => Err(failure),
            };
            let stopped = store.stop().await.map_err(about(volume));
            imported.and_then(|done| stopped.map(|()| done))
        }
    };
    array.stop().await;
    done
}

/// The volume must belong to the file system whose chunks come in: an id of another one would replace, or be
/// taken for, what it is not.
async fn adopt(store: &Rc<Store>, volume: &Volume, source: &Source<'_>) -> Result<(), Failure> {
    let name = &volume.name;
    let chunks = store.inventory().len();
    let held = store.metaid();
    let is_anybodys = [0, ANY_METAID].contains(&held);
    match source.metaid {
        Some(metaid) if held == metaid => Ok(()),
        Some(metaid) if is_anybodys && chunks == 0 => {
            store.claim(metaid, 0).await.map_err(about(volume))
        }
        Some(metaid) if is_anybodys => Err(Failure::problem(format!(
            "volume {name} holds {chunks} chunks and no metaid: `antler volume claim {name} --metaid {metaid:016x}` \
             if they belong to the same MooseFS instance"
        ))),
        Some(metaid) => Err(Failure::problem(format!(
            "volume {name} belongs to the MooseFS instance with metaid {held:016x}, the chunks of {} to \
             {metaid:016x}",
            source.dir.display()
        ))),
        None if held == 0 => {
            tracing::warn!(
                "{} does not say whose chunks it holds: volume {name} is left out of registration until \
                 `antler volume claim {name} --metaid HEX|any`",
                source.dir.display()
            );
            Ok(())
        }
        None => Err(Failure::problem(format!(
            "{} has no .metaid: say with --metaid which MooseFS instance its chunks belong to",
            source.dir.display()
        ))),
    }
}

/// A chunk whose data is written, on its way to be durable.
struct Commit {
    named: Named,
    /// The version that it replaces.
    replaced: Option<ChunkVersion>,
    done: Reply<()>,
}

/// What became of a file.
enum Fate {
    Begun(Commit),
    Skipped,
    /// It is no good chunk file, and why.
    Damaged(String),
}

struct Importer<'a> {
    store: &'a Rc<Store>,
    pool: Pool,
    commits: VecDeque<Commit>,
    done: Imported,
}

impl Importer<'_> {
    fn new(store: &Rc<Store>, pool: Pool) -> Importer<'_> {
        Importer {
            store,
            pool,
            commits: VecDeque::new(),
            done: Imported {
                imported: 0,
                skipped: 0,
                damaged: 0,
            },
        }
    }

    /// Files of one id come newest first.
    async fn all(mut self, files: Vec<Named>) -> Result<Imported, Failure> {
        let mut last: Option<ChunkId> = None;
        for named in files {
            if last == Some(named.id) {
                self.done.skipped += 1;
                continue;
            }
            match self.begin(&named).await? {
                Fate::Begun(commit) => {
                    last = Some(named.id);
                    self.commits.push_back(commit);
                }
                Fate::Skipped => {
                    last = Some(named.id);
                    self.done.skipped += 1;
                }
                Fate::Damaged(why) => {
                    tracing::warn!("{} is not imported: {why}", named.path.display());
                    self.done.damaged += 1;
                }
            }
            while self.commits.len() >= COMMITS_IN_FLIGHT {
                self.settle_oldest().await?;
            }
        }
        while !self.commits.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(self.done)
    }

    async fn settle_oldest(&mut self) -> Result<(), Failure> {
        let Some(commit) = self.commits.pop_front() else {
            return Ok(());
        };
        match commit.done.await {
            Ok(()) => self.done.imported += 1,
            Err(error) => {
                self.bring_back(&commit.named, commit.replaced).await;
                return Err(stopped_at(&commit.named, &error));
            }
        }
        Ok(())
    }

    async fn begin(&self, named: &Named) -> Result<Fate, Failure> {
        let held = self.store.held(named.id);
        if held.is_some_and(|held| held >= named.version) {
            return Ok(Fate::Skipped);
        }
        let reader = match Reader::open(named).map_err(|e| at(&named.path, &e))? {
            Ok(reader) => reader,
            Err(why) => return Ok(Fate::Damaged(why)),
        };
        if let Some(held) = held {
            // What is held is given up for good data only.
            if let Some(why) = faults(&reader).map_err(|e| at(&named.path, &e))? {
                return Ok(Fate::Damaged(why));
            }
            let deleted = self.store.delete(named.id, held).await;
            deleted.map_err(|e| stopped_at(named, &e))?;
        }
        match self.copy(named, &reader).await {
            Ok(done) => Ok(Fate::Begun(Commit {
                named: named.clone(),
                replaced: held,
                done,
            })),
            Err(Uncopied::Damaged(why)) => {
                self.bring_back(named, held).await;
                Ok(Fate::Damaged(why))
            }
            Err(Uncopied::Failed(failure)) => {
                self.bring_back(named, held).await;
                Err(failure)
            }
        }
    }

    /// Takes the older version out of the quarantine again.
    async fn bring_back(&self, named: &Named, replaced: Option<ChunkVersion>) {
        let Some(version) = replaced else { return };
        if let Err(error) = self.store.restore(named.id, version).await {
            tracing::error!(
                "chunk {} version {version} stays in the quarantine: {error}; `antler quarantine restore {}` \
                 brings it back",
                named.id,
                named.id
            );
        }
    }

    /// Writes a chunk's blocks into a replica, and begins to make that the chunk.
    async fn copy(&self, named: &Named, reader: &Reader) -> Result<Reply<()>, Uncopied> {
        let failed = |error: ChunkError| Uncopied::Failed(stopped_at(named, &error));
        let token = self.store.replica_begin(named.id, named.version).await;
        let token = token.map_err(failed)?;
        let mut writes: VecDeque<Reply<()>> = VecDeque::new();
        let mut outcome = Ok(());
        for block in 0..reader.blocks() {
            let bytes = match read_block(reader, block) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(why) => {
                    outcome = Err(why);
                    break;
                }
            };
            let data = self.pool.copy_now(&bytes);
            let write = self
                .store
                .replica_write(token, block, data, reader.crc(block));
            writes.push_back(write);
            if writes.len() >= BLOCKS_IN_FLIGHT {
                outcome = settle(writes.pop_front(), named).await;
            }
            if outcome.is_err() {
                break;
            }
        }
        while let Some(write) = writes.pop_front() {
            outcome = outcome.and(settle(Some(write), named).await);
        }
        match outcome {
            Ok(()) => Ok(self.store.replica_commit(token, reader.blocks())),
            Err(why) => {
                self.store.replica_abort(token);
                Err(why)
            }
        }
    }
}

/// Why a chunk was not copied.
enum Uncopied {
    Damaged(String),
    Failed(Failure),
}

fn stopped_at(named: &Named, error: &ChunkError) -> Failure {
    Failure::problem(format!(
        "import stopped at {}: {error}; what came before it is there, and is skipped next time",
        named.path.display()
    ))
}

async fn settle(write: Option<Reply<()>>, named: &Named) -> Result<(), Uncopied> {
    match write {
        None => Ok(()),
        Some(write) => write.await.map_err(|error| match error {
            ChunkError::Crc => Uncopied::Damaged("a block does not match its checksum".to_owned()),
            other => Uncopied::Failed(stopped_at(named, &other)),
        }),
    }
}

/// A block that needs writing; `None`: it is all zeros, as it should be.
fn read_block(reader: &Reader, block: u16) -> Result<Option<Vec<u8>>, Uncopied> {
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    let read = reader.read(block, &mut bytes);
    read.map_err(|e| Uncopied::Damaged(format!("block {block} cannot be read: {e}")))?;
    let is_hole = reader.crc(block) == ZERO_BLOCK_CRC && bytes.iter().all(|&b| b == 0);
    Ok((!is_hole).then_some(bytes))
}

/// What is wrong with the data of a file, if anything is.
fn faults(reader: &Reader) -> io::Result<Option<String>> {
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    for block in 0..reader.blocks() {
        reader.read(block, &mut bytes)?;
        if crc32(&bytes) != reader.crc(block) {
            return Ok(Some(format!("block {block} does not match its checksum")));
        }
    }
    Ok(None)
}
