//! The names of counters, and of leases: keyed hashes, so that no identity reaches a store, a log or a label.
//!
//! ```text
//!   counter  = SipHash-2-4-128( domain | limiter as written | kind of state | key entries )   semantics 1 and 2
//!   lease    = base64url( version | id | (store | counter) x 1..8 | SipHash-2-4-128 of all before )   semantics 24
//! ```
//!
//! Every text is written with its length before it, so that `a:b`, `c` is never `a`, `b:c`.

use std::fmt;
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use siphasher::sip128::{Hash128, Hasher128, SipHasher24};
use smallvec::SmallVec;

use crate::limiter::LeaseId;
use crate::plan::CounterName;

/// The most slots that one lease holds.
pub const MOST_SLOTS_A_LEASE: usize = 8;

/// The deployment's secret, from which the keys of all hashes are made. It never prints.
#[derive(Clone)]
pub struct Secret {
    counters: SipHasher24,
    leases: SipHasher24,
    homes: SipHasher24,
    development: bool,
}

impl Secret {
    /// The keys made from this text.
    pub fn new(text: &str) -> Self {
        let key = |purpose: &str| {
            // SipHash takes 128 bits: both halves come from hashing the whole secret for one purpose.
            let mut hasher = SipHasher24::new_with_keys(0x746f_6c6c_6761_7465, 1);
            write_text(&mut hasher, purpose);
            write_text(&mut hasher, text);
            let Hash128 { h1, h2 } = hasher.finish128();
            SipHasher24::new_with_keys(h1, h2)
        };
        Self { counters: key("counters"), leases: key("leases"), homes: key("homes"), development: false }
    }

    /// A constant, so that instances without a secret agree. Whoever serves with it is warned.
    pub fn development() -> Self {
        Self { development: true, ..Self::new("tollgate development secret") }
    }

    /// Tells this secret from another without telling it: whose counters a snapshot holds.
    pub fn fingerprint(&self) -> [u8; 16] {
        let mut hasher = self.counters;
        write_text(&mut hasher, "fingerprint");
        hasher.finish128().as_bytes()
    }

    /// Whether this is the constant.
    pub fn is_development(&self) -> bool {
        self.development
    }

    /// Starts a counter's name: everything but the key entries.
    pub fn counters(&self, domain: &str, limiter: &str, kind: &str) -> NamePrefix {
        let mut hasher = self.counters;
        for text in [domain, limiter, kind] {
            write_text(&mut hasher, text);
        }
        NamePrefix { hasher, homed: false }
    }

    /// Where counters live whose keys have this entry: the same for every limiter.
    pub(super) fn homes(&self, domain: &str, entry: &str) -> Homes {
        let mut hasher = self.homes;
        write_text(&mut hasher, domain);
        write_text(&mut hasher, entry);
        Homes(hasher)
    }

    /// A short number for a store's name, for the inside of a lease.
    fn store_tag(&self, store: &str) -> u32 {
        let mut hasher = self.leases;
        write_text(&mut hasher, store);
        hasher.finish128().h1 as u32
    }

    /// What proves that a lease was handed out by this deployment.
    fn seal(&self, bytes: &[u8]) -> [u8; 16] {
        let mut hasher = self.leases;
        hasher.write(bytes);
        hasher.finish128().as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A counter's name up to its key entries.
#[derive(Clone, Copy)]
pub struct NamePrefix {
    hasher: SipHasher24,
    /// Whether its store wants to know where the counter lives.
    homed: bool,
}

/// Places by the value of one entry.
#[derive(Clone, Copy)]
pub(super) struct Homes(SipHasher24);

impl Homes {
    /// The place of counters with this value.
    pub(super) fn of(mut self, value: &str) -> u16 {
        write_text(&mut self.0, value);
        self.0.finish128().h2 as u16
    }
}

impl fmt::Debug for Homes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Homes")
    }
}

impl NamePrefix {
    /// Adds one key entry.
    pub fn entry(&mut self, key: &str, value: &str) {
        self.text(key);
        self.text(value);
    }

    /// Adds half of a key entry: its key, or after that its value.
    pub fn text(&mut self, text: &str) {
        write_text(&mut self.hasher, text);
    }

    /// For a store that keeps counters in many places.
    pub(super) fn homed(self) -> Self {
        Self { homed: true, ..self }
    }

    /// Whether the counter's home is to be a part of its name.
    pub(super) fn is_homed(&self) -> bool {
        self.homed
    }

    /// The whole name.
    pub fn name(self) -> CounterName {
        let Hash128 { h1, h2 } = self.hasher.finish128();
        CounterName([h1, h2])
    }
}

impl fmt::Debug for NamePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamePrefix")
    }
}

fn write_text(hasher: &mut SipHasher24, text: &str) {
    let length = (text.len() as u64).to_le_bytes();
    let mut both = [0; 64];
    match both.get_mut(..length.len() + text.len()) {
        // Most texts are short, and one write costs less than two.
        Some(both) => {
            both[..length.len()].copy_from_slice(&length);
            both[length.len()..].copy_from_slice(text.as_bytes());
            hasher.write(both);
        }
        None => {
            hasher.write(&length);
            hasher.write(text.as_bytes());
        }
    }
}

/// Makes lease ids: unique over all instances, because each starts from its own 64 random bits.
#[derive(Debug)]
pub struct LeaseIds {
    instance: u64,
    next: AtomicU64,
}

impl LeaseIds {
    /// Draws the random bits.
    pub fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the operating system has random numbers");
        Self { instance: u64::from_le_bytes(random), next: AtomicU64::new(1) }
    }

    /// An id that was never handed out.
    pub fn make(&self) -> LeaseId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        LeaseId(u128::from(self.instance) << 64 | u128::from(count))
    }
}

impl Default for LeaseIds {
    fn default() -> Self {
        Self::new()
    }
}

/// What a lease's text says: its id, and where its slots are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    /// The id under which the slots are held.
    pub id: LeaseId,
    /// The stores (by their place among the configured ones) and counters of the slots.
    pub slots: SmallVec<[(u16, CounterName); 2]>,
}

const TOKEN_VERSION: u8 = 1;
const SLOT_BYTES: usize = 20;
const SEAL_BYTES: usize = 16;

impl LeaseToken {
    /// The text that is handed out.
    pub fn seal(&self, secret: &Secret, stores: &[String]) -> String {
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

    /// Reads a text that this deployment handed out; anything else is `None`. A slot in a store that is no longer
    /// configured is left out: its lease expires by itself.
    pub fn open(text: &str, secret: &Secret, stores: &[String]) -> Option<Self> {
        let longest = (17 + MOST_SLOTS_A_LEASE * SLOT_BYTES + SEAL_BYTES).div_ceil(3) * 4;
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
    fn semantics_01_key_parts_cannot_collide() {
        let secret = Secret::new("s");
        let name = |entries: &[(&str, &str)]| {
            let mut prefix = secret.counters("edge", "login", "token_bucket");
            entries.iter().for_each(|(key, value)| prefix.entry(key, value));
            prefix.name()
        };
        assert_ne!(name(&[("x", "a:b"), ("y", "c")]), name(&[("x", "a"), ("y", "b:c")]));
        assert_ne!(name(&[("x", "ab")]), name(&[("xa", "b")]));
        assert_eq!(name(&[("x", "ab")]), name(&[("x", "ab")]));
    }

    #[test]
    fn semantics_02_another_secret_gives_other_names_and_the_development_default_is_constant() {
        let name = |secret: &Secret| secret.counters("edge", "login", "token_bucket").name();
        assert_ne!(name(&Secret::new("a")), name(&Secret::new("b")));
        assert_eq!(name(&Secret::development()), name(&Secret::development()));
        assert!(Secret::development().is_development());
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(***)");
    }

    #[test]
    fn semantics_24_only_a_genuine_lease_opens() {
        let secret = Secret::new("s");
        let stores = ["main".to_owned(), "other".to_owned()];
        let slots = [(1, CounterName([7, 8])), (0, CounterName([9, 10]))].into_iter().collect();
        let token = LeaseToken { id: LeaseIds::new().make(), slots };
        let text = token.seal(&secret, &stores);
        assert_eq!(LeaseToken::open(&text, &secret, &stores), Some(token));
        assert_eq!(LeaseToken::open(&text, &Secret::new("t"), &stores), None);
        for place in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[place] = if forged[place] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ascii");
            // The last character carries spare bits; a text that decodes to the same bytes is refused by the decoder.
            assert_eq!(LeaseToken::open(&forged, &secret, &stores), None, "character {place}");
        }
        for junk in ["", "L17", "AQ", "\u{1F600}", &"A".repeat(100_000)] {
            assert_eq!(LeaseToken::open(junk, &secret, &stores), None);
        }
    }
}
