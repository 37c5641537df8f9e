//! Several instances on one store, on real time: the configured number is the admitted number.
//!
//! Cases are named by their number in what the limiters before us got wrong: D (callers and failures), C (concurrency)
//! and H (headers). Those about the service run three real processes; those about every algorithm run three engines in
//! this process, each over connections of its own.

#[path = "model/book.rs"]
mod book;
#[expect(dead_code, reason = "each test binary uses its own part")]
mod served;
mod sharing;
#[expect(dead_code, unused_imports, reason = "only the servers of stores are started here")]
mod support;

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use book::{DOMAIN, applies, apply, bucket, quota, secs, slots};
use futures_util::future::join_all;
use served::{DOORS, Served, tollgate};
use sharing::{at, in_postgres, in_redis, patient};
use support::redis::Redis;
use support::{Answer, Ask, Cluster, Postgres, Proxy, ports, until};
use tollgate::clock::{Clock, ManualClock, SystemClock, Timestamp};
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::limiter::{Algorithm, LeaseFate, Limiter, OnStoreError, Schedule};
use tollgate::rules::{Rule, RuleBook, Rules};
use tollgate::store::{Address, Keeper, RedisSettings, SharedSettings, Stores, Topology};

const INSTANCES: usize = 3;
const TRIES: usize = 500;

/// No window of this length ends during a test that is not unlucky by a millionth.
const WINDOW: Duration = secs(86_400);

// Engines of this process.

/// A store that several instances count in: how each of them gets to it.
type Common<'a> = &'a dyn Fn(SharedSettings) -> Keeper;

/// Instances with the same rules on a common store, which answers.
async fn instances(
    common: Common<'_>,
    settings: &SharedSettings,
    limiters: &[Limiter],
    rules: &[Rule],
) -> Vec<Arc<Engine>> {
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(instance(common, settings, limiters, rules, Arc::new(SystemClock::new())).await);
    }
    instances
}

async fn instance(
    common: Common<'_>,
    settings: &SharedSettings,
    limiters: &[Limiter],
    rules: &[Rule],
    clock: Arc<dyn Clock>,
) -> Arc<Engine> {
    // A store that cannot answer is not to be answered for unseen.
    let limiters = limiters.iter().map(|limiter| Limiter { on_store_error: OnStoreError::Deny, ..limiter.clone() });
    let book = RuleBook { limiters: limiters.collect(), rules: rules.to_vec(), ..RuleBook::default() };
    let stores = Stores::of([common(settings.clone())]);
    let engine = Engine::new(Rules::compile(book).expect("the book compiles"), stores, clock);
    let began = Instant::now();
    while !engine.in_use().stores.answers(0).await {
        assert!(began.elapsed() < support::PATIENCE, "the store never answers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Arc::new(engine)
}

async fn decide(engine: &Engine, account: &str) -> tollgate::decision::Decision {
    let descriptors = [Descriptor::of([("account", account)])].into_iter().collect();
    engine.decide(&Request { domain: DOMAIN, descriptors }).await
}

/// Lets 500 requests go at one moment, over all instances, and counts those that pass.
async fn stampede(instances: &[Arc<Engine>]) -> usize {
    let start = Arc::new(tokio::sync::Barrier::new(TRIES));
    let request = |number: usize| {
        let (engine, start) = (instances[number % instances.len()].clone(), start.clone());
        tokio::spawn(async move {
            start.wait().await;
            let decision = decide(&engine, "a").await;
            let answers = &decision.applied().answers;
            assert!(answers.iter().all(Result::is_ok), "the store did not decide: {answers:?}");
            decision.allowed()
        })
    };
    let all: Vec<_> = (0..TRIES).map(request).collect();
    join_all(all).await.into_iter().filter(|allowed| *allowed.as_ref().expect("no request panics")).count()
}

/// Requests one after the other until one is refused: what was left.
async fn left(instances: &[Arc<Engine>]) -> usize {
    let mut passed = 0;
    while decide(&instances[passed % instances.len()], "a").await.allowed() {
        passed += 1;
        assert!(passed < TRIES, "there is no limit");
    }
    passed
}

fn of_each_algorithm(name: &str, limit: u32) -> Vec<Limiter> {
    let algorithms = [
        bucket(None),
        Algorithm::SlidingWindow,
        Algorithm::SlidingCounter,
        Algorithm::FixedWindow(Schedule::Epoch),
        Algorithm::FixedWindow(Schedule::FirstHit),
    ];
    let quotas = algorithms.into_iter().map(|algorithm| quota(name, limit, WINDOW, algorithm));
    quotas.chain([slots(name, limit, WINDOW)]).collect()
}

async fn five_hundred_admit_ten(common: Common<'_>) {
    for (number, limiter) in of_each_algorithm("", 10).into_iter().enumerate() {
        // Each its own counters in the same store.
        let limiter = Limiter { name: format!("limiter{number}"), ..limiter };
        let rules = [applies("all", [apply(&limiter.name, &["account"])])];
        let kind = format!("{:?} {:?}", limiter.quota, limiter.concurrency);
        let instances = instances(common, &patient(), &[limiter], &rules).await;
        assert_eq!(stampede(&instances).await, 10, "{kind}");
    }
}

async fn composites_admit_their_smallest(common: Common<'_>, settings: &SharedSettings, whole: bool) {
    for (number, limiter) in of_each_algorithm("", 10).into_iter().enumerate() {
        let [account, all, running] = ["account", "all", "running"].map(|name| format!("{name}{number}"));
        let limiters = [
            Limiter { name: account.clone(), ..limiter },
            quota(&all, 12, WINDOW, bucket(None)),
            slots(&running, 11, WINDOW),
        ];
        let applied = [apply(&all, &[]), apply(&account, &["account"]), apply(&running, &[])];
        let instances = instances(common, settings, &limiters, &[applies("all", applied)]).await;
        let passed = stampede(&instances).await;
        assert!(passed <= 10, "{passed} passed");
        match whole {
            true => assert_eq!(passed, 10),
            // What was charged in one place and refused in another was taken back, so that nothing is lost.
            false => assert_eq!(passed + left(&instances).await, 10),
        }
        let decision = decide(&instances[0], "b").await;
        let left: Vec<u32> = decision.counted().map(|counted| counted.remaining).collect();
        assert_eq!(left, [1, 9, 0], "nothing but the ten was charged, and this one");
    }
}

/// Weakness D3: callers without a connection pass.
/// Weakness R27: grants of one moment count as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_five_hundred_at_once_on_a_limit_of_ten_admit_exactly_ten_in_redis() {
    let Some(server) = Redis::start() else { return };
    five_hundred_admit_ten(&|settings| in_redis(settings, &at(server.port))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_five_hundred_at_once_on_a_limit_of_ten_admit_exactly_ten_in_postgres() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.url(&server.database());
    five_hundred_admit_ten(&|settings| in_postgres(settings, &sharing::postgres(url.clone()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_composite_of_limits_and_slots_admits_what_its_smallest_admits_in_redis() {
    let Some(server) = Redis::start() else { return };
    composites_admit_their_smallest(&|settings| in_redis(settings, &at(server.port)), &patient(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_composite_of_limits_and_slots_admits_what_its_smallest_admits_in_postgres() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.url(&server.database());
    let common = |settings| in_postgres(settings, &sharing::postgres(url.clone()));
    composites_admit_their_smallest(&common, &patient(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_composite_whose_counters_are_decided_apart_admits_no_more_and_loses_nothing() {
    let Some(server) = Redis::start() else { return };
    let parted = SharedSettings { parted: true, ..patient() };
    composites_admit_their_smallest(&|settings| in_redis(settings, &at(server.port)), &parted, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_leases_of_quota_and_a_cache_of_refusals_admit_no_more_and_return_what_is_unused() {
    let Some(server) = Redis::start() else { return };
    let common = |settings| in_redis(settings, &at(server.port));
    let near = SharedSettings { quota_lease: Some(8), refusal_cache: Some(secs(1)), ..patient() };
    for (number, algorithm) in [bucket(None), Algorithm::FixedWindow(Schedule::Epoch)].into_iter().enumerate() {
        let name = format!("limiter{number}");
        let limiters = [quota(&name, 100, WINDOW, algorithm)];
        let rules = [applies("all", [apply(&name, &["account"])])];
        let instances_near = instances(&common, &near, &limiters, &rules).await;
        let passed = stampede(&instances_near).await;
        assert!(passed <= 100, "{passed} passed");
        for engine in &instances_near {
            engine.in_use().stores.give_back(engine.clock().now(), secs(5)).await;
        }
        let others = instances(&common, &patient(), &limiters, &rules).await;
        assert_eq!(passed + left(&others).await, 100, "what was leased is charged or returned");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_two_instances_at_one_a_second_admit_a_second_apart() {
    let Some(server) = Redis::start() else { return };
    let common = |settings| in_redis(settings, &at(server.port));
    let limiters = [quota("paced", 1, secs(1), bucket(Some(1)))];
    let rules = [applies("all", [apply("paced", &["account"])])];
    let instances = instances(&common, &patient(), &limiters, &rules).await;
    let mut moments = Vec::new();
    let began = Instant::now();
    while moments.len() < 3 {
        assert!(began.elapsed() < support::PATIENCE, "it paces more slowly than it says");
        for decision in join_all(instances[..2].iter().map(|engine| decide(engine, "a"))).await {
            moments.extend(decision.allowed().then(|| decision.applied().at));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    moments.sort();
    assert!(moments.windows(2).all(|pair| pair[1] - pair[0] >= 1_000_000), "{moments:?}");
}

/// Weakness R1: rates above 100 a second are no limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_thirty_callers_at_two_hundred_a_second_are_admitted_what_the_bucket_has() {
    let Some(server) = Redis::start() else { return };
    let common = |settings| in_redis(settings, &at(server.port));
    let limiters = [quota("paced", 200, secs(1), bucket(None))];
    let rules = [applies("all", [apply("paced", &["account"])])];
    let instances = instances(&common, &patient(), &limiters, &rules).await;
    let until = Instant::now() + secs(2);
    let caller = |number: usize| {
        let engine = instances[number % INSTANCES].clone();
        tokio::spawn(async move {
            let mut decided = Vec::new();
            while Instant::now() < until {
                let decision = decide(&engine, "a").await;
                decided.push((decision.applied().at, decision.allowed()));
            }
            decided
        })
    };
    let callers: Vec<_> = (0..30).map(caller).collect();
    let decided: Vec<(Timestamp, bool)> =
        join_all(callers).await.into_iter().flat_map(|decided| decided.expect("no caller panics")).collect();
    let moments = || decided.iter().map(|(moment, _)| *moment);
    let took = moments().max().expect("decisions") - moments().min().expect("decisions");
    let admitted = decided.iter().filter(|(_, allowed)| *allowed).count() as u64;
    let most = 200 + 200 * took / 1_000_000;
    assert!(admitted <= most, "{admitted} admitted of {most}");
    assert!(admitted >= (most - 200) * 98 / 100, "{admitted} admitted of {most}");
    assert!(decided.len() as u64 > most, "too few asked to tell");
}

/// Weakness R2: callers without a connection pass.
/// Weakness R19: callers that meet at a row fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_two_hundred_in_flight_over_a_pool_of_two_admit_one() {
    let Some(server) = Postgres::shared() else { return };
    let pool = tollgate::store::PostgresSettings { pool_size: 2, ..sharing::postgres(server.url(&server.database())) };
    let limiters = [quota("one", 1, WINDOW, bucket(None))];
    let rules = [applies("all", [apply("one", &["account"])])];
    let instances = instances(&|settings| in_postgres(settings, &pool), &patient(), &limiters, &rules).await;
    let asked = (0..200).map(|_| decide(&instances[0], "a"));
    let decided = join_all(asked).await;
    let failed = decided.iter().filter(|decision| decision.applied().answers[0].is_err()).count();
    let passed = decided.iter().filter(|decision| decision.allowed()).count();
    assert_eq!((passed, failed), (1, 0));
}

/// Weaknesses R2, D3: callers without a connection pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_two_hundred_in_flight_over_the_one_connection_to_redis_admit_one() {
    let Some(server) = Redis::start() else { return };
    let remote = tollgate::store::RemoteSettings { batch: 1, calls: 200, ..sharing::PATIENT };
    let settings = SharedSettings { remote, ..patient() };
    let limiters = [quota("one", 1, WINDOW, bucket(None))];
    let rules = [applies("all", [apply("one", &["account"])])];
    let instances = instances(&|settings| in_redis(settings, &at(server.port)), &settings, &limiters, &rules).await;
    let decided = join_all((0..200).map(|_| decide(&instances[0], "a"))).await;
    let failed = decided.iter().filter(|decision| decision.applied().answers[0].is_err()).count();
    let passed = decided.iter().filter(|decision| decision.allowed()).count();
    assert_eq!((passed, failed), (1, 0));
}

/// What every request is planted with: nothing of it may be seen in a store.
const PLANTED: &str = "planted";

/// Lets 300 identities ask, each as often as it may and once more, and gives how many connections there were before and
/// after.
async fn three_hundred_identities(common: Common<'_>, connections: impl Fn() -> usize) -> (usize, usize) {
    let both = Limiter {
        concurrency: slots("both", 3, WINDOW).concurrency,
        ..quota("both", 1, WINDOW, Algorithm::SlidingWindow)
    };
    let instances = instances(common, &patient(), &[both], &[applies("all", [apply("both", &["account"])])]).await;
    let verdicts = async |account: &str| {
        let asked = instances.iter().map(|engine| decide(engine, account));
        let decided = join_all(asked).await;
        let answered = |decision: &tollgate::decision::Decision| decision.applied().answers.iter().all(Result::is_ok);
        assert!(decided.iter().all(answered), "{account}");
        decided.iter().filter(|decision| decision.allowed()).count()
    };
    assert_eq!(verdicts("nobody").await, 1);
    let before = connections();
    // Longer than a column or a key of those who keep identities as they are.
    let accounts = (0..300).map(|number| format!("{PLANTED}-{number}@example.com/{}", "x".repeat(300)));
    for account in accounts {
        assert_eq!(verdicts(&account).await, 1, "{account}");
    }
    (before, connections())
}

/// Weakness R15: each identity has a connection of its own.
/// Weakness A11: identities are kept as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_bring_neither_connections_nor_their_names_to_redis() {
    let Some(server) = Redis::start() else { return };
    let connections = || server.ask::<String>(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count();
    let common = |settings| in_redis(settings, &at(server.port));
    let (before, after) = three_hundred_identities(&common, connections).await;
    assert_eq!(after, before);
    let keys: Vec<Vec<u8>> = server.ask(&["KEYS", "*"]);
    assert!(keys.len() >= 600, "two counters of each");
    let planted = |bytes: &[u8]| bytes.windows(PLANTED.len()).any(|part| part == PLANTED.as_bytes());
    for key in keys {
        let kept: Vec<u8> = server.ask(&[b"DUMP".to_vec(), key.clone()]);
        assert!(!planted(&key) && !planted(&kept), "{key:?}: {kept:?}");
    }
}

/// Weakness R15: each identity has connections of its own.
/// Weakness R21: identities that are too long fail.
/// Weakness A11: identities are kept as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_bring_neither_connections_nor_their_names_to_postgres() {
    let Some(server) = Postgres::shared() else { return };
    let database = server.database();
    let connections = || {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
        server.value("postgres", &sql).expect("a number").parse().expect("a number")
    };
    let pool = tollgate::store::PostgresSettings { pool_size: 2, ..sharing::postgres(server.url(&database)) };
    let (_, after) = three_hundred_identities(&|settings| in_postgres(settings, &pool), connections).await;
    assert!(after <= 2 * INSTANCES, "{after} connections");
    for table in ["counters_v1", "grants_v1", "leases_v1"] {
        let all = server.value(&database, &format!("SELECT string_agg(t::text, ' ') FROM tollgate.{table} t"));
        let all = all.expect("rows");
        let hex: String = PLANTED.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!all.contains(PLANTED) && !all.contains(&hex), "{table}");
    }
}

/// Weakness R20: who is refused holds a connection until there is room, and nobody can give anything back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_given_back_past_two_hundred_who_are_refused_over_a_pool_of_two() {
    let Some(server) = Postgres::shared() else { return };
    let pool = tollgate::store::PostgresSettings { pool_size: 2, ..sharing::postgres(server.url(&server.database())) };
    let both = Limiter { concurrency: slots("both", 3, WINDOW).concurrency, ..quota("both", 1, WINDOW, bucket(None)) };
    let rules = [applies("all", [apply("both", &["account"])])];
    let instances = instances(&|settings| in_postgres(settings, &pool), &patient(), &[both], &rules).await;
    let first = decide(&instances[0], "a").await;
    let lease = first.lease().expect("it passes, and holds a slot").to_owned();
    let refused = join_all((0..200).map(|_| decide(&instances[0], "a")));
    let (refused, fate) = tokio::join!(refused, instances[0].release(&lease));
    assert_eq!(fate, Some(LeaseFate::Done));
    let answered = refused.iter().all(|decision| !decision.allowed() && decision.applied().answers[0].is_ok());
    assert!(answered, "by the store, though there is room tomorrow only");
}

/// Three instances, of which one is 30 s ahead and one 700 s behind, take turns.
async fn skewed_clocks_change_nothing(common: Common<'_>, settings: &SharedSettings) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
    for (number, limiter) in of_each_algorithm("", 10).into_iter().enumerate() {
        let limiter = Limiter { name: format!("limiter{number}"), ..limiter };
        let rules = [applies("all", [apply(&limiter.name, &["account"])])];
        let mut instances = Vec::new();
        for clock in [wall + secs(30), wall, wall - secs(700)] {
            let clock = Arc::new(ManualClock::at(Timestamp::EPOCH + clock));
            instances.push(instance(common, settings, std::slice::from_ref(&limiter), &rules, clock).await);
        }
        let kind = format!("{:?} {:?}", limiter.quota, limiter.concurrency);
        let mut resets = Vec::new();
        for turn in 0..10 {
            let decision = decide(&instances[turn % INSTANCES], "a").await;
            assert!(decision.allowed(), "{kind}: others' clocks block request {turn}");
            resets.push(decision.tightest().expect("it applies").reset);
        }
        for engine in &instances {
            let decision = decide(engine, "a").await;
            assert!(!decision.allowed(), "{kind}: a clock doubles the budget");
        }
        let (shortest, longest) = (resets.iter().min().expect("ten"), resets.iter().max().expect("ten"));
        let drained =
            if matches!(limiter.quota.as_ref().map(|quota| &quota.algorithm), Some(Algorithm::TokenBucket { .. })) {
                WINDOW
            } else {
                secs(10)
            };
        assert!(*longest - *shortest < drained, "{kind}: what is told depends on who is asked: {resets:?}");
    }
}

/// Weaknesses R12, A6: the callers' clocks decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_clock_ahead_and_one_behind_neither_block_nor_double_in_redis() {
    let Some(server) = Redis::start() else { return };
    skewed_clocks_change_nothing(&|settings| in_redis(settings, &at(server.port)), &patient()).await;
}

/// Weakness R12: the callers' clocks decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_clock_ahead_and_one_behind_neither_block_nor_double_in_postgres() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.url(&server.database());
    let common = |settings| in_postgres(settings, &sharing::postgres(url.clone()));
    skewed_clocks_change_nothing(&common, &patient()).await;
}

async fn a_rate_and_slots(common: Common<'_>, settings: &SharedSettings, name: &str) {
    let both = Limiter { concurrency: slots(name, 3, WINDOW).concurrency, ..quota(name, 10, WINDOW, bucket(None)) };
    let rules = [applies("all", [apply(name, &["account"])])];
    let instances = instances(common, settings, &[both], &rules).await;
    let mut leases = Vec::new();
    for engine in &instances {
        let decision = decide(engine, "a").await;
        leases.push(decision.lease().expect("it passes, and holds a slot").to_owned());
    }
    assert!(!decide(&instances[0], "a").await.allowed(), "the slots are taken");
    // Any instance takes any lease back; what was refused charged no rate.
    for lease in leases {
        instances[1].release(&lease).await.expect("it is a lease");
    }
    let decision = decide(&instances[2], "a").await;
    let remaining: Vec<u32> = decision.counted().map(|counted| counted.remaining).collect();
    assert_eq!(remaining, [6, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_a_limiter_with_a_rate_and_slots_is_decided_at_once() {
    let Some(server) = Redis::start() else { return };
    let common = |settings| in_redis(settings, &at(server.port));
    a_rate_and_slots(&common, &patient(), "together").await;
    a_rate_and_slots(&common, &SharedSettings { parted: true, ..patient() }, "apart").await;
}

/// The nodes of a cluster.
fn nodes(cluster: &Cluster) -> RedisSettings {
    let address = |port| Address::Tcp("127.0.0.1".to_owned(), port);
    RedisSettings::new(Topology::Cluster(cluster.ports().into_iter().map(address).collect()))
}

/// Weakness R16: keys of one call are in different slots, and the error that the cluster makes of that lets everything
/// pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_a_limiter_with_a_rate_and_slots_works_on_a_cluster() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let (settings, nodes) = (SharedSettings { parted: true, ..patient() }, nodes(&cluster));
    for name in ["one", "two", "three"] {
        a_rate_and_slots(&|settings| in_redis(settings, &nodes), &settings, name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_a_composite_over_the_slots_of_a_cluster_admits_no_more_and_loses_nothing() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let (settings, nodes) = (SharedSettings { parted: true, ..patient() }, nodes(&cluster));
    composites_admit_their_smallest(&|settings| in_redis(settings, &nodes), &settings, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d13_scripts_that_are_flushed_all_the_time_change_no_answer() {
    let Some(server) = Redis::start() else { return };
    let common = |settings| in_redis(settings, &at(server.port));
    let limiters = [quota("limiter", 10, WINDOW, Algorithm::SlidingWindow)];
    let instances =
        instances(&common, &patient(), &limiters, &[applies("all", [apply("limiter", &["account"])])]).await;
    let mut verdicts = Vec::new();
    for turn in 0..15 {
        server.ask::<()>(&["SCRIPT", "FLUSH"]);
        verdicts.push(decide(&instances[turn % INSTANCES], "a").await.allowed());
    }
    assert_eq!(verdicts, [[true; 10].as_slice(), &[false; 5]].concat());
}

// Real processes.

/// The configuration of a service that limits every request by account, with this limiter in this store.
fn service(store: &str, limiter: &str) -> String {
    format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\n{store}\nrequired = true\ntimeout = '5s'\n\n\
         [limiters.limiter]\n{limiter}\n\n[[rules]]\ndomain = 'edge'\nname = 'all'\n\
         apply = [{{ limiter = 'limiter', key = ['account'] }}]\n\n\
         [authz]\ndomain = 'edge'\n\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    )
}

fn in_a_redis(port: u16) -> String {
    format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{port}'")
}

/// Processes that serve the same configuration, and are ready.
fn processes(count: usize, toml: &str) -> Vec<Served> {
    let served: Vec<Served> = (0..count).map(|_| Served::start(toml, &[])).collect();
    served.iter().for_each(ready);
    served
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').expect("a port").1.parse().expect("a number")
}

fn ready(served: &Served) {
    until("it is ready", || Ask::get("/readyz").send(port(&served.admin)).is_ok_and(|answer| answer.status == 200));
}

fn try_once(served: &Served) -> Answer {
    Ask::get("/authz/envoy/").account("a").send(port(&served.http)).expect("it answers")
}

/// Lets so many tries go to each of these at one moment. How many passed.
fn tries(served: &[Served], each: usize) -> usize {
    let start = std::sync::Barrier::new(served.len() * each);
    thread::scope(|scope| {
        let one = |served| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let status = try_once(served).status;
                assert!(status == 200 || status == 429, "{status}");
                status == 200
            })
        };
        let all: Vec<_> = served.iter().flat_map(|served| std::iter::repeat_n(served, each)).map(one).collect();
        all.into_iter().map(|one| one.join().expect("it is answered")).filter(|passed| *passed).count()
    })
}

/// Weakness R5: at the HTTP door a token bucket never refuses.
#[test]
fn d2_three_processes_of_twenty_tries_each_admit_exactly_thirty_a_minute() {
    let Some(server) = Redis::start() else { return };
    for algorithm in ["sliding_window", "token_bucket", "fixed_window", "sliding_counter"] {
        server.ask::<()>(&["FLUSHALL"]);
        let limiter = format!("algorithm = '{algorithm}'\nlimit = 30\nwindow = '1h'");
        let served = processes(INSTANCES, &service(&in_a_redis(server.port), &limiter));
        assert_eq!(tries(&served, 20), 30, "{algorithm}");
    }
}

/// Weakness R13: a sliding window in PostgreSQL can be configured and not be used.
#[test]
fn d3_three_processes_of_five_tries_each_admit_exactly_ten_in_postgres() {
    let Some(server) = Postgres::shared() else { return };
    let store = format!("engine = 'postgres'\nurl = '{}'", server.url(&server.database()));
    let limiter = "algorithm = 'sliding_window'\nlimit = 10\nwindow = '1h'";
    assert_eq!(tries(&processes(INSTANCES, &service(&store, limiter)), 5), 10);
}

#[test]
fn c2_ten_at_once_on_three_slots_hold_exactly_three_over_two_processes() {
    let Some(server) = Redis::start() else { return };
    let served = processes(2, &service(&in_a_redis(server.port), "max_concurrent = 3\nlease = '1h'"));
    assert_eq!(tries(&served, 5), 3);
}

/// Weakness D8: a refusal has no headers, and the wait told is none.
#[test]
fn h2_three_a_minute_through_redis_are_told_as_two_one_none_and_then_refused() {
    let Some(server) = Redis::start() else { return };
    let limiter = "algorithm = 'sliding_window'\nlimit = 3\nwindow = '60s'";
    let served = processes(INSTANCES, &service(&in_a_redis(server.port), limiter));
    let answers: Vec<Answer> = (0..4).map(|turn| try_once(&served[turn % INSTANCES])).collect();
    let told: Vec<_> = answers.iter().map(|answer| (answer.status, answer.remaining())).collect();
    assert_eq!(told, [(200, Some(2)), (200, Some(1)), (200, Some(0)), (429, Some(0))]);
    let wait = answers[3].retry_after().expect("a refusal says when");
    assert!((1..=60).contains(&wait), "{wait}");
}

/// A service whose store is behind `proxy`, with a limit of two and each policy, chosen by the path.
fn with_policies(proxy: &Proxy, timeout: &str) -> String {
    let mut toml = format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\n{}\ntimeout = '{timeout}'\n\n[authz]\ndomain = 'edge'\n\n\
         [authz.entries]\naccount = {{ header = 'x-account' }}\n",
        in_a_redis(proxy.port)
    );
    for policy in ["allow", "deny", "local"] {
        toml += &format!(
            "\n[limiters.{policy}]\nalgorithm = 'sliding_window'\nlimit = 2\nwindow = '1h'\n\
             on_store_error = '{policy}'\n\n[[rules]]\ndomain = 'edge'\nname = '{policy}'\n\
             match = {{ path = '/{policy}' }}\napply = [{{ limiter = '{policy}', key = ['account'] }}]\n"
        );
    }
    toml
}

fn under(served: &Served, policy: &str) -> Answer {
    Ask::get(&format!("/authz/envoy/{policy}")).account("a").send(port(&served.http)).expect("it answers")
}

fn statuses(served: &Served, policy: &str) -> [u16; 4] {
    [(); 4].map(|()| under(served, policy).status)
}

/// Weakness R8: errors of the store are neither policy, at the start or later.
/// Weakness D7: without a store there is no start.
/// Weakness A3: an outage refuses everybody where it should let pass.
#[test]
fn semantics_31_d7_h4_h5_a_store_that_is_down_at_the_start_is_answered_for_by_policy_and_d9_counts_when_it_comes() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    proxy.refuse();
    let served = Served::start(&with_policies(&proxy, "5s"), &[]);
    let allowed = under(&served, "allow").expect(200);
    for header in ["x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit", "retry-after"] {
        assert_eq!(allowed.header(header), None, "H4: nothing is known to be told");
    }
    assert_eq!(statuses(&served, "allow"), [200; 4]);
    let denied = under(&served, "deny").expect(503);
    assert_eq!(denied.header("content-type"), Some("application/problem+json"), "H5");
    let told: serde_json::Value = serde_json::from_str(&denied.body).expect("JSON");
    assert_eq!(told["status"], 503);
    assert_eq!(statuses(&served, "deny"), [503; 4]);
    assert_eq!(statuses(&served, "local"), [200, 200, 429, 429]);

    proxy.heal();
    until("the store counts", || under(&served, "deny").status == 429);
    assert_eq!(statuses(&served, "deny"), [429; 4], "D9");
    assert_eq!(statuses(&served, "local"), [200, 200, 429, 429], "what the stand-in counted is thrown away");
    assert_eq!(statuses(&served, "allow"), [200, 200, 429, 429]);
}

/// Weaknesses R18, A9: a store that hangs holds up every caller for seconds, or for ever.
#[test]
fn d8_decisions_go_on_while_the_store_is_frozen_and_d9_it_counts_again_when_it_goes_on() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    let served = Served::start(&with_policies(&proxy, "50ms"), &[]);
    until("the store counts", || under(&served, "deny").status == 429);
    server.freeze();
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        under(&served, "deny").expect(503);
        longest = longest.max(began.elapsed());
    }
    assert!(longest < secs(1), "a decision took {longest:?}");
    println!("the longest decision, a connection of its own included, took {longest:?}");
    server.thaw();
    until("the store counts again", || under(&served, "deny").status == 429);
}

/// Weakness D2: what fails beside a decision turns a refusal into a pass.
#[test]
fn d12_a_log_that_cannot_be_written_changes_no_decision() {
    let Some(server) = Redis::start() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let http = ports::free();
    let limiter = "algorithm = 'sliding_window'\nlimit = 2\nwindow = '1h'";
    let toml = service(&in_a_redis(server.port), limiter)
        .replace("http = '127.0.0.1:0'", &format!("http = '127.0.0.1:{http}'"));
    std::fs::write(directory.path().join("tollgate.toml"), toml).expect("a file in the test's directory");
    // Every write to this device fails: it is full (full(4)).
    let full = || File::options().write(true).open("/dev/full").expect("Linux has one");
    let mut command: Command = tollgate(directory.path());
    let child = command.arg("serve").env("RUST_LOG", "debug").stdout(full()).stderr(full()).spawn();
    let mut child = Ended(child.expect("it starts"));
    until("it serves", || {
        assert!(child.0.try_wait().expect("a child's state").is_none(), "it ended");
        Ask::get("/readyz").send(http).is_ok_and(|answer| answer.status == 200)
    });
    let status = || Ask::get("/authz/envoy/").account("a").send(http).expect("it answers").status;
    assert_eq!([(); 4].map(|()| status()), [200, 200, 429, 429]);
}

/// A process that ends with its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Neither fails unless it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
