//! Leases over several slots and holds: renewals that are all or nothing in one place (semantics 50), and looks that find
//! what an earlier call with the same lease holds (semantics 53).

use std::sync::Arc;
use std::time::Duration;

use tollgate::ask::{Acquire, Ask, Subject};
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::engine::Version;
use tollgate::limiter::{
    Algorithm, Alignment, Concurrency, FixedWindow, LeaseId, LeaseStatus, Limit, Lost, OnStoreError, TokenBucket,
};
use tollgate::plan::{
    Applied, Change, Check, CounterName, HoldAction, HoldChange, Holding, LeaseAction, LeaseChange, Needs, Plan,
};
use tollgate::rules::{Apply, HoldFor, RuleBook, Rules};
use tollgate::service::Service;
use tollgate::settings::Settings;
use tollgate::store::{
    MemorySettings, MemoryStores, QueueSettings, SharedSettings, SharedStore, StoreHandle, StoreStatus, Stores,
};

use super::fake::{BROKEN, FakeStore, HANGING, WELL, one};
use crate::support::fixtures::{DOMAIN, applies, apply, quota};
use crate::support::reference::plans::{SECOND, START};

const MINUTE: u64 = 60 * SECOND;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime starts")
}

fn shared(kept: &FakeStore) -> StoreHandle {
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, ..SharedSettings::new("main") };
    StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))
}

fn daily(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(86_400 * SECOND) })
}

/// A charge that is held for so many seconds, on the counter with this number.
fn held(number: u64, units: u32, seconds: u32) -> Check {
    let holding = Holding::Hold { millis: 1_000 * seconds, lost: Lost::Charge };
    Check { on_store_error: OnStoreError::Local, holding, ..Check::charge(CounterName([number, 7]), daily(20), units) }
}

/// A slot that is taken for so many seconds.
fn slot(number: u64, seconds: u64) -> Check {
    let limit = Limit::Concurrency(Concurrency { max: 2, lease: seconds * SECOND });
    Check { on_store_error: OnStoreError::Local, ..Check::charge(CounterName([number, 7]), limit, 1) }
}

fn taking(checks: &[Check]) -> Plan {
    Plan { lease: LeaseId(1), ..Plan::of(checks.iter().copied()) }
}

/// The plan that renews everything that these checks take, or looks at it.
fn changes(checks: &[Check], slots: LeaseAction, holds: HoldAction) -> Plan {
    let mut plan = Plan::default();
    for &Check { counter, store, limit, .. } in checks {
        match limit {
            Limit::Concurrency(_) => {
                plan.changes.push(LeaseChange { counter, store, lease: LeaseId(1), action: slots });
            }
            _ => plan.holds.push(HoldChange { counter, store, limit, lease: LeaseId(1), action: holds }),
        }
    }
    plan
}

fn renewing(checks: &[Check]) -> Plan {
    changes(checks, LeaseAction::RenewOwn, HoldAction::Renew(None))
}

fn looking_at(checks: &[Check]) -> Plan {
    changes(checks, LeaseAction::Look, HoldAction::Look)
}

/// The call that takes these checks, if nothing of them is held.
fn named(checks: &[Check]) -> Plan {
    let Plan { changes, holds, .. } = looking_at(checks);
    Plan { changes, holds, ..taking(checks) }
}

fn later(seconds: u64) -> Timestamp {
    START.plus(seconds * SECOND)
}

fn statuses(applied: &Applied) -> &[LeaseStatus] {
    &applied.statuses
}

fn left(applied: &Applied) -> Vec<u32> {
    applied.answers.iter().map(|answer| answer.expect("it is answered").remaining).collect()
}

/// One second before and at the end of the first of a slot and two holds, in every order of their lengths.
#[test]
fn semantics_50_in_one_store_a_lease_of_which_something_has_ended_renews_nothing() {
    for lengths in [[30, 60, 90], [60, 30, 90], [90, 60, 30]] {
        let checks = [slot(1, lengths[0]), held(2, 4, lengths[1] as u32), held(3, 5, lengths[2] as u32)];
        let store = MemoryStores::new(&[MemorySettings::default()]);
        assert!(store.apply(&taking(&checks), START).admitted);
        let renewed = store.apply(&renewing(&checks), later(29));
        let ends = lengths.map(|seconds| LeaseStatus::Held(seconds * SECOND));
        assert_eq!(statuses(&renewed), ends, "each its own length");
        let refused = store.apply(&renewing(&checks), later(29 + 30));
        assert_eq!(statuses(&refused), [LeaseStatus::Expired; 3], "{lengths:?}");
        // What has not ended ends when it would have.
        let looked = store.apply(&looking_at(&checks), later(29 + 30));
        let rest = lengths.map(|seconds| match seconds {
            30 => LeaseStatus::Expired,
            seconds => LeaseStatus::Held((seconds - 30) * SECOND),
        });
        assert_eq!(statuses(&looked), rest, "{lengths:?}");
    }
}

#[test]
fn semantics_50_a_slot_that_ended_and_went_to_another_renews_no_hold() {
    let checks = [slot(1, 30), held(2, 4, 90)];
    let store = MemoryStores::new(&[MemorySettings::default()]);
    store.apply(&taking(&checks), START);
    // The charge of another drops the slot that has ended.
    assert!(store.apply(&Plan { lease: LeaseId(2), ..one(checks[0]) }, later(40)).admitted);
    let refused = store.apply(&renewing(&checks), later(41));
    assert_eq!(statuses(&refused), [LeaseStatus::Unknown, LeaseStatus::Expired]);
    assert_eq!(LeaseStatus::of_several(refused.statuses), LeaseStatus::Expired);
    let looked = store.apply(&looking_at(&checks), later(41));
    assert_eq!(statuses(&looked), [LeaseStatus::Unknown, LeaseStatus::Held(49 * SECOND)]);
}

#[test]
fn semantics_50_a_hold_whose_counter_is_gone_does_not_end_its_slot() {
    let checks = [slot(1, 30), held(2, 4, 90)];
    let store = MemoryStores::new(&[MemorySettings::default()]);
    store.apply(&taking(&checks), START);
    assert!(store.forget(0, &checks[1].counter));
    let renewed = store.apply(&renewing(&checks), later(10));
    assert_eq!(statuses(&renewed), [LeaseStatus::Held(30 * SECOND), LeaseStatus::Unknown]);
}

#[test]
fn semantics_50_each_of_several_stores_renews_all_or_nothing() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = Stores::of([shared(&kept), StoreHandle::Memory(MemorySettings::default())]);
    let in_memory = |check: Check| Check { store: 1, ..check };
    let checks = [slot(1, 30), held(2, 4, 60), in_memory(slot(3, 90)), in_memory(held(4, 4, 90))];
    runtime.block_on(async {
        assert!(stores.apply(&taking(&checks), START).await.admitted);
        kept.clock().set(later(40));
        let renewed = stores.apply(&renewing(&checks), later(40)).await;
        // The slots come first, then the holds.
        let minute_and_half = LeaseStatus::Held(90 * SECOND);
        assert_eq!(statuses(&renewed), [LeaseStatus::Expired, minute_and_half, LeaseStatus::Expired, minute_and_half]);
        let looked = stores.apply(&looking_at(&checks), later(40)).await;
        let twenty = LeaseStatus::Held(20 * SECOND);
        assert_eq!(statuses(&looked), [LeaseStatus::Expired, minute_and_half, twenty, minute_and_half]);
    });
}

#[test]
fn semantics_53_a_look_at_a_hold_says_how_long_it_is_held_and_changes_nothing() {
    let check = held(1, 4, 60);
    let store = MemoryStores::new(&[MemorySettings::default()]);
    let look = |at| store.apply(&looking_at(&[check]), later(at)).statuses[0];
    assert_eq!(look(0), LeaseStatus::Unknown);
    store.apply(&taking(&[check]), START);
    for (at, status) in [
        (0, LeaseStatus::Held(MINUTE)),
        (59, LeaseStatus::Held(SECOND)),
        (60, LeaseStatus::Expired),
        (119, LeaseStatus::Expired),
        (120, LeaseStatus::Unknown),
        // A look has ended nothing: the clock may step back.
        (30, LeaseStatus::Held(30 * SECOND)),
    ] {
        assert_eq!(look(at), status, "after {at} s");
    }
}

#[test]
fn semantics_53_what_is_held_is_charged_once_and_what_has_ended_again() {
    let bucket = Limit::TokenBucket(TokenBucket::new(100, 86_400 * SECOND, 100, 0).expect("it can be held"));
    let rate = Check::charge(CounterName([9, 7]), bucket, 10);
    let checks = [held(1, 4, 60), held(2, 5, 90), rate];
    let store = MemoryStores::new(&[MemorySettings::default()]);
    let call = named(&checks[..2]);
    let call = Plan { checks: checks.into_iter().collect(), groups: [3].into_iter().collect(), ..call };
    let first = store.apply(&call, START);
    assert_eq!((first.admitted, left(&first)), (true, vec![16, 15, 90]));
    assert_eq!(statuses(&first), [LeaseStatus::Unknown; 2]);
    let again = store.apply(&call, later(20));
    assert_eq!(statuses(&again), [LeaseStatus::Held(40 * SECOND), LeaseStatus::Held(70 * SECOND)]);
    assert_eq!(left(&again), [16, 15, 90], "nothing is charged, the rate beside them neither");
    let charged = again.answers.iter().map(|answer| answer.expect("it is answered").charged).sum::<u64>();
    assert_eq!(charged, 0);
    let in_part = store.apply(&call, later(60));
    assert_eq!(statuses(&in_part), [LeaseStatus::Expired, LeaseStatus::Held(30 * SECOND)]);
    assert_eq!(left(&in_part), [16, 15, 90], "nor if only a part is held");
    let anew = store.apply(&call, later(90));
    assert_eq!((anew.admitted, left(&anew)), (true, vec![12, 10, 80]));
    assert_eq!(
        statuses(&store.apply(&looking_at(&checks[..2]), later(90))),
        [LeaseStatus::Held(MINUTE), LeaseStatus::Held(90 * SECOND)]
    );
}

/// What is held in any of three places stops the charges in all of them.
#[test]
fn semantics_53_over_several_stores_a_part_that_is_held_leaves_nothing_charged() {
    let runtime = runtime();
    let _entered = runtime.enter();
    for already in 0..3 {
        let (first, second) = (FakeStore::new(), FakeStore::new());
        let stores = Stores::of([shared(&first), shared(&second), StoreHandle::Memory(MemorySettings::default())]);
        let checks = [0, 1, 2].map(|store| Check { store, ..held(1 + u64::from(store), 4, 60) });
        runtime.block_on(async {
            assert!(stores.apply(&taking(&checks[already..=already]), START).await.admitted);
            let found = stores.apply(&named(&checks), START).await;
            for (number, status) in found.statuses.iter().enumerate() {
                let expected = if number == already { LeaseStatus::Held(MINUTE) } else { LeaseStatus::Unknown };
                assert_eq!(*status, expected, "store {number}, of which {already} holds it");
            }
            let looks = checks.map(|check| Check::look(check.counter, check.limit));
            let looks = [0, 1, 2].map(|store| Check { store, ..looks[usize::from(store)] });
            let counted = left(&stores.apply(&Plan::of(looks), START).await);
            let expected: Vec<u32> = (0..3).map(|number| if number == already { 16 } else { 20 }).collect();
            assert_eq!(counted, expected, "{already}");
            let looked = stores.apply(&looking_at(&checks), START).await;
            assert_eq!(looked.statuses.iter().filter(|status| **status == LeaseStatus::Unknown).count(), 2);
            // Once that is settled, all of it is taken, and a repeated call finds all of it.
            let settle = changes(&checks[already..=already], LeaseAction::Release, HoldAction::Settle(Some(0)));
            assert_eq!(statuses(&stores.apply(&settle, START).await), [LeaseStatus::Done]);
            assert!(stores.apply(&named(&checks), START).await.admitted);
            let again = stores.apply(&named(&checks), START).await;
            assert_eq!(statuses(&again), [LeaseStatus::Held(MINUTE); 3]);
            assert_eq!(left(&again), [16; 3]);
        });
    }
}

#[test]
fn semantics_53_a_refused_later_store_keeps_nothing_of_a_call_with_a_key() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = Stores::of([shared(&kept), StoreHandle::Memory(MemorySettings::default())]);
    let full = Check { store: 1, needs: Needs { fits: 30, ..Needs::default() }, ..held(2, 4, 60) };
    let checks = [held(1, 4, 60), full];
    runtime.block_on(async {
        assert!(!stores.apply(&named(&checks), START).await.admitted);
        let looked = stores.apply(&looking_at(&checks), START).await;
        assert_eq!(statuses(&looked), [LeaseStatus::Unknown; 2]);
        assert_eq!(kept.left(&checks[0]), 20);
    });
}

#[test]
fn semantics_53_a_fallback_finds_what_it_holds_and_owes_no_look() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let stores = Stores::of([shared(&kept)]);
    let check = held(1, 4, 60);
    runtime.block_on(async {
        kept.be(BROKEN);
        let first = stores.apply(&named(&[check]), START).await;
        assert!(first.admitted && first.degraded);
        let again = stores.apply(&named(&[check]), START).await;
        assert_eq!((statuses(&again), left(&again)), ([LeaseStatus::Held(MINUTE)].as_slice(), vec![16]));
        let StoreStatus::Shared { owed, .. } = stores.facts()[0] else { panic!("it is shared") };
        assert_eq!(owed, 1, "the counter that the first call charged");
        kept.be(WELL);
        while !matches!(stores.facts()[0], StoreStatus::Shared { owed: 0, .. }) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(kept.left(&check), 16, "charged once");
    });
}

/// A counter that a refund has emptied stays until its lost hold is forgotten.
#[test]
fn semantics_41_a_lost_hold_is_remembered_whatever_a_refund_and_a_sweep_leave_of_its_counter() {
    for lost in [Lost::Charge, Lost::Release] {
        for (swept, fate) in [(30, LeaseStatus::Done), (61, LeaseStatus::Expired), (119, LeaseStatus::Expired)] {
            let store = MemoryStores::new(&[MemorySettings::default()]);
            let check = Check { holding: Holding::Hold { millis: 60_000, lost }, ..held(1, 4, 60) };
            store.apply(&taking(&[check]), START);
            let refund = Check { refund: 4, ..Check::look(check.counter, check.limit) };
            assert_eq!(left(&store.apply(&one(refund), later(1))), [20]);
            store.sweep(later(swept));
            let settle = changes(&[check], LeaseAction::Release, HoldAction::Settle(Some(9)));
            let settled = store.apply(&settle, later(swept));
            assert_eq!(statuses(&settled), [fate], "{lost:?} after {swept} s");
        }
        let store = MemoryStores::new(&[MemorySettings::default()]);
        let check = Check { holding: Holding::Hold { millis: 60_000, lost }, ..held(1, 4, 60) };
        store.apply(&taking(&[check]), START);
        store.apply(&one(Check { refund: 4, ..Check::look(check.counter, check.limit) }), later(1));
        store.sweep(later(121));
        assert_eq!(store.usage()[0].keys, 0, "{lost:?}: then both are forgotten");
    }
}

/// A caller with a key that goes away while its store does not answer: a repeated call may have found what it took.
#[test]
fn semantics_53_what_a_caller_with_a_key_took_stays_when_it_goes_away() {
    let (kept, runtime) = (FakeStore::new(), runtime());
    let _entered = runtime.enter();
    let limiters = vec![quota("tokens", 20, Duration::from_secs(600), Algorithm::SlidingWindow)];
    let hold = HoldFor { length: Duration::from_secs(60), lost: Lost::Charge };
    let rules = vec![applies("all", [Apply { hold: Some(hold), ..apply("tokens", &["x"]) }])];
    let rules = Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles");
    let queue = QueueSettings { timeout: Duration::from_secs(5), ..QueueSettings::default() };
    let store = SharedStore::new(SharedSettings { queue, ..SharedSettings::new("main") }, kept.clone());
    let stores = Stores::of([StoreHandle::Shared(Arc::new(store))]);
    let version = Version { rules: Arc::new(rules), stores };
    let service = Arc::new(Service::new(version, Settings::default(), Arc::new(ManualClock::at(START))));
    let call = |key: Option<&str>| {
        let subject = Subject::Limiter { limiter: "tokens".to_owned(), key: vec![("x".to_owned(), "1".to_owned())] };
        let ask = Ask { subject, cost: 4, hold: None, release_lost: false };
        let (domain, idempotency_key) = (Some(DOMAIN.to_owned()), key.map(str::to_owned));
        Acquire { domain, asks: vec![ask], idempotency_key, ..Acquire::default() }
    };
    let left = async || {
        let peeked = service.peek(&call(None)).await.expect("it makes sense");
        peeked.decision.tightest().expect("a limiter applies").remaining
    };
    runtime.block_on(async {
        for (key, expected) in [(Some("k"), 16), (None, 16)] {
            kept.be(HANGING);
            let (caller, asked) = (service.clone(), call(key));
            let waiting = tokio::spawn(async move { caller.acquire(&asked, None).await });
            kept.called().await;
            waiting.abort();
            assert!(waiting.await.is_err_and(|error| error.is_cancelled()));
            kept.be(WELL);
            // What the caller without a key took is given back.
            let mut found = left().await;
            for _ in 0..1_000 {
                if found == expected {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                found = left().await;
            }
            assert_eq!(found, expected, "{key:?}, after {} calls", kept.calls());
            let again = service.acquire(&call(Some("k")), None).await.expect("it makes sense");
            assert!(again.granted() && again.lease.is_some());
            assert_eq!(left().await, expected, "{key:?}");
        }
    });
}

/// The changes of a plan are named in the order of their statuses.
#[test]
fn slots_come_before_holds() {
    let plan = looking_at(&[held(1, 1, 1), slot(2, 1)]);
    let kinds: Vec<bool> = plan.each_change().map(|change| matches!(change, Change::Slot(_))).collect();
    assert_eq!(kinds, [true, false]);
}
