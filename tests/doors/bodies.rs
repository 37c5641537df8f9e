//! Bodies that a gateway announces: the HTTP door and the admin port do not wait for them, and no byte of one is ever
//! read as a request.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::rules::RuleBook;
use tollgate::settings::{Bound, Bounds, Settings};

use crate::support::service::*;

/// A door that would wait an hour for a body if it waited at all.
async fn start() -> Doors {
    let bounds = Bounds { request_timeout: Duration::from_secs(3600), ..Bounds::default() };
    let mut settings = Settings { bounds, ..settings() };
    settings.authz.domain = "edge".into();
    Doors::start_with(settings, RuleBook::default()).await
}

const ENVOY: &str = "POST /authz/envoy/ HTTP/1.1\r\nhost: h\r\n";
const NGINX: &str = "GET /authz/nginx HTTP/1.1\r\nhost: h\r\nx-original-uri: /\r\nx-original-method: POST\r\n";
const FORWARD: &str = "GET /authz/forward HTTP/1.1\r\nhost: h\r\nx-forwarded-uri: /\r\nx-forwarded-method: POST\r\n";

/// Bodies that are announced and do not arrive as a whole.
const UNFINISHED: [&str; 7] = [
    "content-length: 5\r\n\r\n",
    "content-length: 5\r\n\r\nfour",
    "content-length: 1073741824\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n5\r\nhel",
    "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "expect: 100-continue\r\ncontent-length: 5\r\n\r\n",
];

/// Sends bytes and reads all that is answered until the server closes the connection.
async fn answers(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the door is open");
    stream.write_all(bytes).await.expect("bytes are sent");
    let mut read = Vec::new();
    timeout(WAIT_TIMEOUT, stream.read_to_end(&mut read)).await.expect("answered at once").expect("answered whole");
    String::from_utf8(read).expect("text")
}

/// The only answer in what a connection sent.
fn only_answer(read: &str) -> Answer {
    assert_eq!(read.matches("HTTP/1.1 ").count(), 1, "{read}");
    Answer::read(read.as_bytes())
}

#[tokio::test]
async fn semantics_33_a_body_that_does_not_come_is_not_waited_for_and_its_connection_closes() {
    let service = start().await;
    let health = "GET /healthcheck HTTP/1.1\r\nhost: h\r\n";
    let nowhere = "POST /nowhere HTTP/1.1\r\nhost: h\r\n";
    let incomplete = "GET /authz/nginx HTTP/1.1\r\nhost: h\r\n";
    for (head, status) in [(ENVOY, 200), (NGINX, 200), (FORWARD, 200), (health, 200), (nowhere, 404), (incomplete, 400)]
    {
        for body in UNFINISHED {
            let answer = only_answer(&answers(service.http, format!("{head}{body}").as_bytes()).await);
            assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{head}{body}");
        }
    }
    assert_eq!(service.met(Bound::RequestTimeout) + service.met(Bound::BodyBytes), 0, "no bound was exceeded");
}

#[tokio::test]
async fn the_admin_port_does_not_wait_for_a_body_that_decides_nothing() {
    let service = start().await;
    for (request, status) in [
        ("GET /metrics", 200),
        ("GET /livez", 200),
        ("GET /status", 200),
        ("GET /nowhere", 404),
        ("POST /status", 405),
        ("POST /state", 415),
    ] {
        for body in UNFINISHED {
            let head = format!("{request} HTTP/1.1\r\nhost: h\r\n{body}");
            let answer = only_answer(&answers(service.admin, head.as_bytes()).await);
            assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{head}");
        }
    }
    let large = "POST /state HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 65537\r\n\r\n";
    let answer = only_answer(&answers(service.admin, large.as_bytes()).await);
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    // One that has arrived keeps the connection.
    let whole = "GET /livez HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello";
    let last = "GET /readyz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    assert_eq!(answers(service.admin, format!("{whole}{last}").as_bytes()).await.matches("HTTP/1.1 200").count(), 2);
}

#[tokio::test]
async fn a_request_inside_a_body_is_never_answered() {
    let service = start().await;
    let smuggled = "GET /nowhere HTTP/1.1\r\nhost: h\r\n\r\n";
    let last = "GET /healthcheck HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let length = smuggled.len();
    for head in [ENVOY, NGINX, FORWARD] {
        // The whole body arrived: it is skipped, and the request after it is answered.
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{smuggled}\r\n0\r\n\r\n{last}");
        for whole in [format!("{head}content-length: {length}\r\n\r\n{smuggled}{last}"), chunked] {
            let read = answers(service.http, whole.as_bytes()).await;
            let statuses: Vec<_> = read.matches("HTTP/1.1 200").collect();
            assert_eq!((statuses.len(), read.matches("HTTP/1.1 ").count()), (2, 2), "{read}");
        }
        // A part of it arrived, as from a gateway that announces the client's body and sends its next request.
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n1000\r\n{smuggled}");
        for part in [format!("{head}content-length: {}\r\n\r\n{smuggled}", length + 1), chunked] {
            let answer = only_answer(&answers(service.http, part.as_bytes()).await);
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{part}");
        }
    }
}

#[tokio::test]
async fn a_request_that_comes_after_an_unread_body_on_the_same_connection_is_not_answered() {
    let service = start().await;
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    stream.write_all(format!("{NGINX}content-length: 20\r\n\r\n").as_bytes()).await.expect("sent");
    let mut first = [0; 12];
    timeout(WAIT_TIMEOUT, stream.read_exact(&mut first)).await.expect("at once").expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    // The connection may be closed already.
    let _ = stream.write_all(b"xxxxxxxxxxxxxxxxxxxxGET /healthcheck HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let rest = String::from_utf8(closed(&mut stream).await).expect("text");
    assert!(!rest.contains("HTTP/1.1"), "{rest}");
}

/// Closing a socket with unread input resets the connection, and a gateway that is still sending takes that for a
/// failure.
#[tokio::test]
async fn a_client_that_is_still_sending_a_body_when_it_is_answered_can_finish() {
    let service = start().await;
    for (address, head) in [(service.http, ENVOY), (service.admin, "GET /livez HTTP/1.1\r\nhost: h\r\n")] {
        let mut stream = TcpStream::connect(address).await.expect("the door is open");
        let begin = format!("{head}content-length: 4000000\r\n\r\n{}", "x".repeat(100_000));
        stream.write_all(begin.as_bytes()).await.expect("sent");
        let mut first = [0; 12];
        timeout(WAIT_TIMEOUT, stream.read_exact(&mut first)).await.expect("at once").expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        for _ in 0..39 {
            stream.write_all("x".repeat(100_000).as_bytes()).await.expect("the door still reads");
        }
        stream.shutdown().await.expect("the connection stands");
        let rest = closed(&mut stream).await;
        assert!(String::from_utf8_lossy(&rest).contains("connection: close"), "{rest:?}");
    }
}

#[tokio::test]
async fn over_http_2_the_connection_serves_on_after_a_body_that_does_not_come() {
    let service = start().await;
    let client = connect(service.http).await;
    for _ in 0..3 {
        let request = http::Request::post("http://tollgate/authz/envoy/").header("content-length", "5");
        let mut client = client.clone().ready().await.expect("the connection stands");
        let (response, mut stream) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
        let _ = stream.send_data(Bytes::from_static(b"GET"), false);
        let response = timeout(WAIT_TIMEOUT, response).await.expect("at once").expect("an answer");
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn a_request_without_a_body_keeps_its_connection() {
    let service = start().await;
    for body in ["\r\n", "content-length: 0\r\n\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
        for _ in 0..3 {
            stream.write_all(format!("{NGINX}{body}").as_bytes()).await.expect("sent");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(timeout(WAIT_TIMEOUT, stream.read_u8()).await.expect("at once").expect("an answer"));
            }
            let answer = Answer::read(&head);
            assert_eq!((answer.status, answer.header("connection")), (200, None), "{body}");
        }
    }
}
