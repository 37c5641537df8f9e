//! The admin port: its metrics, its answers to an operator, and the requests that it rejects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tollgate::config::{Config, SourceText};
use tollgate::rules::{Rule, RuleBook};
use tollgate::settings::{AdminSettings, Settings, Token};

use crate::support::service::*;

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

async fn get(service: &Doors, path: &str) -> Answer {
    send(service, &format!("GET {path} HTTP/1.1"), "").await
}

/// Sends a request with this request line and any further headers, and a body.
async fn send(service: &Doors, head: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!("{head}\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    exchange(service.admin, text.as_bytes()).await
}

/// Sends a JSON request.
async fn post(service: &Doors, path: &str, question: &Value) -> Answer {
    send(service, &format!("POST {path} HTTP/1.1\r\ncontent-type: application/json"), &question.to_string()).await
}

/// The JSON body of a successful response.
async fn post_json(service: &Doors, path: &str, question: &Value) -> Value {
    let answer = post(service, path, question).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

/// All series with their values.
async fn scrape(service: &Doors) -> BTreeMap<String, f64> {
    let answer = get(service, "/metrics").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let lines = answer.body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let series = lines.map(|line| line.rsplit_once(' ').expect("a series and its value"));
    series.map(|(series, value)| (series.to_owned(), value.parse().expect("a number"))).collect()
}

/// The series of tollgate's own that are above zero.
async fn counted(service: &Doors) -> Vec<String> {
    let ours = |(series, value): &(String, f64)| {
        series.starts_with("tollgate_") && series.contains("_total") && !series.contains("_bounds_") && *value > 0.0
    };
    scrape(service).await.into_iter().filter(ours).map(|(series, value)| format!("{series} {value}")).collect()
}

fn shadow(rule: Rule) -> Rule {
    Rule { shadow: true, ..rule }
}

/// A service with this configuration, on free ports.
async fn configured(toml: &str) -> Doors {
    let source = SourceText { name: "a.toml".to_owned(), text: toml.to_owned() };
    let config = Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    let doors = settings();
    let settings = Settings { grpc: doors.grpc, http: doors.http, admin: doors.admin, ..config.server };
    Doors::start_with(settings, config.book).await
}

fn watched() -> RuleBook {
    book(
        [window("login", 2, 300), window("tight", 1, 300), window("device", 5, 60), slots("slow", 1)],
        [
            rule("login", &[("path", "/login")], &[("login", &["account"])]),
            shadow(rule("trial", &[("path", "/login")], &[("tight", &["account"])])),
            rule("device", &[("path", "/device")], &[("device", &["device"])]),
            rule("slow", &[("path", "/slow")], &[("slow", &["account"])]),
        ],
    )
}

/// Weakness R25: half of the metrics are never counted.
#[tokio::test]
async fn metrics_say_exactly_what_was_decided() {
    let service = Doors::start(watched()).await;
    assert_eq!(counted(&service).await, [""; 0]);
    let rls = service.rls().await;
    for _ in 0..3 {
        rls.one(&[("path", "/login"), ("account", "ada")]).await;
    }
    rls.one(&[("path", "/device"), ("account", "ada")]).await;
    let slow = [("path", "/slow"), ("account", "ada")];
    let first = lease(&rls.one(&slow).await).expect("a slot");
    rls.one(&slow).await;
    rls.one(&[("release", &first)]).await;
    rls.one(&[("release", &first)]).await;
    let second = lease(&rls.one(&slow).await).expect("it is free again");
    service.clock.advance(Duration::from_secs(301));
    rls.one(&[("release", &second)]).await;
    rls.ask(question("elsewhere", [descriptor(&[("path", "/login")])])).await;
    assert_eq!(service.ask("GET /authz/nginx HTTP/1.1\r\nhost: a").await.status, 400);
    assert_eq!(
        counted(&service).await,
        [
            r#"tollgate_checks_skipped_total{domain="edge"} 1"#,
            r#"tollgate_checks_total{domain="edge",rule="login",limiter="login",verdict="passed",mode="enforced"} 2"#,
            r#"tollgate_checks_total{domain="edge",rule="login",limiter="login",verdict="refused",mode="enforced"} 1"#,
            r#"tollgate_checks_total{domain="edge",rule="slow",limiter="slow",verdict="passed",mode="enforced"} 2"#,
            r#"tollgate_checks_total{domain="edge",rule="slow",limiter="slow",verdict="refused",mode="enforced"} 1"#,
            r#"tollgate_checks_total{domain="edge",rule="trial",limiter="tight",verdict="passed",mode="shadow"} 1"#,
            r#"tollgate_checks_total{domain="edge",rule="trial",limiter="tight",verdict="refused",mode="shadow"} 2"#,
            r#"tollgate_decisions_total{domain="",rule="",limiter="",verdict="allowed",reason=""} 1"#,
            r#"tollgate_decisions_total{domain="edge",rule="",limiter="",verdict="allowed",reason=""} 8"#,
            r#"tollgate_decisions_total{domain="edge",rule="login",limiter="login",verdict="refused",reason="limit"} 1"#,
            r#"tollgate_decisions_total{domain="edge",rule="slow",limiter="slow",verdict="refused",reason="limit"} 1"#,
            r#"tollgate_gateway_mistakes_total{mistake="unknown_domain"} 1"#,
            r#"tollgate_leases_acquired_total 2"#,
            r#"tollgate_leases_released_total{when="in_time"} 1"#,
            r#"tollgate_leases_released_total{when="late"} 1"#,
            r#"tollgate_leases_released_total{when="unknown"} 1"#,
            r#"tollgate_requests_total{door="ext_authz_http",result="unreadable"} 1"#,
            r#"tollgate_requests_total{door="rls",result="allowed"} 9"#,
            r#"tollgate_requests_total{door="rls",result="refused"} 2"#,
        ]
    );
    let all = scrape(&service).await;
    assert_eq!(all["tollgate_decision_duration_seconds_count"], 11.0);
    assert_eq!(all["tollgate_ready"], 1.0);
    assert_eq!(all["tollgate_config_version"], 1.0);
    assert_eq!(all["tollgate_config_last_reload_successful"], 1.0);
    assert_eq!(all[&format!("tollgate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))], 1.0);
    assert_eq!(all["tollgate_store_max_bytes{store=\"memory\"}"], f64::from(256 << 20));
    assert!(all["process_resident_memory_bytes"] > 0.0);
}

/// Weakness R25: identities appear as label values.
#[tokio::test]
async fn no_request_adds_a_series() {
    let service = Doors::start(watched()).await;
    let before: BTreeSet<String> = scrape(&service).await.into_keys().collect();
    let rls = service.rls().await;
    for number in 0..50 {
        let account = format!("account-{number}");
        rls.one(&[("path", "/login"), ("account", &account)]).await;
        rls.one(&[(&account, "value")]).await;
        rls.ask(question(&format!("domain-{number}"), [descriptor(&[("path", "/login")])])).await;
        service.ask(&format!("GET /authz/envoy/{number} HTTP/1.1\r\nhost: h{number}\r\nx-account: {account}")).await;
        get(&service, &format!("/nothing/{number}")).await;
    }
    let identity = json!({ "domain": "edge", "entries": [["account", "account-1"]], "who": "ann", "why": "ticket" });
    post_json(&service, "/lift", &identity).await;
    let after: BTreeSet<String> = scrape(&service).await.into_keys().collect();
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test]
async fn three_thousand_rules_do_not_make_three_thousand_labels() {
    let names: Vec<String> = (0..3_000).map(|number| format!("n{number:04}")).collect();
    let limiters = names.iter().map(|name| window(name, 1, 60));
    let rules = names.iter().map(|name| rule(name, &[("use", name)], &[(name, &[])]));
    let service = Doors::start(book(limiters, rules)).await;
    let rls = service.rls().await;
    for name in ["n0000", "n0000", "n2500", "n2500", "n2999", "n2999"] {
        rls.one(&[("use", name)]).await;
    }
    let all = scrape(&service).await;
    for label in ["rule", "limiter"] {
        let values: BTreeSet<&str> = all
            .keys()
            .filter_map(|series| {
                series.split([',', '{', '}']).find_map(|pair| pair.strip_prefix(label)?.strip_prefix('='))
            })
            .collect();
        // Two thousand values of their own, one value for all further ones, and one for none.
        assert_eq!(values.len(), 2_002, "{label}");
    }
    let refused = |name: &str| {
        let labels = format!("domain=\"edge\",rule=\"{name}\",limiter=\"{name}\",verdict=\"refused\",reason=\"limit\"");
        all.get(&format!("tollgate_decisions_total{{{labels}}}")).copied()
    };
    assert_eq!([refused("n0000"), refused("(others)"), refused("n2999")], [Some(1.0), Some(2.0), None]);
}

const STATES: &str = r#"
[limiters.api_free]
algorithm = "token_bucket"
limit = 100
window = "1h"
burst = 20

[limiters.api_pro]
algorithm = "token_bucket"
limit = 1000
window = "1h"
burst = 100

[limiters.month]
algorithm = "fixed_window"
limit = 10
calendar = "month"

[limiters.login]
algorithm = "sliding_window"
limit = 2
window = "5m"

[limiters.exports]
max_concurrent = 1
lease = "1m"

[limiters.whole]
algorithm = "sliding_window"
limit = 50
window = "1m"

[[rules]]
domain = "edge"
name = "quota"
match = { account = "*" }
apply = [{ limiter = "api_{tier}", key = ["account"] }, { limiter = "month", key = ["account"] }]

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login" }
apply = [{ limiter = "login", key = [{ entry = "account", normalise = ["lowercase"] }] }, { limiter = "whole" }]

[[rules]]
domain = "edge"
name = "exports"
match = { path = "/export" }
mode = "shadow"
apply = [{ limiter = "exports", key = ["account"] }]

[[rules]]
domain = "edge"
name = "device"
match = { path = "/device" }
apply = [{ limiter = "login", key = ["account", "device"] }]
"#;

/// The fields of each counter: limiter, rule, used, remaining, passes, and the time until it is empty.
fn states(response: &Value) -> Vec<(String, String, u64, u64, bool, u64)> {
    let text = |counter: &Value, key: &str| counter[key].as_str().expect(key).to_owned();
    let number = |counter: &Value, key: &str| counter["holds"][key].as_u64().unwrap_or(0);
    let counters = response.as_array().expect("counters").iter();
    counters
        .map(|counter| {
            let passes = counter["holds"]["passes"].as_bool().expect("it was read");
            let (used, remaining) = (number(counter, "used"), number(counter, "remaining"));
            let wait = number(counter, "retry_after_ms");
            (text(counter, "limiter"), text(counter, "rule"), used, remaining, passes, wait)
        })
        .collect()
}

fn expected(rows: &[(&str, &str, u64, u64, bool, u64)]) -> Vec<(String, String, u64, u64, bool, u64)> {
    let owned = |&(limiter, rule, used, left, passes, wait): &(&str, &str, _, _, _, _)| {
        (limiter.to_owned(), rule.to_owned(), used, left, passes, wait)
    };
    rows.iter().map(owned).collect()
}

/// Weakness R24: the reported state is not the one that decides.
#[tokio::test]
async fn state_shows_every_counter_of_an_identity_of_any_kind() {
    let service = configured(STATES).await;
    let rls = service.rls().await;
    for _ in 0..2 {
        rls.one(&[("path", "/login"), ("account", "Ada"), ("tier", "free")]).await;
    }
    rls.one(&[("path", "/export"), ("account", "Ada"), ("tier", "free")]).await;
    let ada = json!({ "domain": "edge", "entries": [["account", "Ada"]] });
    // The tier is not given, so both are reported; they share the counter of the account.
    let all = post_json(&service, "/state", &ada).await;
    assert_eq!(
        states(&all),
        expected(&[
            ("api_free", "quota", 3, 17, true, 0),
            ("api_pro", "quota", 3, 97, true, 0),
            ("month", "quota", 3, 7, true, 0),
            ("login", "login", 2, 0, false, 300_000),
            ("exports", "exports", 1, 0, false, 60_000),
        ])
    );
    assert_eq!(all[0]["key"], all[1]["key"]);
    let kinds: Vec<_> = all.as_array().expect("counters").iter().map(|one| (&one["slots"], &one["shadow"])).collect();
    assert_eq!(kinds[3..], [(&json!(false), &json!(false)), (&json!(true), &json!(true))]);
    // A bucket is read at the current time: three tokens refill in 108 seconds.
    service.clock.advance(Duration::from_secs(108));
    let pro = json!({ "domain": "edge", "entries": [["account", "Ada"], ["tier", "free"]] });
    let later = states(&post_json(&service, "/state", &pro).await);
    assert_eq!(later[0], expected(&[("api_free", "quota", 0, 20, true, 0)])[0]);
    assert_eq!(later[1].0, "month", "the tier is given, so the other one is not reported");
    // A value is normalised as the rules do it.
    let loud = json!({ "domain": "edge", "entries": [["account", "ADA"]] });
    let loud = states(&post_json(&service, "/state", &loud).await);
    assert_eq!((loud[0].2, loud[3].2), (0, 2), "only the login limiter counts in lower case");
    let one_for_all = json!({ "domain": "edge", "entries": [] });
    assert_eq!(
        states(&post_json(&service, "/state", &one_for_all).await),
        expected(&[("whole", "login", 0, 50, true, 0)]),
        "two within the minute before the last"
    );
    // Reading the state charges nothing.
    assert_eq!(states(&post_json(&service, "/state", &ada).await)[3].2, 2);
}

/// Weakness A11: counters cannot be reset from outside.
#[tokio::test]
async fn a_lifted_identity_is_admitted_again_and_no_other_is() {
    let service = configured(STATES).await;
    let rls = service.rls().await;
    let login = async |account: &str| rls.one(&[("path", "/login"), ("account", account)]).await.overall_code;
    for account in ["ada", "ada", "bob", "bob"] {
        assert_eq!(login(account).await, 1);
    }
    assert_eq!((login("ada").await, login("bob").await), (2, 2));
    let key = |counters: &Value, at: usize| counters[at]["key"].as_str().expect("a key").to_owned();
    let ada = json!({ "domain": "edge", "entries": [["account", "ada"]] });
    let state = post_json(&service, "/state", &ada).await;
    let mut lift = json!({ "domain": "edge", "entries": [["account", "ada"]], "who": "ann", "why": "ticket 4711" });
    lift["limiter"] = json!("login");
    let lifted = post_json(&service, "/lift", &lift).await;
    assert_eq!(lifted, json!([{ "limiter": "login", "key": key(&state, 3), "held": true }]));
    assert_eq!((login("ada").await, login("bob").await), (1, 2));
    let month = |states: &Value| states[2]["holds"]["used"].as_u64();
    assert_eq!(month(&post_json(&service, "/state", &ada).await), Some(3), "another limiter was not named");
    lift.as_object_mut().expect("an object").remove("limiter");
    let lifted = post_json(&service, "/lift", &lift).await;
    let held: Vec<_> = lifted.as_array().expect("all of them").iter().map(|one| one["held"].as_bool()).collect();
    // Of the two tiers one counter is lifted; the counter of exports was empty.
    assert_eq!(held, [false, false, true, true, false].map(Some));
    assert_eq!(month(&post_json(&service, "/state", &ada).await), Some(0));
}

#[tokio::test]
async fn a_slot_that_is_lifted_is_free() {
    let service = Doors::start(watched()).await;
    let rls = service.rls().await;
    let slow = [("path", "/slow"), ("account", "ada")];
    let held = lease(&rls.one(&slow).await).expect("a slot");
    assert_eq!(lease(&rls.one(&slow).await), None);
    let lift = json!({
        "domain": "edge", "entries": [["account", "ada"]], "limiter": "slow", "who": "ann", "why": "it hangs"
    });
    assert_eq!(post_json(&service, "/lift", &lift).await[0]["held"], true);
    let next = lease(&rls.one(&slow).await).expect("it is free");
    // Releasing the lifted lease does not free another holder's slot.
    rls.one(&[("release", &held)]).await;
    assert_eq!(lease(&rls.one(&slow).await), None);
    rls.one(&[("release", &next)]).await;
    assert!(lease(&rls.one(&slow).await).is_some());
}

#[tokio::test]
async fn top_names_rules_and_hashed_keys_by_their_refusals() {
    let service = Doors::start(watched()).await;
    let rls = service.rls().await;
    for (account, times) in [("ada", 6), ("bob", 3)] {
        for _ in 0..times {
            rls.one(&[("path", "/login"), ("account", account)]).await;
        }
    }
    let key = async |account: &str| {
        let identity = json!({ "domain": "edge", "entries": [["account", account]] });
        post_json(&service, "/state", &identity).await[0]["key"].clone()
    };
    let row =
        |refused: u64| json!({ "domain": "edge", "rule": "login", "limiter": "login", "refused": refused, "over": 0 });
    let with = |mut row: Value, key: Value| {
        row.as_object_mut().expect("an object").insert("key".to_owned(), key);
        row
    };
    let top = async |path: &str| -> Value { serde_json::from_str(&get(&service, path).await.body).expect("JSON") };
    let now = json!({
        "minutes": 5,
        "rules": [row(5)],
        "keys": [with(row(4), key("ada").await), with(row(1), key("bob").await)],
    });
    assert_eq!(top("/top").await, now);
    service.clock.advance(Duration::from_secs(120));
    assert_eq!(top("/top?minutes=1").await, json!({ "minutes": 1, "rules": [], "keys": [] }));
    assert_eq!(top("/top?minutes=10").await["keys"], now["keys"]);
    for minutes in ["0", "11", "ten", ""] {
        let answer = get(&service, &format!("/top?minutes={minutes}")).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains("expected 1 to 10"), "{answer:?}");
    }
}

#[tokio::test]
async fn status_shows_the_version_and_the_stores() {
    let service = Doors::start(watched()).await;
    service.rls().await.one(&[("path", "/login"), ("account", "ada")]).await;
    let answer = get(&service, "/status").await;
    let status: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["ready"], true);
    assert_eq!(status["config"]["version"], 1);
    assert_eq!(status["config"]["last_reload_taken"], true);
    assert!(status["config"]["age_seconds"].as_f64().is_some_and(|age| (0.0..600.0).contains(&age)), "{status}");
    let store = &status["stores"]["memory"];
    assert_eq!((&store["keys"], &store["evictions"], &store["leases"]), (&json!(2), &json!(0), &json!(0)));
    assert!(store["bytes"].as_u64() > Some(0) && store["max_bytes"] == 256 << 20, "{store}");
}

#[tokio::test]
async fn explain_describes_how_the_rules_in_use_treat_a_request() {
    let service = Doors::start(watched()).await;
    let question = json!({ "domain": "edge", "entries": [["path", "/login"], ["account", "ada"]] });
    let answer = post(&service, "/explain", &question).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert!(answer.body.contains("rule login matches\n  login: one counter for account=ada\n"), "{}", answer.body);
    assert!(answer.body.contains("rule trial matches, in shadow"), "{}", answer.body);
}

#[tokio::test]
async fn an_invalid_request_is_answered_with_the_reason() {
    let service = Doors::start(watched()).await;
    let complaint = |answer: Answer| {
        let said: Value = serde_json::from_str(&answer.body).expect("JSON");
        (answer.status, said["error"].as_str().expect("a text").to_owned())
    };
    let ada = json!({ "domain": "edge", "entries": [["account", "ada"]] });
    for page in ["origin: http://evil.example", "sec-fetch-site: same-origin"] {
        let head = format!("POST /state HTTP/1.1\r\ncontent-type: application/json\r\n{page}");
        let answer = send(&service, &head, &ada.to_string()).await;
        assert_eq!(complaint(answer), (403, "requests from web pages are rejected".to_owned()));
    }
    let typed = send(&service, "POST /state HTTP/1.1\r\ncontent-type: text/plain", &ada.to_string()).await;
    assert_eq!(complaint(typed), (415, "expected \"content-type: application/json\"".to_owned()));
    let untyped = send(&service, "POST /lift HTTP/1.1", &ada.to_string()).await;
    assert_eq!(untyped.status, 415);
    let large = json!({ "domain": "a".repeat(70_000) });
    assert_eq!(
        complaint(post(&service, "/state", &large).await),
        (413, "expected a body of at most 64 KiB".to_owned())
    );
    for (question, status, expected) in [
        (
            json!({ "domain": "egde", "entries": [["account", "ada"]] }),
            404,
            "no domain \"egde\" is configured; domains with rules: edge",
        ),
        (
            json!({ "domain": "edge", "entries": [["acount", "ada"]] }),
            404,
            "no limiter of domain \"edge\" counts by acount alone; its limiters count by: account (login, tight, slow), device (device)",
        ),
        (
            json!({ "domain": "edge", "entries": [] }),
            404,
            "no limiter of domain \"edge\" counts all requests together; its limiters count by: account (login, tight, slow), device (device)",
        ),
        (
            json!({ "domain": "edge", "entry": [] }),
            400,
            "unknown field `entry`, expected `domain` or `entries` at line 1 column 24",
        ),
        (json!({ "entries": [] }), 400, "missing field `domain` at line 1 column 14"),
        (json!([]), 400, "invalid length 0, expected an object at line 1 column 2"),
    ] {
        assert_eq!(complaint(post(&service, "/state", &question).await), (status, expected.to_owned()), "{question}");
    }
    let lift = |changes: Value| {
        let mut lift = json!({ "domain": "edge", "entries": [["account", "ada"]], "who": "ann", "why": "ticket 4711" });
        let lift_fields = lift.as_object_mut().expect("an object");
        lift_fields.extend(changes.as_object().expect("an object").clone());
        lift
    };
    for (question, status, expected) in [
        (lift(json!({ "who": " " })), 400, "who is empty, expected a text for the audit log"),
        (lift(json!({ "why": "" })), 400, "why is empty, expected a text for the audit log"),
        (
            lift(json!({ "why": "Ada is locked out" })),
            400,
            "why contains the value of account, which must not reach the audit log: write it without",
        ),
        (lift(json!({ "entries": [] })), 400, "entries is empty, expected the entries of an identity"),
        (
            lift(json!({ "limiter": "logn" })),
            404,
            "no limiter \"logn\" has a key of these entries, expected one of: login, tight, slow",
        ),
        (
            lift(json!({ "entries": [["acount", "ada"]] })),
            404,
            "no limiter of domain \"edge\" counts by acount alone; its limiters count by: account (login, tight, slow), device (device)",
        ),
    ] {
        assert_eq!(complaint(post(&service, "/lift", &question).await), (status, expected.to_owned()), "{question}");
    }
    for (head, status) in [
        ("POST /metrics HTTP/1.1", 405),
        ("DELETE /status HTTP/1.1", 405),
        ("GET /lift HTTP/1.1", 405),
        ("GET /state HTTP/1.1", 405),
        ("GET / HTTP/1.1", 404),
        ("GET /authz/envoy/ HTTP/1.1", 404),
    ] {
        assert_eq!(send(&service, head, "").await.status, status, "{head}");
    }
}

#[tokio::test]
async fn a_token_is_required_for_all_but_metrics_and_health() {
    let settings = settings();
    let admin = AdminSettings { token: Some(Token("open sesame, please".to_owned())), ..settings.admin };
    let service = Doors::start_with(Settings { admin, ..settings }, watched()).await;
    let ada = json!({ "domain": "edge", "entries": [["account", "ada"]], "who": "ann", "why": "ticket" }).to_string();
    for request in ["GET /status", "GET /top", "POST /state", "POST /lift", "POST /explain"] {
        for shown in [
            "",
            "\r\nauthorization: Bearer open sesame",
            "\r\nauthorization: Bearer open sesame, pleasf",
            "\r\nauthorization: Basic open sesame, please",
        ] {
            let answer =
                send(&service, &format!("{request} HTTP/1.1\r\ncontent-type: application/json{shown}"), &ada).await;
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{request} {shown}");
            assert!(!answer.body.contains("sesame"), "{answer:?}");
        }
    }
    let shown = "content-type: application/json\r\nauthorization: bearer open sesame, please";
    assert_eq!(send(&service, &format!("GET /status HTTP/1.1\r\n{shown}"), "").await.status, 200);
    let lift = send(&service, &format!("POST /lift HTTP/1.1\r\n{shown}"), &ada).await;
    assert_eq!(lift.status, 200, "{lift:?}");
    for path in ["/metrics", "/livez", "/readyz", "/healthcheck"] {
        assert_eq!(get(&service, path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_stopping_process_is_alive_and_not_ready() {
    let mut service = Doors::start(watched()).await;
    for path in ["/livez", "/readyz", "/healthcheck"] {
        assert_eq!(get(&service, path).await.status, 200, "{path}");
    }
    // A request in flight keeps the process running. Connections are accepted in order, so this one is known once a
    // later one is.
    let mut in_flight = TcpStream::connect(service.http).await.expect("it listens");
    in_flight.write_all(b"GET /authz/envoy/ HTTP/1.1\r\nhost: a\r\n").await.expect("sent");
    assert_eq!(service.ask("GET /readyz HTTP/1.1\r\nhost: a").await.status, 200);
    service.begin_to_stop();
    let began = Instant::now();
    while get(&service, "/readyz").await.status != 503 {
        assert!(began.elapsed() < WAIT_TIMEOUT, "it still says that it is ready");
        tokio::task::yield_now().await;
    }
    assert_eq!((get(&service, "/livez").await.status, get(&service, "/healthcheck").await.status), (200, 503));
    assert_eq!(scrape(&service).await["tollgate_ready"], 0.0);
    drop(in_flight);
    service.stop().await;
}
