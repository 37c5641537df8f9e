//! Requests to RLS and to the API of workers in this process: the whole server over a real connection, called by a
//! minimal client. All three ask about the same entries.
//!
//! Server and client share one thread, so every run does the same work. The client has its frames ready and reads only
//! the frame heads of responses, about a hundred instructions per request. Instructions of the kernel are not counted.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate::app::App;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::config::{Config, SourceText};
use tollgate::rules::Rules;
use tollgate::server::api::messages::AcquireRequest;
use tollgate::store::{MemorySettings, Stores};

use crate::instructions::counted;
use crate::questions::{RLS, framed, rls_frame};
use crate::timing::Draws;

const ACQUIRE: &str = "/tollgate.v1.Limits/Acquire";

/// The two buckets of `books::composite`, as a configuration file.
const RULES: &str = r#"
[server]
grpc = "127.0.0.1:0"
http = "127.0.0.1:0"
admin = "127.0.0.1:0"
secret = "measured"

[limiters]
per_account = { algorithm = "token_bucket", limit = 1000000, window = "1h" }
per_client = { algorithm = "token_bucket", limit = 1000000, window = "1h" }

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login" }
apply = [{ limiter = "per_account", key = ["account"] }, { limiter = "per_client", key = ["remote_address"] }]
"#;

/// How the server is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Rls,
    /// `tollgate.v1.Limits/Acquire`.
    Grpc,
    /// `POST /v1/acquire`.
    Json,
}

/// Accounts and addresses.
const LOGINS: usize = 1_000;

// Frames of HTTP/2 (RFC 9113): three bytes of length, type, flags, four bytes of stream.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Serves, sends every login once, and then sends `requests` requests, which are counted. All are admitted.
pub fn count(protocol: Protocol, requests: usize) {
    let source = SourceText { name: "bench.toml".into(), text: RULES.into() };
    let config = Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    let rules = Rules::compile(config.book).expect("the rules are right");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut client, frames) = runtime.block_on(async {
        let stores = Stores::memory(&[MemorySettings::default()]);
        // The clock stands still: on a slow machine, buckets would otherwise refill and be swept.
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000)));
        let app = App::open_at(&config.server, rules, stores, clock).await.expect("ports are free");
        let (grpc, http) = (app.grpc_address().tcp().expect("it is TCP"), app.http_address().tcp().expect("it is TCP"));
        tokio::spawn(app.serve(std::future::pending()));
        let mut client = match protocol {
            Protocol::Rls => Caller::Grpc(Client::connect(grpc, RLS, "tollgate").await),
            Protocol::Grpc => Caller::Grpc(Client::connect(grpc, ACQUIRE, "localhost").await),
            Protocol::Json => Caller::Http(HttpClient::connect(http).await),
        };
        let mut draws = Draws(7);
        let frames: Vec<Vec<u8>> = (0..LOGINS)
            .map(|_| {
                let (account, client) = (draws.below(1_000_000), draws.below(1 << 24));
                let address = std::net::Ipv4Addr::from(0x0a00_0000 | client as u32);
                let (account, address) = (format!("acct-{account:07}"), address.to_string());
                match protocol {
                    Protocol::Rls => rls_frame("edge", "/login", &account, &address),
                    Protocol::Grpc => acquire_frame("edge", "/login", &account, &address),
                    Protocol::Json => HttpClient::request(&acquire_json("edge", "/login", &account, &address)),
                }
            })
            .collect();
        for frame in &frames {
            client.ask(frame).await;
        }
        (client, frames)
    });
    counted(|| {
        runtime.block_on(async {
            for request in 0..requests {
                client.ask(&frames[request % LOGINS]).await;
            }
        });
    });
}

/// A client of either protocol.
enum Caller {
    Grpc(Client),
    Http(HttpClient),
}

impl Caller {
    async fn ask(&mut self, message: &[u8]) {
        match self {
            Self::Grpc(client) => client.ask(message).await,
            Self::Http(client) => client.ask(message).await,
        }
    }
}

/// A client of HTTP/1 that waits for each response before it sends the next request.
struct HttpClient {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl HttpClient {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the door is open");
        stream.set_nodelay(true).expect("it is TCP");
        Self { stream, answer: Vec::new() }
    }

    /// A whole request.
    fn request(body: &str) -> Vec<u8> {
        let head = "POST /v1/acquire HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    /// Sends a request and waits for the end of its response, which must admit it: it ends with a line break.
    async fn ask(&mut self, message: &[u8]) {
        self.stream.write_all(message).await.expect("it is read");
        self.answer.clear();
        while !self.answer.ends_with(b"}\n") {
            let read = self.stream.read_buf(&mut self.answer).await.expect("an answer");
            assert!(read > 0, "the connection ended");
        }
        assert!(self.answer.starts_with(b"HTTP/1.1 200"), "every request of this run is admitted");
    }
}

/// A client of one connection that waits for each response before it sends the next request.
struct Client {
    stream: TcpStream,
    next_stream: u32,
    answer: Vec<u8>,
    path: &'static str,
    host: &'static str,
}

impl Client {
    async fn connect(address: SocketAddr, path: &'static str, host: &'static str) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("the door is open");
        stream.set_nodelay(true).expect("it is TCP");
        // Windows that the responses of this run cannot exhaust.
        let window = (1_u32 << 31) - 1;
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        let mut words = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame(&mut words, SETTINGS, 0, 0, &settings);
        frame(&mut words, WINDOW_UPDATE, 0, 0, &(window - 65_535).to_be_bytes());
        stream.write_all(&words).await.expect("it is read");
        Self { stream, next_stream: 1, answer: Vec::new(), path, host }
    }

    /// Sends a request and waits for the end of its response, which must admit it.
    async fn ask(&mut self, message: &[u8]) {
        let (stream, first) = (self.next_stream, self.next_stream == 1);
        self.next_stream += 2;
        let mut words = Vec::with_capacity(256);
        let head = if first { first_head(self.path, self.host) } else { later_head() };
        frame(&mut words, HEADERS, END_HEADERS, stream, &head);
        frame(&mut words, DATA, END_STREAM, stream, message);
        self.stream.write_all(&words).await.expect("it is read");
        let mut admitted = false;
        loop {
            let Some((kind, flags, of, length)) = self.head() else {
                let read = self.stream.read_buf(&mut self.answer).await.expect("an answer");
                assert!(read > 0, "the connection ended");
                continue;
            };
            let payload = &self.answer[9..9 + length];
            let reply = match kind {
                SETTINGS | PING if flags & ACK == 0 => Some(payload[..if kind == PING { 8 } else { 0 }].to_vec()),
                GOAWAY => panic!("the connection is refused: {payload:?}"),
                // A gRPC message: five bytes of framing, then `overall_code` (tag 8) with OK (1), or `granted` with true.
                DATA => {
                    admitted = payload[5..].starts_with(&[8, 1]);
                    None
                }
                _ => None,
            };
            self.answer.drain(..9 + length);
            if let Some(reply) = reply {
                let mut words = Vec::new();
                frame(&mut words, kind, ACK, 0, &reply);
                self.stream.write_all(&words).await.expect("it is read");
            }
            if of == stream && (kind == HEADERS || kind == DATA) && flags & END_STREAM != 0 {
                assert!(admitted, "every request of this run is admitted");
                return;
            }
        }
    }

    /// Type, flags, stream and length of the next frame, once it has arrived in full.
    fn head(&self) -> Option<(u8, u8, u32, usize)> {
        let head = self.answer.first_chunk::<9>()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        (self.answer.len() >= 9 + length).then_some((head[3], head[4], stream, length))
    }
}

fn frame(words: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a question is short");
    words.extend(&length.to_be_bytes()[1..]);
    words.extend([kind, flags]);
    words.extend(stream.to_be_bytes());
    words.extend(payload);
}

/// The first HEADERS of a connection: POST over http, and four headers that the server adds to its table (RFC 7541,
/// 6.2.1).
fn first_head(path: &str, host: &str) -> Vec<u8> {
    let mut head = vec![0x83, 0x86];
    let mut text = |prefix: &[u8], texts: &[&str]| {
        head.extend(prefix);
        for text in texts {
            head.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("it is short"));
            head.extend(text.as_bytes());
        }
    };
    text(&[0x44], &[path]);
    text(&[0x41], &[host]);
    text(&[0x5f], &["application/grpc"]);
    text(&[0x40], &["te", "trailers"]);
    head
}

/// The HEADERS of later requests, by index into that table.
fn later_head() -> Vec<u8> {
    vec![0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]
}

/// The same question of a worker.
fn acquire_frame(domain: &str, path: &str, account: &str, address: &str) -> Vec<u8> {
    let entries = [("path", path), ("account", account), ("remote_address", address)];
    framed(&AcquireRequest {
        domain: Some(domain.to_owned()),
        entries: entries.map(|(entry, value)| (entry.to_owned(), value.to_owned())).into(),
        ..AcquireRequest::default()
    })
}

/// The same as JSON.
fn acquire_json(domain: &str, path: &str, account: &str, address: &str) -> String {
    format!(
        "{{\"domain\":\"{domain}\",\"entries\":{{\"path\":\"{path}\",\"account\":\"{account}\",\"remote_address\":\"{address}\"}}}}"
    )
}
