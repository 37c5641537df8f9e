//! Decisions without the store are settled with it: once it answers, it counts exactly what was admitted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tollgate::limiter::{Alignment, Concurrency, FixedWindow, LeaseId, Limit, OnStoreError, SlidingWindow};
use tollgate::plan::{Check, CounterName, LeaseAction, LeaseChange, Plan};
use tollgate::store::{QueueSettings, SharedSettings, SharedStore, StoreHandle, Stores};

use super::fake::{BROKEN, FakeStore, HANGING, LINKING, WELL, check, one};
use crate::support::reference::plans::{SECOND, START};

/// More than any case admits.
const PLENTY: u32 = 1_000;

const DAY: u64 = 86_400 * SECOND;

/// A step of a case.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The store behaves like this from now on.
    Be(u8),
    /// This number of decisions at once, on each limit.
    Decide(usize),
    /// Releases this number of the slots that are held, or all of them if there are fewer.
    Release(usize),
    /// The milliseconds that pass.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::sample::select(vec![WELL, BROKEN, HANGING, LINKING]).prop_map(Step::Be),
        5 => (1..5_usize).prop_map(Step::Decide),
        2 => (1..5_usize).prop_map(Step::Release),
        4 => (0..30_u64).prop_map(Step::Pass),
    ]
}

/// The limits of a case, each with the next one's counter.
fn limits(most: u32) -> [Check; 3] {
    let limits = [
        Limit::FixedWindow(FixedWindow { limit: most, alignment: Alignment::FirstHit(DAY) }),
        Limit::SlidingWindow(SlidingWindow { limit: most, window: DAY }),
        Limit::Concurrency(Concurrency { max: most, lease: DAY }),
    ];
    let mut counter = 0;
    limits.map(|limit| {
        counter += 1;
        Check { counter: CounterName([counter, 7]), on_store_error: OnStoreError::Local, ..check(limit) }
    })
}

fn instance(kept: &FakeStore) -> Stores {
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(
        SharedSettings { queue, ..SharedSettings::new("main") },
        kept.clone(),
    )))])
}

/// Runs a case on limits of `most`. Returns for each limit what was admitted and not released, and what the store has left
/// once nothing is owed.
fn run(steps: &[Step], most: u32) -> [(u32, u32); 3] {
    let kept = FakeStore::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime starts");
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let limits = limits(most);
    let (mut admitted, mut held, mut lease) = ([0; 3], Vec::new(), 0);
    runtime.block_on(async {
        for &step in steps {
            match step {
                Step::Be(behaviour) => kept.be(behaviour),
                Step::Pass(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
                Step::Decide(count) => {
                    let plans = limits.iter().enumerate().flat_map(|each| std::iter::repeat_n(each, count));
                    let plans: Vec<_> = plans
                        .map(|(number, &check)| {
                            lease += 1;
                            (number, Plan { lease: LeaseId(lease), ..one(check) })
                        })
                        .collect();
                    let answers = join_all(plans.iter().map(|(_, plan)| stores.apply(plan, START))).await;
                    for ((number, plan), answer) in plans.iter().zip(answers) {
                        admitted[*number] += u32::from(answer.admitted);
                        if answer.admitted && *number == 2 {
                            held.push(plan.lease);
                        }
                    }
                }
                Step::Release(count) => {
                    for lease in held.drain(..count.min(held.len())) {
                        let counter = limits[2].counter;
                        let change = LeaseChange { counter, store: 0, lease, action: LeaseAction::Release };
                        stores.apply(&Plan { changes: [change].into_iter().collect(), ..Plan::default() }, START).await;
                        admitted[2] -= 1;
                    }
                }
            }
        }
        kept.be(WELL);
        // Calls that hang have ended, and what is owed arrives within a few attempts.
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    [0, 1, 2].map(|number| (admitted[number], kept.left(&limits[number])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, rng_seed: RngSeed::Fixed(31), ..ProptestConfig::default() })]

    #[test]
    fn semantics_31_a_store_that_is_back_counts_what_was_admitted_and_nothing_twice(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        for (admitted, left) in run(&steps, PLENTY) {
            prop_assert_eq!(admitted, PLENTY - left);
        }
    }

    #[test]
    fn semantics_31_slots_of_a_full_limit_are_free_once_they_are_released(steps in prop::collection::vec(step(), 1..25)) {
        let steps: Vec<Step> = steps.into_iter().chain([Step::Be(WELL), Step::Release(usize::MAX)]).collect();
        let (held, left) = run(&steps, 3)[2];
        prop_assert_eq!((held, left), (0, 3));
    }
}

#[test]
fn semantics_31_a_charge_whose_answer_was_late_is_counted_once() {
    let decided = [Step::Be(HANGING), Step::Decide(4), Step::Pass(40), Step::Be(WELL)];
    assert_eq!(run(&decided, PLENTY), [(4, PLENTY - 4); 3]);
}
