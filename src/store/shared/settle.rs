//! What the policies decided without the store, settled with it.
//!
//! ```text
//!   no call can execute the plan any more --> what the fallback charged is owed at once
//!   a call is in flight --> its answer arrives: the store charged it   -> nothing is owed
//!                                               it did not, or failed  -> what the fallback charged is owed
//! ```
//!
//! A slot that the store gave and the fallback did not is released: its caller holds none.

use std::sync::Arc;

use smallvec::SmallVec;

use super::backlog::{ChargedPlace, releasing};
use super::lane::{PendingAnswer, QueueInner};
use super::metrics::DropReason;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, Limit};
use crate::plan::{Applied, Check, Fault, Outcome};

/// A plan without an answer in time.
pub(super) struct Unanswered {
    pub(super) fault: Fault,
    /// Where the answer arrives of a call that may still execute the plan.
    pub(super) late: Option<PendingAnswer>,
}

impl From<Fault> for Unanswered {
    fn from(fault: Fault) -> Self {
        Self { fault, late: None }
    }
}

/// What the policies decided about the checks of a plan, in their order.
pub(super) struct PolicyDecision {
    pub(super) checks: SmallVec<[DecidedCheck; 3]>,
    pub(super) lease: LeaseId,
    /// Whether the caller finds the lease again by its name.
    pub(super) named: bool,
    pub(super) at: Timestamp,
}

/// A check that was decided without the store.
pub(super) struct DecidedCheck {
    pub(super) check: Check,
    /// The values that it asks for, if it counts distinct ones.
    pub(super) values: SmallVec<[u64; 1]>,
    /// The units that the fallback charged.
    pub(super) units: u32,
    /// The units that the fallback counts now.
    pub(super) counted: u32,
}

impl DecidedCheck {
    /// Where its charge is counted in the backlog: on its counter, or on each of its values.
    fn places(&self) -> impl Iterator<Item = ChargedPlace> {
        let counter = self.check.counter;
        let units = match self.check.limit {
            Limit::Distinct(_) => None,
            _ => Some(counter.into()),
        };
        units.into_iter().chain(self.values.iter().map(move |value| ChargedPlace::value(counter, *value)))
    }
}

impl PolicyDecision {
    /// Whether it makes a difference what the store does with the plan.
    fn needs_settling(&self) -> bool {
        self.checks.iter().any(|decided| decided.units > 0 || decided.check.takes_slot())
    }
}

impl QueueInner {
    /// Settles a decision, at once or when the late answer is there.
    pub(super) fn settle(self: Arc<Self>, mut decision: PolicyDecision, Unanswered { fault, late }: Unanswered) {
        if !decision.needs_settling() {
            return;
        }
        self.expect(&mut decision);
        let Some(answer) = late else { return self.settle_with(&decision, &Err(fault)) };
        let unsettled = self.backlog().unsettled();
        tokio::spawn(async move {
            // A lane whose task has ended drops its sender.
            let answer = answer.await.unwrap_or(Err(Fault::ConnectionLost));
            self.settle_with(&decision, &answer);
            drop(unsettled);
        });
    }

    /// Adds what the fallback charged to the backlog, where it waits to be settled.
    fn expect(&self, decision: &mut PolicyDecision) {
        let PolicyDecision { checks, lease, at, .. } = decision;
        for decided in checks.iter_mut().filter(|decided| decided.units > 0) {
            let DecidedCheck { check, units, counted, .. } = &*decided;
            let dropped = match &check.limit {
                Limit::Concurrency(slots) => self.backlog().expect_slot(check, *lease, slots),
                _ => decided.places().fold(false, |dropped, place| {
                    dropped | self.backlog().expect_charge(place, check, *units, *counted, *at)
                }),
            };
            if dropped {
                decided.units = 0;
                self.report_dropped(DropReason::Full, 1);
            }
        }
    }

    /// Settles a decision with the answer of the call.
    fn settle_with(&self, decision: &PolicyDecision, answer: &Result<Applied, Fault>) {
        for (place, decided) in decision.checks.iter().enumerate() {
            let &DecidedCheck { ref check, units, .. } = decided;
            let charged = |applied: &Applied| applied.answers.get(place).is_some_and(charges);
            let in_store = answer.as_ref().is_ok_and(charged);
            let may_be_in_store = in_store || answer.as_ref().is_err_and(|fault| fault.may_be_executed());
            if !matches!(check.limit, Limit::Concurrency(_)) {
                if units > 0 {
                    decided.places().for_each(|place| self.backlog().settle_charge(place, units, in_store));
                }
                continue;
            }
            let held = units > 0 && self.backlog().settle_slot(check.counter, decision.lease, in_store);
            if check.takes_slot() && may_be_in_store && !held && !decision.named {
                self.owe(releasing(check.store, check.counter, decision.lease), false);
            }
        }
    }
}

/// Whether a check has charged its counter.
fn charges(answer: &Result<Outcome, Fault>) -> bool {
    answer.as_ref().is_ok_and(|outcome| outcome.charged > 0)
}
