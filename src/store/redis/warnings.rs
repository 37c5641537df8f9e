//! What goes wrong with a server is told now and then, not each time.

use std::fmt::Display;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long it is quiet after a warning.
const QUIET: Duration = Duration::from_secs(10);

/// Warnings about one Redis.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    last: Mutex<Option<Instant>>,
}

impl Warnings {
    /// Warns, unless that was done just now.
    pub(super) fn say(&self, text: &dyn Display) {
        let mut last = self.last.lock();
        if last.is_none_or(|last| last.elapsed() >= QUIET) {
            *last = Some(Instant::now());
            tracing::warn!("redis: {text}");
        }
    }
}
