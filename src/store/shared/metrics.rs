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
