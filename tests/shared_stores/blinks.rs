//! The bound of docs/stores.md on the excess of an outage, whatever the pattern of blips: two instances on one store in this
//! process, with a paused clock.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tollgate::limiter::{Alignment, FixedWindow, LeaseId, Limit, OnStoreError};
use tollgate::plan::{Check, CounterName, Plan};
use tollgate::store::{QueueSettings, SharedSettings, SharedStore, StoreHandle, Stores};

use super::fake::{BROKEN, FakeStore, HANGING, LATE, LINKING, LOSING, LOSING_ONE, UNSEEN, WELL, check, one};
use crate::support::reference::plans::{SECOND, START};

const LIMIT: u32 = 25;
const INSTANCES: u32 = 2;

/// `limit + N x local` of docs/stores.md.
const BOUND: u32 = LIMIT * (1 + INSTANCES);

const MINUTE: Duration = Duration::from_secs(60);

/// A part of the minute: how the store behaves, for how many milliseconds, and how often each instance decides meanwhile.
#[derive(Clone, Copy, Debug)]
struct Part {
    behaviour: u8,
    milliseconds: u64,
    decisions: [u8; 2],
}

fn part() -> impl Strategy<Value = Part> {
    let behaviour = prop_oneof![
        2 => Just(WELL),
        3 => prop::sample::select(vec![BROKEN, HANGING, LATE, UNSEEN, LINKING, LOSING, LOSING_ONE]),
    ];
    let decisions = [0..10_u8, 0..10_u8];
    (behaviour, 0..4_000_u64, decisions).prop_map(|(behaviour, milliseconds, decisions)| Part {
        behaviour,
        milliseconds,
        decisions,
    })
}

/// What a minute of blips came to.
#[derive(Clone, Copy, Debug)]
struct Minute {
    admitted: u32,
    /// What the store has left once nothing is owed.
    left: u32,
}

impl Minute {
    /// Runs the parts until the minute is over, and lets the store be well then. `instances_key` is the
    /// key of the store, and with `forgetful` every part begins with
    /// new instances.
    fn of(parts: &[Part], instances_key: u32, forgetful: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime starts");
        let _entered = runtime.enter();
        let store = FakeStore::new();
        let mut instances = [(); 2].map(|()| instance(&store, instances_key));
        let day = Limit::FixedWindow(FixedWindow { limit: LIMIT, alignment: Alignment::FirstHit(86_400 * SECOND) });
        let check = Check { counter: CounterName([1, 7]), on_store_error: OnStoreError::Local, ..check(day) };
        let admitted = runtime.block_on(async {
            let (mut admitted, mut lease) = (0, 0);
            let mut decide = async |stores: &Stores, count: u8| {
                let plans = (0..count).map(|_| {
                    lease += 1;
                    Plan { lease: LeaseId(lease), ..one(check) }
                });
                let plans: Vec<_> = plans.collect();
                let answers = join_all(plans.iter().map(|plan| stores.apply(plan, START))).await;
                admitted += answers.iter().map(|answer| u32::from(answer.admitted)).sum::<u32>();
            };
            let began = tokio::time::Instant::now();
            for part in parts {
                let Some(left) = MINUTE.checked_sub(began.elapsed()) else { break };
                store.be(part.behaviour);
                if forgetful {
                    instances = [(); 2].map(|()| instance(&store, instances_key));
                }
                for (stores, count) in instances.iter().zip(part.decisions) {
                    decide(stores, count).await;
                }
                tokio::time::sleep(Duration::from_millis(part.milliseconds).min(left)).await;
            }
            store.be(WELL);
            // Calls that hang have ended, and what is owed arrives within a few attempts.
            tokio::time::sleep(MINUTE).await;
            for stores in &instances {
                decide(stores, 2 * LIMIT as u8).await;
            }
            admitted
        });
        Self { admitted, left: store.left(&check) }
    }
}

fn instance(store: &FakeStore, instances: u32) -> Stores {
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, instances, ..SharedSettings::new("main") };
    Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(settings, store.clone())))])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, rng_seed: RngSeed::Fixed(75), ..ProptestConfig::default() })]

    #[test]
    fn semantics_31_two_instances_admit_at_most_three_limits_through_any_blips_of_a_minute(
        parts in prop::collection::vec(part(), 1..60),
    ) {
        let _others = crate::MACHINE.blocking_read();
        let minute = Minute::of(&parts, 1, false);
        prop_assert!(minute.admitted <= BOUND, "{minute:?}");
        // Nothing that was admitted is forgotten: the store is used up, because more was asked for than there is.
        prop_assert_eq!(minute.left, 0);
    }
}

/// Blips in which both instances always want more.
fn greedy() -> Vec<Part> {
    let part = |behaviour| Part { behaviour, milliseconds: 1_000, decisions: [LIMIT as u8; 2] };
    [WELL, BROKEN].repeat(20).into_iter().map(part).collect()
}

#[test]
fn semantics_31_the_bound_is_reached_and_not_exceeded_by_greedy_instances() {
    assert_eq!(Minute::of(&greedy(), 1, false).admitted, BOUND);
    // Each has its share of the limit.
    assert_eq!(Minute::of(&greedy(), INSTANCES, false).admitted, LIMIT + INSTANCES * (LIMIT / INSTANCES));
}

/// The measurement sees what the bound forbids: a budget for each blip.
#[test]
fn instances_that_forget_what_they_admitted_exceed_the_bound() {
    assert!(Minute::of(&greedy(), 1, true).admitted > BOUND);
}
