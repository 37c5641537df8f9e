//! What counters are called in Redis.

use smallvec::SmallVec;

use crate::plan::CounterName;

/// The version of the layout of keys and of what is in them (semantics 2).
const LAYOUT: &str = "1";

/// How counters are called in this Redis.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct Keys {
    /// What every key begins with.
    start: Vec<u8>,
    /// Whether keys of one partition are in one slot of a cluster.
    tagged: bool,
}

impl Keys {
    /// Keys that begin with `prefix`.
    pub(in crate::store::redis) fn new(prefix: &str, tagged: bool) -> Self {
        Self { start: [prefix, LAYOUT].concat().into_bytes(), tagged }
    }

    /// The key of a counter. In a cluster the partition is its hash tag:
    ///
    /// ```text
    ///   tollgate:1 <16 bytes of the name>
    ///   tollgate:1{<partition>}<the first 14 bytes of the name>
    /// ```
    ///
    /// A key of up to 31 bytes with the state of a bucket takes 88 bytes of Redis.
    pub(super) fn write(&self, counter: CounterName, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&self.start);
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

    /// The keys that a counter may have: what it counts, and since when its leases are held.
    pub(in crate::store::redis) fn of(&self, counter: CounterName) -> [Vec<u8>; 2] {
        let mut key = Vec::new();
        self.write(counter, &mut key);
        let mut beside = key.clone();
        beside.push(BESIDE);
        [key, beside]
    }

    /// What the keys of one partition begin with in a cluster, which decides their slot.
    pub(in crate::store::redis) fn in_partition(&self, partition: u16) -> SmallVec<[u8; 64]> {
        let mut start = SmallVec::from_slice(&self.start);
        start.extend_from_slice(&tag(partition));
        start
    }

    /// A key that holds no counter, to try whether keys can be written.
    pub(in crate::store::redis) fn probe(&self) -> Vec<u8> {
        [&self.start[..], b"probe"].concat()
    }
}

/// What the key of the second set of leases ends with.
pub(super) const BESIDE: u8 = b'a';

/// A partition in three characters between braces. They are never empty and never a brace, which would end the tag.
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
            let [key, _] = Keys::new("tollgate:", tagged).of(CounterName([u64::MAX, 1]));
            assert!(key.len() <= 31, "{key:?}");
        }
    }

    #[test]
    fn counters_of_one_home_have_one_tag_and_still_two_keys() {
        let keys = Keys::new("tollgate:", true);
        let of = |first, second| keys.of(CounterName([first, second])).map(|key| (key[10..15].to_vec(), key));
        let [(tag, one), (beside, _)] = of(1, 0x0001_ffff);
        assert_eq!(tag, beside);
        let [(same, another), _] = of(1, 0x0002_ffff);
        assert_eq!(same, tag);
        assert_ne!(one, another);
        let [(other, _), _] = of(1, 0x0001_fffe);
        assert_ne!(other, tag);
    }

    #[test]
    fn every_home_has_a_tag_of_its_own_that_ends_where_it_should() {
        let tags: HashSet<[u8; 5]> = (0..=u16::MAX).map(tag).collect();
        assert_eq!(tags.len(), 1 << 16);
        for [open, inside @ .., close] in tags {
            assert_eq!((open, close), (b'{', b'}'));
            assert!(!inside.contains(&b'}') && !inside.contains(&b'{'), "{inside:?}");
        }
    }
}
