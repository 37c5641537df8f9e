//! Readiness of this process, shared by `/readyz`, `/healthcheck` and gRPC health.

use std::sync::atomic::{AtomicU8, Ordering};

/// Waits for a required store.
const WAITING: u8 = 0;
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

/// Whether gateways should send requests here. A process that is stopping or waits for a store still answers those that
/// arrive.
#[derive(Debug)]
pub struct Health(AtomicU8);

impl Health {
    /// A process that serves.
    pub fn serving() -> Self {
        Self(AtomicU8::new(SERVING))
    }

    /// Whether gateways should send requests here.
    pub fn ready(&self) -> bool {
        self.0.load(Ordering::Relaxed) == SERVING
    }

    /// Not ready until [`Health::set_serving`]: a required store does not answer.
    pub(crate) fn set_waiting(&self) {
        // A process that is stopping stays so.
        let _ = self.0.compare_exchange(SERVING, WAITING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Ready, after waiting. Returns whether the process serves now; it may be stopping already.
    pub(crate) fn set_serving(&self) -> bool {
        self.0.compare_exchange(WAITING, SERVING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Not ready: the process is stopping.
    pub(crate) fn set_stopping(&self) {
        self.0.store(STOPPING, Ordering::Relaxed);
    }
}
