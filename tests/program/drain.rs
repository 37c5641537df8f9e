//! Shutdown: health checks fail first, requests in flight are answered, and no charge is lost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate::rules::RuleBook;
use tollgate::settings::{Bounds, Drain, Settings};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::support::processes::{Ask, Process, WAIT_TIMEOUT, ports, until};
use crate::support::service::{
    Doors, Rls, SHOULD_RATE_LIMIT, book, descriptor, exchange, question, rule, settings, window,
};

fn logins() -> RuleBook {
    book([window("login", 3, 60)], [rule("login", &[], &[("login", &["account"])])])
}

fn draining(delay: Duration, timeout: Duration) -> Settings {
    Settings { drain: Drain { delay, timeout }, ..settings() }
}

const LONG: Duration = Duration::from_secs(3600);

/// A raw HTTP/2 client: only the test reacts to a GOAWAY or a PING.
struct Wire {
    stream: TcpStream,
    read: BytesMut,
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: BytesMut,
}

const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

impl Wire {
    async fn connect(service: &Doors) -> Self {
        let mut stream = TcpStream::connect(service.grpc).await.expect("the door is open");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it is sent");
        Self { stream, read: BytesMut::new() }
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_uint(payload.len() as u64, 3);
        frame.put_u8(kind);
        frame.put_u8(flags);
        frame.put_u32(stream);
        frame.put_slice(payload);
        self.stream.write_all(&frame).await.expect("it is sent");
    }

    /// Sends the head of a request on this stream.
    async fn begin(&mut self, stream: u32) {
        let mut head = BytesMut::new();
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", SHOULD_RATE_LIMIT),
            (":authority", "tollgate"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        for (name, value) in fields {
            head.put_u8(0); // a literal without indexing
            for text in [name, value] {
                head.put_u8(u8::try_from(text.len()).expect("shorter than 127 bytes"));
                head.put_slice(text.as_bytes());
            }
        }
        self.send(HEADERS, 4, stream, &head).await;
    }

    /// Sends a whole request on this stream.
    async fn ask(&mut self, stream: u32) {
        self.begin(stream).await;
        let message = question("edge", [descriptor(&[("account", "ada")])]);
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body).expect("it fits");
        self.send(0, END_STREAM, stream, &body).await;
    }

    /// The next frame; none when the connection has ended.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.read.len() >= 9 {
                let length = self.read.clone().get_uint(3) as usize;
                if self.read.len() >= 9 + length {
                    let mut head = self.read.split_to(9);
                    head.advance(3);
                    let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
                    return Some(Frame { kind, flags, stream, payload: self.read.split_to(length) });
                }
            }
            if self.stream.read_buf(&mut self.read).await.expect("the connection is not reset") == 0 {
                return None;
            }
        }
    }

    async fn next_of(&mut self, is: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection stands");
            if is(&frame) {
                return frame;
            }
        }
    }

    /// Waits for the trailers of a response.
    async fn answered(&mut self, stream: u32) {
        let trailers = |frame: &Frame| {
            assert!(frame.kind != GOAWAY, "an end before the answer: {frame:?}");
            frame.kind == HEADERS && frame.stream == stream && frame.flags & END_STREAM > 0
        };
        self.next_of(trailers).await;
    }

    /// The last stream that a GOAWAY admits, and its reason.
    async fn goaway(&mut self) -> (u32, u32) {
        let mut payload = self.next_of(|frame| frame.kind == GOAWAY).await.payload;
        (payload.get_u32(), payload.get_u32())
    }
}

#[tokio::test]
async fn a_call_between_the_first_goaway_and_the_second_is_answered() {
    let mut service = Doors::start_with(draining(Duration::ZERO, LONG), logins()).await;
    let mut wire = Wire::connect(&service).await;
    wire.ask(1).await;
    wire.answered(1).await;
    service.begin_to_stop();
    assert_eq!(wire.goaway().await, (u32::MAX >> 1, 0), "every stream may still come");
    let ping = wire.next_of(|frame| frame.kind == PING && frame.flags & ACK == 0).await;
    // Sent before the client could have seen the GOAWAY.
    wire.ask(3).await;
    wire.answered(3).await;
    wire.send(PING, ACK, 0, &ping.payload).await;
    assert_eq!(wire.goaway().await, (3, 0), "and no more than came");
    while wire.next().await.is_some() {}
    service.stop().await;
}

async fn serving(rls: &Rls, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer: HealthCheckResponse = rls.call("/grpc.health.v1.Health/Check", request).await?;
    Ok(answer.status())
}

const SERVICES: [&str; 3] = ["", "envoy.service.ratelimit.v3.RateLimitService", "envoy.service.auth.v3.Authorization"];

#[tokio::test]
async fn during_the_drain_delay_it_reports_not_ready_and_answers_every_request() {
    let mut service = Doors::start_with(draining(LONG, LONG), logins()).await;
    let rls = service.rls().await;
    for name in SERVICES {
        assert_eq!(serving(&rls, name).await.expect("it is known"), ServingStatus::Serving);
    }
    let ready = service.ask("GET /readyz HTTP/1.1\r\nhost: a").await;
    assert_eq!(ready.status, 200);
    service.begin_to_stop();
    while serving(&rls, "").await.expect("it is known") == ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    for name in SERVICES {
        assert_eq!(serving(&rls, name).await.expect("it is known"), ServingStatus::NotServing, "{name}");
    }
    for (path, status) in [("/readyz", 503), ("/healthcheck", 503), ("/livez", 200)] {
        assert_eq!(service.ask(&format!("GET {path} HTTP/1.1\r\nhost: a")).await.status, status, "{path}");
    }
    // Open connections are still served, and so are new ones.
    for rls in [&rls, &service.rls().await] {
        rls.one(&[("account", "ada")]).await;
    }
    let answer = exchange(service.http, b"GET /authz/envoy/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "the client has to close it");
}

#[tokio::test]
async fn requests_longer_than_the_drain_timeout_are_dropped() {
    let bounds = Bounds { request_timeout: LONG, ..Bounds::default() };
    let settings = Settings { bounds, ..draining(Duration::ZERO, Duration::from_millis(50)) };
    let service = Doors::start_with(settings, logins()).await;
    let mut wire = Wire::connect(&service).await;
    // A request that may take an hour and is never finished.
    wire.begin(1).await;
    let in_flight = || service.service.doors().in_flight.load(Ordering::Relaxed);
    while in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::timeout(WAIT_TIMEOUT, service.stop()).await.expect("it does not wait for ever");
}

#[tokio::test]
async fn neither_a_silent_client_nor_a_health_watch_delays_the_end() {
    let mut service = Doors::start_with(draining(Duration::ZERO, LONG), logins()).await;
    // One connection sends nothing, one only begins, one is plain HTTP, and one watches.
    let _silent = TcpStream::connect(service.grpc).await.expect("the door is open");
    let _begun = Wire::connect(&service).await;
    let _plain = TcpStream::connect(service.http).await.expect("the door is open");
    let mut watching = watch(&service).await;
    let first = watching.message().await.expect("a status").expect("the stream is open");
    assert_eq!(first.status(), ServingStatus::Serving);
    service.begin_to_stop();
    let next = watching.message().await.expect("a status").expect("the stream is open");
    assert_eq!(next.status(), ServingStatus::NotServing);
    assert!(matches!(watching.message().await, Ok(None) | Err(_)), "the watch ends");
    // The drain may take an hour, but ends as soon as the connections are known to be idle.
    tokio::time::timeout(Duration::from_secs(60), service.stop()).await.expect("no connection delays the shutdown");
}

async fn watch(service: &Doors) -> tonic::Streaming<HealthCheckResponse> {
    let address = format!("http://{}", service.grpc);
    let channel = tonic::transport::Channel::from_shared(address).expect("an address").connect().await;
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel.expect("the door is open"));
    let request = HealthCheckRequest { service: String::new() };
    client.watch(request).await.expect("a watch").into_inner()
}

/// The real program with a snapshot.
fn start(directory: &Path, delay: &str) -> (Process, u16) {
    let (grpc, http) = (ports::free(), ports::free());
    let configuration = format!(
        "[server]\ngrpc = '127.0.0.1:{grpc}'\nhttp = '127.0.0.1:{http}'\nadmin = 'off'\ndrain_delay = '{delay}'\n\
         [stores.main]\nengine = 'memory'\nsnapshot = 'kept.snapshot'\nsnapshot_interval = '1h'\n\
         [limiters.login]\nalgorithm = 'sliding_window'\nlimit = 3\nwindow = '1h'\n\
         [[rules]]\ndomain = 'edge'\nname = 'login'\napply = [{{ limiter = 'login', key = ['account'] }}]\n\
         [authz]\ndomain = 'edge'\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    );
    fs::write(directory.join("tollgate.toml"), configuration).expect("a file in the test's directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(["serve", "--config", "tollgate.toml"]).current_dir(directory);
    let process = Process::start("tollgate", &mut command, directory);
    (process.ready(|| status(http, "/readyz") == 200), http)
}

fn status(http: u16, path: &str) -> u16 {
    Ask::get(path).account("ada").send(http).map_or(0, |answer| answer.status)
}

#[test]
fn the_program_answers_until_its_delay_is_over_and_ends_with_0() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut process, http) = start(directory.path(), "5s");
    process.signal("-TERM");
    until("it says that it stops", || status(http, "/readyz") == 503);
    assert_eq!(status(http, "/authz/envoy/"), 200);
    assert_eq!(process.ended(), Some(0));
    let (_process, http) = start(directory.path(), "0s");
    assert_eq!([(); 3].map(|()| status(http, "/authz/envoy/")), [200, 200, 429], "that one was counted too");
}

#[test]
fn a_second_signal_ends_it_at_once_and_its_counters_are_still_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut process, http) = start(directory.path(), "1h");
    assert_eq!([(); 2].map(|()| status(http, "/authz/envoy/")), [200, 200]);
    process.signal("-TERM");
    until("it says that it stops", || status(http, "/readyz") == 503);
    assert_eq!(status(http, "/authz/envoy/"), 200);
    process.signal("-INT");
    assert_eq!(process.ended(), Some(130));
    let (_process, http) = start(directory.path(), "0s");
    assert_eq!(status(http, "/authz/envoy/"), 429);
}
