//! What always holds, whatever is asked in whatever order. Seeds are fixed, so every run asks the same.

mod model;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use model::{Model, Numbers};
use tollgate::clock::Timestamp;
use tollgate::limiter::{
    Alignment, Bounds, Charges, Check, CounterName, Held, LeaseAction, LeaseChange, LeaseId, Needs, OnStoreError,
    Outcome, State, advance, change_lease,
};

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3_600 * SECOND;
const START: Timestamp = Timestamp::from_micros(1_700_000_000_123_457);

/// Runs a test on `cases` values, the same ones every time.
fn always<S: Strategy>(cases: u32, strategy: S, holds: impl Fn(S::Value)) {
    const SEED: [u8; 32] = *b"tollgate: the same steps, always";
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    let verdict = runner.run(&strategy, |value| {
        holds(value);
        Ok::<(), TestCaseError>(())
    });
    verdict.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Where the clock goes before a step.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// Sixteenths of the window, and microseconds more.
    By(i64, i64),
    /// To the moment at which the last refusal said to come back, and microseconds more.
    Retry(i64),
    /// To the moment at which nothing was to be counted, and microseconds more.
    Reset(i64),
}

/// One thing asked of one counter.
#[derive(Clone, Debug)]
struct Step {
    to: Move,
    /// Which of the case's numbers decide it.
    numbers: prop::sample::Index,
    needs: Needs,
    charges: Charges,
    refund: u32,
    shadow: bool,
    barred: bool,
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

/// What a rule can ask: charges of each kind, peeks, refunds, and charges merged with any of them.
fn asks(most: u32) -> impl Strategy<Value = (Needs, Charges, u32)> {
    let cost = prop_oneof![8 => 1..=most.min(4), 4 => 1..=most + 2, 1 => Just(u32::MAX)];
    let charge = (cost, any::<bool>(), 0..3u8).prop_map(|(cost, overdraw, when)| {
        let needs = Needs { fits: if overdraw { 0 } else { cost }, one_left: overdraw, not_over: false };
        let charges = Charges {
            admitted: cost,
            passed: if when > 0 { cost } else { 0 },
            refused: if when > 1 { cost } else { 0 },
        };
        (needs, charges, 0)
    });
    let peek =
        any::<bool>().prop_map(|above| (Needs { one_left: !above, not_over: above, fits: 0 }, Charges::default(), 0));
    let refund = (0..=most + 2).prop_map(|units| (Needs::default(), Charges::default(), units));
    let merged = (charge.clone(), 0..=most, any::<bool>(), 0..=most).prop_map(|(asked, fits, peek, refund)| {
        let (needs, charges, _) = asked;
        (Needs { fits: needs.fits.max(fits), one_left: needs.one_left || peek, ..needs }, charges, refund)
    });
    prop_oneof![8 => charge, 1 => peek, 1 => refund, 1 => merged]
}

fn steps(most: u32, slots: bool) -> impl Strategy<Value = Step> {
    let asks = asks(most).prop_map(move |(mut needs, charges, refund)| {
        if slots {
            // A slot is one slot, whatever the hits.
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
        move |(to, numbers, (needs, charges, refund), (shadow, barred, refused), lease, change)| Step {
            to,
            numbers,
            needs,
            charges,
            refund,
            shadow,
            barred,
            refused,
            lease,
            change: change.filter(|_| slots),
        },
    )
}

/// Follows one counter through steps, with the model beside it. Only what `advance` says it wrote is kept.
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
        let mut held = Held::from(state.clone());
        if let Some(action) = step.change {
            let change = LeaseChange { counter: CounterName::default(), store: 0, lease, action };
            let fate = change_lease(&mut held, &change, now);
            let renew = match action {
                LeaseAction::Renew(length) => Some(length),
                LeaseAction::Release => None,
            };
            model.change(lease, renew, now, fate);
        } else {
            let numbers = *step.numbers.get(numbers);
            let check = Check {
                limit: numbers.limit(),
                needs: step.needs,
                charges: step.charges,
                refund: step.refund,
                shadow: step.shadow,
                barred: step.barred,
                ..blank(numbers)
            };
            let (admitted, outcomes) = advance(&[check], std::slice::from_mut(&mut held), lease, now, step.refused);
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
    Check {
        counter: CounterName::default(),
        store: 0,
        limit: numbers.limit(),
        needs: Needs::default(),
        charges: Charges::default(),
        refund: 0,
        shadow: false,
        barred: false,
        on_store_error: OnStoreError::Local,
    }
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
    let bounds = [-20, -7, 11, 30]
        .map(|hours: i64| Timestamp::from_micros(START.micros().saturating_add_signed(hours * HOUR as i64)));
    agrees_with_the_model(vec![
        fixed(10 * SECOND, Alignment::Epoch(10 * SECOND), &[5, 3, 10]),
        fixed(7, Alignment::Epoch(7), &[2, 1]),
        fixed(10 * SECOND, Alignment::FirstHit(10 * SECOND), &[5, 3, 10]),
        fixed(60 * SECOND, Alignment::FirstHit(60 * SECOND), &[1]),
        fixed(12 * HOUR, Alignment::Calendar(Bounds(bounds)), &[5, 8]),
    ]);
}

#[test]
fn slots_agree_with_a_list_of_leases() {
    let slots =
        |lease, most: &[u32]| (lease, most.iter().map(|&max| Numbers::Slots { max, lease }).collect::<Vec<_>>());
    agrees_with_the_model(vec![slots(SECOND, &[2, 1, 5]), slots(2 * SECOND, &[3]), slots(7, &[1, 2])]);
}
