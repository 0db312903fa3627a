//! Opening a file or a block device for one owner, and learning its shape.
//!
//! A block device is opened with `O_EXCL`, a file is locked with flock(2). Both claims belong to
//! the open file, which every request in the kernel holds too; so whoever gets the claim knows that
//! no request of an earlier owner on this machine is still under way. That is why [`crate::Op::Fence`]
//! need not reach back beyond this process.

use crate::{Geometry, Sector, PAGE_BYTES, SECTOR_BYTES};
use nix::sys::stat::{major, minor};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Largest request to the kernel, in sectors (1 MiB).
const TRANSFER_SECTORS_MAX: u32 = 2048;

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Makes the file, sparse, with this many bytes if it does not exist.
    pub create_bytes: Option<u64>,
    /// To read only, beside whoever has it; otherwise it is claimed.
    pub read_only: bool,
    /// Which way requests take.
    pub via: Via,
}

/// How requests reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Via {
    /// io_uring, or threads where it is denied.
    #[default]
    Auto,
    /// Threads that block in pread and pwrite.
    Threads,
}

impl LocalOptions {
    /// Claims what exists at `path`, for reading and writing.
    pub fn new(path: impl Into<PathBuf>) -> LocalOptions {
        LocalOptions {
            path: path.into(),
            create_bytes: None,
            read_only: false,
            via: Via::Auto,
        }
    }
}

/// Why a local device could not be opened. Each text says what to do about it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("{}: no such file or device; `volume create` makes a file when `size` is given", .0.display())]
    Missing(PathBuf),
    /// Somebody has it.
    #[error("{}: in use{}", path.display(), holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    InUse {
        /// What was to be opened.
        path: PathBuf,
        /// `pid 123`, `md0` or `a mount at /srv`, as far as it can be found out.
        holder: Option<String>,
    },
    /// It is neither a regular file nor a block device.
    #[error("{}: neither a regular file nor a block device", .0.display())]
    NotADisk(PathBuf),
    /// It has not even one page.
    #[error("{}: only {bytes} bytes long", path.display())]
    TooSmall {
        /// What was to be opened.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The system refused.
    #[error("{}: {what}: {source}", path.display())]
    System {
        /// What was to be opened.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) is_block: bool,
    /// Alignment in bytes that requests and memory need; 1 if the page cache is between.
    pub(super) align: usize,
    pub(super) geometry: Geometry,
}

pub(super) fn open(options: &LocalOptions) -> Result<Opened, OpenError> {
    let path = options.path.as_path();
    let system = |what| {
        move |source| OpenError::System {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let about = match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.map_err(system("stat"))?),
    };
    let kind = about.as_ref().map(Metadata::file_type);
    let is_block = kind.is_some_and(|k| k.is_block_device());
    match (kind, options.create_bytes) {
        (None, None) => return Err(OpenError::Missing(path.to_owned())),
        (None, Some(_)) => {}
        (Some(kind), _) if kind.is_file() || is_block => {}
        (Some(_), _) => return Err(OpenError::NotADisk(path.to_owned())),
    }
    let (file, is_direct) = open_direct(options, is_block)?;
    if !options.read_only && !is_block {
        lock(&file, path)?;
    }
    let about = file.metadata().map_err(system("fstat"))?;
    if let (false, Some(bytes)) = (is_block, options.create_bytes) {
        // Also finishes what a crash left between creation and this line.
        if about.len() == 0 {
            file.set_len(bytes).map_err(system("set the size"))?;
        }
    }
    let align = if is_direct {
        alignment(&file).map_err(system("read"))?
    } else {
        1
    };
    let geometry = if is_block {
        block_geometry(&file, &about).map_err(system("ask for the geometry"))?
    } else {
        let bytes = file.metadata().map_err(system("fstat"))?.len();
        file_geometry(bytes, align)
    };
    if geometry.bytes() < PAGE_BYTES as u64 {
        return Err(OpenError::TooSmall {
            path: path.to_owned(),
            bytes: geometry.bytes(),
        });
    }
    Ok(Opened {
        file,
        is_block,
        align: align.max(if is_direct && is_block {
            geometry.logical_block_bytes as usize
        } else {
            1
        }),
        geometry,
    })
}

/// Opens around the page cache, or, where that is refused (tmpfs), through it.
fn open_direct(options: &LocalOptions, is_block: bool) -> Result<(File, bool), OpenError> {
    let path = options.path.as_path();
    let open = |flags: i32| {
        let claim = if is_block && !options.read_only {
            libc::O_EXCL
        } else {
            0
        };
        OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .create(!options.read_only && options.create_bytes.is_some() && !is_block)
            .mode(0o600)
            .custom_flags(flags | claim)
            .open(path)
    };
    let opened = match open(libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                path = %path.display(),
                "O_DIRECT is refused here; requests go through the page cache"
            );
            open(0).map(|file| (file, false))
        }
        other => other.map(|file| (file, true)),
    };
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::InUse {
            path: path.to_owned(),
            holder: None,
        },
        _ => OpenError::System {
            path: path.to_owned(),
            what: "open",
            source,
        },
    })
}

fn lock(file: &File, path: &Path) -> Result<(), OpenError> {
    // SAFETY: no memory is involved. Not unlocked explicitly: the lock ends with the open file,
    // when the last request that uses it is done.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    if source.kind() != io::ErrorKind::WouldBlock {
        return Err(OpenError::System {
            path: path.to_owned(),
            what: "lock",
            source,
        });
    }
    Err(OpenError::InUse {
        path: path.to_owned(),
        holder: None,
    })
}

/// Who has a claimed file or device, as far as it can be found out. May block for long: procfs
/// makes a reader wait for a process that is stuck in execve(2).
pub(super) fn holder(path: &Path) -> Option<String> {
    let about = std::fs::metadata(path).ok()?;
    if about.file_type().is_block_device() {
        block_holder(about.rdev())
    } else {
        lock_holder(&about)
    }
}

/// Who holds the flock of a file: a line of `/proc/locks` reads
/// `1: FLOCK  ADVISORY  WRITE 4242 fe:01:131 0 EOF`.
fn lock_holder(about: &Metadata) -> Option<String> {
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        major(about.dev()),
        minor(about.dev()),
        about.ino()
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&wanted.as_str());
        is_it.then(|| fields.get(4).map(|pid| (*pid).to_owned()))?
    })?;
    Some(format!("pid {pid}"))
}

/// Who holds a block device: a device stacked on it, a mount, or a process that has it open.
fn block_holder(device: u64) -> Option<String> {
    let number = format!("{}:{}", major(device), minor(device));
    let stacked = std::fs::read_dir(format!("/sys/dev/block/{number}/holders"));
    if let Some(holder) = stacked.ok().and_then(|mut list| list.next()?.ok()) {
        return Some(holder.file_name().to_string_lossy().into_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(2) == Some(&number.as_str())).then(|| fields.get(4).copied())?
    });
    if let Some(place) = mount {
        return Some(format!("a mount at {place}"));
    }
    // Ourselves first: that needs no look at processes that may be stuck.
    let own = std::process::id();
    if has_open(own, device) {
        return Some(format!("pid {own}"));
    }
    // `self` and much else in there is no process.
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = all.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|&pid| has_open(pid, device))?;
    Some(format!("pid {pid}"))
}

/// Whether a process has a block device open. Only what lies in /dev is looked at: a file
/// elsewhere may be on a mount that hangs.
fn has_open(pid: u32, device: u64) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut links = open.flatten().filter_map(|fd| {
        let link = std::fs::read_link(fd.path()).ok()?;
        link.starts_with("/dev").then_some(link)
    });
    links.any(|link| {
        std::fs::metadata(link).is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == device)
    })
}

/// What O_DIRECT wants: the smallest read at 0 that is not refused.
fn alignment(file: &File) -> io::Result<usize> {
    let pool = crate::Pool::new(PAGE_BYTES);
    let mut page = pool.alloc_now(PAGE_BYTES);
    for bytes in [SECTOR_BYTES as usize, PAGE_BYTES] {
        // SAFETY: the page is at least `bytes` long and exclusively owned.
        let got = unsafe { libc::pread(file.as_raw_fd(), page.as_mut_ptr().cast(), bytes, 0) };
        let error = io::Error::last_os_error();
        if got >= 0 {
            return Ok(bytes);
        }
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

pub(super) fn file_geometry(bytes: u64, align: usize) -> Geometry {
    let logical = align.max(SECTOR_BYTES as usize) as u32;
    Geometry {
        sectors: bytes / u64::from(logical) * (u64::from(logical) / SECTOR_BYTES),
        logical_block_bytes: logical,
        physical_block_bytes: PAGE_BYTES as u32,
        lowest_aligned: Sector(0),
        max_transfer_sectors: TRANSFER_SECTORS_MAX,
        write_cache: true,
        fua: true,
        discard: true,
        discard_zeroes: true,
    }
}

mod ioctl {
    nix::ioctl_read!(size_bytes, 0x12, 114, usize); // BLKGETSIZE64: a u64 in a size_t's number
    nix::ioctl_read_bad!(
        logical_block,
        nix::request_code_none!(0x12, 104),
        libc::c_int
    ); // BLKSSZGET
    nix::ioctl_read_bad!(alignment, nix::request_code_none!(0x12, 122), libc::c_int); // BLKALIGNOFF
    nix::ioctl_read_bad!(
        physical_block,
        nix::request_code_none!(0x12, 123),
        libc::c_uint
    ); // BLKPBSZGET
}

/// Size of a block device in bytes.
fn block_bytes(file: &File) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    // SAFETY: the kernel writes a u64 (the request number says size_t, for historical reasons).
    unsafe { ioctl::size_bytes(file.as_raw_fd(), (&raw mut bytes).cast()) }?;
    Ok(bytes)
}

pub(super) fn block_geometry(file: &File, about: &Metadata) -> io::Result<Geometry> {
    let fd = file.as_raw_fd();
    let (mut logical, mut physical, mut offset) = (0, 0, 0);
    // SAFETY: each writes the one integer given.
    unsafe {
        ioctl::logical_block(fd, &mut logical)?;
        ioctl::physical_block(fd, &mut physical)?;
        ioctl::alignment(fd, &mut offset)?;
    }
    let logical = u32::try_from(logical).unwrap_or(SECTOR_BYTES as u32);
    let bytes = block_bytes(file)?;
    let queue = queue_folder(about.rdev());
    let setting = |name| std::fs::read_to_string(queue.join(name)).unwrap_or_default();
    Ok(Geometry {
        sectors: bytes / SECTOR_BYTES,
        logical_block_bytes: logical,
        physical_block_bytes: physical.max(logical),
        lowest_aligned: Sector(u64::try_from(offset).unwrap_or(0) / SECTOR_BYTES),
        max_transfer_sectors: TRANSFER_SECTORS_MAX,
        // What cannot be read is taken as volatile: a flush too many is harmless.
        write_cache: setting("write_cache").trim() != "write through",
        fua: true,
        discard: setting("discard_max_bytes")
            .trim()
            .parse()
            .is_ok_and(|bytes: u64| bytes > 0),
        discard_zeroes: false,
    })
}

/// Where sysfs tells of a device's queue; a partition has that of its disk.
fn queue_folder(device: u64) -> PathBuf {
    let here = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        major(device),
        minor(device)
    ));
    if here.join("partition").exists() {
        here.join("../queue")
    } else {
        here.join("queue")
    }
}

/// The size now, in bytes.
pub(super) fn current_bytes(file: &File, is_block: bool) -> io::Result<u64> {
    if is_block {
        block_bytes(file)
    } else {
        Ok(file.metadata()?.len())
    }
}
