//! Fixed window: one count, which drops to zero at the window's end.
//!
//! A window is aligned to the epoch, to a calendar, or to the first hit. The boundaries of a calendar are computed in
//! this process, which knows time zones, and are sent with the check (semantics 23); a store chooses among them by its
//! own clock.
//!
//! As with every fixed window, `limit` units can pass just before a boundary and `limit` more just after it.

use super::{Arithmetic, LeaseId, Need, Report, ReportedCharge, Wait};
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
    Calendar(CalendarBounds),
    /// At the first hit, for this many microseconds.
    FirstHit(u64),
}

/// Four boundaries in order, of three windows: the one that was current when they were computed, and its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct CalendarBounds(pub [Timestamp; 4]);

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

impl CalendarBounds {
    /// The window that contains `now`. Before the first and after the last boundary, the nearest window.
    fn around(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let [first, second, third, last] = self.0;
        match now {
            _ if now < second => (first, second),
            _ if now < third => (second, third),
            _ => (third, last.max(now.plus(1))),
        }
    }
}

impl FixedWindow {
    /// The window of a first hit at `now`.
    fn window(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        match self.alignment {
            Alignment::Epoch(window) => {
                let start = Timestamp::from_micros(now.micros() - now.micros() % window);
                (start, start.plus(window))
            }
            Alignment::Calendar(bounds) => bounds.around(now),
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
