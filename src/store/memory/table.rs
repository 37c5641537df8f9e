//! The hash table of a shard: entries of 48 bytes, open addressing.
//!
//! ```text
//!   one entry: | name 16 | words 24 | expires_secs 4 | exhausted_for 2 | used_share 1 | kind 1 |
//!
//!       home of c, c', c"
//!                v
//!   [ ][a][b][ ][c][c'][c"][x][ ][ ]      an entry whose home is occupied is further on, in a run without gaps
//! ```
//!
//! The home index of an entry is computed from its name, so that a lookup costs one cache miss. Removing an entry moves
//! the rest of its run back: there are no tombstones, and a full table needs no rebuild. The callers decide the size of
//! the table.

use std::ops::{Index, IndexMut};

use crate::clock::Timestamp;
use crate::plan::CounterName;

/// The maximum load factor: 13 of 16 entries are occupied. Runs stay short, and a counter takes 59 bytes.
const MAX_LOAD_DENOMINATOR: usize = 16;
const MAX_LOAD_NUMERATOR: usize = 13;

/// The spare room that growth adds: the size of a table or slab divided by this. A table that has shrunk by more is
/// copied to new memory: pages that were written to are returned to the system in no other way.
pub(super) const SPARE_DIVISOR: usize = 8;

/// The index of an entry. Valid until an entry of the table is removed or the table is resized.
pub(in crate::store) type EntryIndex = usize;

/// The used share of a counter that one request has exhausted. Such counters are evicted late: evicting one lets its
/// client in again.
pub(super) const EXHAUSTED_AT_ONCE_SHARE: u8 = u8::MAX - 2;

/// The used share of a counter that several requests have exhausted. Such counters are evicted later: a flood of keys
/// would need several requests for each.
pub(super) const EXHAUSTED_SHARE: u8 = u8::MAX - 1;

/// The used share of an exhausted counter that has refused a request since: of a client that keeps trying. Such counters
/// are evicted last.
pub(super) const REFUSING_SHARE: u8 = u8::MAX;

/// The counter in one place of the table, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableEntry {
    pub(super) name: CounterName,
    /// The packed state, or its index in the overflow.
    pub(super) words: [u64; 3],
    /// Unix seconds at which the counter expires, rounded up.
    pub(super) expires_secs: u32,
    /// How long a bucket stays exhausted after its last charge: until it has a unit again.
    pub(super) exhausted_for: CoarseSeconds,
    /// The used share of the limit: 0 to 252, [`EXHAUSTED_AT_ONCE_SHARE`], [`EXHAUSTED_SHARE`] or [`REFUSING_SHARE`].
    pub(super) used_share: u8,
    pub(super) kind: EntryKind,
}

/// The kind of state in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryKind {
    /// No counter: the entry is free.
    Vacant,
    Bucket,
    Pair,
    Fixed,
    /// A log of at most three grants, in the words of the entry.
    InlineLog,
    /// A longer log, in the overflow.
    Log,
    /// A lease set, in the overflow.
    Leases,
    /// At most one remembered value, in the words of the entry.
    InlineValue,
    /// Several remembered values, in the overflow.
    Values,
}

const VACANT_ENTRY: TableEntry = TableEntry {
    name: CounterName([0; 2]),
    words: [0; 3],
    expires_secs: 0,
    exhausted_for: CoarseSeconds::ZERO,
    used_share: 0,
    kind: EntryKind::Vacant,
};

/// A duration in two bytes, rounded up to whole seconds and 1 part in 2048: `m << e` seconds, with `m` in the low 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CoarseSeconds(u16);

impl CoarseSeconds {
    pub(super) const ZERO: Self = Self(0);

    /// The longest duration: four years.
    pub(super) const MAX: Self = Self(u16::MAX);

    /// A duration in microseconds.
    pub(super) fn of(micros: u64) -> Self {
        let seconds = micros.div_ceil(1_000_000);
        let exponent = (u64::BITS - seconds.leading_zeros()).saturating_sub(12);
        let mantissa = seconds.div_ceil(1 << exponent);
        // Rounding up can carry into a thirteenth bit.
        let (mantissa, exponent) = if mantissa < 1 << 12 { (mantissa, exponent) } else { (1 << 11, exponent + 1) };
        match u16::try_from(u64::from(exponent) << 12 | mantissa) {
            Ok(packed) => Self(packed),
            Err(_) => Self::MAX,
        }
    }

    pub(super) fn micros(self) -> u64 {
        (u64::from(self.0 & 0xfff) << (self.0 >> 12)) * 1_000_000
    }
}

impl TableEntry {
    /// The used share of the limit at `now`. A bucket drains evenly from its last charge until it expires, and one that
    /// was exhausted stays so until it has a unit again (semantics 30).
    pub(super) fn used_share_at(&self, now: Timestamp) -> u8 {
        if self.kind != EntryKind::Bucket {
            return self.used_share;
        }
        let charged = Timestamp::from_micros(self.words[1]);
        if self.used_share >= EXHAUSTED_AT_ONCE_SHARE && now < charged.plus(self.exhausted_for.micros()) {
            return self.used_share;
        }
        let used = self.used_share.min(EXHAUSTED_AT_ONCE_SHARE - 1);
        let end = Timestamp::from_secs(u64::from(self.expires_secs));
        let whole = (end - charged).max(1);
        let left = (end - now).min(whole);
        u8::try_from(u128::from(used) * u128::from(left) / u128::from(whole)).unwrap_or(used)
    }
}

/// The hash table of a shard.
#[derive(Debug, Default)]
pub(super) struct ShardTable {
    /// Resized in place: the address space for its largest size is reserved with the first entry, and takes no memory
    /// until it is written to. A table copied to new memory would be resident twice, and freeing the old one takes
    /// milliseconds under the lock.
    entries: Vec<TableEntry>,
    /// The largest capacity since the allocation: the number of entries that may be resident.
    resident: usize,
    /// The number of occupied entries.
    occupied: usize,
}

impl ShardTable {
    pub(super) fn len(&self) -> usize {
        self.occupied
    }

    pub(super) fn capacity(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.len() * size_of::<TableEntry>()
    }

    /// The occupied entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &TableEntry> {
        self.entries.iter().filter(|entry| entry.kind != EntryKind::Vacant)
    }

    /// Loads the home entry of a name into the cache. The counters of a plan are all prefetched before the first is
    /// looked up, so that their cache misses overlap.
    pub(super) fn prefetch(&self, name: &CounterName) {
        // Both ends: every second entry spans two cache lines.
        std::hint::black_box(self.entries.get(self.home(name)).map(|entry| (entry.name.0[0], entry.kind)));
    }

    /// The index of a name's entry, if it has one.
    pub(super) fn find(&self, name: &CounterName) -> Option<EntryIndex> {
        let mut index = self.home(name);
        loop {
            let entry = self.entries.get(index)?;
            match entry.kind {
                EntryKind::Vacant => return None,
                _ if entry.name == *name => return Some(index),
                _ => index = self.next_index(index),
            }
        }
    }

    /// The first occupied entry from `index` on, around the end. The table must have one.
    pub(super) fn occupied_from(&self, mut index: EntryIndex) -> EntryIndex {
        while self.entries[index].kind == EntryKind::Vacant {
            index = self.next_index(index);
        }
        index
    }

    /// Inserts an entry whose name is not in the table. The table must have a free entry.
    pub(super) fn insert(&mut self, entry: TableEntry) {
        self.occupied += 1;
        self.place_entry(entry);
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, index: EntryIndex) -> TableEntry {
        let removed = self.entries[index];
        self.occupied -= 1;
        // The rest of the run moves into the gap, except entries that would be before their home.
        let (mut gap, mut next) = (index, self.next_index(index));
        while self.entries[next].kind != EntryKind::Vacant {
            let home_distance = self.distance(self.home(&self.entries[next].name), next);
            if home_distance >= self.distance(gap, next) {
                self.entries[gap] = self.entries[next];
                gap = next;
            }
            next = self.next_index(next);
        }
        self.entries[gap] = VACANT_ENTRY;
        removed
    }

    /// Removes all entries that are due.
    pub(super) fn remove_all(&mut self, due: impl Fn(&TableEntry) -> bool, mut removed: impl FnMut(&TableEntry)) {
        let due = |entry: &TableEntry| entry.kind != EntryKind::Vacant && due(entry);
        // A removal closes its own gap. If many entries are due, closing all gaps together is faster.
        let many = self.entries.len() / 16;
        if self.entries.iter().filter(|entry| due(entry)).take(many).count() == many {
            for entry in self.entries.iter_mut().filter(|entry| due(entry)) {
                removed(entry);
                *entry = VACANT_ENTRY;
                self.occupied -= 1;
            }
            self.shrink(self.entries.len());
        }
        // Backwards from a free entry, around the end: a removal moves back only entries that are examined already.
        let free = self.entries.iter().position(|entry| entry.kind == EntryKind::Vacant).unwrap_or(0);
        for index in (0..free).rev().chain((free..self.entries.len()).rev()) {
            if due(&self.entries[index]) {
                removed(&self.remove(index));
            }
        }
    }

    /// Grows to `capacity` entries, and reserves address space for `reserved`, the largest size to expect. Home indices
    /// move further on, in the same order.
    pub(super) fn grow(&mut self, capacity: usize, reserved: usize) {
        let before = self.entries.len();
        self.entries.reserve_exact(reserved.max(capacity) - before);
        self.entries.resize(capacity, VACANT_ENTRY);
        self.resident = self.resident.max(capacity);
        // Run by run, the last first: no entry has its home before its run, so the entries after the run are in place
        // already. An entry that wraps around the end joins a run at the beginning, which is placed later.
        let (mut run, mut end) = (Vec::new(), before);
        while let Some(last) = self.entries[..end].iter().rposition(|entry| entry.kind != EntryKind::Vacant) {
            let vacant = self.entries[..last].iter().rposition(|entry| entry.kind == EntryKind::Vacant);
            end = vacant.map_or(0, |vacant| vacant + 1);
            run.extend_from_slice(&self.entries[end..=last]);
            self.entries[end..=last].fill(VACANT_ENTRY);
            run.drain(..).for_each(|entry| self.place_entry(entry));
        }
    }

    /// Shrinks to `capacity` entries, possibly the same, and closes every gap between an entry and its home.
    pub(super) fn shrink(&mut self, capacity: usize) {
        // The first comes first: each entry moves back as far as it can. Entries that wrap around the end are placed
        // after all others.
        let mut wrapped = Vec::new();
        for index in 0..self.entries.len() {
            let entry = std::mem::replace(&mut self.entries[index], VACANT_ENTRY);
            if entry.kind == EntryKind::Vacant {
                continue;
            }
            match self.free_until(home(&entry.name, capacity), capacity.min(index + 1)) {
                Some(index) => self.entries[index] = entry,
                None => wrapped.push(entry),
            }
        }
        self.entries.truncate(capacity);
        wrapped.into_iter().for_each(|entry| self.place_entry(entry));
        if self.resident - capacity > self.resident / SPARE_DIVISOR {
            let mut copied = Vec::with_capacity(self.entries.capacity());
            copied.extend_from_slice(&self.entries);
            (self.entries, self.resident) = (copied, capacity);
        }
    }

    /// The home index of a name.
    pub(super) fn home(&self, name: &CounterName) -> EntryIndex {
        home(name, self.entries.len())
    }

    pub(super) fn next_index(&self, index: EntryIndex) -> EntryIndex {
        match index + 1 == self.entries.len() {
            true => 0,
            false => index + 1,
        }
    }

    /// Writes an entry at the first free index from its home on.
    fn place_entry(&mut self, entry: TableEntry) {
        let mut index = self.home(&entry.name);
        while self.entries[index].kind != EntryKind::Vacant {
            index = self.next_index(index);
        }
        self.entries[index] = entry;
    }

    /// The first free index from `index` on, before `end`.
    fn free_until(&self, index: EntryIndex, end: EntryIndex) -> Option<EntryIndex> {
        (index..end).find(|index| self.entries[*index].kind == EntryKind::Vacant)
    }

    /// The distance from one index to another, around the end.
    fn distance(&self, from: EntryIndex, to: EntryIndex) -> usize {
        match to.checked_sub(from) {
            Some(steps) => steps,
            None => to + self.entries.len() - from,
        }
    }
}

impl Index<EntryIndex> for ShardTable {
    type Output = TableEntry;

    fn index(&self, index: EntryIndex) -> &TableEntry {
        &self.entries[index]
    }
}

impl IndexMut<EntryIndex> for ShardTable {
    fn index_mut(&mut self, index: EntryIndex) -> &mut TableEntry {
        &mut self.entries[index]
    }
}

/// The home index of a name in a table of this capacity. Home indices rise with the hash, so entries keep their order
/// when the table is resized.
fn home(name: &CounterName, capacity: usize) -> EntryIndex {
    ((u128::from(name.0[0]) * capacity as u128) >> 64) as usize
}

/// The capacity that a table needs for `entries` occupied entries.
pub(super) fn capacity_for(entries: usize) -> usize {
    (entries * MAX_LOAD_DENOMINATOR).div_ceil(MAX_LOAD_NUMERATOR)
}

/// The Unix time in seconds, rounded down.
pub(super) fn whole_seconds(now: Timestamp) -> u32 {
    u32::try_from(now.micros() / 1_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_seconds_are_rounded_up_and_by_little() {
        assert_eq!(size_of::<TableEntry>(), 48);
        let mut micros = 1_u64;
        while micros < 100_000_000_000_000 {
            let found = CoarseSeconds::of(micros).micros();
            let most = micros.div_ceil(1_000_000) * 1_000_000;
            assert!(found >= micros, "{micros} became {found}");
            assert!(found - most <= most / 2_000, "{micros} became {found}");
            micros = micros * 21 / 20 + 1;
        }
        assert_eq!(CoarseSeconds::of(0).micros(), 0);
        assert_eq!(CoarseSeconds::of(u64::MAX), CoarseSeconds::MAX);
    }
}
