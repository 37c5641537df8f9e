//! The counters of one shard by name, bounded in bytes and in number.
//!
//! ```text
//!   Shard -- table.rs     an entry for each counter, with small states inside
//!         |- overflow.rs  logs of grants, lease sets and sets of remembered values
//!         |- holds.rs     charges that leases can correct
//!         |- eviction.rs  the choice of counters to remove when the shard is full
//!         '- pool.rs      the bytes that the shards of a store share
//! ```

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::growth::Growth;
use super::holds::HoldTable;
use super::overflow::Overflow;
use super::pool::BytePool;
use super::snapshot::{BUCKET_KIND, FileVersion, PAIR_KIND, SnapshotRecord, SnapshotValue};
use super::table::{
    CoarseSeconds, EXHAUSTED_AT_ONCE_SHARE, EXHAUSTED_SHARE, EntryIndex, EntryKind, REFUSING_SHARE, ShardTable,
    TableEntry, capacity_for, whole_seconds,
};
use crate::clock::Timestamp;
use crate::limiter::{Hold, Holds, LeaseId, Limit, SlidingWindow, State};
use crate::plan::{Check, CounterName, Outcome};

#[cfg(test)]
mod tests;

/// The estimated bytes of a snapshot record without overflow.
const RECORD_BYTES: usize = 50;

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) table: ShardTable,
    pub(super) overflow: Overflow,
    pub(super) holds: HoldTable,
    /// Bytes taken from the pool, used or not.
    pub(super) allowance: usize,
    /// The bytes that no shard has taken.
    pub(super) pool: Arc<BytePool>,
    /// The maximum number of counters.
    pub(super) max_keys: usize,
    /// The state of the random generator that chooses where to evict.
    pub(super) random_state: u64,
    /// Counters evicted before they expired.
    pub(super) evictions: u64,
    /// Leases that were dropped because they expired without a release.
    pub(super) expired_leases: u64,
    /// The snapshot that waits for a copy of the counters. It is sent before they next change.
    pub(super) pending_snapshot: Option<Sender<Vec<u8>>>,
}

impl Shard {
    pub(super) fn new(pool: Arc<BytePool>, max_keys: usize, seed: u64) -> Self {
        Self {
            table: ShardTable::default(),
            overflow: Overflow::default(),
            holds: HoldTable::default(),
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

    /// Bytes held, without the allocator's overhead.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.overflow.bytes() + self.holds.bytes()
    }

    /// Concurrency slots held under leases, including expired leases that are not swept yet.
    pub(super) fn held_leases(&self) -> usize {
        self.overflow.held_leases()
    }

    /// The version of a snapshot that can have the counters.
    pub(super) fn file_version(&self) -> FileVersion {
        match (self.overflow.remembers(), self.holds.is_empty()) {
            (true, _) => FileVersion::Values,
            (false, false) => FileVersion::Holds,
            (false, true) => FileVersion::Counters,
        }
    }

    /// Sends a copy of the counters to a snapshot that waits for it.
    #[inline]
    pub(super) fn copy_to_snapshot(&mut self) {
        if let Some(sender) = self.pending_snapshot.take() {
            self.send_copy(&sender);
        }
    }

    #[cold]
    fn send_copy(&self, sender: &Sender<Vec<u8>>) {
        let mut bytes = Vec::with_capacity(self.table.len() * RECORD_BYTES + self.overflow.bytes());
        for entry in self.table.iter() {
            let value = self.overflow.snapshot_value(entry);
            SnapshotRecord { name: entry.name, expires_secs: entry.expires_secs, used_share: entry.used_share, value }
                .write(&mut bytes);
            if let Some(holds) = self.holds.get(&entry.name) {
                let (expires_secs, value) =
                    (holds.state_expires_secs, SnapshotValue::Holds(holds.iter().copied().collect()));
                SnapshotRecord { name: entry.name, expires_secs, used_share: 0, value }.write(&mut bytes);
            }
        }
        // The receiver is gone if the snapshot failed.
        let _ = sender.send(bytes);
    }

    /// Restores the holds of a counter that is restored already, if there is room.
    fn restore_holds(&mut self, name: &CounterName, state_expires_secs: u32, holds: Vec<Hold>, now: Timestamp) {
        let holds = Box::new(Holds::restore(holds));
        let growth = Growth { heap_bytes: self.holds.growth(name) + holds.heap_bytes(), ..Growth::default() };
        if self.find(name).is_some() && self.make_room(growth, name, &[*name], now) {
            let expires_secs = self.holds.put(name, holds, state_expires_secs);
            self.set_expiry(name, expires_secs);
        }
    }

    /// Restores a counter from a snapshot if it has not expired and there is room. Returns whether it did; the holds of a
    /// counter are no counter.
    pub(super) fn restore(&mut self, record: SnapshotRecord, now: Timestamp) -> bool {
        if let SnapshotValue::Holds(holds) = record.value {
            self.restore_holds(&record.name, record.expires_secs, holds, now);
            return false;
        }
        if record.expires_secs <= whole_seconds(now) || self.find(&record.name).is_some() {
            return false;
        }
        let growth = Growth { counters: 1, ..Overflow::snapshot_growth(&record.value) };
        if !self.make_room(growth, &record.name, &[], now) {
            return false;
        }
        let (kind, words) = match record.value {
            SnapshotValue::Packed(BUCKET_KIND, words) => (EntryKind::Bucket, words),
            SnapshotValue::Packed(PAIR_KIND, words) => (EntryKind::Pair, words),
            // The parser rejects other kinds.
            SnapshotValue::Packed(_, words) => (EntryKind::Fixed, words),
            SnapshotValue::Grants(grants) => self.overflow.pack(State::Grants(grants), None),
            SnapshotValue::Leases(leases) => self.overflow.pack(State::Leases(leases), None),
            SnapshotValue::Remembered(values) => self.overflow.pack(State::Remembered(values), None),
            SnapshotValue::Holds(_) => return false,
        };
        self.table.insert(TableEntry {
            name: record.name,
            words,
            expires_secs: record.expires_secs,
            // A snapshot does not have it: an exhausted bucket stays so until it is full again, or charged.
            exhausted_for: CoarseSeconds::MAX,
            used_share: record.used_share,
            kind,
        });
        true
    }

    /// Loads the home entry of a counter into the cache.
    pub(super) fn prefetch(&self, name: &CounterName) {
        self.table.prefetch(name);
    }

    /// The index of a counter, if it is held.
    pub(super) fn find(&self, name: &CounterName) -> Option<EntryIndex> {
        self.table.find(name)
    }

    /// Removes a counter and returns whether it was held.
    pub(super) fn forget(&mut self, name: &CounterName) -> bool {
        let Some(index) = self.find(name) else { return false };
        // At the epoch none of its leases has expired, so none is counted as expired.
        self.remove(index, Timestamp::default());
        true
    }

    /// Takes out a counter's state to decide on it. [`Shard::put`] or [`Shard::put_back`] follows under the same lock.
    pub(super) fn take(&mut self, index: Option<EntryIndex>) -> State {
        match index {
            Some(index) => self.overflow.take(&self.table[index]),
            None => State::Empty,
        }
    }

    /// The units that a lease holds on a counter. `None` if it holds nothing there.
    pub(super) fn held_units(&self, name: &CounterName, lease: LeaseId) -> Option<u32> {
        self.holds.get(name)?.iter().find(|hold| hold.id == lease).map(Hold::units)
    }

    /// Takes out the holds of a counter. [`Shard::put_holds`] follows under the same lock.
    pub(super) fn take_holds(&mut self, name: &CounterName) -> Option<Box<Holds>> {
        if self.holds.is_empty() { None } else { self.holds.take(name) }
    }

    /// Puts the holds of a counter back, after its state. Those of a counter that has no entry are dropped.
    #[cold]
    pub(super) fn put_holds(&mut self, name: &CounterName, holds: Option<Box<Holds>>) {
        let Some(holds) = holds else { return };
        match self.find(name) {
            Some(index) => {
                let expires_secs = self.holds.put(name, holds, self.table[index].expires_secs);
                self.table[index].expires_secs = expires_secs;
            }
            None => self.holds.forget(name),
        }
    }

    fn set_expiry(&mut self, name: &CounterName, expires_secs: u32) {
        if let Some(index) = self.find(name) {
            self.table[index].expires_secs = expires_secs;
        }
    }

    /// Writes a changed or new state, which counts for `lasts` microseconds. Room must have been made.
    pub(super) fn put(
        &mut self,
        name: &CounterName,
        index: Option<EntryIndex>,
        state: State,
        outcome: &Outcome,
        lasts: u64,
        now: Timestamp,
    ) {
        let (mut expires_secs, used_share) = (expires_secs(now, lasts), used_share(&state, outcome));
        if !self.holds.is_empty() {
            expires_secs = self.holds.state_expires(name, expires_secs);
        }
        let exhausted_for = exhausted_for(&state, outcome, lasts);
        let (kind, words) = self.overflow.pack(state, index.map(|index| &self.table[index]));
        let entry = TableEntry { name: *name, words, expires_secs, exhausted_for, used_share, kind };
        match index {
            Some(index) => self.table[index] = entry,
            None => self.table.insert(entry),
        }
    }

    /// Returns an unchanged state.
    pub(super) fn put_back(&mut self, index: Option<EntryIndex>, state: State) {
        if let Some(index) = index {
            self.overflow.put_back(state, &self.table[index]);
        }
    }

    /// Records that a counter has refused a request and did not change.
    pub(super) fn record_refusal(&mut self, index: Option<EntryIndex>) {
        if let Some(index) = index
            && self.table[index].used_share >= EXHAUSTED_AT_ONCE_SHARE
        {
            self.table[index].used_share = REFUSING_SHARE;
        }
    }

    /// Whether a check may add anything to the counter at `index`, or as a new one.
    #[inline]
    pub(super) fn grows(&self, check: &Check, index: Option<EntryIndex>) -> bool {
        match (index, check.limit) {
            // The states of most limits fit into their entries.
            (Some(_), Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_))
                if !check.holding.holds() =>
            {
                false
            }
            (_, _) => self.growth(check, index) != Growth::default(),
        }
    }

    /// The most that a check adds to the counter at `index`, or as a new one.
    pub(super) fn growth(&self, check: &Check, index: Option<EntryIndex>) -> Growth {
        let units = check.charges.admitted.max(check.charges.passed).max(check.charges.refused);
        if units == 0 {
            return Growth::default();
        }
        let held = index.map(|index| &self.table[index]);
        let new = usize::from(index.is_none());
        let mut growth = match check.limit {
            Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {
                Growth { counters: new, ..Growth::default() }
            }
            Limit::SlidingWindow(SlidingWindow { limit, .. }) => {
                Growth { counters: new, ..self.overflow.log_growth(held, units, limit) }
            }
            Limit::Concurrency(_) => Growth { counters: new, ..self.overflow.lease_growth(held) },
            Limit::Distinct(distinct) => {
                Growth { counters: new, ..self.overflow.value_growth(held, distinct.asked.count()) }
            }
        };
        if check.holding.holds() {
            growth.heap_bytes += self.holds.growth(&check.counter);
        }
        growth
    }

    /// Removes expired counters and returns how many.
    pub(super) fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.table.len();
        let (due, overflow, expired) = (whole_seconds(now), &mut self.overflow, &mut self.expired_leases);
        let holds = &mut self.holds;
        self.table.remove_all(
            |entry| entry.expires_secs <= due,
            |entry| {
                *expired += overflow.forget(entry, now);
                holds.forget(&entry.name);
            },
        );
        if self.table.len() < self.table.capacity() / 4 {
            self.table.shrink(capacity_for(self.table.len() * 2));
            self.overflow.shrink();
        }
        self.return_unused();
        before - self.table.len()
    }

    pub(super) fn remove(&mut self, index: EntryIndex, now: Timestamp) {
        let removed = self.table.remove(index);
        self.expired_leases += self.overflow.forget(&removed, now);
        if !self.holds.is_empty() {
            self.holds.forget(&removed.name);
        }
    }
}

/// The Unix time in seconds, rounded up, at which a state that lasts `lasts` microseconds ends.
fn expires_secs(now: Timestamp, lasts: u64) -> u32 {
    u32::try_from(now.plus(lasts).micros().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// The used share of the limit after an outcome.
fn used_share(state: &State, outcome: &Outcome) -> u8 {
    match (outcome.remaining, u64::from(outcome.limit)) {
        (0, _) | (_, 0) if !outcome.passes => REFUSING_SHARE,
        (0, limit) if outcome.charged >= whole(state, limit) => EXHAUSTED_AT_ONCE_SHARE,
        (0, _) | (_, 0) => EXHAUSTED_SHARE,
        (remaining, limit) => {
            let used = limit.saturating_sub(u64::from(remaining));
            u8::try_from(used * u64::from(EXHAUSTED_AT_ONCE_SHARE - 1) / limit).unwrap_or(EXHAUSTED_AT_ONCE_SHARE - 1)
        }
    }
}

/// What is charged by a request that uses a whole limit.
fn whole(state: &State, limit: u64) -> u64 {
    match state {
        State::Bucket(bucket) => limit.saturating_mul(bucket.unit),
        _ => limit,
    }
}

/// How long a bucket has no unit left after an outcome. It drains evenly for `lasts` microseconds.
fn exhausted_for(state: &State, outcome: &Outcome, lasts: u64) -> CoarseSeconds {
    let State::Bucket(bucket) = state else { return CoarseSeconds::ZERO };
    // Most charges leave something, and need no division.
    if outcome.remaining > 0 {
        return CoarseSeconds::ZERO;
    }
    let with_a_unit = u64::from(outcome.limit.saturating_sub(1)).saturating_mul(bucket.unit);
    let excess = bucket.level.saturating_sub(with_a_unit);
    let wait = u128::from(lasts) * u128::from(excess) / u128::from(bucket.level.max(1));
    CoarseSeconds::of(u64::try_from(wait).unwrap_or(u64::MAX))
}
