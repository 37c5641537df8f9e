//! The table itself: entries of 48 bytes, open addressing.
//!
//! ```text
//!   one entry: | name 16 | words 24 | until 4 | share 1 | kind 1 |
//!
//!            home         place
//!   [ ][a][b] [c] [c'][c"][x] [ ][ ]            what does not fit at home is further on, with no gap between
//! ```
//!
//! A entry's home follows from its name, so that finding one costs one miss of the cache, not one for each of a hash, a
//! place and a entry. Removing moves the rest of a run back: there are no tombstones, and a table near its bound works on
//! without being built anew. How large it may be is decided elsewhere.

use std::ops::{Index, IndexMut};

use crate::clock::Timestamp;
use crate::plan::CounterName;

/// Of so many places as many as [`LOAD_NUMERATOR`] are taken at most: runs stay short, and a counter weighs 59 bytes.
const LOAD_DENOMINATOR: usize = 16;
const LOAD_NUMERATOR: usize = 13;

/// A table that has shrunk by more than so large a part of it is copied to a new one: memory once written to goes back to
/// the system in no other way.
pub(super) const SPARE_DIVISOR: usize = 8;

/// Where a entry is, until one of its table is removed or the table grows.
pub(in crate::store) type EntryIndex = usize;

/// The share of a counter that has nothing left. Such a counter goes last: forgetting it lets its client in again.
pub(super) const EXHAUSTED_SHARE: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) name: CounterName,
    pub(super) words: [u64; 3],
    /// Unix seconds from which on nothing is counted, rounded up.
    pub(super) expires_secs: u32,
    /// How much of its limit is used: 0 to 254, or [`EXHAUSTED_SHARE`].
    pub(super) used_share: u8,
    pub(super) kind: EntryKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryKind {
    /// The entry is free.
    Vacant,
    Bucket,
    Pair,
    Fixed,
    /// A log of a few grants.
    InlineLog,
    /// A log of more, beside the table.
    Log,
    Leases,
}

const VACANT: Entry =
    Entry { name: CounterName([0; 2]), words: [0; 3], expires_secs: 0, used_share: 0, kind: EntryKind::Vacant };

impl Entry {
    /// How much of the limit is used at `now`: a bucket drains evenly from its last charge to when nothing counts.
    pub(super) fn used_share_at(&self, now: Timestamp) -> u8 {
        if self.kind != EntryKind::Bucket {
            return self.used_share;
        }
        let end = Timestamp::from_secs(u64::from(self.expires_secs));
        let whole = (end - Timestamp::from_micros(self.words[1])).max(1);
        let left = (end - now).min(whole);
        u8::try_from(u128::from(self.used_share) * u128::from(left) / u128::from(whole)).unwrap_or(self.used_share)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Grown and shrunk where it is: what it may come to is reserved when the first entry comes, as addresses that take no
    /// memory until they are written to. A table that moves is freed by the allocator in one piece, which takes the
    /// system milliseconds while the lock is held, and is resident twice until then.
    entries: Vec<Entry>,
    /// The most places since it was made: so many may be resident.
    resident: usize,
    /// How many of them are taken.
    occupied: usize,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.occupied
    }

    pub(super) fn capacity(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>()
    }

    /// The entries that are taken.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.kind != EntryKind::Vacant)
    }

    /// Reads the home of a entry. Looking up the counters of a plan takes as long as the slowest only if their homes are
    /// on the way from memory together, so all of them are touched before the first is looked for.
    pub(super) fn prefetch(&self, name: &CounterName) {
        // Both ends of it: every second entry lies on two lines of the cache.
        std::hint::black_box(self.entries.get(self.home(name)).map(|entry| (entry.name.0[0], entry.kind)));
    }

    /// Where the entry of a name is, if there is one.
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

    /// The first entry that is taken, from a place on and around the end. There is one.
    pub(super) fn occupied_from(&self, mut index: EntryIndex) -> EntryIndex {
        while self.entries[index].kind == EntryKind::Vacant {
            index = self.next_index(index);
        }
        index
    }

    /// Puts a entry that is not there yet at the first free place from its home on. There is one.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.occupied += 1;
        self.place_entry(entry);
    }

    /// Takes a entry out.
    pub(super) fn remove(&mut self, index: EntryIndex) -> Entry {
        let removed = self.entries[index];
        self.occupied -= 1;
        // What follows in the run moves into the gap, unless it would come to stand before its home.
        let (mut gap, mut next) = (index, self.next_index(index));
        while self.entries[next].kind != EntryKind::Vacant {
            let home_distance = self.distance(self.home(&self.entries[next].name), next);
            if home_distance >= self.distance(gap, next) {
                self.entries[gap] = self.entries[next];
                gap = next;
            }
            next = self.next_index(next);
        }
        self.entries[gap] = VACANT;
        removed
    }

    /// Takes out all that are due.
    pub(super) fn remove_all(&mut self, due: impl Fn(&Entry) -> bool, mut removed: impl FnMut(&Entry)) {
        let due = |entry: &Entry| entry.kind != EntryKind::Vacant && due(entry);
        // Every removal closes its gap. Where many are due it is sooner done to close all at once.
        let many = self.entries.len() / 16;
        if self.entries.iter().filter(|entry| due(entry)).take(many).count() == many {
            for entry in self.entries.iter_mut().filter(|entry| due(entry)) {
                removed(entry);
                *entry = VACANT;
                self.occupied -= 1;
            }
            self.shrink(self.entries.len());
        }
        // Backwards from a free place, around the table's end: what a removal moves back was looked at already.
        let free = self.entries.iter().position(|entry| entry.kind == EntryKind::Vacant).unwrap_or(0);
        for index in (0..free).rev().chain((free..self.entries.len()).rev()) {
            if due(&self.entries[index]) {
                removed(&self.remove(index));
            }
        }
    }

    /// Adds free places, to as many; `reserved` is what it may come to. Homes lie further on then, in the same order.
    pub(super) fn grow(&mut self, capacity: usize, reserved: usize) {
        let before = self.entries.len();
        self.entries.reserve_exact(reserved.max(capacity) - before);
        self.entries.resize(capacity, VACANT);
        self.resident = self.resident.max(capacity);
        // Run by run, the last one first: none has its homes before where it begins, so that what is from there on has
        // found its place already. What goes around the end joins a run at the beginning, whose turn is still to come.
        let (mut run, mut end) = (Vec::new(), before);
        while let Some(last) = self.entries[..end].iter().rposition(|entry| entry.kind != EntryKind::Vacant) {
            let vacant = self.entries[..last].iter().rposition(|entry| entry.kind == EntryKind::Vacant);
            end = vacant.map_or(0, |vacant| vacant + 1);
            run.extend_from_slice(&self.entries[end..=last]);
            self.entries[end..=last].fill(VACANT);
            run.drain(..).for_each(|entry| self.place_entry(entry));
        }
    }

    /// Takes places away, or none, and closes every gap that was left between a entry and its home.
    pub(super) fn shrink(&mut self, capacity: usize) {
        // The first one first: each goes back as far as it can, and never further on. What went around the end, or
        // would, waits until all others have found their places.
        let mut around = Vec::new();
        for index in 0..self.entries.len() {
            let entry = std::mem::replace(&mut self.entries[index], VACANT);
            if entry.kind == EntryKind::Vacant {
                continue;
            }
            match self.free_until(home(&entry.name, capacity), capacity.min(index + 1)) {
                Some(index) => self.entries[index] = entry,
                None => around.push(entry),
            }
        }
        self.entries.truncate(capacity);
        around.into_iter().for_each(|entry| self.place_entry(entry));
        if self.resident - capacity > self.resident / SPARE_DIVISOR {
            let mut anew = Vec::with_capacity(self.entries.capacity());
            anew.extend_from_slice(&self.entries);
            (self.entries, self.resident) = (anew, capacity);
        }
    }

    /// Where a name's run begins.
    pub(super) fn home(&self, name: &CounterName) -> EntryIndex {
        home(name, self.entries.len())
    }

    pub(super) fn next_index(&self, index: EntryIndex) -> EntryIndex {
        match index + 1 == self.entries.len() {
            true => 0,
            false => index + 1,
        }
    }

    /// Puts a entry at the first free place from its home on.
    fn place_entry(&mut self, entry: Entry) {
        let mut index = self.home(&entry.name);
        while self.entries[index].kind != EntryKind::Vacant {
            index = self.next_index(index);
        }
        self.entries[index] = entry;
    }

    /// The first free place from `place` on, before `end`.
    fn free_until(&self, index: EntryIndex, end: EntryIndex) -> Option<EntryIndex> {
        (index..end).find(|index| self.entries[*index].kind == EntryKind::Vacant)
    }

    /// Steps from one place to another, around the table's end.
    fn distance(&self, from: EntryIndex, to: EntryIndex) -> usize {
        match to.checked_sub(from) {
            Some(steps) => steps,
            None => to + self.entries.len() - from,
        }
    }
}

impl Index<EntryIndex> for Table {
    type Output = Entry;

    fn index(&self, index: EntryIndex) -> &Entry {
        &self.entries[index]
    }
}

impl IndexMut<EntryIndex> for Table {
    fn index_mut(&mut self, index: EntryIndex) -> &mut Entry {
        &mut self.entries[index]
    }
}

/// Where a name's run begins in a table of so many places. Homes rise with the hash, so that entries keep their order when
/// a table grows or shrinks.
fn home(name: &CounterName, capacity: usize) -> EntryIndex {
    ((u128::from(name.0[0]) * capacity as u128) >> 64) as usize
}

/// The places that a table needs to hold so many entries with enough of it free.
pub(super) fn capacity_for(entries: usize) -> usize {
    (entries * LOAD_DENOMINATOR).div_ceil(LOAD_NUMERATOR)
}

/// The full Unix seconds before `now`.
pub(super) fn whole_seconds(now: Timestamp) -> u32 {
    u32::try_from(now.micros() / 1_000_000).unwrap_or(u32::MAX)
}
