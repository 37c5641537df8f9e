//! No identity and no secret leaks: the real program, logging at the highest level, gets requests with planted ones
//! through every door, and all its logs, files and responses are searched for them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse;

use crate::support::binary::{DOORS, Served, WAIT_TIMEOUT, both, exchange, tollgate};
use crate::support::service::{CHECK, Rls, SHOULD_RATE_LIMIT, descriptor, lease, question};

/// Every planted identity contains this word, in some case.
const PLANTED: &str = "planted";

/// Planted identities that are not words.
const ADDRESSES: [&str; 3] = ["203.0.113.77", "2001:db8:77:1:", "2001:db8:77:1::5"];

/// Secrets of the deployment and of its operators.
const SECRETS: [&str; 2] = ["hunter2hunter2hunter2", "correct horse battery"];

fn configuration(format: &str) -> String {
    format!(
        r#"{DOORS}
secret = "{}"
admin_token = "{}"

[log]
format = "{format}"
refusals_per_second = 1000

[stores.main]
engine = "memory"
snapshot = "kept.snapshot"
snapshot_interval = "1h"

[limiters.two]
algorithm = "sliding_window"
limit = 2
window = "1h"

[limiters.slots]
max_concurrent = 1
lease = "1h"

[[rules]]
domain = "edge"
name = "banned"
match = {{ account = "*banned*" }}
action = "deny"

[[rules]]
domain = "edge"
name = "accounts"
match = {{ account = "*" }}
apply = [{{ limiter = "two", key = ["account"] }}, {{ limiter = "slots", key = ["account"] }}]

[[rules]]
domain = "edge"
name = "others"
apply = [
  {{ limiter = "two", key = ["remote_address"] }},
  {{ limiter = "two", key = ["path"] }},
  {{ limiter = "two", key = ["session"] }},
  {{ limiter = "two", key = ["query"] }},
  {{ limiter = "two", key = ["apikey"] }},
  {{ limiter = "two", key = ["subject"] }},
]

[authz]
domain = "edge"
trusted_hops = 1

[authz.entries]
account = {{ header = "x-account" }}
apikey = {{ header = "x-api-key" }}
session = {{ cookie = "session" }}
query = {{ query = "q" }}
subject = {{ metadata = "jwt:sub" }}
"#,
        SECRETS[0], SECRETS[1]
    )
}

/// The planted words that a text contains, ignoring case.
fn found_in(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = std::iter::once(PLANTED).chain(ADDRESSES).chain(SECRETS);
    words.filter(|word| lower.contains(*word)).map(str::to_owned).collect()
}

fn nothing_in(what: &str, text: &str) {
    let found = found_in(text);
    let lines = text.lines().filter(|line| !found_in(line).is_empty()).take(5);
    assert!(found.is_empty(), "{what} contains {found:?}:\n{}", lines.collect::<Vec<_>>().join("\n"));
}

/// Calls the plain HTTP door in the form of every gateway, beyond limits, and with refused, broken and hostile
/// requests.
fn ask_over_http(served: &Served) -> Vec<u16> {
    let headers = "x-account: planted-account\r\nx-api-key: planted-key\r\ncookie: session=planted-cookie\r\n\
                   x-forwarded-for: 203.0.113.77\r\nauthorization: Bearer planted-bearer\r\n";
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(served.ask("POST /authz/envoy/planted-path?q=planted-query", headers));
    }
    statuses.push(served.ask("GET /authz/envoy/", "x-account: banned-planted\r\n"));
    statuses.push(served.ask("GET /authz/envoy/", "x-forwarded-for: 2001:db8:77:1::5\r\n"));
    let original = "x-original-uri: /planted-path?q=planted-query\r\nx-original-method: GET\r\nx-forwarded-uri: \
                /planted-path?q=planted-query\r\nx-forwarded-method: GET\r\n";
    statuses.push(served.ask("GET /authz/nginx", &format!("{original}{headers}")));
    statuses.push(served.ask("GET /authz/forward", &format!("{original}{headers}")));
    statuses.push(served.ask("GET /authz/nginx/planted-nowhere", headers));
    statuses.push(served.ask("GET /planted-nowhere", headers));
    let large = "planted".repeat(40_000);
    for hostile in [
        "GET /planted path HTTP/1.1\r\nhost: planted\r\n\r\n".to_owned(),
        "GET /planted HTTP/1.1\r\nplanted header: planted\r\n\r\n".to_owned(),
        "GET /planted HTTP/1.1\r\nx-account: planted\u{1}\r\n\r\n".to_owned(),
        "PLANTED\r\n\r\n".to_owned(),
        "GET http://planted:planted@planted/ HTTP/1.1\r\ncontent-length: planted\r\n\r\n".to_owned(),
        "GET /authz/envoy/ HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nplanted\r\n".to_owned(),
        format!("GET /{large} HTTP/1.1\r\nhost: a\r\n\r\n"),
        format!("GET /authz/envoy/ HTTP/1.1\r\nx-account: {large}\r\n\r\n"),
    ] {
        for door in [&served.http, &served.grpc, &served.admin] {
            hurl(door, hostile.as_bytes());
        }
    }
    for door in [&served.http, &served.grpc] {
        for reason in [0, 1] {
            hurl(door, &malformed_http2(reason));
        }
    }
    statuses
}

/// Sends bytes that are not a request and waits briefly for a response: some of them only begin a request.
fn hurl(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    // The server may close the connection early.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// An HTTP/2 connection whose request has an invalid path, and whose GOAWAY carries debug data.
fn malformed_http2(reason: u8) -> Vec<u8> {
    let path = b"planted path\x7f?q=planted";
    // :method POST, :scheme http, then :path by its index and its text (RFC 7541, 6.2.2).
    let mut head = vec![0x83, 0x86, 0x04, path.len() as u8];
    head.extend(path);
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 0x5, 1, &head));
    bytes.extend(frame(7, 0, 0, &[&[0, 0, 0, 0, 0, 0, 0, reason], &b"planted goodbye"[..]].concat()));
    bytes.extend(frame(1, 0x5, 2, b"planted"));
    bytes
}

/// A check as Envoy sends it, with planted identities in every field.
fn check() -> CheckRequest {
    let headers = [("x-account", "planted-grpc"), ("cookie", "session=planted-cookie"), ("x-api-key", "planted-key")];
    let headers =
        headers.map(|(key, value)| HeaderValue { key: key.into(), value: value.into(), ..Default::default() });
    let http = HttpRequest {
        method: "GET".into(),
        path: "/planted-path?q=planted-query".into(),
        host: "planted.example".into(),
        header_map: Some(HeaderMap { headers: headers.into() }),
        body: "planted body".into(),
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(Request { http: Some(http), time: None }),
        metadata_context: Some(Metadata::default()),
        context_extensions: [("planted".to_owned(), "planted".to_owned())].into(),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Calls both services of the gRPC door, beyond limits and bounds, and with invalid messages. Returns a lease.
async fn ask_over_grpc(served: &Served) -> String {
    let rls = Rls::at(&served.grpc).await;
    let held = lease(&rls.one(&[("account", "planted-rls")]).await).expect("a slot");
    for _ in 0..2 {
        assert_eq!(rls.one(&[("account", "planted-rls"), ("remote_address", "203.0.113.77")]).await.overall_code, 2);
    }
    rls.one(&[("release", &held)]).await;
    rls.one(&[("release", &format!("{held}planted"))]).await;
    rls.ask(question("planted-domain", [descriptor(&[("account", "planted")])])).await;
    let many: Vec<RateLimitDescriptor> = (0..200).map(|_| descriptor(&[("account", "planted")])).collect();
    assert_eq!(rls.ask(question("edge", many)).await.overall_code, 2);
    for _ in 0..3 {
        rls.call::<_, CheckResponse>(CHECK, check()).await.expect("an answer");
    }
    // Bytes that are not a valid message, to both services.
    let nonsense = || prost_types::Any { type_url: "planted".to_owned(), value: b"planted".to_vec() };
    let _ = rls.call::<_, RateLimitResponse>(SHOULD_RATE_LIMIT, nonsense()).await;
    let _ = rls.call::<_, CheckResponse>(CHECK, nonsense()).await;
    let _ = rls.call::<_, RateLimitResponse>("/planted.Doors/Planted", check()).await;
    held
}

/// Calls the admin port as an operator does, and without authorisation. Returns all responses.
fn ask_as_operator(served: &Served) -> String {
    let mut said = String::new();
    for (token, arguments) in [
        (SECRETS[1], &["state", "edge", "account=planted-account"][..]),
        (SECRETS[1], &["state", "edge", "account=planted-nobody"]),
        (SECRETS[1], &["state", "planted", "account=banned"]),
        (SECRETS[1], &["lift", "edge", "account=planted-account", "--why", "ticket 4711"]),
        (SECRETS[1], &["lift", "edge", "account=planted-account", "--why", "planted-account is locked out"]),
        (SECRETS[1], &["state", "edge", "remote_address=203.0.113.77"]),
        (SECRETS[1], &["top"]),
        (SECRETS[1], &["key", "edge", "account=planted-account"]),
        ("guessed", &["lift", "edge", "account=planted-account", "--why", "ticket 4711"]),
    ] {
        let output = served.command(arguments).env("TOLLGATE_ADMIN_TOKEN", token).output().expect("it runs");
        // The domain of a request is repeated to its sender.
        said += &both(&output).replace("no domain \"planted\"", "");
    }
    let bearer = format!("authorization: Bearer {}\r\n", SECRETS[1]);
    for path in ["/metrics", "/status", "/top", "/planted", "/top?minutes=10"] {
        said += &exchange(&served.admin, format!("GET {path} HTTP/1.0\r\n{bearer}\r\n").as_bytes());
    }
    let question = r#"{"domain":"edge","entries":[["account","planted"]]} and planted after it"#;
    let length = question.len();
    for path in ["/state", "/lift", "/explain"] {
        let head =
            format!("POST {path} HTTP/1.0\r\n{bearer}content-type: application/json\r\ncontent-length: {length}");
        said += &exchange(&served.admin, format!("{head}\r\n\r\n{question}").as_bytes());
    }
    said
}

/// The runtime is multi-threaded, so that the gRPC client sees the GOAWAY while the test blocks.
async fn nothing_is_told(format: &str) {
    let mut served = Served::start(&configuration(format), &[("RUST_LOG", "trace")]);
    let statuses = ask_over_http(&served);
    assert_eq!(statuses[..4], [200, 429, 429, 403], "{statuses:?}");
    let held = ask_over_grpc(&served).await;
    let key = served.run(&["key", "edge", "account=planted-account"]);
    let key = key.lines().nth(1).and_then(|row| row.split(' ').next()).expect("a key").to_owned();
    let answers = ask_as_operator(&served);
    assert!(answers.contains(&key) && answers.contains("tollgate_decisions_total"), "{answers}");
    nothing_in("the admin port", &answers);
    assert!(!answers.contains(&held));

    // Stopped with a request in flight.
    let mut in_flight = TcpStream::connect(&served.http).expect("it listens");
    in_flight.write_all(b"GET /authz/envoy/planted HTTP/1.1\r\nx-account: planted\r\n").expect("sent");
    let began = Instant::now();
    served.signal("-TERM");
    served.until("tollgate: stopping");
    in_flight.write_all(b"host: a\r\n\r\n").expect("sent");
    drop(in_flight);
    let said = served.wait();
    assert!(began.elapsed() < WAIT_TIMEOUT);

    nothing_in("the log", &said);
    assert!(!said.contains(&held), "a lease is in the log");
    assert!(said.contains(&key), "refusals are logged by their hashed key:\n{said}");
    assert!(said.contains("tollgate::decisions"), "everything is logged:\n{said}");
    assert!(said.contains("ticket 4711"), "{said}");
    let objects = said.lines().filter(|line| line.starts_with('{')).count();
    match format {
        "json" => {
            assert!(objects > 20, "{said}");
            let logged = said.lines().filter(|line| !line.starts_with("tollgate: "));
            for line in logged {
                assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
            }
        }
        _ => assert_eq!(objects, 0, "{said}"),
    }

    let kept = std::fs::read(served.directory.path().join("kept.snapshot")).expect("it was written");
    assert!(kept.len() > 200, "there are counters in it");
    nothing_in("the snapshot", &String::from_utf8_lossy(&kept));
}

/// Weakness R26: passwords are logged.
/// Weakness A11: identities are logged.
#[tokio::test(flavor = "multi_thread")]
async fn no_identity_and_no_secret_is_in_a_text_log() {
    nothing_is_told("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_identity_and_no_secret_is_in_a_json_log() {
    nothing_is_told("json").await;
}

/// Weakness R26: the list of stores shows their passwords.
#[test]
fn no_secret_is_printed_of_a_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("a.toml"), configuration("text")).expect("written");
    let check = |command: &mut Command| both(&command.args(["check", "--print", "a.toml"]).output().expect("it runs"));
    let printed = check(&mut tollgate(directory.path()));
    assert!(printed.contains("admin_token"), "{printed}");
    nothing_in("check --print", &printed);
}
