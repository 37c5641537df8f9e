//! The clock of a shared store, as this process estimates it from the store's answers.

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock, Timestamp};

/// Attempts of a call whose calendar windows must contain the store's time: with the estimated time, with the time in
/// the store's answer, and once more if a window has just ended.
pub(in crate::store) const CALENDAR_ATTEMPTS: usize = 3;

/// The clock of a shared store. Only the boundaries that are sent with a plan depend on the estimate: the store decides
/// by its own clock, and refuses boundaries that do not hold for it.
#[derive(Debug, Default)]
pub(in crate::store) struct StoreClock {
    /// The time in the last answer, and when it arrived.
    last: Mutex<Option<(Timestamp, Instant)>>,
}

impl StoreClock {
    /// The store's time now. Before its first answer, the time of this process.
    pub(in crate::store) fn now(&self) -> Timestamp {
        match *self.last.lock() {
            Some((at, arrived)) => at + arrived.elapsed(),
            None => SystemClock::new().now(),
        }
    }

    /// Records the time in an answer.
    pub(in crate::store) fn record(&self, at: Timestamp) {
        *self.last.lock() = Some((at, Instant::now()));
    }
}
