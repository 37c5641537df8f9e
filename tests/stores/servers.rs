//! Checks the servers that the tests of stores use: they are what they claim to be, and end with the test.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::ConnectionLike;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::NoTls;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::support::processes::{Cluster, Postgres, Proxy, Redis, Sentinel, postgres, redis as server, until};

fn pong(url: &str) -> bool {
    let client = redis::Client::open(url).expect("an address");
    client.get_connection_with_timeout(Duration::from_millis(500)).is_ok_and(|mut connection| {
        connection.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        connection.check_connection()
    })
}

fn keeps_what_it_is_told(setup: server::Setup) {
    let mut redis = setup.line("appendonly yes").line("appendfsync always").start();
    redis.ask::<()>(&["SET", "key", "value"]);
    redis.freeze();
    assert!(!pong(&redis.url()), "a frozen server answers");
    redis.thaw();
    assert!(pong(&redis.url()), "it goes on");
    redis.kill();
    assert!(!pong(&redis.url()), "a killed server answers");
    redis.restart();
    assert_eq!(redis.ask::<String>(&["GET", "key"]), "value");
    assert!(redis.cpu() > Duration::ZERO);
}

#[test]
fn redis_freezes_goes_on_crashes_and_comes_back_with_what_it_kept() {
    server::Setup::redis().into_iter().for_each(keeps_what_it_is_told);
}

#[test]
fn valkey_freezes_goes_on_crashes_and_comes_back_with_what_it_kept() {
    server::Setup::valkey().into_iter().for_each(|setup| {
        let valkey = setup.clone().start();
        assert_eq!(valkey.info("server", "server_name"), "valkey");
        keeps_what_it_is_told(setup);
    });
}

#[test]
fn redis_requires_passwords_and_listens_on_a_socket() {
    let Some(setup) = server::Setup::redis() else { return };
    let redis = setup.password("secret").line("user ada on >lovelace ~ada:* +@all").unix_socket().start();
    assert!(pong(&redis.url()));
    assert!(!pong(&format!("redis://:wrong@127.0.0.1:{}", redis.port)));
    assert!(pong(&format!("redis://ada:lovelace@127.0.0.1:{}", redis.port)));
    assert!(pong(&format!("redis+unix://{}?pass=secret", redis.socket().display())));
}

#[test]
fn redis_accepts_tls_clients_that_its_authority_signed() {
    let Some(setup) = server::Setup::redis() else { return };
    let redis = setup.tls().start();
    assert!(redis.tls_connection().expect("it trusts its client").check_connection());
    let (port, files) = redis.tls();
    let authority = fs::read(&files.authority).expect("a certificate");
    let nobody = redis::TlsCertificates { client_tls: None, root_cert: Some(authority) };
    let nobody = redis::Client::build_with_tls(format!("rediss://127.0.0.1:{port}"), nobody).expect("an address");
    assert!(nobody.get_connection_with_timeout(Duration::from_secs(5)).is_err(), "a client without a certificate");
    assert!(!pong(&format!("rediss://127.0.0.1:{port}")), "a client that does not know the authority");
}

#[test]
fn a_full_redis_and_a_replica_refuse_what_is_written() {
    let Some(setup) = server::Setup::redis() else { return };
    let full = setup.clone().line("maxmemory 100kb").line("maxmemory-policy noeviction").start();
    let error = full.command::<()>(&["SET", "key", "value"]).expect_err("it is full");
    assert_eq!(error.code(), Some("OOM"));
    let primary = setup.clone().password("secret").start();
    let replica = setup.replica_of(&primary).start();
    replica.synced();
    let error = replica.command::<()>(&["SET", "key", "value"]).expect_err("it is a replica");
    assert_eq!(error.code(), Some("READONLY"));
}

#[test]
fn sentinels_promote_a_replica_on_request_and_when_the_primary_is_gone() {
    let Some(mut sentinel) = Sentinel::start() else { return };
    assert_eq!(sentinel.primary(), 0);
    sentinel.servers[0].kill();
    let second = sentinel.promoted(0);
    assert_ne!(second, 0);
    sentinel.servers[0].restart();
    sentinel.servers[0].becomes("replication", "role", "slave");
    sentinel.servers[0].synced();
    let third = sentinel.failover();
    assert_ne!(third, second);
}

fn moves_slots_and_promotes(setup: &server::Setup) {
    let mut cluster = Cluster::of(setup, 3, 1);
    let slot = cluster.slot("key");
    let from = cluster.owner(slot, 0).expect("the slot has an owner");
    let to = (from + 1) % 3;
    cluster.nodes[from].ask::<()>(&["SET", "key", "value"]);
    cluster.begin_move(slot, from, to);
    let other = cluster.nodes[from].command::<()>(&["SET", "{key}2", "value"]).expect_err("it is on its way");
    assert_eq!(other.code(), Some("ASK"));
    cluster.move_keys(slot, from, to);
    cluster.end_move(slot, from, to);
    assert_eq!(cluster.nodes[to].ask::<String>(&["GET", "key"]), "value");
    let moved = cluster.nodes[from].command::<String>(&["GET", "key"]).expect_err("it has moved");
    assert_eq!(moved.code(), Some("MOVED"));
    cluster.promote(3 + from);
    let last = (from + 2) % 3;
    cluster.nodes[last].kill();
    cluster.promoted(3 + last);
}

#[test]
fn a_cluster_moves_slots_and_promotes_replicas() {
    server::Setup::redis().iter().for_each(moves_slots_and_promotes);
}

#[test]
fn a_proxy_delays_holds_cuts_and_refuses() {
    let Some(redis) = Redis::start() else { return };
    let proxy = Proxy::to(redis.port);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    assert!(pong(&url));
    let client = redis::Client::open(url.as_str()).expect("an address");
    let mut connection = client.get_connection().expect("the proxy serves");
    proxy.delay(Duration::from_millis(80));
    let began = Instant::now();
    assert!(connection.check_connection());
    assert!(began.elapsed() >= Duration::from_millis(80), "took {:?}", began.elapsed());
    proxy.blackhole();
    connection.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    assert!(!connection.check_connection(), "an answer came through a hole");
    proxy.heal();
    let mut connection = client.get_connection().expect("the proxy serves again");
    proxy.cut();
    until("the connection is cut", || !connection.check_connection());
    let mut connection = client.get_connection().expect("others are served");
    proxy.refuse();
    assert!(client.get_connection().err().expect("nobody listens").is_connection_refusal());
    assert!(!connection.check_connection(), "a refusal cuts as well");
    proxy.heal();
    assert!(pong(&url));
}

#[tokio::test]
async fn postgres_gives_each_test_a_database_and_requires_the_password() {
    let Some(server) = Postgres::shared() else { return };
    let (first, second) = (server.database(), server.database());
    server.execute(&first, "CREATE TABLE here (id int)");
    assert_eq!(server.value(&second, "SELECT to_regclass('here')"), None);
    let (client, connection) = tokio_postgres::connect(&server.url(&first), NoTls).await.expect("it is let in");
    tokio::spawn(connection);
    let row = client.query_one("SELECT 1", &[]).await.expect("an answer");
    assert_eq!(row.get::<_, i32>(0), 1);
    let wrong = server.url(&first).replace(postgres::PASSWORD, "wrong");
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err(), "any password will do");
    let again = Postgres::shared().expect("it is there");
    assert!(Arc::ptr_eq(&server, &again));
}

#[tokio::test]
async fn postgres_requires_tls_if_configured() {
    let Some(setup) = postgres::Setup::new() else { return };
    let server = setup.tls().start();
    let url = server.url(&server.database());
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err(), "plain text is taken");
    let mut roots = RootCertStore::empty();
    let files = server.certificates.as_ref().expect("it was set up with TLS");
    roots.add(CertificateDer::from_pem_file(&files.authority).expect("a certificate")).expect("an authority");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (client, connection) =
        tokio_postgres::connect(&url, MakeRustlsConnect::new(config)).await.expect("it is let in");
    tokio::spawn(connection);
    let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await;
    assert!(row.expect("an answer").get::<_, bool>(0));
}

#[test]
fn postgres_freezes_goes_on_crashes_and_comes_back_and_leaves_nothing_behind() {
    let Some(setup) = postgres::Setup::new() else { return };
    let mut server = setup.line("max_connections = 7").start();
    assert_eq!(server.value("postgres", "SHOW max_connections").as_deref(), Some("7"));
    server.execute("postgres", "CREATE TABLE kept AS SELECT 42 AS answer");
    server.freeze();
    let before = server.cpu();
    let port = server.port;
    let waiting = std::thread::spawn(move || {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the system still listens");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        // An SSLRequest, which gets a response of one byte (protocol-message-formats).
        std::io::Write::write_all(&mut socket, &[0, 0, 0, 8, 4, 210, 22, 47]).expect("it is sent");
        std::io::Read::read(&mut socket, &mut [0]).is_ok()
    });
    assert!(!waiting.join().expect("it ends"), "a frozen server answers");
    assert_eq!(server.cpu(), before);
    server.thaw();
    assert_eq!(server.value("postgres", "SELECT answer FROM kept").as_deref(), Some("42"));
    server.restart();
    assert_eq!(server.value("postgres", "SELECT answer FROM kept").as_deref(), Some("42"));
    let process = server.id();
    server.freeze();
    drop(server);
    assert!(!Path::new("/proc").join(process.to_string()).exists(), "it is still there");
}
