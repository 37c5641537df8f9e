//! Connections to Redis: transports, users, and reconnecting.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tollgate::limiter::{FixedWindow, Limit};
use tollgate::plan::Fault;
use tollgate::store::{Address, Backend, Credentials, Password, Redis, RedisSettings, Topology};
use tollgate::tls::{ClientCertificate, PemFile, TlsSettings};

use super::redis_client::{answers, apply, at, connected, counter, decide, one, plan, runtime};
use crate::support::processes::WAIT_TIMEOUT;
use crate::support::processes::proxy::Proxy;
use crate::support::processes::redis::{Redis as Server, Setup};
use crate::support::processes::sentinel::{NAME, Sentinel};

const HOUR: u64 = 3_600_000_000;

/// Ten per window, which does not end during a test.
fn ten() -> Limit {
    Limit::FixedWindow(FixedWindow { limit: 10, alignment: tollgate::limiter::Alignment::FirstHit(HOUR) })
}

async fn left(redis: &Redis) -> Result<u32, Fault> {
    decide(redis, one(counter(0), ten())).await.map(|outcome| outcome.remaining)
}

/// The first answer other than that there is no connection yet.
async fn verdict(redis: &Redis) -> Result<(), Fault> {
    let began = Instant::now();
    loop {
        let answer = redis.probe().await;
        if answer != Err(Fault::Unreachable) || began.elapsed() > Duration::from_secs(5) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn credentials(user: Option<&str>, password: &str) -> Credentials {
    Credentials { user: user.map(str::to_owned), password: Some(Password::new(password)) }
}

#[test]
fn a_unix_socket_leads_to_the_same_counters() {
    let Some(server) = Setup::redis().map(|setup| setup.unix_socket().start()) else { return };
    runtime().block_on(async {
        let unix = RedisSettings::new(Topology::Standalone(Address::Unix(server.socket())));
        assert_eq!(left(&connected(&unix).await).await, Ok(9));
        assert_eq!(left(&connected(&at(server.port)).await).await, Ok(8));
    });
}

/// Weakness A4: all users of a server share their counters.
#[test]
fn a_database_and_a_prefix_keep_counters_apart() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let here = at(server.port);
        let another = RedisSettings { db: 3, ..here.clone() };
        let prefixed = RedisSettings { key_prefix: "other:".to_owned(), ..here.clone() };
        for settings in [&here, &another, &prefixed] {
            assert_eq!(left(&connected(settings).await).await, Ok(9), "{settings:?}");
        }
        assert!(server.info("keyspace", "db3").starts_with("keys="));
        let keys: Vec<Vec<u8>> = server.ask(&["KEYS", "other:1*"]);
        assert!(!keys.is_empty());
    });
}

#[test]
fn a_user_with_a_password_is_let_in_to_its_keys_only() {
    let Some(server) = Setup::redis().map(|setup| setup.password("boss").start()) else { return };
    // The permissions that docs/stores.md names are enough.
    let page = include_str!("../../docs/stores.md");
    let (_, rights) = page.split_once("An ACL user needs `").expect("the page names them");
    let rights = rights.split_once('`').expect("to the end").0.split_whitespace();
    let user: Vec<&str> = ["ACL", "SETUSER", "limits", "on", ">secret"].into_iter().chain(rights).collect();
    server.ask::<()>(&user);
    runtime().block_on(async {
        let known = RedisSettings { credentials: credentials(Some("limits"), "secret"), ..at(server.port) };
        assert_eq!(left(&connected(&known).await).await, Ok(9));
        let default = RedisSettings { credentials: credentials(None, "boss"), ..at(server.port) };
        assert_eq!(left(&connected(&default).await).await, Ok(8));
        for stranger in [Credentials::default(), credentials(Some("limits"), "wrong"), credentials(None, "secret")] {
            let settings = RedisSettings { credentials: stranger, ..at(server.port) };
            let redis = Redis::new(&settings).expect("no file is read");
            assert_eq!(verdict(&redis).await, Err(Fault::Denied), "{settings:?}");
            assert_eq!(left(&redis).await, Err(Fault::Denied), "{settings:?}");
        }
        let elsewhere = RedisSettings { key_prefix: "other:".to_owned(), ..known };
        let redis = Redis::new(&elsewhere).expect("no file is read");
        assert_eq!(verdict(&redis).await, Err(Fault::Denied));
        assert_eq!(left(&redis).await, Err(Fault::Denied));
    });
}

#[test]
fn tls_trusts_the_authority_that_is_named_and_shows_our_certificate() {
    let Some(server) = Setup::redis().map(|setup| setup.tls().start()) else { return };
    let (port, files) = server.tls();
    let proxy = Proxy::to(port);
    let [certificate, key] = [&files.client, &files.client_key].map(PemFile::read);
    let identity = ClientCertificate { certificate, key };
    let tls = TlsSettings { ca: Some(PemFile::read(&files.authority)), identity: Some(identity), server_name: None };
    let secured = |tls: &TlsSettings| RedisSettings { tls: Some(tls.clone()), ..at(proxy.port) };
    runtime().block_on(async {
        assert_eq!(left(&connected(&secured(&tls)).await).await, Ok(9));
        let named = TlsSettings { server_name: Some("localhost".to_owned()), ..tls.clone() };
        assert_eq!(left(&connected(&secured(&named)).await).await, Ok(8));
        let refused = [
            TlsSettings { identity: None, ..tls.clone() },
            TlsSettings { ca: None, ..tls.clone() },
            TlsSettings { server_name: Some("elsewhere.test".to_owned()), ..tls.clone() },
        ];
        for tls in refused {
            let before = proxy.ended();
            // A system without trusted roots rejects the settings at once.
            let Ok(redis) = Redis::new(&secured(&tls)) else { continue };
            // The first answer may belong to the previous settings.
            let tried = async {
                while proxy.ended() < before + 3 {
                    // With TLS 1.3 the server refuses a client after that has begun to send.
                    let answer = left(&redis).await;
                    assert!(matches!(answer, Err(Fault::Unreachable | Fault::ConnectionLost)), "{answer:?} {tls:?}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), tried).await.expect("it tries, and tries again");
        }
    });
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").expect("a file in the test's directory");
    for (file, expected) in [(PathBuf::from("/nowhere/ca.pem"), "/nowhere/ca.pem: "), (empty, "empty.pem: ")] {
        let tls = TlsSettings { ca: Some(PemFile::read(file)), ..TlsSettings::default() };
        let error = Redis::new(&RedisSettings { tls: Some(tls), ..at(1) }).expect_err("it has no certificate");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_password_is_never_shown() {
    let settings = RedisSettings { credentials: credentials(None, "hunter2"), ..at(1) };
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn a_lost_connection_is_replaced() {
    let Some(mut server) = Server::start() else { return };
    threads().block_on(async {
        let redis = connected(&at(server.port)).await;
        assert_eq!(left(&redis).await, Ok(9));
        server.kill();
        let lost = Instant::now();
        while left(&redis).await != Err(Fault::Unreachable) {
            assert!(lost.elapsed() < WAIT_TIMEOUT, "it is noticed");
        }
        // Without a connection the answer comes at once: no call waits for a reconnect.
        let at_once = async {
            for _ in 0..1_000 {
                assert_eq!(left(&redis).await, Err(Fault::Unreachable));
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, at_once).await.expect("a wait of 20 ms each would be seen");
        server.restart();
        answers(&redis).await;
        assert_eq!(left(&redis).await, Ok(9));
    });
}

#[test]
fn a_server_that_does_not_answer_is_abandoned_in_time() {
    let Some(server) = Server::start() else { return };
    threads().block_on(async {
        let settings = RedisSettings { response_timeout: Duration::from_millis(100), ..at(server.port) };
        let redis = connected(&settings).await;
        server.freeze();
        let given_up = tokio::time::timeout(WAIT_TIMEOUT, left(&redis)).await.expect("it is given up");
        assert_eq!(given_up, Err(Fault::Timeout));
        server.thaw();
        answers(&redis).await;
    });
}

#[test]
fn a_failover_is_followed_and_nothing_is_counted_in_the_server_before() {
    let Some(watched) = Sentinel::start() else { return };
    let sentinels = watched.ports().into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port)).collect();
    let topology = Topology::Sentinel { sentinels, master: NAME.to_owned(), credentials: Credentials::default() };
    threads().block_on(async {
        let redis = connected(&RedisSettings::new(topology)).await;
        for round in 0..2 {
            let before = watched.primary();
            let fresh = |number: u64| one(counter(10 * round + number), ten());
            assert!(apply(&redis, plan([fresh(1)])).await.is_ok_and(|applied| applied.admitted));
            assert_eq!(counters(&watched.servers[before], &fresh(1)), 1);
            let now = watched.failover();
            let promoted = Instant::now();
            // From the first answer on, the new server counts.
            while apply(&redis, plan([fresh(2)])).await.is_err() {
                assert!(promoted.elapsed() < WAIT_TIMEOUT, "the failover is followed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(counters(&watched.servers[now], &fresh(2)), 1, "{:?} after it", promoted.elapsed());
        }
    });
}

/// The number of keys that a server has for a check's counter.
fn counters(server: &Server, check: &tollgate::plan::Check) -> u32 {
    let [first, second] = check.counter.0;
    let key = [&b"tollgate:1"[..], &first.to_be_bytes(), &second.to_be_bytes()].concat();
    server.ask(&[b"EXISTS".to_vec(), key])
}

/// A runtime that keeps running while a test waits for a process.
fn threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts")
}
