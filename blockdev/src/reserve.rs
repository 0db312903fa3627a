//! Persistent reservations (SPC-4 §5.12, §6.15, §6.16): what is asked of a unit and what it says.
//!
//! The requests are values of their own, so that a multipath layer can fence by key without
//! knowing how a command is carried. Answers are decoded here for the same reason. Whatever is
//! decoded comes from the network: lengths are clamped to what arrived, a header that is too short
//! yields `None`, and a list that was cut short says so, because a key that was not seen is no
//! proof that it is not registered.

/// Bytes of the parameter list of every action but REGISTER AND MOVE.
const PARAMETER_BYTES: usize = 24;
/// Most bytes of an iSCSI name in a TransportID (RFC 7143 §4.2.7.1).
const NAME_BYTES_MAX: usize = 223;

/// Type of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReserveKind {
    /// Write Exclusive: only the holder writes.
    WriteExclusive = 1,
    /// Exclusive Access: only the holder reads or writes.
    ExclusiveAccess = 3,
    /// Write Exclusive – Registrants Only: whoever is registered writes.
    WriteExclusiveRegistrants = 5,
    /// Exclusive Access – Registrants Only.
    ExclusiveAccessRegistrants = 6,
    /// Write Exclusive – All Registrants: every registrant is a holder.
    WriteExclusiveAll = 7,
    /// Exclusive Access – All Registrants.
    ExclusiveAccessAll = 8,
}

impl ReserveKind {
    /// The kind of a type field.
    pub fn from_code(code: u8) -> Option<ReserveKind> {
        Some(match code {
            1 => ReserveKind::WriteExclusive,
            3 => ReserveKind::ExclusiveAccess,
            5 => ReserveKind::WriteExclusiveRegistrants,
            6 => ReserveKind::ExclusiveAccessRegistrants,
            7 => ReserveKind::WriteExclusiveAll,
            8 => ReserveKind::ExclusiveAccessAll,
            _ => return None,
        })
    }
}

/// PERSISTENT RESERVE OUT. Keys are those of the I_T nexus that sends it; scope is the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReserveOut {
    /// REGISTER: replaces the key `own` (0 = none yet) by `new` (0 = unregister).
    Register {
        /// The key that is registered now.
        own: u64,
        /// The key from now on.
        new: u64,
        /// APTPL: registrations survive a power loss of the unit.
        persist: bool,
        /// ALL_TG_PT: on every target port.
        all_ports: bool,
    },
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore {
        /// The key from now on; 0 = unregister.
        new: u64,
        /// APTPL.
        persist: bool,
        /// ALL_TG_PT.
        all_ports: bool,
    },
    /// RESERVE.
    Reserve {
        /// Our registered key.
        own: u64,
        /// Type.
        kind: ReserveKind,
    },
    /// RELEASE.
    Release {
        /// Our registered key.
        own: u64,
        /// Type, as it was reserved.
        kind: ReserveKind,
    },
    /// CLEAR: ends the reservation and every registration.
    Clear {
        /// Our registered key.
        own: u64,
    },
    /// PREEMPT: throws the key `victim` out; its reservation, if it held one, becomes ours.
    Preempt {
        /// Our registered key.
        own: u64,
        /// The key to throw out.
        victim: u64,
        /// Type of the reservation from now on.
        kind: ReserveKind,
    },
    /// PREEMPT AND ABORT: the same, and the victim's tasks are aborted before the answer.
    PreemptAndAbort {
        /// Our registered key.
        own: u64,
        /// The key to throw out.
        victim: u64,
        /// Type of the reservation from now on.
        kind: ReserveKind,
    },
    /// REGISTER AND MOVE: hands registration and reservation to another initiator port.
    RegisterAndMove {
        /// Our registered key.
        own: u64,
        /// The key of the other port.
        new: u64,
        /// UNREG: our own registration ends.
        unregister: bool,
        /// APTPL.
        persist: bool,
        /// Relative target port identifier of the new nexus.
        port: u16,
        /// iSCSI name of the new nexus's initiator.
        initiator: String,
    },
}

/// A request that has no form on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("iSCSI name is empty or longer than 223 bytes")]
pub struct BadName;

impl ReserveOut {
    /// Service action.
    pub fn action(&self) -> u8 {
        match self {
            ReserveOut::Register { .. } => 0,
            ReserveOut::Reserve { .. } => 1,
            ReserveOut::Release { .. } => 2,
            ReserveOut::Clear { .. } => 3,
            ReserveOut::Preempt { .. } => 4,
            ReserveOut::PreemptAndAbort { .. } => 5,
            ReserveOut::RegisterAndIgnore { .. } => 6,
            ReserveOut::RegisterAndMove { .. } => 7,
        }
    }

    /// SCOPE and TYPE: byte 2 of the CDB. The scope of a unit is 0.
    pub fn scope_and_type(&self) -> u8 {
        match *self {
            ReserveOut::Reserve { kind, .. }
            | ReserveOut::Release { kind, .. }
            | ReserveOut::Preempt { kind, .. }
            | ReserveOut::PreemptAndAbort { kind, .. } => kind as u8,
            ReserveOut::Register { .. }
            | ReserveOut::RegisterAndIgnore { .. }
            | ReserveOut::RegisterAndMove { .. }
            | ReserveOut::Clear { .. } => 0,
        }
    }

    /// The parameter list: 0–7 our key, 8–15 the key of the action, 20 ALL_TG_PT 04 and APTPL 01.
    ///
    /// # Errors
    /// Only REGISTER AND MOVE, whose name may not fit a TransportID.
    pub fn parameters(&self) -> Result<Vec<u8>, BadName> {
        let (own, about, flags) = match *self {
            ReserveOut::Register {
                own,
                new,
                persist,
                all_ports,
            } => (own, new, register_flags(persist, all_ports)),
            ReserveOut::RegisterAndIgnore {
                new,
                persist,
                all_ports,
            } => (0, new, register_flags(persist, all_ports)),
            ReserveOut::Reserve { own, .. }
            | ReserveOut::Release { own, .. }
            | ReserveOut::Clear { own } => (own, 0, 0),
            ReserveOut::Preempt { own, victim, .. }
            | ReserveOut::PreemptAndAbort { own, victim, .. } => (own, victim, 0),
            ReserveOut::RegisterAndMove { .. } => return self.move_parameters(),
        };
        let mut list = vec![0; PARAMETER_BYTES];
        list[0..8].copy_from_slice(&own.to_be_bytes());
        list[8..16].copy_from_slice(&about.to_be_bytes());
        list[20] = flags;
        Ok(list)
    }

    /// 17 UNREG 02 and APTPL 01, 18–19 port, 20–23 length, then the TransportID.
    fn move_parameters(&self) -> Result<Vec<u8>, BadName> {
        let ReserveOut::RegisterAndMove {
            own,
            new,
            unregister,
            persist,
            port,
            initiator,
        } = self
        else {
            unreachable!("the caller has matched it");
        };
        if initiator.is_empty() || initiator.len() > NAME_BYTES_MAX {
            return Err(BadName);
        }
        // TransportID of an iSCSI device (SPC-4 §7.6.4.6): 0 protocol 5, 2–3 length, name, NUL.
        let name_len = (initiator.len() + 1).next_multiple_of(4).max(20);
        let mut list = vec![0; PARAMETER_BYTES + 4 + name_len];
        list[0..8].copy_from_slice(&own.to_be_bytes());
        list[8..16].copy_from_slice(&new.to_be_bytes());
        list[17] = u8::from(*unregister) << 1 | u8::from(*persist);
        list[18..20].copy_from_slice(&port.to_be_bytes());
        let transport_id_len = 4 + name_len as u32;
        list[20..24].copy_from_slice(&transport_id_len.to_be_bytes());
        list[24] = 0x05;
        list[26..28].copy_from_slice(&(name_len as u16).to_be_bytes());
        list[28..28 + initiator.len()].copy_from_slice(initiator.as_bytes());
        Ok(list)
    }
}

fn register_flags(persist: bool, all_ports: bool) -> u8 {
    u8::from(all_ports) << 2 | u8::from(persist)
}

/// PERSISTENT RESERVE IN: which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReserveIn {
    /// READ KEYS; see [`keys`].
    Keys = 0,
    /// READ RESERVATION; see [`reservation`].
    Reservation = 1,
    /// REPORT CAPABILITIES; see [`capabilities`].
    Capabilities = 2,
    /// READ FULL STATUS; see [`full_status`].
    FullStatus = 3,
}

/// Answer to READ KEYS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// PRGENERATION: counts changes of registrations.
    pub generation: u32,
    /// A key for every registered I_T nexus, so one may be there many times.
    pub keys: Vec<u64>,
    /// Whether the list is whole.
    pub complete: bool,
}

/// A reservation and its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The holder's key; 0 for the types of all registrants.
    pub key: u64,
    /// Type; `None` = a code that SPC-4 does not have.
    pub kind: Option<ReserveKind>,
}

/// Answer to READ RESERVATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// PRGENERATION.
    pub generation: u32,
    /// Who holds the unit, if anybody does.
    pub holder: Option<Holder>,
}

/// Answer to REPORT CAPABILITIES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// PTPL_C: registrations can be made to survive a power loss.
    pub can_persist: bool,
    /// PTPL_A: they do.
    pub persists: bool,
    /// ATP_C: ALL_TG_PT works.
    pub all_ports: bool,
    /// SIP_C: SPEC_I_PT works.
    pub other_initiators: bool,
    /// CRH: RESERVE(6) and RELEASE(6) of a registrant do nothing.
    pub compatible_reserve: bool,
    /// Types supported; `None` where the unit does not say (TMV = 0).
    pub kinds: Option<u16>,
}

impl Capabilities {
    /// Whether a type is supported; `None` where the unit does not say.
    pub fn supports(&self, kind: ReserveKind) -> Option<bool> {
        let bit = match kind {
            ReserveKind::WriteExclusive => 0x0200,
            ReserveKind::ExclusiveAccess => 0x0800,
            ReserveKind::WriteExclusiveRegistrants => 0x2000,
            ReserveKind::ExclusiveAccessRegistrants => 0x4000,
            ReserveKind::WriteExclusiveAll => 0x8000,
            ReserveKind::ExclusiveAccessAll => 0x0001,
        };
        self.kinds.map(|kinds| kinds & bit != 0)
    }
}

/// One registration of READ FULL STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Its key.
    pub key: u64,
    /// What it holds, if it is a holder.
    pub holds: Option<Holder>,
    /// ALL_TG_PT: it is registered on every target port.
    pub all_ports: bool,
    /// Relative target port identifier of the nexus, unless `all_ports`.
    pub port: u16,
    /// The initiator, as its TransportID names it: `name`, or `name,i,0x` and the ISID; empty if
    /// it is of another transport.
    pub initiator: String,
}

/// Answer to READ FULL STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullStatus {
    /// PRGENERATION.
    pub generation: u32,
    /// Every registered nexus.
    pub registrants: Vec<Registrant>,
    /// Whether the list is whole.
    pub complete: bool,
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// 0–3 PRGENERATION, 4–7 length of what follows; the list, and whether all of it is here.
fn list(data: &[u8]) -> Option<(u32, &[u8], bool)> {
    let generation = u32_at(data, 0)?;
    let len = u32_at(data, 4)? as usize;
    let rest = data.get(8..)?;
    let complete = rest.len() >= len;
    Some((generation, &rest[..len.min(rest.len())], complete))
}

/// Decodes READ KEYS.
pub fn keys(data: &[u8]) -> Option<Keys> {
    let (generation, list, complete) = list(data)?;
    let keys = list.chunks_exact(8).filter_map(|key| u64_at(key, 0));
    Some(Keys {
        generation,
        keys: keys.collect(),
        complete: complete && list.len() % 8 == 0,
    })
}

/// Decodes READ RESERVATION: of the list 0–7 key, 13 scope and type.
pub fn reservation(data: &[u8]) -> Option<Reservation> {
    let (generation, list, complete) = list(data)?;
    if !complete {
        return None;
    }
    let holder = match list {
        [] => None,
        _ => Some(Holder {
            key: u64_at(list, 0)?,
            kind: ReserveKind::from_code(list.get(13)? & 0x0f),
        }),
    };
    Some(Reservation { generation, holder })
}

/// Decodes REPORT CAPABILITIES: 0–1 length (8), 2–3 flags, 4–5 type mask.
pub fn capabilities(data: &[u8]) -> Option<Capabilities> {
    let (can, does) = (*data.get(2)?, *data.get(3)?);
    let kinds = u16_at(data, 4)?;
    Some(Capabilities {
        can_persist: can & 0x01 != 0,
        persists: does & 0x01 != 0,
        all_ports: can & 0x04 != 0,
        other_initiators: can & 0x08 != 0,
        compatible_reserve: can & 0x10 != 0,
        kinds: (does & 0x80 != 0).then_some(kinds),
    })
}

/// Decodes READ FULL STATUS: of each descriptor 0–7 key, 12 ALL_TG_PT 02 and R_HOLDER 01, 13 scope
/// and type, 18–19 port, 20–23 length of the TransportID that follows.
pub fn full_status(data: &[u8]) -> Option<FullStatus> {
    let (generation, mut rest, mut complete) = list(data)?;
    let mut registrants = Vec::new();
    while !rest.is_empty() {
        let Some(registrant) = registrant(rest) else {
            complete = false;
            break;
        };
        let whole = 24 + u32_at(rest, 20)? as usize;
        rest = &rest[whole..];
        registrants.push(registrant);
    }
    Some(FullStatus {
        generation,
        registrants,
        complete,
    })
}

fn registrant(bytes: &[u8]) -> Option<Registrant> {
    let key = u64_at(bytes, 0)?;
    let flags = *bytes.get(12)?;
    let kind = ReserveKind::from_code(bytes.get(13)? & 0x0f);
    let len = u32_at(bytes, 20)? as usize;
    let transport_id = bytes.get(24..)?.get(..len)?;
    Some(Registrant {
        key,
        holds: (flags & 0x01 != 0).then_some(Holder { key, kind }),
        all_ports: flags & 0x02 != 0,
        port: u16_at(bytes, 18)?,
        initiator: iscsi_name(transport_id).unwrap_or_default(),
    })
}

/// The name in a TransportID of protocol 5 (iSCSI), up to its NUL. istgt 0.4 leaves the four bytes
/// before the name out.
fn iscsi_name(transport_id: &[u8]) -> Option<String> {
    let text = if [b"iqn.", b"eui.", b"naa."].contains(&transport_id.first_chunk()?) {
        transport_id
    } else if transport_id.first()? & 0x0f == 5 {
        let len = usize::from(u16_at(transport_id, 2)?);
        let text = transport_id.get(4..)?;
        &text[..len.min(text.len())]
    } else {
        return None;
    };
    let text = text.split(|&byte| byte == 0).next()?;
    let is_plain = text.iter().all(|byte| (0x20..0x7f).contains(byte));
    is_plain.then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Byte strings written out from SPC-4 §6.16.
    #[test]
    fn every_action_has_its_parameters() {
        let kind = ReserveKind::WriteExclusiveRegistrants;
        let (own, victim) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
        let cases = [
            (
                ReserveOut::Register {
                    own,
                    new: victim,
                    persist: true,
                    all_ports: false,
                },
                (0, 0),
                (own, victim, 0x01),
            ),
            (
                ReserveOut::RegisterAndIgnore {
                    new: own,
                    persist: false,
                    all_ports: true,
                },
                (6, 0),
                (0, own, 0x04),
            ),
            (ReserveOut::Reserve { own, kind }, (1, 5), (own, 0, 0)),
            (ReserveOut::Release { own, kind }, (2, 5), (own, 0, 0)),
            (ReserveOut::Clear { own }, (3, 0), (own, 0, 0)),
            (
                ReserveOut::Preempt { own, victim, kind },
                (4, 5),
                (own, victim, 0),
            ),
            (
                ReserveOut::PreemptAndAbort { own, victim, kind },
                (5, 5),
                (own, victim, 0),
            ),
        ];
        for (request, (action, kind), (first, second, flags)) in cases {
            assert_eq!((request.action(), request.scope_and_type()), (action, kind));
            let list = request.parameters().expect("a form");
            let mut wanted = [0; 24];
            wanted[..8].copy_from_slice(&u64::to_be_bytes(first));
            wanted[8..16].copy_from_slice(&u64::to_be_bytes(second));
            wanted[20] = flags;
            assert_eq!(list, wanted, "{request:?}");
        }
    }

    #[test]
    fn register_and_move_names_the_other_port() {
        let request = |initiator: &str| ReserveOut::RegisterAndMove {
            own: 1,
            new: 2,
            unregister: true,
            persist: true,
            port: 3,
            initiator: initiator.to_owned(),
        };
        let list = request("iqn.2024-12.a:b").parameters().expect("a form");
        assert_eq!(list.len(), 48);
        assert_eq!(list[16..28], [0, 3, 0, 3, 0, 0, 0, 24, 5, 0, 0, 20]);
        assert_eq!(&list[28..44], b"iqn.2024-12.a:b\0");
        assert_eq!(iscsi_name(&list[24..]).as_deref(), Some("iqn.2024-12.a:b"));
        assert!(request(&"x".repeat(223)).parameters().is_ok());
        assert_eq!(request(&"x".repeat(224)).parameters(), Err(BadName));
        assert_eq!(request("").parameters(), Err(BadName));
    }

    #[test]
    fn keys_say_whether_all_are_there() {
        let mut data = vec![0, 0, 0, 7, 0, 0, 0, 16];
        data.extend(1u64.to_be_bytes());
        data.extend(2u64.to_be_bytes());
        let whole = keys(&data).expect("header");
        assert_eq!((whole.generation, whole.complete), (7, true));
        assert_eq!(whole.keys, [1, 2]);
        let cut = keys(&data[..20]).expect("header");
        assert_eq!((cut.keys, cut.complete), (vec![1], false));
        assert_eq!(keys(&data[..7]), None);
    }

    #[test]
    fn reservation_with_and_without_holder() {
        let mut data = vec![0, 0, 0, 9, 0, 0, 0, 0];
        let free = reservation(&data).expect("header");
        assert_eq!((free.generation, free.holder), (9, None));
        data[7] = 16;
        data.extend(5u64.to_be_bytes());
        data.extend([0, 0, 0, 0, 0, 0x05, 0, 0]);
        let held = reservation(&data).expect("header").holder.expect("holder");
        assert_eq!(held.key, 5);
        assert_eq!(held.kind, Some(ReserveKind::WriteExclusiveRegistrants));
        assert_eq!(reservation(&data[..23]), None, "a cut answer is no answer");
    }

    #[test]
    fn capabilities_with_and_without_a_mask() {
        let told = capabilities(&[0, 8, 0x1d, 0x81, 0xea, 0x01, 0, 0]).expect("8 bytes");
        assert!(told.can_persist && told.persists && told.all_ports);
        assert!(told.other_initiators && told.compatible_reserve);
        for code in 0..=15 {
            if let Some(kind) = ReserveKind::from_code(code) {
                assert_eq!(kind as u8, code);
                assert_eq!(told.supports(kind), Some(true), "{kind:?}");
            }
        }
        let silent = capabilities(&[0, 8, 0, 0, 0xff, 0xff, 0, 0]).expect("8 bytes");
        assert_eq!(silent.supports(ReserveKind::WriteExclusive), None);
        assert_eq!(capabilities(&[0, 8, 0, 0, 0]), None);
    }

    #[test]
    fn full_status_names_every_nexus() {
        let mut data = vec![0, 0, 0, 2, 0, 0, 0, 0];
        for (key, flags, name) in [(1u64, 0x01, "iqn.a:1"), (2, 0x02, "iqn.b:2,i,0x8000")] {
            let mut one = vec![0; 24];
            one[..8].copy_from_slice(&key.to_be_bytes());
            one[12] = flags;
            one[13] = 5;
            one[19] = 1;
            let text_len = (name.len() + 1).next_multiple_of(4);
            one[23] = 4 + text_len as u8;
            one.extend([0x05, 0, 0, text_len as u8]);
            one.extend(name.as_bytes());
            one.resize(28 + text_len, 0);
            data.extend(one);
        }
        data[7] = (data.len() - 8) as u8;
        let status = full_status(&data).expect("header");
        assert!(status.complete);
        let [first, second] = &status.registrants[..] else {
            panic!("{status:?}");
        };
        assert_eq!(
            (first.key, &*first.initiator, first.port),
            (1, "iqn.a:1", 1)
        );
        assert_eq!(first.holds.map(|held| held.key), Some(1));
        assert_eq!(&*second.initiator, "iqn.b:2,i,0x8000");
        assert!(second.all_ports && second.holds.is_none());
        assert_eq!(
            iscsi_name(b"iqn.c:3,i,0x80\0").as_deref(),
            Some("iqn.c:3,i,0x80")
        );
        assert_eq!(iscsi_name(&[0x06, 0, 0, 4, b'i', b'q', b'n', b'.']), None);
        let cut = full_status(&data[..data.len() - 1]).expect("header");
        assert_eq!((cut.registrants.len(), cut.complete), (1, false));
    }

    proptest! {
        #[test]
        fn anything_decodes_or_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = (keys(&bytes), reservation(&bytes), capabilities(&bytes), full_status(&bytes));
        }
    }
}
