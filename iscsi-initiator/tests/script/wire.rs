//! PDUs as a target sees and sends them: bytes at offsets, on purpose without the types of the
//! initiator, so that both sides cannot share one mistake.

use iscsi_initiator::digest::digest;

/// A PDU to be sent: every byte of the header can be changed. The data length in it is set when
/// it is encoded, unless `keeps_len`.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) header: [u8; 48],
    pub(crate) data: Vec<u8>,
    pub(crate) keeps_len: bool,
}

impl Pdu {
    pub(crate) fn new(opcode: u8, flags: u8) -> Pdu {
        let mut header = [0; 48];
        header[0] = opcode;
        header[1] = flags;
        Pdu {
            header,
            data: Vec::new(),
            keeps_len: false,
        }
    }

    pub(crate) fn set_u32(&mut self, at: usize, value: u32) {
        self.header[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32_at(&self.header, at)
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    /// The bytes on the wire, appended to `out`.
    pub(crate) fn encode(&self, digests: Digests, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&self.header);
        if !self.keeps_len {
            out[at + 5..at + 8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        }
        seal(out, at, digests.header);
        if !self.data.is_empty() {
            let from = out.len();
            out.extend_from_slice(&self.data);
            out.resize(from + self.data.len().next_multiple_of(4), 0);
            seal(out, from, digests.data);
        }
    }
}

/// Appends the digest of everything from `from` on.
pub(crate) fn seal(out: &mut Vec<u8>, from: usize, wanted: bool) {
    if wanted {
        let sum = digest(&out[from..]);
        out.extend_from_slice(&sum);
    }
}

/// Which digests a connection has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A request as it was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) header: &'a [u8; 48],
    pub(crate) data: &'a [u8],
}

impl Request<'_> {
    pub(crate) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.header[0] & 0x40 != 0
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32_at(self.header, at)
    }

    pub(crate) fn tag(&self) -> u32 {
        self.u32(16)
    }

    pub(crate) fn cdb(&self) -> &[u8] {
        &self.header[32..48]
    }
}

/// Takes one request off the front of `bytes`: it and its length; `None` if it is not whole.
///
/// # Panics
/// If a digest is wrong or padding is not zero: the initiator is what is tested.
pub(crate) fn split(bytes: &[u8], digests: Digests) -> Option<(Request<'_>, usize)> {
    let header: &[u8; 48] = bytes.first_chunk()?;
    let head = 48 + 4 * usize::from(header[4]);
    let data_at = head + 4 * usize::from(digests.header);
    let len = u32_at(&[0, header[5], header[6], header[7]], 0) as usize;
    let padded = len.next_multiple_of(4);
    let end = data_at + padded + 4 * usize::from(digests.data && len > 0);
    if bytes.len() < end {
        return None;
    }
    if digests.header {
        assert_eq!(
            digest(&bytes[..head]),
            bytes[head..data_at],
            "header digest"
        );
    }
    let padded_data = &bytes[data_at..data_at + padded];
    if digests.data && len > 0 {
        assert_eq!(
            digest(padded_data),
            bytes[data_at + padded..end],
            "data digest"
        );
    }
    assert!(padded_data[len..].iter().all(|&byte| byte == 0), "padding");
    let data = &padded_data[..len];
    Some((Request { header, data }, end))
}
