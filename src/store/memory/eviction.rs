//! Eviction: makes room in a full shard, and bounds the growth of its table and slabs.

use super::growth::{Growth, MIN_STEP_DIVISOR};
use super::shard::Shard;
use super::table::{
    EXHAUSTED_AT_ONCE_SHARE, EntryIndex, EntryKind, SPARE_DIVISOR, TableEntry, capacity_for, whole_seconds,
};
use crate::clock::Timestamp;
use crate::plan::CounterName;

/// The number of counters compared to choose one to evict: neighbours of the new counter's home, or of a random index.
/// A name is a keyed hash, so a position in the table is independent of use, and neighbours share cache lines.
const EVICTION_SAMPLES: usize = 16;

/// The number of further counters examined while all candidates are exhausted.
const EXTRA_EVICTION_SAMPLES: usize = 16 * EVICTION_SAMPLES;

/// The source of the bytes for a larger table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GrowFrom {
    /// Only the bytes that no shard has taken.
    Pool,
    /// Also the shard's own bytes. Used if no counter can be evicted.
    Anywhere,
}

impl Shard {
    /// Makes room for `growth`. Returns whether it succeeds.
    ///
    /// Expired counters are evicted first, then those with the smallest used share among a few neighbours; then exhausted
    /// ones, those that have refused a request last, and counters with held leases never (semantics 30). Counters in
    /// `keep` stay.
    pub(super) fn make_room(
        &mut self,
        growth: Growth,
        counter: &CounterName,
        keep: &[CounterName],
        now: Timestamp,
    ) -> bool {
        if growth.heap_bytes > self.pool.total() {
            // It would not fit into an empty store either.
            return false;
        }
        // The first victim is near the new counter, whose cache lines are written anyway. Later ones are at random
        // places, so that a large log does not clear its own neighbourhood.
        let mut near = Some(counter);
        loop {
            let key_fits = self.table.len() + growth.counters <= self.max_keys;
            if key_fits && self.grow_for(growth, GrowFrom::Pool) {
                return true;
            }
            let Some(index) = self.pick_victim(near.take(), keep, now) else {
                return key_fits && self.grow_for(growth, GrowFrom::Anywhere);
            };
            self.remove(index, now);
            self.evictions += 1;
            self.shrink_table_for(growth);
        }
    }

    /// Grows the table and the slabs for `growth`, as far as needed. Returns whether there are bytes for it.
    ///
    /// A table or slab grows by at least a step, because resizing moves its entries. The table does not grow by bytes
    /// that it has just released for logs: then an evicted counter makes room for the new one.
    fn grow_for(&mut self, growth: Growth, from: GrowFrom) -> bool {
        let wanted = capacity_for(self.table.len() + growth.counters);
        let more_entries = match wanted.saturating_sub(self.table.capacity()) {
            0 => 0,
            missing => missing.max(self.table.capacity() / MIN_STEP_DIVISOR),
        };
        if from == GrowFrom::Pool && self.pool.free() < more_entries * size_of::<TableEntry>() {
            return false;
        }
        let needed = self.overflow.bytes_needed(growth) + more_entries * size_of::<TableEntry>();
        if needed == 0 {
            return true;
        }
        let spare = if more_entries > 0 { self.table.capacity() / SPARE_DIVISOR } else { 0 };
        let short = (self.bytes() + needed + spare * size_of::<TableEntry>()).saturating_sub(self.allowance);
        if short > 0 {
            self.allowance += self.pool.take(short);
        }
        let Some(mut left) = self.allowance.checked_sub(self.bytes() + needed) else { return false };
        // Growth adds spare room if there are bytes for it. Only a little: in a full store, logs lack the bytes that
        // tables hold spare.
        let reserved = self.reserved_entries();
        self.overflow.grow(growth, &mut left, reserved);
        if more_entries > 0 {
            let least = self.table.capacity() + more_entries;
            let most = least + left / size_of::<TableEntry>();
            self.table.grow((self.table.capacity() + spare).clamp(least, most), reserved);
        }
        true
    }

    /// The entries to reserve address space for, in the table and in each overflow slab: twice an even share of the store.
    pub(super) fn reserved_entries(&self) -> usize {
        (2 * self.pool.even_share() / size_of::<TableEntry>()).min(self.max_keys.saturating_mul(2))
    }

    /// Shrinks the table if its free entries cover the missing bytes and make at least a step.
    fn shrink_table_for(&mut self, growth: Growth) {
        let short = (self.bytes() + self.overflow.bytes_needed(growth)).saturating_sub(self.allowance);
        let wanted = capacity_for(self.table.len() + growth.counters);
        let free = self.table.capacity().saturating_sub(wanted);
        if short > 0 && free * size_of::<TableEntry>() >= short && free >= self.table.capacity() / MIN_STEP_DIVISOR {
            self.table.shrink(wanted);
        }
    }

    /// Evicts a quarter of the counters, for another shard that has nothing left to evict.
    pub(super) fn evict_quarter(&mut self, now: Timestamp) {
        for _ in 0..self.table.len() / 4 {
            let Some(index) = self.pick_victim(None, &[], now) else { break };
            self.remove(index, now);
            self.evictions += 1;
        }
        self.table.shrink(capacity_for(self.table.len()));
        self.return_unused();
    }

    /// Returns unused bytes to the pool.
    pub(super) fn return_unused(&mut self) {
        let spare = self.allowance.saturating_sub(self.bytes());
        self.allowance -= spare;
        self.pool.give_back(spare);
    }

    /// Chooses the counter to evict: among those from `near`'s home on, or from a random index on.
    fn pick_victim(&mut self, near: Option<&CounterName>, keep: &[CounterName], now: Timestamp) -> Option<EntryIndex> {
        if self.table.len() == 0 {
            return None;
        }
        let mut least: Option<((u8, u32), EntryIndex)> = None;
        let mut index = match near {
            Some(counter) => self.table.home(counter),
            None => self.random_index(),
        };
        for examined in 0..EVICTION_SAMPLES + EXTRA_EVICTION_SAMPLES {
            if examined >= EVICTION_SAMPLES && least.is_some_and(|((share, _), _)| share < EXHAUSTED_AT_ONCE_SHARE) {
                break;
            }
            let found = self.table.occupied_from(index);
            let entry = &self.table[found];
            index = self.table.next_index(found);
            if keep.contains(&entry.name) {
                continue;
            }
            if entry.expires_secs <= whole_seconds(now) {
                return Some(found);
            }
            // Of equally used counters, the one that expires first.
            let rank = self.rank(entry, now);
            if entry.kind != EntryKind::Leases && least.is_none_or(|(known, _)| rank < known) {
                least = Some((rank, found));
            }
        }
        least.map(|(_, index)| index)
    }

    /// The rank of a counter among those to evict: by its state, whatever is held (semantics 43).
    fn rank(&self, entry: &TableEntry, now: Timestamp) -> (u8, u32) {
        if self.holds.is_empty() {
            return (entry.used_share_at(now), entry.expires_secs);
        }
        let expires_secs = self.holds.get(&entry.name).map_or(entry.expires_secs, |holds| holds.state_expires_secs);
        match expires_secs <= whole_seconds(now) {
            true => (0, expires_secs),
            false => (TableEntry { expires_secs, ..*entry }.used_share_at(now), expires_secs),
        }
    }

    /// A random index (xorshift64).
    fn random_index(&mut self) -> EntryIndex {
        self.random_state ^= self.random_state << 13;
        self.random_state ^= self.random_state >> 7;
        self.random_state ^= self.random_state << 17;
        self.random_state as usize % self.table.capacity()
    }
}
