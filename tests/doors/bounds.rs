//! Each bound, when exceeded: the documented refusal or closed connection, its metric, and no effect on other clients.
//!
//! `docs/limits.md` lists the bounds. Other behaviour with hostile clients is in `hostile.rs`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::rules::{RequestBounds, RuleBook};
use tollgate::settings::{Bound, Bounds, Settings};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::service::*;

/// A short timeout that a busy machine still keeps for honest clients.
const SOON: Duration = Duration::from_millis(500);
const HEALTHCHECK: &[u8] = b"GET /healthcheck HTTP/1.1\r\nhost: h\r\n\r\n";

/// Two requests a minute of each account.
fn two() -> RuleBook {
    book([window("two", 2, 60)], [rule("two", &[("account", "*")], &[("two", &["account"])])])
}

async fn start(bounds: Bounds) -> Doors {
    let mut settings = Settings { bounds, ..settings() };
    settings.authz.domain = "edge".into();
    Doors::start_with(settings, two()).await
}

/// The frame head of a message of one mebibyte that is never sent in full.
const UNFINISHED: &[u8] = &[0, 0, 16, 0, 0];

/// Calls both methods with these headers and a body. Whether they refuse in a form that Envoy reads.
async fn refused(client: &SendRequest<Bytes>, headers: &[(&str, &str)], body: &Bytes) -> bool {
    let mut refused = Vec::new();
    for path in [SHOULD_RATE_LIMIT, CHECK] {
        let (response, mut stream) = begin(client, path, headers, body.clone()).await;
        // A request that is already refused does not have to end.
        let _ = stream.send_data(Bytes::new(), true);
        refused.push(says_no(path, response).await);
    }
    assert_eq!(refused[0], refused[1]);
    refused[0]
}

/// Waits until a condition holds.
async fn until(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(WAIT_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

#[test]
fn the_table_of_limits_has_every_bound_with_its_default_and_a_test_that_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("docs/limits.md")).expect("the table");
    let sources =
        [include_str!("bounds.rs"), include_str!("../core/semantics.rs"), include_str!("hostile.rs")].concat();
    let printed = tollgate::config::Config::read(&[], &|_| None).expect("nothing is wrong").effective();
    for bound in Bound::ALL {
        let row = table.lines().find(|line| line.starts_with(&format!("| `{}` |", bound.name())));
        let row: Vec<_> = row.unwrap_or_else(|| panic!("{} has no row", bound.name())).split(" | ").collect();
        let default = row[1].trim_matches('`');
        let line =
            format!("{}: {}", bound.name(), bytes(default).map_or(default.to_owned(), |bytes| bytes.to_string()));
        assert!(printed.lines().any(|printed| printed.trim() == line), "{line} is not what is printed:\n{printed}");
        let test = row[row.len() - 1].trim_end_matches(" |").trim_matches('`');
        assert!(sources.contains(&format!("fn {test}()")), "{test} is no test");
    }
}

/// The bytes of a size such as `1MiB`.
fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20)];
    units.into_iter().find_map(|(unit, bytes)| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? * bytes))
}

#[tokio::test]
async fn semantics_28_a_message_too_large_is_refused() {
    let service = start(Bounds { message_bytes: 4 << 10, ..Bounds::default() }).await;
    let rls = service.rls().await;
    assert_eq!(rls.one(&[("path", &"x".repeat(4000))]).await.overall_code, OK);
    assert_eq!(rls.one(&[("path", &"x".repeat(5000))]).await.overall_code, OVER_LIMIT);
    assert_eq!(service.met(Bound::MessageBytes), 1);
    let client = connect(service.grpc).await;
    let large = [&[0, 0, 0, 20, 0][..], &[0; 5 << 10]].concat();
    assert!(refused(&client, &[], &large.into()).await);
    assert_eq!(service.met(Bound::MessageBytes), 3);
    assert!(!refused(&client, &[], &Bytes::from_static(&[0, 0, 0, 0, 0])).await);
}

#[tokio::test]
async fn every_bound_is_a_label_of_the_metric_before_it_is_exceeded() {
    let service = start(Bounds { message_bytes: 1 << 10, ..Bounds::default() }).await;
    assert_eq!(service.rls().await.one(&[("path", &"x".repeat(5000))]).await.overall_code, OVER_LIMIT);
    let metrics = exchange(service.admin, b"GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.body;
    for bound in Bound::ALL {
        let count = u8::from(bound == Bound::MessageBytes);
        let line = format!("tollgate_bounds_exceeded_total{{bound=\"{}\"}} {count}\n", bound.name());
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    for line in
        ["tollgate_panics_total 0\n", "tollgate_connections{door=\"admin\"} 1\n", "tollgate_unfinished_bytes 0\n"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn semantics_28_a_value_of_900_kib_is_limited_as_any_other_and_a_key_as_long_matches_nothing() {
    let service = start(Bounds::default()).await;
    let rls = service.rls().await;
    let long = "x".repeat(900 << 10);
    let other = format!("{}y", &long[1..]);
    for (value, code) in [(&long, OK), (&long, OK), (&long, OVER_LIMIT), (&other, OK), (&long, OVER_LIMIT)] {
        assert_eq!(rls.one(&[("account", value)]).await.overall_code, code);
    }
    assert_eq!(rls.one(&[(&long, "a")]).await.overall_code, OK);
    assert_eq!(rls.one(&[(&long, "a"), ("account", &long)]).await.overall_code, OVER_LIMIT, "past the message");
    assert_eq!(service.met(Bound::MessageBytes), 1);
}

#[tokio::test]
async fn semantics_28_too_many_descriptors_entries_or_checks_are_refused() {
    let rules = (0..4).map(|n| rule(&format!("r{n}"), &[("a", "*")], &[(["one", "two", "three", "four"][n], &["a"])]));
    let limiters = ["one", "two", "three", "four"].map(|name| window(name, 100, 60));
    let bounds = RequestBounds { descriptors: 3, entries: 2, checks: 6 };
    let service = Doors::start(RuleBook { bounds, ..book(limiters, rules) }).await;
    let rls = service.rls().await;
    let ask = async |descriptors: Vec<_>| rls.ask(question("edge", descriptors)).await.overall_code;
    assert_eq!(ask(vec![descriptor(&[("a", "1"), ("b", "1")])]).await, OK);
    assert_eq!(ask(vec![descriptor(&[("b", "1")]); 4]).await, OVER_LIMIT);
    assert_eq!(ask(vec![descriptor(&[("a", "1"), ("b", "1"), ("c", "1")])]).await, OVER_LIMIT);
    assert_eq!(ask(vec![descriptor(&[("a", "1")]), descriptor(&[("a", "2")])]).await, OVER_LIMIT);
    assert_eq!([Bound::Descriptors, Bound::Entries, Bound::Checks].map(|bound| service.met(bound)), [1; 3]);
}

#[tokio::test]
async fn semantics_28_a_message_of_half_a_million_descriptors_is_refused_before_it_is_made_anything_of() {
    let service = start(Bounds::default()).await;
    let client = connect(service.grpc).await;
    // Each descriptor is two bytes. The last field is unknown, so only the generated types can skip it.
    for last in [&b""[..], b"\x78\x01"] {
        let message: Vec<u8> = [&b"\x0a\x04edge"[..], &b"\x12\x00".repeat(500_000), last].concat();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).expect("it is short").to_be_bytes());
        frame.extend(message);
        assert!(refused(&client, &[], &Bytes::from(frame)).await);
    }
    // The response has one status more than the bound, however many descriptors the request has.
    let rls = service.rls().await;
    let answer = rls.ask(question("edge", vec![descriptor(&[]); 100_000])).await;
    assert_eq!((answer.overall_code, answer.statuses.len()), (OVER_LIMIT, 101));
    assert_eq!(service.met(Bound::Descriptors), 3);
}

#[tokio::test]
async fn semantics_28_too_many_headers_are_refused() {
    let service = start(Bounds { headers: 40, ..Bounds::default() }).await;
    let client = connect(service.grpc).await;
    let names: Vec<String> = (0..50).map(|number| format!("x-{number}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert!(!refused(&client, &headers[..30], &Bytes::from_static(&[0; 5])).await);
    assert!(refused(&client, &headers, &Bytes::from_static(&[0; 5])).await);
    assert_eq!(service.met(Bound::Headers), 2);
    // The plain door, over HTTP/1 and HTTP/2.
    let lines: String = names.iter().map(|name| format!("\r\n{name}: 1")).collect();
    let head = format!("GET /authz/envoy/ HTTP/1.1\r\nhost: h{lines}");
    assert_eq!(service.ask(&head).await.status, 431);
    assert_eq!(status_by_http_2(&service, &headers).await, 431);
    assert_eq!(status_by_http_2(&service, &headers[..30]).await, 200);
    until("the count", || service.met(Bound::Headers) == 4).await;
}

async fn status_by_http_2(service: &Doors, headers: &[(&str, &str)]) -> u16 {
    let mut request = http::Request::get("http://tollgate/authz/envoy/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = connect(service.http).await.ready().await.expect("the connection stands");
    let (response, _) = client.send_request(request.body(()).expect("a request"), true).expect("a stream");
    timeout(WAIT_TIMEOUT, response).await.expect("in time").expect("an answer").status().as_u16()
}

#[tokio::test]
async fn semantics_28_a_head_too_large_is_refused() {
    let service = start(Bounds { header_bytes: 8 << 10, ..Bounds::default() }).await;
    let client = connect(service.grpc).await;
    let (fits, large) = ("x".repeat(7 << 10), "x".repeat(20 << 10));
    assert!(!refused(&client, &[("x", &fits)], &Bytes::from_static(&[0; 5])).await);
    assert!(refused(&client, &[("x", &large)], &Bytes::from_static(&[0; 5])).await);
    assert_eq!(service.met(Bound::HeaderBytes), 2);
    assert_eq!(service.ask(&format!("GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\nx: {large}")).await.status, 431);
    assert_eq!(status_by_http_2(&service, &[("x", &large)]).await, 431);
    assert_eq!(status_by_http_2(&service, &[("x", &fits)]).await, 200);
    until("the count", || service.met(Bound::HeaderBytes) == 4).await;
    assert_eq!(service.met(Bound::Headers), 0);
}

#[tokio::test]
async fn a_path_that_cannot_be_read_is_refused() {
    let service = start(Bounds::default()).await;
    let long = "x".repeat(70_000);
    assert_eq!(service.ask(&format!("GET /authz/envoy/{long} HTTP/1.1\r\nhost: h")).await.status, 414);
    until("the count", || service.met(Bound::HeaderBytes) == 1).await;
}

#[tokio::test]
async fn a_request_with_a_body_too_large_is_answered_and_its_connection_closed() {
    let service = start(Bounds { body_bytes: 1000, ..Bounds::default() }).await;
    let ask = |body: &str| format!("POST /authz/envoy/ HTTP/1.1\r\nhost: h\r\n{body}");
    for large in [format!("content-length: 1001\r\n\r\n{}", "x".repeat(1001)), chunked(&["x"; 11])] {
        let answer = exchange(service.http, ask(&large).as_bytes()).await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    }
    assert_eq!(service.met(Bound::BodyBytes), 2);
    // A body within the bound keeps the connection open for the next request.
    for fits in [format!("content-length: 1000\r\n\r\n{}", "x".repeat(1000)), chunked(&["x"; 10])] {
        let next = "GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        let both = exchange(service.http, format!("{}{next}", ask(&fits)).as_bytes()).await;
        assert_eq!((both.status, both.body.contains("HTTP/1.1 200")), (200, true));
    }
    assert_eq!(service.met(Bound::BodyBytes), 2);
}

/// A body in chunks of a hundred bytes.
fn chunked(chunks: &[&str]) -> String {
    let chunks: String = chunks.iter().map(|letter| format!("64\r\n{}\r\n", letter.repeat(100))).collect();
    format!("transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

#[tokio::test]
async fn semantics_28_unfinished_requests_are_refused_before_they_fill_the_memory() {
    let bounds = Bounds { unfinished_bytes_per_connection: 64 << 10, unfinished_bytes: 100 << 10, ..Bounds::default() };
    let service = start(bounds).await;
    let part = Bytes::from([UNFINISHED, &vec![0; 40 << 10]].concat());
    let clients = [connect(service.grpc).await, connect(service.grpc).await, connect(service.grpc).await];
    let mut held = Vec::new();
    for client in &clients[..2] {
        held.push(begin(client, CHECK, &[], part.clone()).await);
    }
    let kept = || service.service.doors().unfinished_bytes.load(Ordering::Relaxed);
    until("both", || kept() > 80 << 10).await;
    // One more on the first connection, and then one on a third, for which the process has no memory left.
    let (response, _stream) = begin(&clients[0], CHECK, &[], part.clone()).await;
    assert!(says_no(CHECK, response).await);
    assert_eq!(service.met(Bound::UnfinishedBytesPerConnection), 1);
    let (response, _stream) = begin(&clients[2], CHECK, &[], part.clone()).await;
    assert!(says_no(CHECK, response).await);
    assert_eq!(service.met(Bound::UnfinishedBytes), 1);
    // A complete message is not affected.
    assert!(!refused(&clients[0], &[], &Bytes::from_static(&[0; 5])).await);
    held.clear();
    until("room", || kept() == 0).await;
    let _held = begin(&clients[2], CHECK, &[], part).await;
    until("it is kept", || kept() > 40 << 10).await;
    assert_eq!(service.met(Bound::UnfinishedBytes), 1);
}

#[tokio::test]
async fn semantics_28_a_request_beside_too_many_others_is_refused() {
    let service = start(Bounds { requests: 2, ..Bounds::default() }).await;
    let client = connect(service.grpc).await;
    let held = [
        begin(&client, SHOULD_RATE_LIMIT, &[], Bytes::from_static(UNFINISHED)).await,
        begin(&client, SHOULD_RATE_LIMIT, &[], Bytes::from_static(UNFINISHED)).await,
    ];
    let in_flight = &service.service.doors().in_flight;
    until("both", || in_flight.load(Ordering::Relaxed) == 2).await;
    assert!(refused(&client, &[], &Bytes::from_static(&[0; 5])).await);
    assert_eq!(service.ask("GET /authz/envoy/ HTTP/1.1\r\nhost: h").await.status, 429);
    assert_eq!(service.met(Bound::Requests), 3);
    drop(held);
    until("room", || in_flight.load(Ordering::Relaxed) == 0).await;
    assert!(!refused(&client, &[], &Bytes::from_static(&[0; 5])).await);
    assert_eq!(service.ask("GET /authz/envoy/ HTTP/1.1\r\nhost: h").await.status, 200);
}

#[tokio::test]
async fn a_connection_too_many_waits_until_one_ends() {
    let service = start(Bounds { connections: 2, ..Bounds::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(service.http).await.expect("the kernel takes it");
        client.write_all(HEALTHCHECK).await.expect("it is sent");
        clients.push(client);
    }
    for client in &mut clients[..2] {
        assert_eq!(client.read_u8().await.expect("an answer"), b'H');
    }
    until("the count", || service.met(Bound::Connections) == 1).await;
    let tally = service.service.doors();
    let open = || [&tally.http_connections, &tally.grpc_connections].map(|open| open.load(Ordering::Relaxed));
    assert_eq!(open(), [2, 0]);
    assert_eq!(clients[2].try_read(&mut [0; 1]).expect_err("it waits").kind(), std::io::ErrorKind::WouldBlock);
    drop(clients.remove(0));
    assert_eq!(timeout(WAIT_TIMEOUT, clients[1].read_u8()).await.expect("in time").expect("an answer at last"), b'H');
    assert_eq!((open(), service.met(Bound::Connections)), ([2, 0], 1));
    // The other door has a budget of its own.
    assert_eq!(service.rls().await.one(&[("path", "/")]).await.overall_code, OK);
}

#[tokio::test]
async fn a_stream_too_many_waits_until_one_ends() {
    let service = start(Bounds { streams: 2, ..Bounds::default() }).await;
    let client = connect(service.grpc).await;
    // The response comes after the server's settings.
    assert!(!refused(&client, &[], &Bytes::from_static(&[0; 5])).await);
    let (first, mut stream) = begin(&client, SHOULD_RATE_LIMIT, &[], framed_request()).await;
    let _second = begin(&client, SHOULD_RATE_LIMIT, &[], framed_request()).await;
    let in_flight = || service.service.doors().in_flight.load(Ordering::Relaxed);
    until("both", || in_flight() == 2).await;
    assert_eq!(service.met(Bound::Streams), 1);
    let (third, mut waiting) = begin(&client, SHOULD_RATE_LIMIT, &[], framed_request()).await;
    waiting.send_data(Bytes::new(), true).expect("it is queued");
    // Other connections are answered meanwhile; the request in the queue is not.
    assert_eq!(service.rls().await.one(&[("path", "/")]).await.overall_code, OK);
    assert_eq!(in_flight(), 2);
    stream.send_data(Bytes::new(), true).expect("it is sent");
    assert!(!says_no(SHOULD_RATE_LIMIT, first).await);
    assert!(!says_no(SHOULD_RATE_LIMIT, third).await);
}

#[tokio::test]
async fn a_client_that_never_finishes_a_head_is_closed() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // The first five bytes of a header block that the next frame would continue.
    const HEADERS: &[u8] = &[0, 0, 5, 1, 0, 0, 0, 0, 1, 0x83, 0x86, 0x84, 0x40, 0x01];
    let service = start(Bounds { head_timeout: SOON, ..Bounds::default() }).await;
    let patient = connect(service.grpc).await;
    assert!(!refused(&patient, &[], &Bytes::from_static(&[0; 5])).await);
    let words = [b"".to_vec(), b"PRI * HTTP".to_vec(), PREFACE.to_vec(), [PREFACE, SETTINGS, HEADERS].concat()];
    for (number, words) in words.iter().enumerate() {
        for address in [service.grpc, service.http] {
            let mut stream = TcpStream::connect(address).await.expect("the door is open");
            stream.write_all(words).await.expect("it is sent");
            closed(&mut stream).await;
        }
        assert_eq!(service.met(Bound::HeadTimeout), 2 * (number as u64 + 1), "{words:?}");
    }
    // The timeout also applies to the second head of a connection.
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    stream.write_all(HEALTHCHECK).await.expect("it is sent");
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).await.expect("an answer");
    stream.write_all(b"GET /authz").await.expect("it is sent");
    closed(&mut stream).await;
    assert_eq!(service.met(Bound::HeadTimeout), 9);
    // A connection between two requests is not waiting for a head.
    assert!(!refused(&patient, &[], &Bytes::from_static(&[0; 5])).await);
}

#[tokio::test]
async fn semantics_28_a_request_that_never_ends_is_refused() {
    let service = start(Bounds { request_timeout: SOON, ..Bounds::default() }).await;
    let client = connect(service.grpc).await;
    for (number, path) in [SHOULD_RATE_LIMIT, CHECK].into_iter().enumerate() {
        let (response, _stream) = begin(&client, path, &[], Bytes::from_static(UNFINISHED)).await;
        assert!(says_no(path, response).await);
        assert_eq!(service.met(Bound::RequestTimeout), number as u64 + 1);
    }
    // The plain door decides by the head alone, and does not wait.
    let head = b"POST /authz/envoy/ HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhalf";
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    stream.write_all(head).await.expect("it is sent");
    let answer = Answer::read(&closed(&mut stream).await);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(service.met(Bound::RequestTimeout), 2);
    assert_eq!(service.service.doors().in_flight.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_connection_without_a_request_for_long_is_closed_and_a_watch_is_a_request() {
    let service = start(Bounds { idle_timeout: Some(SOON), ..Bounds::default() }).await;
    let mut watch = HealthClient::new(service.rls().await.0);
    let mut watch = watch.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    assert!(watch.message().await.expect("no error").is_some());
    let busy = connect(service.grpc).await;
    let (response, mut stream) = begin(&busy, SHOULD_RATE_LIMIT, &[], framed_request()).await;
    for round in 1..=3 {
        let mut plain = TcpStream::connect(service.http).await.expect("the door is open");
        plain.write_all(HEALTHCHECK).await.expect("it is sent");
        assert!(closed(&mut plain).await.starts_with(b"HTTP/1.1 200"));
        // An HTTP/2 connection gets a GOAWAY first, so that no request is lost.
        let stream = TcpStream::connect(service.grpc).await.expect("the door is open");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        timeout(WAIT_TIMEOUT, connection).await.expect("in time").expect("it ends in order");
        drop(client);
        assert_eq!(service.met(Bound::IdleTimeout), 2 * round);
    }
    // Neither connection with a request in flight was closed meanwhile.
    stream.send_data(Bytes::new(), true).expect("it is sent");
    assert!(!says_no(SHOULD_RATE_LIMIT, response).await);
    let stopping = tokio::spawn(service.stop());
    assert!(watch.message().await.expect("it was open").is_some());
    drop((watch, busy));
    stopping.await.expect("no panic");
}

/// Envoy enforces its own timeout and resets the stream, which cancels the request. A late decision is better than an
/// error, which would let the request pass.
#[tokio::test]
async fn a_callers_deadline_that_has_passed_does_not_make_an_error_of_a_decision() {
    let service = start(Bounds::default()).await;
    let client = connect(service.grpc).await;
    assert!(!refused(&client, &[("grpc-timeout", "1n")], &Bytes::from_static(&[0; 5])).await);
}
