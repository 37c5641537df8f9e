//! The log of refusals: some lines a second, and how many were left out since the last.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Door;
use crate::clock::Timestamp;
use crate::decision::{Decision, Refusal};

/// Writes refusals to the log, so many a second at most.
#[derive(Debug)]
pub struct Refusals {
    most: AtomicU32,
    /// The second in the upper half, and the lines written in it in the lower.
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Refusals {
    /// A log of so many lines a second at most; none at all with zero.
    pub fn new(most: u32) -> Self {
        Self { most: AtomicU32::new(most), second: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Another bound, from now on.
    pub fn limit(&self, most: u32) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Writes one, or counts it as left out.
    pub fn log(&self, door: Door, decision: &Decision, refusal: &Refusal<'_>, now: Timestamp) {
        let most = self.most.load(Ordering::Relaxed);
        if most == 0 {
            return;
        }
        if !self.may_write(now.micros() / 1_000_000, most) {
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

    fn may_write(&self, second: u64, most: u32) -> bool {
        let next = |told: u64| {
            let written = if told >> 32 == second & 0xffff_ffff { told as u32 } else { 0 };
            (written < most).then(|| second << 32 | u64::from(written + 1))
        };
        self.second.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_lines_and_the_next_one_begins_anew() {
        let refusals = Refusals::new(2);
        let written = [7, 7, 7, 8, 8, 8].map(|second| refusals.may_write(second, 2));
        assert_eq!(written, [true, true, false, true, true, false]);
    }
}
