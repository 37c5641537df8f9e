//! Finds the rules that may match a descriptor without looking at the others.
//!
//! Every rule is filed under one of the entries that it requires: the one that the fewest rules require. A descriptor
//! is looked up entry by entry: once by exact value, once for each length of prefix, suffix and address block in
//! use, and once in each list. The rules found must still pass all their matchers. A rule that only requires entries to
//! be absent is always found.

use foldhash::quality::RandomState;
use hashbrown::HashMap;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::address::clients;
use super::matcher::EntryTest;
use super::value_list::ListLookups;
use super::{ListTest, Matcher};
use crate::descriptor::{Descriptor, Entry};

type Map<K, V> = HashMap<K, V, RandomState>;
type RuleNumbers = SmallVec<[u32; 1]>;

/// An index of rules by the entries that they require.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Rules that require no entry.
    always: Vec<u32>,
    /// The others, by the key of the entry they are filed under.
    keys: Map<Box<str>, KeyIndex>,
    /// The rules that refuse descriptors without a derived entry, by that entry.
    absent: Vec<(Box<str>, RuleNumbers)>,
    /// Bit `n` for a key of `n` bytes. It skips most keys without rules for less than a tenth of the
    /// cost of a lookup.
    lengths: u64,
}

#[derive(Debug, Default)]
struct KeyIndex {
    present: RuleNumbers,
    exact: Map<Box<str>, RuleNumbers>,
    /// By length in bytes.
    prefixes: Vec<(usize, Map<Box<str>, RuleNumbers>)>,
    suffixes: Vec<(usize, Map<Box<str>, RuleNumbers>)>,
    /// By length in bits; each map holds blocks of both families.
    blocks: Vec<(u8, Map<IpNet, RuleNumbers>)>,
    /// By list.
    lists: Vec<(ListTest, RuleNumbers)>,
}

/// A key of the index under which a rule is filed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum IndexKey {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Block(IpNet),
    List(ListTest),
    Present,
}

impl Index {
    /// Files rules, given in order by what they match.
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a [EntryTest]> + Clone) -> Self {
        let required = |matches: &'a [EntryTest]| matches.iter().filter(|required| !required.absent);
        let mut users: Map<(&str, IndexKey), u32> = Map::default();
        for EntryTest { entry, test, .. } in rules.clone().flat_map(required) {
            index_keys(test).into_iter().for_each(|index_key| *users.entry((entry, index_key)).or_default() += 1);
        }
        let mut index = Index::default();
        for (number, matches) in rules.enumerate() {
            let number = u32::try_from(number).expect("rules are fewer than 2^32");
            required(matches).filter(|test| test.derived).for_each(|test| index.file_absent(&test.entry, number));
            // Of two with as many users, one without a list, so that the value is looked up in the list only if needed.
            let most_users = |required: &&'a EntryTest| {
                let of = |index_key: &IndexKey| users.get(&(required.entry.as_str(), index_key.clone())).copied();
                let keys = index_keys(&required.test);
                let most = keys.iter().map(|index_key| of(index_key).unwrap_or(0)).max().unwrap_or(u32::MAX);
                (most, keys.iter().any(|index_key| matches!(index_key, IndexKey::List(_))))
            };
            match required(matches).min_by_key(most_users) {
                None => index.always.push(number),
                Some(EntryTest { entry, test, .. }) => {
                    index.lengths |= length_bit(entry);
                    let entry = index.keys.entry(entry.as_str().into()).or_default();
                    index_keys(test).into_iter().for_each(|index_key| entry.file(index_key, number));
                }
            }
        }
        index
    }

    fn file_absent(&mut self, entry: &str, rule: u32) {
        let position = self.absent.iter().position(|(known, _)| **known == *entry).unwrap_or_else(|| {
            self.absent.push((entry.into(), RuleNumbers::new()));
            self.absent.len() - 1
        });
        self.absent[position].1.push(rule);
    }

    /// The rules that may match, or refuse because a derived entry is absent, in order, each once.
    #[inline(always)]
    pub(super) fn candidates(&self, descriptor: &Descriptor<'_>, lookups: &ListLookups) -> SmallVec<[u32; 8]> {
        let mut found: SmallVec<[u32; 8]> = SmallVec::new();
        add(&mut found, &self.always);
        for (entry, rules) in &self.absent {
            if descriptor.value(entry).is_none() {
                add(&mut found, rules);
            }
        }
        for entry in &descriptor.entries {
            if self.lengths & length_bit(entry.key) != 0
                && let Some(key) = self.keys.get(entry.key)
            {
                if descriptor.has_lists() {
                    key.look_up_list(descriptor, entry, &mut found);
                } else {
                    key.look_up(&entry.value, &mut found);
                }
                if !key.lists.is_empty() {
                    key.look_up_in_lists(descriptor, entry.key, lookups, &mut found);
                }
            }
        }
        if found.len() > 1 {
            found.sort_unstable();
            found.dedup();
        }
        found
    }
}

/// Adds rules one by one: there are few, and extending from a slice costs 50 instructions even when it is empty.
#[inline]
fn add(found: &mut SmallVec<[u32; 8]>, rules: &[u32]) {
    rules.iter().for_each(|rule| found.push(*rule));
}

/// The bit of a key's length. Long keys share the last one.
fn length_bit(key: &str) -> u64 {
    1 << key.len().min(63)
}

impl KeyIndex {
    fn file(&mut self, key: IndexKey, rule: u32) {
        fn of_length<L: PartialEq, K>(
            lengths: &mut Vec<(L, Map<K, RuleNumbers>)>,
            length: L,
        ) -> &mut Map<K, RuleNumbers> {
            let position = lengths.iter().position(|(known, _)| *known == length).unwrap_or_else(|| {
                lengths.push((length, Map::default()));
                lengths.len() - 1
            });
            &mut lengths[position].1
        }
        let found = match key {
            IndexKey::Present => &mut self.present,
            IndexKey::Exact(value) => self.exact.entry(value.into()).or_default(),
            IndexKey::Prefix(text) => of_length(&mut self.prefixes, text.len()).entry(text.into()).or_default(),
            IndexKey::Suffix(text) => of_length(&mut self.suffixes, text.len()).entry(text.into()).or_default(),
            IndexKey::Block(block) => of_length(&mut self.blocks, block.prefix_len()).entry(block).or_default(),
            IndexKey::List(list) => {
                let position = self.lists.iter().position(|(known, _)| *known == list).unwrap_or_else(|| {
                    self.lists.push((list, RuleNumbers::new()));
                    self.lists.len() - 1
                });
                &mut self.lists[position].1
            }
        };
        if found.last() != Some(&rule) {
            found.push(rule);
        }
    }

    /// Looks up the values of an entry that can be a list.
    #[cold]
    fn look_up_list(&self, descriptor: &Descriptor<'_>, entry: &Entry<'_>, found: &mut SmallVec<[u32; 8]>) {
        match descriptor.list(entry.key) {
            None => self.look_up(&entry.value, found),
            // Any test of it is in doubt.
            Some(list) if list.repeated => self.all(found),
            Some(list) => list.values.iter().for_each(|value| self.look_up(value, found)),
        }
    }

    /// Adds the rules of the lists that have the value of an entry, or one of its values.
    fn look_up_in_lists(
        &self,
        descriptor: &Descriptor<'_>,
        entry: &str,
        lookups: &ListLookups,
        found: &mut SmallVec<[u32; 8]>,
    ) {
        let values = descriptor.list(entry);
        for (list, rules) in &self.lists {
            let met = match values {
                // Any test of it is in doubt, and all rules are found.
                Some(values) if values.repeated => continue,
                Some(values) => list.contains_any(&values.values, lookups),
                None => descriptor.value(entry).is_some_and(|value| list.has(value, lookups)),
            };
            if met {
                add(found, rules);
            }
        }
    }

    /// Adds every rule that is filed here.
    fn all(&self, found: &mut SmallVec<[u32; 8]>) {
        let texts = self.prefixes.iter().chain(&self.suffixes).flat_map(|(_, rules)| rules.values());
        let blocks = self.blocks.iter().flat_map(|(_, rules)| rules.values());
        let lists = self.lists.iter().map(|(_, rules)| rules);
        let rules = self.exact.values().chain(texts).chain(blocks).chain(lists).chain([&self.present]);
        rules.for_each(|rules| add(found, rules));
    }

    #[inline]
    fn look_up(&self, value: &str, found: &mut SmallVec<[u32; 8]>) {
        add(found, &self.present);
        if let (false, Some(rules)) = (self.exact.is_empty(), self.exact.get(value)) {
            add(found, rules);
        }
        for (length, texts) in &self.prefixes {
            if let Some(rules) = value.get(..*length).and_then(|text| texts.get(text)) {
                add(found, rules);
            }
        }
        for (length, texts) in &self.suffixes {
            let start = value.len().checked_sub(*length);
            if let Some(rules) = start.and_then(|start| value.get(start..)).and_then(|text| texts.get(text)) {
                add(found, rules);
            }
        }
        if self.blocks.is_empty() {
            return;
        }
        let Some(clients) = clients(value) else { return };
        for (length, blocks) in self.blocks.iter().filter(|(length, _)| *length <= clients.prefix_len()) {
            let block = IpNet::new(clients.addr(), *length).ok().map(|block| block.trunc());
            if let Some(rules) = block.and_then(|block| blocks.get(&block)) {
                add(found, rules);
            }
        }
    }
}

/// The keys under which a matcher is filed: together they find every value that passes it.
fn index_keys(matcher: &Matcher) -> Vec<IndexKey> {
    match matcher {
        Matcher::Exact(text) => vec![IndexKey::Exact(text.clone())],
        Matcher::Pattern(pattern) if !pattern.prefix.is_empty() => vec![IndexKey::Prefix(pattern.prefix.clone())],
        Matcher::Pattern(pattern) if !pattern.suffix.is_empty() => vec![IndexKey::Suffix(pattern.suffix.clone())],
        Matcher::Present | Matcher::Not(_) | Matcher::Pattern(_) => vec![IndexKey::Present],
        Matcher::Cidr(block) => vec![IndexKey::Block(*block)],
        Matcher::List(list) => vec![IndexKey::List(list.clone())],
        Matcher::AnyOf(any) => any.iter().flat_map(index_keys).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(rules: &[&[(&str, &str)]]) -> Index {
        let test = |(entry, text): &(&str, &str)| EntryTest::new(entry.to_string(), Matcher::parse(text), None);
        let rules: Vec<Vec<EntryTest>> = rules.iter().map(|rule| rule.iter().map(test).collect()).collect();
        Index::new(rules.iter().map(Vec::as_slice))
    }

    fn candidates(index: &Index, entries: &[(&str, &str)]) -> SmallVec<[u32; 8]> {
        index.candidates(&Descriptor::of(entries.iter().copied()), &ListLookups::default())
    }

    #[test]
    fn a_rule_is_filed_under_the_entry_that_the_fewest_rules_require() {
        let index = index(&[
            &[("method", "POST"), ("path", "/a")],
            &[("method", "POST"), ("path", "/b")],
            &[("method", "POST"), ("path", "/b*")],
            &[],
        ]);
        let found = candidates(&index, &[("method", "POST"), ("path", "/b")]);
        assert_eq!(found.as_slice(), [1, 2, 3]);
        assert_eq!(candidates(&index, &[("method", "POST")]).as_slice(), [3]);
    }

    #[test]
    fn blocks_suffixes_and_presence_are_found() {
        let index = index(&[
            &[("remote_address", "10.0.0.0/8")],
            &[("remote_address", "2001:db8::/32")],
            &[("path", "*.css")],
            &[("path", "*x*")],
        ]);
        let found = |key, value| candidates(&index, &[(key, value)]).to_vec();
        assert_eq!(found("remote_address", "10.9.8.7"), [0]);
        assert_eq!(found("remote_address", "::ffff:10.9.8.7"), [0]);
        assert_eq!(found("remote_address", "10.9.8.0/24"), [0]);
        assert!(found("remote_address", "10.0.0.0/7").is_empty());
        assert_eq!(found("remote_address", "2001:db8:5::1"), [1]);
        assert_eq!(found("path", "/a.css"), [2, 3]);
        assert_eq!(found("path", "é"), [3]);
        assert!(found("other", "10.9.8.7").is_empty());
    }
}
