//! Warnings about one shared store, which name it and are throttled by their kind.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::remedy::with_remedy;

/// The shortest time between two warnings of one kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The most kinds that are remembered.
const MAX_KINDS: usize = 256;

/// Warnings about one store. The kind of a warning is its text without numbers: one that repeats is logged now and then,
/// and never keeps another one from being logged.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    name: String,
    last: Mutex<HashMap<String, Instant, RandomState>>,
    /// The text of the latest warning, logged or not.
    latest: Mutex<String>,
}

impl Warnings {
    /// Warnings about the store with this name.
    pub(super) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The name of the store.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Logs a warning with what to do about it, unless one of its kind was logged within the interval.
    pub(super) fn warn(&self, text: &dyn Display) {
        let text = with_remedy(text.to_string());
        if self.is_due(&text) {
            tracing::warn!(store = self.name(), "{text}");
        }
        *self.latest.lock() = text;
    }

    /// The text of the latest warning, logged or not. Empty if there was none.
    pub(super) fn latest(&self) -> String {
        self.latest.lock().clone()
    }

    /// Whether a warning is to be logged now. If so, it counts as logged.
    fn is_due(&self, text: &str) -> bool {
        let kind: String = text.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        let mut last = self.last.lock();
        if last.len() >= MAX_KINDS && !last.contains_key(&kind) {
            last.retain(|_, logged| logged.elapsed() < WARNING_INTERVAL);
            if last.len() >= MAX_KINDS {
                last.clear();
            }
        }
        let due = last.get(&kind).is_none_or(|logged| logged.elapsed() >= WARNING_INTERVAL);
        if due {
            last.insert(kind, Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_logged_once_in_a_while_and_keeps_no_other_from_being_logged() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime starts").block_on(async {
            let warnings = Warnings::default();
            assert!(warnings.is_due("connection to 127.0.0.1:4000 lost"));
            assert!(warnings.is_due("invalid peer certificate: UnknownIssuer"), "the cause of it");
            assert!(!warnings.is_due("connection to 127.0.0.1:4001 lost"), "the same kind");
            tokio::time::advance(WARNING_INTERVAL).await;
            assert!(warnings.is_due("connection to 127.0.0.1:4000 lost"));
        });
    }

    #[test]
    fn the_kinds_that_are_remembered_are_bounded() {
        let warnings = Warnings::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
        let _entered = runtime.enter();
        let mut texts = (0..10 * MAX_KINDS).map(|number| "x".repeat(number));
        assert!(texts.all(|text| warnings.is_due(&text)));
        assert!(warnings.last.lock().len() <= MAX_KINDS);
    }
}
