//! Instances of tollgate in this process that count in one real store, each with its own connections.

use std::sync::Arc;

use tollgate::limiter::{LeaseId, Limit, OnStoreError};
use tollgate::plan::{Check, CounterName, Plan};
use tollgate::store::{
    Address, Postgres, PostgresSettings, Redis, RedisSettings, SharedSettings, SharedStore, StoreHandle, Topology,
};

/// A Redis on this port.
pub fn at(port: u16) -> RedisSettings {
    RedisSettings::new(Topology::Standalone(Address::Tcp("127.0.0.1".to_owned(), port)))
}

/// Counters in a Redis, whose timeout is at least the deadline of a decision.
pub fn in_redis(settings: SharedSettings, redis: &RedisSettings) -> StoreHandle {
    let response_timeout = redis.response_timeout.max(settings.queue.timeout);
    let redis = Redis::new(&RedisSettings { response_timeout, ..redis.clone() });
    StoreHandle::Shared(Arc::new(SharedStore::new(settings, redis.expect("nothing is to be read"))))
}

/// Counters in a PostgreSQL, whose timeouts are at least the deadline of a decision.
pub fn in_postgres(settings: SharedSettings, postgres: &PostgresSettings) -> StoreHandle {
    let timeouts = [postgres.response_timeout, postgres.connect_timeout, postgres.lock_timeout];
    let [response_timeout, connect_timeout, lock_timeout] = timeouts.map(|timeout| timeout.max(settings.queue.timeout));
    let timeouts = PostgresSettings { response_timeout, connect_timeout, lock_timeout, ..postgres.clone() };
    let postgres = Postgres::new(&timeouts);
    StoreHandle::Shared(Arc::new(SharedStore::new(settings, postgres.expect("a URL"))))
}

/// A PostgreSQL at this URL.
pub fn postgres(url: String) -> PostgresSettings {
    PostgresSettings { url, ..PostgresSettings::default() }
}

/// A check of one unit on a counter of the first store.
pub fn one(counter: u64, limit: Limit, on_store_error: OnStoreError) -> Check {
    Check {
        on_store_error,
        ..Check::charge(CounterName([0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(counter + 1), counter]), limit, 1)
    }
}

/// A plan of one group that takes slots under this lease.
pub fn plan(checks: impl IntoIterator<Item = Check>, lease: u128) -> Plan {
    Plan { lease: LeaseId(lease), ..Plan::of(checks) }
}
