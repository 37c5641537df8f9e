//! Decisions per second of a PostgreSQL on this machine, and the CPU time that each costs it.
//!
//! 64 callers wait for one decision each, as a loaded door does; plans that arrive during a call share the next one. On
//! one key every batch writes one row and waits for the batch before; on 10 000 keys it writes as many rows as it has
//! plans.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed, it measures real time"
)]

#[expect(dead_code, unused_imports, reason = "tests start the other servers")]
#[path = "../../tests/support/processes/mod.rs"]
mod processes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use processes::postgres::Setup;
use tollgate::limiter::{Concurrency, LeaseId, Limit, OnStoreError, SlidingWindow, TokenBucket};
use tollgate::plan::{Check, CounterName, Plan};
use tollgate::store::{Postgres, PostgresSettings, Queue, QueueSettings};

const CALLERS: u64 = 64;
const HOUR: u64 = 3_600_000_000;

fn main() {
    let seconds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(5);
    let Some(setup) = Setup::new() else { return };
    // As in production: a commit is flushed to disk.
    let server = setup.line("fsync = on").line("shared_buffers = 512MB").line("max_wal_size = 4GB").start();
    let database = server.database();
    let url = server.url(&database);
    let ways = [("", true, false), (", synchronous_commit = off", false, false), (", unlogged", false, true)];
    println!("{:<68} {:>12} {:>14} {:>14}", "", "decisions/s", "server us each", "client us each");
    for (way, synchronous_commit, unlogged) in ways {
        let settings = PostgresSettings {
            url: url.clone(),
            table_prefix: format!("bench{}{}", u8::from(synchronous_commit), u8::from(unlogged)),
            synchronous_commit,
            unlogged,
            response_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(5),
            ..PostgresSettings::default()
        };
        let bucket = Limit::TokenBucket(TokenBucket::new(1_000_000, HOUR, 1_000_000, 0).expect("it can be held"));
        let log = Limit::SlidingWindow(SlidingWindow { limit: 1_000, window: HOUR / 3_600 });
        let slots = Limit::Concurrency(Concurrency { max: 1_000, lease: HOUR / 36_000 });
        for (name, limit, keys) in [
            ("token bucket, 1 key", bucket, 1),
            ("token bucket, 10 000 keys", bucket, 10_000),
            ("sliding window of 1 000 a second, 1 key", log, 1),
            ("concurrency, 1 key", slots, 1),
        ] {
            let before = (server.cpu(), ProcessTime::now());
            let (decisions, took) = load(&settings, limit, keys, Duration::from_secs(seconds));
            let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / decisions as f64;
            println!(
                "{:<68} {:>12.0} {:>14.1} {:>14.1}",
                format!("{name}{way}"),
                decisions as f64 / took.as_secs_f64(),
                each(server.cpu().saturating_sub(before.0)),
                each(before.1.elapsed()),
            );
        }
    }
}

/// Lets the callers send requests for a while. Returns the number of answers and the time taken.
fn load(settings: &PostgresSettings, limit: Limit, keys: u64, length: Duration) -> (u64, Duration) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = Postgres::new(settings).expect("the settings are fine");
        let queue = QueueSettings { timeout: Duration::from_secs(10), ..QueueSettings::default() };
        let queue = Arc::new(Queue::new("bench", store, queue));
        // The schema is created and the connections are open before measuring.
        for _ in 0..100 {
            queue.execute(plan(0, limit, 0), queue.deadline()).await.expect("an answer");
        }
        let (answered, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (queue, answered, over) = (queue.clone(), answered.clone(), over.clone());
                tokio::spawn(async move {
                    let mut next = caller + 1;
                    while !over.load(Ordering::Relaxed) {
                        // Scattered, and the same in every run.
                        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let plan = plan((next >> 33) % keys, limit, next);
                        queue.execute(plan, queue.deadline()).await.expect("an answer");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let began = Instant::now();
        tokio::time::sleep(length).await;
        let (count, took) = (answered.load(Ordering::Relaxed), began.elapsed());
        over.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.await.expect("no panic");
        }
        (count, took)
    })
}

fn plan(key: u64, limit: Limit, lease: u64) -> Plan {
    // Each algorithm has its own counters.
    let kind = match limit {
        Limit::TokenBucket(_) => 0,
        Limit::SlidingWindow(_) => 1,
        _ => 2,
    };
    let check = Check {
        on_store_error: OnStoreError::Deny,
        ..Check::charge(CounterName([key.wrapping_mul(0x9e37_79b9_7f4a_7c15), kind]), limit, 1)
    };
    Plan { lease: LeaseId(lease.into()), ..Plan::of([check]) }
}
