//! Redis Cluster fulfils the contract where counters share a partition, and never admits too much where they do not;
//! hash slots move, replicas are promoted and nodes crash while decisions are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, LeaseStatus, Limit, OnStoreError, SlidingCounter, SlidingWindow,
    TokenBucket,
};
use tollgate::plan::{Applied, Charges, Check, CounterName, Fault, HoldAction, HoldChange, LeaseAction, Needs, Plan};
use tollgate::store::{
    Address, Backend, Credentials, Password, QueueSettings, Redis, RedisSettings, SharedSettings, SharedStore,
    StoreHandle, Stores, Topology,
};
use tollgate::tls::{ClientCertificate, PemFile, TlsSettings};

use super::redis::HOLDS;
use super::redis_client::{one, plan};
use super::undone::as_is_undone;
use crate::support::processes::redis::Setup;
use crate::support::processes::{self, Cluster, until};
use crate::support::reference::plans::{ANYTHING, Reference, SECOND, START, Scope, always, plans};

const HOUR: u64 = 3_600 * SECOND;

/// A timeout that only a hang reaches.
const LONG: Duration = Duration::from_secs(20);

fn settings(cluster: &Cluster) -> RedisSettings {
    let seeds = cluster.ports().into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port));
    RedisSettings::new(Topology::Cluster(seeds.collect()))
}

/// A cluster whose nodes have all answered.
async fn connected(settings: &RedisSettings) -> Redis {
    let redis = Redis::new(settings).expect("its files can be read");
    for lane in 0..redis.lanes() {
        let begun = Instant::now();
        while let Err(fault) = redis.probe_lane(lane).await {
            assert!(begun.elapsed() < LONG, "part {lane} does not answer: {fault}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    redis
}

/// A cluster as requests use it.
async fn stores(cluster: &Cluster, deadline: Duration) -> Stores {
    stores_of(connected(&settings(cluster)).await, deadline)
}

fn stores_of(redis: Redis, deadline: Duration) -> Stores {
    let queue = QueueSettings { timeout: deadline, ..QueueSettings::default() };
    let shared = SharedSettings { queue, partitioned: true, ..SharedSettings::new("cluster") };
    Stores::of([StoreHandle::Shared(Arc::new(SharedStore::new(shared, redis)))])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
}

/// A counter in this partition.
fn in_partition(partition: u16, number: u64) -> CounterName {
    CounterName([0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1), number << 16 | u64::from(partition)])
}

/// The first partition on each of the nodes.
fn partition_of_each_node<const N: usize>(cluster: &Cluster) -> [u16; N] {
    let of_node =
        |node| (0..=u16::MAX).find(|&partition| cluster.owner(cluster.slot_of_partition(partition), 0) == Some(node));
    std::array::from_fn(|node| of_node(node).expect("every primary has slots"))
}

fn bucket(limit: u32) -> Limit {
    Limit::TokenBucket(TokenBucket::new(1, 24 * HOUR, limit, 0).expect("it can be held"))
}

fn log(limit: u32) -> Limit {
    Limit::SlidingWindow(SlidingWindow { limit, window: HOUR })
}

fn slots(max: u32) -> Limit {
    Limit::Concurrency(Concurrency { max, lease: HOUR })
}

/// A limit of each algorithm; none frees units while a test runs.
fn of_each_algorithm(limit: u32) -> [Limit; 5] {
    let fixed = FixedWindow { limit, alignment: Alignment::FirstHit(HOUR) };
    let pair = SlidingCounter { limit, window: 24 * HOUR };
    [bucket(limit), log(limit), Limit::SlidingCounter(pair), Limit::FixedWindow(fixed), slots(limit)]
}

fn same(place: &str, expected: &Applied, found: &Applied) {
    assert_eq!(found.admitted, expected.admitted, "verdict of {place}");
    assert_eq!(found.answers, expected.answers, "answers of {place}");
    assert_eq!(found.statuses.len(), expected.statuses.len(), "statuses of {place}");
    for (found, expected) in found.statuses.iter().zip(&expected.statuses) {
        // A store may have forgotten an expired lease.
        let forgotten = (*found, *expected) == (LeaseStatus::Unknown, LeaseStatus::Expired);
        assert!(found == expected || forgotten, "status of {place}: {found:?}, expected {expected:?}");
    }
}

/// Gives the counters of a plan other names, in the first store.
fn rename(plan: &mut Plan, name: impl Fn(CounterName) -> CounterName) {
    plan.checks.iter_mut().for_each(|check| (check.store, check.counter) = (0, name(check.counter)));
    plan.changes.iter_mut().for_each(|change| (change.store, change.counter) = (0, name(change.counter)));
    let change = |change: &HoldChange| HoldChange { store: 0, counter: name(change.counter), ..*change };
    plan.holds = plan.holds.iter().map(change).collect();
}

/// Runs of 250 plans, decided by the cluster and by `advance`, answer by answer. `prepare` gets the number of the run.
fn step_by_step(runs: u32, scope: Scope, prepare: impl Fn(u32, &mut Plan)) {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let (runtime, done) = (runtime(), AtomicU32::new(0));
    let clock = ManualClock::at(START);
    let stores = runtime.block_on(async {
        let redis = connected(&settings(&cluster)).await;
        stores_of(redis.with_clock(Arc::new(clock.clone())), LONG)
    });
    always(runs, plans(scope, 250), |steps| {
        let run = done.fetch_add(1, Ordering::Relaxed);
        let (mut reference, mut now) = (Reference::default(), START);
        runtime.block_on(async {
            for (number, (by, plan)) in steps.iter().enumerate() {
                now = Timestamp::from_micros(now.micros().saturating_add_signed(*by));
                let mut plan = plan.clone();
                rename(&mut plan, |CounterName([first, second])| CounterName([first | u64::from(run) << 32, second]));
                prepare(run, &mut plan);
                let expected = reference.apply(&plan, now);
                // Undos are executed before the plan is answered: none is left for the next time.
                clock.set(now);
                same(&format!("plan {number} of run {run}: {plan:?}"), &expected, &stores.apply(&plan, now).await);
            }
        });
    });
}

/// Puts the counters of a plan into one partition, another one in each run, and so in another hash slot.
fn together(run: u32, plan: &mut Plan) {
    let partition = u64::from((run as u16).wrapping_mul(40_503));
    rename(plan, |CounterName([first, second])| CounterName([first, second & !0xffff | partition]));
}

#[test]
fn a_cluster_keeps_the_contract_where_counters_share_a_partition() {
    step_by_step(400, ANYTHING, together);
}

#[test]
fn semantics_37_to_42_a_cluster_keeps_the_contract_of_holds_where_counters_share_a_partition() {
    step_by_step(40, HOLDS, together);
}

#[test]
fn a_plan_over_many_slots_is_decided_as_if_they_were_one() {
    // As in the tests of compensation: the effect of an undone charge on a clock or on other numbers remains.
    let scope = Scope { backwards: false, changing: false, ..ANYTHING };
    step_by_step(400, scope, |_, plan| {
        plan.changes.clear();
        as_is_undone(plan);
    });
}

#[test]
fn semantics_43_a_plan_that_holds_over_many_slots_is_decided_as_if_they_were_one() {
    let leases = AtomicU32::new(0);
    let scope = Scope { backwards: false, changing: false, ..HOLDS };
    step_by_step(25, scope, |_, plan| {
        // Several renewals, and looks with what is charged after them, are one step in each slot; the reference has one. A
        // call that would look takes what it takes under a lease of its own.
        let looks_at_slots = plan.changes.iter().any(|change| change.action == LeaseAction::Look);
        if looks_at_slots || plan.holds.iter().any(|change| change.action == HoldAction::Look) {
            plan.lease = LeaseId(1 << 100 | u128::from(leases.fetch_add(1, Ordering::Relaxed)));
        }
        plan.changes.clear();
        plan.holds =
            plan.holds.iter().filter(|change| matches!(change.action, HoldAction::Settle(_))).copied().collect();
        as_is_undone(plan);
    });
}

/// Sends 500 requests at once, each with its own lease. Returns how many were admitted, and whether all were answered.
async fn five_hundred(stores: &Arc<Stores>, checks: &[Check]) -> (u32, bool) {
    let callers = (0..500).map(|lease| {
        let (stores, plan) = (stores.clone(), Plan { lease: LeaseId(lease), ..plan(checks.iter().copied()) });
        tokio::spawn(async move { stores.apply(&plan, START).await })
    });
    let mut admitted = 0;
    let mut answered = true;
    for caller in callers.collect::<Vec<_>>() {
        let applied = caller.await.expect("it decides");
        admitted += u32::from(applied.admitted);
        answered &= applied.answers.iter().all(Result::is_ok);
    }
    (admitted, answered)
}

/// The units left of a check's counter.
async fn left(stores: &Stores, check: Check) -> u32 {
    let look = Check { needs: Needs::default(), charges: Charges::default(), ..check };
    stores.apply(&plan([look]), START).await.answers[0].expect("it answers").remaining
}

#[test]
fn of_500_callers_on_a_limit_of_10_a_partition_admits_10_and_several_never_more() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let runtime = runtime();
    runtime.block_on(async {
        let stores = Arc::new(stores(&cluster, LONG).await);
        let partitions: [u16; 3] = partition_of_each_node(&cluster);
        for (number, limit) in (0..).zip(of_each_algorithm(10)) {
            let alone = [one(in_partition(partitions[number as usize % 3], 100 + number), limit)];
            assert_eq!(five_hundred(&stores, &alone).await, (10, true), "{limit:?} alone");

            let on_first_node = |part: u64, limit| one(in_partition(partitions[0], 1_000 + 10 * number + part), limit);
            let together = [on_first_node(0, limit), on_first_node(1, bucket(10)), on_first_node(2, log(700))];
            assert_eq!(five_hundred(&stores, &together).await, (10, true), "{limit:?} with others of its partition");
            assert_eq!(left(&stores, together[2]).await, 690, "{limit:?}: refusals charge nothing");

            let apart = [0, 1, 2].map(|part| {
                let limit = if part == number as usize % 3 { limit } else { bucket(10 + part as u32) };
                one(in_partition(partitions[part], 2_000 + 10 * number + part as u64), limit)
            });
            let (admitted, answered) = five_hundred(&stores, &apart).await;
            eprintln!("{limit:?} over three slots: {admitted} of 10");
            assert!(answered && (1..=10).contains(&admitted), "{limit:?} over three slots: {admitted}");
            for check in apart {
                let holds = if let Limit::TokenBucket(bucket) = check.limit { bucket.burst() } else { 10 };
                assert_eq!(left(&stores, check).await, holds - admitted, "{limit:?}: what was refused was given back");
            }
        }
    });
}

#[test]
fn d11_a_rule_with_a_rate_and_concurrency_works_on_a_cluster() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    runtime().block_on(async {
        let stores = stores(&cluster, LONG).await;
        let [first, second]: [u16; 2] = partition_of_each_node(&cluster);
        for (number, apart) in [first, second].into_iter().enumerate() {
            let rate = one(in_partition(first, 10 + number as u64), bucket(5));
            let held = one(in_partition(apart, 20 + number as u64), slots(2));
            let ask = async |lease| stores.apply(&Plan { lease: LeaseId(lease), ..plan([rate, held]) }, START).await;
            assert!(ask(1).await.admitted && ask(2).await.admitted);
            let third = ask(3).await;
            assert!(!third.admitted, "two hold the slots");
            let answer = |number: usize| third.answers[number].expect("every slot answers");
            assert!(answer(0).passes && !answer(1).passes);
            assert_eq!(answer(0).remaining, 3, "the rate was not charged for a refusal");
            let release = tollgate::plan::LeaseChange {
                counter: held.counter,
                store: 0,
                lease: LeaseId(1),
                action: LeaseAction::Release,
            };
            let release = Plan { changes: [release].into_iter().collect(), ..Plan::default() };
            assert_eq!(stores.apply(&release, START).await.statuses[0], LeaseStatus::Done);
            assert!(ask(4).await.admitted);
            assert_eq!((left(&stores, rate).await, left(&stores, held).await), (2, 0));
        }
    });
}

#[test]
fn what_is_forgotten_counts_no_more() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    runtime().block_on(async {
        let stores = stores(&cluster, LONG).await;
        for (number, limit) in (0..).zip(of_each_algorithm(1)) {
            let check = one(in_partition(number as u16 * 7_001, number), limit);
            assert_eq!(stores.forget(0, check.counter).await, Ok(false));
            let first = Plan { lease: LeaseId(1), ..plan([check]) };
            let second = Plan { lease: LeaseId(2), ..plan([check]) };
            assert!(stores.apply(&first, START).await.admitted && !stores.apply(&second, START).await.admitted);
            assert_eq!(stores.forget(0, check.counter).await, Ok(true), "{limit:?}");
            assert!(stores.apply(&second, START).await.admitted, "{limit:?}");
        }
    });
}

#[test]
fn d13_the_script_is_loaded_again_where_a_node_forgot_it() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    runtime().block_on(async {
        let stores = stores(&cluster, LONG).await;
        let partitions: [u16; 3] = partition_of_each_node(&cluster);
        for expected in [9, 8, 7] {
            for partition in partitions {
                assert!(stores.apply(&plan([one(in_partition(partition, 1), bucket(10))]), START).await.admitted);
                assert_eq!(left(&stores, one(in_partition(partition, 1), bucket(10))).await, expected, "executed once");
            }
            cluster.nodes.iter().for_each(|node| node.ask::<()>(&["SCRIPT", "FLUSH"]));
        }
    });
}

/// Eight tasks that decide on some counters, one after the other, until this is dropped.
struct Load {
    counted: Arc<Vec<Counted>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Counted {
    check: Check,
    admitted: AtomicU32,
    refused: AtomicU32,
    faults: AtomicU32,
    /// The longest decision without a fault, in microseconds.
    longest: AtomicU64,
}

impl Counted {
    fn decisions(&self) -> u32 {
        self.admitted.load(Ordering::SeqCst) + self.refused.load(Ordering::SeqCst)
    }

    fn faults(&self) -> u32 {
        self.faults.load(Ordering::SeqCst)
    }
}

impl Load {
    /// Must be called within a runtime. A test that blocks on the result must leave the runtime a thread.
    fn begin(stores: &Arc<Stores>, checks: impl IntoIterator<Item = Check>) -> Self {
        let counted = |check| Counted {
            check: Check { on_store_error: OnStoreError::Deny, ..check },
            admitted: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            faults: AtomicU32::new(0),
            longest: AtomicU64::new(0),
        };
        let counted: Arc<Vec<Counted>> = Arc::new(checks.into_iter().map(counted).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let task = |task: u128| {
            let (stores, counted, stop) = (stores.clone(), counted.clone(), stop.clone());
            tokio::spawn(async move {
                let mut lease = task << 64;
                while !stop.load(Ordering::SeqCst) {
                    for counted in &*counted {
                        lease += 1;
                        let begun = Instant::now();
                        let applied =
                            stores.apply(&Plan { lease: LeaseId(lease), ..plan([counted.check]) }, START).await;
                        let took = begun.elapsed().as_micros() as u64;
                        let tally = match (applied.answers[0], applied.admitted) {
                            (Err(_), true) => panic!("the policy is to deny"),
                            (Err(_), false) => &counted.faults,
                            (Ok(_), true) => &counted.admitted,
                            (Ok(_), false) => &counted.refused,
                        };
                        if applied.answers[0].is_ok() {
                            counted.longest.fetch_max(took, Ordering::SeqCst);
                        }
                        tally.fetch_add(1, Ordering::SeqCst);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        };
        Self { tasks: (0..8).map(task).collect(), counted, stop }
    }

    /// Waits for decisions on this counter that begin after the call.
    fn decides(&self, number: usize) {
        let before = self.counted[number].decisions();
        // Eight may be in flight already.
        until("decisions are made", || self.counted[number].decisions() > before + 16);
    }

    async fn end(self) -> Arc<Vec<Counted>> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("it decides");
        }
        self.counted
    }
}

/// Ends a load when every counter is used up. Each must have admitted its limit, less the charges of calls that failed,
/// and no more than `over`.
fn used_up(runtime: &tokio::runtime::Runtime, load: Load, limit: u32, over: u32) {
    until("every counter is used up", || {
        let refuses = |counted: &Counted| counted.refused.load(Ordering::SeqCst) > 16;
        load.counted.iter().all(refuses)
    });
    for counted in &*runtime.block_on(load.end()) {
        let (admitted, faults) = (counted.admitted.load(Ordering::SeqCst), counted.faults());
        let Check { limit: numbers, .. } = counted.check;
        eprintln!("{admitted} admitted of {limit}, {faults} faults: {numbers:?}");
        assert!(admitted <= limit + over, "{admitted} admitted of {limit}: {numbers:?}");
        assert!(admitted + faults >= limit, "{admitted} admitted and {faults} faults of {limit}: {numbers:?}");
    }
}

#[test]
fn slots_move_while_decisions_are_made_and_no_limit_is_exceeded() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let runtime = runtime();
    let stores = Arc::new(runtime.block_on(stores(&cluster, Duration::from_secs(1))));
    let [first, second, _]: [u16; 3] = partition_of_each_node(&cluster);
    let _entered = runtime.enter();
    let checks = [first, second].into_iter().flat_map(|partition| {
        (0..).zip(of_each_algorithm(700)).map(move |(number, limit)| one(in_partition(partition, number), limit))
    });
    let load = Load::begin(&stores, checks);
    load.decides(0);
    for (partition, number, from, to) in
        [(first, 0, 0, 1), (second, 5, 1, 2), (first, 1, 1, 2), (second, 6, 2, 0), (first, 2, 2, 0)]
    {
        let slot = cluster.slot_of_partition(partition);
        cluster.begin_move(slot, from, to);
        load.decides(number);
        cluster.move_keys(slot, from, to);
        load.decides(number);
        cluster.end_move(slot, from, to);
        load.decides(number);
        load.decides(number + 1);
    }
    used_up(&runtime, load, 700, 0);
}

#[test]
fn a_decision_whose_keys_are_on_two_nodes_is_answered_by_policy_and_leaves_the_others_alone() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    runtime().block_on(async {
        let stores = stores(&cluster, LONG).await;
        let [partition, ..]: [u16; 3] = partition_of_each_node(&cluster);
        let other = (partition + 1..).find(|&other| {
            cluster.slot_of_partition(other) < 5_000
                && cluster.slot_of_partition(other) != cluster.slot_of_partition(partition)
        });
        let other = one(in_partition(other.expect("a node has many slots"), 3), bucket(1_000));
        let beside = Check { on_store_error: OnStoreError::Deny, ..other };
        let fails =
            |number| Check { on_store_error: OnStoreError::Deny, ..one(in_partition(partition, number), bucket(10)) };
        let both = plan([1, 2].map(fails));
        assert!(stores.apply(&both, START).await.admitted);
        let moved = cluster.slot_of_partition(partition);
        cluster.begin_move(moved, 0, 1);
        let keys: Vec<Vec<u8>> = cluster.nodes[0].ask(&["CLUSTER", "GETKEYSINSLOT", &moved.to_string(), "100"]);
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(cluster.nodes[1].port).arg(&keys[0]).arg(0).arg(5_000);
        migrate.exec(&mut cluster.nodes[0].connection().expect("the node is there")).expect("a key moves");
        for _ in 0..3 {
            let begun = Instant::now();
            let answers = stores.apply(&both, START).await.answers;
            assert!(answers.iter().all(|answer| *answer == Err(Fault::Script)), "{answers:?}");
            assert!(begun.elapsed() > Duration::from_millis(31), "it was tried again: {:?}", begun.elapsed());
            assert!(stores.apply(&plan([beside]), START).await.answers[0].is_ok(), "of the same node");
        }
        cluster.move_keys(moved, 0, 1);
        assert!(stores.apply(&both, START).await.admitted, "sent to the node that imports the slot");
        cluster.end_move(moved, 0, 1);
        assert!(stores.apply(&both, START).await.admitted);
        assert_eq!(left(&stores, both.checks[0]).await, 7, "what was tried again was executed once");
    });
}

#[test]
fn a_replica_is_promoted_while_decisions_are_made_and_no_limit_is_exceeded() {
    let Some(setup) = Setup::redis() else { return };
    // By default, the whole cluster refuses while a slot has no node, and for two more seconds.
    let mut cluster = Cluster::of(&setup.line("cluster-require-full-coverage no"), 3, 1);
    let runtime = runtime();
    let stores = Arc::new(runtime.block_on(stores(&cluster, Duration::from_secs(1))));
    let partitions: [u16; 3] = partition_of_each_node(&cluster);
    let _entered = runtime.enter();
    let of_node = |node: usize, limit| {
        (0..).zip(of_each_algorithm(limit)).map(move |(kind, limit)| one(in_partition(partitions[node], kind), limit))
    };
    let load = Load::begin(&stores, of_node(0, 500));
    load.decides(0);
    cluster.promote(3);
    load.decides(0);
    cluster.nodes[0].synced();
    cluster.promote(0);
    load.decides(0);
    used_up(&runtime, load, 500, 0);

    // A crash loses what had not been replicated: at most what eight callers had in flight.
    let load = Load::begin(&stores, of_node(1, 2_000));
    load.decides(0);
    let others = Load::begin(&stores, [0, 2].map(|node| one(in_partition(partitions[node], 50), bucket(50_000))));
    others.decides(0);
    let killed = Instant::now();
    cluster.nodes[1].kill();
    cluster.promoted(4);
    let promoted = killed.elapsed();
    load.decides(0);
    let resumed = killed.elapsed();
    eprintln!("promoted {promoted:?} after the crash, 17 decisions by {resumed:?}");
    used_up(&runtime, load, 2_000, 8);
    others.decides(0);
    for counted in &*runtime.block_on(others.end()) {
        assert_eq!(counted.faults(), 0, "of {} elsewhere", counted.decisions());
    }
}

#[test]
fn a_node_that_is_down_delays_no_slots_of_others() {
    let Some(setup) = Setup::redis() else { return };
    let mut cluster = Cluster::of(&setup.line("cluster-require-full-coverage no"), 3, 0);
    let runtime = runtime();
    let stores = Arc::new(runtime.block_on(stores(&cluster, Duration::from_secs(1))));
    let partitions: [u16; 3] = partition_of_each_node(&cluster);
    let _entered = runtime.enter();
    let check = |node: usize| one(in_partition(partitions[node], 1), bucket(50_000));
    let gone = |load: &Load| {
        let before = load.counted[0].faults();
        until("its slots are answered by policy", || load.counted[0].faults() > before + 100);
    };
    for (what, freezes) in [("frozen", true), ("killed", false)] {
        let load = Load::begin(&stores, [check(0)]);
        let others = Load::begin(&stores, [check(1), check(2)]);
        load.decides(0);
        others.decides(1);
        others.counted.iter().for_each(|counted| counted.longest.store(0, Ordering::SeqCst));
        if freezes {
            cluster.nodes[0].freeze();
        } else {
            cluster.nodes[0].kill();
        }
        gone(&load);
        // Longer than the other nodes take to notice that it is gone.
        let begun = Instant::now();
        until("a while has passed", || begun.elapsed() > Duration::from_secs(3));
        gone(&load);
        others.decides(0);
        // The fallback of the node is kept although the other nodes count.
        let local = one(in_partition(partitions[0], 2 + u64::from(freezes)), log(3));
        let mut admitted = 0;
        for lease in 0..6 {
            others.decides(1);
            let local = Plan { lease: LeaseId(lease), ..plan([local]) };
            admitted += u32::from(runtime.block_on(stores.apply(&local, START)).admitted);
        }
        assert_eq!(admitted, 3, "{what}: the fallback keeps the limit");
        if freezes {
            cluster.nodes[0].thaw();
        } else {
            cluster.nodes[0].restart();
        }
        let back = Instant::now();
        load.decides(0);
        eprintln!("{what}: 17 decisions {:?} after it was back", back.elapsed());
        for counted in &*runtime.block_on(others.end()) {
            let longest = Duration::from_micros(counted.longest.load(Ordering::SeqCst));
            eprintln!("{what}: {} decisions elsewhere, the longest {longest:?}", counted.decisions());
            assert_eq!(counted.faults(), 0, "{what}: of {}", counted.decisions());
        }
        drop(runtime.block_on(load.end()));
    }
}

#[test]
fn a_cluster_that_is_down_at_the_start_is_found_when_it_comes() {
    let Some(mut cluster) = Cluster::start(2, 0) else { return };
    cluster.nodes.iter_mut().for_each(processes::Redis::kill);
    runtime().block_on(async {
        let redis = Redis::new(&settings(&cluster)).expect("no file is read");
        let plan = plan([one(in_partition(0, 1), bucket(5))]);
        let begun = Instant::now();
        for answer in redis.execute(&[plan.clone(), plan.clone()]).await {
            assert_eq!(answer.err(), Some(Fault::Unreachable));
        }
        assert_eq!(redis.probe().await, Err(Fault::Unreachable));
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        cluster.nodes.iter_mut().for_each(processes::Redis::restart);
        let back = Instant::now();
        while redis.execute(std::slice::from_ref(&plan)).await[0].is_err() {
            assert!(back.elapsed() < LONG, "it is not found");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(redis.probe().await, Ok(()));
    });
}

#[test]
fn plans_of_one_call_keep_their_order_and_their_answers() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    runtime().block_on(async {
        let redis = connected(&settings(&cluster)).await.with_clock(Arc::new(ManualClock::at(START)));
        let counters = (0..64).map(|number: u16| in_partition(number / 2 % 16 * 4_001, u64::from(number % 2)));
        let plans: Vec<Plan> = counters.clone().map(|counter| plan([one(counter, bucket(10))])).collect();
        let answers = redis.execute(&plans).await;
        let mut counted: Vec<CounterName> = Vec::new();
        for (counter, answer) in counters.zip(answers) {
            let before = counted.iter().filter(|&&other| other == counter).count() as u32;
            let outcome = answer.expect("it answers").answers[0].expect("it answers");
            assert_eq!(outcome.remaining, 9 - before);
            counted.push(counter);
        }
    });
}

#[test]
fn a_cluster_with_tls_and_a_password_is_let_into() {
    let Some(setup) = Setup::redis() else { return };
    let cluster = Cluster::of(&setup.password("sesame").tls().line("tls-cluster yes"), 1, 0);
    let (port, files) = cluster.nodes[0].tls();
    let credentials = |password| Credentials { password: Some(Password::new(password)), ..Credentials::default() };
    let settings = RedisSettings {
        credentials: credentials("sesame"),
        tls: Some(TlsSettings {
            ca: Some(PemFile::read(&files.authority)),
            identity: Some(ClientCertificate {
                certificate: PemFile::read(&files.client),
                key: PemFile::read(&files.client_key),
            }),
            ..TlsSettings::default()
        }),
        ..RedisSettings::new(Topology::Cluster(vec![Address::Tcp("127.0.0.1".to_owned(), port)]))
    };
    runtime().block_on(async {
        let redis = connected(&settings).await;
        let answers = redis.execute(&[plan([one(in_partition(7, 7), bucket(5))])]).await;
        assert!(answers[0].as_ref().is_ok_and(|applied| applied.admitted));

        let stranger =
            Redis::new(&RedisSettings { credentials: credentials("barley"), ..settings }).expect("as before");
        let begun = Instant::now();
        while stranger.probe().await != Err(Fault::Denied) {
            assert!(begun.elapsed() < LONG, "{:?}", stranger.probe().await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn calls_of_a_cluster_are_futures_that_can_be_sent() {
    fn sendable<F: Future + Send>(_: &F) {}
    let _entered = runtime();
    let _guard = _entered.enter();
    let redis = Redis::new(&RedisSettings::new(Topology::Cluster(Vec::new()))).expect("no file is read");
    sendable(&redis.execute(&[]));
}
