//! Changes of slots and of holds as one kind, for what they mean together.

use super::change::{HoldAction, HoldChange, LeaseAction, LeaseChange};
use super::check::CounterName;
use crate::limiter::{LeaseId, LeaseStatus};

/// A change of a slot or of a hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Of a slot.
    Slot(LeaseChange),
    /// Of a hold.
    Hold(HoldChange),
}

impl Change {
    /// The counter, with the index of its store.
    pub fn place(&self) -> (u16, CounterName) {
        match self {
            Change::Slot(change) => (change.store, change.counter),
            Change::Hold(change) => (change.store, change.counter),
        }
    }

    pub(super) fn lease(&self) -> LeaseId {
        match self {
            Change::Slot(change) => change.lease,
            Change::Hold(change) => change.lease,
        }
    }

    pub(super) fn renews(&self) -> bool {
        match self {
            Change::Slot(change) => change.action.renews(),
            Change::Hold(change) => change.action.renews(),
        }
    }

    /// Whether it changes nothing.
    pub(crate) fn looks(&self) -> bool {
        match self {
            Change::Slot(change) => change.action == LeaseAction::Look,
            Change::Hold(change) => change.action == HoldAction::Look,
        }
    }

    pub(super) fn as_look(self) -> Self {
        match self {
            Change::Slot(change) => Change::Slot(LeaseChange { action: LeaseAction::Look, ..change }),
            Change::Hold(change) => Change::Hold(HoldChange { action: HoldAction::Look, ..change }),
        }
    }

    /// Whether a look at what it renews says that this has ended. Only an expired slot is forgotten; the hold of a counter
    /// that was evicted is unknown, and ends nothing else.
    pub(super) fn has_ended(&self, status: LeaseStatus) -> bool {
        match (self, status) {
            (_, LeaseStatus::Held(_)) | (Change::Hold(_), LeaseStatus::Unknown) => false,
            (_, LeaseStatus::Expired | LeaseStatus::Done | LeaseStatus::Unknown | LeaseStatus::Unanswered) => true,
        }
    }
}
