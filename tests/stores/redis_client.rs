//! A Redis of a test, called as the service calls it.

use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::ManualClock;
use tollgate::limiter::{LeaseId, Limit};
use tollgate::plan::{Applied, Check, CounterName, Fault, Outcome, Plan};
use tollgate::store::{Address, Backend, Redis, RedisSettings, Topology};

/// A server at this port.
pub fn at(port: u16) -> RedisSettings {
    RedisSettings::new(Topology::Standalone(Address::Tcp("127.0.0.1".to_owned(), port)))
}

/// A Redis that has answered once.
pub async fn connected(settings: &RedisSettings) -> Redis {
    let redis = Redis::new(settings).expect("its files can be read");
    answers(&redis).await;
    redis
}

/// The same, which decides by this clock.
pub async fn connected_with_clock(settings: &RedisSettings, clock: &ManualClock) -> Redis {
    connected(settings).await.with_clock(Arc::new(clock.clone()))
}

/// Waits until it answers.
pub async fn answers(redis: &Redis) {
    let mut fault = Fault::Unreachable;
    for _ in 0..10_000 {
        match redis.probe().await {
            Ok(()) => return,
            Err(reason) => fault = reason,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it does not answer: {fault}");
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// The name of a counter.
pub fn counter(number: u64) -> CounterName {
    CounterName([0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1), number])
}

/// A check of one unit.
pub fn one(counter: CounterName, limit: Limit) -> Check {
    Check::charge(counter, limit, 1)
}

/// A plan of one group.
pub fn plan(checks: impl IntoIterator<Item = Check>) -> Plan {
    Plan { lease: LeaseId(7), ..Plan::of(checks) }
}

/// The outcome of a single check, by the clock of the store.
pub async fn decide(redis: &Redis, check: Check) -> Result<Outcome, Fault> {
    let applied = apply(redis, plan([check])).await?;
    applied.answers[0]
}

/// The outcome of a plan, by the clock of the store.
pub async fn apply(redis: &Redis, plan: Plan) -> Result<Applied, Fault> {
    redis.execute(&[plan]).await.pop().expect("one answer for each plan")
}
