//! What a shared store reports about its calls, as plain numbers.

use std::time::Duration;

use crate::limiter::OnStoreError;
use crate::plan::Fault;

/// Counts what happens at a shared store. Called on the path of decisions, so it must not block.
pub trait StoreObserver: Send + Sync {
    /// A call with `plans` plans ended after `took`.
    fn called(&self, took: Duration, plans: usize);

    /// A plan was not answered.
    fn failed(&self, fault: Fault);

    /// Checks were answered by their limiter's `on_store_error` policy instead of the store.
    fn answered_by_policy(&self, policy: OnStoreError, checks: u64);

    /// The circuit breaker opened or closed.
    fn circuit(&self, open: bool);

    /// A plan that takes charges back was executed, or failed.
    fn undone(&self, failed: bool);

    /// A plan was answered without a call.
    fn answered_nearby(&self, by: Wrapper);
}

/// A wrapper that answers plans without a call to the shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// The cache of refusals.
    RefusalCache,
    /// A lease of quota.
    QuotaLease,
}
