//! The flood through the RLS door of the released binary: a client of HTTP/2 that makes every question anew.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

use crate::server::Server;
use crate::{LIMIT, ORDINARY, RULES, address, line, mixed};

const FLOOD: u64 = 2_000_000;
/// Less than the default, so that two million requests fill it more than three times over.
const TABLE: u64 = 64 << 20;
const EVERY_ATTACK: u64 = 1_000;
const CONNECTIONS: usize = 4;
/// Questions under way on each connection.
const STREAMS: usize = 25;
const RLS: &str = "http://tollgate/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

pub fn report(tollgate: &str) -> bool {
    let flood = std::env::var("FLOOD").map_or(FLOOD, |text| text.parse().expect("a number of requests"));
    let mut rules = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary directory");
    write!(rules, "{RULES}\n[stores.memory]\nengine = \"memory\"\nmax_memory = {TABLE}\n").expect("it is written");
    let server = Server::start(&[tollgate, "serve", "--config", rules.path().to_str().expect("a path in ASCII")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    let ordinary = |number| ("/call", mixed(number) % ORDINARY, mixed(number) % ORDINARY);
    run(&runtime, &server, 2 * ORDINARY, ordinary);
    let idle = server.resident();
    let before = run(&runtime, &server, 2 * ORDINARY, ordinary);
    assert_eq!(before.admitted, 2 * ORDINARY, "ordinary calls are admitted");

    // In ten turns, so that the most that was resident is seen, and what is ordinary in between.
    let (mut during, mut between) = (Vec::new(), Vec::new());
    let (mut most, mut attacked) = (0, 0);
    for turn in 0..10 {
        let first = ORDINARY + turn * flood / 10;
        let new = run(&runtime, &server, flood / 10, move |number| match number % EVERY_ATTACK {
            0 => ("/login", first + number, u64::MAX),
            _ => ("/login", first + number, first + number),
        });
        attacked += new.attacked;
        during.push(new.micros);
        let calls = run(&runtime, &server, ORDINARY / 2, ordinary);
        assert_eq!(calls.admitted, ORDINARY / 2, "ordinary calls are admitted throughout");
        between.push(calls.micros);
        most = most.max(server.resident());
    }
    println!("{flood} requests of as many addresses and accounts through RLS, a store of 64 MiB");
    println!(
        "  an ordinary request before the flood: {:.1} us of the server's CPU; resident {}",
        before.micros,
        mib(idle)
    );
    let mean = |turns: &[f64]| turns.iter().sum::<f64>() / turns.len() as f64;
    let compared = |what, turns: &[f64]| {
        let ratio = mean(turns) / before.micros;
        line(what, format!("{:.1} us = {ratio:.2} x", mean(turns)), "2 x", ratio <= 2.0)
    };
    // What it had when it was idle held the ordinary counters already.
    let grown = most.saturating_sub(idle);
    let met = [
        line("resident memory, beyond what it was before", mib(grown), "64 MiB", grown <= TABLE),
        compared("an ordinary request during the flood", &between),
        compared("a request of the flood", &during),
        line("admitted of the account under attack", attacked.to_string(), "5", attacked == LIMIT),
    ];
    met.iter().all(|met| *met)
}

/// What a run came to.
struct Run {
    micros: f64,
    admitted: u64,
    /// Of the account under attack.
    attacked: usize,
}

/// Asks so many questions, each made from its number: path, address and account.
fn run(
    runtime: &tokio::runtime::Runtime,
    server: &Server,
    questions: u64,
    make: impl Fn(u64) -> (&'static str, u64, u64) + Send + Sync + Copy + 'static,
) -> Run {
    let cpu = server.cpu();
    let next = Arc::new(AtomicU64::new(0));
    let (admitted, attacked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(server.grpc).await.expect("the door is open");
            stream.set_nodelay(true).expect("it is TCP");
            let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
            let connection = tokio::spawn(connection);
            for _ in 0..STREAMS {
                let (client, next) = (client.clone(), next.clone());
                let (admitted, attacked) = (admitted.clone(), attacked.clone());
                asking.spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= questions {
                            break;
                        }
                        let (path, address, account) = make(number);
                        if ask(client.clone(), path, address, account).await {
                            admitted.fetch_add(1, Ordering::Relaxed);
                            attacked.fetch_add(usize::from(account == u64::MAX), Ordering::Relaxed);
                        }
                    }
                });
            }
            drop(client);
            drop(connection);
        }
        while let Some(asked) = asking.join_next().await {
            asked.expect("no panic");
        }
    });
    let spent: Duration = server.cpu() - cpu;
    Run {
        micros: spent.as_secs_f64() * 1e6 / questions as f64,
        admitted: admitted.load(Ordering::Relaxed),
        attacked: attacked.load(Ordering::Relaxed),
    }
}

async fn ask(client: SendRequest<Bytes>, path: &str, number: u64, account: u64) -> bool {
    let entry = |(key, value): (&str, String)| Entry { key: key.to_owned().into(), value: value.into() };
    let entries = [
        ("path", path.to_owned()),
        ("remote_address", address(number).to_string()),
        ("account", format!("account-{account}")),
    ];
    let descriptor = RateLimitDescriptor { entries: entries.map(entry).into(), ..RateLimitDescriptor::default() };
    let question = RateLimitRequest {
        domain: Bytes::from_static(b"edge"),
        descriptors: vec![descriptor],
        ..RateLimitRequest::default()
    };
    let message = question.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a question is short").to_be_bytes();
    let frame = Bytes::from([&[0][..], &length, &message].concat());

    let request = http::Request::post(RLS).header("content-type", "application/grpc").header("te", "trailers");
    let mut client = client.ready().await.expect("the connection stands");
    let (response, mut stream) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
    stream.send_data(frame, true).expect("it is sent");
    let mut body = response.await.expect("an answer").into_body();
    let mut answer = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.expect("a whole answer");
        body.flow_control().release_capacity(part.len()).expect("it was received");
        answer.extend_from_slice(&part);
    }
    let trailers = body.trailers().await.expect("a whole answer").expect("trailers");
    assert_eq!(trailers.get("grpc-status").map(|status| status.as_bytes()), Some(&b"0"[..]));
    RateLimitResponse::decode(&answer[5..]).expect("an answer is well formed").overall_code == 1
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
