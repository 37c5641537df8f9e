//! Moments around a lost connection to a store that is well: nothing that was answered OK is lost, no budget begins
//! anew, and a decision waits for the next connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tollgate::limiter::{Alignment, FixedWindow, Limit, OnStoreError, TokenBucket};
use tollgate::plan::{Charges, Check, Needs};
use tollgate::store::StoreHandle;

use super::in_process::{
    self, Instance, LONG, Resets, SHORT, at, in_a_postgres, in_cluster, in_postgres, in_redis, one, plan, rand_base,
    redis, settings, slots,
};
use super::load::{self, Load, Moment, slots_through};
use crate::support::processes::redis::{Redis, Setup};
use crate::support::processes::{Cluster, PgBouncer, Postgres, Proxy, WAIT_TIMEOUT, postgres};

const DAY: u64 = 86_400_000_000;

/// A count of a day that has just begun.
fn daily(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(DAY) })
}

/// Four slots are released while the connection is lost. All are free a moment later.
async fn four_slots_survive(store: &impl Resets, handle: StoreHandle) {
    let instance = Instance::on(handle).await;
    for policy in [OnStoreError::Local, OnStoreError::Deny, OnStoreError::Allow] {
        let check = one(policy as u64, slots(4), policy);
        let mut leases = Vec::new();
        for _ in 0..4 {
            let (applied, lease) = instance.ask(check).await;
            assert!(applied.admitted);
            leases.push(lease);
        }
        store.reset();
        join_all(leases.into_iter().map(|lease| instance.release(&check, lease))).await;
        instance.has_left(check, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_released_during_a_reset_are_free_afterwards() {
    let _alone = crate::MACHINE.read().await;
    for setup in [Setup::redis(), Setup::valkey()].into_iter().flatten() {
        let server = setup.start();
        four_slots_survive(&server, redis(&server, SHORT)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_released_during_a_reset_are_free_afterwards_in_a_cluster() {
    let _alone = crate::MACHINE.read().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    four_slots_survive(&cluster, in_cluster(&cluster, SHORT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_released_during_a_reset_are_free_afterwards_in_a_postgres() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let database = server.database();
    four_slots_survive(&server, in_a_postgres(&server, &database, LONG)).await;
}

/// Workers that take a slot, hold it for a moment and release it, while connections are lost.
async fn no_slot_leaks(name: &str, store: &impl Resets, handle: StoreHandle) {
    let instances = [Instance::on(handle).await];
    let resets = async |moments: &mut Vec<Moment>| {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            moments.push(Moment::of(|| store.reset()));
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    };
    let row = slots_through(&format!("4 resets, 12 workers on 20 slots, {name}"), &instances, 20, resets).await;
    assert_eq!(row.leaked, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_resets_under_twelve_workers_leak_no_slot() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    no_slot_leaks("Redis", &server, redis(&server, SHORT)).await;
    let proxy = Proxy::to(server.port);
    no_slot_leaks("network", &proxy, in_redis(settings(SHORT), &at(proxy.port))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_resets_under_twelve_workers_leak_no_slot_in_a_postgres() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let database = server.database();
    no_slot_leaks("PostgreSQL", &server, in_a_postgres(&server, &database, LONG)).await;
}

/// Refunds and recorded uses under resets, whose sum is exact afterwards.
async fn each_is_counted_once(store: &impl Resets, handle: StoreHandle) {
    const CALLERS: u32 = 8;
    const EACH: u32 = 250;
    let instance = Instance::on(handle).await;
    for policy in [OnStoreError::Local, OnStoreError::Allow] {
        let base = 10 * policy as u64;
        let (used, refunded) = (one(base + 20, daily(100_000), policy), one(base + 21, daily(100_000), policy));
        // The last reset is over: a charge that is in flight in one can be made twice.
        instance.has_left(refunded, 100_000).await;
        let full = Charges { admitted: 50_000, passed: 0, refused: 0 };
        assert!(instance.ask(Check { charges: full, ..refunded }).await.0.admitted);
        let always = Charges { admitted: 3, passed: 3, refused: 3 };
        let record = Check { needs: Needs { fits: 0, one_left: true }, charges: always, ..used };
        let refund = Check { needs: Needs::default(), charges: Charges::default(), refund: 2, ..refunded };
        let sent = Arc::new(AtomicU64::new(0));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (instance, sent) = (instance.clone(), sent.clone());
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        instance.ask(record).await;
                        instance.ask(refund).await;
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        // A reset for every hundred of them.
        for hundred in 1..u64::from(CALLERS * EACH) / 100 {
            while sent.load(Ordering::SeqCst) < hundred * 100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            store.reset();
        }
        join_all(callers).await;
        instance.has_left(used, 100_000 - 3 * CALLERS * EACH).await;
        instance.has_left(refunded, 50_000 + 2 * CALLERS * EACH).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refunds_and_recorded_uses_are_counted_once_however_often_the_connection_is_lost() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    each_is_counted_once(&server, redis(&server, SHORT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refunds_and_recorded_uses_are_counted_once_in_a_cluster() {
    let _alone = crate::MACHINE.read().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    each_is_counted_once(&cluster, in_cluster(&cluster, SHORT)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refunds_and_recorded_uses_are_counted_once_in_a_postgres() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let database = server.database();
    each_is_counted_once(&server, in_a_postgres(&server, &database, LONG)).await;
}

/// Two instances on a limit of 25 a day through blips: no more than the bound, and the store has counted it afterwards.
async fn bounded_through(
    name: &str,
    handle: impl Fn() -> StoreHandle,
    counter: u64,
    blips: impl AsyncFnOnce(&mut Vec<Moment>),
) {
    let instances = [Instance::on(handle()).await, Instance::on(handle()).await];
    let check = one(counter, daily(LIMIT), OnStoreError::Local);
    let load = Load::through(&instances, check, Some(Duration::from_millis(2)), blips).await;
    let admitted = load.admitted();
    load.row(&format!("{name}, 2 instances, 25 a day"), admitted.saturating_sub(LIMIT as usize)).print();
    assert!((LIMIT as usize..=BOUND).contains(&admitted), "{name}: {admitted} of {LIMIT} admitted");
    instances[0].has_left(check, 0).await;
}

/// How often a store blinks: four times, or `TOLLGATE_BLINKS` times.
fn blinks() -> u32 {
    std::env::var("TOLLGATE_BLINKS").map_or(4, |blinks| blinks.parse().expect("TOLLGATE_BLINKS is a number"))
}

const LIMIT: u32 = 25;

/// The bound of docs/stores.md: the limit, and the limit once more for each instance.
const BOUND: usize = 25 * (1 + 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_31_a_store_that_blinks_gives_no_new_budget_with_each_blink() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let stalls = async |moments: &mut Vec<Moment>| {
        for _ in 0..blinks() {
            server.freeze();
            tokio::time::sleep(Duration::from_millis(300)).await;
            moments.push(Moment::outage_until(|| server.thaw()));
            tokio::time::sleep(Duration::from_millis(1_200)).await;
        }
    };
    bounded_through("stalls of 0.3 s each 1.5 s", || redis(&server, SHORT), 40, stalls).await;

    let proxy = Proxy::to(server.port);
    let refusals = async |moments: &mut Vec<Moment>| {
        for _ in 0..blinks() {
            proxy.refuse();
            tokio::time::sleep(Duration::from_millis(400)).await;
            moments.push(Moment::outage_until(|| proxy.heal()));
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
    };
    let handle = || in_redis(settings(SHORT), &at(proxy.port));
    bounded_through("connections refused 0.4 s each 1.3 s", handle, 41, refusals).await;
}

/// Ten resets, a second apart.
async fn ten_resets(store: &impl Resets, moments: &mut Vec<Moment>) {
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        moments.push(Moment::of(|| store.reset()));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_31_ten_resets_in_ten_seconds_give_no_new_budgets() {
    let _alone = crate::MACHINE.write().await;
    let (Some(server), Some(postgres)) = (Redis::start(), postgres::Setup::new().map(postgres::Setup::start)) else {
        return;
    };
    let (proxy, database) = (Proxy::to(server.port), postgres.database());
    let killed = bounded_through(
        "ten resets in ten seconds, Redis",
        || redis(&server, SHORT),
        42,
        async |moments| {
            ten_resets(&server, moments).await;
        },
    );
    let cut = bounded_through(
        "ten resets in ten seconds, network",
        || in_redis(settings(SHORT), &at(proxy.port)),
        43,
        async |moments| ten_resets(&proxy, moments).await,
    );
    let ended = bounded_through(
        "ten resets in ten seconds, PostgreSQL",
        || in_a_postgres(&postgres, &database, LONG),
        44,
        async |moments| ten_resets(&postgres, moments).await,
    );
    // Each has a counter of its own; Redis resets the connections behind the proxy as well.
    tokio::join!(killed, cut, ended);
}

/// What a fallback admits is charged to the store once it is back, and no more.
async fn handed_over<S>(
    store: &S,
    handle: StoreHandle,
    (counter, limit): (u64, Limit),
    refuse: impl AsyncFnOnce(&S),
    heal: impl AsyncFnOnce(&S),
) {
    let instance = Instance::on(handle).await;
    let check = one(60 + counter, limit, OnStoreError::Local);
    for _ in 0..3 {
        assert!(instance.ask(check).await.0.admitted);
    }
    refuse(store).await;
    let mut by_fallback = 0;
    let mut leases = Vec::new();
    while by_fallback < 5 {
        let (applied, lease) = instance.ask(check).await;
        assert!(applied.admitted);
        by_fallback += u32::from(applied.degraded);
        leases.push(lease);
    }
    heal(store).await;
    let all = 3 + u32::try_from(leases.len()).expect("a few");
    instance.has_left(check, 100 - all).await;
    if matches!(limit, Limit::Concurrency(_)) {
        join_all(leases.into_iter().map(|lease| instance.release(&check, lease))).await;
        instance.has_left(check, 97).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fallback_admitted_is_charged_to_the_store_when_it_is_back() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let minute = 60_000_000;
    let limits = [
        daily(100),
        slots(100),
        Limit::SlidingWindow(tollgate::limiter::SlidingWindow { limit: 100, window: DAY }),
        Limit::SlidingCounter(tollgate::limiter::SlidingCounter { limit: 100, window: DAY }),
        // Nothing drains during the test.
        Limit::TokenBucket(TokenBucket::new(1, 60 * minute, 100, 0).expect("it can be held")),
    ];
    for limit in (0..).zip(limits) {
        let proxy = Proxy::to(server.port);
        // So long that no answer is late: its charge would be in the store, and in the fallback too.
        let handle = in_redis(settings(Duration::from_millis(500)), &at(proxy.port));
        handed_over(&proxy, handle, limit, async |proxy| proxy.refuse(), async |proxy| proxy.heal()).await;
    }
}

/// Eight callers through ten resets of a store.
struct ResetsUnderLoad {
    load: Load,
    by_policy: usize,
}

impl ResetsUnderLoad {
    const RESETS: usize = 10;

    async fn of(name: &str, store: &impl Resets, handle: StoreHandle, pause: Duration) -> Self {
        const LIMIT: u32 = 100_000_000;
        let instances = [Instance::on(handle).await];
        let check = one(rand_base(), daily(LIMIT), OnStoreError::Deny);
        let resets = async |moments: &mut Vec<Moment>| {
            for _ in 0..Self::RESETS {
                tokio::time::sleep(pause).await;
                moments.push(Moment::of(|| store.reset()));
            }
            tokio::time::sleep(pause).await;
        };
        let load = Load::through(&instances, check, None, resets).await;
        let look = Check { on_store_error: OnStoreError::Deny, ..Check::look(check.counter, check.limit) };
        let began = Instant::now();
        let left = loop {
            match instances[0].apply(&plan([look], 0)).await.answers[0] {
                Ok(outcome) => break outcome.remaining,
                Err(fault) => assert!(began.elapsed() < WAIT_TIMEOUT, "{fault}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let (admitted, counted) = (load.admitted(), (LIMIT - left) as usize);
        let name = format!("10 resets, 8 callers, {name}");
        load.row(&name, admitted.saturating_sub(counted)).print();
        assert!(counted >= admitted, "{name}: {counted} counted, {admitted} admitted");
        // No more than were in flight.
        let twice = counted - admitted;
        assert!(twice <= Self::RESETS * load::CALLERS, "{name}: {twice} charged twice");
        Self { by_policy: load.by_policy(), load }
    }

    /// Asserts that resets cost no answer by policy. A machine that is busy with other work makes answers late now and
    /// then, so one of three attempts has to show it; a reset that costs any costs some in each.
    async fn cost_nothing(name: &str, store: &impl Resets, handle: impl Fn() -> StoreHandle, pause: Duration) {
        let mut seen = Vec::new();
        for _ in 0..3 {
            let resets = Self::of(name, store, handle(), pause).await;
            if resets.by_policy == 0 {
                return;
            }
            seen.push((resets.by_policy, resets.load.answers(), resets.load.faults(), resets.load.longest()));
        }
        panic!("{name}: by policy, of all, why, longest: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_under_load_costs_no_answer_by_policy() {
    let _alone = crate::MACHINE.write().await;
    let pause = Duration::from_millis(200);
    for (name, setup) in [("Redis", Setup::redis()), ("Valkey", Setup::valkey())] {
        let Some(server) = setup.map(Setup::start) else { continue };
        ResetsUnderLoad::cost_nothing(name, &server, || redis(&server, LONG), pause).await;
    }
    let Some(server) = Redis::start() else { return };
    let seen = ResetsUnderLoad::of("Redis, 10 ms", &server, redis(&server, SHORT), pause).await;
    // At most 20 ms of them for each reset: a tenth of the time.
    let answers = seen.load.answers();
    assert!(seen.by_policy <= answers / 10, "{} of {answers}", seen.by_policy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_under_load_costs_no_answer_by_policy_in_a_cluster() {
    let _alone = crate::MACHINE.write().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    ResetsUnderLoad::cost_nothing("Cluster", &cluster, || in_cluster(&cluster, LONG), Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_under_load_costs_no_answer_by_policy_in_a_postgres() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let database = server.database();
    // A new connection takes some round trips, and a fork of the server.
    let handle = || in_a_postgres(&server, &database, Duration::from_millis(500));
    ResetsUnderLoad::cost_nothing("PostgreSQL, 500 ms", &server, handle, Duration::from_millis(300)).await;
}

/// The longest time until a store behind a pooler answers again, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(3);

/// Loses the connections of clients to a pooler, and of the pooler to its server, in turn.
struct Pooled<'a> {
    server: &'a Postgres,
    clients: Proxy,
    resets: AtomicU64,
}

impl Resets for Pooled<'_> {
    fn reset(&self) {
        if self.resets.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            self.clients.cut();
        } else {
            let pooled = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ";
            self.server.execute("postgres", &format!("{pooled}'{}'", postgres::USER));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_under_load_costs_no_answer_by_policy_behind_a_pooler() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let Some(pooler) = PgBouncer::start(&server, &["default_pool_size = 4"]) else { return };
    let (database, clients) = (server.database(), Proxy::to(pooler.port));
    let url = pooler.url(&database).replace(&format!(":{}/", pooler.port), &format!(":{}/", clients.port));
    let handle = |timeout| in_postgres(settings(timeout), &in_process::postgres(url.clone()));
    let long = Duration::from_millis(500);
    ResetsUnderLoad::cost_nothing("pooler, clients", &clients, || handle(long), Duration::from_millis(300)).await;
    let both = Pooled { server: &server, clients, resets: AtomicU64::new(0) };
    let seen =
        ResetsUnderLoad::of("pooler, clients and servers", &both, handle(long), Duration::from_millis(300)).await;
    assert!(seen.load.recovery() < RECOVERY, "{:?}", seen.load.recovery());
    no_slot_leaks("pooler", &both, handle(long)).await;
}
