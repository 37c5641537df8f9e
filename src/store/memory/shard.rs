//! The counters of one shard: by name, packed, bounded in bytes and in number.
//!
//! ```text
//!   Shard -- table.rs    a entry for each counter, found by its name; what is small is in it
//!         |- beside.rs   logs of grants and sets of leases
//!         '- pool.rs     the bytes that the shards of a store share
//! ```
//!
//! This room decides what a shard may hold: what has to go for what comes, and how far its parts grow.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::growth::{Growth, MIN_STEP_DIVISOR};
use super::overflow::Overflow;
use super::pool::BytePool;
use super::snapshot::{Record, SnapshotValue};
use super::table::{Entry, EntryIndex, EntryKind, SPARE_DIVISOR, Table, capacity_for};
use crate::clock::Timestamp;
use crate::limiter::{Limit, SlidingWindow, State};
use crate::plan::{Check, CounterName, Outcome};

#[cfg(test)]
mod tests;

/// How many counters are looked at when one has to go: neighbours, from where the new one belongs, or a random place, on.
/// Where a counter is says nothing of how it is used, since its name is a keyed hash, and neighbours are on the way from
/// memory together.
const EVICTION_SAMPLES: usize = 16;

/// How many more are looked at when none of those may go lightly.
const EXTRA_EVICTION_SAMPLES: usize = 16 * EVICTION_SAMPLES;

/// The share of a counter that has nothing left. Such a counter goes last: forgetting it lets its client in again.
const EXHAUSTED_SHARE: u8 = u8::MAX;

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Shard {
    table: Table,
    overflow: Overflow,
    /// Bytes that were taken from the pool, used or not yet.
    allowance: usize,
    /// What the shards of the store share.
    pool: Arc<BytePool>,
    /// The most counters.
    max_keys: usize,
    random_state: u64,
    pub(super) evictions: u64,
    /// Leases that nobody gave back before they expired, and that were forgotten since.
    pub(super) expired_leases: u64,
    /// Where this shard's counters go before they next change: a snapshot was cut and has not copied them yet.
    pub(super) pending_snapshot: Option<Sender<Vec<u8>>>,
}

/// Which bytes a table may grow by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GrowFrom {
    /// Those that no shard has taken yet.
    Pool,
    /// Its own as well, where no counter can go.
    Anywhere,
}

impl Shard {
    pub(super) fn new(pool: Arc<BytePool>, max_keys: usize, seed: u64) -> Self {
        Self {
            table: Table::default(),
            overflow: Overflow::default(),
            allowance: 0,
            pool,
            max_keys,
            random_state: seed | 1,
            evictions: 0,
            expired_leases: 0,
            pending_snapshot: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes held, without the allocator's own.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.overflow.bytes()
    }

    /// Shard held under leases, expired ones among them until they are swept.
    pub(super) fn held_leases(&self) -> usize {
        self.overflow.held_leases()
    }

    /// Copies the counters to a snapshot that was cut, if one waits for them.
    #[inline]
    pub(super) fn copy_to_snapshot(&mut self) {
        if let Some(cut) = self.pending_snapshot.take() {
            self.send_copy(&cut);
        }
    }

    #[cold]
    fn send_copy(&self, cut: &Sender<Vec<u8>>) {
        let mut bytes = Vec::with_capacity(self.table.len() * 50 + self.overflow.bytes());
        for entry in self.table.iter() {
            let value = self.overflow.snapshot_value(entry);
            Record { name: entry.name, expires_secs: entry.expires_secs, used_share: entry.used_share, value }
                .write(&mut bytes);
        }
        // The receiver is gone when the snapshot was given up.
        let _ = cut.send(bytes);
    }

    /// Takes a counter from a snapshot, if it still counts and there is room. Says whether it was taken.
    pub(super) fn restore(&mut self, record: Record, now: Timestamp) -> bool {
        if record.expires_secs <= seconds(now) || self.find(&record.name).is_some() {
            return false;
        }
        let growth = Growth { counters: 1, ..Overflow::snapshot_growth(&record.value) };
        if !self.make_room(growth, &record.name, &[], now) {
            return false;
        }
        let (kind, words) = match record.value {
            SnapshotValue::Packed(0, words) => (EntryKind::Bucket, words),
            SnapshotValue::Packed(1, words) => (EntryKind::Pair, words),
            // The reader knows no other kinds.
            SnapshotValue::Packed(_, words) => (EntryKind::Fixed, words),
            SnapshotValue::Grants(grants) => self.overflow.pack(State::Grants(grants), None),
            SnapshotValue::Leases(leases) => self.overflow.pack(State::Leases(leases), None),
        };
        self.table.insert(Entry {
            name: record.name,
            words,
            expires_secs: record.expires_secs,
            used_share: record.used_share,
            kind,
        });
        true
    }

    /// Reads what a counter is looked for by first, so that it is on the way from memory.
    pub(super) fn prefetch(&self, name: &CounterName) {
        self.table.prefetch(name);
    }

    /// Where a counter is, if it is held.
    pub(super) fn find(&self, name: &CounterName) -> Option<EntryIndex> {
        self.table.find(name)
    }

    /// Forgets a counter. Says whether it was held.
    pub(super) fn forget(&mut self, name: &CounterName) -> bool {
        let Some(index) = self.find(name) else { return false };
        // Whoever has it forgotten ends its leases: they did not expire.
        self.remove(index, Timestamp::default());
        true
    }

    /// Takes a counter's state out to be decided; [`Shard::put`] or [`Shard::put_back`] follows under the same lock.
    pub(super) fn take(&mut self, index: Option<EntryIndex>) -> State {
        match index {
            Some(index) => self.overflow.take(&self.table[index]),
            None => State::Empty,
        }
    }

    /// Writes a state that changed, at its place or, when it is new, at a free one. Room was made before.
    pub(super) fn put(
        &mut self,
        name: &CounterName,
        index: Option<EntryIndex>,
        state: State,
        outcome: &Outcome,
        now: Timestamp,
    ) {
        let (expires_secs, used_share) = (expires_secs(now, outcome.reset), used_share(outcome));
        let (kind, words) = self.overflow.pack(state, index.map(|index| &self.table[index]));
        let entry = Entry { name: *name, words, expires_secs, used_share, kind };
        match index {
            Some(index) => self.table[index] = entry,
            None => self.table.insert(entry),
        }
    }

    /// Returns a state that did not change.
    pub(super) fn put_back(&mut self, index: Option<EntryIndex>, state: State) {
        if let Some(index) = index {
            self.overflow.put_back(state, &self.table[index]);
        }
    }

    /// Whether a check may add anything to the counter at `place`, or as a new one.
    #[inline]
    pub(super) fn grows(&self, check: &Check, index: Option<EntryIndex>) -> bool {
        match (index, check.limit) {
            // Nearly all checks are on counters that are held in whole by their entries.
            (Some(_), Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_)) => false,
            (_, _) => self.growth(check, index) != Growth::default(),
        }
    }

    /// What a check may add to the counter at `place`, or as a new one.
    pub(super) fn growth(&self, check: &Check, index: Option<EntryIndex>) -> Growth {
        let units = check.charges.admitted.max(check.charges.passed).max(check.charges.refused);
        if units == 0 {
            return Growth::default();
        }
        let held = index.map(|index| &self.table[index]);
        let new = usize::from(index.is_none());
        match check.limit {
            Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {
                Growth { counters: new, ..Growth::default() }
            }
            Limit::SlidingWindow(SlidingWindow { limit, .. }) => {
                Growth { counters: new, ..self.overflow.log_growth(held, units, limit) }
            }
            Limit::Concurrency(_) => Growth { counters: new, ..self.overflow.lease_growth(held) },
        }
    }

    /// Makes room for what a check may add to its counter. Says whether there is.
    ///
    /// Forgotten counters go first, then those with the smallest share of their limit used, of a few neighbours; counters
    /// that have nothing left go last, and leases that are held never (semantics 30). What `keep` names stays.
    pub(super) fn make_room(
        &mut self,
        growth: Growth,
        counter: &CounterName,
        keep: &[CounterName],
        now: Timestamp,
    ) -> bool {
        if growth.heap_bytes > self.pool.total() {
            // Nobody has to go for what would not fit into an empty table.
            return false;
        }
        // The first one to go is looked for where the new one belongs: those lines are in the cache, and are written to
        // anyway. Others are from anywhere, lest a large log clears all around it.
        let mut near = Some(counter);
        loop {
            let keys_fit = self.table.len() + growth.counters <= self.max_keys;
            if keys_fit && self.bytes_fit(growth, GrowFrom::Pool) {
                return true;
            }
            let Some(index) = self.pick_victim(near.take(), keep, now) else {
                return keys_fit && self.bytes_fit(growth, GrowFrom::Anywhere);
            };
            self.remove(index, now);
            self.evictions += 1;
            self.shrink_table_for(growth);
        }
    }

    /// Whether so much more fits into the bytes; grows the table and the slabs when that is what it takes.
    ///
    /// A table or a slab grows by a step or not at all, since a table is gone through when it does. One that could only
    /// grow by what it has just given up for logs does not: one counter that goes makes the place for another.
    fn bytes_fit(&mut self, growth: Growth, from: GrowFrom) -> bool {
        let wanted = capacity_for(self.table.len() + growth.counters);
        let more_entries = match wanted.saturating_sub(self.table.capacity()) {
            0 => 0,
            missing => missing.max(self.table.capacity() / MIN_STEP_DIVISOR),
        };
        if from == GrowFrom::Pool && self.pool.free() < more_entries * size_of::<Entry>() {
            return false;
        }
        let needed = self.overflow.bytes_needed(growth) + more_entries * size_of::<Entry>();
        if needed == 0 {
            return true;
        }
        let spare = if more_entries > 0 { self.table.capacity() / SPARE_DIVISOR } else { 0 };
        let short = (self.bytes() + needed + spare * size_of::<Entry>()).saturating_sub(self.allowance);
        if short > 0 {
            self.allowance += self.pool.take(short);
        }
        let Some(mut left) = self.allowance.checked_sub(self.bytes() + needed) else { return false };
        // What grows takes some more than it needs now, as far as that is affordable. It is not much: a store fills up, and
        // what its tables have too much of then, its logs lack.
        let reserved = self.reserved_entries();
        self.overflow.grow(growth, &mut left, reserved);
        if more_entries > 0 {
            let least = self.table.capacity() + more_entries;
            let most = least + left / size_of::<Entry>();
            self.table.grow((self.table.capacity() + spare).clamp(least, most), reserved);
        }
        true
    }

    /// How many places are reserved for the table, and for what it keeps beside: twice what it has of an even share.
    fn reserved_entries(&self) -> usize {
        (2 * self.pool.even_share() / size_of::<Entry>()).min(self.max_keys.saturating_mul(2))
    }

    /// Gives the memory of free places back once they cover what the bytes are short of, and not before they make a step.
    fn shrink_table_for(&mut self, growth: Growth) {
        let short = (self.bytes() + self.overflow.bytes_needed(growth)).saturating_sub(self.allowance);
        let wanted = capacity_for(self.table.len() + growth.counters);
        let free = self.table.capacity().saturating_sub(wanted);
        if short > 0 && free * size_of::<Entry>() >= short && free >= self.table.capacity() / MIN_STEP_DIVISOR {
            self.table.shrink(wanted);
        }
    }

    /// Forgets what no longer counts. Says how many went.
    pub(super) fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.table.len();
        let (due, overflow, expired) = (seconds(now), &mut self.overflow, &mut self.expired_leases);
        self.table.remove_all(|entry| entry.expires_secs <= due, |entry| *expired += overflow.forget(entry, now));
        if self.table.len() < self.table.capacity() / 4 {
            self.table.shrink(capacity_for(self.table.len() * 2));
            self.overflow.shrink();
        }
        self.return_unused();
        before - self.table.len()
    }

    /// Lets a quarter of the counters go, for a shard that has nothing left to let go itself.
    pub(super) fn evict_quarter(&mut self, now: Timestamp) {
        for _ in 0..self.table.len() / 4 {
            let Some(index) = self.pick_victim(None, &[], now) else { break };
            self.remove(index, now);
            self.evictions += 1;
        }
        self.table.shrink(capacity_for(self.table.len()));
        self.return_unused();
    }

    /// Returns to the pool what is not used.
    fn return_unused(&mut self) {
        let spare = self.allowance.saturating_sub(self.bytes());
        self.allowance -= spare;
        self.pool.give_back(spare);
    }

    fn remove(&mut self, index: EntryIndex, now: Timestamp) {
        let removed = self.table.remove(index);
        self.expired_leases += self.overflow.forget(&removed, now);
    }

    /// Which counter goes: of those from a counter's home on, or from a random place.
    fn pick_victim(&mut self, near: Option<&CounterName>, keep: &[CounterName], now: Timestamp) -> Option<EntryIndex> {
        if self.table.len() == 0 {
            return None;
        }
        let mut least: Option<((u8, u32), EntryIndex)> = None;
        let mut index = match near {
            Some(counter) => self.table.home(counter),
            None => self.random(),
        };
        for looked_at in 0..EVICTION_SAMPLES + EXTRA_EVICTION_SAMPLES {
            // Longer only while nothing was found that goes lightly.
            if looked_at >= EVICTION_SAMPLES && least.is_some_and(|((share, _), _)| share != EXHAUSTED_SHARE) {
                break;
            }
            let found = self.table.occupied_from(index);
            let entry = &self.table[found];
            index = self.table.next_index(found);
            if keep.contains(&entry.name) {
                continue;
            }
            if entry.expires_secs <= seconds(now) {
                return Some(found);
            }
            // Of equally used ones the first to be forgotten anyway.
            let rank = (entry.used_share_at(now), entry.expires_secs);
            if entry.kind != EntryKind::Leases && least.is_none_or(|(known, _)| rank < known) {
                least = Some((rank, found));
            }
        }
        least.map(|(_, index)| index)
    }

    /// A place at random (xorshift64).
    fn random(&mut self) -> EntryIndex {
        self.random_state ^= self.random_state << 13;
        self.random_state ^= self.random_state >> 7;
        self.random_state ^= self.random_state << 17;
        self.random_state as usize % self.table.capacity()
    }
}

fn seconds(now: Timestamp) -> u32 {
    u32::try_from(now.micros() / 1_000_000).unwrap_or(u32::MAX)
}

fn expires_secs(now: Timestamp, reset: u64) -> u32 {
    u32::try_from(now.plus(reset).micros().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn used_share(outcome: &Outcome) -> u8 {
    match (outcome.remaining, u64::from(outcome.limit)) {
        (0, _) | (_, 0) => EXHAUSTED_SHARE,
        (remaining, limit) => {
            let used = limit.saturating_sub(u64::from(remaining));
            u8::try_from(used * 254 / limit).unwrap_or(254)
        }
    }
}
