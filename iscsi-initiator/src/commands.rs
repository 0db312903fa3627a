//! Commands of one unit with typed answers: for tools, and for those who use a session without a
//! multipath layer.
//!
//! One call is one command (two where a unit may not know the newer form); nothing is repeated,
//! so a unit attention is an error here like any other status. Dropping a future does not cancel
//! its command. Data go to and from the unit in its own logical blocks.

use crate::client::Client;
use crate::scsi::sense::key;
use crate::scsi::unit::{self, BlockLimits, Caching, Capacity, Designators, Inquiry, Provisioning};
use crate::scsi::{cdb, sense, status};
use crate::session::{Answer, Attribute, Outcome, ScsiCommand, Transfer};
use blockdev::alua::{self, PortGroups};
use blockdev::path::{CommandError, Sense};
use blockdev::reserve::{self, Capabilities, FullStatus, Keys, Reservation};
use blockdev::reserve::{ReserveIn, ReserveOut};
use blockdev::{Durability, IoVec};

/// Allocation lengths, in bytes.
const SENSE_LEN: u8 = 252;
const INQUIRY_LEN: u16 = 96;
const VPD_LEN: u16 = 255;
const CAPACITY_LEN: u32 = 32;
const MODE_LEN: u8 = 192;
const LUNS_LEN: u32 = 16 << 10;
pub(crate) const PORT_GROUPS_LEN: u32 = 4096;
/// The lists of PERSISTENT RESERVE IN: a thousand keys.
const RESERVE_LIST_LEN: u16 = 8192;
/// Mode page 08: caching.
const CACHING: u8 = 0x08;

/// What became of a COMPARE AND WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The blocks were as expected and are written.
    Written,
    /// They differ, first at this byte if the unit says where; nothing is written.
    Differs {
        /// Offset in the data compared.
        at: Option<u64>,
    },
}

/// Commands to one unit of a session. Cloning shares the session.
#[derive(Clone)]
pub struct UnitCommands {
    client: Client,
    lun: [u8; 8],
}

type Answered<T> = Result<T, CommandError>;

impl UnitCommands {
    /// The unit `lun` (8-byte form) of a session.
    pub fn new(client: Client, lun: [u8; 8]) -> UnitCommands {
        UnitCommands { client, lun }
    }

    /// TEST UNIT READY.
    ///
    /// # Errors
    /// As every command here: a status other than GOOD, or none.
    pub async fn test_unit_ready(&self) -> Answered<()> {
        self.none(cdb::test_unit_ready()).await
    }

    /// REQUEST SENSE, in descriptor format if asked. `None`: the unit has nothing to say.
    pub async fn request_sense(&self, descriptor: bool) -> Answered<Option<Sense>> {
        let command = cdb::request_sense(SENSE_LEN, descriptor);
        let data = self.data(command, SENSE_LEN.into()).await?;
        Ok(sense::parse(&data).filter(|sense| (sense.key, sense.asc, sense.ascq) != (0, 0, 0)))
    }

    /// INQUIRY: the standard data.
    pub async fn inquiry(&self) -> Answered<Inquiry> {
        let data = self
            .data(cdb::inquiry(None, INQUIRY_LEN), INQUIRY_LEN.into())
            .await?;
        understood(unit::inquiry(&data))
    }

    /// Vital product data 00: the pages there are. Only these may be asked for.
    pub async fn pages(&self) -> Answered<Vec<u8>> {
        Ok(unit::supported_pages(&self.page(0x00).await?))
    }

    /// Vital product data 80: serial number.
    pub async fn serial_number(&self) -> Answered<String> {
        understood(unit::serial_number(&self.page(0x80).await?))
    }

    /// Vital product data 83: names.
    pub async fn designators(&self) -> Answered<Designators> {
        Ok(unit::designators(&self.page(0x83).await?))
    }

    /// Vital product data B0: limits.
    pub async fn block_limits(&self) -> Answered<BlockLimits> {
        understood(unit::block_limits(&self.page(0xb0).await?))
    }

    /// Vital product data B1: rotation rate; 1 = solid state, 0 = not told.
    pub async fn rotation_rate(&self) -> Answered<u16> {
        understood(unit::rotation_rate(&self.page(0xb1).await?))
    }

    /// Vital product data B2: thin provisioning.
    pub async fn provisioning(&self) -> Answered<Provisioning> {
        understood(unit::provisioning(&self.page(0xb2).await?))
    }

    /// READ CAPACITY(16), or (10) where that is refused.
    pub async fn capacity(&self) -> Answered<Capacity> {
        match self
            .data(cdb::read_capacity_16(CAPACITY_LEN), CAPACITY_LEN)
            .await
        {
            Err(error) if is_unsupported(&error) => {
                let data = self.data(cdb::read_capacity_10(), 8).await?;
                understood(unit::capacity_10(&data))
            }
            data => understood(unit::capacity_16(&data?)),
        }
    }

    /// The caching page by MODE SENSE(6), or (10) where that is refused.
    pub async fn caching(&self) -> Answered<Caching> {
        let six = cdb::mode_sense_6(CACHING, MODE_LEN);
        match self.data(six, MODE_LEN.into()).await {
            Err(error) if is_unsupported(&error) => {
                let ten = cdb::mode_sense_10(CACHING, MODE_LEN.into());
                understood(unit::caching_10(&self.data(ten, MODE_LEN.into()).await?))
            }
            data => understood(unit::caching_6(&data?)),
        }
    }

    /// REPORT LUNS: all units of the target that this initiator may see.
    pub async fn luns(&self) -> Answered<Vec<[u8; 8]>> {
        let data = self.data(cdb::report_luns(LUNS_LEN), LUNS_LEN).await?;
        Ok(unit::lun_list(&data))
    }

    /// READ: `blocks` blocks of `block_bytes`. The (10) form where it reaches and `short` says so.
    pub async fn read(&self, at: Extent, want: Durability, short: bool) -> Answered<IoVec> {
        let fua = want == Durability::Fua;
        let command = match at.in_ten_bytes().filter(|_| short) {
            Some((lba, blocks)) => cdb::read_10(lba, blocks, fua),
            None => cdb::read_16(at.lba, at.blocks, fua),
        };
        let len = at.bytes()?;
        let answer = self.answer(command, Transfer::Read(len)).await?;
        if answer.underflow > 0 {
            return Err(CommandError::BadAnswer("short transfer on GOOD"));
        }
        Ok(answer.data)
    }

    /// WRITE of whole blocks. The (10) form where it reaches and `short` says so.
    pub async fn write(
        &self,
        at: Extent,
        data: IoVec,
        want: Durability,
        short: bool,
    ) -> Answered<()> {
        at.holds(&data, 1)?;
        let fua = want == Durability::Fua;
        let command = match at.in_ten_bytes().filter(|_| short) {
            Some((lba, blocks)) => cdb::write_10(lba, blocks, fua),
            None => cdb::write_16(at.lba, at.blocks, fua),
        };
        self.send(command, data).await
    }

    /// SYNCHRONIZE CACHE(16) of a range; 0 and 0 mean the whole unit.
    pub async fn synchronize_cache(&self, lba: u64, blocks: u32) -> Answered<()> {
        self.none(cdb::synchronize_cache_16(lba, blocks)).await
    }

    /// UNMAP of ranges (first block, blocks): at most [`BlockLimits::max_unmap_ranges`], and never
    /// more than [`cdb::UNMAP_RANGES_MAX`].
    pub async fn unmap(&self, ranges: &[(u64, u32)]) -> Answered<()> {
        let list = cdb::unmap_list(ranges).ok_or(CommandError::BadAnswer("too many ranges"))?;
        self.send(cdb::unmap(list.len() as u16), self.copy(&list))
            .await
    }

    /// WRITE SAME(16) of one block to a range; with `unmap` the unit may deallocate instead.
    ///
    /// The form without data (NDOB) is never sent: tgt answers it by a medium error, istgt not at
    /// all.
    pub async fn write_same(&self, at: Extent, block: IoVec, unmap: bool) -> Answered<()> {
        if block.len() as u64 != u64::from(at.block_bytes) {
            return Err(CommandError::BadAnswer("data are not one block"));
        }
        self.send(cdb::write_same_16(at.lba, at.blocks, unmap), block)
            .await
    }

    /// COMPARE AND WRITE: if the range holds `expected`, it holds `new` afterwards; in one step.
    /// At most [`BlockLimits::compare_and_write_blocks`] blocks, and at least one: istgt never
    /// answers one of none.
    pub async fn compare_and_write(
        &self,
        at: Extent,
        expected: &IoVec,
        new: &IoVec,
        want: Durability,
    ) -> Answered<Compared> {
        at.holds(expected, 1)?;
        at.holds(new, 1)?;
        let blocks = u8::try_from(at.blocks).ok().filter(|&blocks| blocks > 0);
        let blocks = blocks.ok_or(CommandError::BadAnswer("1 to 255 blocks can be compared"))?;
        let mut data = expected.clone();
        data.append(new);
        let command = cdb::compare_and_write(at.lba, blocks, want == Durability::Fua);
        match self.send(command, data).await {
            Ok(()) => Ok(Compared::Written),
            Err(CommandError::Status {
                sense: Some(sense), ..
            }) if sense.key == key::MISCOMPARE => Ok(Compared::Differs {
                at: sense.information,
            }),
            Err(error) => Err(error),
        }
    }

    /// REPORT TARGET PORT GROUPS, with the extended header where the unit knows it.
    pub async fn port_groups(&self) -> Answered<PortGroups> {
        let ask = |extended| cdb::report_target_port_groups(PORT_GROUPS_LEN, extended);
        let data = match self.data(ask(true), PORT_GROUPS_LEN).await {
            Err(error) if is_unsupported(&error) => self.data(ask(false), PORT_GROUPS_LEN).await?,
            data => data?,
        };
        understood(alua::port_groups(&data))
    }

    /// PERSISTENT RESERVE IN, READ KEYS.
    pub async fn reserve_keys(&self) -> Answered<Keys> {
        understood(reserve::keys(&self.reserve_in(ReserveIn::Keys).await?))
    }

    /// PERSISTENT RESERVE IN, READ RESERVATION.
    pub async fn reservation(&self) -> Answered<Reservation> {
        let data = self.reserve_in(ReserveIn::Reservation).await?;
        understood(reserve::reservation(&data))
    }

    /// PERSISTENT RESERVE IN, REPORT CAPABILITIES.
    pub async fn reserve_capabilities(&self) -> Answered<Capabilities> {
        let data = self.reserve_in(ReserveIn::Capabilities).await?;
        understood(reserve::capabilities(&data))
    }

    /// PERSISTENT RESERVE IN, READ FULL STATUS.
    pub async fn reserve_status(&self) -> Answered<FullStatus> {
        let data = self.reserve_in(ReserveIn::FullStatus).await?;
        understood(reserve::full_status(&data))
    }

    /// PERSISTENT RESERVE OUT. A conflict is status 18h.
    pub async fn reserve(&self, request: &ReserveOut) -> Answered<()> {
        let (command, transfer) = reserve_out(&self.client, request)?;
        self.answer(command, transfer).await.map(drop)
    }

    async fn reserve_in(&self, ask: ReserveIn) -> Answered<Vec<u8>> {
        let (command, len) = reserve_in(ask);
        self.data(command, len).await
    }

    async fn page(&self, page: u8) -> Answered<Vec<u8>> {
        self.data(cdb::inquiry(Some(page), VPD_LEN), VPD_LEN.into())
            .await
    }

    async fn none(&self, cdb: cdb::Cdb) -> Answered<()> {
        self.answer(cdb, Transfer::None).await.map(drop)
    }

    async fn send(&self, cdb: cdb::Cdb, data: IoVec) -> Answered<()> {
        self.answer(cdb, Transfer::Write(data)).await.map(drop)
    }

    async fn data(&self, cdb: cdb::Cdb, len: u32) -> Answered<Vec<u8>> {
        let answer = self.answer(cdb, Transfer::Read(len)).await?;
        Ok(answer.data.to_vec())
    }

    fn copy(&self, bytes: &[u8]) -> IoVec {
        self.client
            .with_session(|session| session.pool().copy_now(bytes))
    }

    async fn answer(&self, cdb: cdb::Cdb, transfer: Transfer) -> Answered<Answer> {
        let command = ScsiCommand {
            lun: self.lun,
            cdb,
            transfer,
            attribute: Attribute::Simple,
        };
        match self.client.command(command).await {
            Outcome::Scsi(answer)
                if matches!(answer.status, status::GOOD | status::CONDITION_MET) =>
            {
                Ok(answer)
            }
            other => Err(failed(other)),
        }
    }
}

/// Whole logical blocks of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl Extent {
    fn bytes(self) -> Answered<u32> {
        let bytes = self.blocks.checked_mul(self.block_bytes);
        bytes.ok_or(CommandError::BadAnswer("transfer of 4 GiB and more"))
    }

    fn holds(self, data: &IoVec, times: u32) -> Answered<()> {
        let bytes = u64::from(self.blocks) * u64::from(self.block_bytes) * u64::from(times);
        if data.len() as u64 == bytes {
            Ok(())
        } else {
            Err(CommandError::BadAnswer("data do not fill the blocks"))
        }
    }

    fn in_ten_bytes(self) -> Option<(u32, u16)> {
        Some((
            u32::try_from(self.lba).ok()?,
            u16::try_from(self.blocks).ok()?,
        ))
    }
}

fn understood<T>(parsed: Option<T>) -> Answered<T> {
    parsed.ok_or(CommandError::BadAnswer("parameter data too short"))
}

/// Whether the unit does not know the command or the form of it.
fn is_unsupported(error: &CommandError) -> bool {
    matches!(error, CommandError::Status { sense: Some(sense), .. }
        if sense.key == key::ILLEGAL_REQUEST && matches!(sense.asc, 0x20 | 0x24))
}

/// A PERSISTENT RESERVE IN and its allocation length.
pub(crate) fn reserve_in(ask: ReserveIn) -> (cdb::Cdb, u32) {
    let len = match ask {
        ReserveIn::Keys | ReserveIn::FullStatus => RESERVE_LIST_LEN,
        ReserveIn::Reservation => 24,
        ReserveIn::Capabilities => 8,
    };
    (cdb::persistent_reserve_in(ask, len), len.into())
}

/// A PERSISTENT RESERVE OUT and its parameter list.
pub(crate) fn reserve_out(client: &Client, request: &ReserveOut) -> Answered<(cdb::Cdb, Transfer)> {
    let list = request
        .parameters()
        .map_err(|_| CommandError::BadAnswer("no such name on the wire"))?;
    let cdb = cdb::persistent_reserve_out(request, list.len() as u32);
    let data = client.with_session(|session| session.pool().copy_now(&list));
    Ok((cdb, Transfer::Write(data)))
}

/// An outcome that is none of GOOD or CONDITION MET.
pub(crate) fn failed(outcome: Outcome) -> CommandError {
    match outcome {
        Outcome::Scsi(answer) => CommandError::Status {
            status: answer.status,
            sense: answer.sense,
        },
        Outcome::Bad(what) => CommandError::BadAnswer(what),
        Outcome::Withdrawn => CommandError::Withdrawn,
        Outcome::Lost { cause, applied } => CommandError::Lost { cause, applied },
        _ => CommandError::BadAnswer("answer of another kind"),
    }
}
