//! The log of refusals: a limited number of lines per second, each with the number of refusals left out before it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Door;
use crate::clock::Timestamp;
use crate::decision::{Decision, Refusal};

/// Logs refusals, with a limit of lines per second.
#[derive(Debug)]
pub struct RefusalLog {
    lines_per_second: AtomicU32,
    /// The current second in the upper half, and the lines written in it in the lower half.
    second_and_lines: AtomicU64,
    left_out: AtomicU64,
}

impl RefusalLog {
    /// A log of at most `lines_per_second`. Zero turns it off.
    pub fn new(lines_per_second: u32) -> Self {
        Self {
            lines_per_second: AtomicU32::new(lines_per_second),
            second_and_lines: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Changes the limit.
    pub fn set_limit(&self, lines_per_second: u32) {
        self.lines_per_second.store(lines_per_second, Ordering::Relaxed);
    }

    /// Logs a refusal, or counts it as left out.
    pub fn log(&self, door: Door, decision: &Decision, refusal: &Refusal<'_>, now: Timestamp) {
        let limit = self.lines_per_second.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        if !self.reserve_line(now.micros() / 1_000_000, limit) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        tracing::info!(
            target: "tollgate::refusals",
            door = door.name(),
            domain = decision.domain(),
            rule = refusal.rule,
            limiter = refusal.limiter,
            reason = refusal.reason.name(),
            key = decision.counter().map(tracing::field::display),
            retry_after_ms = refusal.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            left_out,
            "refused"
        );
    }

    /// Takes one of the lines of a second. Returns whether there was one.
    fn reserve_line(&self, second: u64, limit: u32) -> bool {
        let next = |last: u64| {
            let written = if last >> 32 == second & 0xffff_ffff { last as u32 } else { 0 };
            (written < limit).then(|| second << 32 | u64::from(written + 1))
        };
        self.second_and_lines.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_limit_of_lines_and_the_next_second_starts_anew() {
        let refusals = RefusalLog::new(2);
        let written = [7, 7, 7, 8, 8, 8].map(|second| refusals.reserve_line(second, 2));
        assert_eq!(written, [true, true, false, true, true, false]);
    }
}
