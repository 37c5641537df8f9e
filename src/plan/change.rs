//! The changes that a plan makes besides its checks: to leases, and charges that are taken back.

use super::check::{Check, CounterName};
use super::outcome::Outcome;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, Limit};

/// A change of a lease, by its id. An unknown or expired lease is not an error.
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

/// Takes a charge back, for example because another store refused its group. Afterwards the counter is as if it had never
/// been charged.
///
/// Unlike a refund, it gives back no units that others charged: none if the window has ended since, and of a log only
/// grants from the moment of the charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undo {
    /// The counter that was charged.
    pub counter: CounterName,
    /// The index of the store that holds it.
    pub store: u16,
    /// The limit.
    pub limit: Limit,
    /// What the charge added: [`Outcome::charged`](crate::plan::Outcome::charged), or a part of it.
    pub charged: u64,
    /// The moment of the charge, by the clock of the store: [`Applied::at`](crate::plan::Applied::at).
    pub at: Timestamp,
    /// The reset reported with the charge: microseconds until the counter is empty.
    pub reset: u64,
    /// Takes the charge of a bucket back only if nothing was charged since (semantics 46).
    pub only_if_last: bool,
}

impl Undo {
    /// The undo of what a check charged at this moment, by its outcome. `None` if it charged nothing.
    pub fn of(check: &Check, outcome: &Outcome, at: Timestamp) -> Option<Self> {
        let &Check { counter, store, limit, .. } = check;
        let &Outcome { charged, reset, .. } = outcome;
        (charged > 0).then_some(Self { counter, store, limit, charged, at, reset, only_if_last: false })
    }

    /// A check of the same counter that needs nothing and charges nothing.
    pub(crate) fn look(&self) -> Check {
        Check { store: self.store, ..Check::look(self.counter, self.limit) }
    }
}

/// A change of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    /// Gives the slot back.
    Release,
    /// Makes a held lease expire this many microseconds from now.
    Renew(u64),
    /// Makes a held lease expire its own length from now.
    RenewOwn,
    /// Changes nothing: only its status is of interest.
    Look,
}
