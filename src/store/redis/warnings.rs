//! Rate-limited warnings about one store.

use std::fmt::Display;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The shortest time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Warnings about one Redis.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    last: Mutex<Option<Instant>>,
    /// The text of the latest warning, logged or not.
    latest: Mutex<String>,
}

impl Warnings {
    /// Logs a warning, unless another was logged within the interval.
    pub(super) fn warn(&self, text: &dyn Display) {
        *self.latest.lock() = text.to_string();
        let mut last = self.last.lock();
        if last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!("redis: {text}");
        }
    }

    /// The text of the latest warning, logged or not. Empty if there was none.
    pub(super) fn latest(&self) -> String {
        self.latest.lock().clone()
    }
}
