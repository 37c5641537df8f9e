//! Approximate sliding window: the count of the current window, and a decreasing share of the previous one.
//!
//! ```text
//!   |---- previous ----|---- current ----|
//!                      |<-elapsed->| now
//!             [ counted as k/K of previous, all of current ]
//! ```
//!
//! With W the window in microseconds, `s = ceil(W / 2^20)`, `K = ceil(W / s)` and `k = ceil((W - elapsed) / s)`, the
//! estimate is `ceil(previous x k / K) + current` (semantics 22). Windows are aligned to the epoch. At most `limit`
//! units pass in an aligned window and at most `2 x limit - 1` in any window of that length.

use super::{Arithmetic, LeaseId, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The parameters of an approximate sliding window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SlidingCounter {
    /// Maximum units in an aligned window.
    pub limit: u32,
    /// The window, in microseconds.
    pub window: u64,
}

/// The two counts, relative to the window of the last charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CounterPair {
    /// Where the current window starts.
    pub start: Timestamp,
    /// Units in the current window.
    pub current: u32,
    /// Units in the window before it.
    pub previous: u32,
}

impl SlidingCounter {
    fn start(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_micros(now.micros() - now.micros() % self.window)
    }

    /// The two counts relative to the window of `now`.
    fn at(&self, pair: &CounterPair, now: Timestamp) -> CounterPair {
        let start = self.start(now);
        match (start - pair.start) / self.window {
            0 => CounterPair { start, ..*pair },
            1 => CounterPair { start, current: 0, previous: pair.current },
            _ => CounterPair { start, current: 0, previous: 0 },
        }
    }

    /// Microseconds in a step (`s`).
    pub(crate) fn step(&self) -> u64 {
        self.window.div_ceil(1 << 20)
    }

    /// Number of steps in a window (`K`).
    pub(crate) fn steps(&self) -> u64 {
        self.window.div_ceil(self.step())
    }

    /// Units of the previous window that still count.
    fn carried(&self, pair: &CounterPair, now: Timestamp) -> u64 {
        let left = (self.window - (now - pair.start)).div_ceil(self.step());
        (u64::from(pair.previous) * left).div_ceil(self.steps())
    }

    fn estimate(&self, pair: &CounterPair, now: Timestamp) -> u64 {
        self.carried(pair, now) + u64::from(pair.current)
    }

    /// Microseconds into a window until the `previous` units of its predecessor count as at most `room`; `None` if they
    /// always count as more.
    fn elapsed_until(&self, previous: u32, room: u64) -> Option<u64> {
        if previous == 0 {
            return Some(0);
        }
        // ceil(previous x k / K) <= room  <=>  k <= room x K / previous, and k is at least 1 within a window.
        let k = room.min(u64::from(previous)) * self.steps() / u64::from(previous);
        (k > 0).then(|| self.window.saturating_sub(k * self.step()))
    }
}

impl Arithmetic for SlidingCounter {
    type State = CounterPair;

    fn correct(&self, pair: &mut CounterPair, now: Timestamp) -> bool {
        let ahead = pair.start > self.start(now);
        if ahead {
            pair.start = self.start(now);
        }
        ahead
    }

    fn refund(&self, pair: &mut CounterPair, now: Timestamp, units: u32) -> bool {
        let seen = self.at(pair, now);
        *pair = CounterPair { current: seen.current.saturating_sub(units), ..seen };
        true
    }

    /// Takes the units out of the window that counted them, which may be the previous one now.
    fn undo(&self, pair: &mut CounterPair, now: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        let (at, units) = (charged.at, charged.units());
        let seen = self.at(pair, now);
        *pair = match (seen.start.micros() - self.start(at).micros()) / self.window {
            0 => CounterPair { current: seen.current.saturating_sub(units), ..seen },
            1 => CounterPair { previous: seen.previous.saturating_sub(units), ..seen },
            _ => return false,
        };
        true
    }

    fn wait(&self, pair: &CounterPair, now: Timestamp, need: Need) -> Wait {
        let room = match need {
            Need::Fits(cost) if cost > self.limit => return Wait::Never,
            Need::Fits(cost) => cost,
            Need::OneLeft => 1,
        };
        let pair = self.at(pair, now);
        let allowed = u64::from(self.limit - room);
        if self.estimate(&pair, now) <= allowed {
            return Wait::Met;
        }
        let until = |moment: u64| Wait::For(moment - now.micros());
        let start = pair.start.micros();
        if let Some(room) = allowed.checked_sub(u64::from(pair.current))
            && let Some(elapsed) = self.elapsed_until(pair.previous, room)
        {
            return until(start + elapsed);
        }
        match self.elapsed_until(pair.current, allowed) {
            Some(elapsed) => until(start + self.window + elapsed),
            None => until(start + 2 * self.window),
        }
    }

    fn charge(&self, pair: &mut CounterPair, now: Timestamp, units: u32, _: LeaseId) -> u64 {
        let seen = self.at(pair, now);
        let charged = units.min(u32::MAX - seen.current);
        *pair = CounterPair { current: seen.current + charged, ..seen };
        charged.into()
    }

    fn report(&self, pair: &CounterPair, now: Timestamp) -> Report {
        let pair = self.at(pair, now);
        let left = u64::from(self.limit).saturating_sub(self.estimate(&pair, now));
        let until = |windows: u64| pair.start.micros() + windows * self.window - now.micros();
        let reset = match pair {
            CounterPair { current: 1.., .. } => until(2),
            CounterPair { previous: 1.., .. } => until(1),
            CounterPair { .. } => 0,
        };
        Report { limit: self.limit, remaining: u32::try_from(left).unwrap_or(u32::MAX), reset }
    }
}
