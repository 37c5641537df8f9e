//! The operations that every algorithm implements on its state.

use super::LeaseId;
use crate::clock::Timestamp;

/// The largest integer that every store counts exactly.
pub(crate) const MAX_EXACT_INTEGER: u64 = 1 << 53;

/// The time until a need is met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Wait {
    /// It is met.
    Met,
    /// It will be met after this many microseconds, if nothing else is charged.
    For(u64),
    /// It exceeds the capacity of the limiter (semantics 14).
    Never,
}

/// A condition on a counter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// A cost fits.
    Fits(u32),
    /// One whole unit is left.
    OneLeft,
}

/// A counter as its limit reports it.
pub(crate) struct Report {
    /// Maximum units of the counter.
    pub(crate) limit: u32,
    /// Whole units left.
    pub(crate) remaining: u32,
    /// Microseconds until the counter is empty.
    pub(crate) reset: u64,
}

/// A charge to take back, as reported by the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReportedCharge {
    /// What the charge added, as its limit counts: [`Arithmetic::charge`].
    pub(crate) charged: u64,
    /// The moment of the charge, by the clock of the store.
    pub(crate) at: Timestamp,
    /// Microseconds from then until the counter is empty, as reported with the charge.
    pub(crate) reset: u64,
    /// Takes it back only if nothing was charged since. Only for buckets.
    pub(crate) only_if_last: bool,
}

impl ReportedCharge {
    /// The units of a charge that is counted in units.
    pub(crate) fn units(&self) -> u32 {
        u32::try_from(self.charged).unwrap_or(u32::MAX)
    }
}

/// The operations of an algorithm on its state. [`Arithmetic::correct`] comes first, so that `now` is never before a
/// moment in the state.
pub(crate) trait Arithmetic {
    /// The state of a counter of this algorithm.
    type State: Default;

    /// Moves moments after `now` to `now` (semantics 3). Returns whether anything moved.
    fn correct(&self, state: &mut Self::State, now: Timestamp) -> bool;

    /// Gives units back, at most until the counter is empty. Returns whether anything changed.
    fn refund(&self, state: &mut Self::State, now: Timestamp, units: u32) -> bool;

    /// Takes back a charge that was made under this lease, at a moment that is not after `now`. Returns whether
    /// anything changed.
    fn undo(&self, state: &mut Self::State, now: Timestamp, charged: &ReportedCharge, lease: LeaseId) -> bool;

    /// Returns the time until the need is met.
    fn wait(&self, state: &Self::State, now: Timestamp, need: Need) -> Wait;

    /// Takes units, even beyond the limit: the caller has decided that they are charged. Returns what that added to the
    /// state, at most what it can hold: levels of a bucket, units of a window or a log, one slot.
    fn charge(&self, state: &mut Self::State, now: Timestamp, units: u32, lease: LeaseId) -> u64;

    /// Reports the counter.
    fn report(&self, state: &Self::State, now: Timestamp) -> Report;
}
