//! The wrappers fulfil their contract around a real Redis.

use std::sync::Arc;

use tollgate::clock::ManualClock;
use tollgate::store::{Redis, RedisSettings, Stores};

use super::redis_client::at;
use super::wrapped::{
    WITH_CACHE, WITH_LEASES, Wrapped, instance, leases_keep_the_contract, the_cache_keeps_the_contract,
};
use crate::support::processes::redis::Redis as Server;

/// An instance with empty counters, which decides by this clock.
fn empty(server: &Server, run: u32, clock: ManualClock, name: &str, wrapped: Wrapped) -> Stores {
    let settings = RedisSettings { key_prefix: format!("{name} {run}:"), ..at(server.port) };
    let redis = Redis::new(&settings).expect("there is no file to read");
    instance(redis.with_clock(Arc::new(clock)), wrapped)
}

#[test]
fn the_refusal_cache_keeps_the_contract_around_redis() {
    let Some(server) = Server::start() else { return };
    the_cache_keeps_the_contract(400, |run, clock| empty(&server, run, clock, "cache", WITH_CACHE));
}

#[test]
fn quota_leases_keep_the_contract_around_redis() {
    let Some(server) = Server::start() else { return };
    leases_keep_the_contract(400, |run, clock| empty(&server, run, clock, "leases", WITH_LEASES));
}
