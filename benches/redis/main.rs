//! The cost of a decision in Redis: the server's CPU time as it reports it, compared with minimal scripts and commands
//! on the same server in the same run. `cargo run --release --example redis_cpu`

#![expect(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed"
)]

mod server;

use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{LeaseId, LeaseStatus, Limit, Lost, SlidingWindow, TokenBucket};
use tollgate::plan::{Applied, Check, CounterName, HoldAction, HoldChange, Holding, Plan};
use tollgate::store::{Address, Backend, Redis, RedisSettings, Topology};

use crate::server::Server;

/// A common form of GCRA for any number of buckets.
const BARE: &str = include_str!("bare_gcra.lua");

/// Decisions of each row in each round.
const DECISIONS: usize = 64_000;

/// Rounds. The rows take turns in each, and the median counts.
const ROUNDS: usize = 5;

/// Counters that decisions take in turn.
const COUNTERS: usize = 4_096;

const SECOND: u64 = 1_000_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(measure());
}

async fn measure() {
    let server = Server::start("redis-server").await;
    let topology = Topology::Standalone(Address::Tcp("127.0.0.1".to_owned(), server.port));
    let settings = RedisSettings::new(topology);
    let store = connected(&settings).await;
    // The moments of grants are set, so that a window of an hour fills at once.
    let clock = ManualClock::at(START);
    let windowed = Timed { store: connected(&settings).await.with_clock(Arc::new(clock.clone())), clock };
    let windows = [10, 100, 10_000].map(|limit| SlidingWindow { limit, window: 3_600 * SECOND });
    for window in windows {
        fill(&windowed, window).await;
    }
    let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
    let mut keep = |row: &str, micros: f64| match rows.iter_mut().find(|(name, _)| name == row) {
        Some((_, all)) => all.push(micros),
        None => rows.push((row.to_owned(), vec![micros])),
    };
    for round in 0..ROUNDS {
        keep("bare GCRA, 64 buckets in one call", bare(&server, 64).await);
        for batch in [64, 8, 1] {
            keep(&of_buckets(batch), buckets(&server, &store, batch).await);
        }
        for batch in [64, 1] {
            for used in [1, HELD, HELD + 1] {
                keep(&of_holds(batch, used), holds(&server, &store, batch, used).await);
            }
        }
        keep("one bucket, 64 plans in one call", one_bucket(&server, &store).await);
        keep("bare GCRA, one call each", bare(&server, 1).await);
        keep("INCRBY", incrby(&server).await);
        keep("the first ten grants of windows, 64 plans in one call", first_grants(&server, &store, round).await);
        for (place, window) in windows.into_iter().enumerate() {
            let begin = START.plus((1 + round as u64) * 10 * 3_600 * SECOND + place as u64);
            let row = format!("a full window of {}, one call each", window.limit);
            keep(&row, full_window(&server, &windowed, window, begin).await);
        }
    }
    println!("{:<54} {:>12} {:>10}", "", "us of Redis", "to bare 64");
    let median = |all: &[f64]| {
        let mut all = all.to_vec();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let bare = median(&rows[0].1);
    for (name, all) in &rows {
        println!("{name:<54} {:>12.2} {:>10.2}", median(all), median(all) / bare);
    }
    let of = |name: &str| rows.iter().find(|(row, _)| row == name).map_or(f64::NAN, |(_, all)| median(all));
    for batch in [64, 1] {
        for used in [1, HELD, HELD + 1] {
            let (row, charge) = (of_holds(batch, used), of_buckets(batch));
            println!("{row}: {:.2} x {charge}", of(&row) / of(&charge));
        }
    }
}

/// The units of a hold.
const HELD: u32 = 2;

fn of_buckets(batch: usize) -> String {
    format!("a bucket, {batch} plans in one call")
}

fn of_holds(batch: usize, used: u32) -> String {
    format!("a hold of {HELD} settled with {used}, {batch} in one call")
}

/// A store that decides by a clock of this benchmark.
struct Timed {
    store: Redis,
    clock: ManualClock,
}

impl Timed {
    async fn ask(&self, plan: &Plan, now: Timestamp) -> Vec<bool> {
        self.clock.set(now);
        ask(&self.store, std::slice::from_ref(plan)).await
    }
}

/// A store that has answered once.
async fn connected(settings: &RedisSettings) -> Redis {
    let store = Redis::new(settings).expect("no file is read");
    while store.probe().await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store
}

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The first number of the counters of windows.
const WINDOWS: usize = 1 << 20;

fn counter(number: usize) -> CounterName {
    let number = number as u64;
    CounterName([number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number.wrapping_mul(0xd1b5_4a32_d192_ed03)])
}

fn key(prefix: &[u8], counter: CounterName) -> Vec<u8> {
    let [first, second] = counter.0;
    [prefix, &first.to_be_bytes(), &second.to_be_bytes()].concat()
}

/// One check that charges units of a counter.
fn plan(counter: CounterName, limit: Limit, units: u32) -> Plan {
    let check = Check::charge(counter, limit, units);
    Plan { lease: LeaseId(1), ..Plan::of([check]) }
}

fn bucket() -> Limit {
    Limit::TokenBucket(TokenBucket::new(100, SECOND, 100, 0).expect("it can be held"))
}

/// Seconds of CPU time that a server has used.
async fn cpu(server: &Server) -> f64 {
    server.number("cpu", "used_cpu_user").await + server.number("cpu", "used_cpu_sys").await
}

/// Microseconds of the server's CPU time per decision.
async fn cost<F: Future<Output = ()>>(server: &Server, decisions: usize, work: impl FnOnce() -> F) -> f64 {
    let before = cpu(server).await;
    work().await;
    (cpu(server).await - before) * 1e6 / decisions as f64
}

async fn bare(server: &Server, batch: usize) -> f64 {
    let decisions = if batch == 1 { DECISIONS / 8 } else { DECISIONS };
    let mut connection = server.connection().await;
    let script = redis::Script::new(BARE);
    let calls: Vec<redis::Cmd> = (0..COUNTERS / batch)
        .map(|call| {
            let mut cmd = redis::cmd("EVALSHA");
            cmd.arg(script.get_hash()).arg(batch);
            for number in 0..batch {
                cmd.arg(key(b"bare:tollgate:1", counter(call * batch + number)));
            }
            // Microseconds of one token, and of a full bucket.
            cmd.arg(SECOND / 100).arg(SECOND);
            cmd
        })
        .collect();
    let _: String = redis::cmd("SCRIPT").arg("LOAD").arg(BARE).query_async(&mut connection).await.expect("it loads");
    cost(server, decisions, || async move {
        for call in 0..decisions / batch {
            let _: Vec<i64> = calls[call % calls.len()].query_async(&mut connection).await.expect("it answers");
        }
    })
    .await
}

async fn incrby(server: &Server) -> f64 {
    let mut connection = server.connection().await;
    let calls: Vec<redis::Cmd> = (0..COUNTERS)
        .map(|number| redis::cmd("INCRBY").arg(key(b"count:tollgate:1", counter(number))).arg(1).take())
        .collect();
    cost(server, DECISIONS / 8, || async move {
        for call in 0..DECISIONS / 8 {
            let _: i64 = calls[call % calls.len()].query_async(&mut connection).await.expect("it answers");
        }
    })
    .await
}

async fn applied(store: &Redis, plans: &[Plan]) -> Vec<Applied> {
    let answers = store.execute(plans).await;
    answers.into_iter().map(|answer| answer.expect("it answers")).collect()
}

async fn ask(store: &Redis, plans: &[Plan]) -> Vec<bool> {
    applied(store, plans).await.into_iter().map(|answer| answer.admitted).collect()
}

async fn buckets(server: &Server, store: &Redis, batch: usize) -> f64 {
    let decisions = if batch == 1 { DECISIONS / 8 } else { DECISIONS };
    let plans: Vec<Plan> = (0..COUNTERS).map(|number| plan(counter(number), bucket(), 1)).collect();
    cost(server, decisions, || async {
        for batch in plans.chunks(batch).cycle().take(decisions / batch) {
            ask(store, batch).await;
        }
    })
    .await
}

/// Holds units of buckets, and settles them in other calls.
async fn holds(server: &Server, store: &Redis, batch: usize, used: u32) -> f64 {
    let decisions = if batch == 1 { DECISIONS / 8 } else { DECISIONS };
    let hold = |number: usize| {
        let check = Check::charge(counter(number), bucket(), HELD);
        let holding = Holding::Hold { millis: 60_000, lost: Lost::Charge };
        Plan { lease: LeaseId(number as u128), ..Plan::of([Check { holding, ..check }]) }
    };
    let settle = |number: usize| {
        let action = HoldAction::Settle(Some(used));
        let lease = LeaseId(number as u128);
        let change = HoldChange { counter: counter(number), store: 0, limit: bucket(), lease, action };
        Plan { holds: [change].into_iter().collect(), ..Plan::default() }
    };
    let holds: Vec<Plan> = (0..COUNTERS).map(hold).collect();
    let settles: Vec<Plan> = (0..COUNTERS).map(settle).collect();
    cost(server, decisions, || async {
        for (holds, settles) in holds.chunks(batch).zip(settles.chunks(batch)).cycle().take(decisions / batch) {
            assert!(ask(store, holds).await.iter().all(|admitted| *admitted), "it is not used up");
            let settled = applied(store, settles).await;
            assert!(settled.iter().all(|settled| settled.statuses[..] == [LeaseStatus::Done]), "each once");
        }
    })
    .await
}

async fn one_bucket(server: &Server, store: &Redis) -> f64 {
    let plans = vec![plan(counter(COUNTERS), bucket(), 1); 64];
    cost(server, DECISIONS, || async {
        for _ in 0..DECISIONS / 64 {
            ask(store, &plans).await;
        }
    })
    .await
}

/// Ten charges of each of many windows of a thousand, of which none was there before.
async fn first_grants(server: &Server, store: &Redis, round: usize) -> f64 {
    let window = Limit::SlidingWindow(SlidingWindow { limit: 1_000, window: 3_600 * SECOND });
    let first = 2 * WINDOWS + round * COUNTERS;
    let plans: Vec<Plan> = (first..first + COUNTERS).map(|number| plan(counter(number), window, 1)).collect();
    cost(server, 10 * COUNTERS, || async {
        for _ in 0..10 {
            for batch in plans.chunks(64) {
                ask(store, batch).await;
            }
        }
    })
    .await
}

/// Fills a window with single grants at distinct moments.
async fn fill(store: &Timed, window: SlidingWindow) {
    let plan = plan(counter(WINDOWS + window.limit as usize), Limit::SlidingWindow(window), 1);
    for number in 0..window.limit {
        store.ask(&plan, START.plus(u64::from(number))).await;
    }
}

/// Charges of a full window, each of which drops the oldest grant.
async fn full_window(server: &Server, store: &Timed, window: SlidingWindow, begin: Timestamp) -> f64 {
    let plan = plan(counter(WINDOWS + window.limit as usize), Limit::SlidingWindow(window), 1);
    let step = window.window / u64::from(window.limit);
    // One full window first, so that the grants are a step apart.
    let mut now = begin;
    for _ in 0..window.limit {
        now = now.plus(step);
        store.ask(&plan, now).await;
    }
    cost(server, DECISIONS / 8, || async {
        for _ in 0..DECISIONS / 8 {
            now = now.plus(step);
            let admitted = store.ask(&plan, now).await;
            assert_eq!(admitted, [true], "one grant is forgotten for each");
        }
    })
    .await
}
