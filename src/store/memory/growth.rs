//! What counters add to the parts of a shard.

/// A table grows and shrinks by so large a part of it at least: all of it is gone through each time, and that would be
/// for nearly every new counter of a table at its bound that holds counters of several sizes.
pub(super) const STEPS: usize = 128;

/// What checks may add to a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Growth {
    /// Counters.
    pub(super) counters: usize,
    /// Logs beside the table: of a new counter, or of one whose slot has no room for another grant.
    pub(super) logs: usize,
    /// Sets of leases beside the table.
    pub(super) leases: usize,
    /// Bytes that logs and sets of leases grow by.
    pub(super) heap: usize,
}

impl Growth {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            counters: self.counters + other.counters,
            logs: self.logs + other.logs,
            leases: self.leases + other.leases,
            heap: self.heap + other.heap,
        }
    }
}
