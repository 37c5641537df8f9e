//! The series of shared stores, which report plain numbers.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::series::{
    CLOCK_DIFFERENCE, NEAR_ANSWERS, POLICY_ANSWERS, Registry, STORE_BACKLOG_DROPPED, STORE_BACKLOG_HANDED_OVER,
    STORE_BACKLOG_RETRIES, STORE_CALL_DURATION, STORE_CALL_PLANS, STORE_ERRORS, STORE_UNDONE,
};
use crate::limiter::OnStoreError;
use crate::plan::Fault;
use crate::store::{DropReason, StoreObserver, Wrapper};

/// The series of one shared store.
pub(super) struct StoreMetrics {
    /// Seconds of each call.
    latency: Histogram,
    /// Plans of each call.
    batch: Histogram,
    /// Plans that were not answered, by [`Fault`].
    faults: [Counter; Fault::ALL.len()],
    /// Checks answered by policy: allow, deny, local.
    policy: [Counter; 3],
    /// Seconds by which the store's clock is ahead.
    clock_difference: Gauge,
    /// Plans that take charges back: done, failed.
    undone: [Counter; 2],
    /// Plans, counters and slots that wait to be handed over.
    /// Those that reached the store, and attempts that failed.
    handed_over: Counter,
    retries: Counter,
    /// Those that were dropped, by [`DropReason`].
    dropped: [Counter; DropReason::ALL.len()],
    /// Plans answered without a call: by the refusal cache, from a quota lease.
    answered_by_wrapper: [Counter; 2],
}

impl StoreMetrics {
    pub(super) fn new(store: &str, registry: &Registry<'_>) -> Self {
        let labels = [("store", store)];
        let by = |name, label, value| registry.counter(name, &[("store", store), (label, value)]);
        Self {
            latency: registry.histogram(STORE_CALL_DURATION, &labels),
            batch: registry.histogram(STORE_CALL_PLANS, &labels),
            faults: Fault::ALL.map(|fault| by(STORE_ERRORS, "kind", fault.name())),
            policy: ["allow", "deny", "local"].map(|policy| by(POLICY_ANSWERS, "policy", policy)),
            clock_difference: registry.gauge(CLOCK_DIFFERENCE, &labels),
            undone: ["done", "failed"].map(|result| by(STORE_UNDONE, "result", result)),
            handed_over: registry.counter(STORE_BACKLOG_HANDED_OVER, &labels),
            retries: registry.counter(STORE_BACKLOG_RETRIES, &labels),
            dropped: DropReason::ALL.map(|reason| by(STORE_BACKLOG_DROPPED, "reason", reason.name())),
            answered_by_wrapper: ["refusal_cache", "quota_lease"].map(|wrapper| by(NEAR_ANSWERS, "wrapper", wrapper)),
        }
    }
}

impl StoreObserver for StoreMetrics {
    fn called(&self, took: Duration, plans: usize) {
        self.latency.record(took);
        self.batch.record(plans as f64);
    }

    fn failed(&self, fault: Fault) {
        self.faults[fault as usize].increment(1);
    }

    fn answered_by_policy(&self, policy: OnStoreError, checks: u64) {
        self.policy[policy as usize].increment(checks);
    }

    fn undone(&self, failed: bool) {
        self.undone[usize::from(failed)].increment(1);
    }

    fn handed_over(&self) {
        self.handed_over.increment(1);
    }

    fn retried(&self) {
        self.retries.increment(1);
    }

    fn dropped(&self, reason: DropReason, count: u64) {
        self.dropped[reason as usize].increment(count);
    }

    fn clock_difference(&self, micros: i64) {
        self.clock_difference.set(micros as f64 / 1e6);
    }

    fn answered_by_wrapper(&self, by: Wrapper) {
        self.answered_by_wrapper[by as usize].increment(1);
    }
}
