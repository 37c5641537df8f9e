//! The deployment's secret, and the keyed hashes that name counters: no identity reaches a store, a log or a label.
//!
//! ```text
//!   counter  = SipHash-2-4-128( domain | limiter as written | kind of state | key entries )   semantics 1 and 2
//! ```
//!
//! Every string is hashed with its length in front, so that `a:b`, `c` and `a`, `b:c` differ.

use std::borrow::Cow;
use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hash128, Hasher128, SipHasher24};

use crate::limiter::LeaseId;
use crate::plan::CounterName;

/// The deployment's secret, from which the keys of all hashes are derived. `Debug` redacts it.
#[derive(Clone)]
pub struct Secret {
    counters: SipHasher24,
    leases: SipHasher24,
    partitions: SipHasher24,
    values: SipHasher24,
    development: bool,
}

impl Secret {
    /// Derives the keys from this text.
    pub fn new(text: &str) -> Self {
        let key = |purpose: &str| {
            // SipHash takes a key of 128 bits: the hash of the whole secret, for one purpose.
            let mut hasher = SipHasher24::new_with_keys(0x746f_6c6c_6761_7465, 1);
            write_text(&mut hasher, purpose);
            write_text(&mut hasher, text);
            let Hash128 { h1, h2 } = hasher.finish128();
            SipHasher24::new_with_keys(h1, h2)
        };
        Self {
            counters: key("counters"),
            leases: key("leases"),
            partitions: key("homes"),
            values: key("values"),
            development: false,
        }
    }

    /// A constant secret, on which instances without a configured one agree. Serving with it logs a warning.
    pub fn development() -> Self {
        Self { development: true, ..Self::new("tollgate development secret") }
    }

    /// Identifies this secret without revealing it. A snapshot contains it, to detect counters of another secret.
    pub(crate) fn fingerprint(&self) -> [u8; 16] {
        let mut hasher = self.counters;
        write_text(&mut hasher, "fingerprint");
        hasher.finish128().as_bytes()
    }

    /// Whether this is [`Secret::development`].
    pub fn is_development(&self) -> bool {
        self.development
    }

    /// The start of a counter's name: everything but the key entries.
    pub fn counters(&self, domain: &str, limiter: &str, kind: &str) -> NamePrefix {
        let mut hasher = self.counters;
        for text in [domain, limiter, kind] {
            write_text(&mut hasher, text);
        }
        NamePrefix { hasher, partitioned: false }
    }

    /// The partitions of counters by the value of this entry: the same for every limiter.
    pub(crate) fn partitions(&self, domain: &str, entry: &str) -> Partitions {
        let mut hasher = self.partitions;
        write_text(&mut hasher, domain);
        write_text(&mut hasher, entry);
        Partitions(hasher)
    }

    /// The hash of the values that these entries have in a request, for one counter: equal values of two counters have
    /// different hashes.
    pub(crate) fn value<'t>(
        &self,
        CounterName(counter): CounterName,
        entries: impl IntoIterator<Item = (&'t str, Cow<'t, str>)>,
    ) -> u64 {
        let mut hasher = self.values;
        counter.iter().for_each(|half| hasher.write(&half.to_le_bytes()));
        for (entry, value) in entries {
            write_text(&mut hasher, entry);
            write_text(&mut hasher, &value);
        }
        hasher.finish128().h1
    }

    /// The id of a lease that is named by these texts.
    pub(crate) fn lease_id<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> LeaseId {
        let mut hasher = self.leases;
        write_text(&mut hasher, "idempotency");
        texts.into_iter().for_each(|text| write_text(&mut hasher, text));
        LeaseId(u128::from_le_bytes(hasher.finish128().as_bytes()))
    }

    /// A short hash of a store's name, for use in a lease.
    pub(crate) fn store_tag(&self, store: &str) -> u32 {
        let mut hasher = self.leases;
        write_text(&mut hasher, store);
        hasher.finish128().h1 as u32
    }

    /// A short hash of a limiter's name as rules write it, for use in a lease.
    pub(crate) fn limiter_tag(&self, limiter: &str) -> u32 {
        let mut hasher = self.leases;
        write_text(&mut hasher, "limiter");
        write_text(&mut hasher, limiter);
        hasher.finish128().h1 as u32
    }

    /// The authentication tag of a lease.
    pub(crate) fn seal(&self, bytes: &[u8]) -> [u8; 16] {
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
    /// Whether the store is partitioned.
    partitioned: bool,
}

/// Partitions by the value of one entry.
#[derive(Clone, Copy)]
pub(crate) struct Partitions(SipHasher24);

impl Partitions {
    /// The partition of counters with this value.
    pub(crate) fn of(mut self, value: &str) -> u16 {
        write_text(&mut self.0, value);
        self.0.finish128().h2 as u16
    }
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Partitions")
    }
}

impl NamePrefix {
    /// Adds one key entry.
    pub fn entry(&mut self, key: &str, value: &str) {
        self.text(key);
        self.text(value);
    }

    /// Adds the key of a key entry or, after that, its value.
    pub fn text(&mut self, text: &str) {
        write_text(&mut self.hasher, text);
    }

    /// The prefix for a partitioned store.
    pub(crate) fn partitioned(self) -> Self {
        Self { partitioned: true, ..self }
    }

    /// Whether the counter's name includes its partition.
    pub(crate) fn is_partitioned(&self) -> bool {
        self.partitioned
    }

    /// Completes the name.
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
}
