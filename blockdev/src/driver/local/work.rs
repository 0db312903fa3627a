//! One request to the kernel, and what its errors mean.
//!
//! A [`Piece`] owns its memory until whoever runs it hands it back, so that neither a dropped
//! completion nor a dropped device can free pages that the kernel may still touch.

use crate::buf::BufMut;
use crate::{Applied, IoError, IoVec, Kind, Refusal, Sector, SECTOR_BYTES};
use smallvec::SmallVec;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How long a caller waits after the kernel was short of memory or queue space.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(10);

/// Which piece of which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) operation: u64,
    pub(super) piece: u32,
}

/// One request to the kernel: a contiguous range within the largest transfer.
pub(super) struct Piece {
    /// First byte on the device.
    pub(super) offset: u64,
    /// Bytes already transferred by an earlier, short answer.
    pub(super) done: usize,
    pub(super) work: Work,
}

pub(super) enum Work {
    Read(Vec<BufMut>),
    Write {
        data: IoVec,
        fua: bool,
    },
    /// fdatasync(2).
    Sync,
    /// fallocate(2): makes the range a hole, which reads as zeros.
    PunchHole(u64),
    /// fallocate(2): makes the range read as zeros.
    ZeroRange(u64),
    /// The ioctl `BLKDISCARD`.
    BlockDiscard(u64),
}

/// What the kernel wants of an I/O vector.
pub(super) type Vectors = SmallVec<[libc::iovec; 4]>;

impl Piece {
    /// Bytes still to be transferred.
    pub(super) fn left(&self) -> usize {
        let all = match &self.work {
            Work::Read(bufs) => bufs.iter().map(|b| b.len()).sum(),
            Work::Write { data, .. } => data.len(),
            _ => 0,
        };
        all - self.done
    }

    /// Position of the first byte still to be transferred.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    /// The memory still to be filled or sent. The pointers are good while the piece is owned and
    /// not frozen: runs never move.
    pub(super) fn vectors(&mut self) -> Vectors {
        let mut skip = self.done;
        let mut out = Vectors::new();
        let mut add = |base: *mut u8, len: usize| {
            let here = skip.min(len);
            skip -= here;
            if here < len {
                out.push(libc::iovec {
                    iov_base: base.wrapping_add(here).cast(),
                    iov_len: len - here,
                });
            }
        };
        match &mut self.work {
            Work::Read(bufs) => {
                for buf in bufs {
                    add(buf.as_mut_ptr(), buf.len());
                }
            }
            Work::Write { data, .. } => {
                for segment in data.segments() {
                    add(segment.as_ptr().cast_mut(), segment.len());
                }
            }
            _ => {}
        }
        out
    }

    /// Takes note of a transfer of `bytes`; `Ok(true)`: that was all of it.
    pub(super) fn advance(&mut self, bytes: usize) -> io::Result<bool> {
        let left = self.left();
        if bytes == 0 && left > 0 {
            // The end of the file or device lies before the range: it has shrunk.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.done += bytes.min(left);
        Ok(self.left() == 0)
    }

    /// Does it here and now, blocking.
    pub(super) fn perform(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let got = match self.step(file) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if self.advance(got)? {
                return Ok(());
            }
        }
    }

    fn step(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let fd = file.as_raw_fd();
        let position = self.position() as i64;
        let vectors = self.vectors();
        let count = vectors.len() as i32;
        let got = match &self.work {
            // SAFETY: the vectors point into buffers that this piece owns exclusively.
            Work::Read(_) => unsafe { libc::preadv(fd, vectors.as_ptr(), count, position) },
            Work::Write { fua, .. } => {
                // SAFETY: the vectors point into frozen pages that this piece keeps alive.
                unsafe { libc::pwritev2(fd, vectors.as_ptr(), count, position, write_flags(*fua)) }
            }
            // SAFETY: no memory is involved.
            Work::Sync => unsafe { libc::fdatasync(fd) as isize },
            Work::PunchHole(bytes) | Work::ZeroRange(bytes) => {
                // SAFETY: no memory is involved.
                unsafe { libc::fallocate(fd, self.mode(), position, *bytes as i64) as isize }
            }
            Work::BlockDiscard(bytes) => {
                let range = [self.offset, *bytes];
                // SAFETY: `BLKDISCARD` reads two u64: offset and length.
                unsafe { block_discard(fd, &range) }.map_err(io::Error::from)? as isize
            }
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// The mode for fallocate(2).
    pub(super) fn mode(&self) -> i32 {
        let what = match self.work {
            Work::ZeroRange(_) => libc::FALLOC_FL_ZERO_RANGE,
            _ => libc::FALLOC_FL_PUNCH_HOLE,
        };
        what | libc::FALLOC_FL_KEEP_SIZE
    }

    /// What a failure means, and whether bytes may be on the medium.
    pub(super) fn error(&self, error: &io::Error) -> IoError {
        let first_bad = Sector(self.position() / SECTOR_BYTES);
        let kind = kind_of(error, first_bad);
        let changes = !matches!(self.work, Work::Read(_) | Work::Sync);
        let harmless = self.done == 0
            && matches!(
                kind,
                Kind::NoSpace | Kind::Again { .. } | Kind::Refused(_) | Kind::Changed
            );
        let applied = if changes && !harmless {
            Applied::Unknown
        } else {
            Applied::No
        };
        IoError { kind, applied }
    }
}

/// Flags of pwritev2(2) for a write.
pub(super) fn write_flags(fua: bool) -> i32 {
    if fua {
        libc::RWF_DSYNC
    } else {
        0
    }
}

nix::ioctl_write_ptr_bad!(
    block_discard_raw,
    nix::request_code_none!(0x12, 119),
    [u64; 2]
);

/// # Safety
/// `range` is {offset, length} in bytes of a part of the device that may lose its content.
unsafe fn block_discard(fd: i32, range: &[u64; 2]) -> nix::Result<i32> {
    // SAFETY: the kernel reads exactly the two words.
    unsafe { block_discard_raw(fd, range) }
}

/// The block layer's errors, `blk_errors` in the kernel's `block/blk-core.c`.
fn kind_of(error: &io::Error, first_bad: Sector) -> Kind {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Kind::Changed;
    }
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Kind::NoSpace,
        libc::EAGAIN | libc::EBUSY | libc::ENOMEM | libc::ENOBUFS => Kind::Again {
            after: BUSY_RETRY_AFTER,
        },
        libc::ENODEV | libc::ENXIO | libc::ENOLINK | libc::ESHUTDOWN => Kind::Closed,
        libc::EROFS | libc::EPERM | libc::EBADF => Kind::Refused(Refusal::ReadOnly),
        libc::EOPNOTSUPP | libc::ENOSYS => Kind::Refused(Refusal::NotSupported),
        libc::EBADE => Kind::Refused(Refusal::Reserved),
        libc::EINVAL => Kind::Refused(Refusal::Range),
        libc::ETIMEDOUT => Kind::Late,
        // EIO, and ENODATA (medium), EILSEQ (protection information), EREMOTEIO (target).
        _ => Kind::Medium { first_bad },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    fn write(bytes: usize) -> Piece {
        Piece {
            offset: 8192,
            done: 0,
            work: Work::Write {
                data: Pool::new(1 << 20).copy_now(&vec![1; bytes]),
                fua: false,
            },
        }
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_ended() {
        let mut piece = write(200_000);
        assert_eq!(piece.vectors().len(), 2);
        assert!(!piece.advance(131_072 + 100).expect("some bytes"));
        let rest = piece.vectors();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].iov_len, 200_000 - 131_172);
        assert_eq!(piece.position(), 8192 + 131_172);
        assert!(piece.advance(200_000 - 131_172).expect("the rest"));
    }

    #[test]
    fn errors_say_what_to_do_and_what_may_have_happened() {
        let mut piece = write(8192);
        let error = |piece: &Piece, code| piece.error(&io::Error::from_raw_os_error(code));
        assert_eq!(
            error(&piece, libc::ENOSPC),
            IoError::not_applied(Kind::NoSpace)
        );
        piece.advance(4096).expect("half");
        assert_eq!(error(&piece, libc::ENOSPC), IoError::unknown(Kind::NoSpace));
        let first_bad = Sector(24);
        assert_eq!(
            error(&piece, libc::EIO),
            IoError::unknown(Kind::Medium { first_bad })
        );
        let read = Piece {
            offset: 4096,
            done: 0,
            work: Work::Read(Vec::new()),
        };
        let first_bad = Sector(8);
        assert_eq!(
            error(&read, libc::ENODATA),
            IoError::not_applied(Kind::Medium { first_bad })
        );
    }

    #[test]
    fn a_device_that_ends_early_has_changed() {
        let mut piece = write(4096);
        let error = piece.advance(0).expect_err("nothing taken");
        assert_eq!(piece.error(&error).kind, Kind::Changed);
    }
}
