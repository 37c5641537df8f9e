//! The changes that a plan makes besides its checks: to leases and holds, and charges that are taken back.

use smallvec::SmallVec;

use super::check::{Charges, Check, CounterName};
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

/// A change of a hold, by the id of its lease. An unknown or ended hold is not an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldChange {
    /// The counter that was charged.
    pub counter: CounterName,
    /// The index of the store that holds it.
    pub store: u16,
    /// The limit by which it was charged, and by which more is charged.
    pub limit: Limit,
    /// The lease.
    pub lease: LeaseId,
    /// The change.
    pub action: HoldAction,
}

/// A change of a hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldAction {
    /// Corrects the charge to the units that were used, or to those that are held, and forgets the hold (semantics 39).
    Settle(Option<u32>),
    /// Makes it end after this many microseconds from now, or after its own length.
    Renew(Option<u64>),
    /// Changes nothing: only its status is of interest.
    Look,
}

impl HoldAction {
    /// Whether it lets a hold end later.
    pub(crate) fn renews(self) -> bool {
        match self {
            HoldAction::Renew(_) => true,
            HoldAction::Settle(_) | HoldAction::Look => false,
        }
    }
}

impl HoldChange {
    /// A check of the same counter that needs nothing, and charges so many units only if its group is refused.
    pub(crate) fn look(&self, units: u32) -> Check {
        let charges = Charges { refused: units, ..Charges::default() };
        Check { store: self.store, charges, ..Check::look(self.counter, self.limit) }
    }
}

/// The changes of holds in a plan. Most plans have none, and pay for a pointer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HoldChanges(Option<Box<Several>>);

/// At least one change.
type Several = SmallVec<[HoldChange; 1]>;

impl HoldChanges {
    /// The changes, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, HoldChange> {
        self.0.as_deref().map(SmallVec::as_slice).unwrap_or_default().iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The number of changes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |several| several.len())
    }

    /// Adds a change.
    pub fn push(&mut self, change: HoldChange) {
        self.0.get_or_insert_default().push(change);
    }

    /// Keeps the changes that may stay, which can be altered.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&mut HoldChange) -> bool) {
        if let Some(several) = &mut self.0 {
            several.retain(keep);
        }
        self.0.take_if(|several| several.is_empty());
    }
}

impl FromIterator<HoldChange> for HoldChanges {
    fn from_iter<I: IntoIterator<Item = HoldChange>>(changes: I) -> Self {
        let several: Several = changes.into_iter().collect();
        Self((!several.is_empty()).then(|| Box::new(several)))
    }
}

impl<'a> IntoIterator for &'a HoldChanges {
    type Item = &'a HoldChange;
    type IntoIter = std::slice::Iter<'a, HoldChange>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
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
    /// Whether the charge may be held; the hold is forgotten then.
    pub holds: bool,
}

impl Undo {
    /// The undo of what a check charged at this moment, by its outcome. `None` if it charged and held nothing.
    pub fn of(check: &Check, outcome: &Outcome, at: Timestamp) -> Option<Self> {
        let &Check { counter, store, limit, .. } = check;
        let &Outcome { charged, reset, held, .. } = outcome;
        let holds = check.holding.holds();
        let charged_or_held = charged > 0 || holds && held > 0;
        charged_or_held.then_some(Self { counter, store, limit, charged, at, reset, only_if_last: false, holds })
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

impl LeaseAction {
    /// Whether it lets a slot end later.
    pub(crate) fn renews(self) -> bool {
        match self {
            LeaseAction::Renew(_) | LeaseAction::RenewOwn => true,
            LeaseAction::Release | LeaseAction::Look => false,
        }
    }
}
