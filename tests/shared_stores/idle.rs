//! Idle connections that a gateway on the way has dropped without a word: each is found and replaced before the next
//! decision needs it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tollgate::limiter::{Alignment, FixedWindow, Limit, OnStoreError};
use tollgate::store::{QueueSettings, SharedSettings, StoreHandle};

use super::in_process::{self, Instance, at, in_postgres, in_redis, one, settings};
use super::load::Row;
use crate::support::processes::{Postgres, Proxy, Redis, WAIT_TIMEOUT};

/// A sign of life is asked for after 5 s of silence, and waited for half a second; the rest is for a busy machine.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// A deadline with time for a busy machine.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Decisions at once. Each has a call of its own, so that all connections of a pool are in use.
const DECISIONS: usize = 32;

fn unbatched() -> SharedSettings {
    let settings = settings(TIMEOUT);
    SharedSettings { queue: QueueSettings { max_batch: 1, max_calls: 8, ..settings.queue }, ..settings }
}

async fn is_found_before_the_next_decision(name: &str, proxy: &Proxy, handle: StoreHandle) {
    let instance = Instance::on(handle).await;
    let day = Limit::FixedWindow(FixedWindow { limit: 1_000, alignment: Alignment::FirstHit(86_400_000_000) });
    let check = one(1, day, OnStoreError::Deny);
    let decide = async || {
        let timed = async || {
            let began = Instant::now();
            let (applied, _) = instance.ask(check).await;
            (began.elapsed(), applied)
        };
        join_all((0..DECISIONS).map(|_| timed())).await
    };
    decide().await;
    let ended = proxy.ended();
    let lost = proxy.lose();
    assert!(lost > 0, "there are connections");
    let since = Instant::now();
    while proxy.ended() < ended + lost {
        assert!(since.elapsed() < WAIT_TIMEOUT, "{} of {lost} are found", proxy.ended() - ended);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found = since.elapsed();
    let seen = decide().await;
    let by_policy = seen.iter().filter(|(_, applied)| applied.degraded).count();
    let longest = seen.iter().map(|(took, _)| *took).max().expect("decisions");
    let moment = format!("{lost} idle connections dropped silently, {name}");
    Row { moment, by_policy, answers: seen.len(), over: 0, leaked: None, longest, recovery: Some(found) }.print();
    assert_eq!(by_policy, 0, "{name}: by policy after an idle connection was lost");
    assert!(seen.iter().all(|(_, applied)| applied.admitted), "{name}");
    assert!(found < FOUND_WITHIN, "{name}: found after {found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_that_is_dropped_silently_is_replaced_before_it_is_needed() {
    let _alone = crate::MACHINE.write().await;
    let (Some(redis), Some(postgres)) = (Redis::start(), Postgres::shared()) else { return };
    let database = postgres.database();
    let [to_redis, to_postgres] = [redis.port, postgres.port].map(Proxy::to);
    let url = postgres.url(&database).replace(&format!(":{}/", postgres.port), &format!(":{}/", to_postgres.port));
    let redis = in_redis(unbatched(), &at(to_redis.port));
    let postgres = in_postgres(unbatched(), &in_process::postgres(url));
    // Both are silent at the same time.
    tokio::join!(
        is_found_before_the_next_decision("Redis", &to_redis, redis),
        is_found_before_the_next_decision("PostgreSQL", &to_postgres, postgres),
    );
}
