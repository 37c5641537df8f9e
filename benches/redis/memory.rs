//! The memory of a counter in Redis or Valkey: growth of the server's `used_memory` and resident set over many counters,
//! beside what `MEMORY USAGE` says of one. `cargo run --example redis_memory [PROGRAM]`, by default `redis-server`.

#![expect(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed"
)]

mod server;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tollgate::limiter::{
    Alignment, Calendar, CalendarUnit, Concurrency, FixedWindow, LeaseId, Limit, SlidingCounter, SlidingWindow,
    TokenBucket,
};
use tollgate::plan::{Charges, Check, CounterName, Plan};
use tollgate::store::{Address, Backend, Redis, RedisSettings, Topology};

use crate::server::Server;

const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

/// Plans of one call.
const BATCH: usize = 64;

/// What is measured: counters of one limit.
struct Row {
    name: &'static str,
    limit: Limit,
    counters: u64,
    /// Requests for each counter, each of this many units. A lease is one of one unit.
    requests: u64,
    units: u32,
}

#[tokio::main]
async fn main() {
    let program = std::env::args().nth(1).unwrap_or_else(|| "redis-server".to_owned());
    let mut heads = true;
    for row in rows() {
        let server = Server::start(&program).await;
        if heads {
            let version = server.info("server", "redis_version").await;
            println!("{program}, compatible with Redis {version}, {}", server.info("memory", "mem_allocator").await);
            println!(
                "{:<36} {:>9} {:>12} {:>10} {:>8} {:>14}",
                "bytes of a counter", "counters", "used_memory", "of expiry", "RSS", "MEMORY USAGE"
            );
            heads = false;
        }
        measure(&server, &row).await;
    }
}

fn rows() -> Vec<Row> {
    let bucket = Limit::TokenBucket(TokenBucket::new(100, DAY, 100, 0).expect("it can be held"));
    let log = |limit| Limit::SlidingWindow(SlidingWindow { limit, window: DAY });
    let fixed = |alignment| Limit::FixedWindow(FixedWindow { limit: 100, alignment });
    let leases = Limit::Concurrency(Concurrency { max: 10, lease: DAY });
    let years = Calendar::of(CalendarUnit::Year, &jiff::tz::TimeZone::UTC);
    let counting = |name, limit| Row { name, limit, counters: 100_000, requests: 1, units: 1 };
    vec![
        counting("token_bucket", bucket),
        counting("sliding_window, 1 grant", log(1_000)),
        Row { requests: 3, ..counting("sliding_window, 3 grants", log(1_000)) },
        Row { requests: 10, ..counting("sliding_window, 10 grants", log(1_000)) },
        Row { requests: 10, ..counting("sliding_window, full with 10 grants", log(10)) },
        Row {
            counters: 5_000,
            requests: 10,
            units: 100,
            ..counting("sliding_window, full with 1000 grants", log(1_000))
        },
        counting("sliding_counter", Limit::SlidingCounter(SlidingCounter { limit: 100, window: DAY })),
        counting("fixed_window, first_hit", fixed(Alignment::FirstHit(DAY))),
        counting("fixed_window, epoch", fixed(Alignment::Epoch(DAY))),
        counting("fixed_window, calendar", fixed(Alignment::Calendar(years))),
        counting("concurrency, 1 lease", leases),
        Row { requests: 10, ..counting("concurrency, 10 leases", leases) },
    ]
}

async fn measure(server: &Server, row: &Row) {
    let store = connected(server).await;
    // The script and the buffers of the connection are there before.
    charge(&store, row, row.counters..row.counters + BATCH as u64).await;
    let mut connection = server.connection().await;
    let _: String = redis::cmd("FLUSHALL").arg("SYNC").query_async(&mut connection).await.expect("it answers");
    let before = (settled(server).await, server.number("memory", "used_memory_rss").await);
    charge(&store, row, 0..row.counters).await;
    let full = settled(server).await;
    let resident = server.number("memory", "used_memory_rss").await;
    let usage = usage(&mut connection, row.counters / 2, row.counters).await;
    persist(&mut connection).await;
    let unexpired = settled(server).await;
    let each = |bytes: f64| bytes / row.counters as f64;
    println!(
        "{:<36} {:>9} {:>12.1} {:>10.1} {:>8.1} {:>14}",
        row.name,
        row.counters,
        each(full - before.0),
        each(full - unexpired),
        each(resident - before.1),
        usage
    );
}

/// A store that has answered once.
async fn connected(server: &Server) -> Redis {
    let topology = Topology::Standalone(Address::Tcp("127.0.0.1".to_owned(), server.port));
    let settings = RedisSettings { response_timeout: Duration::from_secs(20), ..RedisSettings::new(topology) };
    let store = Redis::new(&settings).expect("no file is read");
    while store.probe().await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store
}

async fn charge(store: &Redis, row: &Row, counters: std::ops::Range<u64>) {
    let numbers: Vec<u64> = counters.collect();
    for request in 0..row.requests {
        for numbers in numbers.chunks(BATCH) {
            let plans: Vec<Plan> = numbers.iter().map(|&number| plan(row, number, request)).collect();
            for applied in store.execute(&plans).await {
                assert!(applied.expect("it answers").admitted, "{}", row.name);
            }
        }
    }
}

fn plan(row: &Row, number: u64, request: u64) -> Plan {
    let charges = Charges { admitted: row.units, ..Charges::default() };
    let check = Check { charges, ..Check::charge(counter(number), row.limit, row.units) };
    let lease = u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(request + 1);
    Plan { lease: LeaseId(lease), ..Plan::of([check]) }
}

fn counter(number: u64) -> CounterName {
    CounterName([(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), number.wrapping_mul(0xd1b5_4a32_d192_ed03)])
}

/// The server's `used_memory` once its hash tables have grown or shrunk completely, which it does little by little.
async fn settled(server: &Server) -> f64 {
    let mut last = f64::NAN;
    loop {
        let now = server.number("memory", "used_memory").await;
        if (now - last).abs() < 64.0 {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What `MEMORY USAGE` says of the keys of one counter.
async fn usage(connection: &mut MultiplexedConnection, number: u64, counters: u64) -> u64 {
    assert!(number < counters);
    let [first, second] = counter(number).0;
    let key = [&b"tollgate:1"[..], &first.to_be_bytes(), &second.to_be_bytes()].concat();
    let mut bytes = 0;
    for key in [key.clone(), [&key[..], b"a"].concat()] {
        let mut cmd = redis::cmd("MEMORY");
        let usage: Option<u64> =
            cmd.arg("USAGE").arg(key).arg("SAMPLES").arg(0).query_async(connection).await.expect("it answers");
        bytes += usage.unwrap_or(0);
    }
    bytes
}

/// Takes the expiry off all keys.
async fn persist(connection: &mut MultiplexedConnection) {
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        let (next, keys): (u64, Vec<Vec<u8>>) =
            scan.arg(cursor).arg("COUNT").arg(1_000).query_async(connection).await.expect("it answers");
        let mut all = redis::pipe();
        for key in keys {
            all.cmd("PERSIST").arg(key).ignore();
        }
        all.query_async::<()>(connection).await.expect("it answers");
        if next == 0 {
            return;
        }
        cursor = next;
    }
}
