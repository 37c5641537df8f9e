//! Whether this process serves: one truth for `/livez`, `/readyz`, `/healthcheck` and gRPC health.

use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const SERVING: u8 = 1;
const LEAVING: u8 = 2;

/// Says whether requests should be sent here. A process that is about to stop, or waits for a store, still answers those
/// that are.
#[derive(Debug)]
pub struct Health(AtomicU8);

impl Health {
    /// It serves.
    pub fn serving() -> Self {
        Self(AtomicU8::new(SERVING))
    }

    /// Whether requests should be sent here.
    pub fn ready(&self) -> bool {
        self.0.load(Ordering::Relaxed) == SERVING
    }

    /// It waits for a store that is required.
    pub(crate) fn wait(&self) {
        self.0.store(WAITING, Ordering::Relaxed);
    }

    /// What it waited for is there. Says whether it serves now: it may be about to stop already.
    pub(crate) fn serve(&self) -> bool {
        self.0.compare_exchange(WAITING, SERVING, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It is about to stop.
    pub(crate) fn leave(&self) {
        self.0.store(LEAVING, Ordering::Relaxed);
    }
}
