//! The memory that a counter takes of Redis and Valkey, all told: growth of `used_memory` over many counters.

use std::time::{Duration, Instant};

use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, Limit, SlidingCounter, SlidingWindow, TokenBucket,
};
use tollgate::plan::Plan;
use tollgate::store::{Backend, Redis, RedisSettings};

use super::redis_client::{at, connected, counter, one, plan, runtime};
use crate::support::processes::redis::{Redis as Server, Setup};
use crate::support::reference::plans::SECOND;

/// Counters of each limit. The hash tables of keys and of expiries then have exactly as many places, 16 bytes a key.
const COUNTERS: u64 = 1 << 15;

const DAY: u64 = 86_400 * SECOND;

/// A limit, the requests for each counter, and the bytes of a counter: in Redis with the system's jemalloc, as in
/// Debian, and in Valkey with the allocator of libc.
type Row = (Limit, u64, [u64; 2]);

fn rows() -> [Row; 8] {
    let bucket = Limit::TokenBucket(TokenBucket::new(100, DAY, 100, 0).expect("it can be held"));
    let log = Limit::SlidingWindow(SlidingWindow { limit: 1_000, window: DAY });
    let first_hit = Alignment::FirstHit(DAY);
    let leases = Limit::Concurrency(Concurrency { max: 10, lease: DAY });
    [
        (bucket, 1, [144, 118]),
        (log, 1, [160, 122]),
        (log, 3, [176, 153]),
        (log, 10, [256, 228]),
        (Limit::SlidingCounter(SlidingCounter { limit: 100, window: DAY }), 1, [160, 121]),
        (Limit::FixedWindow(FixedWindow { limit: 100, alignment: first_hit }), 1, [160, 121]),
        (leases, 1, [352, 266]),
        (leases, 10, [912, 779]),
    ]
}

/// The bytes of `used_memory`, once its hash tables have grown or shrunk completely, which it does little by little.
async fn settled(server: &Server) -> u64 {
    let used = || server.info("memory", "used_memory").parse::<u64>().expect("a number");
    let (mut last, begun) = (used(), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = used();
        if now.abs_diff(last) < 1_024 {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it grows without requests");
        last = now;
    }
}

async fn charge(redis: &Redis, limit: Limit, requests: u64, counters: std::ops::Range<u64>) {
    let plans: Vec<Plan> = counters.map(|number| plan([one(counter(number), limit)])).collect();
    for request in 0..requests {
        for plans in plans.chunks(64) {
            let plans: Vec<Plan> = plans
                .iter()
                .map(|plan| Plan { lease: LeaseId((1 << 100) + u128::from(request)), ..plan.clone() })
                .collect();
            for applied in redis.execute(&plans).await {
                assert!(applied.expect("it answers").admitted, "{limit:?}");
            }
        }
    }
}

/// The bytes of each of [`COUNTERS`] counters.
async fn bytes_of_each(server: &Server, redis: &Redis, limit: Limit, requests: u64) -> u64 {
    // The buffers of connections and the script are there before.
    charge(redis, limit, requests, COUNTERS..COUNTERS + 64).await;
    server.ask::<()>(&["FLUSHALL", "SYNC"]);
    let before = settled(server).await;
    charge(redis, limit, requests, 0..COUNTERS).await;
    (settled(server).await - before) / COUNTERS
}

fn is_small(server: &Server, place: usize) {
    runtime().block_on(async {
        let settings = RedisSettings { response_timeout: Duration::from_secs(20), ..at(server.port) };
        let redis = connected(&settings).await;
        let mut large = Vec::new();
        for (limit, requests, bytes) in rows() {
            // On a busy machine a hash table may look settled while it still has both its tables, so one of three
            // attempts has to show it.
            let mut each = u64::MAX;
            for _ in 0..3 {
                each = each.min(bytes_of_each(server, &redis, limit, requests).await);
                // A key that grows by one size of the allocator, 16 bytes, exceeds it.
                if each < bytes[place] + 8 {
                    break;
                }
            }
            println!("{limit:?}, {requests} requests: {each} bytes");
            if each >= bytes[place] + 8 {
                large.push(format!("{limit:?} with {requests} requests takes {each} bytes, expected {}", bytes[place]));
            }
        }
        assert!(large.is_empty(), "{large:#?}");
    });
}

#[test]
fn counters_are_small_in_redis() {
    if let Some(server) = Server::start() {
        is_small(&server, 0);
    }
}

#[test]
fn counters_are_small_in_valkey() {
    if let Some(setup) = Setup::valkey() {
        is_small(&setup.start(), 1);
    }
}
