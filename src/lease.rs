//! Leases: the ids under which slots are held, and the sealed text that a client receives.
//!
//! ```text
//!   lease    = base64url( version | id | (store | counter) x 1..8 | SipHash-2-4-128 of all before )   semantics 24
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::limiter::LeaseId;
use crate::plan::CounterName;
use crate::secret::Secret;

/// Maximum number of slots under one lease.
pub(crate) const MAX_SLOTS_PER_LEASE: usize = 8;

/// A generator of lease ids, unique across all instances: each generator adds its own 64 random bits.
#[derive(Debug)]
pub(crate) struct LeaseIds {
    instance: u64,
    next: AtomicU64,
}

impl LeaseIds {
    /// Creates a generator with new random bits.
    pub(crate) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the operating system has random numbers");
        Self { instance: u64::from_le_bytes(random), next: AtomicU64::new(1) }
    }

    /// Returns a new, unique id.
    pub(crate) fn next_id(&self) -> LeaseId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        LeaseId(u128::from(self.instance) << 64 | u128::from(count))
    }
}

impl Default for LeaseIds {
    fn default() -> Self {
        Self::new()
    }
}

/// The contents of a sealed lease: its id, and the counters that hold its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    /// The id under which the slots are held.
    pub id: LeaseId,
    /// For each slot, the index of its store among the configured ones, and its counter.
    pub slots: SmallVec<[(u16, CounterName); 2]>,
}

const TOKEN_VERSION: u8 = 1;
const SLOT_BYTES: usize = 20;
const SEAL_BYTES: usize = 16;

impl LeaseToken {
    /// Returns the sealed text, in base64url.
    pub(crate) fn seal(&self, secret: &Secret, stores: &[String]) -> String {
        let mut bytes = Vec::with_capacity(17 + self.slots.len() * SLOT_BYTES + SEAL_BYTES);
        bytes.push(TOKEN_VERSION);
        bytes.extend(self.id.0.to_le_bytes());
        for (store, counter) in &self.slots {
            let name = stores.get(usize::from(*store)).map_or("", String::as_str);
            bytes.extend(secret.store_tag(name).to_le_bytes());
            bytes.extend(counter.0.iter().flat_map(|half| half.to_le_bytes()));
        }
        let seal = secret.seal(&bytes);
        bytes.extend(seal);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Opens a lease that this deployment sealed; returns `None` for any other text. A slot in a store that is no
    /// longer configured is left out; its lease expires.
    #[expect(clippy::missing_panics_doc, reason = "the slices have the lengths that their chunks have")]
    pub fn open(text: &str, secret: &Secret, stores: &[String]) -> Option<Self> {
        let longest = (17 + MAX_SLOTS_PER_LEASE * SLOT_BYTES + SEAL_BYTES).div_ceil(3) * 4;
        if text.len() > longest {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
        if secret.seal(body) != seal {
            return None;
        }
        let (&TOKEN_VERSION, body) = body.split_first()? else { return None };
        let (id, slots) = body.split_first_chunk::<16>()?;
        let slots = slots.chunks_exact(SLOT_BYTES).filter_map(|slot| {
            let number = |from: usize| u64::from_le_bytes(slot[from..from + 8].try_into().expect("eight bytes"));
            let tag = u32::from_le_bytes(slot[..4].try_into().expect("four bytes"));
            let store = stores.iter().position(|store| secret.store_tag(store) == tag)?;
            Some((u16::try_from(store).ok()?, CounterName([number(4), number(12)])))
        });
        Some(Self { id: LeaseId(u128::from_le_bytes(*id)), slots: slots.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_24_only_a_genuine_lease_opens() {
        let secret = Secret::new("s");
        let stores = ["main".to_owned(), "other".to_owned()];
        let slots = [(1, CounterName([7, 8])), (0, CounterName([9, 10]))].into_iter().collect();
        let token = LeaseToken { id: LeaseIds::new().next_id(), slots };
        let text = token.seal(&secret, &stores);
        assert_eq!(LeaseToken::open(&text, &secret, &stores), Some(token));
        assert_eq!(LeaseToken::open(&text, &Secret::new("t"), &stores), None);
        for index in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ascii");
            // The last character has unused bits; the decoder rejects a text in which they are set.
            assert_eq!(LeaseToken::open(&forged, &secret, &stores), None, "character {index}");
        }
        for junk in ["", "L17", "AQ", "\u{1F600}", &"A".repeat(100_000)] {
            assert_eq!(LeaseToken::open(junk, &secret, &stores), None);
        }
    }
}
