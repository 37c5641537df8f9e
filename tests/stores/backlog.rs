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
    DropReason, QueueSettings, SharedSettings, SharedStore, StoreHandle, StoreObserver, Stores, Wrapper,
};

use super::fake::{BROKEN, FakeStore, LINKING, LOSING, LOSING_ONE, WELL, check, one};
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
    let queue = QueueSettings { timeout: Duration::from_millis(10), ..QueueSettings::default() };
    let settings = SharedSettings { queue, ..SharedSettings::new("main") };
    Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(settings, kept.clone())))])
}

/// Counts what is dropped by reason, handed over, and owed.
#[derive(Clone, Default)]
struct Seen(Arc<[AtomicU64; 7]>);

const HANDED_OVER: usize = 5;
const WAITING: usize = 6;

impl Seen {
    fn of(stores: &Stores) -> Self {
        let seen = Self::default();
        stores.observe(|_| Box::new(seen.clone()));
        seen
    }

    fn count(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::SeqCst)
    }

    fn dropped(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|reason| self.count(reason))
    }

    /// Waits until nothing is owed.
    async fn settled(&self) {
        let settled = async {
            while self.count(WAITING) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), settled).await.expect("nothing is owed any more");
    }
}

impl StoreObserver for Seen {
    fn called(&self, _took: Duration, _plans: usize) {}
    fn failed(&self, _fault: Fault) {}
    fn answered_by_policy(&self, _policy: OnStoreError, _checks: u64) {}
    fn undone(&self, _failed: bool) {}
    fn backlog(&self, waiting: usize) {
        self.0[WAITING].store(waiting as u64, Ordering::SeqCst);
    }
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
            assert!(admitted == 25 && seen.count(HANDED_OVER) == 0 || admitted == 0, "{admitted}");
            kept.be(WELL);
            seen.settled().await;
            assert_eq!(kept.left(&plan.checks[0]), 0);
        }
        assert_eq!(seen.count(HANDED_OVER), 1, "all units of a counter together");
        assert_eq!(seen.dropped(), [0; 5]);
        // 45 are counted: 20 refunds leave the counter full.
        let refund = Check { needs: Needs::default(), charges: Charges::default(), refund: 20, ..daily(25) };
        assert!(stores.apply(&one(refund), START).await.admitted);
        seen.settled().await;
        assert_eq!(kept.left(&plan.checks[0]), 0);
        stores.apply(&one(Check { refund: 2, ..refund }), START).await;
        seen.settled().await;
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
        seen.settled().await;
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
    let change = |action| {
        let change = LeaseChange { counter: slot.counter, store: 0, lease: LeaseId(1), action };
        Plan { changes: [change].into_iter().collect(), ..Plan::default() }
    };
    runtime.block_on(async {
        assert!(stores.apply(&one(slot), START).await.admitted);
        kept.be(BROKEN);
        stores.apply(&change(LeaseAction::Renew(5 * SECOND)), START).await;
        assert_eq!(seen.count(WAITING), 1);
        seen.settled().await;
        assert_eq!(seen.dropped(), [1, 0, 0, 0, 0], "expired");
        // A release is kept for as long as it takes.
        stores.apply(&change(LeaseAction::Release), START).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!((seen.count(WAITING), kept.left(&slot)), (1, 0));
        kept.be(WELL);
        seen.settled().await;
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
            seen.settled().await;
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
            seen.settled().await;
        }
        assert_eq!(kept.left(&log(OnStoreError::Deny)), 9, "8 of 9 are given back");
        assert_eq!(seen.dropped(), [0; 5]);
        // It cannot be asked again in time: with deny it is refused, and nothing is owed.
        kept.be(LOSING);
        let before = kept.left(&log(OnStoreError::Deny));
        let applied = stores.apply(&refund(OnStoreError::Deny), START).await;
        assert!(applied.degraded && !applied.admitted);
        kept.be(WELL);
        seen.settled().await;
        assert!(kept.left(&log(OnStoreError::Deny)) >= before);
    });
}

#[test]
fn a_slot_that_was_taken_over_a_connection_that_broke_is_free_if_its_caller_was_refused() {
    let (kept, runtime) = (FakeStore::new(), held());
    let _entered = runtime.enter();
    let stores = instance(&kept);
    let seen = Seen::of(&stores);
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
                seen.settled().await;
                assert_eq!(kept.left(&slot), 0, "the fallback gave it");
                let release =
                    LeaseChange { counter: slot.counter, store: 0, lease: plan.lease, action: LeaseAction::Release };
                stores.apply(&Plan { changes: [release].into_iter().collect(), ..Plan::default() }, START).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            seen.settled().await;
            assert_eq!(kept.left(&slot), 1, "{policy:?}");
        }
    });
}
