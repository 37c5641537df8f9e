//! Input that no gateway would send: the doors give a clear response, do not panic, and keep serving.

use std::net::SocketAddr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use h2::client::SendRequest;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tollgate::rules::RuleBook;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse;
use tollgate::settings::Settings;

use crate::support::dice::Dice;
use crate::support::service::*;

/// Panics of tasks, which hyper or tokio would swallow. A panic of another test in this process counts too, but then
/// that test has failed as well.
static PANICS: AtomicUsize = AtomicUsize::new(0);

const ROUNDS: u64 = 10_000;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn start() -> Doors {
    static COUNT: Once = Once::new();
    COUNT.call_once(|| {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            say(panic);
        }));
    });
    Doors::start_with(all_headers(), edge()).await
}

fn edge() -> RuleBook {
    let rules = [
        rule("login", &[("path", "/login*")], &[("login_ip", &["remote_address"]), ("login_{tier}", &["account"])]),
        rule("slots", &[("slot", "*")], &[("slots", &["slot"])]),
    ];
    book([window("login_ip", 30, 60), window("login_free", 5, 60), slots("slots", 3)], rules)
}

fn all_headers() -> Settings {
    let mut settings = settings();
    settings.rls_headers = settings.authz_headers;
    settings.authz.domain = "edge".into();
    settings
}

impl Dice {
    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.roll() as u8).collect()
    }

    /// Flips, truncates, duplicates and fills.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let place = self.below(bytes.len());
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[place] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[place] = self.roll() as u8,
                2 => bytes.truncate(place),
                3 => bytes.splice(place..place, self.bytes(20)).for_each(drop),
                _ => bytes.extend_from_within(place..),
            }
        }
    }
}

async fn alive(service: &Doors) {
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something panicked");
    let rls = service.rls().await;
    assert_eq!(rls.one(&[("path", "/"), ("account", "somebody")]).await.overall_code, 1);
    assert_eq!(service.ask("GET /healthcheck HTTP/1.1\r\nhost: h").await.status, 200);
}

/// A gRPC frame that is correct or nearly so.
fn frame(dice: &mut Dice, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    let (flag, length) = match dice.below(8) {
        0 => (dice.roll() as u8, message.len() as u32),
        1 => (0, dice.roll() as u32),
        2 => (0, message.len() as u32 + 1),
        _ => (0, message.len() as u32),
    };
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// Sends a body to a method and returns the response: its body without framing, and its gRPC status.
async fn post(client: &SendRequest<Bytes>, path: &str, encoding: Option<&str>, body: Bytes) -> (Bytes, Option<String>) {
    let mut request = http::Request::post(format!("http://tollgate{path}")).header("content-type", "application/grpc");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let mut client = client.clone().ready().await.expect("the connection stands");
    let (response, mut stream) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
    // A request refused by its head may have been answered already, which closes its stream.
    let _ = stream.send_data(body, true);
    answer(response).await
}

/// No response header may contain a line break, whatever the request contains.
fn judge(path: &str, body: &[u8], status: Option<&str>) {
    assert_eq!(status, Some("0"), "{path} never answers with an error");
    let headers: Vec<(String, String)> = if path == CHECK {
        let answer = CheckResponse::decode(&body[5..]).expect("an answer of ext_authz");
        assert!(answer.status.is_some());
        let headers = match answer.http_response.expect("an answer of HTTP") {
            HttpResponse::OkResponse(ok) => ok.response_headers_to_add,
            HttpResponse::DeniedResponse(denied) => denied.headers,
            other => panic!("{other:?}"),
        };
        let headers = headers.into_iter().map(|option| option.header.expect("a header"));
        headers.map(|header| (header.key, header.value + &String::from_utf8_lossy(&header.raw_value))).collect()
    } else {
        let answer = RateLimitResponse::decode(&body[5..]).expect("an answer of RLS");
        assert!(matches!(answer.overall_code, 1 | 2), "{answer:?}");
        answer.response_headers_to_add.into_iter().map(|header| (header.key, header.value)).collect()
    };
    for (name, value) in headers {
        assert!(value.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{name}: {value:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_random_and_mutated_frames_get_a_clear_answer() {
    let service = start().await;
    let mut dice = Dice(0x7011_6a7e);
    let values = ["/login", "a\r\nset-cookie: x=y", "free", "\u{0}", "", "192.0.2.7", "::ffff:1.2.3.4", "é", "release"];
    let keys = ["path", "account", "tier", "remote_address", "slot", "release", ""];
    let client = connect(service.grpc).await;
    let mut in_flight = JoinSet::new();
    for round in 0..ROUNDS {
        let descriptors = (0..dice.below(4)).map(|_| {
            let entries: Vec<_> = (0..dice.below(5)).map(|_| (*dice.pick(&keys), *dice.pick(&values))).collect();
            let mut descriptor = descriptor(&entries);
            descriptor.hits_addend = (dice.below(3) == 0).then(|| dice.roll() >> dice.below(64));
            descriptor.is_negative_hits = dice.below(5) == 0;
            descriptor
        });
        let mut message = question("edge", descriptors.collect::<Vec<_>>()).encode_to_vec();
        match round % 4 {
            0 => {}
            1 => message = dice.bytes(300),
            _ => dice.mutate(&mut message),
        }
        let body = match dice.below(20) {
            0 => dice.bytes(50).into(),
            _ => frame(&mut dice, &message),
        };
        let path = *dice.pick(&[SHOULD_RATE_LIMIT, SHOULD_RATE_LIMIT, CHECK]);
        let encoding = (dice.below(30) == 0).then_some("gzip");
        let client = client.clone();
        in_flight.spawn(async move {
            let (body, status) = post(&client, path, encoding, body).await;
            judge(path, &body, status.as_deref());
        });
        if in_flight.len() >= 64 {
            in_flight.join_next().await.expect("some are in flight").expect("a clear answer");
        }
    }
    while let Some(answered) = in_flight.join_next().await {
        answered.expect("a clear answer");
    }
    for path in ["/", "/envoy.service.ratelimit.v3.RateLimitService/", "/grpc.health.v1.Health/Nope", "/a/b/c", "/%ff"]
    {
        let (_, status) = post(&client, path, None, Bytes::new()).await;
        assert_eq!(status.as_deref(), Some("12"), "{path}");
    }
    alive(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_random_and_mutated_http_requests_get_an_answer_or_a_closed_connection() {
    let service = start().await;
    let mut dice = Dice(0xba55_1e55);
    let whole = "POST /authz/envoy/login?a=%ff&b=%zz HTTP/1.1\r\nhost: h\r\nx-account: al\r\ncookie: sid=1; a\r\n\
                 x-forwarded-for: 1.1.1.1, 2.2.2.2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let nginx = "GET /authz/nginx HTTP/1.0\r\nx-original-uri: //lo%67in\r\nx-original-method: POST\r\n\r\n";
    let forward = "GET /authz/forward HTTP/1.1\r\nhost: h\r\nx-forwarded-uri: /login\r\nconnection: close\r\n\r\n";
    let mut in_flight = JoinSet::new();
    let mut answered = 0;
    for round in 0..ROUNDS {
        let mut request = dice.pick(&[whole, nginx, forward]).as_bytes().to_vec();
        match round % 10 {
            0 => {}
            1 => request = dice.bytes(300),
            _ => dice.mutate(&mut request),
        }
        let address = if round % 50 == 49 { service.grpc } else { service.http };
        in_flight.spawn(async move { junk(address, &request).await });
        if in_flight.len() >= 32 {
            answered += u64::from(in_flight.join_next().await.expect("some are in flight").expect("no panic"));
        }
    }
    while let Some(outcome) = in_flight.join_next().await {
        answered += u64::from(outcome.expect("no panic"));
    }
    assert!(answered > ROUNDS / 10, "{answered} were answered");
    alive(&service).await;
}

/// Sends bytes and no more. Whether an HTTP response came before the connection closed.
async fn junk(address: SocketAddr, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).await.expect("the door is open");
    // The door may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut answer)).await.expect("the connection closes in time");
    answer.starts_with(b"HTTP/1.")
}

#[tokio::test]
async fn oversized_heads_are_refused_and_long_values_are_not() {
    let service = start().await;
    let head = |bytes| format!("GET /authz/envoy/login HTTP/1.1\r\nhost: h\r\nx-account: {}", "a".repeat(bytes));
    assert_eq!(service.ask(&head(60 << 10)).await.status, 200);
    let many = format!("GET /authz/envoy/ HTTP/1.1\r\nhost: h{}", "\r\na: b".repeat(2000));
    for hostile in [head(1 << 20), many] {
        let stream = TcpStream::connect(service.http).await.expect("the door is open");
        let (mut read, mut write) = stream.into_split();
        let head = format!("{hostile}\r\n\r\n");
        // The door may close before it has read everything, so the response is read while the request is being sent.
        let sent = tokio::spawn(async move { drop(write.write_all(head.as_bytes()).await) });
        let mut answer = [0; 12];
        read.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 431");
        sent.await.expect("no panic");
    }
    alive(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_never_finished_are_refused_before_they_fill_the_memory() {
    const CALLS: usize = 200;
    let service = start().await;
    let client = connect(service.grpc).await;
    let before = resident();
    let part = Bytes::from([&[0, 0, 16, 0, 0][..], &vec![0; 900 << 10]].concat());
    let mut in_flight = JoinSet::new();
    for _ in 0..CALLS {
        let (response, stream) = begin(&client, CHECK, &[], part.clone()).await;
        in_flight.spawn(async move {
            let (body, status) = answer(response).await;
            judge(CHECK, &body, status.as_deref());
            drop(stream);
        });
    }
    // At most eight megabytes are buffered, so at most nine calls are still in flight.
    for _ in 9..CALLS {
        let answered = timeout(WAIT_TIMEOUT, in_flight.join_next()).await.expect("no room is left");
        answered.expect("there are more").expect("a clear answer");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more than before");
    // The buffers do not affect other connections and are freed with their own.
    alive(&service).await;
    drop((in_flight, client));
    let rls = service.rls().await;
    let long = "x".repeat(500_000);
    assert_eq!(rls.one(&[("path", "/"), ("account", &long)]).await.overall_code, 1);
}

#[tokio::test]
async fn ten_thousand_descriptors_and_oversized_entries_are_answered_without_growing() {
    let service = start().await;
    let rls = service.rls().await;
    let long = "x".repeat(500_000);
    rls.one(&[("path", "/login"), ("account", &long)]).await;
    let before = resident();
    for _ in 0..20 {
        let many = rls.ask(question("edge", vec![descriptor(&[("path", "/login")]); 10_000])).await;
        assert_eq!(many.overall_code, 2);
        let wide: Vec<_> = (0..10_000).map(|_| ("path", "/login")).collect();
        assert_eq!(rls.one(&wide).await.overall_code, 2);
        let long = rls.one(&[("path", "/login"), ("account", &long), ("agent", &long)]).await;
        assert_eq!(long.overall_code, 1, "it is counted by nothing but an address that it has not");
        let huge = "x".repeat(3 << 20);
        assert_eq!(rls.one(&[("path", "/login"), ("account", &huge)]).await.overall_code, 2);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more than before");
    alive(&service).await;
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_connections_are_closed_and_delay_no_other() {
    let service = start().await;
    let mut held = JoinSet::new();
    for number in 0..400 {
        let address = if number < 200 { service.grpc } else { service.http };
        held.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("the door is open");
            // Nothing at all, part of an HTTP/2 preface or all of it, the start of an HTTP/1 head.
            let words: &[u8] = [&b""[..], b"PRI * HTTP", PREFACE, b"GET /authz"][number % 4];
            stream.write_all(words).await.expect("it is sent");
            let mut rest = Vec::new();
            let _ = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut rest)).await.expect("it is closed in time");
        });
    }
    // They do not block other connections.
    for _ in 0..10 {
        alive(&service).await;
    }
    while let Some(closed) = held.join_next().await {
        closed.expect("closed without a panic");
    }
    alive(&service).await;
}
