//! The contract of the wrappers of shared stores, with one instance and no refunds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tollgate::clock::{ManualClock, Timestamp};
use tollgate::plan::{Applied, Plan};
use tollgate::store::{Backend, QueueSettings, SharedSettings, SharedStore, StoreHandle, Stores};

use crate::support::reference::plans::{ANYTHING, Reference, START, Scope, always, plans};

/// Settings with a wrapper.
pub type Wrapped = fn(SharedSettings) -> SharedSettings;

pub const WITH_CACHE: Wrapped = |settings| SharedSettings { refusal_cache: Some(Duration::from_secs(60)), ..settings };
pub const WITH_LEASES: Wrapped = |settings| SharedSettings { quota_lease: Some(64), ..settings };

/// One instance on a store.
pub fn instance(backend: impl Backend, wrapped: Wrapped) -> Stores {
    let queue = QueueSettings { timeout: Duration::from_secs(5), ..QueueSettings::default() };
    let settings = wrapped(SharedSettings { queue, ..SharedSettings::new("main") });
    Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(settings, backend)))])
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// Random plans by one instance with a refusal cache: compares every verdict, and every refusal to the microsecond.
pub fn the_cache_keeps_the_contract(runs: u32, empty: impl Fn(u32, ManualClock) -> Stores) {
    as_the_store(runs, empty, |plan, found, expected| {
        // Passing checks of a refused plan report the units left before the plan.
        for (check, (found, expected)) in plan.checks.iter().zip(found.answers.iter().zip(&expected.answers)) {
            let refuses = expected.is_ok_and(|outcome| !outcome.passes);
            assert!(!refuses || found == expected, "{found:?}, expected {expected:?}: {check:?}");
        }
    });
}

/// Random plans by one instance with quota leases: compares every verdict, and every answer of what cannot be leased.
pub fn leases_keep_the_contract(runs: u32, empty: impl Fn(u32, ManualClock) -> Stores) {
    as_the_store(runs, empty, |plan, found, expected| {
        // Leased units are used up in the store, and reported as left here.
        if plan.checks.len() > 1 {
            assert_eq!(found.answers, expected.answers);
        }
    });
}

fn as_the_store(runs: u32, empty: impl Fn(u32, ManualClock) -> Stores, same: impl Fn(&Plan, &Applied, &Applied)) {
    let scope = Scope { every_verb: false, changing: false, backwards: false, ..ANYTHING };
    let (runtime, run) = (runtime(), AtomicU32::new(0));
    let _entered = runtime.enter();
    always(runs, plans(scope, 250), |steps| {
        let clock = ManualClock::at(START);
        let stores = empty(run.fetch_add(1, Ordering::Relaxed), clock.clone());
        runtime.block_on(async {
            while !stores.answers(0).await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let (mut reference, mut now) = (Reference::default(), START);
        for (number, (by, plan)) in steps.iter().enumerate() {
            now = Timestamp::from_micros(now.micros().saturating_add_signed(*by));
            let mut plan = plan.clone();
            plan.checks.iter_mut().for_each(|check| check.store = 0);
            plan.changes.iter_mut().for_each(|change| change.store = 0);
            let expected = reference.apply(&plan, now);
            clock.set(now);
            let found = runtime.block_on(stores.apply(&plan, now));
            assert_eq!(found.admitted, expected.admitted, "verdict of plan {number}: {plan:?}");
            same(&plan, &found, &expected);
        }
    });
}
