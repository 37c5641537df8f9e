//! Warnings about clients, each logged at most once a minute.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Timestamp;

const INTERVAL_MICROS: u64 = 60_000_000;

/// Limits a warning to one line a minute.
#[derive(Debug, Default)]
pub(super) struct Notice {
    /// When the next line may be written, in microseconds.
    next: AtomicU64,
    /// Occurrences since the last line.
    count: AtomicU64,
}

impl Notice {
    /// Counts an occurrence. Returns how many there were since the last line, if one is due.
    pub(super) fn count(&self, now: Timestamp) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let now = now.micros();
        let due = |next| (now >= next).then(|| now.saturating_add(INTERVAL_MICROS));
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).ok()?;
        Some(self.count.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_due_once_a_minute_with_the_number_since_the_last_one() {
        let notice = Notice::default();
        let counted = [100, 100, 159, 160, 161].map(|second| notice.count(Timestamp::from_secs(second)));
        assert_eq!(counted, [Some(1), None, None, Some(3), None]);
    }
}
