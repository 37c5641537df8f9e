//! What a process owes a store outside it: kept until the store answers, and dropped when it is pointless.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, Limit, OnStoreError, SlidingWindow, TokenBucket,
};
use tollgate::plan::{Charges, Check, CounterName, Fault, LeaseAction, LeaseChange, Needs, Plan};
use tollgate::store::{
    DropReason, NextStore, QueueSettings, SharedSettings, SharedStore, StoreHandle, StoreObserver, StoreStatus, Stores,
    Wrapper,
};

use super::fake::{BROKEN, FakeStore, HANGING, LINKING, LOSING, LOSING_ONE, REFUSING, WELL, check, one};
use crate::support::reference::plans::{SECOND, START};

/// A runtime with a paused clock, which advances to the next timer when all tasks are idle.
fn held() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime starts")
}

fn daily(limit: u32) -> Check {
    let limit = Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(86_400 * SECOND) });
    Check { on_store_error: OnStoreError::Local, ..check(limit) }
}

fn instance(kept: &FakeStore) -> Stores {
    Stores::of([handle(kept)])
}

fn handle(kept: &FakeStore) -> StoreHandle {
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, ..SharedSettings::new("main") };
    StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))
}

/// Counts what is dropped by reason, and handed over.
#[derive(Clone, Default)]
struct Seen(Arc<[AtomicU64; 6]>);

const HANDED_OVER: usize = 5;

impl Seen {
    fn of(stores: &Stores) -> Self {
        let seen = Self::default();
        stores.observe(|_| Box::new(seen.clone()));
        seen
    }

    fn handed_over(&self) -> u64 {
        self.0[HANDED_OVER].load(Ordering::SeqCst)
    }

    fn dropped(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|reason| self.0[reason as usize].load(Ordering::SeqCst))
    }
}

/// How many plans, counters and slots wait.
fn owed(stores: &Stores) -> usize {
    match stores.facts()[0] {
        StoreStatus::Shared { owed, .. } => owed,
        StoreStatus::Memory(_) => panic!("it is shared"),
    }
}

/// Waits until nothing is owed.
async fn settled(stores: &Stores) {
    let settled = async {
        while owed(stores) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), settled).await.expect("nothing is owed any more");
}

impl StoreObserver for Seen {
    fn called(&self, _took: Duration, _plans: usize) {}
    fn failed(&self, _fault: Fault) {}
    fn answered_by_policy(&self, _policy: OnStoreError, _checks: u64) {}
    fn undone(&self, _failed: bool) {}
    fn handed_over(&self) {
        self.0[HANDED_OVER].fetch_add(1, Ordering::SeqCst);
    }
    fn retried(&self) {}
    fn dropped(&self, reason: DropReason, count: u64) {
        self.0[reason as usize].fetch_add(count, Ordering::SeqCst);
    }
    fn clock_difference(&self, _micros: i64) {}
    fn answered_by_wrapper(&self, _by: Wrapper) {}
}

#[test]
fn semantics_31_what_local_admitted_is_charged_even_beyond_the_limit() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let plan = one(daily(25));
    runtime.block_on(async {
        for _ in 0..20 {
            assert!(stores.apply(&plan, START).await.admitted);
        }
        for _ in 0..3 {
            kept.be(BROKEN);
            let mut admitted = 0;
            for _ in 0..40 {
                admitted += u32::from(stores.apply(&plan, START).await.admitted);
            }
            // The first outage uses the local limit up, and later ones find it used up.
            assert!(admitted == 25 && seen.handed_over() == 0 || admitted == 0, "{admitted}");
            kept.be(WELL);
            settled(&stores).await;
            assert_eq!(kept.left(&plan.checks[0]), 0);
        }
        assert_eq!(seen.handed_over(), 1, "all units of a counter together");
        assert_eq!(seen.dropped(), [0; 5]);
        // 45 are counted: 20 refunds leave the counter full.
        let refund = Check { needs: Needs::default(), charges: Charges::default(), refund: 20, ..daily(25) };
        assert!(stores.apply(&one(refund), START).await.admitted);
        settled(&stores).await;
        assert_eq!(kept.left(&plan.checks[0]), 0);
        stores.apply(&one(Check { refund: 2, ..refund }), START).await;
        settled(&stores).await;
        assert_eq!(kept.left(&plan.checks[0]), 2);
    });
}

#[test]
fn a_bucket_drains_while_what_it_admitted_waits() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let bucket = Limit::TokenBucket(TokenBucket::new(1, SECOND, 100, 0).expect("it can be held"));
    let plan = one(Check { on_store_error: OnStoreError::Local, ..check(bucket) });
    runtime.block_on(async {
        kept.be(BROKEN);
        for _ in 0..50 {
            assert!(stores.apply(&plan, START).await.admitted);
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        kept.be(WELL);
        settled(&stores).await;
        let left = kept.left(&plan.checks[0]);
        assert!((78..=81).contains(&left), "50 were used, 30 have drained: {left} are left");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(seen.dropped(), [0; 5]);
    });
}

#[test]
fn a_renewal_of_a_lease_that_has_ended_is_dropped_as_pointless() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let slot = check(Limit::Concurrency(Concurrency { max: 1, lease: 60 * SECOND }));
    runtime.block_on(async {
        assert!(stores.apply(&one(slot), START).await.admitted);
        kept.be(BROKEN);
        stores.apply(&change(&slot, LeaseId(1), LeaseAction::Renew(5 * SECOND)), START).await;
        assert_eq!(owed(&stores), 1);
        settled(&stores).await;
        assert_eq!(seen.dropped(), [1, 0, 0, 0, 0], "expired");
        // A release is kept for as long as it takes.
        stores.apply(&change(&slot, LeaseId(1), LeaseAction::Release), START).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!((owed(&stores), kept.left(&slot)), (1, 0));
        kept.be(WELL);
        settled(&stores).await;
        assert_eq!(kept.left(&slot), 1);
    });
}

#[test]
fn a_process_that_ends_takes_its_time_for_the_rest_and_no_more() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let plan = one(daily(25));
    runtime.block_on(async {
        kept.be(BROKEN);
        assert!(stores.apply(&plan, START).await.admitted);
        let begun = Instant::now();
        let back = async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            kept.be(WELL);
        };
        tokio::join!(stores.hand_over(Duration::from_secs(2)), back);
        assert!(begun.elapsed() <= Duration::from_secs(2));
        assert_eq!((kept.left(&plan.checks[0]), seen.dropped()), (24, [0; 5]));

        kept.be(BROKEN);
        assert!(stores.apply(&plan, START).await.admitted);
        let begun = Instant::now();
        stores.hand_over(Duration::from_secs(2)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        assert_eq!(seen.dropped(), [0, 0, 0, 0, 1], "closed");
    });
}

#[test]
fn a_lift_also_resets_what_the_fallback_counts_and_what_is_owed() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let plan = one(daily(1));
    runtime.block_on(async {
        kept.be(BROKEN);
        assert!(stores.apply(&plan, START).await.admitted);
        assert!(!stores.apply(&plan, START).await.admitted);
        let _ = stores.forget(0, plan.checks[0].counter).await;
        assert!(stores.apply(&plan, START).await.admitted);
    });
}

#[test]
fn a_decision_waits_for_the_connection_that_is_being_opened_and_no_longer_than_its_deadline() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let plan = one(Check { on_store_error: OnStoreError::Deny, ..daily(100) });
    runtime.block_on(async {
        kept.be(LINKING);
        let back = async {
            tokio::time::sleep(Duration::from_millis(9)).await;
            kept.be(WELL);
        };
        let (applied, ()) = tokio::join!(stores.apply(&plan, START), back);
        assert!(applied.admitted && !applied.degraded);
        kept.be(LINKING);
        let begun = Instant::now();
        assert!(stores.apply(&plan, START).await.degraded);
        assert!(begun.elapsed() <= Duration::from_millis(11));
        kept.be(WELL);
        assert_eq!(kept.left(&plan.checks[0]), 99, "who no longer waits is not charged");
    });
}

#[test]
fn a_decision_whose_connection_broke_is_asked_again_and_what_counts_once_counts_once() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let log = |policy| Check {
        counter: CounterName([3, 7]),
        on_store_error: policy,
        ..check(Limit::SlidingWindow(SlidingWindow { limit: 10, window: 60 * SECOND }))
    };
    let always = Charges { admitted: 3, passed: 3, refused: 3 };
    let needs = Needs { fits: 0, one_left: true };
    let record = |policy| one(Check { needs, charges: always, on_store_error: policy, ..daily(1_000) });
    let refund = |policy| one(Check { needs: Needs::default(), charges: Charges::default(), refund: 2, ..log(policy) });
    runtime.block_on(async {
        for _ in 0..9 {
            assert!(stores.apply(&one(log(OnStoreError::Deny)), START).await.admitted);
        }
        // The first answer is lost in each case, or all of them for a while.
        for lost in 0..20 {
            kept.be(LOSING);
            let calls = kept.calls();
            let well = async {
                while kept.calls() <= calls + lost % 7 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                kept.be(WELL);
            };
            let policy = [OnStoreError::Local, OnStoreError::Allow][lost % 2];
            let plan = record(policy);
            tokio::join!(stores.apply(&plan, START), well);
            settled(&stores).await;
            assert_eq!(kept.left(&daily(1_000)), 1_000 - 3 * (u32::try_from(lost).expect("few") + 1));
        }
        for _ in 0..4 {
            kept.be(LOSING);
            let well = async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                kept.be(WELL);
            };
            let plan = refund(OnStoreError::Local);
            tokio::join!(stores.apply(&plan, START), well);
            settled(&stores).await;
        }
        assert_eq!(kept.left(&log(OnStoreError::Deny)), 9, "8 of 9 are given back");
        assert_eq!(seen.dropped(), [0; 5]);
        // It cannot be asked again in time: with deny it is refused, and nothing is owed.
        kept.be(LOSING);
        let before = kept.left(&log(OnStoreError::Deny));
        let applied = stores.apply(&refund(OnStoreError::Deny), START).await;
        assert!(applied.degraded && !applied.admitted);
        kept.be(WELL);
        settled(&stores).await;
        assert!(kept.left(&log(OnStoreError::Deny)) >= before);
    });
}

#[test]
fn a_slot_that_was_taken_over_a_connection_that_broke_is_free_if_its_caller_was_refused() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    runtime.block_on(async {
        for policy in [OnStoreError::Deny, OnStoreError::Allow, OnStoreError::Local] {
            let slots = Limit::Concurrency(Concurrency { max: 1, lease: 60 * SECOND });
            let slot = Check { counter: CounterName([policy as u64, 7]), on_store_error: policy, ..check(slots) };
            // The first call takes the slot and loses the answer, the next waits for a connection until the deadline.
            kept.be(LOSING_ONE);
            let plan = one(slot);
            let applied = stores.apply(&plan, START).await;
            assert!(applied.degraded);
            assert_eq!(kept.left(&slot), 0, "the first call took it");
            kept.be(WELL);
            if applied.admitted && policy == OnStoreError::Local {
                settled(&stores).await;
                assert_eq!(kept.left(&slot), 0, "the fallback gave it");
                stores.apply(&change(&slot, plan.lease, LeaseAction::Release), START).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            settled(&stores).await;
            assert_eq!(kept.left(&slot), 1, "{policy:?}");
        }
    });
}

/// A change of one slot.
fn change(slot: &Check, lease: LeaseId, action: LeaseAction) -> Plan {
    let change = LeaseChange { counter: slot.counter, store: 0, lease, action };
    Plan { changes: [change].into_iter().collect(), ..Plan::default() }
}

#[test]
fn semantics_31_a_reload_that_replaces_a_store_goes_on_with_what_its_fallback_counted_and_owes() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let mut stores = instance(&kept);
    let plan = one(daily(25));
    let slot = Check {
        counter: CounterName([2, 7]),
        on_store_error: OnStoreError::Local,
        ..check(Limit::Concurrency(Concurrency { max: 1, lease: 3_600 * SECOND }))
    };
    runtime.block_on(async {
        kept.be(BROKEN);
        let mut admitted = 0;
        for _ in 0..3 {
            for _ in 0..40 {
                admitted += u32::from(stores.apply(&plan, START).await.admitted);
            }
            let next = stores.next([NextStore::New(handle(&kept))]);
            drop(std::mem::replace(&mut stores, next));
            // Longer than a queue that is closed keeps what it owes.
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert_eq!((admitted, owed(&stores)), (25, 1));
        let taken = Plan { lease: LeaseId(9), ..one(slot) };
        assert!(stores.apply(&taken, START).await.admitted);
        let next = stores.next([NextStore::New(handle(&kept))]);
        drop(std::mem::replace(&mut stores, next));
        kept.be(WELL);
        settled(&stores).await;
        assert_eq!((kept.left(&plan.checks[0]), kept.left(&slot)), (0, 0), "all of it is handed over");
        stores.apply(&change(&slot, LeaseId(9), LeaseAction::Release), START).await;
        settled(&stores).await;
        assert_eq!(kept.left(&slot), 1);
    });
}

#[test]
fn a_slot_that_may_be_taken_is_released_if_the_call_could_not_be_made_again() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let slot = check(Limit::Concurrency(Concurrency { max: 1, lease: 3_600 * SECOND }));
    runtime.block_on(async {
        kept.be(LOSING_ONE);
        let refused = async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            kept.be(BROKEN);
        };
        let plan = one(slot);
        let (applied, ()) = tokio::join!(stores.apply(&plan, START), refused);
        assert!(applied.degraded && !applied.admitted, "the policy is to deny");
        assert_eq!(kept.left(&slot), 0, "the first call took it");
        kept.be(WELL);
        settled(&stores).await;
        assert_eq!(kept.left(&slot), 1);
    });
}

#[test]
fn a_refund_that_may_have_been_made_is_not_made_again_when_the_store_has_forgotten_its_id() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let refund = Check { needs: Needs::default(), charges: Charges::default(), refund: 2, ..daily(100) };
    runtime.block_on(async {
        for _ in 0..10 {
            assert!(stores.apply(&one(daily(100)), START).await.admitted);
        }
        kept.be(LOSING);
        let calls = kept.calls();
        let away = async {
            while kept.calls() == calls {
                tokio::task::yield_now().await;
            }
            kept.be(BROKEN);
        };
        let plan = one(refund);
        tokio::join!(stores.apply(&plan, START), away);
        assert_eq!((kept.left(&daily(100)), owed(&stores)), (92, 1), "it was made, and the answer was lost");
        tokio::time::sleep(Duration::from_secs(70)).await;
        kept.forget_ids();
        kept.be(WELL);
        settled(&stores).await;
        assert_eq!((kept.left(&daily(100)), seen.dropped()), (92, [0, 0, 1, 0, 0]));
    });
}

#[test]
fn a_slot_of_the_fallback_that_is_renewed_is_handed_over_after_its_first_end() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let slots = Limit::Concurrency(Concurrency { max: 1, lease: 60 * SECOND });
    let slot = Check { on_store_error: OnStoreError::Local, ..check(slots) };
    runtime.block_on(async {
        kept.be(BROKEN);
        let plan = one(slot);
        assert!(stores.apply(&plan, START).await.admitted);
        tokio::time::sleep(Duration::from_secs(50)).await;
        stores.apply(&change(&slot, plan.lease, LeaseAction::Renew(60 * SECOND)), START).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        kept.be(WELL);
        settled(&stores).await;
        assert_eq!(kept.left(&slot), 0, "a client holds it");
    });
}

#[test]
fn an_error_of_the_store_itself_is_tried_again_for_a_minute() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
    let slot = check(Limit::Concurrency(Concurrency { max: 1, lease: 86_400 * SECOND }));
    runtime.block_on(async {
        for (away, left) in [(30_u32, 1), (120, 0)] {
            let plan = Plan { lease: LeaseId(away.into()), ..one(slot) };
            assert!(stores.apply(&plan, START).await.admitted);
            kept.be(REFUSING);
            stores.apply(&change(&slot, plan.lease, LeaseAction::Release), START).await;
            tokio::time::sleep(Duration::from_secs(away.into())).await;
            kept.be(WELL);
            settled(&stores).await;
            assert_eq!(kept.left(&slot), left, "after {away} s");
        }
        assert_eq!(seen.dropped(), [0, 0, 0, 1, 0], "refused");
    });
}

#[test]
fn a_store_that_is_gone_is_noticed_without_requests() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let suspended = || matches!(stores.facts()[0], StoreStatus::Shared { circuit_open: true, .. });
    runtime.block_on(async {
        assert!(stores.apply(&one(daily(100)), START).await.admitted);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!suspended());
        kept.be(BROKEN);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(suspended());
        kept.be(WELL);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!suspended());
    });
}

#[test]
fn a_process_that_ends_waits_for_late_calls_and_releases_the_slots_that_they_took() {
    for policy in [OnStoreError::Deny, OnStoreError::Local] {
        let (kept, runtime) = (FakeStore::new(), held());
        let _entered = runtime.enter();
        let stores = instance(&kept);
        let slots = Limit::Concurrency(Concurrency { max: 2, lease: 3_600 * SECOND });
        let slot = Check { on_store_error: policy, ..check(slots) };
        runtime.block_on(async {
            kept.be(HANGING);
            let plan = one(slot);
            assert_eq!(stores.apply(&plan, START).await.admitted, policy == OnStoreError::Local);
            // The client gives up before its deadline.
            let other = Plan { lease: LeaseId(2), ..one(slot) };
            let _ = tokio::time::timeout(Duration::from_millis(5), stores.apply(&other, START)).await;
            let begun = Instant::now();
            let back = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                kept.be(WELL);
            };
            let ended = async {
                stores.hand_over(Duration::from_secs(2)).await;
                (begun.elapsed(), kept.left(&slot))
            };
            let ((took, left), ()) = tokio::join!(ended, back);
            assert!(took >= Duration::from_millis(100), "{policy:?}: the calls have not ended after {took:?}");
            assert_eq!(left, if policy == OnStoreError::Local { 1 } else { 2 }, "{policy:?}");
        });
    }
}
