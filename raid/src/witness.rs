//! The witness: where the order of legs is decided.
//!
//! A leg that is out does not know it. So before the first acknowledgement that depends on a
//! change, {array, events, out mask, flushed | busy} is made durable outside the legs, in the
//! node's `data_path`. A leg found alone at start can then be told from a stale one; `flushed`
//! says that nothing acknowledged was missing on any leg in sync when the array fell idle.
//!
//! [`FileWitness`] keeps one file an array, replaced by rename and fsynced with its directory, on
//! a thread of its own, so that a slow `data_path` never stalls the data path.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `ANTLWIT1` |
//! | 8 | 16 | array UUID |
//! | 24 | 8 | events |
//! | 32 | 1 | mask of slots that are out |
//! | 33 | 1 | 1 flushed, 0 busy |
//! | 36 | 8 each | by slot: first bytes of the UUID of its device; 0 = not known |
//! | 60 | 4 | CRC-32 of all before |

use crate::bytes::Fields;
use crate::uuid::Uuid;
use blockdev::LocalFuture;
use std::fs::{self, File};
use std::future::poll_fn;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"ANTLWIT1";
const BYTES: usize = 64;

/// What the witness knows of one array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessRecord {
    /// Identity of the array.
    pub array: Uuid,
    /// Event count of the state described.
    pub events: u64,
    /// Slots that are out, as a mask.
    pub out: u8,
    /// Every leg in sync was flushed and nothing was written since.
    pub flushed: bool,
    /// Whose slots these are, by [`Uuid::short`]; 0: not known. A leg that was replaced is no
    /// slot's any more, whatever it says of itself.
    pub devices: [u64; 2],
}

/// Why the witness failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("witness: {0}")]
pub struct WitnessError(pub String);

/// Remembers outside the legs.
pub trait Witness {
    /// `Ok`: the record is durable and replaces the one before. Calls take effect in order.
    fn record(&self, record: WitnessRecord) -> LocalFuture<Result<(), WitnessError>>;

    /// The last record of `array`; `None` if there is none or it is damaged.
    fn read(&self, array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>>;
}

impl WitnessRecord {
    /// Its bytes in the file.
    pub fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..24].copy_from_slice(&self.array.0);
        out[24..32].copy_from_slice(&self.events.to_le_bytes());
        out[32] = self.out;
        out[33] = u8::from(self.flushed);
        out[36..44].copy_from_slice(&self.devices[0].to_le_bytes());
        out[44..52].copy_from_slice(&self.devices[1].to_le_bytes());
        let crc = crc32fast::hash(&out[..BYTES - 4]);
        out[BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads them back; `None` if they are damaged.
    pub fn parse(bytes: &[u8]) -> Option<WitnessRecord> {
        let fields = Fields(bytes);
        let body = bytes.get(..BYTES - 4)?;
        let whole = fields.array::<8>(0) == *MAGIC && fields.u32(60) == crc32fast::hash(body);
        whole.then(|| WitnessRecord {
            array: Uuid(fields.array(8)),
            events: fields.u64(24),
            out: fields.u8(32),
            flushed: fields.u8(33) == 1,
            devices: [fields.u64(36), fields.u64(44)],
        })
    }
}

/// Forgets everything: for tools that change no leg's state, and arrays of one leg.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn record(&self, _record: WitnessRecord) -> LocalFuture<Result<(), WitnessError>> {
        Box::pin(async { Ok(()) })
    }

    fn read(&self, _array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>> {
        Box::pin(async { Ok(None) })
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Witness in files `witness-UUID` of a directory.
pub struct FileWitness {
    directory: PathBuf,
    jobs: mpsc::Sender<Job>,
}

struct Answer<T> {
    slot: Mutex<(Option<T>, Option<Waker>)>,
}

impl FileWitness {
    /// Keeps its files in `directory`, which exists, and starts its thread.
    pub fn new(directory: &Path) -> io::Result<FileWitness> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("witness".into())
            .spawn(move || inbox.into_iter().for_each(|job| job()))?;
        Ok(FileWitness {
            directory: directory.to_owned(),
            jobs,
        })
    }

    fn path(&self, array: Uuid) -> PathBuf {
        let name = array.to_string().replace(':', "");
        self.directory.join(format!("witness-{name}"))
    }

    /// Runs `work` on the thread; its place in the order is fixed before this returns.
    fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> LocalFuture<Result<T, WitnessError>> {
        let answer = Arc::new(Answer {
            slot: Mutex::new((None, None)),
        });
        let filled = answer.clone();
        let job = Box::new(move || {
            let result = work().map_err(|error| WitnessError(error.to_string()));
            let waker = {
                let mut slot = filled.slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.0 = Some(result);
                slot.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let sent = self.jobs.send(job);
        Box::pin(async move {
            sent.map_err(|_| WitnessError("its thread is gone".into()))?;
            poll_fn(move |cx| {
                let mut slot = answer.slot.lock().unwrap_or_else(PoisonError::into_inner);
                match slot.0.take() {
                    Some(result) => Poll::Ready(result),
                    None => {
                        slot.1 = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
            .await
        })
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

impl Witness for FileWitness {
    fn record(&self, record: WitnessRecord) -> LocalFuture<Result<(), WitnessError>> {
        let path = self.path(record.array);
        self.on_thread(move || replace(&path, &record.encode()))
    }

    fn read(&self, array: Uuid) -> LocalFuture<Result<Option<WitnessRecord>, WitnessError>> {
        let path = self.path(array);
        self.on_thread(move || match fs::read(&path) {
            Ok(bytes) => Ok(WitnessRecord::parse(&bytes).filter(|r| r.array == array)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::task::{Context, Wake};

    struct Parker(Mutex<bool>, Condvar);

    impl Wake for Parker {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }

    fn wait<T>(mut future: LocalFuture<T>) -> T {
        let parker = Arc::new(Parker(Mutex::new(false), Condvar::new()));
        let waker = Waker::from(parker.clone());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            let mut woken = parker.0.lock().unwrap();
            while !*woken {
                woken = parker.1.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    #[test]
    fn the_last_record_is_read_back_and_a_damaged_one_is_none() {
        let directory = std::env::temp_dir().join(format!("witness-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let witness = FileWitness::new(&directory).unwrap();
        let array = Uuid([7; 16]);
        assert_eq!(wait(witness.read(array)), Ok(None));
        let record = |events| WitnessRecord {
            array,
            events,
            out: 1,
            flushed: true,
            devices: [3, 4],
        };
        wait(witness.record(record(4))).unwrap();
        wait(witness.record(record(6))).unwrap();
        assert_eq!(wait(witness.read(array)), Ok(Some(record(6))));
        fs::write(witness.path(array), b"ANTLWIT1 and nothing").unwrap();
        assert_eq!(wait(witness.read(array)), Ok(None));
        fs::remove_dir_all(&directory).unwrap();
    }
}
