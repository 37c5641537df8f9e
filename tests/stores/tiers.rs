//! What tiers of one bucket, and charges that are taken back, leave in each store and in pairs of stores: the same
//! answers everywhere.

use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{Alignment, FixedWindow, LeaseId, Limit, OnStoreError, SlidingCounter, TokenBucket};
use tollgate::plan::{Charges, Check, CounterName, Needs, Outcome, Plan};
use tollgate::store::{
    Backend, MemorySettings, Postgres, PostgresSettings, QueueSettings, SharedSettings, SharedStore, StoreHandle,
    Stores,
};

use super::redis_client::{at, connected};
use crate::support::processes::postgres;
use crate::support::processes::redis::Redis as Server;
use crate::support::reference::plans::{SECOND, START};

const HOUR: u64 = 3_600 * SECOND;

fn bucket(tokens: u64, window: u64, burst: u32, debt: u64) -> Limit {
    Limit::TokenBucket(TokenBucket::new(tokens, window, burst, debt).expect("it can be held"))
}

fn window(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(HOUR) })
}

fn check(store: u16, name: u64, limit: Limit, cost: u32) -> Check {
    // Without its store nothing is answered, so that no fallback passes these tests.
    Check { store, on_store_error: OnStoreError::Deny, ..Check::charge(CounterName([name, name << 20]), limit, cost) }
}

/// A check that only reports the counter of another.
fn look(check: Check) -> Check {
    Check { needs: Needs::default(), charges: Charges::default(), shadow: false, ..check }
}

/// A check that needs one unit and charges the whole cost.
fn overdraws(check: Check) -> Check {
    Check { needs: Needs { fits: 0, one_left: true }, ..check }
}

/// The stores of a test: Redis and PostgreSQL where there are servers, and memory, with their names.
struct Kinds {
    runtime: tokio::runtime::Runtime,
    stores: Stores,
    /// The clock of every store.
    clock: ManualClock,
    names: Vec<&'static str>,
    _redis: Option<Server>,
    _postgres: Option<Arc<postgres::Postgres>>,
}

impl Kinds {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let (redis, postgres) = (Server::start(), postgres::Postgres::shared());
        let (mut handles, mut names) = (Vec::new(), Vec::new());
        let clock = ManualClock::at(START);
        {
            let _entered = runtime.enter();
            if let Some(server) = &redis {
                handles.push(shared(
                    "redis",
                    runtime.block_on(connected(&at(server.port))).with_clock(Arc::new(clock.clone())),
                ));
                names.push("redis");
            }
            if let Some(server) = &postgres {
                let patient = Duration::from_secs(20);
                let settings = PostgresSettings {
                    url: server.url(&server.database()),
                    connect_timeout: patient,
                    response_timeout: patient,
                    lock_timeout: patient,
                    sweep: false,
                    ..PostgresSettings::default()
                };
                let store = Postgres::new(&settings).expect("the settings are valid");
                handles.push(shared("postgres", store.with_clock(Arc::new(clock.clone()))));
                names.push("postgres");
            }
        }
        handles.push(StoreHandle::Memory(MemorySettings::default()));
        names.push("memory");
        Self { runtime, stores: Stores::of(handles), clock, names, _redis: redis, _postgres: postgres }
    }

    /// The index of every store, with its name.
    fn each(&self) -> impl Iterator<Item = (u16, &'static str)> {
        (0..).zip(self.names.clone())
    }

    /// The outcomes of a group of checks at a moment, and whether it is admitted. Expired counters are swept before.
    fn decide<const N: usize>(&self, checks: [Check; N], now: Timestamp) -> (bool, [Outcome; N]) {
        self.clock.set(now);
        self.stores.sweep(now);
        let plan = Plan { lease: LeaseId(7), ..Plan::of(checks) };
        let applied = self.runtime.block_on(self.stores.apply(&plan, now));
        let outcome = |number: usize| applied.answers[number].expect("every store answers");
        (applied.admitted, std::array::from_fn(outcome))
    }

    /// How many of these requests are admitted.
    fn admits(&self, tries: u32, check: Check, now: Timestamp) -> u32 {
        (0..tries).map(|_| u32::from(self.decide([check], now).0)).sum()
    }

    fn left(&self, check: Check, now: Timestamp) -> u32 {
        let [outcome] = self.decide([look(check)], now).1;
        outcome.remaining
    }
}

fn shared(name: &str, backend: impl Backend) -> StoreHandle {
    let queue = QueueSettings { timeout: Duration::from_secs(20), ..QueueSettings::default() };
    StoreHandle::Shared(Arc::new(SharedStore::new(SharedSettings { queue, ..SharedSettings::new(name) }, backend)))
}

#[test]
fn semantics_20_a_full_bucket_is_unused_for_a_slower_tier_in_every_store() {
    let kinds = Kinds::new();
    let (fast, slow) = (bucket(5, SECOND, 5, 0), bucket(10, 1_000 * SECOND, 10, 0));
    for (store, name) in kinds.each() {
        for (number, after) in (0..).zip([SECOND, 30 * SECOND, 110 * SECOND, HOUR]) {
            assert_eq!(kinds.admits(9, check(store, number, fast, 1), START), 5, "{name}");
            let now = START.plus(after);
            let (admitted, [outcome]) = kinds.decide([check(store, number, slow, 1)], now);
            assert!(admitted, "{name} after {after} us");
            assert_eq!((outcome.remaining, outcome.reset), (9, 100 * SECOND), "{name} after {after} us");
        }
        assert_eq!(kinds.admits(9, check(store, 9, fast, 1), START), 5, "{name}");
        let before = START.plus(SECOND - 1);
        let (_, [refused]) = kinds.decide([check(store, 9, slow, 6)], before);
        assert_eq!((refused.passes, refused.remaining), (false, 5), "{name} until it is full");
        assert_eq!((refused.retry_after, refused.reset), (Some(1), 1), "{name}: it waits until it is full");
    }
}

#[test]
fn semantics_20_a_small_tier_gives_a_large_one_nothing_back_in_every_store() {
    let kinds = Kinds::new();
    let (large, small) = (bucket(100, HOUR, 100, 0), bucket(5, SECOND, 5, 0));
    for (store, name) in kinds.each() {
        let (mut now, mut all) = (START, kinds.admits(200, check(store, 30, large, 1), START));
        assert_eq!(all, 100, "{name}");
        let mut of_the_small = 0;
        for _ in 0..5 {
            now = now.plus(600_000);
            of_the_small += kinds.admits(2, check(store, 30, small, 1), now);
            all += kinds.admits(200, check(store, 30, large, 1), now);
        }
        assert!(of_the_small >= 5, "{name}: the small tier is not locked out");
        assert!(all + of_the_small <= 100 + 5 * 3, "{name}: {all} and {of_the_small}");
        now = now.plus(20 * SECOND);
        kinds.admits(1, check(store, 30, small, 1), now);
        assert!(kinds.left(check(store, 30, large, 1), now) < 100, "{name}: what is beyond the small tier is counted");
    }
}

/// What is used of a counter in one store, and a request that overdraws it and is refused in the other.
fn taken_back(limit: Limit, used: u32, units: u32, shadow: bool) {
    let kinds = Kinds::new();
    let mut name = 100;
    for (first, one) in kinds.each() {
        for (second, other) in kinds.each().filter(|(second, _)| *second != first) {
            name += 1;
            let pair = format!("{limit:?} in {one}, the other in {other}");
            assert!(kinds.decide([check(first, name, limit, used)], START).0, "{pair}");
            let gone = check(second, name, window(1), 1);
            assert!(kinds.decide([gone], START).0, "{pair}");
            let left = kinds.left(check(first, name, limit, 1), START);
            let overdrawn = Check { shadow, ..overdraws(check(first, name, limit, units)) };
            for after in [0, 1, 70_000] {
                let now = START.plus(after);
                let expected = kinds.decide([look(overdrawn)], now).1;
                let (admitted, [outcome, _]) = kinds.decide([overdrawn, gone], now);
                assert!(!admitted, "{pair}");
                assert_eq!((outcome.remaining, outcome.reset), (expected[0].remaining, expected[0].reset), "{pair}");
                let [found] = kinds.decide([look(overdrawn)], now).1;
                assert_eq!(found, expected[0], "{pair}, {after} us later");
            }
            assert_eq!(kinds.admits(12, check(first, name, limit, 1), START.plus(70_000)), left, "{pair}");
        }
    }
}

#[test]
fn semantics_08_what_was_added_to_a_bucket_comes_back_between_all_pairs_of_stores() {
    // Case 2: remaining 10, and 10 more admitted.
    for debt in [0, 5, u64::MAX] {
        taken_back(bucket(10, HOUR, 10, debt), 9, 1_000_000_000, false);
        // 7 levels drain in a microsecond.
        taken_back(bucket(7, SECOND, 10, debt), 9, u32::MAX, false);
    }
    taken_back(bucket(10, HOUR, 10, 3), 9, 1_000_000_000, true);
}

#[test]
fn semantics_08_what_was_added_to_a_window_comes_back_between_all_pairs_of_stores() {
    taken_back(window(10), 9, u32::MAX, false);
    taken_back(window(u32::MAX), u32::MAX - 3, 1_000, false);
    taken_back(Limit::SlidingCounter(SlidingCounter { limit: 10, window: HOUR }), 9, u32::MAX, false);
    taken_back(Limit::SlidingCounter(SlidingCounter { limit: u32::MAX, window: HOUR }), u32::MAX - 3, 1_000, true);
}
