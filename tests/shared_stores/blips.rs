//! Moments around a lost connection to a store that is well: nothing that was answered OK is lost, no budget begins
//! anew, and a decision waits for the next connection.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tollgate::clock::{Clock, SystemClock};
use tollgate::limiter::{Alignment, Concurrency, FixedWindow, LeaseId, Limit, OnStoreError, TokenBucket};
use tollgate::plan::{Applied, Charges, Check, Fault, LeaseAction, LeaseChange, Needs, Plan};
use tollgate::store::{QueueSettings, RedisSettings, SharedSettings, StoreHandle, Stores, Topology};

use super::in_process::{self, at, in_postgres, in_redis, one, plan};
use crate::support::processes::redis::{Redis, Setup};
use crate::support::processes::{Cluster, Postgres, Proxy, WAIT_TIMEOUT, postgres};

const DAY: u64 = 86_400_000_000;

fn settings(timeout: Duration) -> SharedSettings {
    let queue = QueueSettings { timeout, ..QueueSettings::default() };
    SharedSettings { queue, ..SharedSettings::new("main") }
}

/// A count of a day that has just begun.
fn daily(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(DAY) })
}

fn slots(max: u32) -> Limit {
    Limit::Concurrency(Concurrency { max, lease: 60_000_000 })
}

/// An instance of tollgate.
struct Instance {
    stores: Stores,
    clock: SystemClock,
    lease: AtomicU64,
}

impl Instance {
    async fn on(handle: StoreHandle) -> Arc<Self> {
        let instance =
            Self { stores: Stores::of([handle]), clock: SystemClock::new(), lease: AtomicU64::new(rand_base()) };
        let began = Instant::now();
        while !instance.stores.answers(0).await {
            assert!(began.elapsed() < WAIT_TIMEOUT, "the store never answers");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Arc::new(instance)
    }

    async fn apply(&self, plan: &Plan) -> Applied {
        self.stores.apply(plan, self.clock.now()).await
    }

    /// Asks for a check under a new lease. Returns the lease with the answer.
    async fn ask(&self, check: Check) -> (Applied, u128) {
        let lease = self.lease.fetch_add(1, Ordering::SeqCst).into();
        (self.apply(&plan([check], lease)).await, lease)
    }

    async fn release(&self, check: &Check, lease: u128) {
        let change = LeaseChange {
            counter: check.counter,
            store: check.store,
            lease: LeaseId(lease),
            action: LeaseAction::Release,
        };
        self.apply(&Plan { changes: [change].into_iter().collect(), ..Plan::default() }).await;
    }

    /// Waits until a check has so much left in the store.
    async fn has_left(&self, check: Check, left: u32) {
        let look = Check { on_store_error: OnStoreError::Deny, ..Check::look(check.counter, check.limit) };
        let began = Instant::now();
        loop {
            let seen = self.apply(&plan([look], 0)).await.answers[0].map(|outcome| outcome.remaining);
            if seen == Ok(left) {
                return;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{seen:?} left, expected {left}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Leases that no other instance of this test has.
fn rand_base() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1 << 32, Ordering::SeqCst)
}

/// Something that loses its connections.
trait Resets {
    fn reset(&self);
}

impl Resets for Redis {
    fn reset(&self) {
        self.ask::<u64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
}

impl Resets for Postgres {
    fn reset(&self) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tollgate'";
        self.execute("postgres", others);
    }
}

impl Resets for Cluster {
    fn reset(&self) {
        self.nodes.iter().for_each(Redis::reset);
    }
}

impl Resets for Proxy {
    fn reset(&self) {
        self.cut();
    }
}

fn redis(server: &Redis, timeout: Duration) -> StoreHandle {
    in_redis(settings(timeout), &at(server.port))
}

fn in_cluster(cluster: &Cluster, timeout: Duration) -> StoreHandle {
    let address = |port| tollgate::store::Address::Tcp("127.0.0.1".to_owned(), port);
    let nodes = cluster.ports().into_iter().map(address).collect();
    let settings = SharedSettings { partitioned: true, ..settings(timeout) };
    in_redis(settings, &RedisSettings::new(Topology::Cluster(nodes)))
}

fn in_a_postgres(server: &Postgres, database: &str, timeout: Duration) -> StoreHandle {
    in_postgres(settings(timeout), &in_process::postgres(server.url(database)))
}

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_millis(50);

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
async fn no_slot_leaks(store: &impl Resets, handle: StoreHandle) {
    let instance = Instance::on(handle).await;
    let check = one(7, slots(20), OnStoreError::Local);
    let enough = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..12)
        .map(|_| {
            let (instance, enough) = (instance.clone(), enough.clone());
            tokio::spawn(async move {
                while !enough.load(Ordering::SeqCst) {
                    let (applied, lease) = instance.ask(check).await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    if applied.admitted {
                        instance.release(&check, lease).await;
                    }
                }
            })
        })
        .collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        store.reset();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    enough.store(true, Ordering::SeqCst);
    join_all(workers).await;
    instance.has_left(check, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_resets_under_twelve_workers_leak_no_slot() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    no_slot_leaks(&server, redis(&server, SHORT)).await;
    let proxy = Proxy::to(server.port);
    no_slot_leaks(&proxy, in_redis(settings(SHORT), &at(proxy.port))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_resets_under_twelve_workers_leak_no_slot_in_a_postgres() {
    let _alone = crate::MACHINE.read().await;
    let Some(server) = postgres::Setup::new().map(postgres::Setup::start) else { return };
    let database = server.database();
    no_slot_leaks(&server, in_a_postgres(&server, &database, LONG)).await;
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

/// Two instances on a limit of 25 a day through blips. Returns how many units both admitted.
async fn admitted_through<S>(
    store: &S,
    handle: impl Fn() -> StoreHandle,
    limit: Limit,
    counter: u64,
    blips: impl AsyncFnOnce(&S),
) -> (u32, Arc<Instance>, Check) {
    let instances = [Instance::on(handle()).await, Instance::on(handle()).await];
    let check = one(counter, limit, OnStoreError::Local);
    let enough = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (instance, enough) = (instances[number % 2].clone(), enough.clone());
            tokio::spawn(async move {
                let mut admitted = 0;
                while !enough.load(Ordering::SeqCst) {
                    admitted += u32::from(instance.ask(check).await.0.admitted);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                admitted
            })
        })
        .collect();
    blips(store).await;
    enough.store(true, Ordering::SeqCst);
    let admitted = join_all(callers).await.into_iter().map(|admitted| admitted.expect("no panic")).sum();
    let [instance, _] = instances;
    (admitted, instance, check)
}

/// How often a store blinks: four times, or `TOLLGATE_BLINKS` times.
fn blinks() -> u32 {
    std::env::var("TOLLGATE_BLINKS").map_or(4, |blinks| blinks.parse().expect("TOLLGATE_BLINKS is a number"))
}

/// The bound of docs/stores.md: the limit, and the limit once more for each instance.
const BOUND: u32 = 25 * (1 + 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_31_a_store_that_blinks_gives_no_new_budget_with_each_blink() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let stalls = async |server: &Redis| {
        for _ in 0..blinks() {
            server.freeze();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.thaw();
            tokio::time::sleep(Duration::from_millis(1_200)).await;
        }
    };
    let (admitted, instance, check) = admitted_through(&server, || redis(&server, SHORT), daily(25), 40, stalls).await;
    println!("| stalls, 2 instances | {admitted} of 25 |");
    assert!((25..=BOUND).contains(&admitted), "{admitted} of 25 admitted through stalls");
    instance.has_left(check, 0).await;

    let proxy = Proxy::to(server.port);
    let resets = async |proxy: &Proxy| {
        for _ in 0..blinks() {
            proxy.refuse();
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.heal();
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
    };
    let handle = || in_redis(settings(SHORT), &at(proxy.port));
    let (admitted, ..) = admitted_through(&proxy, handle, daily(25), 41, resets).await;
    println!("| refused connections, 2 instances | {admitted} of 25 |");
    assert!((25..=BOUND).contains(&admitted), "{admitted} of 25 admitted through refused connections");
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

/// Eight callers through resets of a store.
struct ResetsUnderLoad {
    decisions: usize,
    by_policy: usize,
    /// Why they were not answered by the store, each once.
    faults: BTreeSet<&'static str>,
    /// How many units more the store has counted than were admitted.
    charged_twice: usize,
    longest: Duration,
}

impl ResetsUnderLoad {
    const CALLERS: usize = 8;
    const RESETS: usize = 10;

    async fn of(name: &str, store: &impl Resets, handle: StoreHandle, pause: Duration) -> Self {
        const LIMIT: u32 = 100_000_000;
        let instance = Instance::on(handle).await;
        let check = one(rand_base(), daily(LIMIT), OnStoreError::Deny);
        let enough = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..Self::CALLERS)
            .map(|_| {
                let (instance, enough) = (instance.clone(), enough.clone());
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while !enough.load(Ordering::SeqCst) {
                        let began = Instant::now();
                        let (applied, _) = instance.ask(check).await;
                        seen.push((began.elapsed(), applied));
                        // An answer by policy waits for nothing, and would keep the store's tasks from running.
                        tokio::task::yield_now().await;
                    }
                    seen
                })
            })
            .collect();
        for _ in 0..Self::RESETS {
            tokio::time::sleep(pause).await;
            store.reset();
        }
        tokio::time::sleep(pause).await;
        enough.store(true, Ordering::SeqCst);
        let seen: Vec<_> = join_all(callers).await.into_iter().flat_map(|seen| seen.expect("no panic")).collect();
        let admitted = seen.iter().filter(|(_, applied)| applied.admitted).count();
        let look = Check { on_store_error: OnStoreError::Deny, ..Check::look(check.counter, check.limit) };
        let began = Instant::now();
        let left = loop {
            match instance.apply(&plan([look], 0)).await.answers[0] {
                Ok(outcome) => break outcome.remaining,
                Err(fault) => assert!(began.elapsed() < WAIT_TIMEOUT, "{fault}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let counted = (LIMIT - left) as usize;
        assert!(counted >= admitted, "{name}: {counted} counted, {admitted} admitted");
        let resets = Self {
            decisions: seen.len(),
            faults: seen.iter().filter_map(|(_, applied)| applied.answers[0].err()).map(Fault::name).collect(),
            by_policy: seen.iter().filter(|(_, applied)| applied.degraded).count(),
            charged_twice: counted - admitted,
            longest: seen.iter().map(|(took, _)| *took).max().expect("decisions"),
        };
        println!(
            "| {name} | {} of {} by policy {:?} | {} charged twice | longest {:?} |",
            resets.by_policy, resets.decisions, resets.faults, resets.charged_twice, resets.longest
        );
        // No more than were in flight.
        assert!(resets.charged_twice <= Self::RESETS * Self::CALLERS, "{name}: {} charged twice", resets.charged_twice);
        resets
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
            seen.push((resets.by_policy, resets.decisions, resets.faults, resets.longest));
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
    assert!(seen.by_policy <= seen.decisions / 10, "{} of {}", seen.by_policy, seen.decisions);
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
