//! The operations that every algorithm implements on its state.

use super::LeaseId;
use crate::clock::Timestamp;

/// The largest integer that every store counts exactly.
pub const MAX_EXACT_INTEGER: u64 = 1 << 53;

/// How long a need has to wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Wait {
    /// It is met.
    Met,
    /// It will be met after this many microseconds, if nothing else is charged.
    For(u64),
    /// It exceeds what the limiter can ever hold (semantics 14).
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

/// A counter seen by its limit: whole units left, and microseconds until nothing is counted.
pub(crate) struct Report {
    /// The most units the counter holds.
    pub(crate) limit: u32,
    /// Whole units left.
    pub(crate) remaining: u32,
    /// Microseconds until nothing is counted.
    pub(crate) reset: u64,
}

/// A charge to take back, as the store reported it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReportedCharge {
    /// Units charged.
    pub(crate) units: u32,
    /// The moment of the charge, by the clock of the store.
    pub(crate) at: Timestamp,
    /// Microseconds from then until nothing is counted, as reported with the charge.
    pub(crate) reset: u64,
}

/// The operations of an algorithm on its state. `now` is never before a moment in the state, because
/// [`Arithmetic::correct`] comes first.
pub(crate) trait Arithmetic {
    /// The state of a counter of this algorithm.
    type State: Default;

    /// Moves moments that lie ahead of `now` to `now` (semantics 3). Returns whether anything moved.
    fn correct(&self, state: &mut Self::State, now: Timestamp) -> bool;

    /// Gives units back, clamped at empty. Returns whether anything changed.
    fn refund(&self, state: &mut Self::State, now: Timestamp, units: u32) -> bool;

    /// Takes back a charge that was made under this lease, at a moment that is not after `now`. Returns whether anything
    /// changed.
    fn undo(&self, state: &mut Self::State, now: Timestamp, charged: &ReportedCharge, lease: LeaseId) -> bool;

    /// How long until the need is met.
    fn wait(&self, state: &Self::State, now: Timestamp, need: Need) -> Wait;

    /// Takes units, beyond the limit too: who may charge was decided before.
    fn charge(&self, state: &mut Self::State, now: Timestamp, units: u32, lease: LeaseId);

    /// Reports the units left and the time until the counter is empty.
    fn report(&self, state: &Self::State, now: Timestamp) -> Report;
}
