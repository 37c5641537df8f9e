use super::*;
use crate::limiter::{
    Alignment, Asked, Concurrency, Distinct, FixedWindow, SlidingCounter, SlidingWindow, TokenBucket,
};
use crate::plan::{Charges, CounterName};

const NOW: Timestamp = Timestamp::from_secs(1_000);
const SECOND: u64 = 1_000_000;

fn check(limit: Limit, cost: u32) -> Check {
    Check::charge(CounterName::default(), limit, cost)
}

fn of_each_algorithm(limit: u32) -> [Limit; 7] {
    let window = 10 * SECOND;
    [
        Limit::TokenBucket(TokenBucket::new(limit.into(), window, limit, 0).expect("it can be held")),
        Limit::SlidingWindow(SlidingWindow { limit, window }),
        Limit::SlidingCounter(SlidingCounter { limit, window }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(window) }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(window) }),
        Limit::Concurrency(Concurrency { max: limit, lease: window }),
        Limit::Distinct(Distinct { limit, window, asked: Asked::place(0, 1).expect("it is one value") }),
    ]
}

/// Decides a check under a lease, which also asks for a value that no other lease asks for.
fn decide(check: Check, held: &mut StateCell, lease: u128, now: Timestamp) -> Outcome {
    held.wrote = false;
    let asker = Asker { lease: LeaseId(lease), values: &[lease as u64] };
    advance(&[check], std::slice::from_mut(held), asker, now, false).1[0]
}

/// Weakness D11: refusals write.
#[test]
fn what_takes_nothing_writes_nothing() {
    for limit in of_each_algorithm(2) {
        let peek = Check {
            needs: Needs { one_left: true, ..Needs::default() },
            charges: Charges::default(),
            ..check(limit, 0)
        };
        let mut held = StateCell::default();
        decide(peek, &mut held, 0, NOW);
        assert!(!held.wrote, "a peek at nothing: {limit:?}");
        assert!(decide(check(limit, 1), &mut held, 1, NOW).passes);
        assert!(held.wrote, "a charge: {limit:?}");
        assert!(decide(check(limit, 1), &mut held, 2, NOW).passes);
        decide(peek, &mut held, 0, NOW.plus(1));
        assert!(!held.wrote, "a peek: {limit:?}");
        assert!(!decide(check(limit, 1), &mut held, 3, NOW.plus(1)).passes);
        assert!(!held.wrote, "a refusal: {limit:?}");
    }
}

#[test]
fn semantics_03_the_correction_is_written_whatever_the_verdict() {
    for limit in of_each_algorithm(1) {
        let mut held = StateCell::default();
        assert!(decide(check(limit, 1), &mut held, 1, NOW.plus(100 * SECOND)).passes);
        assert!(!decide(check(limit, 1), &mut held, 2, NOW).passes, "{limit:?}");
        assert!(held.wrote, "{limit:?}");
        assert!(!decide(check(limit, 1), &mut held, 2, NOW).passes);
        assert!(!held.wrote, "once: {limit:?}");
    }
}

#[test]
fn a_refund_that_gives_nothing_back_leaves_an_exact_log_as_it_was() {
    let limit = Limit::SlidingWindow(SlidingWindow { limit: 3, window: 10 * SECOND });
    let mut held = StateCell::default();
    decide(check(limit, 2), &mut held, 1, NOW);
    let before = held.state.clone();
    let refund = Check { refund: 1, ..check(limit, 0) };
    assert!(decide(refund, &mut held, 2, NOW.plus(10 * SECOND)).passes);
    assert!(!held.wrote);
    assert_eq!(held.state, before, "what is not written is not changed either");
}

#[test]
fn a_state_of_another_kind_counts_as_empty() {
    for limit in of_each_algorithm(1) {
        for other in of_each_algorithm(1) {
            let mut held = StateCell::default();
            decide(check(other, 1), &mut held, 1, NOW);
            let same = std::mem::discriminant(&limit) == std::mem::discriminant(&other);
            assert_eq!(decide(check(limit, 1), &mut held, 2, NOW).passes, !same, "{other:?} read as {limit:?}");
        }
    }
}

#[test]
fn a_lease_that_is_acquired_twice_takes_one_slot() {
    let limit = Limit::Concurrency(Concurrency { max: 2, lease: 10 * SECOND });
    let mut held = StateCell::default();
    assert_eq!(decide(check(limit, 1), &mut held, 7, NOW).remaining, 1);
    assert_eq!(decide(check(limit, 1), &mut held, 7, NOW).remaining, 1);
}

#[test]
fn a_charge_that_is_taken_back_changes_no_later_answer() {
    for limit in of_each_algorithm(3) {
        for later in [0, 1, SECOND, 9 * SECOND, 10 * SECOND, 11 * SECOND, 25 * SECOND] {
            let (mut undone, mut never) = (StateCell::default(), StateCell::default());
            for held in [&mut undone, &mut never] {
                assert!(decide(check(limit, 1), held, 1, NOW.plus(SECOND)).passes);
            }
            let at = NOW.plus(2 * SECOND);
            let made = decide(check(limit, 1), &mut undone, 2, at);
            assert!(made.passes);
            let now = at.plus(later);
            // Units that are granted to others in between are not given back.
            for held in [&mut undone, &mut never] {
                assert!(decide(check(limit, 1), held, 3, now).passes, "{limit:?}");
            }
            let charged = Undo {
                counter: CounterName::default(),
                store: 0,
                limit,
                charged: made.charged,
                at,
                reset: made.reset,
                only_if_last: false,
                holds: false,
            };
            undo(&mut undone, &charged, Asker { lease: LeaseId(2), values: &[2] }, now);
            for wait in [0, 1, 7 * SECOND, 30 * SECOND] {
                let answer = |held: &StateCell| decide(check(limit, 1), &mut held.clone(), 4, now.plus(wait));
                let (undone, never) = (answer(&undone), answer(&never));
                // The level of a bucket after an undo is exact to the microsecond.
                let same = undone.reset - never.reset <= 1;
                assert!(same && Outcome { reset: never.reset, ..undone } == never, "{limit:?} {later} {wait}");
            }
        }
    }
}
