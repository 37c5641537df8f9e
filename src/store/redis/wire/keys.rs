//! The keys of counters in Redis.

use smallvec::SmallVec;

use crate::plan::CounterName;

/// The version of the layout of keys and values (semantics 2).
const LAYOUT_VERSION: &str = "1";

/// The key layout of one store.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct Keys {
    /// The prefix of every key, with the version.
    prefix: Vec<u8>,
    /// Whether the partition is the hash tag of keys, as a cluster needs.
    tagged: bool,
}

impl Keys {
    /// Keys that begin with `prefix`.
    pub(in crate::store::redis) fn new(prefix: &str, tagged: bool) -> Self {
        Self { prefix: [prefix, LAYOUT_VERSION].concat().into_bytes(), tagged }
    }

    /// Writes the key of a counter. In a cluster the partition is its hash tag:
    ///
    /// ```text
    ///   tollgate:1 <16 bytes of the name>
    ///   tollgate:1{<partition>}<the first 14 bytes of the name>
    /// ```
    ///
    /// A key of up to 30 bytes takes 32 of Redis, and with the state of a bucket and its expiry 144 to 160.
    pub(super) fn write(&self, counter: CounterName, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&self.prefix);
        let [first, second] = counter.0;
        if self.tagged {
            key.extend_from_slice(&tag(counter.partition()));
            key.extend_from_slice(&first.to_be_bytes());
            key.extend_from_slice(&second.to_be_bytes()[..6]);
        } else {
            key.extend_from_slice(&first.to_be_bytes());
            key.extend_from_slice(&second.to_be_bytes());
        }
    }

    /// The keys that a counter may have: its state, or its leases by expiry; its leases by acquisition; and its holds, by
    /// lease and by their ends.
    pub(in crate::store::redis) fn of(&self, counter: CounterName) -> [Vec<u8>; 4] {
        let mut key = Vec::new();
        self.write(counter, &mut key);
        let with = |suffix: u8| [&key[..], &[suffix]].concat();
        let [acquired, holds, by_end] = [ACQUIRED_SUFFIX, HOLDS_SUFFIX, HOLDS_BY_END_SUFFIX].map(with);
        [key, acquired, holds, by_end]
    }

    /// The prefix of the keys of one partition in a cluster, which determines their hash slot.
    pub(in crate::store::redis) fn in_partition(&self, partition: u16) -> SmallVec<[u8; 64]> {
        let mut prefix = SmallVec::from_slice(&self.prefix);
        prefix.extend_from_slice(&tag(partition));
        prefix
    }

    /// The key that a probe writes. It holds no counter.
    pub(in crate::store::redis) fn probe(&self) -> Vec<u8> {
        [&self.prefix[..], b"probe"].concat()
    }
}

/// The suffix of the key of leases by acquisition.
pub(super) const ACQUIRED_SUFFIX: u8 = b'a';

/// The suffix of the key of holds by lease.
pub(super) const HOLDS_SUFFIX: u8 = b'h';

/// The suffix of the key of holds by their ends.
pub(super) const HOLDS_BY_END_SUFFIX: u8 = b'e';

/// A partition as a hash tag: three characters between braces, none of them a brace.
fn tag(partition: u16) -> [u8; 5] {
    let part = |shift: u16| b'0' + ((partition >> shift) & 0x3f) as u8;
    [b'{', part(12), part(6), part(0), b'}']
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_key_is_short_enough_to_take_little_memory() {
        for tagged in [false, true] {
            let [key, ..] = Keys::new("tollgate:", tagged).of(CounterName([u64::MAX, 1]));
            assert!(key.len() <= 30, "{key:?}");
        }
    }

    #[test]
    fn counters_of_one_partition_have_one_tag_and_still_keys_of_their_own() {
        let keys = Keys::new("tollgate:", true);
        let of = |first, second| keys.of(CounterName([first, second])).map(|key| (key[10..15].to_vec(), key));
        let [(tag, one), others @ ..] = of(1, 0x0001_ffff);
        assert!(others.iter().all(|(other, _)| *other == tag));
        let [(same, another), ..] = of(1, 0x0002_ffff);
        assert_eq!(same, tag);
        assert_ne!(one, another);
        let [(other, _), ..] = of(1, 0x0001_fffe);
        assert_ne!(other, tag);
    }

    #[test]
    fn every_partition_has_a_tag_of_its_own_that_ends_where_it_should() {
        let tags: HashSet<[u8; 5]> = (0..=u16::MAX).map(tag).collect();
        assert_eq!(tags.len(), 1 << 16);
        for [open, inside @ .., close] in tags {
            assert_eq!((open, close), (b'{', b'}'));
            assert!(!inside.contains(&b'}') && !inside.contains(&b'{'), "{inside:?}");
        }
    }
}
