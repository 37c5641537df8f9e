//! The real program with a real Redis: reload, search, lift, drain and metrics work as with the memory store.

use std::fs;
use std::net::TcpStream;

use crate::support::binary::{DOORS, Served, complaint, exchange, tollgate};
use crate::support::processes::redis::{Redis, Setup};
use crate::support::processes::{Proxy, RedisProxy, until};

/// A limit by account in a Redis, with further keys of the store.
fn login(port: u16, more: &str, limit: u32) -> String {
    format!(
        "{DOORS}secret = 'of this test, and no other'\n\n[stores.main]\nengine = 'redis'\n\
         url = 'redis://127.0.0.1:{port}'\ntimeout = '5s'\nrequired = true\n{more}\n\n\
         [limiters.login]\nalgorithm = 'token_bucket'\nlimit = {limit}\nwindow = '24h'\n\n\
         [[rules]]\ndomain = 'edge'\nname = 'login'\napply = [{{ limiter = 'login', key = ['account'] }}]\n\n\
         [authz]\ndomain = 'edge'\n\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    )
}

/// Serves it and waits until the store has answered.
fn serve(toml: &str) -> Served {
    Served::start(toml, &[]).ready()
}

fn sign_in(served: &Served, account: &str) -> u16 {
    served.ask("GET /authz/envoy/", &format!("x-account: {account}\r\n"))
}

/// The number of requests that pass before one is refused.
fn left(served: &Served, account: &str) -> usize {
    (0..1000).take_while(|_| sign_in(served, account) == 200).count()
}

/// The cells of a table's rows below its header.
fn cells(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty() && !line.starts_with("tollgate: "));
    rows.map(|row| row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

#[test]
fn a_reload_keeps_the_store_or_opens_another_as_configured() {
    let (Some(first), Some(second)) = (Redis::start(), Redis::start()) else { return };
    let served = serve(&login(first.port, "", 2));
    let taken = || served.said().matches("configuration applied").count();
    let reload = |toml: &str, times: usize| {
        fs::write(served.directory.path().join("tollgate.toml"), toml).expect("a file in the test's directory");
        until("it is taken", || taken() == times);
    };
    let connections = |server: &Redis| server.ask::<String>(&["CLIENT", "LIST", "TYPE", "normal"]);
    let ours = |server: &Redis| connections(server).lines().filter(|line| line.contains("cmd=evalsha")).count();
    assert_eq!(left(&served, "ada"), 2);
    let before: Vec<String> = connections(&first).lines().map(str::to_owned).collect();
    reload(&login(first.port, "", 3), 1);
    assert_eq!(left(&served, "ada"), 1, "two of three were used before");
    let id = |line: &String| line.split(' ').next().map(str::to_owned);
    let kept = before.iter().find(|line| line.contains("cmd=evalsha")).and_then(id).expect("it is connected");
    assert!(connections(&first).contains(&kept), "the store is the same, connection and all");
    reload(&login(second.port, "", 3), 2);
    assert_eq!(left(&served, "ada"), 3, "the other store has not seen her");
    until("the store before is let go", || ours(&first) == 0);
    reload(&login(first.port, "", 3), 3);
    assert_eq!(left(&served, "ada"), 0, "the first store has not forgotten her");
}

/// Weakness R24: the reported state of a shared store is not the real one.
#[test]
fn an_identity_locked_out_by_one_instance_is_found_and_lifted_by_another() {
    let Some(server) = Redis::start() else { return };
    let toml = login(server.port, "", 2);
    let (first, second) = (serve(&toml), serve(&toml));
    assert_eq!(left(&first, "bob"), 2);
    assert_eq!(sign_in(&second, "bob"), 429);
    let state = second.run(&["state", "edge", "account=bob"]);
    let rows = cells(&state);
    assert_eq!(rows[0][..5], ["login", "login", "account", "2 of 2", "0"], "{state}");
    assert!(rows[0][5].starts_with("refused for "), "{state}");
    let lifted = second.run(&["lift", "edge", "account=bob", "--why", "ticket 4711"]);
    assert_eq!(cells(&lifted)[0][..2], ["login", "yes"], "{lifted}");
    assert_eq!(left(&first, "bob"), 2);
    let again = second.run(&["lift", "edge", "account=eve", "--why", "ticket 4712"]);
    assert_eq!(cells(&again)[0][1], "held nothing", "{again}");
}

#[test]
fn a_stopping_instance_returns_unused_leased_quota() {
    let Some(server) = Redis::start() else { return };
    let mut leasing = serve(&login(server.port, "quota_lease = 64", 200));
    let plain = serve(&login(server.port, "", 200));
    // Leases grow from block to block, and the last block is used in part.
    let used = (0..50).filter(|_| sign_in(&leasing, "ada") == 200).count();
    assert_eq!(used, 50);
    assert!(leasing.metric("tollgate_store_near_answers_total{store=\"main\",wrapper=\"quota_lease\"}") > 0.0);
    leasing.stop();
    assert_eq!(left(&plain, "ada"), 150, "unused units were returned");
}

#[test]
fn a_repeated_refusal_is_answered_from_the_cache_and_not_by_the_store() {
    let Some(server) = Redis::start() else { return };
    let served = serve(&login(server.port, "refusal_cache = '1h'", 2));
    assert_eq!(left(&served, "ada"), 2);
    let (calls, near) = ("tollgate_store_call_plans_sum{store=\"main\"}", "tollgate_store_near_answers_total");
    assert_eq!(served.metric(calls), 3.0, "two passed and one was refused");
    for _ in 0..20 {
        assert_eq!(sign_in(&served, "ada"), 429);
    }
    assert_eq!(served.metric(calls), 3.0);
    assert_eq!(served.metric(&format!("{near}{{store=\"main\",wrapper=\"refusal_cache\"}}")), 20.0);
}

#[test]
fn a_stopping_instance_first_answers_requests_that_wait_for_the_store() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    let toml = login(proxy.port, "", 2).replace("secret =", "drain_delay = '0s'\nsecret =");
    let mut served = serve(&toml);
    assert_eq!(sign_in(&served, "ada"), 200);
    proxy.blackhole();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sign_in(&served, "ada"));
        until("it waits for the store", || served.metric("tollgate_requests_under_way") == 1.0);
        served.signal("-TERM");
        until("its doors are closed", || TcpStream::connect(&served.http).is_err());
        proxy.heal();
        assert_eq!(waiting.join().expect("it is answered"), 200, "by the store");
    });
    served.wait();
    let another = serve(&login(server.port, "", 2));
    assert_eq!(sign_in(&another, "ada"), 429, "both are counted");
}

/// Weakness R25: limits in a shared store have no metrics.
#[test]
fn metrics_count_calls_errors_and_policies_and_show_an_open_circuit_breaker() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    let served = serve(&login(proxy.port, "", 2));
    assert_eq!(left(&served, "ada"), 2);
    let checks = |verdict| {
        let labels = format!("rule=\"login\",limiter=\"login\",verdict=\"{verdict}\",mode=\"enforced\"");
        served.metric(&format!("tollgate_checks_total{{domain=\"edge\",{labels}}}"))
    };
    assert_eq!((checks("passed"), checks("refused")), (2.0, 1.0));
    let calls = served.metric("tollgate_store_call_duration_seconds_count{store=\"main\"}");
    assert_eq!(calls, served.metric("tollgate_store_call_plans_count{store=\"main\"}"));
    assert_eq!(served.metric("tollgate_store_call_plans_sum{store=\"main\"}"), 3.0);
    let suspended = || served.metric("tollgate_store_suspended{store=\"main\"}");
    assert_eq!(suspended(), 0.0);
    proxy.refuse();
    assert_eq!(left(&served, "ada"), 2, "the fallback's");
    assert_eq!(suspended(), 1.0);
    let errors = |kind| served.metric(&format!("tollgate_store_errors_total{{store=\"main\",kind=\"{kind}\"}}"));
    assert_eq!(errors("unreachable") + errors("suspended"), 3.0);
    assert_eq!(served.metric("tollgate_store_policy_answers_total{store=\"main\",policy=\"local\"}"), 3.0);
    proxy.heal();
    until("the circuit breaker is closed again", || suspended() == 0.0);
    assert_eq!(sign_in(&served, "ada"), 429, "by the store");
}

#[test]
fn state_and_lift_report_an_outage_of_the_store_and_count_as_no_request() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::to(server.port);
    let mut served = serve(&login(proxy.port, "", 2));
    assert_eq!(left(&served, "ada"), 2);
    proxy.refuse();
    assert_eq!(left(&served, "ada"), 2, "the fallback's");
    let state = served.run(&["state", "edge", "account=ada"]);
    assert!(state.contains("unknown"), "{state}");
    let policy =
        |policy| served.metric(&format!("tollgate_store_policy_answers_total{{store=\"main\",policy=\"{policy}\"}}"));
    assert_eq!((policy("deny"), policy("local")), (0.0, 3.0));
    let lift = ["lift", "edge", "account=ada", "--why", "ticket 4713"];
    assert!(served.complaint(&lift).contains("cannot be reached"));
    let log = served.stop();
    assert!(log.contains("a limit could not be lifted") && !log.contains("a limit was lifted"), "{log}");
}

/// Weakness R26: the password of a store is logged, and shown in the list of stores and in errors about the
/// configuration.
#[test]
fn the_password_of_a_store_appears_nowhere() {
    const PASSWORD: &str = "planted-password";
    let in_its_url: fn(&str) -> String = |toml| toml.replace("redis://", &format!("redis://:{PASSWORD}@"));
    let beside: fn(&str) -> String = |toml| toml.replace("required", &format!("password = '{PASSWORD}'\nrequired"));
    for written in [in_its_url, beside] {
        let Some(server) = Setup::redis().map(|setup| setup.password(PASSWORD).start()) else { return };
        let toml = written(&login(server.port, "", 2)).replace("secret =", "drain_delay = '0s'\nsecret =");
        let mut served = Served::start(&toml, &[("RUST_LOG", "trace")]).ready();
        assert_eq!(left(&served, "ada"), 2, "it is let in");
        let status = exchange(&served.admin, b"GET /status HTTP/1.0\r\n\r\n");
        assert!(status.contains("main"), "{status}");
        let printed = served.run(&["check", "--print", "tollgate.toml"]);
        assert!(printed.contains("stores:\n  main:"), "{printed}");
        fs::write(served.directory.path().join("wrong.toml"), toml.replace("'redis'", "'rediss'")).expect("a file");
        let wrong = served.complaint(&["check", "wrong.toml"]);
        assert!(wrong.contains("stores.main"), "{wrong}");
        // So is the error about a store that rejects the password.
        server.ask::<()>(&["CONFIG", "SET", "requirepass", "another"]);
        let mut stranger = Served::start(&toml.replace("required = true", ""), &[("RUST_LOG", "trace")]);
        stranger.until("WRONGPASS");
        for output in [status, printed, wrong, served.stop(), stranger.stop()] {
            assert!(!output.contains(PASSWORD), "{output}");
        }
    }
}

#[test]
fn a_store_that_others_share_has_no_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("tollgate.toml"), login(6379, "snapshot = 'counters'", 2)).expect("a file");
    let said = complaint(tollgate(directory.path()).args(["check", "tollgate.toml"]));
    assert!(said.contains("a redis store has no snapshot"), "{said}");
}

#[test]
fn a_proxy_of_redis_is_named_in_the_log_and_a_reload_to_it_is_refused() {
    let Some(redis) = Redis::start() else { return };
    let Some(proxy) = RedisProxy::envoy(&[&redis]) else { return };
    let reason = format!("connecting to 127.0.0.1:{} failed, retrying: it is a proxy (envoy-redis-proxy)", proxy.port);
    let served = Served::start(&login(proxy.port, "", 2), &[]);
    served.until(&reason);
    let said = served.said();
    let line = said.lines().find(|line| line.contains(&reason)).expect("it was waited for");
    assert!(line.contains("main"), "the line names the store: {line}");
    assert!(exchange(&served.admin, b"GET /readyz HTTP/1.0\r\n\r\n").contains(" 503 "), "the store is required");
    drop(served);
    let served = serve(&login(redis.port, "", 2));
    fs::write(served.directory.path().join("tollgate.toml"), login(proxy.port, "", 2)).expect("a file of the test");
    served.until("configuration rejected");
    served.until(&format!("stores.main: not connected within 5s: {reason}"));
    assert_eq!(left(&served, "ada"), 2, "the store before stays");
    assert_eq!(redis.ask::<u32>(&["DBSIZE"]), 2, "a counter and the key of the probe");
}
