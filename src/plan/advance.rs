//! The meaning of a group of checks: [`advance`].

use smallvec::SmallVec;

use super::change::{HoldAction, HoldChange, LeaseAction, LeaseChange, Undo};
use super::check::{Check, Holding, Needs};
use super::outcome::Outcome;
use crate::clock::Timestamp;
use crate::limiter::{
    Arithmetic, Hold, Holds, LeaseId, LeaseStatus, Limit, Lost, Need, Report, ReportedCharge, State, Wait,
    with_algorithm,
};

/// Who asks for the checks of a plan, and what for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker<'p> {
    /// The lease under which slots and holds are taken.
    pub lease: LeaseId,
    /// The values of the plan, among which a check of distinct ones has its own.
    pub values: &'p [u64],
}

impl From<LeaseId> for Asker<'_> {
    fn from(lease: LeaseId) -> Self {
        Self { lease, values: &[] }
    }
}

/// The state of a counter, with whether [`advance`] changed it and a store must write it back.
#[derive(Clone, Debug, Default)]
pub struct StateCell {
    /// The counter's state.
    pub state: State,
    /// Whether [`advance`] changed it.
    pub wrote: bool,
    /// The holds of the counter, if the check looks at them.
    pub holds: Option<Box<Holds>>,
    /// Whether [`advance`] changed the holds.
    pub wrote_holds: bool,
    /// Whether its check passes; set while its group is decided.
    passes: bool,
}

impl From<State> for StateCell {
    fn from(state: State) -> Self {
        StateCell { state, ..StateCell::default() }
    }
}

impl StateCell {
    /// A state whose group was decided elsewhere, with whether its check passes.
    pub(super) fn judged(state: State, passes: bool) -> Self {
        Self { state, passes, ..Self::default() }
    }

    /// The first half of a check: corrects, refunds, and returns the time until its needs are met.
    fn examine(&mut self, check: &Check, asker: Asker<'_>, now: Timestamp) -> Wait {
        let counted = !matches!(self.state, State::Empty);
        let (wrote, wait) = with_algorithm!(&check.limit, &mut self.state, asker.values, |algorithm, state| examine(
            algorithm, state, now, check, counted
        ));
        self.wrote |= wrote;
        wait
    }

    /// Corrects the moments of state and holds, and ends the holds whose end has passed (semantics 40).
    #[cold]
    fn end_holds(&mut self, limit: &Limit, now: Timestamp) {
        let Some(holds) = self.holds.as_deref_mut().filter(|holds| !holds.is_empty()) else { return };
        self.wrote_holds |= holds.correct(now);
        if !matches!(self.state, State::Empty) {
            self.wrote |=
                with_algorithm!(limit, &mut self.state, &[], |algorithm, state| algorithm.correct(state, now));
        }
        let (wrote_holds, wrote) = holds.end(limit, &mut self.state, now);
        self.wrote_holds |= wrote_holds;
        self.wrote |= wrote;
    }

    /// Holds the `units` that a check charged on admission, and adds what holds say to its outcome (semantics 42).
    #[cold]
    fn hold(&mut self, check: &Check, units: u32, lease: LeaseId, now: Timestamp, outcome: &mut Outcome) {
        if let Some((length, lost)) = check.holding.terms()
            && units > 0
        {
            let charged =
                ReportedCharge { charged: outcome.charged, at: now, reset: outcome.reset, only_if_last: false };
            let hold = Hold::of(&check.limit, lease, charged, length, lost);
            if self.holds.get_or_insert_default().insert(hold) {
                outcome.held = units;
                self.wrote_holds = true;
            }
        }
        let Some(holds) = self.holds.as_deref() else { return };
        if check.holding == Holding::Reported {
            outcome.held = u32::try_from(holds.held_units()).unwrap_or(u32::MAX);
        }
        if let (Some(wait), Some(end)) = (outcome.retry_after, holds.first_release()) {
            outcome.retry_after = Some(wait.min(end - now));
        }
    }

    /// The second half of a check: charges, and returns the outcome.
    pub(super) fn settle(&mut self, check: &Check, now: Timestamp, units: u32, asker: Asker<'_>) -> Outcome {
        self.wrote |= units > 0;
        let passes = self.passes;
        with_algorithm!(&check.limit, &mut self.state, asker.values, |algorithm, state| settle(
            algorithm,
            state,
            now,
            check,
            units,
            asker.lease,
            passes
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
        return Outcome { passes: false, limit: 0, remaining: 0, reset, retry_after: None, charged, held: 0 };
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
    Outcome { passes, limit, remaining, reset, retry_after, charged, held: 0 }
}

impl Check {
    /// The outcome of this check, from the state after its group and the verdict that a shared store returned.
    pub(crate) fn outcome(&self, state: State, passes: bool, now: Timestamp) -> Outcome {
        StateCell::judged(state, passes).settle(self, now, 0, Asker::default())
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
///   end holds -> correct and refund -> does each check pass? -> is the group admitted? -> charge and hold -> report
/// ```
pub fn advance(
    checks: &[Check],
    held: &mut [StateCell],
    asker: Asker<'_>,
    now: Timestamp,
    refused: bool,
) -> GroupOutcome {
    let mut outcomes = SmallVec::with_capacity(checks.len());
    let admitted = advance_each(checks, held, asker, now, refused, |_, _, outcome| outcomes.push(outcome));
    (admitted, outcomes)
}

/// [`advance`] for a store that writes each state back as soon as it is settled: `keep` receives the index of a check,
/// its state, and its outcome.
#[inline]
pub(crate) fn advance_each(
    checks: &[Check],
    held: &mut [StateCell],
    asker: Asker<'_>,
    now: Timestamp,
    refused: bool,
    mut keep: impl FnMut(usize, &mut StateCell, Outcome),
) -> bool {
    debug_assert_eq!(checks.len(), held.len(), "one state for each check");
    let mut admitted = !refused;
    for (check, held) in checks.iter().zip(held.iter_mut()) {
        if check.holding.looks() {
            held.end_holds(&check.limit, now);
        }
        held.passes = held.examine(check, asker, now) == Wait::Met && !check.always_denied;
        admitted &= held.passes || check.shadow;
    }
    for (number, (check, held)) in checks.iter().zip(held.iter_mut()).enumerate() {
        let units = match (check.shadow, admitted, held.passes) {
            (true, true, true) | (false, true, _) => check.charges.admitted,
            (true, _, _) => 0,
            (false, false, true) => check.charges.passed,
            (false, false, false) => check.charges.refused,
        };
        let mut outcome = held.settle(check, now, units, asker);
        if check.holding.looks() {
            held.hold(check, if admitted { units } else { 0 }, asker.lease, now, &mut outcome);
        }
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

/// Settles or renews a hold, of which more is charged by the limit of the change, or looks at it. Returns its status.
pub fn change_hold(held: &mut StateCell, change: &HoldChange, now: Timestamp) -> LeaseStatus {
    if change.action == HoldAction::Look {
        return held.holds.as_deref().map_or(LeaseStatus::Unknown, |holds| holds.status(change.lease, now));
    }
    if !held.holds.as_deref().is_some_and(|holds| holds.iter().any(|hold| hold.id == change.lease)) {
        return LeaseStatus::Unknown;
    }
    held.end_holds(&change.limit, now);
    let Some(holds) = held.holds.as_deref_mut() else { return LeaseStatus::Unknown };
    match change.action {
        HoldAction::Settle(units) => {
            let (status, wrote) = holds.settle(&change.limit, &mut held.state, (change.lease, units), now);
            held.wrote |= wrote;
            held.wrote_holds |= status != LeaseStatus::Unknown;
            status
        }
        HoldAction::Renew(length) => {
            let status = holds.renew(change.lease, now, length);
            held.wrote_holds |= status.is_held();
            status
        }
        HoldAction::Look => LeaseStatus::Unknown,
    }
}

/// Takes a charge back that `asker` made, and forgets its hold.
pub fn undo(held: &mut StateCell, undo: &Undo, asker: Asker<'_>, now: Timestamp) {
    if undo.holds
        && let Some(holds) = held.holds.as_deref_mut()
    {
        let hold = holds.remove(asker.lease);
        held.wrote_holds |= hold.is_some();
        if hold.is_some_and(|hold| hold.ended && hold.lost == Lost::Release) {
            // It was given back at its end.
            return;
        }
    }
    if matches!(held.state, State::Empty) {
        return;
    }
    let charged = ReportedCharge {
        charged: undo.charged,
        at: undo.at.min(now),
        reset: undo.reset,
        only_if_last: undo.only_if_last,
    };
    held.wrote |= with_algorithm!(&undo.limit, &mut held.state, asker.values, |algorithm, state| {
        // Not `||`: both have to run.
        algorithm.correct(state, now) | algorithm.undo(state, now, &charged, asker.lease)
    });
}

#[cfg(test)]
mod tests;
