//! A request: a domain, its descriptors, and the hits of each.
//!
//! These are Envoy's terms. Every door converts its input into a [`Request`]; nothing past the doors knows protobuf,
//! HTTP or JSON. A descriptor is a set: order and extra entries do not matter. Of several entries with the same key,
//! the first counts.
//!
//! An entry has one value, or a list of values if the request has one (a list in Envoy's dynamic metadata). An entry that
//! the request names twice is in doubt: nobody knows which of its values the upstream reads.

use std::borrow::Cow;
use std::time::Duration;

use smallvec::SmallVec;

/// A request for a decision.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// The domain, which selects the rules.
    pub domain: &'a str,
    /// The descriptors: each is matched alone, all are decided together.
    pub descriptors: SmallVec<[Descriptor<'a>; 2]>,
}

impl<'a> Request<'a> {
    /// A request with one descriptor of these entries and one hit.
    pub fn of<I>(domain: &'a str, entries: I) -> Self
    where
        I: IntoIterator<Item = (&'a str, &'a str)>,
    {
        let mut request = Self { domain, descriptors: SmallVec::new() };
        // Filled in place: a descriptor is several hundred bytes, and every adaptor it passes through copies it.
        request.descriptors.push(Descriptor::default());
        let filled = &mut request.descriptors[0].entries;
        filled.extend(entries.into_iter().map(|(key, value)| Entry { key, value: Cow::Borrowed(value) }));
        request
    }
}

/// A set of entries, and its hits.
#[derive(Clone, Debug, Default)]
pub struct Descriptor<'a> {
    /// The facts that rules match, and that identify counters.
    pub entries: SmallVec<[Entry<'a>; 6]>,
    /// The effect on the counters of this descriptor.
    pub hits: Hits,
    /// Whether the hits are of this descriptor itself, not of its request or the default.
    pub own_hits: bool,
    /// A limit that came with the request (`RateLimitDescriptor.limit`). Only limiters with `override = true` apply it.
    pub limit: Option<LimitOverride>,
    /// The values of the entries that have several. An entry that is a list matches if any of its values does. It is counted as one
    /// value: its values in order, each once, with commas between them.
    pub lists: Option<Box<Lists<'a>>>,
}

impl<'a> Descriptor<'a> {
    /// A descriptor of these entries and one hit.
    pub fn of<I>(entries: I) -> Self
    where
        I: IntoIterator<Item = (&'a str, &'a str)>,
    {
        let entries = entries.into_iter().map(|(key, value)| Entry { key, value: Cow::Borrowed(value) }).collect();
        Self { entries, ..Self::default() }
    }

    /// Adds an entry that is a list.
    pub fn push_list(&mut self, key: &'a str, values: Vec<Cow<'a, str>>) {
        self.push_values(ListValue { key, values, repeated: false, unreadable: false });
    }

    /// Adds an entry that the request names several times, with each value that it may have. A rule that needs the entry
    /// refuses the request (semantics 63).
    pub fn push_repeated(&mut self, key: &'a str, values: Vec<Cow<'a, str>>) {
        self.push_values(ListValue { key, values, repeated: true, unreadable: false });
    }

    /// Adds an entry that is in the request, but whose value cannot be read: it may be any. A rule that needs the entry
    /// refuses the request (semantics 62).
    pub fn push_unreadable(&mut self, key: &'a str) {
        self.push_values(ListValue { key, values: Vec::new(), repeated: true, unreadable: true });
    }

    fn push_values(&mut self, list: ListValue<'a>) {
        self.entries.push(Entry { key: list.key, value: Cow::Owned(list.values.join(",")) });
        self.lists.get_or_insert_default().0.push(list);
    }

    /// A descriptor that borrows the entries with such keys, so that others of a shorter life can be added.
    pub(crate) fn with_entries(&self, is_such: impl Fn(&str) -> bool) -> Descriptor<'_> {
        let entries = self.entries.iter().filter(|entry| is_such(entry.key));
        let list = |list: &&ListValue<'a>| is_such(list.key);
        let lists = self.lists.as_ref().map(|lists| Box::new(Lists(lists.0.iter().filter(list).cloned().collect())));
        Descriptor {
            entries: entries.map(|entry| Entry { key: entry.key, value: Cow::Borrowed(&*entry.value) }).collect(),
            hits: self.hits,
            own_hits: self.own_hits,
            limit: self.limit,
            lists,
        }
    }

    /// The value of the first entry with this key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &*entry.value)
    }

    /// The values of the entry with this key, if it has several.
    #[inline]
    pub fn list(&self, key: &str) -> Option<&ListValue<'a>> {
        self.lists.as_ref()?.0.iter().find(|list| list.key == key)
    }

    /// The values of the entry with this key, if the request names it several times.
    #[inline]
    pub fn repeated(&self, key: &str) -> Option<&[Cow<'a, str>]> {
        self.list(key).filter(|list| list.repeated).map(|list| &*list.values)
    }

    /// Whether an entry is a list or is repeated.
    #[inline]
    pub(crate) fn has_lists(&self) -> bool {
        self.lists.is_some()
    }

    /// The entries that are lists.
    pub(crate) fn lists_mut(&mut self) -> &mut [ListValue<'a>] {
        self.lists.as_mut().map_or(&mut [], |lists| &mut lists.0)
    }
}

/// The entries of a descriptor that have several values. In a box of their own: few descriptors have any, and all are
/// copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists<'a>(pub Vec<ListValue<'a>>);

/// The values of an entry that is a list, or is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListValue<'a> {
    /// The key of the entry.
    pub key: &'a str,
    /// Its values, in any order.
    pub values: Vec<Cow<'a, str>>,
    /// Whether the request names the entry several times, and so means one of the values.
    pub repeated: bool,
    /// Whether the value is not known at all.
    pub unreadable: bool,
}

/// One fact about the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name of the fact.
    pub key: &'a str,
    /// Its value, as the door received it or as a normaliser rewrote it.
    pub value: Cow<'a, str>,
}

/// The effect of a descriptor on its counters (semantics 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hits {
    /// Takes this many units. More than `u32::MAX` saturates.
    Charge(u32),
    /// Takes nothing, and is refused when nothing is left (`hits_addend: 0`).
    Peek,
    /// Gives units back and never fails (`is_negative_hits`).
    Refund(u32),
}

impl Default for Hits {
    fn default() -> Self {
        Hits::Charge(1)
    }
}

impl Hits {
    /// Converts Envoy's `hits_addend` and `is_negative_hits`.
    pub fn of(addend: u64, negative: bool) -> Self {
        let units = u32::try_from(addend).unwrap_or(u32::MAX);
        match (negative, units) {
            (true, units) => Hits::Refund(units),
            (false, 0) => Hits::Peek,
            (false, units) => Hits::Charge(units),
        }
    }
}

/// A limit that came with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOverride {
    /// Requests per window. Zero always refuses.
    pub limit: u32,
    /// The window, longer than zero.
    pub window: Duration,
}
