//! Whether this process serves: one truth for `/livez`, `/readyz`, `/healthcheck` and gRPC health.

use std::sync::atomic::{AtomicBool, Ordering};

/// Says whether requests should be sent here. A process that is about to stop still answers those that are.
#[derive(Debug)]
pub struct Health {
    ready: AtomicBool,
}

impl Health {
    /// It serves.
    pub fn serving() -> Self {
        Self { ready: AtomicBool::new(true) }
    }

    /// Whether requests should be sent here.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// It is about to stop.
    pub(super) fn leave(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }
}
