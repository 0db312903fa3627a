//! What unit is at the other end: the questions asked after every login.
//!
//! TEST UNIT READY until the unit attentions that follow a login are gone, INQUIRY, the VPD pages
//! that the unit lists, READ CAPACITY(16) and the caching mode page. Whatever is not a disk with
//! blocks of 512 or 4096 bytes is refused, with the disks that there are.
//!
//! Only the unit's own ILLEGAL REQUEST, or an error that says nothing, means that it has not what
//! was asked for. A unit that is busy or becoming ready is asked again until the deadline, so that
//! a passing state is never taken for another identity.

use crate::client::Client;
use crate::scsi::sense::key;
use crate::scsi::unit::{self, Caching};
use crate::scsi::{cdb, decode_lun, status};
use crate::session::{Answer, Outcome};
use blockdev::path::{Sense, UnitIdentity};
use blockdev::{Geometry, Instant, PathCause, Sector, SECTOR_BYTES};
use std::time::Duration;
use thiserror::Error;

/// Unit attentions of one login are few; a unit that never stops is not usable.
const ATTENTIONS_MAX: u32 = 16;
/// Pause before a unit that is busy or becoming ready is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// LOGICAL UNIT NOT READY: becoming ready, or in an ALUA state or transition that refuses media access.
const ASC_NOT_READY: u8 = 0x04;
/// Largest command we send, in sectors: 1 MiB, also when the unit admits more or does not say.
const TRANSFER_SECTORS_MAX: u32 = 2048;
/// Allocation lengths, in bytes.
const INQUIRY_LEN: u32 = 96;
const VPD_LEN: u32 = 255;
const CAPACITY_LEN: u32 = 32;
const MODE_LEN: u32 = 192;
const LUNS_LEN: u32 = 4096;
/// Mode page 08: caching.
const CACHING: u8 = 0x08;

/// Why a unit cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentifyError {
    /// The session ended.
    #[error("{0}")]
    Lost(PathCause),
    /// The target wants a logout (async event 1): nothing more is sent to it.
    #[error("the target asks for a logout")]
    Leaving,
    /// The unit could not tell in time; it may later.
    #[error("{0}")]
    NotReady(String),
    /// There is no usable disk here; the text says what there is.
    #[error("{0}")]
    Unusable(String),
}

/// Identifies the unit `lun` of a session. `portal_group` is the tag told at login. A unit that is
/// busy or becoming ready is asked again until `deadline`; an answer that never comes is the
/// caller's to bound.
///
/// # Errors
/// [`IdentifyError::Unusable`] if it is no disk we can use, [`IdentifyError::NotReady`] if it could
/// not tell.
pub async fn identify(
    client: &Client,
    lun: [u8; 8],
    portal_group: u16,
    deadline: Instant,
) -> Result<UnitIdentity, IdentifyError> {
    let unit = Unit {
        client,
        lun,
        deadline,
    };
    let data = unit
        .ask(cdb::inquiry(None, INQUIRY_LEN as u16), INQUIRY_LEN)
        .await?;
    let inquiry = data.as_deref().and_then(unit::inquiry);
    let inquiry = inquiry.ok_or_else(|| unusable("unit answers no INQUIRY"))?;
    if inquiry.qualifier != 0 || inquiry.device_type != 0 {
        return Err(unit.not_a_disk(&inquiry).await);
    }
    unit.settle().await?;
    let pages = unit::supported_pages(&unit.page(0x00).await?.unwrap_or_default());
    let mut pages_read = [None, None, None, None];
    for (slot, page) in pages_read.iter_mut().zip([0x80u8, 0x83, 0xb0, 0xb2]) {
        if pages.contains(&page) {
            *slot = unit.page(page).await?;
        }
    }
    let [serial, designators, limits, provisioning] = pages_read;
    let designators = designators
        .map(|data| unit::designators(&data))
        .unwrap_or_default();
    let limits = limits
        .and_then(|data| unit::block_limits(&data))
        .unwrap_or_default();
    let provisioning = provisioning.and_then(|data| unit::provisioning(&data));
    let capacity = unit.capacity().await?;
    let caching = unit.caching().await?;
    let geometry = geometry(
        &capacity,
        &limits,
        provisioning.unwrap_or_default(),
        &caching,
    )?;
    Ok(UnitIdentity {
        wwid: designators.wwid,
        vendor: inquiry.vendor,
        product: inquiry.product,
        revision: inquiry.revision,
        serial: serial
            .and_then(|data| unit::serial_number(&data))
            .unwrap_or_default(),
        geometry,
        tpgs: inquiry.tpgs,
        target_port_group: designators.target_port_group,
        portal_group,
        read_only: caching.write_protected,
    })
}

struct Unit<'a> {
    client: &'a Client,
    lun: [u8; 8],
    deadline: Instant,
}

fn unusable(text: impl Into<String>) -> IdentifyError {
    IdentifyError::Unusable(text.into())
}

impl Unit<'_> {
    /// Sends a command until it is answered with something other than a unit attention, and while
    /// `passes` says that the answer is a passing one.
    async fn answer(
        &self,
        cdb: cdb::Cdb,
        len: u32,
        passes: fn(&Answer) -> bool,
    ) -> Result<Answer, IdentifyError> {
        let mut attentions = 0;
        loop {
            let answer = match self.client.read_command(self.lun, cdb, len).await {
                Outcome::Scsi(answer) => answer,
                Outcome::Lost { cause, .. } => return Err(IdentifyError::Lost(cause)),
                Outcome::Withdrawn => return Err(IdentifyError::Leaving),
                Outcome::Bad(what) => return Err(unusable(format!("bad answer: {what}"))),
                other => return Err(unusable(format!("{other:?} where a SCSI status was due"))),
            };
            let sense = answer.sense;
            if sense.is_some_and(|sense| sense.key == key::UNIT_ATTENTION || sense.deferred) {
                attentions += 1;
                if attentions == ATTENTIONS_MAX {
                    return Err(unusable("unit attentions without end"));
                }
            } else if passes(&answer) {
                self.pause(&answer, cdb[0]).await?;
            } else {
                return Ok(answer);
            }
        }
    }

    async fn pause(&self, answer: &Answer, opcode: u8) -> Result<(), IdentifyError> {
        let rt = self.client.rt();
        if rt.now() + AGAIN_AFTER >= self.deadline {
            return Err(not_ready(answer, opcode));
        }
        rt.sleep(AGAIN_AFTER).await;
        Ok(())
    }

    /// Data of a command; `None` if the unit refuses it.
    async fn ask(&self, cdb: cdb::Cdb, len: u32) -> Result<Option<Vec<u8>>, IdentifyError> {
        let answer = self.answer(cdb, len, is_passing).await?;
        match (answer.status, answer.sense.map(|sense| sense.key)) {
            (status::GOOD, _) => Ok(Some(answer.data.to_vec())),
            // istgt refuses without sense.
            (
                status::CHECK_CONDITION,
                None | Some(key::ILLEGAL_REQUEST | key::NO_SENSE | key::NOT_READY),
            )
            | (status::RESERVATION_CONFLICT, _) => Ok(None),
            _ => Err(not_ready(&answer, cdb[0])),
        }
    }

    async fn page(&self, page: u8) -> Result<Option<Vec<u8>>, IdentifyError> {
        self.ask(cdb::inquiry(Some(page), VPD_LEN as u16), VPD_LEN)
            .await
    }

    /// Clears unit attentions. A unit that is not ready may still be identified: whether a path
    /// can be used is decided by its checker, not here.
    async fn settle(&self) -> Result<(), IdentifyError> {
        let answer = self.answer(cdb::test_unit_ready(), 0, is_busy).await?;
        match (answer.status, answer.sense) {
            (status::CHECK_CONDITION, Some(sense)) if sense.key == key::ILLEGAL_REQUEST => {
                Err(unusable("no such logical unit"))
            }
            _ => Ok(()),
        }
    }

    async fn capacity(&self) -> Result<unit::Capacity, IdentifyError> {
        let long = self
            .ask(cdb::read_capacity_16(CAPACITY_LEN), CAPACITY_LEN)
            .await?;
        if let Some(capacity) = long.as_deref().and_then(unit::capacity_16) {
            return Ok(capacity);
        }
        let short = self.ask(cdb::read_capacity_10(), 8).await?;
        let capacity = short.as_deref().and_then(unit::capacity_10);
        capacity.ok_or_else(|| unusable("unit does not tell its capacity"))
    }

    /// Without the page a volatile cache is assumed, and FUA is not trusted: flushes are sent.
    async fn caching(&self) -> Result<Caching, IdentifyError> {
        let six = self
            .ask(cdb::mode_sense_6(CACHING, MODE_LEN as u8), MODE_LEN)
            .await?;
        if let Some(caching) = six.as_deref().and_then(unit::caching_6) {
            return Ok(caching);
        }
        let ten = self
            .ask(cdb::mode_sense_10(CACHING, MODE_LEN as u16), MODE_LEN)
            .await?;
        Ok(ten
            .as_deref()
            .and_then(unit::caching_10)
            .unwrap_or_default())
    }

    /// Another unit of the same target.
    fn other(&self, lun: [u8; 8]) -> Self {
        Unit { lun, ..*self }
    }

    async fn not_a_disk(&self, inquiry: &unit::Inquiry) -> IdentifyError {
        let here = decode_lun(self.lun).unwrap_or(0);
        let what = match inquiry.qualifier {
            0 => format!("is a {}", unit::device_type_name(inquiry.device_type)),
            _ => "does not exist".to_owned(),
        };
        match self.disks().await {
            Ok(disks) if disks.is_empty() => unusable(format!(
                "LUN {here} {what}; the target has no disk for this initiator"
            )),
            Ok(disks) => unusable(format!("LUN {here} {what}; disks: {}", disks.join(", "))),
            Err(error) => error,
        }
    }

    /// The disks of the target, by LUN.
    async fn disks(&self) -> Result<Vec<String>, IdentifyError> {
        // A unit that does not exist need not answer; LUN 0 must (SPC-3, REPORT LUNS).
        let first = self.other([0; 8]);
        let list = first
            .ask(cdb::report_luns(LUNS_LEN), LUNS_LEN)
            .await?
            .unwrap_or_default();
        let mut disks = Vec::new();
        for lun in unit::lun_list(&list) {
            let data = self
                .other(lun)
                .ask(cdb::inquiry(None, INQUIRY_LEN as u16), INQUIRY_LEN)
                .await?;
            let inquiry = data.as_deref().and_then(unit::inquiry);
            if inquiry.is_some_and(|inquiry| inquiry.qualifier == 0 && inquiry.device_type == 0) {
                disks.push(match decode_lun(lun) {
                    Some(number) => number.to_string(),
                    None => format!("{lun:02x?}"),
                });
            }
        }
        Ok(disks)
    }
}

/// The unit did not take the command, and may a moment later.
fn is_busy(answer: &Answer) -> bool {
    matches!(
        answer.status,
        status::BUSY | status::TASK_SET_FULL | status::TASK_ABORTED
    )
}

/// The same, or the unit gave the command up, or is not ready yet.
fn is_passing(answer: &Answer) -> bool {
    is_busy(answer)
        || answer.sense.is_some_and(|sense| {
            sense.key == key::ABORTED || sense.key == key::NOT_READY && sense.asc == ASC_NOT_READY
        })
}

fn not_ready(answer: &Answer, opcode: u8) -> IdentifyError {
    let status = answer.status;
    IdentifyError::NotReady(match answer.sense {
        Some(Sense { key, asc, ascq, .. }) => format!(
            "unit answers command {opcode:#04x} with status {status:#04x}, sense {key:x}/{asc:02x}/{ascq:02x}"
        ),
        None => format!("unit answers command {opcode:#04x} with status {status:#04x}"),
    })
}

fn geometry(
    capacity: &unit::Capacity,
    limits: &unit::BlockLimits,
    provisioning: unit::Provisioning,
    caching: &Caching,
) -> Result<Geometry, IdentifyError> {
    if !matches!(capacity.block_bytes, 512 | 4096) {
        return Err(unusable(format!(
            "logical blocks of {} bytes; 512 and 4096 are supported",
            capacity.block_bytes
        )));
    }
    if capacity.protected {
        return Err(unusable("unit is formatted with protection information"));
    }
    let sectors_per_block = u64::from(capacity.block_bytes) / SECTOR_BYTES;
    let physical = u64::from(capacity.block_bytes) << capacity.physical_exponent;
    let max_transfer = match u64::from(limits.max_transfer_blocks) * sectors_per_block {
        0 => TRANSFER_SECTORS_MAX,
        limit => u32::try_from(limit)
            .unwrap_or(u32::MAX)
            .min(TRANSFER_SECTORS_MAX),
    };
    Ok(Geometry {
        sectors: capacity.blocks * sectors_per_block,
        logical_block_bytes: capacity.block_bytes,
        physical_block_bytes: u32::try_from(physical).unwrap_or(capacity.block_bytes),
        lowest_aligned: Sector(u64::from(capacity.lowest_aligned) * sectors_per_block),
        max_transfer_sectors: max_transfer,
        write_cache: caching.write_cache.unwrap_or(true),
        fua: caching.fua,
        discard: capacity.provisioned && provisioning.unmap,
        discard_zeroes: capacity.reads_zeroes || provisioning.reads_zeroes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(block_bytes: u32) -> unit::Capacity {
        unit::Capacity {
            blocks: 1000,
            block_bytes,
            physical_exponent: 3,
            lowest_aligned: 1,
            provisioned: true,
            reads_zeroes: true,
            protected: false,
        }
    }

    fn shape(capacity: &unit::Capacity, limit: u32) -> Result<Geometry, IdentifyError> {
        let limits = unit::BlockLimits {
            max_transfer_blocks: limit,
            ..Default::default()
        };
        let thin = unit::Provisioning {
            unmap: true,
            ..Default::default()
        };
        geometry(capacity, &limits, thin, &Caching::default())
    }

    #[test]
    fn shapes() {
        let small = shape(&capacity(512), 0).expect("512e");
        assert_eq!((small.sectors, small.physical_block_bytes), (1000, 4096));
        assert_eq!(
            (small.max_transfer_sectors, small.lowest_aligned),
            (2048, Sector(1))
        );
        assert!(small.write_cache && !small.fua && small.discard && small.discard_zeroes);
        let large = shape(&capacity(4096), 16).expect("4Kn");
        assert_eq!((large.sectors, large.max_transfer_sectors), (8000, 128));
        assert!(shape(&capacity(520), 0).is_err());
        let protected = unit::Capacity {
            protected: true,
            ..capacity(512)
        };
        assert!(shape(&protected, 0).is_err());
    }
}
