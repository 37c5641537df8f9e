//! The overflow of a shard's table: logs of grants, lease sets and sets of remembered values, whose size varies.
//!
//! ```text
//!   entry: | name | words: index, 0, 0 | ...     slab: [Grants] [Grants] ...      heap: [moments]
//!                          '---------------------------------^   '-------------------------^
//! ```
//!
//! A state of fixed size is packed into the words of its entry, and so is a log of up to three grants, which most
//! clients of a sliding window have, and a single remembered value, because most addresses try one account. Other states
//! are in a slab, and the first word is the index there.

use slab::Slab;
use smallvec::SmallVec;

use super::growth::{Growth, MIN_STEP_DIVISOR};
use super::snapshot::{BUCKET_KIND, FIXED_KIND, PAIR_KIND, SnapshotValue};
use super::table::{EntryKind, SPARE_DIVISOR, TableEntry};
use crate::clock::Timestamp;
use crate::limiter::{BucketLevel, CounterPair, FixedCount, Grants, Leases, Remembered, RememberedValue, State};

/// The number of grants that fit into the words of an entry.
const INLINE_GRANTS: usize = 3;

/// The number of remembered values that fit into the words of an entry.
const INLINE_VALUES: usize = 1;

/// Marks an unused word of an inline log, and the moment of no value. Moments end before 2^53.
const UNUSED_WORD: u64 = u64::MAX;

/// The heap bytes of a pooled log: the first allocation of a new log. A log of another size would grow by other steps
/// than [`Overflow::log_growth`] computes.
const POOLED_LOG_BYTES: usize = 4 * size_of::<u64>();

/// The logs and sets of a shard.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    logs: OverflowSlab<Grants>,
    leases: OverflowSlab<Leases>,
    values: OverflowSlab<Remembered>,
    /// The number of counters that remember values, here or in their entries.
    remembering: usize,
    /// The heap bytes of all logs and sets.
    heap_bytes: usize,
    /// Empty logs, as many as a typical group has checks, so that deciding on an inline log does not allocate.
    log_pool: SmallVec<[Grants; 2]>,
}

impl Overflow {
    /// Bytes held, without the allocator's overhead and the pooled logs.
    pub(super) fn bytes(&self) -> usize {
        self.logs.bytes() + self.leases.bytes() + self.values.bytes() + self.heap_bytes
    }

    /// A copy of an entry's state, for a snapshot.
    pub(super) fn snapshot_value(&self, entry: &TableEntry) -> SnapshotValue {
        match entry.kind {
            EntryKind::Vacant | EntryKind::Bucket => SnapshotValue::Packed(BUCKET_KIND, entry.words),
            EntryKind::Pair => SnapshotValue::Packed(PAIR_KIND, entry.words),
            EntryKind::Fixed => SnapshotValue::Packed(FIXED_KIND, entry.words),
            EntryKind::InlineLog => {
                let mut grants = Grants::default();
                grants.refill(inline_grants(entry));
                SnapshotValue::Grants(grants)
            }
            EntryKind::Log => SnapshotValue::Grants(self.logs.slab[entry.words[0] as usize].clone()),
            EntryKind::Leases => SnapshotValue::Leases(self.leases.slab[entry.words[0] as usize].clone()),
            EntryKind::InlineValue => SnapshotValue::Remembered(Remembered::of_one(inline_value(entry))),
            EntryKind::Values => SnapshotValue::Remembered(self.values.slab[entry.words[0] as usize].clone()),
        }
    }

    /// Concurrency slots held under leases, including expired leases that are not swept yet.
    pub(super) fn held_leases(&self) -> usize {
        self.leases.slab.iter().map(|(_, leases)| leases.iter().count()).sum()
    }

    /// Whether a counter remembers values.
    pub(super) fn remembers(&self) -> bool {
        self.remembering > 0
    }

    /// Takes out the state of an entry.
    pub(super) fn take(&mut self, entry: &TableEntry) -> State {
        let TableEntry { words: [a, b, c], kind, .. } = *entry;
        match kind {
            EntryKind::Vacant => State::Empty,
            EntryKind::Bucket => State::Bucket(BucketLevel { level: a, at: Timestamp::from_micros(b), unit: c }),
            EntryKind::Pair => {
                State::Pair(CounterPair { start: Timestamp::from_micros(a), current: low(b), previous: low(b >> 32) })
            }
            EntryKind::Fixed => State::Fixed(FixedCount {
                start: Timestamp::from_micros(a),
                end: Timestamp::from_micros(b),
                count: low(c),
            }),
            EntryKind::InlineLog => {
                let mut grants = self.log_pool.pop().unwrap_or_default();
                grants.refill(inline_grants(entry));
                State::Grants(grants)
            }
            EntryKind::Log => {
                let grants = std::mem::take(&mut self.logs.slab[a as usize]);
                self.heap_bytes -= grants.heap_bytes();
                State::Grants(grants)
            }
            EntryKind::Leases => {
                let leases = std::mem::take(&mut self.leases.slab[a as usize]);
                self.heap_bytes -= leases.heap_bytes();
                State::Leases(leases)
            }
            EntryKind::InlineValue => State::Remembered(Remembered::of_one(inline_value(entry))),
            EntryKind::Values => {
                let values = std::mem::take(&mut self.values.slab[a as usize]);
                self.heap_bytes -= values.heap_bytes();
                State::Remembered(values)
            }
        }
    }

    /// Packs a state into words. A state that `from` had in a slab returns to its index there.
    pub(super) fn pack(&mut self, state: State, from: Option<&TableEntry>) -> (EntryKind, [u64; 3]) {
        let index = |kind| from.filter(|entry| entry.kind == kind).map(|entry| entry.words[0]);
        match state {
            State::Bucket(BucketLevel { level, at, unit }) => (EntryKind::Bucket, [level, at.micros(), unit]),
            State::Pair(CounterPair { start, current, previous }) => {
                (EntryKind::Pair, [start.micros(), u64::from(current) | u64::from(previous) << 32, 0])
            }
            State::Fixed(FixedCount { start, end, count }) => {
                (EntryKind::Fixed, [start.micros(), end.micros(), u64::from(count)])
            }
            State::Grants(grants) if grants.count() <= INLINE_GRANTS => {
                if let Some(index) = index(EntryKind::Log) {
                    self.logs.slab.remove(index as usize);
                }
                let mut words = [UNUSED_WORD; INLINE_GRANTS];
                words.iter_mut().zip(grants.moments()).for_each(|(word, moment)| *word = moment.micros());
                self.recycle_log(grants);
                (EntryKind::InlineLog, words)
            }
            State::Grants(grants) => {
                self.heap_bytes += grants.heap_bytes();
                (EntryKind::Log, [self.logs.store(index(EntryKind::Log), grants), 0, 0])
            }
            State::Leases(leases) => {
                self.heap_bytes += leases.heap_bytes();
                (EntryKind::Leases, [self.leases.store(index(EntryKind::Leases), leases), 0, 0])
            }
            State::Remembered(values) if values.count() <= INLINE_VALUES => {
                self.remembering += usize::from(from.is_none());
                if let Some(index) = index(EntryKind::Values) {
                    self.values.slab.remove(index as usize);
                }
                let words = values.iter().next().map(|known| [known.value, known.at.micros(), known.earlier.micros()]);
                (EntryKind::InlineValue, words.unwrap_or([UNUSED_WORD; 3]))
            }
            State::Remembered(values) => {
                self.remembering += usize::from(from.is_none());
                self.heap_bytes += values.heap_bytes();
                (EntryKind::Values, [self.values.store(index(EntryKind::Values), values), 0, 0])
            }
            // `advance` creates a state of the limit's kind before it changes anything.
            State::Empty => (EntryKind::Bucket, [0; 3]),
        }
    }

    /// Returns an unchanged state.
    pub(super) fn put_back(&mut self, state: State, entry: &TableEntry) {
        match (entry.kind, state) {
            (EntryKind::InlineLog, State::Grants(grants)) => self.recycle_log(grants),
            (EntryKind::Log, State::Grants(grants)) => {
                self.heap_bytes += grants.heap_bytes();
                self.logs.store(Some(entry.words[0]), grants);
            }
            (EntryKind::Leases, State::Leases(leases)) => {
                self.heap_bytes += leases.heap_bytes();
                self.leases.store(Some(entry.words[0]), leases);
            }
            (EntryKind::Values, State::Remembered(values)) => {
                self.heap_bytes += values.heap_bytes();
                self.values.store(Some(entry.words[0]), values);
            }
            (_, _) => {}
        }
    }

    /// Returns an empty log's allocation to the pool.
    fn recycle_log(&mut self, grants: Grants) {
        if self.log_pool.len() < self.log_pool.inline_size() && grants.heap_bytes() == POOLED_LOG_BYTES {
            self.log_pool.push(grants);
        }
    }

    /// Drops the overflow of a removed entry. Returns how many of its leases have expired.
    pub(super) fn forget(&mut self, entry: &TableEntry, now: Timestamp) -> u64 {
        let index = entry.words[0] as usize;
        match entry.kind {
            EntryKind::Vacant | EntryKind::Bucket | EntryKind::Pair | EntryKind::Fixed | EntryKind::InlineLog => 0,
            EntryKind::InlineValue => {
                self.remembering -= 1;
                0
            }
            EntryKind::Values => {
                self.remembering -= 1;
                self.heap_bytes -= self.values.slab.remove(index).heap_bytes();
                0
            }
            EntryKind::Log => {
                self.heap_bytes -= self.logs.slab.remove(index).heap_bytes();
                0
            }
            EntryKind::Leases => {
                let leases = self.leases.slab.remove(index);
                self.heap_bytes -= leases.heap_bytes();
                leases.expired(now) as u64
            }
        }
    }

    /// The most that a charge of `units` under `limit` adds to the log of an entry, or to a new log.
    pub(super) fn log_growth(&self, entry: Option<&TableEntry>, units: u32, limit: u32) -> Growth {
        let held = match entry.map(|entry| (entry.kind, entry)) {
            Some((EntryKind::Log, entry)) => {
                let heap = self.logs.slab[entry.words[0] as usize].growth(units, limit);
                return Growth { heap_bytes: heap, ..Growth::default() };
            }
            Some((EntryKind::InlineLog, entry)) => inline_grants(entry).count() as u32,
            _ => 0,
        };
        let full = limit.max(held);
        match (held + units.min(limit)).min(full) {
            total if total as usize <= INLINE_GRANTS => Growth::default(),
            total => Growth { logs: 1, heap_bytes: Grants::default().growth(total, full), ..Growth::default() },
        }
    }

    /// The most that a lease adds to the lease set of an entry, or to a new one.
    pub(super) fn lease_growth(&self, entry: Option<&TableEntry>) -> Growth {
        match entry.filter(|entry| entry.kind == EntryKind::Leases) {
            Some(entry) => {
                Growth { heap_bytes: self.leases.slab[entry.words[0] as usize].growth(), ..Growth::default() }
            }
            None => Growth { lease_sets: 1, heap_bytes: Leases::default().growth(), ..Growth::default() },
        }
    }

    /// The most that this number of values adds to the set of an entry, or to a new one.
    pub(super) fn value_growth(&self, entry: Option<&TableEntry>, values: usize) -> Growth {
        let held = match entry.map(|entry| (entry.kind, entry)) {
            Some((EntryKind::Values, entry)) => {
                let heap = self.values.slab[entry.words[0] as usize].growth(values);
                return Growth { heap_bytes: heap, ..Growth::default() };
            }
            Some((EntryKind::InlineValue, entry)) => usize::from(inline_value(entry).is_some()),
            _ => 0,
        };
        match held + values {
            total if total <= INLINE_VALUES => Growth::default(),
            total => Growth { value_sets: 1, heap_bytes: Remembered::default().growth(total), ..Growth::default() },
        }
    }

    /// The growth by a state from a snapshot.
    pub(super) fn snapshot_growth(value: &SnapshotValue) -> Growth {
        match value {
            SnapshotValue::Grants(grants) if grants.count() > INLINE_GRANTS => {
                Growth { logs: 1, heap_bytes: grants.heap_bytes(), ..Growth::default() }
            }
            SnapshotValue::Leases(leases) => {
                Growth { lease_sets: 1, heap_bytes: leases.heap_bytes(), ..Growth::default() }
            }
            SnapshotValue::Remembered(values) if values.count() > INLINE_VALUES => {
                Growth { value_sets: 1, heap_bytes: values.heap_bytes(), ..Growth::default() }
            }
            SnapshotValue::Packed(..)
            | SnapshotValue::Grants(_)
            | SnapshotValue::Remembered(_)
            | SnapshotValue::Holds(_) => Growth::default(),
        }
    }

    /// The bytes needed for this growth.
    pub(super) fn bytes_needed(&self, growth: Growth) -> usize {
        growth.heap_bytes
            + self.logs.missing(growth.logs) * size_of::<Grants>()
            + self.leases.missing(growth.lease_sets) * size_of::<Leases>()
            + self.values.missing(growth.value_sets) * size_of::<Remembered>()
    }

    /// Grows the slabs as far as needed, and by some spare room out of the `left` bytes. `reserved` is the largest number
    /// of entries to expect in each slab.
    pub(super) fn grow(&mut self, growth: Growth, left: &mut usize, reserved: usize) {
        self.logs.grow(growth.logs, left, reserved);
        self.leases.grow(growth.lease_sets, left, reserved);
        self.values.grow(growth.value_sets, left, reserved);
    }

    /// Releases the free ends of the slabs.
    pub(super) fn shrink(&mut self) {
        self.logs.shrink();
        self.leases.shrink();
        self.values.shrink();
    }
}

/// The grants of an inline log.
fn inline_grants(entry: &TableEntry) -> impl Iterator<Item = Timestamp> {
    entry.words.into_iter().take_while(|word| *word != UNUSED_WORD).map(Timestamp::from_micros)
}

/// The value of an entry that has room for one.
fn inline_value(entry: &TableEntry) -> Option<RememberedValue> {
    let [value, at, earlier] = entry.words;
    let [at, earlier] = [at, earlier].map(Timestamp::from_micros);
    (at.micros() != UNUSED_WORD).then_some(RememberedValue { value, at, earlier })
}

/// The logs of a shard, or its sets of one kind.
#[derive(Debug)]
struct OverflowSlab<T> {
    slab: Slab<T>,
    /// The entries that bytes are taken for. The slab reserves address space for more, as the table does.
    allotted: usize,
}

impl<T> Default for OverflowSlab<T> {
    fn default() -> Self {
        Self { slab: Slab::new(), allotted: 0 }
    }
}

impl<T> OverflowSlab<T> {
    fn bytes(&self) -> usize {
        self.allotted * size_of::<T>()
    }

    /// The number of entries to add for `more` values: none, or at least a step.
    fn missing(&self, more: usize) -> usize {
        match (self.slab.len() + more).saturating_sub(self.allotted) {
            0 => 0,
            entries => entries.max(self.allotted / MIN_STEP_DIVISOR),
        }
    }

    fn grow(&mut self, more: usize, left: &mut usize, reserved: usize) {
        let missing = self.missing(more);
        if missing == 0 {
            return;
        }
        let spare = (self.allotted / SPARE_DIVISOR).max(4).min(*left / size_of::<T>());
        *left -= spare * size_of::<T>();
        self.allotted += missing + spare;
        self.slab.reserve_exact(reserved.max(self.allotted) - self.slab.len());
    }

    fn shrink(&mut self) {
        self.slab.shrink_to_fit();
        self.allotted = self.allotted.min(self.slab.capacity());
    }

    /// Stores a value at the index it was taken from, or at a new one.
    fn store(&mut self, taken_from: Option<u64>, value: T) -> u64 {
        match taken_from {
            Some(index) => {
                self.slab[index as usize] = value;
                index
            }
            None => self.slab.insert(value) as u64,
        }
    }
}

#[cfg(test)]
impl Overflow {
    /// The entries for logs that bytes are taken for.
    pub(super) fn allotted_logs(&self) -> usize {
        self.logs.allotted
    }

    /// The number of logs in the overflow.
    pub(super) fn logs(&self) -> usize {
        self.logs.slab.len()
    }
}

/// The low half of a word.
fn low(word: u64) -> u32 {
    word as u32
}
