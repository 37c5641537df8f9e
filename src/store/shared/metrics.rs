//! The observer of a shared store: it receives plain numbers, so that a store depends on no metrics library.

use std::time::Duration;

use crate::limiter::OnStoreError;
use crate::plan::Fault;

/// Counts the calls and faults of a shared store. Called while a decision waits, so it must not block.
pub trait StoreObserver: Send + Sync {
    /// A call with `plans` plans ended after `took`.
    fn called(&self, took: Duration, plans: usize);

    /// The store did not answer a plan.
    fn failed(&self, fault: Fault);

    /// Checks were answered by their limiter's `on_store_error` policy instead of the store.
    fn answered_by_policy(&self, policy: OnStoreError, checks: u64);

    /// A plan with undos was executed, or failed.
    fn undone(&self, failed: bool);

    /// Something of the backlog reached the store.
    fn handed_over(&self);

    /// Something of the backlog was sent without success, and will be sent again.
    fn retried(&self);

    /// Something of the backlog was dropped.
    fn dropped(&self, reason: DropReason, count: u64);

    /// The store's clock is `micros` ahead of this process's, or behind it if negative. Includes the duration of the
    /// call.
    fn clock_difference(&self, micros: i64);

    /// A wrapper answered a plan without a call.
    fn answered_by_wrapper(&self, by: Wrapper);
}

/// A wrapper of a shared store: it answers some plans without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// The refusal cache.
    RefusalCache,
    /// The quota leases.
    QuotaLease,
}

/// Why something of a backlog was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its lease or its window has ended, so that it would change nothing.
    Expired,
    /// The backlog is full.
    Full,
    /// It may have been executed, and executing it again could charge or give back units twice.
    Unknown,
    /// The store reported an error for it.
    Refused,
    /// The process ends, or a reload has removed the store.
    Closed,
}

impl DropReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [DropReason; 5] =
        [DropReason::Expired, DropReason::Full, DropReason::Unknown, DropReason::Refused, DropReason::Closed];

    /// The value of labels.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Expired => "expired",
            DropReason::Full => "full",
            DropReason::Unknown => "unknown",
            DropReason::Refused => "refused",
            DropReason::Closed => "closed",
        }
    }
}
