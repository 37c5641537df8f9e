//! The growth of the parts of a shard by the checks of a plan.

/// A table or slab grows and shrinks by at least its size divided by this. Resizing moves all entries, and without a
/// minimum a full table with counters of several sizes would resize for nearly every new counter.
pub(super) const MIN_STEP_DIVISOR: usize = 128;

/// The most that checks may add to a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Growth {
    /// New counters.
    pub(super) counters: usize,
    /// New overflow logs, of counters whose entries have no room for all grants.
    pub(super) logs: usize,
    /// New lease sets.
    pub(super) lease_sets: usize,
    /// New sets of remembered values, of counters whose entries have room for one.
    pub(super) value_sets: usize,
    /// Additional heap bytes of logs and sets.
    pub(super) heap_bytes: usize,
}

impl Growth {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            counters: self.counters + other.counters,
            logs: self.logs + other.logs,
            lease_sets: self.lease_sets + other.lease_sets,
            value_sets: self.value_sets + other.value_sets,
            heap_bytes: self.heap_bytes + other.heap_bytes,
        }
    }
}
