//! Eviction: which counters go when a shard is full, and how far its table and slabs grow.

use super::growth::{Growth, MIN_STEP_DIVISOR};
use super::shard::Shard;
use super::table::{EXHAUSTED_SHARE, Entry, EntryIndex, EntryKind, SPARE_DIVISOR, capacity_for, whole_seconds};
use crate::clock::Timestamp;
use crate::plan::CounterName;

/// How many counters are looked at when one has to go: neighbours, from where the new one belongs, or a random place, on.
/// Where a counter is says nothing of how it is used, since its name is a keyed hash, and neighbours are on the way from
/// memory together.
const EVICTION_SAMPLES: usize = 16;

/// How many more are looked at when none of those may go lightly.
const EXTRA_EVICTION_SAMPLES: usize = 16 * EVICTION_SAMPLES;

/// Which bytes a table may grow by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GrowFrom {
    /// Those that no shard has taken yet.
    Pool,
    /// Its own as well, where no counter can go.
    Anywhere,
}

impl Shard {
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
    pub(super) fn reserved_entries(&self) -> usize {
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
    pub(super) fn return_unused(&mut self) {
        let spare = self.allowance.saturating_sub(self.bytes());
        self.allowance -= spare;
        self.pool.give_back(spare);
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
            if entry.expires_secs <= whole_seconds(now) {
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
