//! Holds while a shared store does not answer, beside its caches, and over several stores (semantics 43).

use std::sync::Arc;
use std::time::Duration;

use tollgate::limiter::{
    Alignment, FixedWindow, LeaseId, LeaseStatus, Limit, Lost, OnStoreError, SlidingWindow, TokenBucket,
};
use tollgate::plan::{Applied, Check, CounterName, HoldAction, HoldChange, Holding, Needs, Plan};
use tollgate::store::{
    MemorySettings, MemoryStores, QueueSettings, SharedSettings, SharedStore, SnapshotOwner, StoreHandle, StoreStatus,
    Stores,
};

use super::fake::{BROKEN, FakeStore, LOSING_ONE, WELL, check, one};
use crate::support::reference::plans::{SECOND, START};

const HOUR: Holding = Holding::Hold { millis: 3_600_000, lost: Lost::Charge };

fn held() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime starts")
}

fn daily(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(86_400 * SECOND) })
}

fn holding(limit: Limit, units: u32) -> Check {
    let plain = Check::charge(CounterName([1, 7]), limit, units);
    Check { on_store_error: OnStoreError::Local, holding: HOUR, ..plain }
}

fn handle(kept: &FakeStore, refusal_cache: Option<Duration>, quota_lease: Option<u32>) -> StoreHandle {
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, refusal_cache, quota_lease, ..SharedSettings::new("main") };
    StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))
}

fn settle(check: &Check, units: Option<u32>) -> Plan {
    let &Check { counter, store, limit, .. } = check;
    let change = HoldChange { counter, store, limit, lease: LeaseId(1), action: HoldAction::Settle(units) };
    Plan { holds: [change].into_iter().collect(), ..Plan::default() }
}

async fn settled(stores: &Stores) {
    let settled = async {
        while !matches!(stores.facts()[0], StoreStatus::Shared { owed: 0, .. }) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled).await.expect("all of it is handed over");
}

fn remaining(applied: &Applied) -> u32 {
    applied.answers[0].expect("it is answered").remaining
}

#[test]
fn semantics_43_a_settlement_that_could_not_reach_the_store_is_repeated() {
    for units in [Some(0), Some(3), Some(9), None] {
        let (kept, runtime) = (FakeStore::new(), held());
        let _entered = runtime.enter();
        let stores = Stores::of([handle(&kept, None, None)]);
        let held = holding(daily(20), 5);
        runtime.block_on(async {
            stores.apply(&one(held), START).await;
            kept.be(BROKEN);
            let applied = stores.apply(&settle(&held, units), START).await;
            assert!(applied.degraded);
            kept.be(WELL);
            settled(&stores).await;
            assert_eq!(kept.left(&held), 20 - units.unwrap_or(5), "{units:?}");
            let again = stores.apply(&settle(&held, units), START).await;
            assert_eq!(again.statuses.as_slice(), [LeaseStatus::Unknown]);
        });
    }
}

#[test]
fn semantics_43_what_a_fallback_held_is_corrected_there_and_in_what_is_handed_over() {
    let bucket = Limit::TokenBucket(TokenBucket::new(20, 86_400 * SECOND, 20, u64::MAX).expect("it can be held"));
    for limit in [daily(20), bucket] {
        for (units, used) in [(Some(0), 0), (Some(3), 3), (Some(9), 9), (None, 5)] {
            let (kept, runtime) = (FakeStore::new(), held());
            let _entered = runtime.enter();
            let stores = Stores::of([handle(&kept, None, None)]);
            let held = holding(limit, 5);
            runtime.block_on(async {
                kept.be(BROKEN);
                let applied = stores.apply(&one(held), START).await;
                assert!(applied.admitted && applied.degraded);
                assert_eq!(applied.answers[0].expect("by the fallback").held, 5);
                let settled_here = stores.apply(&settle(&held, units), START).await;
                assert_eq!(settled_here.statuses.as_slice(), [LeaseStatus::Done]);
                kept.be(WELL);
                settled(&stores).await;
                assert_eq!(kept.left(&held), 20 - used, "{units:?} of {limit:?}");
            });
        }
    }
}

#[test]
fn semantics_43_an_answer_that_nobody_heard_releases_what_it_holds() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = Stores::of([handle(&kept, None, None)]);
    let held = Check { on_store_error: OnStoreError::Deny, ..holding(daily(20), 5) };
    runtime.block_on(async {
        kept.be(LOSING_ONE);
        let applied = stores.apply(&one(held), START).await;
        assert!(!applied.admitted);
        assert_eq!(kept.left(&held), 15, "the first call charged it");
        kept.be(WELL);
        tokio::time::sleep(Duration::from_millis(20)).await;
        settled(&stores).await;
        assert_eq!(kept.left(&held), 20);
    });
}

#[test]
fn semantics_43_a_refused_later_store_gives_the_hold_back() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = Stores::of([handle(&kept, None, None), StoreHandle::Memory(MemorySettings::default())]);
    for charges_passed in [0, 5] {
        let mut held = holding(daily(20), 5);
        held.charges.passed = charges_passed;
        let full = Check { needs: Needs { fits: 3, ..Needs::default() }, store: 1, ..check(daily(2)) };
        runtime.block_on(async {
            let plan = Plan { lease: LeaseId(1), ..Plan::of([held, full]) };
            assert!(!stores.apply(&plan, START).await.admitted);
            let unknown = stores.apply(&settle(&held, Some(20)), START).await;
            assert_eq!(unknown.statuses.as_slice(), [LeaseStatus::Unknown]);
            assert_eq!(kept.left(&held), 20 - charges_passed);
        });
    }
}

#[test]
fn semantics_43_a_settlement_over_two_stores_settles_each() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = Stores::of([handle(&kept, None, None), StoreHandle::Memory(MemorySettings::default())]);
    let (shared, memory) = (holding(daily(20), 5), Check { store: 1, ..holding(daily(20), 5) });
    runtime.block_on(async {
        assert!(stores.apply(&Plan { lease: LeaseId(1), ..Plan::of([shared, memory]) }, START).await.admitted);
        let holds = settle(&shared, Some(2)).holds.iter().chain(&settle(&memory, Some(1)).holds).copied().collect();
        let applied = stores.apply(&Plan { holds, ..Plan::default() }, START).await;
        assert_eq!(applied.statuses.as_slice(), [LeaseStatus::Done; 2]);
        assert_eq!(kept.left(&shared), 18);
        let left = stores.apply(&one(Check { store: 1, ..Check::look(memory.counter, memory.limit) }), START).await;
        assert_eq!(remaining(&left), 19);
    });
}

#[test]
fn semantics_43_a_refusal_that_a_settlement_can_end_is_not_kept_and_quota_leases_hold_nothing() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = Stores::of([handle(&kept, Some(Duration::from_secs(60)), Some(10))]);
    for other in [Holding::Kept, Holding::Released, HOUR] {
        let held = holding(daily(5), 5);
        let plain = Check { holding: other, ..Check::charge(held.counter, held.limit, 1) };
        runtime.block_on(async {
            assert!(stores.apply(&one(held), START).await.admitted);
            let other = Plan { lease: LeaseId(2), ..one(plain) };
            assert!(!stores.apply(&other, START).await.admitted);
            // By another instance, of which this one hears nothing.
            let settled = MemoryStores::apply(kept.memory(), &settle(&held, Some(0)), START);
            assert_eq!(settled.statuses.as_slice(), [LeaseStatus::Done]);
            assert!(stores.apply(&other, START).await.admitted, "{plain:?}");
            stores.forget(0, held.counter).await.expect("it answers");
        });
    }
}

#[test]
fn semantics_43_a_snapshot_keeps_holds_and_has_the_version_before_without_any() {
    let folder = tempfile::tempdir().expect("a folder");
    let owner = SnapshotOwner { fingerprint: [7; 16], store: "main".to_owned() };
    let path = folder.path().join("main");
    let version = || std::fs::read(&path).expect("it is written")["tollgate snapshot\n".len()];
    let log = Limit::SlidingWindow(SlidingWindow { limit: 20, window: 86_400 * SECOND });
    let memory = || MemoryStores::new(&[MemorySettings::default()]);
    for limit in [daily(20), log] {
        let store = memory();
        store.apply(&one(Check { holding: Holding::None, ..holding(limit, 5) }), START);
        store.save(0, &path, &owner).expect("it is saved");
        assert_eq!(version(), 1, "earlier releases read it");
        store.apply(&one(holding(limit, 5)), START);
        store.save(0, &path, &owner).expect("it is saved");
        assert_eq!(version(), 2);
        let restored = memory();
        assert_eq!(restored.load(0, &path, &owner, START).expect("it is loaded"), Some(1));
        assert_eq!(restored.usage()[0].holds, 1);
        let held = holding(limit, 5);
        let later = START.plus(1_800 * SECOND);
        assert_eq!(restored.apply(&settle(&held, Some(1)), later).statuses.as_slice(), [LeaseStatus::Done]);
        let left = restored.apply(&one(Check::look(held.counter, limit)), later);
        assert_eq!(remaining(&left), 20 - 5 - 1, "{limit:?}");
    }
}

#[test]
fn semantics_43_a_full_memory_store_ranks_a_counter_by_what_it_used_held_or_not() {
    let store = MemoryStores::new(&[MemorySettings { max_keys: Some(64), ..MemorySettings::default() }]);
    let name = |number: u64| CounterName([number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number]);
    // One account under attack, used up; then a flood of made-up accounts that hold one unit each.
    let victim = Check::charge(name(1), daily(20), 20);
    store.apply(&one(victim), START);
    for number in 2..2_000 {
        let made_up = Check { counter: name(number), ..holding(daily(20), 1) };
        assert!(store.apply(&Plan { lease: LeaseId(number.into()), ..one(made_up) }, START).admitted);
    }
    let look = Check::look(victim.counter, victim.limit);
    assert_eq!(remaining(&store.apply(&one(look), START)), 0, "it is still used up");
    assert!(store.usage()[0].holds <= 64, "what went took its holds along");
    let gone = Check { counter: name(2), ..holding(daily(20), 1) };
    let change = HoldChange { lease: LeaseId(2), ..*settle(&gone, Some(9)).holds.iter().next().expect("one") };
    let plan = Plan { holds: [change].into_iter().collect(), ..Plan::default() };
    assert_eq!(store.apply(&plan, START).statuses.as_slice(), [LeaseStatus::Unknown]);
}
