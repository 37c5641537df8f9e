//! The circuit breaker of a store outside this process, and the requests to it while the breaker is open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tollgate::limiter::{Concurrency, LeaseId, Limit, OnStoreError, SlidingWindow};
use tollgate::plan::{Check, CounterName, Fault, LeaseAction, LeaseChange, Plan, Undo};
use tollgate::store::{Queue, QueueSettings, SharedSettings, SharedStore, StoreHandle, Stores};

use super::fake::{BROKEN, FakeStore, HANGING, LATE, UNSEEN, WELL, check, one};
use crate::support::reference::plans::START;

/// Longer than any test lasts.
const HOUR: Duration = Duration::from_secs(3_600);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// A runtime with a paused clock, which advances to the next timer when all tasks are idle.
fn held() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime starts")
}

fn log(limit: u32) -> Check {
    check(Limit::SlidingWindow(SlidingWindow { limit, window: 60_000_000 }))
}

/// A store with this timeout, in which each plan is a call of its own.
fn queue(kept: &FakeStore, timeout: Duration) -> Queue {
    Queue::new("main", kept.clone(), QueueSettings { timeout, max_batch: 1, max_calls: 64 })
}

/// Sends a plan and waits without a deadline.
async fn ask(queue: &Queue, plan: &Plan) -> Result<bool, Fault> {
    let answer = queue.execute(plan.clone(), Instant::now() + HOUR).await;
    answer.map(|applied| applied.admitted)
}

#[test]
fn one_pause_does_not_open_the_circuit_breaker_however_many_waited_for_it() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let (queue, plan) = (queue(&kept, HOUR), one(log(100)));
    runtime.block_on(async {
        kept.be(HANGING);
        let pause = async {
            while kept.calls() < 64 {
                tokio::task::yield_now().await;
            }
            kept.be(LATE);
        };
        let (answers, ()) = tokio::join!(join_all((0..64).map(|_| ask(&queue, &plan))), pause);
        assert_eq!(answers, [Err(Fault::Timeout); 64]);
        assert!(!queue.circuit_open(), "it was one pause");
        kept.be(WELL);
        assert_eq!(ask(&queue, &plan).await, Ok(true));
    });
}

#[test]
fn ten_failures_in_a_row_that_last_longer_than_a_deadline_open_the_circuit_breaker() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    // With a deadline of zero, any two failures are further apart than the deadline.
    let (queue, plan) = (queue(&kept, Duration::ZERO), one(log(100)));
    runtime.block_on(async {
        kept.be(LATE);
        for failures in 1..=10 {
            assert!(!queue.circuit_open(), "after {} failures", failures - 1);
            assert_eq!(ask(&queue, &plan).await, Err(Fault::Timeout));
        }
        assert!(queue.circuit_open());
        assert_eq!(ask(&queue, &plan).await, Err(Fault::CircuitOpen));
    });
}

#[test]
fn a_store_without_a_connection_opens_the_circuit_breaker_at_once() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let (queue, plan) = (queue(&kept, HOUR), one(log(100)));
    kept.be(BROKEN);
    assert_eq!(runtime.block_on(ask(&queue, &plan)), Err(Fault::Unreachable));
    assert!(queue.circuit_open());
}

#[test]
fn a_decision_waits_for_its_deadline_and_no_longer() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let deadline = Duration::from_millis(10);
    let (queue, plan) = (queue(&kept, deadline), one(log(1_000)));
    runtime.block_on(async {
        kept.be(HANGING);
        // Every caller, however many wait before it.
        let (begun, until) = (Instant::now(), queue.deadline());
        let answers = join_all((0..200).map(|_| queue.execute(plan.clone(), until))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(Fault::Timeout))));
        let waited = begun.elapsed();
        assert!((deadline..=deadline + Duration::from_millis(1)).contains(&waited), "they waited {waited:?}");
    });
}

#[test]
fn a_circuit_breaker_closes_within_a_tenth_of_a_second_of_the_stores_return() {
    const MILLISECOND: Duration = Duration::from_millis(1);
    // It recovers at any moment between two probes.
    for (away, away_for) in [BROKEN, HANGING].into_iter().flat_map(|away| (1_000..1_100).map(move |time| (away, time)))
    {
        let (kept, runtime) = (FakeStore::new(), held());
        let _entered = runtime.enter();
        let (queue, plan) = (queue(&kept, Duration::from_millis(10)), one(log(100)));
        runtime.block_on(async {
            kept.be(away);
            while !queue.circuit_open() {
                let answer = queue.execute(plan.clone(), queue.deadline()).await;
                assert!(answer.is_err(), "it is away");
            }
            // The circuit breaker stays open, and no caller waits.
            for _ in 0..away_for {
                let begun = Instant::now();
                assert_eq!(ask(&queue, &plan).await, Err(Fault::CircuitOpen));
                assert_eq!(begun.elapsed(), Duration::ZERO);
                tokio::time::sleep(MILLISECOND).await;
            }
            kept.be(WELL);
            let back = Instant::now();
            while ask(&queue, &plan).await != Ok(true) {
                tokio::time::sleep(MILLISECOND).await;
            }
            assert!(back.elapsed() <= Duration::from_millis(101), "it took {:?}", back.elapsed());
        });
    }
}

/// With one other instance, so that an answer shows its source: the fallback has half of every limit.
#[test]
fn semantics_31_an_answer_that_is_late_now_and_then_does_not_let_the_fallback_start_afresh() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, instances: 2, ..SharedSettings::new("main") };
    let stores = Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))]);
    let local = |counter, limit| {
        let on_store_error = OnStoreError::Local;
        one(Check { counter: CounterName([counter, 7]), on_store_error, ..log(limit) })
    };
    let (used_up, flow) = (local(1, 50), local(2, 1_000));
    runtime.block_on(async {
        let mut admitted = 0;
        for second in 0..50 {
            // So much time that the fallback would be discarded after an outage.
            let now = START.plus(second * 1_000_000);
            kept.clock().set(now);
            let decided = stores.apply(&flow, now).await.answers[0].expect("it is decided");
            assert_eq!(decided.limit, 1_000, "by the store");
            kept.be(HANGING);
            let decided = stores.apply(&used_up, now).await;
            assert_eq!(decided.answers[0].expect("it is decided").limit, 25, "by the fallback");
            admitted += u32::from(decided.admitted);
            kept.be(WELL);
        }
        assert_eq!(admitted, 25);
    });
}

/// A store whose calls can carry many plans.
fn shared_calls(kept: &FakeStore) -> Queue {
    Queue::new("main", kept.clone(), QueueSettings { timeout: HOUR, max_batch: 64, max_calls: 2 })
}

#[test]
fn an_idle_store_gets_each_plan_at_once() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let (queue, plan) = (shared_calls(&kept), one(log(100)));
    runtime.block_on(async {
        let begun = Instant::now();
        for sent in 1..=100 {
            assert_eq!(ask(&queue, &plan).await, Ok(true));
            assert_eq!(kept.calls(), sent, "it did not wait for others to share the call");
        }
        // Waiting for anything but the answers would have advanced the clock.
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
}

#[test]
fn plans_that_arrive_while_calls_are_in_flight_share_the_next_one() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let (queue, plan) = (Arc::new(shared_calls(&kept)), one(log(1_000)));
    let send = || {
        let (queue, plan) = (queue.clone(), plan.clone());
        tokio::spawn(async move { ask(&queue, &plan).await })
    };
    runtime.block_on(async {
        kept.be(HANGING);
        let mut answers = Vec::new();
        // As many calls as may be in flight.
        for calls in 1..=2 {
            answers.push(send());
            kept.called().await;
            assert_eq!(kept.calls(), calls);
        }
        answers.extend((0..130).map(|_| send()));
        // The clock advances when all of them wait.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(kept.calls(), 2);
        kept.be(WELL);
        assert!(join_all(answers).await.into_iter().all(|answer| answer.expect("nothing panics") == Ok(true)));
        assert_eq!(kept.calls(), 2 + 3, "64, 64 and 2");
    });
}

/// Uses a counter up, and gives everything back with a plan while the circuit breaker is open.
fn given_back_while_left_alone(check: Check, back: impl Fn(LeaseId) -> Plan) {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let (queue, plan) = (queue(&kept, HOUR), one(check));
    runtime.block_on(async {
        assert_eq!(ask(&queue, &plan).await, Ok(true));
        assert_eq!(kept.left(&check), 0);
        kept.be(BROKEN);
        assert_eq!(ask(&queue, &plan).await, Err(Fault::Unreachable));
        kept.be(UNSEEN);
        assert_eq!(ask(&queue, &back(plan.lease)).await, Err(Fault::CircuitOpen), "the circuit breaker is still open");
        let given_back = async {
            while kept.left(&check) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), given_back).await.expect("it is given back");
    });
}

#[test]
fn a_slot_released_while_the_circuit_breaker_is_open_is_released_when_it_can_be() {
    let slot = check(Limit::Concurrency(Concurrency { max: 1, lease: 60_000_000 }));
    given_back_while_left_alone(slot, |lease| {
        let change = LeaseChange { counter: slot.counter, store: 0, lease, action: LeaseAction::Release };
        Plan { changes: [change].into_iter().collect(), ..Plan::default() }
    });
}

#[test]
fn a_charge_undone_while_the_circuit_breaker_is_open_is_undone_when_it_can_be() {
    let log = log(1);
    let undo = || {
        let Check { counter, limit, .. } = log;
        vec![Undo {
            counter,
            store: 0,
            limit,
            charged: 1,
            at: START,
            reset: 60_000_000,
            only_if_last: false,
            holds: false,
        }]
    };
    given_back_while_left_alone(log, |_| Plan { undos: undo(), ..Plan::default() });
    // If the same plan also charges, it is rejected, and the charge is not made later.
    given_back_while_left_alone(log, |lease| Plan { undos: undo(), lease, ..one(log) });
}
