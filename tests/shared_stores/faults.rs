//! Faults of a shared store while 200 requests are in flight: each limiter follows its `on_store_error`, no request
//! waits for long, and the store counts again once it is back.
//!
//! `cargo test --test shared_stores faults -- --nocapture` prints the measurements:
//!
//! ```text
//! used-up counters | inject | other counters    | repair | the store answers | used-up counters
//! the store's count         | policies                   | its count          | its count
//! ```
//!
//! A fallback has half of every limit here, as with two instances, so that a response shows its source.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tollgate::clock::{Clock, SystemClock, Timestamp};
use tollgate::decision::Reason;
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::limiter::{Limit, Limiter, OnStoreError, SlidingWindow};
use tollgate::plan::Check;
use tollgate::rules::{Action, RuleBook, Rules};
use tollgate::store::{
    Address, Credentials, MemorySettings, Password, QueueSettings, RedisSettings, SharedSettings, StoreHandle, Stores,
    Topology,
};

use super::in_process::{self, at, in_postgres, in_redis, one, plan};
use super::load::Row;
use crate::support::binary::{DOORS, Served};
use crate::support::fixtures::{DOMAIN, apply, bucket, quota, rule, secs};
use crate::support::processes::redis::{Redis, Setup};
use crate::support::processes::{
    Ask, Cluster, Postgres, Proxy, Sentinel, WAIT_TIMEOUT, ports, postgres, sentinel, until,
};

/// Requests in flight.
const CALLERS: usize = 200;

/// The pause between a response and the caller's next request.
const PAUSE: Duration = Duration::from_millis(5);

/// The limit in the store, and in its fallback.
const LIMIT: u32 = 50;
const SHARE: u32 = LIMIT / 2;

/// The longest allowed time of a decision and of the recovery, on a busy machine. The actual times are printed.
const MAX_DECISION_TIME: Duration = Duration::from_secs(3);
const MAX_RECOVERY_TIME: Duration = Duration::from_secs(10);
/// The longest allowed time for the faster half of the decisions.
const MAX_MEDIAN_TIME: Duration = Duration::from_millis(50);

/// The kinds of counters: one for each policy, and one that never refuses, so that the store is always written to.
const ALLOW: usize = 0;
const DENY: usize = 1;
const LOCAL: usize = 2;
const FLOW: usize = 3;

fn check_of(kind: usize, fresh: bool) -> Check {
    let window = |limit| Limit::SlidingWindow(SlidingWindow { limit, window: 86_400_000_000 });
    let flow = Limit::FixedWindow(tollgate::limiter::FixedWindow {
        limit: 1_000_000,
        alignment: tollgate::limiter::Alignment::FirstHit(86_400_000_000),
    });
    match kind {
        ALLOW => one(u64::from(fresh) * 10, window(LIMIT), OnStoreError::Allow),
        DENY => one(u64::from(fresh) * 10 + 1, window(LIMIT), OnStoreError::Deny),
        LOCAL => one(u64::from(fresh) * 10 + 2, window(LIMIT), OnStoreError::Local),
        _ => one(3, flow, OnStoreError::Local),
    }
}

/// The source of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Store,
    Fallback,
    Policy,
}

/// A decision, as its caller saw it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    kind: usize,
    /// Whether its counter was not used before the fault.
    fresh: bool,
    began: Instant,
    took: Duration,
    by: Source,
    admitted: bool,
    /// The reported reset, in microseconds.
    reset: u64,
}

impl Seen {
    fn ended(&self) -> Instant {
        self.began + self.took
    }

    /// When the counter is empty, by the reported reset.
    fn empty_at(&self) -> Instant {
        self.ended() + Duration::from_micros(self.reset)
    }
}

/// An instance that shares the store.
struct Instance {
    stores: Stores,
    clock: Box<dyn Clock>,
}

impl Instance {
    fn with(handle: StoreHandle) -> Arc<Self> {
        Arc::new(Self { stores: Stores::of([handle]), clock: Box::new(SystemClock::new()) })
    }
}

/// Callers that send requests without end.
struct Load {
    callers: JoinSet<Vec<Seen>>,
    state: Arc<LoadState>,
}

/// Counts that the callers share.
#[derive(Default)]
struct LoadState {
    enough: AtomicBool,
    /// Which counters to use: those that were used up before the fault, or others.
    fresh: AtomicBool,
    /// Responses by kind and source.
    answers: [[AtomicUsize; 3]; 4],
    /// Refusals by the store, by kind.
    refusals: [AtomicUsize; 4],
}

impl Load {
    fn start(instances: &[Arc<Instance>]) -> Self {
        let (mut callers, state) = (JoinSet::new(), Arc::<LoadState>::default());
        for number in 0..CALLERS {
            let instance = instances[number / 4 % instances.len()].clone();
            callers.spawn(call(number % 4, instance, state.clone()));
        }
        Self { callers, state }
    }

    /// The responses so far, by kind.
    fn answers(&self, by: Source) -> [usize; 4] {
        self.state.answers.each_ref().map(|kind| kind[by as usize].load(Ordering::SeqCst))
    }

    /// Waits until each kind has got `times` more responses from these sources.
    fn answered(&self, what: &str, by: &[Source], times: usize) {
        let count =
            || by.iter().map(|by| self.answers(*by)).fold([0; 4], |all, one| [0, 1, 2, 3].map(|k| all[k] + one[k]));
        let before = count();
        until(what, || count().iter().zip(before).all(|(now, before)| now - before >= times));
    }

    /// Waits until the store refuses each limited kind again.
    fn refused(&self) {
        let refusals = || [ALLOW, DENY, LOCAL].map(|kind| self.state.refusals[kind].load(Ordering::SeqCst));
        let before = refusals();
        until("the store refuses", || refusals().iter().zip(before).all(|(now, before)| *now > before));
    }

    /// Stops the callers and returns all their decisions.
    async fn stop(self) -> Vec<Seen> {
        self.state.enough.store(true, Ordering::SeqCst);
        let seen = tokio::time::timeout(WAIT_TIMEOUT, self.callers.join_all()).await;
        seen.expect("no decision hangs").concat()
    }
}

async fn call(kind: usize, instance: Arc<Instance>, state: Arc<LoadState>) -> Vec<Seen> {
    let plans = [false, true].map(|fresh| plan([check_of(kind, fresh)], 0));
    let (whole, part) = (check_of(kind, false).limit, check_of(kind, false).limit.share(2));
    let units = |limit| match limit {
        Limit::SlidingWindow(window) => window.limit,
        Limit::FixedWindow(window) => window.limit,
        other => unreachable!("{other:?} is not used here"),
    };
    let mut seen = Vec::new();
    while !state.enough.load(Ordering::SeqCst) {
        let fresh = state.fresh.load(Ordering::SeqCst);
        let began = Instant::now();
        let applied = instance.stores.apply(&plans[usize::from(fresh)], instance.clock.now()).await;
        let took = began.elapsed();
        let by = match applied.answers[0] {
            Ok(outcome) if outcome.limit == units(whole) => Source::Store,
            Ok(outcome) => {
                assert_eq!(outcome.limit, units(part), "the fallback's limit");
                Source::Fallback
            }
            Err(_) => Source::Policy,
        };
        state.answers[kind][by as usize].fetch_add(1, Ordering::SeqCst);
        if by == Source::Store && !applied.admitted {
            state.refusals[kind].fetch_add(1, Ordering::SeqCst);
        }
        let reset = applied.answers[0].map_or(0, |outcome| outcome.reset);
        seen.push(Seen { kind, fresh, began, took, by, admitted: applied.admitted, reset });
        tokio::time::sleep(PAUSE).await;
    }
    seen
}

/// The effects of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expect {
    /// The store cannot answer until it is repaired.
    away: bool,
    /// The store comes back without its counters.
    forgets: bool,
    /// The fault concerns the counters that were used before.
    known: bool,
}

const AWAY: Expect = Expect { away: true, forgets: false, known: false };
const FORGETS: Expect = Expect { away: false, forgets: true, known: false };
const AWAY_AND_FORGETS: Expect = Expect { away: true, ..FORGETS };
const STAYS: Expect = Expect { away: false, ..AWAY };
const KNOWN_AWAY: Expect = Expect { known: true, ..AWAY };

/// Applies a fault to a store under load, repairs it, and checks the decisions against the documented behaviour.
async fn check_fault<S>(
    fault: &str,
    store: &mut S,
    handle: StoreHandle,
    expect: Expect,
    inject: impl AsyncFnOnce(&mut S),
    repair: impl AsyncFnOnce(&mut S),
) {
    check_fault_on_all(fault, store, &[Instance::with(handle)], expect, inject, repair).await;
}

/// The same with several instances, which share the callers. Returns their decisions.
async fn check_fault_on_all<S>(
    fault: &str,
    store: &mut S,
    instances: &[Arc<Instance>],
    expect: Expect,
    inject: impl AsyncFnOnce(&mut S),
    repair: impl AsyncFnOnce(&mut S),
) -> Vec<Seen> {
    for instance in instances {
        until_connected(&instance.stores).await;
    }
    let load = Load::start(instances);
    load.refused();

    let fault_began = Instant::now();
    inject(store).await;
    load.state.fresh.store(!expect.known, Ordering::SeqCst);
    let faulty = Instant::now();
    if expect.away {
        load.answered("policies answer", &[Source::Fallback, Source::Policy], 200);
        // Long enough for every way of noticing a fault: connections, timeouts, probes.
        tokio::time::sleep(Duration::from_millis(700).saturating_sub(faulty.elapsed())).await;
    } else {
        load.answered("the store goes on", &[Source::Store], 250);
    }
    let repair_began = Instant::now();
    repair(store).await;
    let repaired = Instant::now();
    load.answered("the store answers again", &[Source::Store], 1);
    load.refused();
    load.state.fresh.store(false, Ordering::SeqCst);
    load.refused();
    let seen = load.stop().await;

    let of = |kind: usize| seen.iter().filter(move |seen| seen.kind == kind);
    // A fault without an outage is measured while it happens.
    let (from, to) = if expect.away { (faulty, repair_began) } else { (fault_began, repaired) };
    let meanwhile = |kind| of(kind).filter(|seen| seen.began >= from && seen.ended() <= to);
    let passes = |seen: &&Seen| seen.admitted;
    for (kind, fresh) in [ALLOW, DENY, LOCAL].into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let passed = || of(kind).filter(passes).filter(move |seen| seen.by == Source::Store && seen.fresh == fresh);
        let most = match expect.forgets {
            true => {
                let before = passed().filter(|seen| seen.ended() < fault_began).count();
                before
                    .max(passed().filter(|seen| seen.began > faulty).count())
                    .max(passed().count().saturating_sub(LIMIT as usize))
            }
            false => passed().count(),
        };
        assert!(most <= LIMIT as usize, "the store admitted {most} of {LIMIT}");
        let unknown = of(kind).filter(|seen| seen.fresh == fresh && seen.by != Source::Store).count();
        let used = of(kind).any(|seen| seen.fresh == fresh);
        assert!(!used || passed().count() + unknown >= LIMIT as usize, "the store refuses units that were not used");
    }
    assert!(of(ALLOW).all(|seen| seen.by != Source::Fallback && (seen.by == Source::Store || seen.admitted)), "allow");
    assert!(of(DENY).all(|seen| seen.by != Source::Fallback && (seen.by == Source::Store || !seen.admitted)), "deny");
    assert!(of(LOCAL).chain(of(FLOW)).all(|seen| seen.by != Source::Policy), "local always decides");
    let policy = |kind| meanwhile(kind).filter(|seen| seen.by != Source::Store).count();
    let fallback_passes =
        |fresh| of(LOCAL).filter(passes).filter(move |seen| seen.by == Source::Fallback && seen.fresh == fresh);
    let local =
        fallback_passes(!expect.known).filter(|seen| seen.began >= fault_began && seen.ended() <= repair_began).count();
    if expect.away {
        assert!(local <= SHARE as usize, "the fallback admitted {local} of {SHARE}");
        assert!(fallback_passes(!expect.known).count() > 0, "the fallback keeps a limit of its own");
        assert!(policy(LOCAL) > local, "the fallback refuses the others");
    }
    let longest =
        seen.iter().filter(|seen| seen.ended() >= fault_began).map(|seen| seen.took).max().expect("decisions");
    assert!(longest < MAX_DECISION_TIME, "a decision took {longest:?}");
    let mut waits: Vec<Duration> = (0..4).flat_map(meanwhile).map(|seen| seen.took).collect();
    waits.sort_unstable();
    let half = waits.get(waits.len() / 2).copied().unwrap_or_default();
    assert!(
        !expect.away || half < MAX_MEDIAN_TIME,
        "half of all decisions took {half:?}: requests wait for a store that is away"
    );
    let returned = |kind| {
        let back = of(kind).filter(|seen| seen.by == Source::Store && seen.began >= repair_began);
        back.map(Seen::ended).min().expect("it answers")
    };
    let recovery = (0..4).map(returned).max().expect("four kinds").saturating_duration_since(repaired);
    assert!(recovery < MAX_RECOVERY_TIME, "it took {recovery:?} to recover");

    let over: usize = [false, true]
        .map(|fresh| of(LOCAL).filter(passes).filter(|seen| seen.fresh == fresh).count().saturating_sub(LIMIT as usize))
        .iter()
        .sum();
    let (moment, answers) = (fault.to_owned(), (0..4).map(|kind| meanwhile(kind).count()).sum());
    let (by_policy, recovery) = ((0..4).map(policy).sum(), expect.away.then_some(recovery));
    Row { moment, by_policy, answers, over, leaked: None, longest, recovery }.print();
    seen
}

async fn until_connected(stores: &Stores) {
    let began = Instant::now();
    while !stores.answers(0).await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "the store never answers");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Settings with this timeout and one other instance.
fn settings(timeout: Duration) -> SharedSettings {
    let queue = QueueSettings { timeout, ..QueueSettings::default() };
    SharedSettings { queue, instances: 2, ..SharedSettings::new("main") }
}

/// The default timeout: 10 ms.
fn in_time() -> SharedSettings {
    settings(QueueSettings::default().timeout)
}

fn on(port: u16) -> StoreHandle {
    in_redis(in_time(), &at(port))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_killed_and_starts_again_empty() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut server) = Redis::start() else { return };
    let handle = on(server.port);
    check_fault(
        "kill -9",
        &mut server,
        handle,
        AWAY_AND_FORGETS,
        async |server| server.kill(),
        async |server| server.restart(),
    )
    .await;
}

/// Weaknesses R18, A9: every caller waits for a store that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_frozen_and_goes_on() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut server) = Redis::start() else { return };
    let handle = on(server.port);
    check_fault(
        "SIGSTOP and CONT",
        &mut server,
        handle,
        AWAY,
        async |server| server.freeze(),
        async |server| server.thaw(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_refused() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let mut proxy = Proxy::to(server.port);
    let handle = on(proxy.port);
    check_fault(
        "connection refused",
        &mut proxy,
        handle,
        AWAY,
        async |proxy| proxy.refuse(),
        async |proxy| proxy.heal(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_loses_everything_that_is_sent() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let mut proxy = Proxy::to(server.port);
    let handle = on(proxy.port);
    check_fault("packets lost", &mut proxy, handle, AWAY, async |proxy| proxy.blackhole(), async |proxy| proxy.heal())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_slow() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    let mut proxy = Proxy::to(server.port);
    let handle = on(proxy.port);
    let slow = async |proxy: &mut Proxy| proxy.delay(Duration::from_millis(50));
    check_fault("slow store, 50 ms", &mut proxy, handle, AWAY, slow, async |proxy| proxy.heal()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_out_of_memory() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut server) = Setup::redis().map(|setup| setup.line("maxmemory-policy noeviction").start()) else {
        return;
    };
    let handle = on(server.port);
    let full = async |server: &mut Redis| server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let room = async |server: &mut Redis| server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    check_fault("out of memory", &mut server, handle, AWAY, full, room).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_becomes_a_replica_and_a_primary_again() {
    let _alone = crate::MACHINE.write().await;
    let Some(setup) = Setup::redis() else { return };
    let primary = setup.clone().start();
    let replica = setup.replica_of(&primary).start();
    replica.synced();
    let handle = on(primary.port);
    let demote = async |(primary, replica): &mut (Redis, Redis)| {
        // The replica has all counters, so nothing is forgotten.
        primary.followed_by(replica);
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        primary.ask::<()>(&["REPLICAOF", "127.0.0.1", &replica.port.to_string()]);
    };
    let promote = async |(primary, _): &mut (Redis, Redis)| {
        primary.synced();
        primary.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    };
    check_fault("read-only replica", &mut (primary, replica), handle, AWAY, demote, promote).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_changed_and_changed_back() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Setup::redis().map(|setup| setup.password("secret").start()) else { return };
    let credentials = Credentials { user: None, password: Some(Password::new("secret")) };
    let handle = in_redis(in_time(), &RedisSettings { credentials, ..at(server.port) });
    // An authenticated connection stays authenticated.
    let mut inside = server.connection().expect("it is let in");
    let run = |inside: &mut redis::Connection, words: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).exec(inside).expect("it is done");
    };
    let change = async |inside: &mut redis::Connection| {
        run(inside, &["CONFIG", "SET", "requirepass", "another"]);
        run(inside, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    };
    let back = async |inside: &mut redis::Connection| run(inside, &["CONFIG", "SET", "requirepass", "secret"]);
    check_fault("wrong password", &mut inside, handle, AWAY, change, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_flushed() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut server) = Redis::start() else { return };
    let handle = on(server.port);
    let flush = async |server: &mut Redis| {
        for _ in 0..20 {
            server.ask::<()>(&["SCRIPT", "FLUSH", "SYNC"]);
        }
    };
    check_fault("SCRIPT FLUSH, 20 times", &mut server, handle, STAYS, flush, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_flushed() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut server) = Redis::start() else { return };
    let handle = on(server.port);
    check_fault("FLUSHALL", &mut server, handle, FORGETS, async |server| server.ask::<()>(&["FLUSHALL"]), async |_| {})
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_replace_a_primary_that_is_killed() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut servers) = Sentinel::start() else { return };
    let sentinels = servers.ports().into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port)).collect();
    let (master, credentials) = (sentinel::NAME.to_owned(), Credentials::default());
    let topology = Topology::Sentinel { sentinels, master, credentials };
    let handle = in_redis(in_time(), &RedisSettings::new(topology));
    let kill = async |all: &mut Sentinel| {
        // A promoted replica has all counters.
        all.servers[1..].iter().for_each(|replica| all.servers[0].followed_by(replica));
        all.servers[0].kill();
    };
    let promoted = async |all: &mut Sentinel| assert_ne!(all.promoted(0), 0);
    check_fault("Sentinel failover", &mut servers, handle, AWAY, kill, promoted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_a_cluster_move_to_other_nodes() {
    let _alone = crate::MACHINE.write().await;
    let Some(mut cluster) = Cluster::start(3, 0) else { return };
    let nodes = cluster.ports().into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port)).collect();
    let settings = SharedSettings { partitioned: true, ..in_time() };
    let handle = in_redis(settings, &RedisSettings::new(Topology::Cluster(nodes)));
    // The partitions of all counters, before and after.
    let kinds = [ALLOW, DENY, LOCAL, FLOW].into_iter();
    let partitions = kinds.flat_map(|kind| [false, true].map(|fresh| check_of(kind, fresh).counter.partition()));
    let slots: BTreeSet<u16> = partitions.map(|partition| cluster.slot_of_partition(partition)).collect();
    let owners = slots.into_iter().map(|slot| (slot, cluster.owner(slot, 0).expect("the slot has an owner")));
    let owners: Vec<(u16, usize)> = owners.collect();
    let each = |cluster: &Cluster, round: usize, step: fn(&Cluster, u16, usize, usize)| {
        owners.iter().for_each(|(slot, owner)| step(cluster, *slot, (owner + round) % 3, (owner + round + 1) % 3));
    };
    // First a complete move. Then a move stays open for a while: a node answers with a redirect for keys that it does
    // not have.
    let open = async |cluster: &mut Cluster| {
        each(cluster, 0, Cluster::move_slot);
        each(cluster, 1, Cluster::begin_move);
    };
    let close = async |cluster: &mut Cluster| {
        each(cluster, 1, Cluster::move_keys);
        each(cluster, 1, Cluster::end_move);
    };
    check_fault("Cluster resharding", &mut cluster, handle, STAYS, open, close).await;
}

/// A clock that can be set wrong by some seconds.
#[derive(Clone)]
struct Skewed {
    right: SystemClock,
    by: Arc<AtomicI64>,
}

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        let by = self.by.load(Ordering::SeqCst) * 1_000_000;
        Timestamp::from_micros(self.right.now().micros().saturating_add_signed(by))
    }
}

/// Three instances on one store, one of them with a wrong clock.
async fn a_clock_goes_wrong(fault: &str, seconds: i64, handle: impl Fn() -> StoreHandle) {
    let mut clock = Skewed { right: SystemClock::new(), by: Arc::default() };
    let wrong = Arc::new(Instance { stores: Stores::of([handle()]), clock: Box::new(clock.clone()) });
    let instances = [Instance::with(handle()), wrong, Instance::with(handle())];
    let by = async |clock: &mut Skewed| clock.by.store(seconds, Ordering::SeqCst);
    let right = async |clock: &mut Skewed| clock.by.store(0, Ordering::SeqCst);
    let seen = check_fault_on_all(fault, &mut clock, &instances, STAYS, by, right).await;
    // All instances report the same reset, which the last admitted request has set.
    for (kind, fresh) in (0..4).flat_map(|kind| [(kind, false), (kind, true)]) {
        let by_store =
            || seen.iter().filter(|seen| seen.by == Source::Store && (seen.kind, seen.fresh) == (kind, fresh));
        let moments = || by_store().map(Seen::empty_at);
        let (first, last) = (moments().min().expect("answers"), moments().max().expect("answers"));
        assert!(last - first < Duration::from_secs(20), "the resets are {:?} apart", last - first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_one_instance_is_ahead_and_then_behind() {
    let _alone = crate::MACHINE.write().await;
    let Some(server) = Redis::start() else { return };
    a_clock_goes_wrong("one of three clocks 30 s ahead", 30, || on(server.port)).await;
    server.ask::<()>(&["FLUSHALL"]);
    a_clock_goes_wrong("one of three clocks 700 s behind", -700, || on(server.port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_one_instance_is_ahead_and_then_behind_on_a_postgres() {
    let _alone = crate::MACHINE.write().await;
    let Some((server, database)) = counters() else { return };
    a_clock_goes_wrong("one of three clocks 30 s ahead, PostgreSQL", 30, || in_a_postgres(&server, &database)).await;
    let database = server.database();
    let handle = || in_a_postgres(&server, &database);
    a_clock_goes_wrong("one of three clocks 700 s behind, PostgreSQL", -700, handle).await;
}

/// A PostgreSQL with a database for counters.
fn counters() -> Option<(Postgres, String)> {
    let server = postgres::Setup::new()?.start();
    let database = server.database();
    Some((server, database))
}

/// A longer deadline: 200 callers share the commits of one disk.
fn in_a_postgres(server: &Postgres, database: &str) -> StoreHandle {
    in_postgres(settings(Duration::from_millis(100)), &in_process::postgres(server.url(database)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_is_killed_and_starts_again() {
    let _alone = crate::MACHINE.write().await;
    let Some((mut server, database)) = counters() else { return };
    let handle = in_a_postgres(&server, &database);
    check_fault(
        "PostgreSQL restart",
        &mut server,
        handle,
        AWAY,
        async |server| server.kill(),
        async |server| server.restart(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_session_holds_the_rows() {
    let _alone = crate::MACHINE.write().await;
    let Some((server, database)) = counters() else { return };
    let handle = in_a_postgres(&server, &database);
    let (mut client, connection) = tokio_postgres::connect(&server.url(&database), NoTls).await.expect("it is let in");
    tokio::spawn(connection);
    let lock = async |client: &mut tokio_postgres::Client| {
        client.batch_execute("BEGIN; SELECT * FROM tollgate.counters_v1 FOR UPDATE").await.expect("the rows are there");
    };
    let unlock =
        async |client: &mut tokio_postgres::Client| client.batch_execute("ROLLBACK").await.expect("they are free");
    check_fault("rows locked by another session", &mut client, handle, KNOWN_AWAY, lock, unlock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_has_no_connection_left() {
    let _alone = crate::MACHINE.write().await;
    let Some((server, database)) = counters() else { return };
    let handle = in_a_postgres(&server, &database);
    let user = postgres::USER;
    let full = async |server: &mut Postgres| {
        server.execute("postgres", &format!("ALTER ROLE {user} CONNECTION LIMIT 0"));
        let all = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'");
        server.execute("postgres", &all);
    };
    let room =
        async |server: &mut Postgres| server.execute("postgres", &format!("ALTER ROLE {user} CONNECTION LIMIT -1"));
    check_fault("no connection left", &mut { server }, handle, AWAY, full, room).await;
}

#[tokio::test]
async fn semantics_15_a_definite_refusal_beats_a_store_error() {
    let nobody = in_redis(in_time(), &at(ports::free()));
    let stores = Stores::of([nobody, StoreHandle::Memory(MemorySettings::default())]);
    let far = Limiter { on_store_error: OnStoreError::Deny, ..quota("far", 1, secs(3600), bucket(None)) };
    let near = Limiter { store: 1, ..quota("near", 1, secs(3600), bucket(None)) };
    let rules = vec![
        rule("near", &[("path", "/near")], Action::Apply(vec![apply("near", &["account"])])),
        rule(
            "both",
            &[("path", "/both")],
            Action::Apply(vec![apply("far", &["account"]), apply("near", &["account"])]),
        ),
    ];
    let (stores_named, limiters) = (vec!["shared".to_owned(), "here".to_owned()], vec![far, near]);
    let rules = Rules::compile(RuleBook { stores: stores_named, limiters, rules, ..RuleBook::default() });
    let rules = rules.expect("the book compiles");
    let engine = Engine::new(rules, stores, Arc::new(SystemClock::new()));
    let refused = async |path: &str| {
        let descriptors = [Descriptor::of([("path", path), ("account", "a")])].into_iter().collect();
        let decision = engine.decide(&Request { domain: DOMAIN, descriptors }).await;
        decision.refusal().map(|refusal| (refusal.reason, refusal.limiter.map(str::to_owned)))
    };
    let by = |reason, limiter: &str| Some((reason, Some(limiter.to_owned())));
    assert_eq!(refused("/both").await, by(Reason::StoreError, "far"));
    assert_eq!(refused("/near").await, None, "what the store could not decide charged nothing");
    assert_eq!(refused("/both").await, by(Reason::Limit, "near"));
}

#[test]
fn readiness_follows_a_store_that_is_required() {
    let Some(server) = Redis::start() else { return };
    for (unready_after, follows) in [("300ms", true), ("off", false)] {
        readiness_follows(&Proxy::to(server.port), unready_after, follows);
        server.ask::<()>(&["FLUSHALL"]);
    }
}

fn readiness_follows(proxy: &Proxy, unready_after: &str, follows: bool) {
    proxy.refuse();
    let toml = format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\nengine = 'redis'\n\
         url = 'redis://127.0.0.1:{}'\nrequired = true\nunready_after = '{unready_after}'\n\n[limiters.limiter]\nalgorithm = 'sliding_window'\nlimit = 1\n\
         window = '1h'\n\n[[rules]]\ndomain = 'edge'\nname = 'all'\napply = [{{ limiter = 'limiter' }}]\n\n\
         [authz]\ndomain = 'edge'\n",
        proxy.port
    );
    let served = Served::start(&toml, &[]);
    let port = |address: &str| address.rsplit_once(':').expect("a port").1.parse().expect("a number");
    let status = |path: &str| Ask::get(path).send(port(&served.admin)).expect("it answers").status;
    assert_eq!((status("/livez"), status("/readyz")), (200, 503));
    // Requests during the outage are decided by policy, here locally.
    let decide = || served.ask("GET /authz/envoy/", "");
    assert_eq!((decide(), decide(), status("/readyz")), (200, 429, 503));
    proxy.heal();
    until("it is ready", || status("/readyz") == 200);
    // Without a request.
    proxy.refuse();
    if follows {
        until("it is not ready", || status("/readyz") == 503);
        assert_eq!((decide(), status("/livez")), (429, 200), "it decides all the same");
        proxy.heal();
        until("it is ready again", || status("/readyz") == 200);
        // A server that accepts connections and says nothing.
        proxy.blackhole();
        until("it is not ready", || status("/readyz") == 503);
        proxy.heal();
        until("it is ready again", || status("/readyz") == 200);
    } else {
        until("decisions no longer wait for the store", || {
            assert_eq!(decide(), 429);
            served.metric("tollgate_store_suspended{store=\"main\"}") == 1.0
        });
        assert_eq!(status("/readyz"), 200, "an outage does not take all instances out");
    }
}
