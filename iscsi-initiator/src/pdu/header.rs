//! The 48-byte headers, one structure a type (RFC 7143 §11.2–§11.19).
//!
//! Fields that a type does not define are named `reserved_*` and sent as zeros; nobody reads them.
//! Names follow the RFC: ITT = `task_tag`, TTT = `transfer_tag`.

use super::{flag, opcode, BHS_BYTES, RESERVED_TAG};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// DataSegmentLength: 24 bits, in bytes, padding excluded.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct DataLen([u8; 3]);

impl DataLen {
    /// Announces `len` bytes.
    ///
    /// # Panics
    /// If `len` needs more than 24 bits.
    pub fn new(len: usize) -> DataLen {
        assert!(
            len <= super::DATA_SEGMENT_MAX,
            "data segment of {len} bytes"
        );
        let [_, a, b, c] = (len as u32).to_be_bytes();
        DataLen([a, b, c])
    }

    /// The length in bytes.
    pub fn get(self) -> usize {
        let [a, b, c] = self.0;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }
}

macro_rules! headers {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == BHS_BYTES && align_of::<$name>() == 1);
    )*};
}

headers! {
    /// What all headers share (§11.2.1).
    Generic {
        /// Opcode; bit 6: immediate delivery (requests).
        opcode: u8,
        /// Flags; bit 7: final.
        flags: u8,
        /// By type.
        specific: [u8; 2],
        /// TotalAHSLength, in 4-byte words.
        ahs_words: u8,
        /// DataSegmentLength.
        data_len: DataLen,
        /// LUN, or by type.
        lun: [u8; 8],
        /// Initiator task tag.
        task_tag: U32,
        /// Target transfer tag, or by type.
        transfer_tag: U32,
        /// CmdSN of a request, StatSN of a response.
        sn: U32,
        /// ExpStatSN of a request, ExpCmdSN of a response.
        exp_sn: U32,
        /// MaxCmdSN of a response.
        max_cmd_sn: U32,
        /// By type.
        tail: [u8; 12],
    }

    /// SCSI Command (§11.3).
    ScsiCommand {
        /// 01; bit 6: immediate.
        opcode: u8,
        /// F, R, W, task attribute.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// TotalAHSLength, in 4-byte words.
        ahs_words: u8,
        /// Immediate data.
        data_len: DataLen,
        /// LUN.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// Expected data transfer length, in bytes.
        expected_len: U32,
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// CDB, zero-padded.
        cdb: [u8; 16],
    }

    /// SCSI Response (§11.4).
    ScsiResponse {
        /// 21.
        opcode: u8,
        /// o, u, O, U.
        flags: u8,
        /// 0 = completed at target.
        response: u8,
        /// SCSI status.
        status: u8,
        /// Must be 0.
        ahs_words: u8,
        /// Sense and response data.
        data_len: DataLen,
        /// Status qualifier and reserved.
        reserved_8: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// SNACK tag.
        snack_tag: U32,
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// Number of Data-In and R2T PDUs sent for the command.
        exp_data_sn: U32,
        /// Bidirectional read residual.
        bidi_residual: U32,
        /// Residual, valid with O or U.
        residual: U32,
    }

    /// Task Management Function Request (§11.5).
    TmfRequest {
        /// 42: always immediate.
        opcode: u8,
        /// 80 + function.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Zero.
        ahs_words: u8,
        /// Zero.
        data_len: DataLen,
        /// LUN.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// ITT of the task to abort, or ffffffff.
        referenced_tag: U32,
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// CmdSN of the task to abort.
        ref_cmd_sn: U32,
        /// Only for TASK REASSIGN.
        exp_data_sn: U32,
        /// Zero.
        reserved_40: [u8; 8],
    }

    /// Task Management Function Response (§11.6).
    TmfResponse {
        /// 22.
        opcode: u8,
        /// 80.
        flags: u8,
        /// 0 complete, 1 no task, 2 no LUN, 4 no failover, 5 unsupported, 6 denied, ff rejected.
        response: u8,
        /// Zero.
        reserved_3: u8,
        /// Must be 0.
        ahs_words: u8,
        /// Zero.
        data_len: DataLen,
        /// Zero.
        reserved_8: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// Zero.
        reserved_20: [u8; 4],
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// Zero.
        reserved_36: [u8; 12],
    }

    /// Login Request (§11.12).
    LoginRequest {
        /// 43.
        opcode: u8,
        /// T, C, CSG, NSG.
        flags: u8,
        /// Highest version supported: 0.
        version_max: u8,
        /// Lowest version supported: 0.
        version_min: u8,
        /// Zero.
        ahs_words: u8,
        /// Text keys.
        data_len: DataLen,
        /// ISID.
        isid: [u8; 6],
        /// TSIH: 0 for a new session.
        tsih: U16,
        /// ITT, one for the whole login.
        task_tag: U32,
        /// CID.
        cid: U16,
        /// Zero.
        reserved_22: [u8; 2],
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// Zero.
        reserved_32: [u8; 16],
    }

    /// Login Response (§11.13).
    LoginResponse {
        /// 23.
        opcode: u8,
        /// T, C, CSG, NSG.
        flags: u8,
        /// Highest version.
        version_max: u8,
        /// Version in use.
        version_active: u8,
        /// Must be 0.
        ahs_words: u8,
        /// Text keys.
        data_len: DataLen,
        /// ISID.
        isid: [u8; 6],
        /// TSIH, set in the final response.
        tsih: U16,
        /// ITT.
        task_tag: U32,
        /// Zero.
        reserved_20: [u8; 4],
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// 0 success, 1 redirect, 2 initiator error, 3 target error.
        status_class: u8,
        /// By class.
        status_detail: u8,
        /// Zero.
        reserved_38: [u8; 10],
    }

    /// Text Request (§11.10).
    TextRequest {
        /// 04; bit 6: immediate.
        opcode: u8,
        /// F, C.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Zero.
        ahs_words: u8,
        /// Text keys.
        data_len: DataLen,
        /// Copied together with the TTT.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// TTT or ffffffff.
        transfer_tag: U32,
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// Zero.
        reserved_32: [u8; 16],
    }

    /// Text Response (§11.11).
    TextResponse {
        /// 24.
        opcode: u8,
        /// F, C.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Must be 0.
        ahs_words: u8,
        /// Text keys.
        data_len: DataLen,
        /// To be copied together with the TTT.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// TTT: valid while more is to come.
        transfer_tag: U32,
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// Zero.
        reserved_36: [u8; 12],
    }

    /// SCSI Data-Out (§11.7).
    DataOut {
        /// 05.
        opcode: u8,
        /// F.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Zero.
        ahs_words: u8,
        /// Payload.
        data_len: DataLen,
        /// Copied from the R2T; zero if unsolicited.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// Copied from the R2T; ffffffff if unsolicited.
        transfer_tag: U32,
        /// Zero.
        reserved_24: [u8; 4],
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// Zero.
        reserved_32: [u8; 4],
        /// From 0 for each R2T, and for the unsolicited data.
        data_sn: U32,
        /// Offset of the payload in the command's data, in bytes.
        buffer_offset: U32,
        /// Zero.
        reserved_44: [u8; 4],
    }

    /// SCSI Data-In (§11.7).
    DataIn {
        /// 25.
        opcode: u8,
        /// F, A, O, U, S.
        flags: u8,
        /// Zero.
        reserved_2: u8,
        /// SCSI status, with S.
        status: u8,
        /// Must be 0.
        ahs_words: u8,
        /// Payload.
        data_len: DataLen,
        /// With A.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// With A.
        transfer_tag: U32,
        /// StatSN, with S.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// From 0 for each command.
        data_sn: U32,
        /// Offset of the payload in the command's data, in bytes.
        buffer_offset: U32,
        /// With S and O or U.
        residual: U32,
    }

    /// Logout Request (§11.14).
    LogoutRequest {
        /// 46: immediate.
        opcode: u8,
        /// 80 + reason.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Zero.
        ahs_words: u8,
        /// Zero.
        data_len: DataLen,
        /// Zero.
        reserved_8: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// CID.
        cid: U16,
        /// Zero.
        reserved_22: [u8; 2],
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// Zero.
        reserved_32: [u8; 16],
    }

    /// Logout Response (§11.15).
    LogoutResponse {
        /// 26.
        opcode: u8,
        /// 80.
        flags: u8,
        /// 0 closed, 1 no such CID, 2 no recovery, 3 cleanup failed.
        response: u8,
        /// Zero.
        reserved_3: u8,
        /// Must be 0.
        ahs_words: u8,
        /// Zero.
        data_len: DataLen,
        /// Zero.
        reserved_8: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// Zero.
        reserved_20: [u8; 4],
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// Zero.
        reserved_36: [u8; 4],
        /// Time2Wait, seconds.
        time2wait: U16,
        /// Time2Retain, seconds.
        time2retain: U16,
        /// Zero.
        reserved_44: [u8; 4],
    }

    /// Ready To Transfer (§11.8).
    R2t {
        /// 31.
        opcode: u8,
        /// 80.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Must be 0.
        ahs_words: u8,
        /// Zero.
        data_len: DataLen,
        /// LUN.
        lun: [u8; 8],
        /// ITT.
        task_tag: U32,
        /// TTT, to be copied.
        transfer_tag: U32,
        /// Next StatSN; not advanced.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// From 0 for each command.
        r2t_sn: U32,
        /// Where the wanted data begin, in bytes.
        buffer_offset: U32,
        /// How much is wanted, in bytes.
        desired_len: U32,
    }

    /// Asynchronous Message (§11.9).
    AsyncMessage {
        /// 32.
        opcode: u8,
        /// 80.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Must be 0.
        ahs_words: u8,
        /// Sense (event 0).
        data_len: DataLen,
        /// LUN (events 0, 5).
        lun: [u8; 8],
        /// ffffffff.
        task_tag: U32,
        /// Zero.
        reserved_20: [u8; 4],
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// What happened.
        event: u8,
        /// Vendor's detail.
        vendor_code: u8,
        /// By event.
        parameter_1: U16,
        /// By event.
        parameter_2: U16,
        /// By event.
        parameter_3: U16,
        /// Zero.
        reserved_44: [u8; 4],
    }

    /// Reject (§11.17).
    Reject {
        /// 3f.
        opcode: u8,
        /// 80.
        flags: u8,
        /// Why.
        reason: u8,
        /// Zero.
        reserved_3: u8,
        /// Must be 0.
        ahs_words: u8,
        /// The offending header.
        data_len: DataLen,
        /// Zero.
        reserved_8: [u8; 8],
        /// ffffffff.
        task_tag: U32,
        /// Zero.
        reserved_20: [u8; 4],
        /// StatSN.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// DataSN or R2TSN, by reason.
        data_sn: U32,
        /// Zero.
        reserved_40: [u8; 8],
    }

    /// NOP-Out (§11.18).
    NopOut {
        /// 40: always immediate.
        opcode: u8,
        /// 80.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Zero.
        ahs_words: u8,
        /// Ping data.
        data_len: DataLen,
        /// Copied in an answer.
        lun: [u8; 8],
        /// ITT, or ffffffff if no answer is wanted.
        task_tag: U32,
        /// Copied in an answer, else ffffffff.
        transfer_tag: U32,
        /// CmdSN.
        cmd_sn: U32,
        /// ExpStatSN.
        exp_stat_sn: U32,
        /// Zero.
        reserved_32: [u8; 16],
    }

    /// NOP-In (§11.19).
    NopIn {
        /// 20.
        opcode: u8,
        /// 80.
        flags: u8,
        /// Zero.
        reserved_2: [u8; 2],
        /// Must be 0.
        ahs_words: u8,
        /// Echoed ping data.
        data_len: DataLen,
        /// To be copied, if the TTT is valid.
        lun: [u8; 8],
        /// ITT of our ping, or ffffffff.
        task_tag: U32,
        /// Valid in a ping of the target.
        transfer_tag: U32,
        /// StatSN; advanced only in an answer to our ping.
        stat_sn: U32,
        /// ExpCmdSN.
        exp_cmd_sn: U32,
        /// MaxCmdSN.
        max_cmd_sn: U32,
        /// Zero.
        reserved_36: [u8; 12],
    }
}

impl LoginRequest {
    /// T, C, CSG and NSG as one byte.
    pub fn stage_flags(transit: bool, more: bool, current: u8, next: u8) -> u8 {
        let transit = if transit { flag::FINAL | next } else { 0 };
        let more = if more { flag::CONTINUE } else { 0 };
        transit | more | current << 2
    }
}

impl LoginResponse {
    /// CSG.
    pub fn current_stage(&self) -> u8 {
        self.flags >> 2 & 3
    }

    /// NSG, if T is set.
    pub fn next_stage(&self) -> Option<u8> {
        (self.flags & flag::FINAL != 0).then_some(self.flags & 3)
    }
}

impl NopOut {
    /// A NOP-Out without numbers: ping, answer or mere acknowledgement, by its tags.
    pub fn new(task_tag: u32, transfer_tag: u32, lun: [u8; 8], data_len: usize) -> NopOut {
        NopOut {
            opcode: opcode::NOP_OUT | opcode::IMMEDIATE,
            flags: flag::FINAL,
            lun,
            data_len: DataLen::new(data_len),
            task_tag: U32::new(task_tag),
            transfer_tag: U32::new(transfer_tag),
            ..NopOut::default()
        }
    }
}

impl TmfRequest {
    /// A request without numbers, for `function`, that refers to no task.
    pub fn new(function: u8, lun: [u8; 8], task_tag: u32) -> TmfRequest {
        TmfRequest {
            opcode: opcode::TMF_REQUEST | opcode::IMMEDIATE,
            flags: flag::FINAL | function,
            lun,
            task_tag: U32::new(task_tag),
            referenced_tag: U32::new(RESERVED_TAG),
            ..TmfRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// The table of fields at fixed places, RFC 7143 §11.
    #[test]
    fn fields_lie_where_the_rfc_draws_them() {
        assert_eq!(offset_of!(Generic, lun), 8);
        assert_eq!(offset_of!(Generic, task_tag), 16);
        assert_eq!(offset_of!(Generic, transfer_tag), 20);
        assert_eq!(offset_of!(Generic, sn), 24);
        assert_eq!(offset_of!(Generic, exp_sn), 28);
        assert_eq!(offset_of!(Generic, max_cmd_sn), 32);
        assert_eq!(offset_of!(ScsiCommand, cdb), 32);
        assert_eq!(offset_of!(ScsiCommand, expected_len), 20);
        assert_eq!(offset_of!(ScsiResponse, residual), 44);
        assert_eq!(offset_of!(ScsiResponse, exp_data_sn), 36);
        assert_eq!(offset_of!(TmfRequest, ref_cmd_sn), 32);
        assert_eq!(offset_of!(LoginRequest, tsih), 14);
        assert_eq!(offset_of!(LoginRequest, cid), 20);
        assert_eq!(offset_of!(LoginResponse, status_class), 36);
        assert_eq!(offset_of!(DataOut, data_sn), 36);
        assert_eq!(offset_of!(DataOut, buffer_offset), 40);
        assert_eq!(offset_of!(DataIn, data_sn), 36);
        assert_eq!(offset_of!(DataIn, buffer_offset), 40);
        assert_eq!(offset_of!(DataIn, residual), 44);
        assert_eq!(offset_of!(R2t, r2t_sn), 36);
        assert_eq!(offset_of!(R2t, desired_len), 44);
        assert_eq!(offset_of!(LogoutResponse, time2wait), 40);
        assert_eq!(offset_of!(LogoutRequest, cid), 20);
        assert_eq!(offset_of!(AsyncMessage, event), 36);
        assert_eq!(offset_of!(AsyncMessage, parameter_1), 38);
        assert_eq!(offset_of!(Reject, data_sn), 36);
    }

    #[test]
    fn data_length_is_24_bits() {
        assert_eq!(DataLen::new(0x0012_3456).0, [0x12, 0x34, 0x56]);
        assert_eq!(DataLen::new(0x00ff_ffff).get(), 0x00ff_ffff);
    }
}
