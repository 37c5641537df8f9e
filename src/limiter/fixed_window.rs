//! Fixed window: one count, which drops to zero at the window's end.
//!
//! A window is aligned to the epoch, to a calendar, or to the first hit. Shared stores do not know time zones: they are
//! sent the boundaries around their own time, and are called again with others if those do not hold there (semantics 23).
//!
//! As with every fixed window, `limit` units can pass just before a boundary and `limit` more just after it.

use super::{Arithmetic, Calendar, LeaseId, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The parameters of a fixed window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FixedWindow {
    /// Maximum units in a window.
    pub limit: u32,
    /// Where windows start and end.
    pub alignment: Alignment,
}

/// Where windows start and end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Alignment {
    /// At whole multiples of this many microseconds since the Unix epoch.
    Epoch(u64),
    /// At the boundaries of a calendar.
    Calendar(&'static Calendar),
    /// At the first hit, for this many microseconds.
    FirstHit(u64),
}

/// The count of one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FixedCount {
    /// Where the window starts.
    pub start: Timestamp,
    /// Where it ends; from here on the count is zero.
    pub end: Timestamp,
    /// Units in it.
    pub count: u32,
}

impl FixedWindow {
    /// The window of a first hit at `now`.
    pub(super) fn window(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        match self.alignment {
            Alignment::Epoch(window) => {
                let start = Timestamp::from_micros(now.micros() - now.micros() % window);
                (start, start.plus(window))
            }
            Alignment::Calendar(calendar) => calendar.bounds(now).middle(),
            Alignment::FirstHit(window) => (now, now.plus(window)),
        }
    }

    /// The count at `now`, in its window.
    fn at(&self, fixed: &FixedCount, now: Timestamp) -> FixedCount {
        if now < fixed.end {
            return *fixed;
        }
        let (start, end) = self.window(now);
        FixedCount { start, end, count: 0 }
    }
}

impl Arithmetic for FixedWindow {
    type State = FixedCount;

    fn correct(&self, fixed: &mut FixedCount, now: Timestamp) -> bool {
        let ahead = fixed.start > now;
        if ahead {
            (fixed.start, fixed.end) = self.window(now);
        }
        ahead
    }

    fn refund(&self, fixed: &mut FixedCount, now: Timestamp, units: u32) -> bool {
        let live = now < fixed.end && fixed.count > 0;
        if live {
            fixed.count = fixed.count.saturating_sub(units);
        }
        live
    }

    /// Does nothing if the window of the charge has ended.
    fn undo(&self, fixed: &mut FixedCount, now: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        charged.at >= fixed.start && self.refund(fixed, now, charged.units())
    }

    fn wait(&self, fixed: &FixedCount, now: Timestamp, need: Need) -> Wait {
        let room = match need {
            Need::Fits(cost) if cost > self.limit => return Wait::Never,
            Need::Fits(cost) => cost,
            Need::OneLeft => 1,
        };
        let fixed = self.at(fixed, now);
        match u64::from(fixed.count) + u64::from(room) > u64::from(self.limit) {
            false => Wait::Met,
            true => Wait::For(fixed.end - now),
        }
    }

    fn charge(&self, fixed: &mut FixedCount, now: Timestamp, units: u32, _: LeaseId) -> u64 {
        let mut seen = self.at(fixed, now);
        if seen.count == 0 {
            // A window whose units were all refunded starts again at this hit.
            (seen.start, seen.end) = self.window(now);
        }
        let charged = units.min(u32::MAX - seen.count);
        *fixed = FixedCount { count: seen.count + charged, ..seen };
        charged.into()
    }

    fn report(&self, fixed: &FixedCount, now: Timestamp) -> Report {
        let fixed = self.at(fixed, now);
        let reset = if fixed.count == 0 { 0 } else { fixed.end - now };
        Report { limit: self.limit, remaining: self.limit.saturating_sub(fixed.count), reset }
    }
}
