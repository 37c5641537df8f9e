//! Wrong tokens: a count, a line of the log once a second at most, and how many of their answers wait.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::clock::{Notice, Timestamp};

/// The shortest time between two lines of the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Calls that were rejected for their token.
#[derive(Debug)]
pub struct RejectedTokens {
    count: AtomicU64,
    waiting: AtomicUsize,
    log: Notice,
}

impl Default for RejectedTokens {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), waiting: AtomicUsize::new(0), log: Notice::every(LOG_INTERVAL) }
    }
}

impl RejectedTokens {
    /// Counts one more.
    pub(crate) fn count(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.log.count(1);
    }

    /// The count since the start.
    pub fn counted(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Those since the last line of the log, if another line is due.
    pub(crate) fn due(&self, now: Timestamp) -> Option<u64> {
        self.log.due(now)
    }

    /// A place among those that wait, unless `most` do.
    pub(crate) fn wait(&self, most: usize) -> Option<WaitingAnswer<'_>> {
        let place = WaitingAnswer(&self.waiting);
        (self.waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

/// An answer that waits, until dropped.
#[derive(Debug)]
pub(crate) struct WaitingAnswer<'a>(&'a AtomicUsize);

impl Drop for WaitingAnswer<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_52_only_so_many_answers_wait_and_a_second_has_one_line() {
        let rejected = RejectedTokens::default();
        let first = rejected.wait(2).expect("there is room");
        let second = rejected.wait(2).expect("there is room");
        assert!(rejected.wait(2).is_none());
        drop(first);
        assert!(rejected.wait(2).is_some());
        drop(second);
        for _ in 0..3 {
            rejected.count();
        }
        let lines = [100, 100, 101].map(|second| rejected.due(Timestamp::from_secs(second)));
        assert_eq!((lines, rejected.counted()), ([Some(3), None, None], 3));
    }
}
