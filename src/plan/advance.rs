//! The meaning of a group of checks: [`advance`].

use smallvec::SmallVec;

use super::change::{LeaseAction, LeaseChange, Undo};
use super::check::{Check, Needs};
use super::outcome::Outcome;
use crate::clock::Timestamp;
use crate::limiter::{Arithmetic, LeaseId, LeaseStatus, Need, Report, ReportedCharge, State, Wait, with_algorithm};

/// The state of a counter, with whether [`advance`] changed it and a store must write it back.
#[derive(Clone, Debug, Default)]
pub struct StateCell {
    /// The counter's state.
    pub state: State,
    /// Whether [`advance`] changed it.
    pub wrote: bool,
    /// Whether its check passes; set while its group is decided.
    passes: bool,
}

impl From<State> for StateCell {
    fn from(state: State) -> Self {
        StateCell { state, wrote: false, passes: false }
    }
}

impl StateCell {
    /// A state whose group was decided elsewhere, with whether its check passes.
    pub(super) fn judged(state: State, passes: bool) -> Self {
        Self { state, wrote: false, passes }
    }

    /// The first half of a check: corrects, refunds, and returns the time until its needs are met.
    fn examine(&mut self, check: &Check, now: Timestamp) -> Wait {
        let counted = !matches!(self.state, State::Empty);
        let (wrote, wait) = with_algorithm!(&check.limit, &mut self.state, |algorithm, state| examine(
            algorithm, state, now, check, counted
        ));
        self.wrote |= wrote;
        wait
    }

    /// The second half of a check: charges, and returns the outcome.
    pub(super) fn settle(&mut self, check: &Check, now: Timestamp, units: u32, lease: LeaseId) -> Outcome {
        self.wrote |= units > 0;
        let passes = self.passes;
        with_algorithm!(&check.limit, &mut self.state, |algorithm, state| settle(
            algorithm, state, now, check, units, lease, passes
        ))
    }
}

// One function for each half and algorithm, so that common subexpressions are computed once. Dispatching each operation
// on its own took 560 more instructions per decision.

#[inline]
fn examine<A: Arithmetic>(
    algorithm: &A,
    state: &mut A::State,
    now: Timestamp,
    check: &Check,
    counted: bool,
) -> (bool, Wait) {
    let mut wrote = false;
    if counted {
        wrote = algorithm.correct(state, now);
        wrote |= check.refund > 0 && algorithm.refund(state, now, check.refund);
    }
    (wrote, check.needs.wait(algorithm, state, now))
}

#[inline]
fn settle<A: Arithmetic>(
    algorithm: &A,
    state: &mut A::State,
    now: Timestamp,
    check: &Check,
    units: u32,
    lease: LeaseId,
    passes: bool,
) -> Outcome {
    let charged = if units > 0 { algorithm.charge(state, now, units, lease) } else { 0 };
    let Report { limit, remaining, reset } = algorithm.report(state, now);
    if check.always_denied {
        return Outcome { passes: false, limit: 0, remaining: 0, reset, retry_after: None, charged };
    }
    let retry_after = match passes {
        true => None,
        // `Met` is impossible after a refusal: there were only charges in between.
        false => match check.needs.wait(algorithm, state, now) {
            Wait::Met => Some(0),
            Wait::For(wait) => Some(wait),
            Wait::Never => None,
        },
    };
    Outcome { passes, limit, remaining, reset, retry_after, charged }
}

impl Check {
    /// The outcome of this check, from the state after its group and the verdict that a shared store returned.
    pub(crate) fn outcome(&self, state: State, passes: bool, now: Timestamp) -> Outcome {
        StateCell::judged(state, passes).settle(self, now, 0, LeaseId::default())
    }
}

impl Needs {
    /// The longest wait among the needs, each tested separately (semantics 6).
    #[inline]
    fn wait<A: Arithmetic>(self, algorithm: &A, state: &A::State, now: Timestamp) -> Wait {
        let mut longest = Wait::Met;
        if self.fits > 0 {
            longest = algorithm.wait(state, now, Need::Fits(self.fits));
        }
        if self.one_left {
            longest = longest.max(algorithm.wait(state, now, Need::OneLeft));
        }
        longest
    }
}

/// Whether a group was admitted, and the outcome of each of its checks.
pub type GroupOutcome = (bool, SmallVec<[Outcome; 3]>);

/// Decides one group of checks at one moment: the reference for every store.
///
/// `held` are the states of the checks' counters, in the order of the checks. With `refused`, the group is refused
/// regardless of its checks: by its plan, or because the store has no room for a check whose policy is to deny.
///
/// ```text
///   correct and refund -> does each check pass? -> is the group admitted? -> charge -> report
/// ```
pub fn advance(
    checks: &[Check],
    held: &mut [StateCell],
    lease: LeaseId,
    now: Timestamp,
    refused: bool,
) -> GroupOutcome {
    let mut outcomes = SmallVec::with_capacity(checks.len());
    let admitted = advance_each(checks, held, lease, now, refused, |_, _, outcome| outcomes.push(outcome));
    (admitted, outcomes)
}

/// [`advance`] for a store that writes each state back as soon as it is settled: `keep` receives the index of a check,
/// its state, and its outcome.
#[inline]
pub(crate) fn advance_each(
    checks: &[Check],
    held: &mut [StateCell],
    lease: LeaseId,
    now: Timestamp,
    refused: bool,
    mut keep: impl FnMut(usize, &mut StateCell, Outcome),
) -> bool {
    debug_assert_eq!(checks.len(), held.len(), "one state for each check");
    let mut admitted = !refused;
    for (check, held) in checks.iter().zip(held.iter_mut()) {
        held.passes = held.examine(check, now) == Wait::Met && !check.always_denied;
        admitted &= held.passes || check.shadow;
    }
    for (number, (check, held)) in checks.iter().zip(held.iter_mut()).enumerate() {
        let units = match (check.shadow, admitted, held.passes) {
            (true, true, true) | (false, true, _) => check.charges.admitted,
            (true, _, _) => 0,
            (false, false, true) => check.charges.passed,
            (false, false, false) => check.charges.refused,
        };
        let outcome = held.settle(check, now, units, lease);
        keep(number, held, outcome);
    }
    admitted
}

/// Releases or renews a lease. Returns its status.
pub fn change_lease(held: &mut StateCell, change: &LeaseChange, now: Timestamp) -> LeaseStatus {
    let State::Leases(leases) = &mut held.state else { return LeaseStatus::Unknown };
    held.wrote |= leases.correct(now);
    let (status, wrote) = match change.action {
        LeaseAction::Release => leases.release(change.lease, now),
        LeaseAction::Renew(length) => leases.renew(change.lease, now, Some(length)),
        LeaseAction::RenewOwn => leases.renew(change.lease, now, None),
        LeaseAction::Look => (leases.status(change.lease, now), false),
    };
    held.wrote |= wrote;
    status
}

/// Takes a charge back that was made under `lease`.
pub fn undo(held: &mut StateCell, undo: &Undo, lease: LeaseId, now: Timestamp) {
    if matches!(held.state, State::Empty) {
        return;
    }
    let charged = ReportedCharge {
        charged: undo.charged,
        at: undo.at.min(now),
        reset: undo.reset,
        only_if_last: undo.only_if_last,
    };
    held.wrote |= with_algorithm!(undo.limit, &mut held.state, |algorithm, state| {
        // Not `||`: both have to run.
        algorithm.correct(state, now) | algorithm.undo(state, now, &charged, lease)
    });
}

#[cfg(test)]
mod tests;
