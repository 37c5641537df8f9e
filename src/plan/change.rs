//! Changes that a plan makes besides its checks: of leases, and charges taken back.

use super::check::{Check, CounterName};
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, Limit};

/// A change of a lease, by its id. It never fails: an unknown or expired lease is no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseChange {
    /// The counter that holds the lease.
    pub counter: CounterName,
    /// The index of the store that holds it.
    pub store: u16,
    /// The lease.
    pub lease: LeaseId,
    /// The change.
    pub action: LeaseAction,
}

/// Takes a charge back exactly, of a group that another store refused: afterwards the counter is as if it had never been made.
///
/// Unlike a refund it does not give to the caller what others paid for: a window that has ended since owes nothing, and
/// of a log the very grants go that were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undo {
    /// The counter that was charged.
    pub counter: CounterName,
    /// The index of the store that holds it.
    pub store: u16,
    /// The numbers to decide by.
    pub limit: Limit,
    /// What was charged.
    pub units: u32,
    /// When, by the clock of the store: [`Applied::at`].
    pub at: Timestamp,
    /// The reset reported with the charge: microseconds until the counter is empty.
    pub reset: u64,
}

impl Undo {
    /// A check that needs nothing of the counter and charges nothing.
    pub(crate) fn look(&self) -> Check {
        Check { store: self.store, ..Check::look(self.counter, self.limit) }
    }
}

/// What to do to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    /// Gives the slot back.
    Release,
    /// Lets a lease that is still held expire this many microseconds from now.
    Renew(u64),
}
