//! The contract of every store: the same answers as `advance`, decision by decision.
//!
//! A store joins with a test that passes [`the_contract`] a constructor of an empty store. The time is an argument and
//! sometimes steps back. A store that decides by its own clock gets one from its tests, which set it before each call.

use tollgate::clock::Timestamp;
use tollgate::limiter::{LeaseStatus, Limit};
use tollgate::plan::{Applied, Charges, Check, Fault, Outcome, Plan, Undo};
use tollgate::store::{MemorySettings, Stores};

use super::undone::as_is_undone;
use crate::support::reference::plans::{ANYTHING, Reference, START, Scope, always, plans};

/// 400 runs of 250 plans: 100 000 plans, decided by the store and by `advance`, answer by answer.
fn the_contract(empty: impl Fn() -> Stores) {
    step_by_step(ANYTHING, &empty, |_, _| {});
}

/// Compares a store with the reference; `between` runs before each plan.
fn step_by_step(scope: Scope, empty: &impl Fn() -> Stores, between: impl Fn(&Stores, Timestamp)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    always(400, plans(scope, 250), |steps| {
        let (store, mut reference, mut now) = (empty(), Reference::default(), START);
        for (number, (by, plan)) in steps.iter().enumerate() {
            now = Timestamp::from_micros(now.micros().saturating_add_signed(*by));
            between(&store, now);
            let expected = reference.apply(plan, now);
            same(number, &expected, &runtime.block_on(store.apply(plan, now)));
        }
    });
}

fn same(number: usize, expected: &Applied, found: &Applied) {
    assert_eq!(found.admitted, expected.admitted, "verdict of plan {number}");
    assert_eq!(found.answers, expected.answers, "answers of plan {number}");
    assert_eq!(found.statuses.len(), expected.statuses.len(), "statuses of plan {number}");
    for (found, expected) in found.statuses.iter().zip(&expected.statuses) {
        // A store may have forgotten an expired lease.
        let forgotten = (*found, *expected) == (LeaseStatus::Unknown, LeaseStatus::Expired);
        assert!(found == expected || forgotten, "status of plan {number}: {found:?}, expected {expected:?}");
    }
}

/// 200 runs of 250 plans, every third of which is undone at once: later answers are those of a store in which it charged
/// nothing. Plans overdraw, go into debt, and charge more than a counter can hold.
fn undoes_what_was_added(empty: impl Fn() -> Stores) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    // As for plans over several stores: the correction of a clock that steps back was made for a charge that is then
    // undone, and a level was converted to the numbers of the charge.
    let scope = Scope { backwards: false, changing: false, several_groups: false, ..ANYTHING };
    always(200, plans(scope, 250), |steps| {
        let (store, mut reference, mut now) = (empty(), Reference::default(), START);
        for (number, (by, plan)) in steps.iter().enumerate() {
            now = Timestamp::from_micros(now.micros().saturating_add_signed(*by));
            let mut plan = plan.clone();
            as_is_undone(&mut plan);
            // Past its limit a log drops its oldest grants, and a set its oldest values. Such a charge is of a refusal, and is
            // never undone.
            let dropping = |check: &&mut Check| matches!(check.limit, Limit::SlidingWindow(_) | Limit::Distinct(_));
            plan.checks.iter_mut().filter(dropping).for_each(|check| check.charges.refused = 0);
            let found = runtime.block_on(store.apply(&plan, now));
            if number % 3 > 0 {
                same(number, &reference.apply(&plan, now), &found);
                continue;
            }
            let undo = |(check, answer): (&Check, &Result<Outcome, Fault>)| {
                Undo::of(check, answer.as_ref().expect("it was answered"), found.at)
            };
            let undos = plan.checks.iter().zip(&found.answers).filter_map(undo).collect();
            runtime.block_on(store.apply(&Plan { undos, ..plan.of_same_asker() }, now));
            plan.checks.iter_mut().for_each(|check| check.charges = Charges::default());
            reference.apply(&plan, now);
        }
    });
}

fn two_spaces() -> Stores {
    Stores::memory(&[MemorySettings::default(), MemorySettings::default()])
}

#[test]
fn the_memory_store_keeps_the_contract() {
    the_contract(two_spaces);
}

/// Plans that hold what they charge, and settle, renew and lose it.
const HOLDS: Scope = Scope { holds: true, ..ANYTHING };

#[test]
fn semantics_37_to_42_the_memory_store_keeps_the_contract_of_holds() {
    step_by_step(HOLDS, &two_spaces, |_, _| {});
}

#[test]
fn semantics_37_to_42_the_memory_store_keeps_the_contract_of_holds_while_it_is_swept() {
    // A check that does not look at holds charges before a hold that ended is given back, which a sweep of a counter that a
    // refund has emptied forgets. Rules of one limiter all look, or none of its holds is given back.
    let scope = Scope { backwards: false, changing: false, ..HOLDS };
    for scope in [Scope { alike: true, ..scope }, Scope { every_verb: false, ..scope }] {
        step_by_step(scope, &two_spaces, |store: &Stores, now| store.sweep(now));
    }
}

#[test]
fn semantics_08_an_undo_takes_back_what_was_added_and_no_more() {
    undoes_what_was_added(two_spaces);
}

#[test]
fn the_memory_store_keeps_it_while_it_is_swept() {
    // A sweep removes counters by the clock, so here the clock does not step back and numbers do not change.
    let scope = Scope { backwards: false, changing: false, ..ANYTHING };
    step_by_step(scope, &two_spaces, |store: &Stores, now| store.sweep(now));
}

#[test]
fn plans_of_a_store_are_futures_that_can_be_sent() {
    fn sendable<F: Future + Send>(_: F) {}
    sendable(two_spaces().apply(&Plan::default(), START));
}
