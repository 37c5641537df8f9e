//! The circuit breaker of one lane of a shared store.
//!
//! It opens when the store is unreachable, or after [`FAILURES_TO_OPEN`] failures in a row that last longer than the
//! timeout. While it is open, plans fail at once and a probe runs every [`PROBE_INTERVAL`], and as soon as the lane is
//! connected again, until one succeeds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plan::Fault;

/// Consecutive failures that open the breaker once they last longer than the timeout. A single late answer fails every
/// plan that waited for it, so several failures at one moment may have one cause.
const FAILURES_TO_OPEN: u32 = 10;

/// The pause between two probes while the breaker is open.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The circuit breaker of one lane of a store.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    failures: Mutex<FailureStreak>,
    circuit_open: AtomicBool,
    /// The number of calls in flight.
    in_flight: AtomicUsize,
    open_notify: Notify,
}

/// Consecutive failures.
#[derive(Debug, Default)]
struct FailureStreak {
    count: u32,
    since: Option<Instant>,
}

impl CircuitBreaker {
    pub(super) fn circuit_open(&self) -> bool {
        self.circuit_open.load(Ordering::Relaxed)
    }

    pub(super) fn call_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    pub(super) fn begin_call(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_call(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until the breaker opens.
    pub(super) async fn opened(&self) {
        self.open_notify.notified().await;
    }

    /// Records a failure. Returns whether it opens the breaker.
    pub(super) fn record_failure(&self, fault: Fault, timeout: Duration) -> bool {
        let persistent = {
            let mut failures = self.failures.lock();
            failures.count += 1;
            let since = *failures.since.get_or_insert_with(Instant::now);
            failures.count >= FAILURES_TO_OPEN && since.elapsed() >= timeout
        };
        // Without a connection waiting is pointless.
        let enough = persistent || fault == Fault::Unreachable;
        let opens = enough && !self.circuit_open.swap(true, Ordering::AcqRel);
        if opens {
            self.open_notify.notify_one();
        }
        opens
    }

    /// Records an answer in time. Returns whether it closes the breaker.
    pub(super) fn record_answer(&self) -> bool {
        *self.failures.lock() = FailureStreak::default();
        self.circuit_open.load(Ordering::Relaxed) && self.circuit_open.swap(false, Ordering::AcqRel)
    }
}
