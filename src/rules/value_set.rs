//! A set of values, blocks of addresses and patterns, which is looked up without a scan.
//!
//! ```text
//!   exact      one hash of the value; a slot of 5 to 10 bytes for each value, beside its text
//!   blocks     one binary search; 5 bytes for a block of IPv4 addresses, 17 for one of IPv6 addresses
//!   prefix*    one binary search; 4 bytes beside its text
//!   *suffix    the same, from the end
//!   others     one after the other: at most 1000
//! ```

use std::fmt;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::address::clients;
use super::pattern::Pattern;

/// The most patterns of a set that are neither `prefix*` nor `*suffix`.
pub(super) const MAX_SCANNED_PATTERNS: usize = 1_000;

/// A set of values in the form of an entry.
pub(crate) struct ValueSet {
    texts: Texts,
    exact: HashTable<u32>,
    hasher: RandomState,
    blocks: Blocks,
    prefixes: Vec<u32>,
    suffixes: Vec<u32>,
    patterns: Vec<Pattern>,
}

impl ValueSet {
    /// An empty set with room for texts of this many bytes and this many values.
    pub(super) fn with_capacity(bytes: usize, values: usize) -> Self {
        Self {
            texts: Texts(Vec::with_capacity(bytes)),
            exact: HashTable::with_capacity(values),
            hasher: RandomState::default(),
            blocks: Blocks::default(),
            prefixes: Vec::new(),
            suffixes: Vec::new(),
            patterns: Vec::new(),
        }
    }

    /// Adds a value. Returns whether it is new.
    pub(super) fn add_exact(&mut self, value: &str) -> bool {
        let Self { texts, exact, hasher, .. } = self;
        let value = value.as_bytes();
        let hash = hasher.hash_one(value);
        if exact.find(hash, |&at| texts.at(at) == value).is_some() {
            return false;
        }
        let at = texts.push(value);
        exact.insert_unique(hash, at, |&at| hasher.hash_one(texts.at(at)));
        true
    }

    /// Adds a block of addresses.
    pub(super) fn add_block(&mut self, block: IpNet) {
        match block {
            IpNet::V4(block) => self.blocks.v4.push(block),
            IpNet::V6(block) => self.blocks.v6.push(block),
        }
    }

    /// Adds a pattern. Returns whether there was room for it.
    pub(super) fn add_pattern(&mut self, pattern: Pattern) -> bool {
        match pattern.affix() {
            Some((prefix, "")) => self.prefixes.push(self.texts.push(prefix.as_bytes())),
            Some(("", suffix)) => self.suffixes.push(self.texts.push(suffix.as_bytes())),
            Some(_) | None if self.patterns.len() < MAX_SCANNED_PATTERNS => self.patterns.push(pattern),
            Some(_) | None => return false,
        }
        true
    }

    /// Makes the set ready to be looked up, and returns what it does not need.
    pub(super) fn finish(mut self) -> Self {
        let texts = &self.texts;
        self.prefixes.sort_unstable_by(|&a, &b| texts.at(a).cmp(texts.at(b)));
        // What begins with another prefix stands behind it, and adds nothing.
        self.prefixes.dedup_by(|next, kept| texts.at(*next).starts_with(texts.at(*kept)));
        self.suffixes.sort_unstable_by(|&a, &b| texts.at(a).iter().rev().cmp(texts.at(b).iter().rev()));
        self.suffixes.dedup_by(|next, kept| texts.at(*next).ends_with(texts.at(*kept)));
        self.blocks.finish();
        let Self { texts, exact, hasher, .. } = &mut self;
        exact.shrink_to_fit(|&at| hasher.hash_one(texts.at(at)));
        texts.0.shrink_to_fit();
        self.prefixes.shrink_to_fit();
        self.suffixes.shrink_to_fit();
        self
    }

    /// Whether the set has a value, or a block or pattern that the value matches.
    pub(super) fn contains(&self, value: &str) -> bool {
        let bytes = value.as_bytes();
        let texts = &self.texts;
        (!self.exact.is_empty() && self.exact.find(self.hasher.hash_one(bytes), |&at| texts.at(at) == bytes).is_some())
            || self.has_block(value)
            || self.has_prefix(bytes)
            || self.has_suffix(bytes)
            || self.patterns.iter().any(|pattern| pattern.matches(value))
    }

    fn has_block(&self, value: &str) -> bool {
        !self.blocks.is_empty() && clients(value).is_some_and(|clients| self.blocks.contain(clients))
    }

    /// A prefix of the value is not greater than it, and no other kept prefix can be between the two.
    fn has_prefix(&self, value: &[u8]) -> bool {
        let after = self.prefixes.partition_point(|&at| self.texts.at(at) <= value);
        after > 0 && value.starts_with(self.texts.at(self.prefixes[after - 1]))
    }

    fn has_suffix(&self, value: &[u8]) -> bool {
        let not_after = |at: &u32| self.texts.at(*at).iter().rev().le(value.iter().rev());
        let after = self.suffixes.partition_point(not_after);
        after > 0 && value.ends_with(self.texts.at(self.suffixes[after - 1]))
    }

    /// The memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let Blocks { v4, v6 } = &self.blocks;
        let blocks = v4.capacity() * size_of::<Ipv4Net>() + v6.capacity() * size_of::<Ipv6Net>();
        let affixes = (self.prefixes.capacity() + self.suffixes.capacity()) * size_of::<u32>();
        let patterns = self.patterns.iter().map(|pattern| size_of::<Pattern>() + pattern.to_string().len());
        size_of::<Self>()
            + self.texts.0.capacity()
            + self.exact.allocation_size()
            + blocks
            + affixes
            + patterns.sum::<usize>()
    }
}

impl fmt::Debug for ValueSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the values: there can be millions, and they can be identities.
        f.debug_struct("ValueSet").field("exact", &self.exact.len()).finish_non_exhaustive()
    }
}

/// Texts one after the other, each behind its length: seven bits in a byte, the lowest first.
#[derive(Default)]
pub(super) struct Texts(Vec<u8>);

impl Texts {
    /// Adds a text, and returns where it is.
    pub(super) fn push(&mut self, text: &[u8]) -> u32 {
        let at = u32::try_from(self.0.len()).expect("a file is smaller than 4 GiB, and so are the forms of its values");
        let mut length = text.len();
        while length >= 0x80 {
            self.0.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        self.0.push(length as u8);
        self.0.extend_from_slice(text);
        at
    }

    /// The text at a place.
    pub(super) fn at(&self, at: u32) -> &[u8] {
        let mut rest = &self.0[at as usize..];
        let (mut length, mut shift) = (0, 0);
        while let [byte, after @ ..] = rest {
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            rest = after;
            if byte & 0x80 == 0 {
                break;
            }
        }
        &rest[..length]
    }

    /// The text at a place, which was a text when it was put there.
    pub(super) fn text(&self, at: u32) -> &str {
        std::str::from_utf8(self.at(at)).unwrap_or_default()
    }

    /// The memory that they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity()
    }

    /// Returns the memory that they do not need.
    pub(super) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}

/// Blocks of addresses, none of which is inside another, in order.
#[derive(Default)]
struct Blocks {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Blocks {
    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn finish(&mut self) {
        // The larger of two blocks with one beginning comes first. A block behind it that is not inside it begins later.
        self.v4.sort_unstable_by_key(|block| (block.network(), block.prefix_len()));
        self.v4.dedup_by(|next, kept| kept.contains(&*next));
        self.v4.shrink_to_fit();
        self.v6.sort_unstable_by_key(|block| (block.network(), block.prefix_len()));
        self.v6.dedup_by(|next, kept| kept.contains(&*next));
        self.v6.shrink_to_fit();
    }

    /// Whether one of the blocks contains all of these clients.
    fn contain(&self, clients: IpNet) -> bool {
        match clients {
            IpNet::V4(clients) => {
                let after = self.v4.partition_point(|block| block.network() <= clients.network());
                after > 0 && self.v4[after - 1].contains(&clients)
            }
            IpNet::V6(clients) => {
                let after = self.v6.partition_point(|block| block.network() <= clients.network());
                after > 0 && self.v6[after - 1].contains(&clients)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_where_they_were_put() {
        let long = "a".repeat(20_000);
        let all = ["", "a", &"b".repeat(127), &"c".repeat(128), &long, "\n", "é"];
        let mut texts = Texts::default();
        let places: Vec<u32> = all.iter().map(|text| texts.push(text.as_bytes())).collect();
        for (text, at) in all.iter().zip(places) {
            assert_eq!(texts.at(at), text.as_bytes());
        }
    }
}
