//! The circuit breaker of one part of a shared store.
//!
//! It opens when the store is unreachable, or after [`FAILURES_TO_OPEN`] failures in a row that last longer than a
//! deadline. While it is open plans fail at once and a probe runs every [`PROBE_INTERVAL`] until one succeeds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::plan::Fault;

/// Consecutive failures that open the breaker once they last longer than a deadline. A single late answer fails every
/// plan that waited for it, so a few failures at one moment mean little.
const FAILURES_TO_OPEN: u32 = 10;

/// Time between two probes of a store whose breaker is open.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The circuit breaker of one part of a store.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: Mutex<FailureRun>,
    circuit_open: AtomicBool,
    /// Calls without an answer yet.
    in_flight: AtomicUsize,
    /// Whether the store was away, or failed to execute a plan, since it last recovered. A single late answer does not
    /// count: the fallback would start afresh after each.
    faulty: AtomicBool,
    opened: Notify,
}

/// Consecutive failures.
#[derive(Debug, Default)]
struct FailureRun {
    count: u32,
    since: Option<Instant>,
}

impl Breaker {
    pub(super) fn circuit_open(&self) -> bool {
        self.circuit_open.load(Ordering::Relaxed)
    }

    pub(super) fn faulty(&self) -> bool {
        self.faulty.load(Ordering::Acquire)
    }

    pub(super) fn set_faulty(&self) {
        self.faulty.store(true, Ordering::Release);
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

    /// Returns once the breaker has opened.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Records a failure and returns whether it opens the breaker. One pause that many plans waited for does not.
    pub(super) fn record_failure(&self, fault: Fault, deadline: Duration) -> bool {
        let persistent = {
            let mut failures = self.failures.lock();
            failures.count += 1;
            let since = *failures.since.get_or_insert_with(Instant::now);
            failures.count >= FAILURES_TO_OPEN && since.elapsed() >= deadline
        };
        // Without a connection there is nothing to wait for.
        let enough = persistent || fault == Fault::Unreachable;
        if enough {
            self.set_faulty();
        }
        let opens = enough && !self.circuit_open.swap(true, Ordering::AcqRel);
        if opens {
            self.opened.notify_one();
        }
        opens
    }

    /// Records a successful write. Returns whether the store was faulty before.
    pub(super) fn record_write(&self) -> bool {
        self.faulty.load(Ordering::Relaxed) && self.faulty.swap(false, Ordering::AcqRel)
    }

    /// Records an answer in time. Returns whether it closes the breaker.
    pub(super) fn record_answer(&self) -> bool {
        *self.failures.lock() = FailureRun::default();
        self.circuit_open.load(Ordering::Relaxed) && self.circuit_open.swap(false, Ordering::AcqRel)
    }
}
