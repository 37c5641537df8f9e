//! The wrappers of shared stores: the refusal cache and quota leases.
//!
//! With one instance and no refunds they answer as the store would; with several they never admit more than the limit.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tollgate::limiter::{Alignment, FixedWindow, Limit, SlidingWindow, TokenBucket};
use tollgate::plan::{Charges, Check, CounterName, Needs};
use tollgate::store::{QueueSettings, SharedSettings, SharedStore, StoreHandle, Stores};

use super::fake::{FakeStore, HANGING, WELL, check, one};
use super::wrapped::{
    WITH_CACHE, WITH_LEASES, instance, leases_keep_the_contract, runtime, the_cache_keeps_the_contract,
};
use crate::support::reference::plans::{SECOND, START};

fn window(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(60 * SECOND) })
}

fn bucket(tokens: u64, burst: u32) -> Limit {
    Limit::TokenBucket(TokenBucket::new(tokens, SECOND, burst, 0).expect("it can be held"))
}

#[test]
fn the_refusal_cache_keeps_the_contract_of_one_instance() {
    the_cache_keeps_the_contract(400, |_, clock| instance(FakeStore::with_clock(clock), WITH_CACHE));
}

#[test]
fn quota_leases_keep_the_contract_of_one_instance() {
    leases_keep_the_contract(400, |_, clock| instance(FakeStore::with_clock(clock), WITH_LEASES));
}

#[test]
fn repeated_refusals_cost_the_store_nothing() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = instance(kept.clone(), WITH_CACHE);
    let plan = one(check(Limit::SlidingWindow(SlidingWindow { limit: 2, window: 60 * SECOND })));
    let ask = |after: u64| {
        kept.clock().set(START.plus(after));
        runtime.block_on(stores.apply(&plan, START.plus(after)))
    };
    assert!(ask(0).admitted && ask(0).admitted && !ask(0).admitted);
    let calls = kept.calls();
    for second in 0..60 {
        let outcome = ask(second * SECOND).answers[0].expect("it is answered");
        assert_eq!((outcome.passes, outcome.retry_after), (false, Some((60 - second) * SECOND)));
    }
    assert_eq!(kept.calls(), calls, "answered here");
    assert!(ask(60 * SECOND).admitted, "sent to the store again once the answer can have changed");
    assert_eq!(kept.calls(), calls + 1);
}

#[test]
fn a_lift_clears_the_cached_refusals() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = instance(kept, WITH_CACHE);
    let plan = one(check(window(1)));
    let ask = || runtime.block_on(stores.apply(&plan, START)).admitted;
    assert!(ask() && !ask() && !ask());
    assert_eq!(runtime.block_on(stores.forget(0, plan.checks[0].counter)), Ok(true));
    assert!(ask());
}

#[test]
fn a_hot_counter_is_charged_in_blocks() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = instance(kept.clone(), WITH_LEASES);
    let plan = one(check(window(10_000)));
    let admitted = (0..10_000).filter(|_| runtime.block_on(stores.apply(&plan, START)).admitted).count();
    assert_eq!(admitted, 10_000, "all of the limit, to the last unit");
    assert!(!runtime.block_on(stores.apply(&plan, START)).admitted);
    assert!(kept.calls() < 400, "{} calls for 10 000 decisions", kept.calls());
}

#[test]
fn unused_leased_quota_is_returned_at_shutdown_and_when_idle() {
    for at_shutdown in [true, false] {
        let (kept, runtime) = (FakeStore::new(), runtime());
        let _entered = runtime.enter();
        let stores = instance(kept.clone(), WITH_LEASES);
        let plan = one(check(window(100)));
        runtime.block_on(async {
            for _ in 0..9 {
                assert!(stores.apply(&plan, START).await.admitted);
            }
            assert!(kept.left(&plan.checks[0]) < 91, "more is charged than was used");
            if at_shutdown {
                stores.return_leased_quota(Duration::from_secs(5)).await;
            } else {
                let now = START.plus(2 * SECOND);
                kept.clock().set(now);
                stores.sweep(now);
                // The return is queued; a later request is answered after it.
                let other = one(Check { counter: CounterName([2, 7]), ..plan.checks[0] });
                assert!(stores.apply(&other, now).await.admitted);
            }
        });
        assert_eq!(kept.left(&plan.checks[0]), 91);
    }
}

#[test]
fn a_block_that_arrives_after_its_callers_deadline_is_returned() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    // One call at a time: when a later call is answered, the block of the late call has been returned.
    let queue = QueueSettings { timeout: Duration::from_millis(50), max_calls: 1, ..QueueSettings::default() };
    let settings = WITH_LEASES(SharedSettings { queue, ..SharedSettings::new("main") });
    let stores = Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))]);
    let plan = one(check(window(100)));
    runtime.block_on(async {
        for _ in 0..3 {
            assert!(stores.apply(&plan, START).await.admitted);
        }
        let calls = kept.calls();
        assert_eq!(calls, 2, "one unit, then two");
        kept.be(HANGING);
        assert!(!stores.apply(&plan, START).await.admitted, "the policy is to deny");
        assert_eq!(kept.calls(), calls + 1, "a block of four was requested");
        kept.be(WELL);
        let other = one(Check { counter: CounterName([2, 7]), ..plan.checks[0] });
        while !stores.apply(&other, START).await.admitted {}
    });
    assert_eq!(kept.left(&plan.checks[0]), 97, "three were used");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn several_instances_with_leases_never_admit_more_than_the_limit(
        steps in prop::collection::vec((0..3_usize, 0..400_000_u64, 1..4_u32), 400),
        is_bucket: bool,
    ) {
        let (kept, runtime) = (FakeStore::new(), runtime());
        let _entered = runtime.enter();
        let instances = [(); 3].map(|()| instance(kept.clone(), |settings| WITH_LEASES(WITH_CACHE(settings))));
        let limit = if is_bucket { bucket(20, 30) } else { window(60) };
        let (mut now, mut admitted) = (START, Vec::new());
        for (instance, by, cost) in steps {
            // Mostly short steps, then a pause.
            now = now.plus(if by < 300_000 { by / 100 } else { by });
            let needs = Needs { fits: cost, ..Needs::default() };
            let plan = one(Check { needs, charges: Charges { admitted: cost, ..Charges::default() }, ..check(limit) });
            kept.clock().set(now);
            if runtime.block_on(instances[instance].apply(&plan, now)).admitted {
                admitted.push((now, u64::from(cost)));
            }
        }
        for (number, (first, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (last, cost) in &admitted[number..] {
                sum += cost;
                let most = match is_bucket {
                    true => 30 + (20 * (*last - *first)) / SECOND + 1,
                    false if first.micros() / (60 * SECOND) == last.micros() / (60 * SECOND) => 60,
                    false => u64::MAX,
                };
                prop_assert!(sum <= most, "{} units from {:?} to {:?}", sum, first, last);
            }
        }
    }
}
