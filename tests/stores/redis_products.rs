//! What the store runs on: Redis 6.2, other versions of Lua, and by name what it does not run on.

use std::time::{Duration, Instant};

use tollgate::limiter::{Limit, SlidingWindow};
use tollgate::plan::Fault;
use tollgate::store::{Backend, Password, Redis, RedisSettings};

use super::redis::{HOLDS, the_contract, the_contract_of};
use super::redis_client::{at, counter, decide, one, runtime};
use crate::support::processes::redis::{Redis as Server, Setup};
use crate::support::processes::{Cluster, RedisProxy, ScriptServer, Sentinel};

#[test]
fn redis_6_keeps_the_contract() {
    let Some(setup) = Setup::redis_6() else { return };
    let server = setup.start();
    assert!(server.info("server", "redis_version").starts_with("6.2."));
    the_contract(200, &at(server.port));
    server.ask::<()>(&["FLUSHALL"]);
    the_contract_of(HOLDS, 100, &at(server.port));
}

#[test]
fn the_script_keeps_the_contract_in_every_version_of_lua() {
    for version in ["5.1", "5.2", "5.3", "5.4"] {
        let Some(server) = ScriptServer::start(version) else { return };
        the_contract(20, &at(server.port));
        let Some(server) = ScriptServer::start(version) else { return };
        the_contract_of(HOLDS, 10, &at(server.port));
    }
}

/// Why a server is not connected to.
fn refusal(settings: &RedisSettings) -> String {
    refusal_with(settings, "")
}

/// The same, when it has these words. A server that closes connections may do so before its words arrive.
fn refusal_with(settings: &RedisSettings, words: &str) -> String {
    runtime().block_on(async {
        let redis = Redis::new(settings).expect("no file is read");
        let begun = Instant::now();
        loop {
            match redis.warm_up().await {
                Err(text) if text.starts_with("connecting to") && text.contains(words) => {
                    let check = one(counter(1), Limit::SlidingWindow(SlidingWindow { limit: 5, window: 1_000_000 }));
                    let fault = decide(&redis, check).await.expect_err("no server is connected to");
                    assert!(matches!(fault, Fault::Unreachable | Fault::Denied), "{text}: {fault}");
                    return text;
                }
                other => assert!(begun.elapsed() < Duration::from_secs(20), "it is not refused: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

#[test]
fn a_proxy_is_refused_by_name_and_nothing_is_written_through_it() {
    let (Some(first), Some(second)) = (Server::start(), Server::start()) else { return };
    let envoy = RedisProxy::envoy(&[&first, &second]).map(|proxy| (proxy, "it is a proxy (envoy-redis-proxy)"));
    let broke = "the server closed the connection before it answered";
    let twemproxy = RedisProxy::twemproxy(&[&first, &second]).map(|proxy| (proxy, broke));
    for (proxy, reason) in [envoy, twemproxy].into_iter().flatten() {
        let text = refusal(&at(proxy.port));
        assert!(text.contains(reason) && text.contains("connect to Redis or Valkey itself"), "{text}");
        assert_eq!([&first, &second].map(|server| server.ask::<u32>(&["DBSIZE"])), [0, 0]);
    }
}

#[test]
fn a_proxy_in_front_of_one_server_is_refused_too() {
    let Some(server) = Server::start() else { return };
    let Some(proxy) = RedisProxy::envoy(&[&server]) else { return };
    assert!(refusal(&at(proxy.port)).contains("it is a proxy (envoy-redis-proxy)"));
}

#[test]
fn a_server_of_another_mode_is_refused_with_the_mode_that_it_needs() {
    let (Some(watched), Some(cluster)) = (Sentinel::start(), Cluster::start(3, 0)) else { return };
    let text = refusal(&at(watched.ports()[0]));
    assert!(text.contains("it is a sentinel: set mode = \"sentinel\""), "{text}");
    let text = refusal(&at(cluster.ports()[0]));
    assert!(text.contains("it is a node of a Redis Cluster: set mode = \"cluster\""), "{text}");
}

#[test]
fn a_server_that_needs_a_password_is_reported_in_its_own_words() {
    let Some(setup) = Setup::redis() else { return };
    let protected = setup.password("secret").start();
    assert!(refusal(&at(protected.port)).contains("NOAUTH"));
}

#[test]
fn a_server_that_takes_no_more_clients_is_reported_in_its_own_words() {
    let Some(setup) = Setup::redis() else { return };
    for (server, password) in [(setup.clone().start(), None), (setup.password("secret").start(), Some("secret"))] {
        let client = redis::Client::open(server.url()).expect("an address");
        let mut only = client.get_connection().expect("a connection");
        redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(1).exec(&mut only).expect("it is set");
        let mut settings = at(server.port);
        settings.credentials.password = password.map(Password::new);
        let text = refusal_with(&settings, "max number of clients reached");
        assert!(text.ends_with("raise maxclients of the server, or close connections of other clients"), "{text}");
        assert!(!text.contains("proxy"), "{text}");
    }
}

#[test]
fn a_port_for_tls_is_named_as_a_cause_when_tls_is_off() {
    let Some(setup) = Setup::redis() else { return };
    for (server, password) in
        [(setup.clone().tls().start(), None), (setup.password("secret").tls().start(), Some("secret"))]
    {
        let mut settings = at(server.tls().0);
        settings.credentials.password = password.map(Password::new);
        let text = refusal(&settings);
        assert!(text.contains("its port expects TLS (then the url has to begin with rediss://)"), "{text}");
        assert!(text.contains("it is stopping or restarting"), "{text}");
    }
}
