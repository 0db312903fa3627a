//! Big-endian fields, and packets of a fixed length declared as structs of them.
//!
//! A [`Cursor`] takes fields off received bytes and never panics; `packet!` declares a struct
//! whose fields stand in the order of the wire, with its length asserted at compile time.

use chunk_api::{ChunkId, ChunkVersion};
use std::net::{Ipv4Addr, SocketAddrV4};
use thiserror::Error;

/// A packet that is not what its type promises. The connection it came from is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed packet {kind} of {len} bytes: {what}")]
pub struct Malformed {
    /// Type of the packet.
    pub kind: u32,
    /// Length of its payload in bytes.
    pub len: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Fewer bytes than the field needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short;

/// Reads fields from the front of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// At the beginning of `payload`.
    pub fn new(payload: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: payload }
    }

    /// Bytes not yet taken.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Takes one field.
    pub fn get<F: Field>(&mut self) -> Result<F, Short> {
        F::get(self)
    }

    /// Takes a `NAME`: one byte of length, then that many bytes (kept as lossy UTF-8).
    pub fn name(&mut self) -> Result<String, Short> {
        let len = self.get::<u8>()?;
        Ok(String::from_utf8_lossy(self.bytes(usize::from(len))?).into_owned())
    }

    /// Ends here: `Err` when bytes are left.
    pub fn end(&self) -> Result<(), Short> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Short)
        }
    }
}

/// A value of a fixed number of bytes, big-endian.
pub trait Field: Sized {
    /// Its bytes on the wire.
    const LEN: usize;
    /// Takes it off the front.
    fn get(from: &mut Cursor<'_>) -> Result<Self, Short>;
    /// Appends it.
    fn put(&self, to: &mut Vec<u8>);
}

macro_rules! integer {
    ($($int:ty),*) => {$(
        impl Field for $int {
            const LEN: usize = size_of::<$int>();
            fn get(from: &mut Cursor<'_>) -> Result<Self, Short> {
                from.array().map(<$int>::from_be_bytes)
            }
            fn put(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_be_bytes());
            }
        }
    )*};
}
integer!(u8, u16, u32, u64);

impl Field for ChunkId {
    const LEN: usize = 8;
    fn get(from: &mut Cursor<'_>) -> Result<Self, Short> {
        from.get().map(ChunkId)
    }
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }
}

impl Field for ChunkVersion {
    const LEN: usize = 4;
    fn get(from: &mut Cursor<'_>) -> Result<Self, Short> {
        from.get().map(ChunkVersion)
    }
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
    }
}

impl Field for Ipv4Addr {
    const LEN: usize = 4;
    fn get(from: &mut Cursor<'_>) -> Result<Self, Short> {
        from.get::<u32>().map(Ipv4Addr::from)
    }
    fn put(&self, to: &mut Vec<u8>) {
        u32::from(*self).put(to);
    }
}

/// `ip u32, port u16`.
impl Field for SocketAddrV4 {
    const LEN: usize = 6;
    fn get(from: &mut Cursor<'_>) -> Result<Self, Short> {
        Ok(SocketAddrV4::new(from.get()?, from.get()?))
    }
    fn put(&self, to: &mut Vec<u8>) {
        self.ip().put(to);
        self.port().put(to);
    }
}

/// Appends a `NAME`, cut at 255 bytes.
pub fn put_name(name: &str, to: &mut Vec<u8>) {
    let bytes = &name.as_bytes()[..name.len().min(255)];
    to.push(bytes.len() as u8);
    to.extend_from_slice(bytes);
}

/// Parses a payload that is exactly one value.
pub fn exactly<F: Field>(kind: u32, payload: &[u8]) -> Result<F, Malformed> {
    let mut cursor = Cursor::new(payload);
    let value = cursor.get().and_then(|value| cursor.end().map(|()| value));
    value.map_err(|Short| Malformed {
        kind,
        len: payload.len(),
        what: "wrong length",
    })
}

/// Declares a packet (or a part of one): fields in wire order, length in bytes checked when
/// compiled.
macro_rules! packet {
    ($(#[$meta:meta])* $name:ident = $len:literal {
        $($(#[$field_meta:meta])* $field:ident: $ty:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty),* }

        impl $crate::proto::field::Field for $name {
            const LEN: usize = 0 $(+ <$ty as $crate::proto::field::Field>::LEN)*;
            fn get(
                from: &mut $crate::proto::field::Cursor<'_>,
            ) -> Result<Self, $crate::proto::field::Short> {
                Ok($name { $($field: from.get()?),* })
            }
            fn put(&self, to: &mut Vec<u8>) {
                $($crate::proto::field::Field::put(&self.$field, to);)*
            }
        }

        const _: () = assert!(<$name as $crate::proto::field::Field>::LEN == $len);
    };
}
pub(crate) use packet;
