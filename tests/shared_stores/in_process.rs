//! Instances of tollgate in this process that count in one real store, each with its own connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollgate::clock::{Clock, SystemClock};
use tollgate::limiter::{Concurrency, LeaseId, Limit, OnStoreError};
use tollgate::plan::{Applied, Check, CounterName, LeaseAction, LeaseChange, Plan};
use tollgate::store::{
    Address, Postgres, PostgresSettings, QueueSettings, Redis, RedisSettings, SharedSettings, SharedStore, StoreHandle,
    Stores, Topology,
};

use crate::support::processes::{Cluster, Proxy, WAIT_TIMEOUT, postgres as postgres_server, redis as redis_server};

/// Deadlines of a decision.
pub const SHORT: Duration = Duration::from_millis(10);
pub const LONG: Duration = Duration::from_millis(50);

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

pub fn slots(max: u32) -> Limit {
    Limit::Concurrency(Concurrency { max, lease: 60_000_000 })
}

/// Settings with this deadline.
pub fn settings(timeout: Duration) -> SharedSettings {
    let queue = QueueSettings { timeout, ..QueueSettings::default() };
    SharedSettings { queue, ..SharedSettings::new("main") }
}

pub fn redis(server: &redis_server::Redis, timeout: Duration) -> StoreHandle {
    in_redis(settings(timeout), &at(server.port))
}

pub fn in_cluster(cluster: &Cluster, timeout: Duration) -> StoreHandle {
    let settings = SharedSettings { partitioned: true, ..settings(timeout) };
    in_redis(settings, &RedisSettings::new(Topology::Cluster(addresses(cluster.ports()))))
}

pub fn in_a_postgres(server: &postgres_server::Postgres, database: &str, timeout: Duration) -> StoreHandle {
    in_postgres(settings(timeout), &postgres(server.url(database)))
}

/// These ports of this machine.
pub fn addresses(ports: Vec<u16>) -> Vec<Address> {
    ports.into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port)).collect()
}

/// An instance of tollgate.
pub struct Instance {
    stores: Stores,
    clock: SystemClock,
    lease: AtomicU64,
}

impl Instance {
    /// One whose store has answered.
    pub async fn on(handle: StoreHandle) -> Arc<Self> {
        let instance =
            Self { stores: Stores::of([handle]), clock: SystemClock::new(), lease: AtomicU64::new(rand_base()) };
        let began = Instant::now();
        while !instance.stores.answers(0).await {
            assert!(began.elapsed() < WAIT_TIMEOUT, "the store never answers");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Arc::new(instance)
    }

    pub async fn apply(&self, plan: &Plan) -> Applied {
        self.stores.apply(plan, self.clock.now()).await
    }

    /// Asks for a check under a new lease. Returns the lease with the answer.
    pub async fn ask(&self, check: Check) -> (Applied, u128) {
        let lease = self.lease.fetch_add(1, Ordering::SeqCst).into();
        (self.apply(&plan([check], lease)).await, lease)
    }

    pub async fn release(&self, check: &Check, lease: u128) {
        let change = LeaseChange {
            counter: check.counter,
            store: check.store,
            lease: LeaseId(lease),
            action: LeaseAction::Release,
        };
        self.apply(&Plan { changes: [change].into_iter().collect(), ..Plan::default() }).await;
    }

    /// Waits until a check has so much left in the store.
    pub async fn has_left(&self, check: Check, left: u32) {
        assert_eq!(self.comes_to_have_left(check, left, WAIT_TIMEOUT).await, Some(left), "units left");
    }

    /// What a check has left in the store: once it is `left`, or after the longest time.
    pub async fn comes_to_have_left(&self, check: Check, left: u32, longest: Duration) -> Option<u32> {
        let look = Check { on_store_error: OnStoreError::Deny, ..Check::look(check.counter, check.limit) };
        let began = Instant::now();
        loop {
            let seen = self.apply(&plan([look], 0)).await.answers[0].ok().map(|outcome| outcome.remaining);
            if seen == Some(left) || began.elapsed() > longest {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Leases that no other instance of this test has.
pub fn rand_base() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1 << 32, Ordering::SeqCst)
}

/// Something that loses its connections.
pub trait Resets {
    fn reset(&self);
}

impl Resets for redis_server::Redis {
    fn reset(&self) {
        self.ask::<u64>(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
}

impl Resets for postgres_server::Postgres {
    fn reset(&self) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tollgate'";
        self.execute("postgres", others);
    }
}

impl Resets for Cluster {
    fn reset(&self) {
        self.nodes.iter().for_each(redis_server::Redis::reset);
    }
}

impl Resets for Proxy {
    fn reset(&self) {
        self.cut();
    }
}
