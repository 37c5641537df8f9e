//! How much the parts of a shard have to grow for the checks of a request.

/// A table or slab grows and shrinks by at least its size divided by this. Resizing moves all entries, and without a
/// minimum a full table with counters of several sizes would resize for nearly every new counter.
pub(super) const MIN_STEP_DIVISOR: usize = 128;

/// What checks may add to a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Growth {
    /// New counters.
    pub(super) counters: usize,
    /// New overflow logs: of a new counter, or of one whose entry has no room for another grant.
    pub(super) logs: usize,
    /// New lease sets.
    pub(super) lease_sets: usize,
    /// Heap bytes that logs and lease sets grow by.
    pub(super) heap_bytes: usize,
}

impl Growth {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            counters: self.counters + other.counters,
            logs: self.logs + other.logs,
            lease_sets: self.lease_sets + other.lease_sets,
            heap_bytes: self.heap_bytes + other.heap_bytes,
        }
    }
}
