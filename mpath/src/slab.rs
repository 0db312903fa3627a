//! Slots with reusable indices and tokens that never name a later tenant.

/// Names a slot and its tenant: generation in the upper half, index in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u64);

pub(crate) struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 slots")
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.1.is_none(), "a free slot is empty");
        slot.1 = Some(value);
        Token(u64::from(slot.0) << 32 | u64::from(index))
    }

    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get((token.0 & 0xFFFF_FFFF) as usize)?;
        (u64::from(slot.0) == token.0 >> 32)
            .then_some(slot.1.as_ref())
            .flatten()
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut((token.0 & 0xFFFF_FFFF) as usize)?;
        if u64::from(slot.0) != token.0 >> 32 {
            return None;
        }
        slot.1.as_mut()
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let index = (token.0 & 0xFFFF_FFFF) as usize;
        let slot = self.slots.get_mut(index)?;
        if u64::from(slot.0) != token.0 >> 32 {
            return None;
        }
        let value = slot.1.take()?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(index as u32);
        Some(value)
    }

    /// In the order of the slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let token = Token(u64::from(slot.0) << 32 | index as u64);
            slot.1.as_ref().map(|value| (token, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_names_the_next_tenant() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        assert_eq!(slab.remove(a), Some('a'));
        let b = slab.insert('b');
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&'b'));
        assert_eq!(slab.iter().count(), 1);
    }
}
