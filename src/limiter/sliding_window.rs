//! Exact sliding window: a log of grants, at most `limit` of them in any window.
//!
//! ```text
//!            |<------- window ------->|
//!   x    x   |x      x  x          x  | now
//!   expired    oldest counted    newest
//! ```
//!
//! A grant at `t` counts until just before `t + window`. The log is kept in time order, so the counted grants are
//! its tail. A charge drops expired grants and appends one moment for each unit.

use std::collections::VecDeque;

use super::{Arithmetic, LeaseId, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The parameters of an exact sliding window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SlidingWindow {
    /// Maximum grants in any window. At most 10 000, because each is stored.
    pub limit: u32,
    /// The window, in microseconds.
    pub window: u64,
}

/// The grants of a window, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Grants {
    moments: VecDeque<u64>,
}

impl Grants {
    /// The moments of the grants, oldest first.
    pub fn moments(&self) -> impl Iterator<Item = Timestamp> {
        self.moments.iter().copied().map(Timestamp::from_micros)
    }

    /// A log of these moments, oldest first; `None` when they are not in order.
    pub(crate) fn restore(moments: Vec<Timestamp>) -> Option<Self> {
        let moments: VecDeque<u64> = moments.into_iter().map(Timestamp::micros).collect();
        moments.iter().is_sorted().then_some(Self { moments })
    }

    /// Number of stored grants. The next charge drops those that have expired.
    pub(crate) fn count(&self) -> usize {
        self.moments.len()
    }

    /// Replaces the grants by these moments, oldest first, and reuses the allocation.
    pub(crate) fn refill(&mut self, moments: impl IntoIterator<Item = Timestamp>) {
        self.moments.clear();
        self.moments.extend(moments.into_iter().map(Timestamp::micros));
    }

    /// Bytes held on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.moments.capacity() * size_of::<u64>()
    }

    /// Bytes that a charge of `units` under this limit may add on the heap.
    pub(crate) fn growth(&self, units: u32, limit: u32) -> usize {
        let full = self.moments.len().max(limit as usize);
        let needed = (self.moments.len() + units.min(limit) as usize).min(full);
        let mut capacity = self.moments.capacity();
        while capacity < needed {
            capacity = grown_capacity(capacity, full);
        }
        (capacity - self.moments.capacity()) * size_of::<u64>()
    }
}

/// The capacity to which a full allocation grows: it doubles, up to the length of a full log.
fn grown_capacity(capacity: usize, full: usize) -> usize {
    (capacity * 2).clamp(4, full.max(4))
}

impl SlidingWindow {
    fn counted(&self, grants: &Grants, now: Timestamp) -> usize {
        grants.moments.len() - self.expired(grants, now)
    }

    /// Number of grants, from the oldest, that no longer count.
    fn expired(&self, grants: &Grants, now: Timestamp) -> usize {
        match grants.moments.front() {
            Some(&oldest) if oldest.saturating_add(self.window) <= now.micros() => {
                grants.moments.partition_point(|&grant| grant.saturating_add(self.window) <= now.micros())
            }
            _ => 0,
        }
    }
}

impl Arithmetic for SlidingWindow {
    type State = Grants;

    fn correct(&self, grants: &mut Grants, now: Timestamp) -> bool {
        let mut ahead = false;
        for grant in grants.moments.iter_mut().rev().take_while(|grant| **grant > now.micros()) {
            *grant = now.micros();
            ahead = true;
        }
        ahead
    }

    fn refund(&self, grants: &mut Grants, now: Timestamp, units: u32) -> bool {
        let expired = self.expired(grants, now);
        let given_back = (units as usize).min(grants.moments.len() - expired);
        if given_back > 0 {
            grants.moments.drain(..expired + given_back);
        }
        given_back > 0
    }

    /// Drops grants of the moment of the charge: those of one moment are alike.
    fn undo(&self, grants: &mut Grants, _: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        let (at, units) = (charged.at, charged.units());
        let made = grants.moments.iter().rev().skip_while(|grant| **grant > at.micros());
        let undone = made.take_while(|grant| **grant == at.micros()).take(units as usize).count();
        let end = grants.moments.partition_point(|grant| *grant <= at.micros());
        grants.moments.drain(end - undone..end);
        undone > 0
    }

    fn wait(&self, grants: &Grants, now: Timestamp, need: Need) -> Wait {
        let room = match need {
            Need::Fits(cost) if cost > self.limit => return Wait::Never,
            Need::Fits(cost) => cost as usize,
            Need::OneLeft => 1,
        };
        let expired = self.expired(grants, now);
        let over = (grants.moments.len() - expired + room).saturating_sub(self.limit as usize);
        match over {
            0 => Wait::Met,
            // The over-th oldest counted grant must expire. It exists, because room <= limit.
            over => Wait::For(grants.moments[expired + over - 1].saturating_add(self.window) - now.micros()),
        }
    }

    /// Grants that a charge beyond the limit drops are not in its answer: an undo does not bring them back.
    fn charge(&self, grants: &mut Grants, now: Timestamp, units: u32, _: LeaseId) -> u64 {
        let expired = self.expired(grants, now);
        grants.moments.drain(..expired);
        // Beyond the limit, a new grant replaces the oldest. A log that is longer than a limit that was lowered keeps
        // its length.
        let full = grants.moments.len().max(self.limit as usize);
        let charged = units.min(self.limit);
        for _ in 0..charged {
            if grants.moments.len() == full {
                grants.moments.pop_front();
            } else if grants.moments.len() == grants.moments.capacity() {
                let more = grown_capacity(grants.moments.len(), full) - grants.moments.len();
                grants.moments.reserve_exact(more);
            }
            grants.moments.push_back(now.micros());
        }
        charged.into()
    }

    fn report(&self, grants: &Grants, now: Timestamp) -> Report {
        let counted = u32::try_from(self.counted(grants, now)).unwrap_or(u32::MAX);
        let reset = match (counted, grants.moments.back()) {
            (0, _) | (_, None) => 0,
            (_, Some(&newest)) => newest.saturating_add(self.window) - now.micros(),
        };
        Report { limit: self.limit, remaining: self.limit.saturating_sub(counted), reset }
    }
}
