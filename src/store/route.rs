//! Where a plan is executed.

/// The stores that a plan concerns.
pub(super) enum PlanRoute {
    /// In this process's memory.
    Memory,
    /// In one partition of a shared store.
    Store(u16),
    /// In several partitions.
    Several,
}
