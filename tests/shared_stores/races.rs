//! Three real processes on one store, in real time: exactly the configured number is admitted.
//!
//! Cases have the number of a known fault in other limiters: D (callers and failures), C (concurrency) and H (headers).
//! Nothing here depends on the speed of the machine: windows that must not end are a year long, and paced requests are
//! checked against the time that they took.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::three_instances::{
    ALGORITHMS, INSTANCES, Instances, TRIES, YEAR, composite, decided, in_a_cluster, in_a_postgres, in_a_redis, of,
    of_each_algorithm, one, passes, port, processes, service, tries, try_at, try_once,
};
use crate::support::binary::{DOORS, Served, WAIT_TIMEOUT, tollgate};
use crate::support::processes::redis::Redis;
use crate::support::processes::{Answer, Ask, Cluster, Postgres, Proxy, installed, ports, until};
use crate::support::service::{descriptor, lease, question};

const SECOND: Duration = Duration::from_secs(1);

// Callers

/// 500 callers of each algorithm alone, then of several at once. `places` is the number of partitions that are decided
/// separately: with more than one, further requests may be refused because of charges that are then undone.
async fn five_hundred_admit_ten(store: &str, places: usize) -> Instances {
    let instances = Instances::start(&of_each_algorithm(store, YEAR)).await;
    for algorithm in ALGORITHMS {
        assert_eq!(instances.stampede(TRIES, &one(algorithm, "a")).await, 10, "{algorithm}");
        let together = composite(algorithm, "b");
        let passed = instances.stampede(TRIES, &together).await;
        assert!(passed <= 10, "{algorithm}: {passed} passed");
        assert!(passed == 10 || places > 1, "{algorithm}: {passed} passed");
        // Charges made in one partition and refused in another were undone, so no unit is lost.
        assert_eq!(passed + instances.left(&together).await, 10, "{algorithm}");
        let before = instances.plans();
        let answer = decided(&instances.doors[0], &composite(algorithm, "c")).await;
        assert_eq!(instances.plans() - before, places as f64, "{algorithm}: one plan per partition");
        let left: Vec<u32> = answer.statuses.iter().map(|status| status.limit_remaining).collect();
        assert_eq!(left, [1, 9, 0], "{algorithm}: nothing but the ten was charged, and this one");
    }
    instances
}

/// Weakness D3: callers without a connection are admitted.
/// Weakness R27: grants of the same microsecond count as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_five_hundred_at_once_on_a_limit_of_ten_admit_exactly_ten_in_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    let instances = five_hundred_admit_ten(&in_a_redis(server.port), 1).await;
    assert_eq!(instances.by_policy(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_five_hundred_at_once_on_a_limit_of_ten_admit_exactly_ten_in_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    five_hundred_admit_ten(&in_a_postgres(&server), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_five_hundred_at_once_over_the_slots_of_a_cluster_admit_no_more_than_ten_and_lose_nothing() {
    let _others = crate::MACHINE.read().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    let instances = five_hundred_admit_ten(&in_a_cluster(&cluster), 3).await;
    assert_eq!(instances.by_policy(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_leases_of_quota_and_a_cache_of_refusals_admit_no_more_and_return_what_is_unused() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    let plain = in_a_redis(server.port);
    let near = format!("{plain}\nquota_lease = 8\nrefusal_cache = '1s'");
    for algorithm in ["token_bucket", "fixed_window"] {
        server.ask::<()>(&["FLUSHALL"]);
        let keys = format!("algorithm = '{algorithm}'\nlimit = 100\nwindow = '{YEAR}'");
        let leasing = Instances::start(&service(&near, &keys)).await;
        let passed = leasing.stampede(TRIES, &of("a")).await;
        assert!(passed <= 100, "{algorithm}: {passed} passed");
        assert_eq!(leasing.by_policy(), 0.0);
        for mut served in leasing.served {
            served.stop();
        }
        let left = Instances::start(&service(&plain, &keys)).await.left(&of("a")).await;
        assert_eq!(passed + left, 100, "{algorithm}: what was leased is charged or returned");
    }
}

#[test]
fn c2_ten_at_once_on_three_slots_hold_exactly_three_over_two_processes() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let served = processes(2, &service(&in_a_redis(server.port), &format!("max_concurrent = 3\nlease = '{YEAR}'")));
    assert_eq!(tries(&served, 5), 3);
}

/// Weakness R5: a token bucket at the HTTP door never refuses.
#[test]
fn d2_three_processes_of_twenty_tries_each_admit_exactly_thirty() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    for algorithm in ["sliding_window", "token_bucket", "fixed_window", "sliding_counter"] {
        server.ask::<()>(&["FLUSHALL"]);
        let keys = format!("algorithm = '{algorithm}'\nlimit = 30\nwindow = '{YEAR}'");
        let served = processes(INSTANCES, &service(&in_a_redis(server.port), &keys));
        assert_eq!(tries(&served, 20), 30, "{algorithm}");
    }
}

/// Weakness R13: a sliding window in PostgreSQL can be configured but not used.
#[test]
fn d3_three_processes_of_five_tries_each_admit_exactly_ten_in_postgres() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Postgres::shared() else { return };
    let keys = format!("algorithm = 'sliding_window'\nlimit = 10\nwindow = '{YEAR}'");
    assert_eq!(tries(&processes(INSTANCES, &service(&in_a_postgres(&server), &keys)), 5), 10);
}

/// Lets a number of callers send requests until `admitted` have passed, and returns the start and end of each of those.
/// The store decided in between, so a pause of the machine does not make the result too large.
async fn admitted(instances: &Instances, callers: usize, admitted: usize) -> Vec<(Instant, Instant)> {
    let (began, passed) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let caller = |number: usize| {
        let (door, passed) = (instances.doors[number % INSTANCES].clone(), passed.clone());
        tokio::spawn(async move {
            while passed.lock().len() < admitted {
                assert!(began.elapsed() < WAIT_TIMEOUT, "it paces more slowly than it says");
                let sent = Instant::now();
                if passes(&door.ask(of("a")).await) {
                    passed.lock().push((sent, Instant::now()));
                }
            }
        })
    };
    let callers: Vec<_> = (0..callers).map(caller).collect();
    join_all(callers).await.into_iter().for_each(|caller| caller.expect("it is answered"));
    std::mem::take(&mut *passed.lock())
}

/// The time from the first start to the last end.
fn span(passed: &[(Instant, Instant)]) -> Duration {
    let first = passed.iter().map(|(sent, _)| *sent).min().expect("some passed");
    passed.iter().map(|(_, answered)| *answered).max().expect("some passed") - first
}

async fn one_a_second_is_a_second_apart(store: &str) {
    let keys = "algorithm = 'token_bucket'\nlimit = 1\nwindow = '1s'\nburst = 1";
    let instances = Instances::start(&service(store, keys)).await;
    let mut passed = admitted(&instances, INSTANCES, 3).await;
    passed.sort();
    assert!(passed.windows(2).all(|pair| span(pair) >= SECOND), "{passed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_three_processes_at_one_a_second_admit_a_second_apart_by_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    one_a_second_is_a_second_apart(&in_a_redis(server.port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_three_processes_at_one_a_second_admit_a_second_apart_by_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    one_a_second_is_a_second_apart(&in_a_postgres(&server)).await;
}

/// Two seconds' worth beyond the burst: admitting too much ends sooner, and admitting too little does not end.
async fn two_hundred_a_second_are_what_the_bucket_has(store: &str) {
    let keys = "algorithm = 'token_bucket'\nlimit = 200\nwindow = '1s'";
    let instances = Instances::start(&service(store, keys)).await;
    let passed = admitted(&instances, 30, 600).await;
    let (took, passed) = (span(&passed), passed.len() as u128);
    let most = 200 + 200 * took.as_micros() / 1_000_000;
    assert!(passed <= most, "{passed} admitted of {most} in {took:?}");
    println!("{passed} admitted of {most} in {took:?}");
}

/// Weakness R1: a rate above 100 per second is not enforced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_thirty_callers_at_two_hundred_a_second_are_admitted_what_the_bucket_has_in_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    two_hundred_a_second_are_what_the_bucket_has(&in_a_redis(server.port)).await;
}

/// Weakness R1: a rate above 100 per second is not enforced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_thirty_callers_at_two_hundred_a_second_are_admitted_what_the_bucket_has_in_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    two_hundred_a_second_are_what_the_bucket_has(&in_a_postgres(&server)).await;
}

/// Weaknesses R2, D3: callers without a connection are admitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_two_hundred_in_flight_over_one_connection_a_process_to_redis_admit_one() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    // All at once, each in a call of its own.
    let store = format!("{}\nmax_batch = 1\nmax_calls = 200", in_a_redis(server.port));
    let keys = format!("algorithm = 'token_bucket'\nlimit = 1\nwindow = '{YEAR}'");
    let instances = Instances::start(&service(&store, &keys)).await;
    assert_eq!(instances.stampede(200, &of("a")).await, 1);
    assert_eq!((instances.plans(), instances.by_policy()), (200.0, 0.0));
}

/// Weakness R2: callers without a connection are admitted.
/// Weakness R19: callers that contend for a row fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_two_hundred_in_flight_over_a_pool_of_one_a_process_to_postgres_admit_one() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    // One call waits for the connection of the other.
    let store = format!("{}\npool_max_size = 1\nmax_batch = 1\nmax_calls = 2", in_a_postgres(&server));
    let keys = format!("algorithm = 'token_bucket'\nlimit = 1\nwindow = '{YEAR}'");
    let instances = Instances::start(&service(&store, &keys)).await;
    assert_eq!(instances.stampede(200, &of("a")).await, 1);
    assert!(instances.by_policy() < 20.0, "{} failed", instances.by_policy());
}

/// Weakness R20: a refused caller holds a connection until it is admitted, so nothing can be released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_given_back_past_two_hundred_who_are_refused_over_pools_of_two() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    let store = format!("{}\npool_max_size = 2", in_a_postgres(&server));
    let keys =
        format!("algorithm = 'token_bucket'\nlimit = 1\nwindow = '{YEAR}'\nmax_concurrent = 3\nlease = '{YEAR}'");
    let instances = Instances::start(&service(&store, &keys)).await;
    let held = lease(&decided(&instances.doors[0], &of("a")).await).expect("it passes, and holds a slot");
    let began = Instant::now();
    let released = async {
        while instances.served[1].metric("tollgate_leases_released_total{when=\"in_time\"}") == 0.0 {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it is never given back");
            instances.doors[1].ask(question("edge", [descriptor(&[("release", &held)])])).await;
        }
    };
    let request = of("a");
    let (passed, ()) = tokio::join!(instances.stampede(200, &request), released);
    assert_eq!(passed, 0, "there is room in a year only");
}

// Identities

/// Part of every identity: it must not appear in a store.
const PLANTED: &str = "planted";

/// Sends requests of 300 identities to three processes, each of which may pass once, and returns the number of
/// connections before and after.
async fn three_hundred_identities(store: &str, connections: impl Fn() -> usize) -> (usize, usize) {
    let keys =
        format!("algorithm = 'sliding_window'\nlimit = 1\nwindow = '{YEAR}'\nmax_concurrent = 3\nlease = '{YEAR}'");
    let instances = Instances::start(&service(store, &keys)).await;
    let passed = async |account: &str| {
        let request = of(account);
        let answers = join_all(instances.doors.iter().map(|door| decided(door, &request))).await;
        answers.iter().filter(|answer| passes(answer)).count()
    };
    assert_eq!(passed("nobody").await, 1);
    let before = connections();
    // Longer than a column or key that stores identities in clear.
    let accounts = (0..300).map(|number| format!("{PLANTED}-{number}@example.com/{}", "x".repeat(300)));
    for account in accounts {
        assert_eq!(passed(&account).await, 1, "{account}");
    }
    (before, connections())
}

/// Weakness R15: each identity has a connection of its own.
/// Weakness A11: identities are stored in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_bring_neither_connections_nor_their_names_to_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    let connections = || server.ask::<String>(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count();
    let (before, after) = three_hundred_identities(&in_a_redis(server.port), connections).await;
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
/// Weakness R21: long identities fail.
/// Weakness A11: identities are stored in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_bring_neither_connections_nor_their_names_to_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    let database = server.database();
    let connections = || {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
        server.value("postgres", &sql).expect("a number").parse().expect("a number")
    };
    let store = format!("engine = 'postgres'\nurl = '{}'\npool_max_size = 2", server.url(&database));
    let (_, after) = three_hundred_identities(&store, connections).await;
    // Those of the pool, and one for hints.
    assert!(after <= 3 * INSTANCES, "{after} connections");
    for table in ["counters_v1", "grants_v1", "leases_v1"] {
        let all = server.value(&database, &format!("SELECT string_agg(t::text, ' ') FROM tollgate.{table} t"));
        let all = all.expect("rows");
        let hex: String = PLANTED.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!all.contains(PLANTED) && !all.contains(&hex), "{table}");
    }
}

// Failures

/// A service whose store is behind `proxy`, with a limit of two and each policy, selected by the path.
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

/// Waits until the store decides for a process, by sending requests until a limit is used up.
fn counts(served: &Served) {
    until("the store counts", || under(served, "deny").status == 429);
}

/// Weakness R8: the policy is not applied to errors of the store, at the start or later.
/// Weakness D7: the service does not start without its store.
/// Weakness A3: an outage refuses every request where it should admit them.
#[test]
fn semantics_31_d7_h4_h5_a_store_that_is_down_at_the_start_is_answered_for_by_policy_and_d9_counts_when_it_comes() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    proxy.refuse();
    let served: Vec<Served> = (0..INSTANCES).map(|_| Served::start(&with_policies(&proxy, "5s"), &[])).collect();
    for served in &served {
        let allowed = under(served, "allow").expect(200);
        for header in ["x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit", "retry-after"] {
            assert_eq!(allowed.header(header), None, "H4: no limit is known");
        }
        assert_eq!(statuses(served, "allow"), [200; 4]);
        let denied = under(served, "deny").expect(503);
        assert_eq!(denied.header("content-type"), Some("application/problem+json"), "H5");
        let problem: serde_json::Value = serde_json::from_str(&denied.body).expect("JSON");
        assert_eq!(problem["status"], 503);
        assert_eq!(statuses(served, "deny"), [503; 4]);
        assert_eq!(statuses(served, "local"), [200, 200, 429, 429]);
    }

    proxy.heal();
    served.iter().for_each(counts);
    let all = |policy| served.iter().map(|served| statuses(served, policy)).collect::<Vec<_>>();
    assert_eq!(all("deny"), [[429; 4]; INSTANCES], "D9");
    let two_of_all = [[200, 200, 429, 429], [429; 4], [429; 4]];
    for served in &served {
        let began = Instant::now();
        while served.metric("tollgate_store_backlog{store=\"main\"}") > 0.0 {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it is never handed over");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(all("local"), [[429; 4]; INSTANCES], "the store counts what each fallback admitted");
    assert_eq!(all("allow"), two_of_all);
}

/// Weaknesses R18, A9: a store that hangs delays every caller for seconds or for ever.
#[test]
fn d8_decisions_go_on_while_the_store_is_frozen_and_d9_it_counts_again_when_it_goes_on() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    let served: Vec<Served> = (0..INSTANCES).map(|_| Served::start(&with_policies(&proxy, "50ms"), &[])).collect();
    served.iter().for_each(counts);
    server.freeze();
    let mut longest = Duration::ZERO;
    for turn in 0..90 {
        let began = Instant::now();
        under(&served[turn % INSTANCES], "deny").expect(503);
        longest = longest.max(began.elapsed());
    }
    assert!(longest < SECOND, "a decision took {longest:?}");
    println!("the longest decision, a connection of its own included, took {longest:?}");
    server.thaw();
    served.iter().for_each(counts);
}

/// A process whose wall clock is some seconds off. Its monotonic clock is right.
fn skewed(toml: &str, library: &Path, seconds: i64) -> Served {
    let wall = || SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs_f64();
    let (before, library, offset) = (wall(), library.display().to_string(), format!("{seconds:+}"));
    let variables = [("LD_PRELOAD", &*library), ("FAKETIME", &offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let served = Served::start(toml, &variables).ready();
    let off = served.metric("tollgate_config_loaded_timestamp_seconds") - seconds as f64;
    assert!((before - 1.0..wall() + 1.0).contains(&off), "its clock is {off} where it should be {before}");
    served
}

/// Three processes take turns; one is 30 s ahead and one 700 s behind.
async fn skewed_clocks_change_nothing(store: &str) {
    let Some(library) = installed::faketime() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs();
    // The process that is behind is in another window; that of the others lasts two more minutes.
    let window = (600..700).find(|window| now % window < window - 150).expect("one does not end soon");
    let toml = of_each_algorithm(store, &format!("{window}s"));
    let mut instances = Instances::of([30, 0, -700].map(|seconds| skewed(&toml, &library, seconds)).into()).await;
    for algorithm in ALGORITHMS {
        let mut resets = Vec::new();
        for turn in 0..10 {
            let answer = decided(&instances.doors[turn % INSTANCES], &one(algorithm, "a")).await;
            assert!(passes(&answer), "{algorithm}: others' clocks block request {turn}");
            let reset = answer.statuses[0].duration_until_reset.expect("it applies").seconds;
            // A bucket is full once all taken tokens have refilled.
            let taken = if algorithm == "token_bucket" { turn as i64 + 1 } else { 10 };
            resets.push(reset + (10 - taken) * window as i64 / 10);
        }
        for door in &instances.doors {
            assert!(!passes(&decided(door, &one(algorithm, "a")).await), "{algorithm}: a clock doubles the budget");
        }
        let (shortest, longest) = (resets.iter().min().expect("ten"), resets.iter().max().expect("ten"));
        assert!(longest - shortest < 25, "{algorithm}: the reset depends on the instance: {resets:?}");
    }
    // A killed process leaves the files of its clock behind.
    drop(instances.doors);
    instances.served.iter_mut().for_each(|served| drop(served.stop()));
}

/// Weaknesses R12, A6: the callers' clocks decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_clock_ahead_and_one_behind_neither_block_nor_double_in_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    skewed_clocks_change_nothing(&in_a_redis(server.port)).await;
}

/// Weakness R12: the callers' clocks decide.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_clock_ahead_and_one_behind_neither_block_nor_double_in_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    skewed_clocks_change_nothing(&in_a_postgres(&server)).await;
}

/// Two processes whose clocks are in other hours than the store's.
async fn a_calendar_is_that_of_the_store(store: &str) {
    let Some(library) = installed::faketime() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs();
    // A zone whose hour does not end soon.
    let zone = if now % 3_600 < 3_000 { "UTC" } else { "Asia/Kolkata" };
    let toml =
        service(store, &format!("algorithm = 'fixed_window'\ncalendar = 'hour'\ntimezone = '{zone}'\nlimit = 3"));
    let left = 3_600 - (now + if zone == "UTC" { 0 } else { 1_800 }) % 3_600;
    let mut instances = Instances::of([-9_000, 18_000].map(|seconds| skewed(&toml, &library, seconds)).into()).await;
    for (door, account) in [(0, "behind"), (1, "ahead")] {
        let mut admitted = 0;
        for turn in 0..20 {
            let answer = decided(&instances.doors[door], &of(account)).await;
            admitted += u32::from(passes(&answer));
            let reset = answer.statuses[0].duration_until_reset.expect("it applies").seconds;
            assert!((1..=left as i64).contains(&reset), "{account}: a reset of {reset} s, request {turn}");
        }
        assert_eq!(admitted, 3, "{account}");
    }
    // Both count in one window.
    for (turn, passed) in [true, true, true, false, false, false].into_iter().enumerate() {
        assert_eq!(passes(&decided(&instances.doors[turn % 2], &of("both")).await), passed, "request {turn}");
    }
    for (served, seconds) in instances.served.iter().zip([9_000.0, -18_000.0]) {
        let difference = served.metric("tollgate_clock_difference_seconds{store=\"main\"}");
        assert!((difference - seconds).abs() < 60.0, "the clocks differ by {difference} s");
        served.until("clocks differ");
    }
    // A killed process leaves the files of its clock behind.
    drop(instances.doors);
    instances.served.iter_mut().for_each(|served| drop(served.stop()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_23_a_calendar_is_that_of_a_redis_whatever_the_process_believes() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    a_calendar_is_that_of_the_store(&in_a_redis(server.port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_23_a_calendar_is_that_of_a_postgres_whatever_the_process_believes() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    a_calendar_is_that_of_the_store(&in_a_postgres(&server)).await;
}

/// A memory store on a machine that sleeps for three hours: its monotonic clock stands still, its wall clock goes on.
#[test]
fn semantics_03_a_machine_that_slept_is_in_the_new_window() {
    let _others = crate::MACHINE.blocking_read();
    let Some(library) = installed::faketime() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let offset = directory.path().join("offset");
    std::fs::write(&offset, "+0").expect("it is written");
    let paths = [&library, &offset].map(|path| path.display().to_string());
    let variables = [
        ("LD_PRELOAD", paths[0].as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &paths[1]),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let toml = service("engine = 'memory'", "algorithm = 'fixed_window'\ncalendar = 'hour'\nlimit = 3")
        .replace("required = true\n", "");
    let mut served = Served::start(&toml, &variables).ready();
    let ask = || try_once(&served).status == 200;
    // The hour may end in between, once.
    let admitted = (0..20).filter(|_| ask()).count();
    assert!(admitted == 3 || admitted == 6, "{admitted} admitted");
    std::fs::write(&offset, "+10800").expect("it is written");
    served.until("clock jumped");
    assert!(ask(), "three hours later");
    std::fs::write(&offset, "+0").expect("it is written");
    until("the clock is back", || served.said().matches("clock jumped").count() == 2);
    // The window that is ahead of the clock becomes the current one: nobody is locked out for longer than an hour.
    assert!((0..20).filter(|_| ask()).count() <= 6);
    drop(served.stop());
}

async fn a_rate_and_slots(store: &str) {
    let keys =
        format!("algorithm = 'token_bucket'\nlimit = 10\nwindow = '{YEAR}'\nmax_concurrent = 3\nlease = '{YEAR}'");
    let instances = Instances::start(&service(store, &keys)).await;
    // Accounts in different hash slots of a cluster.
    for account in ["one", "two", "three", "four"] {
        let acquire = async |door: usize| lease(&decided(&instances.doors[door], &of(account)).await);
        // Any instance releases any lease.
        let release = async |door: usize, held: String| {
            instances.doors[door].ask(question("edge", [descriptor(&[("release", &held)])])).await
        };
        let mut leases = Vec::new();
        for door in 0..INSTANCES {
            leases.push(acquire(door).await.expect("it passes, and holds a slot"));
        }
        assert_eq!(acquire(0).await, None, "the slots are taken");
        for held in leases {
            release(1, held).await;
        }
        let mut passed = INSTANCES;
        while let Some(held) = acquire(passed % INSTANCES).await {
            release((passed + 1) % INSTANCES, held).await;
            passed += 1;
        }
        assert_eq!(passed, 10, "what was refused for its slots charged no rate");
    }
    assert_eq!(instances.by_policy(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_a_limiter_with_a_rate_and_slots_is_decided_at_once() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    a_rate_and_slots(&in_a_redis(server.port)).await;
}

/// Weakness R16: the keys of one call are in different hash slots, and the cluster's error about it admits every
/// request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d11_a_limiter_with_a_rate_and_slots_works_on_a_cluster() {
    let _others = crate::MACHINE.read().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    a_rate_and_slots(&in_a_cluster(&cluster)).await;
}

/// Weakness D2: a failure that does not concern the decision turns a refusal into a pass.
#[test]
fn d12_a_log_that_cannot_be_written_changes_no_decision() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let toml = service(&in_a_redis(server.port), "algorithm = 'sliding_window'\nlimit = 4\nwindow = '1h'");
    let served = [(); INSTANCES].map(|()| Mute::serve(&toml));
    let tries = (0..9).map(|turn| served[turn % INSTANCES].try_once());
    assert_eq!(tries.collect::<Vec<_>>(), [200, 200, 200, 200, 429, 429, 429, 429, 429]);
}

/// A process whose log is lost: every write to its device fails because the device is full (full(4)).
struct Mute {
    child: Child,
    http: u16,
    _directory: TempDir,
}

impl Mute {
    fn serve(toml: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let http = ports::free();
        let toml = toml.replace("http = '127.0.0.1:0'", &format!("http = '127.0.0.1:{http}'"));
        std::fs::write(directory.path().join("tollgate.toml"), toml).expect("a file in the test's directory");
        let full = || File::options().write(true).open("/dev/full").expect("Linux has one");
        let mut command: Command = tollgate(directory.path());
        let child = command.arg("serve").env("RUST_LOG", "debug").stdout(full()).stderr(full()).spawn();
        let mut served = Self { child: child.expect("it starts"), http, _directory: directory };
        until("it serves", || {
            assert!(served.child.try_wait().expect("a child's state").is_none(), "it ended");
            Ask::get("/readyz").send(http).is_ok_and(|answer| answer.status == 200)
        });
        served
    }

    fn try_once(&self) -> u16 {
        try_at(self.http).status
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn d13_scripts_that_are_flushed_all_the_time_change_no_answer() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let keys = format!("algorithm = 'sliding_window'\nlimit = 10\nwindow = '{YEAR}'");
    let served = processes(INSTANCES, &service(&in_a_redis(server.port), &keys));
    let statuses = (0..15).map(|turn| {
        server.ask::<()>(&["SCRIPT", "FLUSH"]);
        try_once(&served[turn % INSTANCES]).status
    });
    assert_eq!(statuses.collect::<Vec<_>>(), [[200; 10].as_slice(), &[429; 5]].concat());
}

// Headers

/// Weakness D8: a refusal has no headers, and its reported wait is zero.
#[test]
fn h2_three_a_minute_through_redis_are_told_as_two_one_none_and_then_refused() {
    let _others = crate::MACHINE.blocking_read();
    let Some(server) = Redis::start() else { return };
    let limiter = "algorithm = 'sliding_window'\nlimit = 3\nwindow = '60s'";
    let served = processes(INSTANCES, &service(&in_a_redis(server.port), limiter));
    let answers: Vec<Answer> = (0..4).map(|turn| try_once(&served[turn % INSTANCES])).collect();
    let seen: Vec<_> = answers.iter().map(|answer| (answer.status, answer.remaining())).collect();
    assert_eq!(seen, [(200, Some(2)), (200, Some(1)), (200, Some(0)), (429, Some(0))]);
    let wait = answers[3].retry_after().expect("a refusal says when");
    assert!((1..=60).contains(&wait), "{wait}");
}
