//! The API of workers over HTTP/JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tollgate::app::App;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{Limiter, OnStoreError, WorkerSettings};
use tollgate::rules::{RuleBook, Rules};
use tollgate::secret::Secret;
use tollgate::settings::{ApiSettings, Bound, Listen, Settings, Token};
use tollgate::store::{MemorySettings, Stores};

use crate::support::service::*;

/// A window of two for each account, slots, a bucket, and a limiter that no rule applies.
pub fn workers() -> RuleBook {
    let direct = Limiter {
        workers: WorkerSettings { direct: true, ..WorkerSettings::default() },
        ..bucket("stripe_api", 90, 1, 9)
    };
    let room = Limiter { workers: direct.workers, ..slots("room", 1) };
    book(
        [window("login", 2, 60), slots("uploads", 2), direct, room],
        [
            rule("login", &[("path", "/login")], &[("login", &["account"])]),
            rule("uploads", &[("slot", "*")], &[("uploads", &["slot"])]),
        ],
    )
}

/// Sends a request with this request line and any further headers, and a body.
async fn send(service: &Doors, head: &str, body: &str) -> Answer {
    let length = body.len();
    exchange(service.http, format!("{head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())
        .await
}

const JSON: &str = "host: localhost\r\ncontent-type: application/json";

async fn post(service: &Doors, path: &str, body: &str) -> Answer {
    send(service, &format!("POST {path} HTTP/1.1\r\n{JSON}"), body).await
}

async fn call(service: &Doors, path: &str, body: &Value) -> (u16, Value) {
    let answer = post(service, path, &body.to_string()).await;
    let json = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    (answer.status, json)
}

async fn acquire(service: &Doors, body: &Value) -> (u16, Value) {
    call(service, "/v1/acquire", body).await
}

fn login(account: &str) -> Value {
    json!({ "domain": "edge", "entries": { "path": "/login", "account": account } })
}

fn upload(slot: &str) -> Value {
    json!({ "domain": "edge", "limiter": "uploads", "key": { "slot": slot } })
}

#[tokio::test]
async fn semantics_51_an_acquire_is_granted_with_its_numbers_and_refused_with_a_problem() {
    let service = Doors::start(workers()).await;
    let (status, granted) = acquire(&service, &login("al")).await;
    let limit = json!({
        "limiter": "login", "rule": "login", "limit": 2, "window": "60s", "remaining": 1, "reset": "60s",
    });
    assert_eq!(
        (status, granted),
        (
            200,
            json!({
                "granted": true, "lease": null, "lease_ends_in": null, "waited": "0s", "units": 1, "ask": 0,
                "reason": null, "limiter": null, "rule": null, "retry_after": null, "retry_after_ms": null,
                "degraded": false, "signals": "", "limits": [limit],
            })
        )
    );
    service.clock.advance(Duration::from_millis(59_660));
    assert_eq!(acquire(&service, &login("al")).await.0, 200);
    let refused = post(&service, "/v1/acquire", &login("al").to_string()).await;
    assert_eq!((refused.status, refused.header("content-type")), (429, Some("application/problem+json")));
    let headers = ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit-policy"];
    let expected = [Some("1"), Some("2"), Some("0"), Some("\"login\";q=2;w=60")];
    assert_eq!(headers.map(|name| refused.header(name)), expected);
    let body: Value = serde_json::from_str(&refused.body).expect("JSON");
    let limit = json!({
        "limiter": "login", "rule": "login", "limit": 2, "window": "60s", "remaining": 0, "reset": "60s",
    });
    assert_eq!(
        body,
        json!({
            "type": "about:blank", "title": "Too Many Requests", "status": 429,
            "detail": "limit exceeded; try again later", "granted": false, "reason": "limit", "limiter": "login",
            "rule": "login", "retry_after": "0.34s", "retry_after_ms": 340, "degraded": false, "limits": [limit],
        })
    );
    // Gateways and workers count in one counter.
    assert_eq!(service.rls().await.one(&[("path", "/login"), ("account", "al")]).await.overall_code, OVER_LIMIT);
}

#[tokio::test]
async fn semantics_50_a_peek_takes_nothing_and_says_when_it_would_be_granted() {
    let service = Doors::start(workers()).await;
    for _ in 0..3 {
        let (status, peeked) = call(&service, "/v1/peek", &login("al")).await;
        assert_eq!((status, &peeked["would_grant"], &peeked["retry_after_ms"]), (200, &json!(true), &json!(0)));
        assert_eq!(peeked["limits"][0]["remaining"], 2);
    }
    let both = json!({ "cost": 3, "domain": "edge", "entries": { "path": "/login", "account": "al" } });
    let (status, never) = call(&service, "/v1/peek", &both).await;
    assert_eq!((status, &never["would_grant"], &never["reason"]), (200, &json!(false), &json!("limit")));
    assert_eq!(never["retry_after_ms"], Value::Null, "it never fits");
    for _ in 0..2 {
        assert_eq!(acquire(&service, &login("al")).await.0, 200);
    }
    let (_, full) = call(&service, "/v1/peek", &login("al")).await;
    assert_eq!(
        (&full["would_grant"], &full["limiter"], &full["retry_after_ms"]),
        (&json!(false), &json!("login"), &json!(60_000))
    );
}

#[tokio::test]
async fn semantics_50_a_lease_is_renewed_released_once_and_settled_once() {
    let service = Doors::start(workers()).await;
    let (_, granted) =
        acquire(&service, &json!({ "domain": "edge", "limiter": "uploads", "key": { "slot": "a" }, "lease": "15s" }))
            .await;
    assert_eq!(granted["lease_ends_in"], "15s");
    let lease = granted["lease"].clone();
    service.clock.advance(Duration::from_secs(10));
    let renewed = call(&service, "/v1/renew", &json!({ "lease": lease, "length": "20s" })).await;
    assert_eq!(renewed, (200, json!({ "fate": "done", "lease_ends_in": "20s" })));
    service.clock.advance(Duration::from_secs(19));
    let free =
        |service| async move { call(service, "/v1/peek", &upload("a")).await.1["limits"][0]["remaining"].clone() };
    assert_eq!(free(&service).await, 1);
    let release = json!({ "lease": lease });
    assert_eq!(call(&service, "/v1/release", &release).await, (200, json!({ "fate": "done" })));
    assert_eq!(free(&service).await, 2);
    assert_eq!(call(&service, "/v1/release", &release).await, (200, json!({ "fate": "unknown" })));
    assert_eq!(call(&service, "/v1/renew", &release).await, (200, json!({ "fate": "unknown", "lease_ends_in": null })));
    // Two settles at once: one of them counts.
    let (_, granted) = acquire(&service, &upload("a")).await;
    let settle = json!({ "lease": granted["lease"], "units": 0 });
    let (one, other) = tokio::join!(call(&service, "/v1/settle", &settle), call(&service, "/v1/settle", &settle));
    let mut fates = [one, other].map(|(status, body)| (status, body["fate"].as_str().map(str::to_owned)));
    fates.sort();
    assert_eq!(fates, [(200, Some("done".to_owned())), (200, Some("unknown".to_owned()))]);
    assert_eq!(free(&service).await, 2);
}

#[tokio::test]
async fn semantics_53_a_repeated_call_and_a_renewal_by_its_own_length_say_when_the_lease_ends() {
    let service = Doors::start(workers()).await;
    let held = json!({
        "domain": "edge", "limiter": "stripe_api", "cost": 4, "hold": "60s", "idempotency_key": "a random key"
    });
    let slot = json!({
        "domain": "edge", "limiter": "uploads", "key": { "slot": "a" }, "lease": "60s", "idempotency_key": "a random key"
    });
    for (ask, left) in [(held, 5), (slot, 1)] {
        let mut peek = ask.clone();
        peek.as_object_mut().expect("an object").remove("idempotency_key");
        let (status, first) = acquire(&service, &ask).await;
        assert_eq!((status, &first["lease_ends_in"]), (200, &json!("60s")), "{first}");
        let remaining = call(&service, "/v1/peek", &peek).await.1["limits"][0]["remaining"].clone();
        assert_eq!(remaining, left);
        service.clock.advance(Duration::from_secs(1));
        let (status, again) = acquire(&service, &ask).await;
        assert_eq!(
            (status, &again["lease_ends_in"], &again["lease"]),
            (200, &json!("59s"), &first["lease"]),
            "{again}"
        );
        let renewed = call(&service, "/v1/renew", &json!({ "lease": first["lease"] })).await;
        assert_eq!(renewed, (200, json!({ "fate": "done", "lease_ends_in": "60s" })));
        service.clock.advance(Duration::from_secs(59));
        assert_eq!(acquire(&service, &ask).await.1["lease_ends_in"], "1s");
        let released = call(&service, "/v1/release", &json!({ "lease": first["lease"] })).await;
        assert_eq!(released, (200, json!({ "fate": "done" })));
    }
    // What only counts could not be found again.
    let counts = json!({ "domain": "edge", "limiter": "stripe_api", "idempotency_key": "a random key" });
    let (status, problem) = acquire(&service, &counts).await;
    assert_eq!((status, &problem["place"]), (400, &json!("idempotency_key")));
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("needs slots or holds")), "{problem}");
}

#[tokio::test]
async fn semantics_50_an_expired_a_forged_and_a_foreign_lease_change_nothing() {
    let service = Doors::start(workers()).await;
    let (_, granted) =
        acquire(&service, &json!({ "domain": "edge", "limiter": "uploads", "key": { "slot": "a" }, "lease": "1s" }))
            .await;
    // Another slot of the counter is still held, so the expired one is known.
    assert_eq!(acquire(&service, &upload("a")).await.0, 200);
    service.clock.advance(Duration::from_secs(2));
    let expired = granted["lease"].as_str().expect("a lease").to_owned();
    let foreign = {
        let other = Doors::start(RuleBook { secret: Secret::new("another deployment"), ..workers() }).await;
        acquire(&other, &upload("a")).await.1["lease"].as_str().expect("a lease").to_owned()
    };
    let (_, held) = acquire(&service, &upload("b")).await;
    let genuine = held["lease"].as_str().expect("a lease");
    let forged = genuine.replacen(genuine.chars().nth(3).expect("a long text"), "_", 1);
    for path in ["/v1/renew", "/v1/release", "/v1/settle"] {
        for lease in [&*foreign, &forged, "AQAB", "no lease at all", &"x".repeat(100_000)] {
            let (status, body) = call(&service, path, &json!({ "lease": lease })).await;
            assert_eq!((status, &body["fate"]), (200, &json!("unknown")), "{path} {lease:.40}");
        }
    }
    let (status, body) = call(&service, "/v1/renew", &json!({ "lease": expired, "length": "5s" })).await;
    assert_eq!((status, &body["fate"]), (200, &json!("expired")));
    assert_eq!(call(&service, "/v1/peek", &upload("b")).await.1["limits"][0]["remaining"], 1, "the lease is held");
}

/// Every call that makes no sense: its status, its place, and what its text says.
fn senseless() -> Vec<(&'static str, String, u16, &'static str, &'static str)> {
    let of = |body: &str| body.to_owned();
    let long = "k".repeat(100_000);
    let acquire = "/v1/acquire";
    vec![
        (acquire, of(""), 400, "body", "no JSON"),
        (acquire, of("granted?"), 400, "body", "no JSON"),
        (acquire, of("[]"), 400, "body", "expected an object"),
        (acquire, of("{}"), 400, "limiter", "expected a limiter, or entries"),
        (acquire, of(r#"{"domain": "edge", "lmiter": "a"}"#), 400, "lmiter", "did you mean limiter?"),
        (
            acquire,
            of(r#"{"domain": "edge", "asks": [{"limiter": "uploads", "kye": {}}]}"#),
            400,
            "asks[0].kye",
            "did you mean key?",
        ),
        (acquire, of(r#"{"domain": "egde", "limiter": "uploads"}"#), 404, "domain", "edge"),
        (acquire, of(r#"{"domain": "edge", "limiter": "upload", "key": {"slot": "a"}}"#), 404, "limiter", "uploads"),
        (
            acquire,
            of(r#"{"domain": "edge", "asks": [{"limiter": "uploads", "key": {"slot": "a"}}, {"limiter": "x"}]}"#),
            404,
            "asks[1].limiter",
            "",
        ),
        (acquire, of(r#"{"domain": "edge", "limiter": "login", "key": {"device": "a"}}"#), 404, "key", "account"),
        (acquire, of(r#"{"domain": "edge", "entries": {"path": "/logout"}}"#), 404, "entries", ""),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "uploads", "entries": {"slot": "a"}}"#),
            400,
            "entries",
            "expected either",
        ),
        (acquire, of(r#"{"domain": "edge", "key": {"slot": "a"}}"#), 400, "key", "expected a limiter"),
        (
            acquire,
            of(r#"{"domain": "edge", "cost": 2, "asks": [{"limiter": "uploads"}]}"#),
            400,
            "cost",
            "expected it in the asks",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": 0}"#),
            400,
            "cost",
            "expected a whole number",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": -1}"#),
            400,
            "cost",
            "expected a whole number",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": 4294967296}"#),
            400,
            "cost",
            "expected a whole number",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": 1e300}"#),
            400,
            "cost",
            "expected a whole number",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": "1"}"#),
            400,
            "cost",
            "expected a whole number",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "max_wait": "365d"}"#),
            400,
            "max_wait",
            "server.bounds.max_wait",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "max_wait": "4000d"}"#),
            400,
            "max_wait",
            "server.bounds.max_wait",
        ),
        (acquire, of(r#"{"domain": "edge", "limiter": "room", "hold": "5m"}"#), 400, "hold", "has slots only"),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "maxWait": "-1s"}"#),
            400,
            "maxWait",
            "expected a duration",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "max_wait": 30}"#),
            400,
            "max_wait",
            "expected a duration",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "lost": "kept", "hold": "1s"}"#),
            400,
            "lost",
            "expected \"charge\"",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "lost": "charge"}"#),
            400,
            "lost",
            "expected a hold",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "lease": "0s"}"#),
            400,
            "lease",
            "expected at least a microsecond",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "limiter": "stripe_api", "key": {"a": "1", "a": "2"}}"#),
            400,
            "key",
            "twice",
        ),
        (
            acquire,
            of(r#"{"domain": "edge", "asks": [{"limiter": "uploads"}, {"limiter": "login"}], "partial": true}"#),
            400,
            "partial",
            "",
        ),
        (
            acquire,
            format!(r#"{{"domain": "edge", "limiter": "uploads", "key": {{"slot": "{long}"}}}}"#),
            400,
            "key.slot",
            "100000",
        ),
        (acquire, format!(r#"{{"domain": "edge", "limiter": "{long}"}}"#), 400, "limiter", "100000"),
        (
            acquire,
            format!(
                r#"{{"domain": "edge", "limiter": "uploads", "key": {{"slot": "a"}}, "idempotency_key": "{long}"}}"#
            ),
            400,
            "idempotency_key",
            "100000",
        ),
        ("/v1/peek", of(r#"{"domain": "edge", "limiter": "upload"}"#), 404, "limiter", "uploads"),
        ("/v1/peek", of(r#"{"domain": "edge", "limiter": "stripe_api", "cost": -1}"#), 400, "cost", "expected"),
        ("/v1/renew", of("{}"), 400, "lease", "expected the lease"),
        ("/v1/renew", of(r#"{"lease": "a", "length": "0s"}"#), 400, "length", "expected at least a microsecond"),
        ("/v1/renew", of(r#"{"lease": "a", "length": "0.000000999s"}"#), 400, "length", "at least a microsecond"),
        ("/v1/renew", of(r#"{"lease": "a", "length": "86401s"}"#), 400, "length", "expected at most 1d"),
        ("/v1/renew", of(r#"{"lease": "a", "length": "99999999999999999999d"}"#), 400, "length", "expected at most 1d"),
        ("/v1/renew", of(r#"{"lease": "a", "lenght": "1s"}"#), 400, "lenght", "did you mean length?"),
        ("/v1/release", of(r#"{"lease": 7}"#), 400, "lease", "expected a text"),
        ("/v1/settle", of(r#"{"lease": "a", "units": -1}"#), 400, "units", "expected a whole number"),
        ("/v1/settle", of(r#"{"lease": "a", "units": 4294967296}"#), 400, "units", "expected 0 to 4294967295"),
        ("/v1/settle", of(r#"{"lease": "a", "units": 9007199254740992}"#), 400, "units", "huge"),
        (
            "/v1/settle",
            of(r#"{"lease": "a", "units": {"tokens": -5}}"#),
            400,
            "units.tokens",
            "expected a whole number",
        ),
        ("/v1/settle", of(r#"{"lease": "a", "units": "all"}"#), 400, "units", "expected a whole number"),
    ]
}

#[tokio::test]
async fn semantics_51_what_makes_no_sense_is_answered_with_its_place_and_charges_nothing() {
    let service = Doors::start(workers()).await;
    let document = send(&service, "GET /v1/openapi.json HTTP/1.1\r\nhost: localhost", "").await;
    let document: Value = serde_json::from_str(&document.body).expect("JSON");
    for (path, body, expected, place, says) in senseless() {
        let answer = post(&service, path, &body).await;
        let shown = &body[..body.len().min(100)];
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (expected, Some("application/problem+json")),
            "{shown}: {answer:?}"
        );
        let problem: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(problem["place"], place, "{shown}: {problem}");
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.starts_with(place) && detail.contains(says) && detail.len() < 500, "{shown}: {detail}");
        assert!(document["paths"][path]["post"]["responses"][expected.to_string()].is_object(), "{path} {expected}");
    }
    for (ask, left) in [(login("a"), 2), (upload("a"), 2), (json!({ "domain": "edge", "limiter": "stripe_api" }), 9)] {
        assert_eq!(call(&service, "/v1/peek", &ask).await.1["limits"][0]["remaining"], left, "{ask}");
    }
}

#[tokio::test]
async fn semantics_52_a_listener_of_loopback_is_open_to_programs_of_this_machine_alone() {
    let service = Doors::start(workers()).await;
    let body = login("al").to_string();
    let status = |headers: &'static str| {
        let (service, body) = (&service, &body);
        async move { send(service, &format!("POST /v1/acquire HTTP/1.1\r\n{headers}"), body).await.status }
    };
    let json = "content-type: application/json";
    assert_eq!(status("host: 127.0.0.1:8080\r\ncontent-type: application/json; charset=utf-8").await, 200);
    for host in ["host: evil.example", "host: localhost.evil.example", "host: 127.0.0.1.evil.example", "host: "] {
        let answer = send(&service, &format!("POST /v1/acquire HTTP/1.1\r\n{host}\r\n{json}"), &body).await;
        assert_eq!(answer.status, 403, "{host}");
    }
    assert_eq!(status("host: localhost\r\ncontent-type: application/json\r\norigin: http://localhost").await, 403);
    assert_eq!(status("host: localhost\r\ncontent-type: application/json\r\nsec-fetch-site: same-origin").await, 403);
    assert_eq!(status("host: localhost\r\ncontent-type: text/plain").await, 415);
    assert_eq!(status("host: localhost").await, 415);
    let preflight =
        send(&service, "OPTIONS /v1/acquire HTTP/1.1\r\nhost: localhost\r\norigin: http://a.example", "").await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (403, None));
    let method = send(&service, "GET /v1/acquire HTTP/1.1\r\nhost: localhost", "").await;
    assert_eq!((method.status, method.header("allow")), (405, Some("POST")));
    let path = send(&service, "GET /v1/nothing HTTP/1.1\r\nhost: localhost", "").await;
    assert_eq!(path.status, 404);
    assert!(path.body.contains("openapi.json"), "{path:?}");
    assert_eq!(call(&service, "/v1/peek", &login("al")).await.1["limits"][0]["remaining"], 1, "one was admitted");
}

#[tokio::test]
async fn semantics_52_an_address_that_other_machines_reach_needs_a_token() {
    let everywhere = Listen::Tcp(address("0.0.0.0:0"));
    let mut service = Doors::start_with(Settings { http: everywhere, ..settings() }, workers()).await;
    service.http.set_ip([127, 0, 0, 1].into());
    let (status, closed) = acquire(&service, &login("al")).await;
    assert_eq!(status, 403);
    assert!(closed["detail"].as_str().is_some_and(|detail| detail.contains("set server.api_token")), "{closed}");
}

#[tokio::test]
async fn semantics_52_a_unix_socket_is_open_whatever_the_host() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("api.sock");
    let api = ApiSettings { listen: Some(Listen::Unix(path.clone())), ..ApiSettings::default() };
    let service = Doors::start_with(Settings { api, ..settings() }, workers()).await;
    let mut stream = UnixStream::connect(&path).await.expect("it listens");
    let body = login("al").to_string();
    let head = format!(
        "POST /v1/acquire HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    assert_eq!(Answer::read(&answer).status, 200);
    // With an address of its own it is at no other.
    assert_eq!(post(&service, "/v1/acquire", &body).await.status, 404);
}

fn with_tokens() -> Settings {
    let tokens = ["the first of sixteen", "the second of sixteen"].map(|token| Token(token.to_owned()));
    Settings { api: ApiSettings { tokens: tokens.to_vec(), ..ApiSettings::default() }, ..settings() }
}

#[tokio::test]
async fn semantics_52_each_of_two_tokens_opens_the_api_and_a_wrong_one_is_answered_late() {
    let service = Doors::start_with(with_tokens(), workers()).await;
    let body = login("al").to_string();
    let with = |token: &'static str| {
        let (service, body) = (&service, &body);
        async move {
            let began = Instant::now();
            let answer = send(service, &format!("POST /v1/peek HTTP/1.1\r\n{JSON}\r\n{token}"), body).await;
            (answer, began.elapsed())
        }
    };
    for right in ["authorization: Bearer the first of sixteen", "authorization: bearer the second of sixteen"] {
        assert_eq!(with(right).await.0.status, 200, "{right}");
    }
    // A token serves from any host.
    let far = send(&service, "POST /v1/peek HTTP/1.1\r\nhost: a.example\r\ncontent-type: application/json\r\nauthorization: Bearer the first of sixteen", &body).await;
    assert_eq!(far.status, 200);
    let wrong = ["x-none: x", "authorization: Bearer the third of sixteen", "authorization: the first of sixteen"];
    for token in wrong {
        let (answer, took) = with(token).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{token}");
        assert!(took >= Duration::from_millis(100), "{token}: {took:?}");
    }
    // More than 64 at once: some are answered at once, and a right token waits for none of them.
    let flood: Vec<_> = (0..80).map(|_| with("authorization: Bearer wrong")).collect();
    let (answers, right) =
        tokio::join!(futures_util::future::join_all(flood), with("authorization: Bearer the first of sixteen"));
    assert_eq!(right.0.status, 200);
    assert!(answers.iter().all(|(answer, _)| answer.status == 401));
    assert_eq!(service.service.doors().rejected_tokens.counted(), wrong.len() as u64 + 80);
}

#[tokio::test]
async fn the_limiters_that_can_be_asked_for_are_listed() {
    let service = Doors::start(workers()).await;
    let answer = send(&service, "GET /v1/limiters HTTP/1.1\r\nhost: localhost", "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let listed: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(
        listed,
        json!({ "limiters": [
            { "domain": "edge", "limiter": "login", "rule": "login", "key": ["account"], "fills": [] },
            { "domain": "edge", "limiter": "uploads", "rule": "uploads", "key": ["slot"], "fills": [] },
            { "domain": null, "limiter": "stripe_api", "rule": null, "key": [], "fills": [] },
            { "domain": null, "limiter": "room", "rule": null, "key": [], "fills": [] },
        ] })
    );
}

#[tokio::test]
async fn a_body_in_parts_is_read_and_one_beyond_the_bound_is_refused() {
    let service = Doors::start(workers()).await;
    let body = login("al").to_string();
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    let head =
        format!("POST /v1/acquire HTTP/1.1\r\n{JSON}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sent");
    for part in body.as_bytes().chunks(7) {
        let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        stream.write_all(&chunk).await.expect("sent");
        tokio::task::yield_now().await;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("sent");
    assert_eq!(Answer::read(&closed(&mut stream).await).status, 200);
    let large = format!("{{\"domain\": \"{}\"}}", "d".repeat(1 << 20));
    assert_eq!(post(&service, "/v1/acquire", &large).await.status, 413);
    assert_eq!(service.met(Bound::MessageBytes), 1);
}

#[tokio::test]
async fn semantics_51_a_store_that_cannot_answer_is_503_where_its_policy_is_deny() {
    let deny = |limiter: Limiter| Limiter { on_store_error: OnStoreError::Deny, ..limiter };
    let rules = RuleBook { limiters: workers().limiters.into_iter().map(deny).collect(), ..workers() };
    let rules = Rules::compile(rules).expect("the rules compile");
    // One counter alone has room, and slots that are held make none.
    let stores = Stores::memory(&[MemorySettings { max_keys: Some(1), ..MemorySettings::default() }]);
    let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
    let app = App::open_at(&settings(), rules, stores, Arc::new(clock.clone())).await.expect("the doors open");
    let service = Doors::serve(app, clock);
    assert_eq!(acquire(&service, &upload("a")).await.0, 200);
    let answer = post(&service, "/v1/acquire", &upload("b").to_string()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    let problem: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!((&problem["reason"], &problem["degraded"]), (&json!("store_error"), &json!(true)));
}

async fn free_uploads(service: &Doors) -> Value {
    call(service, "/v1/peek", &upload("a")).await.1["limits"][0]["remaining"].clone()
}

#[tokio::test]
async fn a_lease_is_released_when_its_connection_breaks_before_the_answer_is_written() {
    let many = book([slots("many", 10_000)], [rule("many", &[("slot", "*")], &[("many", &["slot"])])]);
    let service = Doors::start(many).await;
    let ask = json!({ "domain": "edge", "limiter": "many", "key": { "slot": "a" } });
    let body = ask.to_string();
    let request = format!("POST /v1/acquire HTTP/1.1\r\n{JSON}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let left = async || call(&service, "/v1/peek", &ask).await.1["limits"][0]["remaining"].as_u64().expect("a number");
    // Nobody reads the answers, so at some point the system takes no more of them.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(service.http).await.expect("the door is open");
    let writing = tokio::spawn(async move {
        drop(stream.write_all(request.repeat(20_000).as_bytes()).await);
        std::future::pending::<()>().await;
        drop(stream);
    });
    let (mut held, mut unchanged) = (10_000, 0);
    while unchanged < 50 {
        let now = left().await;
        unchanged = if now == held && now < 10_000 { unchanged + 1 } else { 0 };
        held = now;
    }
    assert!(held > 0, "the system took every answer");
    // The last one was not written as a whole.
    writing.abort();
    until("its slot is free", async || left().await == held + 1).await;
}

#[tokio::test]
async fn a_lease_stays_once_its_answer_is_written() {
    let service = Doors::start(workers()).await;
    assert_eq!(acquire(&service, &upload("a")).await.0, 200);
    for _ in 0..50 {
        assert_eq!(free_uploads(&service).await, 1);
    }
}

#[tokio::test]
async fn a_lease_is_released_when_its_stream_of_http_2_is_reset_before_the_answer() {
    let service = Doors::start(workers()).await;
    // Without a window no body can be sent.
    let stream = TcpStream::connect(service.http).await.expect("the door is open");
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.expect("HTTP/2");
    let _connection = tokio::spawn(connection);
    let request = http::Request::post("http://localhost/v1/acquire").header("content-type", "application/json");
    let mut client = client.ready().await.expect("the connection stands");
    let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
    body.send_data(upload("a").to_string().into(), true).expect("sent");
    assert_eq!(answer.await.expect("the head of an answer").status(), 200);
    assert_eq!(free_uploads(&service).await, 1);
    body.send_reset(h2::Reason::CANCEL);
    until("the slot is free", async || free_uploads(&service).await == 2).await;
}

/// The callers that wait, by the metrics.
pub async fn waiting(service: &Doors) -> u64 {
    let metrics = exchange(service.admin, b"GET /metrics HTTP/1.0\r\n\r\n").await.body;
    let value = metrics.lines().find_map(|line| line.strip_prefix("tollgate_waiting_callers "));
    value.expect("the gauge").parse().expect("a number")
}

#[tokio::test]
async fn semantics_48_a_connection_that_ends_cancels_what_it_waits_for() {
    let service = Doors::start(workers()).await;
    let mut leases = Vec::new();
    for _ in 0..2 {
        leases.push(acquire(&service, &upload("a")).await.1["lease"].clone());
    }
    let mut wait = upload("a");
    wait["max_wait"] = "1m".into();
    let body = wait.to_string();
    let request = format!("POST /v1/acquire HTTP/1.1\r\n{JSON}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    stream.write_all(request.as_bytes()).await.expect("sent");
    until("it waits", async || waiting(&service).await == 1).await;
    drop(stream);
    until("nobody waits", async || waiting(&service).await == 0).await;
    // One that stays gets the slot, and takes it once.
    let (_, (status, granted)) = tokio::join!(
        async {
            until("it waits", async || waiting(&service).await == 1).await;
            call(&service, "/v1/release", &json!({ "lease": leases[0] })).await
        },
        acquire(&service, &wait)
    );
    assert_eq!((status, &granted["granted"]), (200, &json!(true)), "{granted}");
    call(&service, "/v1/release", &json!({ "lease": leases[1] })).await;
    assert_eq!(free_uploads(&service).await, 1);
}

#[tokio::test]
async fn semantics_48_who_waits_when_the_server_stops_is_sent_elsewhere_at_once() {
    let mut service = Doors::start(workers()).await;
    for _ in 0..2 {
        acquire(&service, &upload("a")).await;
    }
    let mut wait = upload("a");
    wait["max_wait"] = "1m".into();
    let body = wait.to_string();
    let request = format!("POST /v1/acquire HTTP/1.1\r\n{JSON}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    stream.write_all(request.as_bytes()).await.expect("sent");
    until("it waits", async || waiting(&service).await == 1).await;
    service.begin_to_stop();
    let answer = Answer::read(&closed(&mut stream).await);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert!(answer.body.contains("\"reason\":\"draining\""), "{answer:?}");
}

#[tokio::test]
async fn calls_are_counted_at_the_door_of_the_api() {
    let service = Doors::start(workers()).await;
    for _ in 0..3 {
        acquire(&service, &login("al")).await;
    }
    assert_eq!(call(&service, "/v1/renew", &json!({})).await.0, 400);
    assert_eq!(call(&service, "/v1/release", &json!({ "lease": "x" })).await.0, 200);
    let metrics = exchange(service.admin, b"GET /metrics HTTP/1.0\r\n\r\n").await.body;
    for (result, count) in [("allowed", 3), ("refused", 1), ("unreadable", 1)] {
        let line = format!("tollgate_requests_total{{door=\"api\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "it is never so that {what}");
        tokio::task::yield_now().await;
    }
}
