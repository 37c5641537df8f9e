//! The route of a plan.

/// Where a plan is executed.
pub(super) enum PlanRoute {
    /// In this process's memory.
    Memory,
    /// In one partition of the shared store at this index.
    Store(u16),
    /// In several partitions.
    Several,
}
