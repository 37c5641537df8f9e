//! Random plans over a few counters of every algorithm, and the answers of `advance` to them one after the other, which
//! every store must give.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use tollgate::clock::Timestamp;
use tollgate::limiter::{Alignment, Holds, LeaseId, Limit, Lost, OnStoreError, State};
use tollgate::plan::{
    Applied, Change, Charges, Check, CounterName, HoldAction, HoldChange, Holding, LeaseAction, LeaseChange, Needs,
    Plan, StateCell, advance, change_hold, change_lease, undo,
};

use super::numbers::Numbers;

pub const SECOND: u64 = 1_000_000;
pub const START: Timestamp = Timestamp::from_micros(1_700_000_000_123_457);

/// Runs a test on `cases` values, the same ones every time; `make contract` multiplies their number.
pub fn always<S: Strategy>(cases: u32, strategy: S, holds: impl Fn(S::Value)) {
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    const SEED: [u8; 32] = *b"tollgate: the same steps, always";
    let times = std::env::var("TOLLGATE_CONTRACT").map_or(1, |times| times.parse().expect("a number of times"));
    let cases = cases * times;
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    let verdict = runner.run(&strategy, |value| {
        holds(value);
        Ok::<(), TestCaseError>(())
    });
    verdict.unwrap_or_else(|failure| panic!("{failure}"));
}

/// The features that random plans may have.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Peeks, refunds, overdrafts and checks merged from several.
    pub every_verb: bool,
    /// Charges that refusals make.
    pub charges_on_refusals: bool,
    /// Checks in shadow, always_denied ones, and plans that are refused already.
    pub every_verdict: bool,
    /// Numbers that change from plan to plan.
    pub changing: bool,
    /// A clock that steps back.
    pub backwards: bool,
    /// Plans of several groups, and lease changes.
    pub several_groups: bool,
    /// Charges that are held, and settled, renewed or lost, and calls that are repeated under one lease.
    pub holds: bool,
    /// Checks of one counter all look at its holds, or none of these is given back: as the rules of one limiter are.
    pub alike: bool,
}

/// Every feature.
pub const ANYTHING: Scope = Scope {
    every_verb: true,
    charges_on_refusals: true,
    every_verdict: true,
    changing: true,
    backwards: true,
    several_groups: true,
    holds: false,
    alike: false,
};

/// A counter of the plans: its store, and its numbers, of which the first is used when they do not change.
#[derive(Clone, Debug)]
pub struct Counter {
    pub name: CounterName,
    pub store: u16,
    pub numbers: Vec<Numbers>,
}

/// Two counters of each algorithm, in two stores.
pub fn counters() -> Vec<Counter> {
    let bucket = |tokens, window, burst, debt| Numbers::Bucket { tokens, window, burst, debt };
    let log = |limit| Numbers::Log { limit, window: 10 * SECOND };
    let pair = |limit| Numbers::Pair { limit, window: 10 * SECOND };
    let epoch = |limit| Numbers::Fixed { limit, alignment: Alignment::Epoch(10 * SECOND) };
    let first_hit = |limit| Numbers::Fixed { limit, alignment: Alignment::FirstHit(7 * SECOND) };
    let slots = |max, lease| Numbers::Slots { max, lease };
    let values = |limit| Numbers::Values { limit, window: 10 * SECOND };
    let families = [
        vec![bucket(5, 10 * SECOND, 5, 0), bucket(1, 10 * SECOND, 2, 0), bucket(50, 60 * SECOND, 9, 9)],
        vec![bucket(10, SECOND, 3, 10), bucket(3, SECOND, 12, 0)],
        vec![log(5), log(2), log(9)],
        vec![log(3)],
        vec![pair(5), pair(2), pair(9)],
        vec![pair(20), pair(7)],
        vec![epoch(5), epoch(2), epoch(9)],
        vec![first_hit(4), first_hit(6)],
        vec![slots(3, 5 * SECOND), slots(1, 9 * SECOND)],
        vec![slots(2, 20 * SECOND)],
        vec![values(4), values(2), values(7)],
        vec![values(3)],
    ];
    let counter = |(number, numbers): (usize, Vec<Numbers>)| Counter {
        name: CounterName([number as u64, 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1)]),
        store: (number % 2) as u16,
        numbers,
    };
    families.into_iter().enumerate().map(counter).collect()
}

/// Plans, each with the clock's step before it.
pub fn plans(scope: Scope, count: usize) -> impl Strategy<Value = Vec<(i64, Plan)>> {
    let groups = if scope.several_groups { 1..4_usize } else { 1..2 };
    let changes = if scope.several_groups { 0..2_usize } else { 0..1 };
    let holds = if scope.holds { 0..4_usize } else { 0..1 };
    let changes = (vec(change(), changes), vec(hold_change(scope), holds));
    let plan = (vec(group(scope), groups), changes, rare(scope.every_verdict, 12));
    vec((moves(scope.backwards), plan), count).prop_map(move |plans| {
        let numbered = plans.into_iter().enumerate().map(|(number, (by, (groups, (mut changes, holds), refused)))| {
            let mut plan = Plan { refused, lease: LeaseId(number as u128), ..Plan::default() };
            for group in groups {
                for (mut check, values) in group {
                    if let Limit::Distinct(distinct) = &mut check.limit {
                        // A peek asks for none.
                        let values = if check.charges == Charges::default() { Vec::new() } else { values };
                        distinct.asked = plan.values.ask(values).expect("they are few");
                    }
                    plan.checks.push(check);
                }
                plan.groups.push(u16::try_from(plan.checks.len()).expect("a plan is short"));
            }
            if scope.changing {
                grant_ahead(&mut plan, number);
            }
            for (back, change) in &mut changes {
                change.lease = LeaseId(number.saturating_sub(*back) as u128);
                plan.changes.push(*change);
            }
            for (back, change) in holds {
                let lease = LeaseId(number.saturating_sub(back) as u128);
                plan.holds.push(HoldChange { lease, ..change });
            }
            (by, plan)
        });
        let mut numbered: Vec<(i64, Plan)> = numbered.collect();
        if scope.holds {
            for number in 1..numbered.len() {
                let (before, rest) = numbered.split_at_mut(number);
                let (before, plan) = (&before[number - 1].1, &mut rest[0].1);
                match number % 8 {
                    3 => renew_all(before, plan),
                    5 | 6 => repeat(before, plan),
                    _ => {}
                }
            }
        }
        numbered
    })
}

/// Renews what the plan before takes, and nothing else, but for its own changes.
fn renew_all(before: &Plan, plan: &mut Plan) {
    for check in &before.checks {
        let &Check { counter, store, limit, .. } = check;
        if matches!(limit, Limit::Concurrency(_)) {
            plan.changes.push(LeaseChange { counter, store, lease: before.lease, action: LeaseAction::RenewOwn });
        } else if matches!(check.holding, Holding::Hold { .. }) {
            plan.holds.push(HoldChange { counter, store, limit, lease: before.lease, action: HoldAction::Renew(None) });
        }
    }
}

/// Makes a plan the one before, which looks at what that may hold already.
fn repeat(before: &Plan, plan: &mut Plan) {
    *plan = Plan { changes: [].into_iter().collect(), holds: [].into_iter().collect(), ..before.clone() };
    for check in &before.checks {
        let &Check { counter, store, limit, .. } = check;
        if matches!(limit, Limit::Concurrency(_)) {
            plan.changes.push(LeaseChange { counter, store, lease: before.lease, action: LeaseAction::Look });
        } else if matches!(check.holding, Holding::Hold { .. }) {
            plan.holds.push(HoldChange { counter, store, limit, lease: before.lease, action: HoldAction::Look });
        }
    }
}

/// Lets some checks of buckets pass a while before they fit, up to ten seconds.
fn grant_ahead(plan: &mut Plan, number: usize) {
    for (index, check) in plan.checks.iter_mut().enumerate().filter(|(index, _)| (number + index).is_multiple_of(3)) {
        if let Limit::TokenBucket(bucket) = check.limit {
            let micros = u32::try_from((number + 3 * index) % 41 * 250_000).expect("it is a few seconds");
            check.limit = Limit::TokenBucket(bucket.granting_ahead(micros));
        }
    }
}

/// Mostly small steps forwards; sometimes none, one across a boundary, a long one, or one back.
fn moves(backwards: bool) -> BoxedStrategy<i64> {
    let second = SECOND as i64;
    let forwards = prop_oneof![
        4 => Just(0),
        4 => 0..second,
        3 => (0..24_i64, -1..2_i64).prop_map(move |(halves, more)| (halves * second / 2 + more).max(0)),
        1 => 0..60 * second,
    ];
    match backwards {
        true => prop_oneof![8 => forwards, 1 => -25 * second..0].boxed(),
        false => forwards.boxed(),
    }
}

fn rare(ever: bool, one_in: u32) -> BoxedStrategy<bool> {
    match ever {
        true => prop::bool::weighted(1.0 / f64::from(one_in)).boxed(),
        false => Just(false).boxed(),
    }
}

/// Up to four checks on different counters.
fn group(scope: Scope) -> impl Strategy<Value = Vec<(Check, Vec<u64>)>> {
    subsequence(counters(), 1..=4)
        .prop_flat_map(move |counters| counters.into_iter().map(|counter| check(scope, counter)).collect::<Vec<_>>())
}

/// A check, and the values that it asks for if it counts distinct ones: up to eight of the few that there are.
fn check(scope: Scope, counter: Counter) -> impl Strategy<Value = (Check, Vec<u64>)> {
    let most = counter.numbers[0].holds();
    let verdict = (any::<Index>(), rare(scope.every_verdict, 6), rare(scope.every_verdict, 40));
    let values = prop_oneof![5 => vec(value(), 1..3), 1 => vec(value(), 1..=8)];
    let rest = (verdict, holding(scope, counter.name), values);
    (asks(scope, most), rest).prop_map(move |((mut needs, mut charges, refund), (verdict, holding, values))| {
        let (numbers, shadow, always_denied) = verdict;
        let numbers = if scope.changing { *numbers.get(&counter.numbers) } else { counter.numbers[0] };
        if matches!(numbers, Numbers::Slots { .. }) {
            // A check of slots takes one slot, whatever the hits.
            needs.fits = needs.fits.min(1);
        }
        let counts_units = !matches!(numbers, Numbers::Slots { .. } | Numbers::Values { .. });
        if matches!(numbers, Numbers::Values { .. }) {
            // Nor does one of values cost more than each of them once, and a refusal never pushes others out.
            needs.fits = needs.fits.min(1);
            if needs.fits == 0 && charges.admitted > 0 {
                // Values are not overdrawn. What a fallback admitted is charged whatever is left.
                needs.one_left = false;
            }
            let Charges { admitted, passed, .. } = charges;
            charges = Charges { admitted: admitted.min(1), passed: passed.min(1), refused: 0 };
        }
        let check = Check {
            counter: counter.name,
            store: counter.store,
            limit: numbers.limit(),
            needs,
            charges,
            refund,
            shadow,
            always_denied,
            on_store_error: OnStoreError::Local,
            holding: if counts_units { holding } else { Holding::None },
        };
        (check, values)
    })
}

/// One of a few values, of which some are negative where a store has signed numbers.
fn value() -> impl Strategy<Value = u64> {
    (0..9_u64).prop_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xff)
}

/// Mostly holds, of a moment to half a minute; and checks of rules that only know of them, or not even that.
fn holding(scope: Scope, counter: CounterName) -> BoxedStrategy<Holding> {
    if !scope.holds {
        return Just(Holding::None).boxed();
    }
    let millis = prop_oneof![1 => Just(1), 3 => 1..12_000_u32, 2 => (1..40_u32).prop_map(|halves| halves * 500)];
    if scope.alike && (counter.0[0] / 2).is_multiple_of(2) {
        let kept = millis.prop_map(|millis| Holding::Hold { millis, lost: Lost::Charge });
        return prop_oneof![1 => Just(Holding::Kept), 3 => kept].boxed();
    }
    let lost = prop_oneof![Just(Lost::Charge), Just(Lost::Release)];
    let blind = if scope.alike { Holding::Released } else { Holding::None };
    let knowing = if scope.alike { Holding::Released } else { Holding::Kept };
    prop_oneof![
        1 => Just(blind),
        1 => Just(knowing),
        1 => Just(Holding::Released),
        1 => Just(Holding::Reported),
        4 => (millis, lost).prop_map(|(millis, lost)| Holding::Hold { millis, lost }),
    ]
    .boxed()
}

/// A settlement or renewal of a hold of one of the last plans, or of this plan's own before it holds anything.
fn hold_change(scope: Scope) -> impl Strategy<Value = (usize, HoldChange)> {
    let counters: Vec<Counter> = counters()
        .into_iter()
        .filter(|counter| !matches!(counter.numbers[0], Numbers::Slots { .. } | Numbers::Values { .. }))
        .collect();
    let units =
        prop_oneof![2 => Just(Some(0)), 4 => (0..14_u32).prop_map(Some), 1 => Just(Some(u32::MAX)), 2 => Just(None)];
    let action = prop_oneof![
        5 => units.prop_map(HoldAction::Settle),
        1 => Just(HoldAction::Renew(None)),
        1 => (1..9 * SECOND).prop_map(|length| HoldAction::Renew(Some(length))),
        1 => Just(HoldAction::Look),
    ];
    let back = prop_oneof![6 => 1..3_usize, 1 => 0..12_usize];
    (back, prop::sample::select(counters), any::<Index>(), action).prop_map(move |(back, counter, numbers, action)| {
        let numbers = if scope.changing { *numbers.get(&counter.numbers) } else { counter.numbers[0] };
        let limit = numbers.limit();
        (back, HoldChange { counter: counter.name, store: counter.store, limit, lease: LeaseId::default(), action })
    })
}

/// Requests that a rule can make: charges of each kind, peeks, refunds, and charges merged with any of them.
pub fn asks(scope: Scope, most: u32) -> BoxedStrategy<(Needs, Charges, u32)> {
    let cost = prop_oneof![8 => 1..=most.min(4), 3 => 1..=most + 1, 1 => Just(u32::MAX)];
    let when = if scope.charges_on_refusals { 0..3_u8 } else { 0..1 };
    let charge = (cost, rare(scope.every_verb, 3), when).prop_map(|(cost, overdraw, when)| {
        let needs = Needs { fits: if overdraw { 0 } else { cost }, one_left: overdraw };
        let on = |level: u8| if when >= level { cost } else { 0 };
        (needs, Charges { admitted: cost, passed: on(1), refused: on(2) }, 0)
    });
    if !scope.every_verb {
        return charge.boxed();
    }
    let peek = Just((Needs { one_left: true, fits: 0 }, Charges::default(), 0));
    let refund = (0..=most + 1).prop_map(|units| (Needs::default(), Charges::default(), units));
    let merged = (charge.clone(), 0..=most, any::<bool>(), 0..=most).prop_map(|(one, fits, peek, refund)| {
        let (needs, charges, _) = one;
        (Needs { fits: needs.fits.max(fits), one_left: needs.one_left || peek }, charges, refund)
    });
    prop_oneof![8 => charge, 1 => peek, 1 => refund, 1 => merged].boxed()
}

/// A release or renewal of the lease of one of the last plans, or of this plan's own before it is taken.
fn change() -> impl Strategy<Value = (usize, LeaseChange)> {
    let slots: Vec<Counter> =
        counters().into_iter().filter(|counter| matches!(counter.numbers[0], Numbers::Slots { .. })).collect();
    let action = prop_oneof![
        3 => Just(LeaseAction::Release),
        1 => (1..9 * SECOND).prop_map(LeaseAction::Renew),
        1 => Just(LeaseAction::RenewOwn),
        1 => Just(LeaseAction::Look),
    ];
    (0..12_usize, prop::sample::select(slots), action).prop_map(|(back, counter, action)| {
        (back, LeaseChange { counter: counter.name, store: counter.store, lease: LeaseId::default(), action })
    })
}

/// Decides plans by `advance` alone, and stores the states that it writes.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    states: HashMap<(u16, CounterName), State>,
    holds: HashMap<(u16, CounterName), Box<Holds>>,
}

impl Reference {
    pub fn apply(&mut self, plan: &Plan, now: Timestamp) -> Applied {
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        applied.statuses = plan.make_changes(|change| {
            let (store, counter) = change.place();
            let mut held = self.held(store, counter);
            let status = match change {
                Change::Slot(change) => change_lease(&mut held, &change, now),
                Change::Hold(change) => change_hold(&mut held, &change, now),
            };
            self.keep(store, counter, held);
            status
        });
        let looking = plan.found_held(&applied.statuses).then(|| plan.looking());
        let plan = looking.as_ref().unwrap_or(plan);
        for done in &plan.undos {
            let mut held = self.held(done.store, done.counter);
            undo(&mut held, done, plan.asker(), now);
            self.keep(done.store, done.counter, held);
        }
        for group in plan.groups() {
            let mut held: Vec<StateCell> = group.iter().map(|check| self.held(check.store, check.counter)).collect();
            let (admitted, outcomes) = advance(group, &mut held, plan.asker(), now, plan.refused);
            group.iter().zip(held).for_each(|(check, held)| self.keep(check.store, check.counter, held));
            applied.admitted &= admitted;
            applied.answers.extend(outcomes.into_iter().map(Ok));
        }
        applied
    }

    fn held(&self, store: u16, counter: CounterName) -> StateCell {
        let state = self.states.get(&(store, counter)).cloned().unwrap_or_default();
        let mut cell = StateCell::from(state);
        cell.holds = self.holds.get(&(store, counter)).cloned();
        cell
    }

    fn keep(&mut self, store: u16, counter: CounterName, held: StateCell) {
        if held.wrote {
            self.states.insert((store, counter), held.state);
        }
        if let (true, Some(holds)) = (held.wrote_holds, held.holds) {
            self.holds.insert((store, counter), holds);
        }
    }
}
