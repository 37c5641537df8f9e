//! Properties that hold for every sequence of requests. Seeds are fixed, so every run has the same sequences.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use std::collections::HashMap;
use std::time::Duration;

use tollgate::clock::Timestamp;
use tollgate::descriptor::{Descriptor, Request};
use tollgate::limiter::{
    Algorithm, Alignment, Calendar, CalendarUnit, LeaseId, LeaseStatus, Limit, MAX_WINDOW, Quota, Schedule, State,
};
use tollgate::plan::{
    Charges, Check, CounterName, LeaseAction, LeaseChange, Needs, Outcome, Plan, StateCell, advance, change_lease,
};
use tollgate::rules::{RuleBook, Rules};

use super::model::Model;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, secs, slots};
use crate::support::reference::numbers::Numbers;
use crate::support::reference::plans::{ANYTHING, Reference, SECOND, START, Scope, always, asks, counters, plans};

const HOUR: u64 = 3_600 * SECOND;

/// How the clock moves before a step.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// By sixteenths of the window, and some microseconds.
    By(i64, i64),
    /// To the retry time of the last refusal, and some microseconds.
    Retry(i64),
    /// To the last reset time, and some microseconds.
    Reset(i64),
}

/// One request to one counter.
#[derive(Clone, Debug)]
struct Step {
    to: Move,
    /// The index of the numbers that decide it.
    numbers: prop::sample::Index,
    needs: Needs,
    charges: Charges,
    refund: u32,
    shadow: bool,
    always_denied: bool,
    /// Whether another check of the group refuses.
    refused: bool,
    lease: u8,
    change: Option<LeaseAction>,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => Just(Move::By(0, 0)),
        2 => (0..3i64).prop_map(|more| Move::By(0, more)),
        4 => (0..40i64, -2..3i64).prop_map(|(parts, more)| Move::By(parts, more)),
        1 => (-40..0i64, -2..3i64).prop_map(|(parts, more)| Move::By(parts, more)),
        3 => (-1..2i64).prop_map(Move::Retry),
        1 => (-1..2i64).prop_map(Move::Reset),
    ]
}

fn steps(most: u32, slots: bool) -> impl Strategy<Value = Step> {
    let asks = asks(ANYTHING, most).prop_map(move |(mut needs, charges, refund)| {
        if slots {
            // A check of slots takes one slot, whatever the hits.
            needs.fits = needs.fits.min(1);
        }
        (needs, charges, refund)
    });
    let change = prop_oneof![
        3 => Just(None),
        2 => Just(Some(LeaseAction::Release)),
        1 => (1..3 * SECOND).prop_map(|length| Some(LeaseAction::Renew(length))),
    ];
    let one_in = |n: u32| prop::bool::weighted(1.0 / f64::from(n));
    (moves(), any::<prop::sample::Index>(), asks, (one_in(6), one_in(40), one_in(5)), 0..12u8, change).prop_map(
        move |(to, numbers, (needs, charges, refund), (shadow, always_denied, refused), lease, change)| Step {
            to,
            numbers,
            needs,
            charges,
            refund,
            shadow,
            always_denied,
            refused,
            lease,
            change: change.filter(|_| slots),
        },
    )
}

/// Applies steps to one counter and to its model. Between steps, only the state that `advance` wrote is stored.
fn follow(numbers: &[Numbers], window: u64, steps: &[Step]) {
    let (mut state, mut model) = (State::Empty, Model::of(numbers[0]));
    let (mut now, mut retry, mut reset) = (START, START, START);
    for step in steps {
        let moved = |from: Timestamp, by: i64| Timestamp::from_micros(from.micros().saturating_add_signed(by));
        now = match step.to {
            Move::By(parts, more) => moved(now, parts * (window / 16) as i64 + more),
            Move::Retry(more) => moved(retry, more),
            Move::Reset(more) => moved(reset, more),
        };
        let lease = LeaseId(step.lease.into());
        let mut held = StateCell::from(state.clone());
        if let Some(action) = step.change {
            let change = LeaseChange { counter: CounterName::default(), store: 0, lease, action };
            let status = change_lease(&mut held, &change, now);
            let renew = match action {
                LeaseAction::Renew(length) => Some(length),
                LeaseAction::Release => None,
                LeaseAction::RenewOwn | LeaseAction::Look => unreachable!("no step does so"),
            };
            model.change(lease, renew, now, status);
        } else {
            let numbers = *step.numbers.get(numbers);
            let check = Check {
                limit: numbers.limit(),
                needs: step.needs,
                charges: step.charges,
                refund: step.refund,
                shadow: step.shadow,
                always_denied: step.always_denied,
                ..blank(numbers)
            };
            let (admitted, outcomes) =
                advance(&[check], std::slice::from_mut(&mut held), lease.into(), now, step.refused);
            let outcome: Outcome = outcomes[0];
            assert_eq!(admitted, !step.refused && (outcome.passes || step.shadow), "admitted");
            model.follow(numbers, &check, step.refused, lease, now, &outcome);
            retry = now.plus(outcome.retry_after.unwrap_or(0));
            reset = now.plus(outcome.reset);
        }
        if held.wrote {
            state = held.state;
        }
    }
}

fn blank(numbers: Numbers) -> Check {
    Check::look(CounterName::default(), numbers.limit())
}

/// 300 cases of 400 steps each: half of them under one limit, half under limits that change from step to step.
fn agrees_with_the_model(family: Vec<(u64, Vec<Numbers>)>) {
    let case = select(family).prop_flat_map(|(window, numbers)| {
        let most = numbers.iter().map(|numbers| numbers.holds()).max().unwrap_or(1).min(20);
        let slots = matches!(numbers[0], Numbers::Slots { .. });
        let count = numbers.len();
        let chosen = prop_oneof![subsequence(numbers.clone(), 1), subsequence(numbers, 1..=count)];
        (Just(window), chosen, vec(steps(most, slots), 400))
    });
    always(300, case, |(window, numbers, steps)| follow(&numbers, window, &steps));
}

#[test]
fn a_token_bucket_agrees_with_exact_fractions_of_tokens() {
    let bucket = |tokens, window, burst, debt| Numbers::Bucket { tokens, window, burst, debt };
    agrees_with_the_model(vec![
        (10 * SECOND, vec![bucket(5, 10 * SECOND, 5, 0), bucket(10, 60 * SECOND, 10, 0), bucket(1, SECOND, 1, 0)]),
        (HOUR, vec![bucket(100, HOUR, 20, 0), bucket(1_000, HOUR, 50, 1_000), bucket(7, 60 * SECOND, 3, 7)]),
        (SECOND, vec![bucket(10, SECOND, 20, 0), bucket(1, SECOND, 100, 0), bucket(999, SECOND, 10, 5)]),
        (70, vec![bucket(3, 7, 2, 1), bucket(2, 7, 5, 0), bucket(3, 7, 9, 100)]),
        (10, vec![bucket(2_000_000, SECOND, 10, 3), bucket(1_500_000, SECOND, 7, 0), bucket(13, 7, 11, 0)]),
    ]);
}

#[test]
fn a_sliding_window_agrees_with_a_list_of_grants() {
    let log = |window, limits: &[u32]| {
        (window, limits.iter().map(|&limit| Numbers::Log { limit, window }).collect::<Vec<_>>())
    };
    agrees_with_the_model(vec![
        log(10 * SECOND, &[5, 3, 10]),
        log(SECOND, &[1, 2]),
        log(HOUR, &[20, 19, 1]),
        log(7, &[2, 4, 30]),
    ]);
}

#[test]
fn a_sliding_counter_agrees_with_its_formula() {
    let pair = |window, limits: &[u32]| {
        (window, limits.iter().map(|&limit| Numbers::Pair { limit, window }).collect::<Vec<_>>())
    };
    agrees_with_the_model(vec![
        pair(10 * SECOND, &[5, 3, 10]),
        pair(SECOND, &[1, 2, 1_000]),
        pair(HOUR, &[20, 19, 100]),
        pair(7, &[2, 4, 30]),
        pair(1 << 20, &[6, 7]),
        pair((1 << 20) + 1, &[6, 7]),
    ]);
}

#[test]
fn a_fixed_window_agrees_with_a_list_of_hits() {
    let fixed = |window, alignment: Alignment, limits: &[u32]| {
        (window, limits.iter().map(|&limit| Numbers::Fixed { limit, alignment }).collect::<Vec<_>>())
    };
    let berlin = jiff::tz::TimeZone::get("Europe/Berlin").expect("the zone is bundled");
    let days = Calendar::of(CalendarUnit::Day, &berlin);
    agrees_with_the_model(vec![
        fixed(10 * SECOND, Alignment::Epoch(10 * SECOND), &[5, 3, 10]),
        fixed(7, Alignment::Epoch(7), &[2, 1]),
        fixed(10 * SECOND, Alignment::FirstHit(10 * SECOND), &[5, 3, 10]),
        fixed(60 * SECOND, Alignment::FirstHit(60 * SECOND), &[1]),
        fixed(12 * HOUR, Alignment::Calendar(days), &[5, 8]),
    ]);
}

#[test]
fn slots_agree_with_a_list_of_leases() {
    let slots =
        |lease, most: &[u32]| (lease, most.iter().map(|&max| Numbers::Slots { max, lease }).collect::<Vec<_>>());
    agrees_with_the_model(vec![slots(SECOND, &[2, 1, 5]), slots(2 * SECOND, &[3]), slots(7, &[1, 2])]);
}

// Whole plans

/// Charges only, and a clock that never steps back.
const PLAIN: Scope = Scope {
    every_verb: false,
    charges_on_refusals: false,
    every_verdict: false,
    changing: false,
    backwards: false,
    several_groups: false,
    holds: false,
    alike: false,
};

/// The numbers that decide a check of the plans, where they do not change.
fn numbers_of(check: &Check) -> Numbers {
    let counters = counters();
    let counter = counters.iter().find(|counter| counter.name == check.counter).expect("plans ask these counters");
    counter.numbers[0]
}

/// Applies plans to the reference, and visits each with its moment.
fn walk(steps: &[(i64, Plan)], mut visit: impl FnMut(&mut Reference, &Plan, Timestamp)) {
    let (mut reference, mut now) = (Reference::default(), START);
    for (by, plan) in steps {
        now = Timestamp::from_micros(now.micros().saturating_add_signed(*by));
        visit(&mut reference, plan, now);
    }
}

/// Units admitted on one counter, with their moments.
type Admitted = Vec<(u64, u32)>;

/// The most units admitted within `length` after any admitted moment.
fn most_within(admitted: &Admitted, length: u64) -> u64 {
    let from = |&(start, _): &(u64, u32)| {
        let inside = admitted.iter().filter(|(moment, _)| (start..start + length).contains(moment));
        inside.map(|(_, units)| u64::from(*units)).sum()
    };
    admitted.iter().map(from).max().unwrap_or(0)
}

fn most_in_aligned(admitted: &Admitted, window: u64) -> u64 {
    let mut windows: HashMap<u64, u64> = HashMap::new();
    admitted.iter().for_each(|(moment, units)| *windows.entry(moment / window).or_default() += u64::from(*units));
    windows.into_values().max().unwrap_or(0)
}

fn admits_no_more_than(numbers: Numbers, admitted: &Admitted) {
    match numbers {
        Numbers::Bucket { tokens, window, burst, .. } => {
            for (first, &(start, _)) in admitted.iter().enumerate() {
                let mut units = 0_u128;
                for &(moment, more) in &admitted[first..] {
                    units += u128::from(more);
                    let refilled = u128::from(moment - start) * u128::from(tokens);
                    let most = u128::from(burst) * u128::from(window) + refilled;
                    assert!(units * u128::from(window) <= most, "{numbers:?}: {units} since {start}");
                }
            }
        }
        Numbers::Log { limit, window } => assert!(most_within(admitted, window) <= limit.into(), "{numbers:?}"),
        Numbers::Pair { limit, window } => {
            assert!(most_in_aligned(admitted, window) <= limit.into(), "{numbers:?}, aligned");
            assert!(most_within(admitted, window) < 2 * u64::from(limit), "{numbers:?}, any");
        }
        Numbers::Fixed { limit, alignment: Alignment::Epoch(window) } => {
            assert!(most_in_aligned(admitted, window) <= limit.into(), "{numbers:?}");
        }
        Numbers::Fixed { limit, alignment: Alignment::FirstHit(window) } => {
            let (mut end, mut units) = (0, 0);
            for &(moment, more) in admitted {
                if moment >= end {
                    (end, units) = (moment + window, 0);
                }
                units += more;
                assert!(units <= limit, "{numbers:?}");
            }
        }
        Numbers::Fixed { .. } | Numbers::Slots { .. } | Numbers::Values { .. } => {
            unreachable!("not among these counters' windows")
        }
    }
}

#[test]
fn no_interleaving_of_plans_admits_more_than_each_limit() {
    let scope = Scope { charges_on_refusals: true, several_groups: true, ..PLAIN };
    always(400, plans(scope, 250), |steps| {
        let mut admitted: HashMap<CounterName, (Numbers, Admitted)> = HashMap::new();
        let mut leases: HashMap<CounterName, HashMap<LeaseId, u64>> = HashMap::new();
        let mut tried: HashMap<CounterName, HashMap<u64, u64>> = HashMap::new();
        walk(&steps, |reference, plan, now| {
            let applied = reference.apply(plan, now);
            for (change, status) in plan.changes.iter().zip(&applied.statuses) {
                let held = leases.entry(change.counter).or_default();
                match (change.action, status) {
                    (LeaseAction::Release, _) => drop(held.remove(&change.lease)),
                    (LeaseAction::Renew(length), LeaseStatus::Held(_)) => {
                        held.insert(change.lease, now.micros() + length);
                    }
                    (LeaseAction::Renew(_) | LeaseAction::RenewOwn | LeaseAction::Look, _) => {}
                }
            }
            if plan.found_held(&applied.statuses) {
                // It charged nothing.
                return;
            }
            let mut answers = applied.answers.iter();
            for group in plan.groups() {
                let outcomes: Vec<Outcome> =
                    answers.by_ref().take(group.len()).map(|answer| answer.expect("there is room")).collect();
                let passes = outcomes.iter().all(|outcome| outcome.passes);
                for (check, outcome) in group.iter().zip(&outcomes) {
                    let numbers = numbers_of(check);
                    if let Limit::Distinct(distinct) = check.limit {
                        let tried = tried.entry(check.counter).or_default();
                        if passes && check.charges.admitted > 0 {
                            let asked = distinct.asked.of(plan.values.as_slice());
                            tried.extend(asked.iter().map(|value| (*value, now.micros())));
                        }
                        tried.retain(|_, at| *at + distinct.window > now.micros());
                        assert!(tried.len() <= distinct.limit as usize, "{} values of {}", tried.len(), distinct.limit);
                        continue;
                    }
                    let Numbers::Slots { max, lease } = numbers else {
                        let (_, log) = admitted.entry(check.counter).or_insert((numbers, Vec::new()));
                        match (passes, outcome.passes) {
                            (true, _) => log.push((now.micros(), check.charges.admitted)),
                            // The charge of a refusal admits no unit, but it can be the first hit of a window.
                            (false, true) if check.charges.passed > 0 => log.push((now.micros(), 0)),
                            (false, false) if check.charges.refused > 0 => log.push((now.micros(), 0)),
                            (false, _) => {}
                        }
                        continue;
                    };
                    if passes {
                        let held = leases.entry(check.counter).or_default();
                        held.insert(plan.lease, now.micros() + lease);
                        let running = held.values().filter(|expires| **expires > now.micros()).count();
                        assert!(running <= max as usize, "{running} leases of {max}");
                    }
                }
            }
        });
        admitted.values().for_each(|(numbers, admitted)| admits_no_more_than(*numbers, admitted));
    });
}

#[test]
fn a_refusals_retry_after_is_exact() {
    let scope = Scope { every_verb: true, charges_on_refusals: true, every_verdict: true, ..PLAIN };
    let refusals = std::cell::Cell::new(0);
    always(400, plans(scope, 250), |steps| {
        walk(&steps, |reference, plan, now| {
            let applied = reference.apply(plan, now);
            if applied.admitted || plan.refused || plan.checks.iter().any(|check| check.refund > 0) {
                return;
            }
            let refusing = plan.checks.iter().zip(&applied.answers).filter_map(|(check, answer)| {
                let outcome = answer.expect("there is room");
                (!outcome.passes && !check.shadow).then_some(outcome.retry_after)
            });
            let waits: Option<Vec<u64>> = refusing.collect();
            let admits_after = |wait: u64| reference.clone().apply(plan, now.plus(wait)).admitted;
            match waits {
                // At least one check never passes.
                None => assert!(!admits_after(1_000 * HOUR)),
                Some(waits) => {
                    let longest = waits.into_iter().max().expect("a refused plan has a refusing check");
                    assert!(longest > 0, "a refusal waits");
                    assert!(!admits_after(longest - 1), "sooner than {longest}");
                    // A check that passed and was charged for the refusal may have nothing left for the retry.
                    let paid = plan.checks.iter().zip(&applied.answers).any(|(check, answer)| {
                        !check.shadow && check.charges.passed > 0 && answer.is_ok_and(|outcome| outcome.passes)
                    });
                    assert!(paid || admits_after(longest), "still refused after {longest}");
                    refusals.set(refusals.get() + 1);
                }
            }
        });
    });
    assert!(refusals.get() > 10_000, "{} refusals", refusals.get());
}

#[test]
fn a_refused_plan_changes_no_later_answer() {
    let scope = Scope { every_verdict: true, ..PLAIN };
    let refused = std::cell::Cell::new(0);
    always(400, plans(scope, 250), |steps| {
        // The second counters never see the plans that the first ones refuse.
        let mut without = Reference::default();
        walk(&steps, |reference, plan, now| {
            let applied = reference.apply(plan, now);
            match applied.admitted {
                true => assert_eq!(without.apply(plan, now).answers, applied.answers),
                false => {
                    assert_eq!(without.clone().apply(plan, now).answers, applied.answers);
                    refused.set(refused.get() + 1);
                }
            }
        });
    });
    assert!(refused.get() > 10_000, "{} refused plans", refused.get());
}

// The limits of all numbers

/// From one to the largest, with every magnitude equally likely.
fn of_any_size(largest: u64) -> impl Strategy<Value = u64> {
    let bits = 64 - largest.leading_zeros();
    let sized = (0..=bits, any::<u64>())
        .prop_map(move |(bits, random)| (random.checked_shr(64 - bits).unwrap_or(0)).clamp(1, largest));
    prop_oneof![6 => sized, 1 => Just(largest), 1 => Just(1)]
}

fn any_u32() -> impl Strategy<Value = u32> {
    of_any_size(u32::MAX.into()).prop_map(|number| u32::try_from(number).expect("it is at most that"))
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let debt = prop_oneof![Just(None), Just(Some(u64::MAX)), of_any_size(u64::MAX).prop_map(Some)];
    let burst = prop_oneof![Just(None), any_u32().prop_map(Some)];
    let algorithm = prop_oneof![
        3 => (burst, debt).prop_map(|(burst, max_debt)| Algorithm::TokenBucket { burst, max_debt }),
        1 => Just(Algorithm::SlidingWindow),
        2 => Just(Algorithm::SlidingCounter),
        1 => Just(Algorithm::FixedWindow(Schedule::Epoch)),
        1 => Just(Algorithm::FixedWindow(Schedule::FirstHit)),
    ];
    let longest = u64::try_from(MAX_WINDOW.as_micros()).expect("ten years are few microseconds");
    (any_u32(), of_any_size(longest), algorithm).prop_filter_map(
        "configuration refuses it",
        |(limit, window, algorithm)| {
            let limit = if matches!(algorithm, Algorithm::SlidingWindow) { limit.min(500) } else { limit };
            Quota::new(limit, Duration::from_micros(window), algorithm).ok()
        },
    )
}

/// The largest integer up to which a double is exact.
const EXACT: u64 = 1 << 53;

#[test]
fn no_number_that_configuration_accepts_overflows_or_favours_the_caller() {
    let step = (of_any_size(EXACT / 8), any_u32(), 0..6_u8, any::<bool>());
    let case = (any_quota(), vec(step, 1..60), any::<bool>());
    always(20_000, case, |(quota, steps, owing)| {
        let debt = if owing { u64::MAX } else { 0 };
        let (mut held, mut now) = (StateCell::default(), START);
        let mut admitted: Admitted = Vec::new();
        for (number, (by, cost, how, exact)) in steps.into_iter().enumerate() {
            // Up to the year 2255; the largest timestamps are still exact.
            now = Timestamp::from_micros((now.micros() + by / 16).min(EXACT - 1));
            let mut cost = if exact { cost.min(quota.limit).max(1) } else { cost };
            if matches!(quota.algorithm, Algorithm::SlidingWindow) {
                cost = cost.min(1_000);
            }
            let charges = Charges { admitted: cost, passed: 0, refused: if how == 0 { cost } else { 0 } };
            let needs = Needs { fits: if how == 1 { 0 } else { cost }, one_left: how == 1 };
            let check = Check {
                limit: quota.limit(debt),
                needs,
                charges,
                refund: if how == 2 { cost } else { 0 },
                ..blank(Numbers::Log { limit: 1, window: 1 })
            };
            let lease = LeaseId(number as u128);
            let outcome = advance(&[check], std::slice::from_mut(&mut held), lease.into(), now, false).1[0];
            assert!(outcome.remaining <= outcome.limit);
            assert!(outcome.reset <= EXACT, "reset {}", outcome.reset);
            if let State::Bucket(bucket) = &held.state {
                assert!(bucket.level <= EXACT / 2, "level {}", bucket.level);
            }
            if how == 2 {
                admitted.clear();
            } else if outcome.passes && how > 2 {
                admitted.push((now.micros(), cost));
            }
            if let Some(wait) = outcome.retry_after {
                let peek = Check { charges: Charges::default(), refund: 0, ..check };
                let passes_after = |wait: u64| {
                    let mut copy = StateCell::from(held.state.clone());
                    advance(&[peek], std::slice::from_mut(&mut copy), lease.into(), now.plus(wait), false).1[0].passes
                };
                assert!(passes_after(wait), "still refused after {wait}");
                assert!(wait == 0 || !passes_after(wait - 1), "sooner than {wait}");
            }
        }
        let window = u64::try_from(quota.window.as_micros()).expect("it is at most ten years");
        let numbers = match quota.algorithm {
            Algorithm::TokenBucket { burst, .. } => {
                Numbers::Bucket { tokens: quota.limit, window, burst: burst.unwrap_or(quota.limit), debt: 0 }
            }
            Algorithm::SlidingWindow => Numbers::Log { limit: quota.limit, window },
            Algorithm::SlidingCounter => Numbers::Pair { limit: quota.limit, window },
            // Refunds and restarts move the windows that start at the first hit; epoch windows cover the arithmetic.
            Algorithm::FixedWindow(_) => return,
            Algorithm::Distinct { .. } => unreachable!("no quota here counts values"),
        };
        admits_no_more_than(numbers, &admitted);
    });
}

#[test]
fn a_configured_rate_is_met_within_a_percent_and_never_exceeded() {
    let buckets = any_quota()
        .prop_filter("only buckets have rates", |quota| matches!(quota.algorithm, Algorithm::TokenBucket { .. }));
    always(20_000, (buckets, any_u32()), |(quota, cost)| {
        let limit = quota.limit(0);
        let Limit::TokenBucket(bucket) = limit else { unreachable!("it is a bucket") };
        let mut held = StateCell::default();
        let mut ask = |cost: u32, charge: bool| {
            let check = Check {
                limit,
                needs: Needs { fits: cost, ..Needs::default() },
                charges: Charges { admitted: if charge { cost } else { 0 }, ..Charges::default() },
                ..blank(Numbers::Log { limit: 1, window: 1 })
            };
            advance(&[check], std::slice::from_mut(&mut held), LeaseId::default().into(), START, false).1[0]
        };
        assert!(ask(bucket.burst(), true).passes, "it is full at first");
        let cost = cost.min(bucket.burst());
        let wait = u128::from(ask(cost, false).retry_after.expect("it passes some day"));
        // cost tokens take cost x window / limit microseconds.
        let (cost, tokens) = (u128::from(cost), u128::from(quota.limit));
        let window = quota.window.as_micros();
        assert!(wait * tokens >= cost * window, "{wait} is too soon");
        assert!(wait.saturating_sub(1) * tokens * 99 <= cost * window * 100, "{wait} is more than a percent late");
    });
}

// Names

fn part() -> impl Strategy<Value = String> {
    // Few characters, many of them separators, so that ambiguous names would collide.
    vec(select(vec!['a', 'b', ':', '/', '\0', '|', 'é', '1']), 0..5)
        .prop_map(|characters| characters.into_iter().collect())
}

#[test]
fn key_parts_cannot_collide() {
    let keys = vec![vec!["x"], vec!["y"], vec!["x", "y"], vec!["y", "x"], vec!["x", "xy"], vec![]];
    let rules_of = |key: &[&str]| {
        let limiters = vec![quota("quota", 5, secs(60), bucket(None)), slots("slots", 5, secs(60))];
        let rules = vec![applies("all", [apply("quota", key), apply("slots", key)])];
        Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles")
    };
    let books: Vec<(Vec<&str>, Rules)> = keys.into_iter().map(|key| (key.clone(), rules_of(&key))).collect();
    let request = || (select((0..books.len()).collect::<Vec<_>>()), part(), part(), part());
    let counted = |(book, x, y, xy): &(usize, String, String, String)| {
        let (key, rules) = &books[*book];
        let entries = [("x", x.as_str()), ("y", y.as_str()), ("xy", xy.as_str())];
        let request = Request { domain: DOMAIN, descriptors: [Descriptor::of(entries)].into_iter().collect() };
        let checks = rules.plan(&request, LeaseId::default()).plan.checks;
        assert_ne!(checks[0].counter, checks[1].counter, "a quota and slots share no counter");
        let mut parts: Vec<(&str, &str)> = entries.into_iter().filter(|(entry, _)| key.contains(entry)).collect();
        parts.sort_unstable();
        let parts: Vec<_> = parts.into_iter().map(|(entry, value)| (entry.to_owned(), value.to_owned())).collect();
        (checks.iter().map(|check| check.counter).collect::<Vec<_>>(), parts)
    };
    always(50_000, (request(), request()), |(one, other)| {
        let ((names, parts), (other_names, other_parts)) = (counted(&one), counted(&other));
        for (name, other) in names.iter().zip(&other_names) {
            assert_eq!(name == other, parts == other_parts, "{parts:?} and {other_parts:?}");
        }
    });
}
