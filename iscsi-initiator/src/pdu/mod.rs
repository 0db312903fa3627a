//! PDU headers as they stand on the wire (RFC 7143 §11), and what a target may send.
//!
//! Every type is one 48-byte structure of [`header`], big-endian, without alignment; sizes are
//! asserted at compile time. [`Response::parse`] turns 48 bytes from a target into one of them and
//! refuses what is malformed in itself; what is well-formed but forbidden *now* is the session's
//! business. Payload is never copied into a header: it travels beside it.

pub mod header;

use header::*;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a basic header segment.
pub const BHS_BYTES: usize = 48;
/// Bytes of a header or data digest.
pub const DIGEST_BYTES: usize = 4;
/// The tag that names nothing.
pub const RESERVED_TAG: u32 = 0xffff_ffff;
/// Largest data segment a header can announce, in bytes.
pub const DATA_SEGMENT_MAX: usize = 0x00ff_ffff;

/// Opcodes (RFC 7143 §11.2.1.2), without the immediate bit.
pub mod opcode {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TMF_REQUEST: u8 = 0x02;
    /// Login Request.
    pub const LOGIN_REQUEST: u8 = 0x03;
    /// Text Request.
    pub const TEXT_REQUEST: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT_REQUEST: u8 = 0x06;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TMF_RESPONSE: u8 = 0x22;
    /// Login Response.
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response.
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
    /// Immediate delivery, in byte 0 of a request.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Bits of byte 1 and of other flag bytes.
pub mod flag {
    /// F: the last PDU of a sequence (T in login).
    pub const FINAL: u8 = 0x80;
    /// C: the text goes on in the next PDU.
    pub const CONTINUE: u8 = 0x40;
    /// R of a SCSI Command: data from the target are expected.
    pub const READ: u8 = 0x40;
    /// W of a SCSI Command: data to the target are expected.
    pub const WRITE: u8 = 0x20;
    /// O: residual overflow.
    pub const OVERFLOW: u8 = 0x04;
    /// U: residual underflow.
    pub const UNDERFLOW: u8 = 0x02;
    /// S of a Data-In: it carries the status.
    pub const STATUS: u8 = 0x01;
}

/// Padding after `len` bytes of payload, in bytes (0–3).
pub fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// A PDU that is malformed in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// An opcode that no target may send.
    #[error("opcode {0:#04x} from a target")]
    Opcode(u8),
    /// A response with an additional header segment.
    #[error("additional header segment in a response")]
    AdditionalHeader,
    /// A reserved code in a defined field.
    #[error("reserved code {1:#04x} in {0}")]
    ReservedCode(&'static str, u8),
    /// Fields that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// A PDU header from a target.
#[derive(Clone, Copy, Debug)]
pub enum Response {
    /// NOP-In.
    NopIn(NopIn),
    /// SCSI Response.
    Scsi(ScsiResponse),
    /// Task Management Function Response.
    Tmf(TmfResponse),
    /// Login Response.
    Login(LoginResponse),
    /// Text Response.
    Text(TextResponse),
    /// SCSI Data-In.
    DataIn(DataIn),
    /// Logout Response.
    Logout(LogoutResponse),
    /// Ready To Transfer.
    R2t(R2t),
    /// Asynchronous Message.
    Async(AsyncMessage),
    /// Reject.
    Reject(Reject),
}

fn view<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8; BHS_BYTES]) -> T {
    T::read_from_bytes(bytes).expect("every header has 48 bytes (asserted at compile time)")
}

impl Response {
    /// Parses a header. Reserved bits are ignored, reserved codes are not.
    pub fn parse(bytes: &[u8; BHS_BYTES]) -> Result<Response, FormatError> {
        use FormatError::{AdditionalHeader, Contradiction, Opcode, ReservedCode};
        // Bits 7 and 6 are reserved in responses and thus ignored.
        let response = match bytes[0] & 0x3f {
            opcode::NOP_IN => Response::NopIn(view(bytes)),
            opcode::SCSI_RESPONSE => Response::Scsi(view(bytes)),
            opcode::TMF_RESPONSE => Response::Tmf(view(bytes)),
            opcode::LOGIN_RESPONSE => Response::Login(view(bytes)),
            opcode::TEXT_RESPONSE => Response::Text(view(bytes)),
            opcode::DATA_IN => Response::DataIn(view(bytes)),
            opcode::LOGOUT_RESPONSE => Response::Logout(view(bytes)),
            opcode::R2T => Response::R2t(view(bytes)),
            opcode::ASYNC_MESSAGE => Response::Async(view(bytes)),
            opcode::REJECT => Response::Reject(view(bytes)),
            other => return Err(Opcode(other)),
        };
        if bytes[4] != 0 {
            return Err(AdditionalHeader);
        }
        match &response {
            Response::NopIn(pdu) => {
                let (itt, ttt) = (pdu.task_tag.get(), pdu.transfer_tag.get());
                if itt != RESERVED_TAG && ttt != RESERVED_TAG {
                    return Err(Contradiction("NOP-In with both tags valid"));
                }
                if itt == RESERVED_TAG && pdu.data_len.get() != 0 {
                    return Err(Contradiction("target ping with data"));
                }
            }
            Response::Scsi(pdu) => overflow_or_underflow(pdu.flags)?,
            Response::DataIn(pdu) => {
                overflow_or_underflow(pdu.flags)?;
                if pdu.flags & flag::STATUS != 0 && pdu.flags & flag::FINAL == 0 {
                    return Err(Contradiction("Data-In with status that is not final"));
                }
            }
            Response::Login(pdu) => {
                if pdu.flags & (flag::FINAL | flag::CONTINUE) == flag::FINAL | flag::CONTINUE {
                    return Err(Contradiction("login response with both T and C"));
                }
                if pdu.current_stage() == 2 {
                    return Err(ReservedCode("login stage", 2));
                }
            }
            Response::Text(pdu) => {
                if pdu.flags & (flag::FINAL | flag::CONTINUE) == flag::FINAL | flag::CONTINUE {
                    return Err(Contradiction("text response with both F and C"));
                }
            }
            Response::R2t(pdu) => {
                if pdu.transfer_tag.get() == RESERVED_TAG {
                    return Err(Contradiction("R2T with a reserved target transfer tag"));
                }
                if pdu.data_len.get() != 0 {
                    return Err(Contradiction("R2T with data"));
                }
            }
            Response::Tmf(pdu) if pdu.data_len.get() != 0 => {
                return Err(Contradiction("task management response with data"));
            }
            Response::Logout(pdu) if pdu.data_len.get() != 0 => {
                return Err(Contradiction("logout response with data"));
            }
            Response::Tmf(pdu) if !matches!(pdu.response, 0..=7 | 0xff) => {
                return Err(ReservedCode("task management response", pdu.response));
            }
            Response::Logout(pdu) if pdu.response > 3 => {
                return Err(ReservedCode("logout response", pdu.response));
            }
            Response::Reject(pdu) if !matches!(pdu.reason, 0x02..=0x0c) => {
                return Err(ReservedCode("reject reason", pdu.reason));
            }
            Response::Tmf(_) | Response::Logout(_) | Response::Async(_) | Response::Reject(_) => {}
        }
        Ok(response)
    }

    /// The header whatever its type.
    pub fn generic(&self) -> &Generic {
        let bytes = match self {
            Response::NopIn(pdu) => pdu.as_bytes(),
            Response::Scsi(pdu) => pdu.as_bytes(),
            Response::Tmf(pdu) => pdu.as_bytes(),
            Response::Login(pdu) => pdu.as_bytes(),
            Response::Text(pdu) => pdu.as_bytes(),
            Response::DataIn(pdu) => pdu.as_bytes(),
            Response::Logout(pdu) => pdu.as_bytes(),
            Response::R2t(pdu) => pdu.as_bytes(),
            Response::Async(pdu) => pdu.as_bytes(),
            Response::Reject(pdu) => pdu.as_bytes(),
        };
        Generic::ref_from_bytes(bytes).expect("every header has 48 bytes")
    }
}

fn overflow_or_underflow(flags: u8) -> Result<(), FormatError> {
    let both = flag::OVERFLOW | flag::UNDERFLOW;
    if flags & both == both {
        return Err(FormatError::Contradiction(
            "residual overflow and underflow at once",
        ));
    }
    Ok(())
}

/// Splits the data segment of a SCSI Response or Async Message into sense and the rest
/// (RFC 7143 §11.4.7). Lengths are clamped to what is there.
pub fn split_sense(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return (&[], &[]);
    };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    rest.split_at(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(opcode: u8) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[0] = opcode;
        bytes
    }

    #[test]
    fn padding_zero_and_uncounted() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }

    #[test]
    fn every_type_of_a_target_and_no_other() {
        let good = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f];
        for opcode in 0..0x40u8 {
            let mut bytes = header(opcode);
            bytes[20..24].copy_from_slice(&[0xff; 4]);
            bytes[2] = if opcode == 0x3f { 4 } else { 0 };
            if opcode == 0x31 {
                bytes[20] = 0;
            }
            assert_eq!(
                Response::parse(&bytes).is_ok(),
                good.contains(&opcode),
                "{opcode:#x}"
            );
        }
    }

    #[test]
    fn total_ahs_in_response_rejected() {
        let mut bytes = header(opcode::SCSI_RESPONSE);
        bytes[4] = 1;
        assert_eq!(
            Response::parse(&bytes).err(),
            Some(FormatError::AdditionalHeader)
        );
    }

    #[test]
    fn reserved_code_is_protocol_error() {
        let mut login = header(opcode::LOGIN_RESPONSE);
        login[1] = 2 << 2;
        assert!(matches!(
            Response::parse(&login),
            Err(FormatError::ReservedCode(..))
        ));
        let reject = header(opcode::REJECT);
        assert!(matches!(
            Response::parse(&reject),
            Err(FormatError::ReservedCode(..))
        ));
        let mut tmf = header(opcode::TMF_RESPONSE);
        tmf[2] = 8;
        assert!(matches!(
            Response::parse(&tmf),
            Err(FormatError::ReservedCode(..))
        ));
    }

    #[test]
    fn format_error_terminates_session() {
        let nop = header(opcode::NOP_IN);
        assert!(matches!(
            Response::parse(&nop),
            Err(FormatError::Contradiction(_))
        ));
        let mut ping = header(opcode::NOP_IN);
        ping[16..20].copy_from_slice(&[0xff; 4]);
        ping[7] = 4;
        assert!(matches!(
            Response::parse(&ping),
            Err(FormatError::Contradiction(_))
        ));
        let mut both = header(opcode::SCSI_RESPONSE);
        both[1] = 0x86;
        assert!(matches!(
            Response::parse(&both),
            Err(FormatError::Contradiction(_))
        ));
    }

    #[test]
    fn reserved_bits_received_ignored() {
        let mut bytes = header(opcode::DATA_IN | 0xc0);
        bytes[1] = 0xf8;
        assert!(matches!(Response::parse(&bytes), Ok(Response::DataIn(_))));
    }

    #[test]
    fn sense_is_clamped() {
        assert_eq!(split_sense(&[]), (&[][..], &[][..]));
        assert_eq!(split_sense(&[0]), (&[][..], &[][..]));
        assert_eq!(split_sense(&[0, 9, 1, 2]), (&[1, 2][..], &[][..]));
        assert_eq!(split_sense(&[0, 1, 1, 2]), (&[1][..], &[2][..]));
    }
}
