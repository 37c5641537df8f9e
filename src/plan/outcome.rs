//! The answers to a plan.

use smallvec::SmallVec;

use super::fault::Fault;
use crate::clock::Timestamp;
use crate::limiter::LeaseStatus;

/// The outcome of one check, after its group was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Whether this check passes. Another may still have refused its group.
    pub passes: bool,
    /// Maximum units of the counter: the burst of a bucket, the limit of a window, the slots of a concurrency limit.
    pub limit: u32,
    /// Whole units left.
    pub remaining: u32,
    /// Microseconds until the counter is empty.
    pub reset: u64,
    /// On a refusal: microseconds until the same check would pass. `None` when it never would.
    pub retry_after: Option<u64>,
    /// What this check added to its counter, as an [`Undo`](crate::plan::Undo) takes it back. A charge beyond what the
    /// counter can hold or owe adds less than it says.
    pub charged: u64,
    /// Of a check that holds: the units that its lease can correct, zero if it charged nothing on admission or the counter
    /// remembers no more holds. Of [`Holding::Reported`](crate::plan::Holding::Reported): all units that are held.
    pub held: u32,
}

/// The answers to a plan.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Whether every group was admitted.
    pub admitted: bool,
    /// One answer for each check of the plan.
    pub answers: SmallVec<[Result<Outcome, Fault>; 3]>,
    /// One status for each lease change of the plan, then one for each change of a hold.
    pub statuses: SmallVec<[LeaseStatus; 1]>,
    /// The moment of the decision, by the clock of the store.
    pub at: Timestamp,
    /// Whether a fallback answered instead of a shared store, or the policy of a limiter did (semantics 31).
    pub degraded: bool,
}
