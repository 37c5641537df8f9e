//! The whole service on free ports with a manual clock, and clients for its doors.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use h2::SendStream;
use h2::client::{self, ResponseFuture, SendRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tollgate::app::App;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{Algorithm, Concurrency, Limiter, OnStoreError, Quota, WorkerSettings};
use tollgate::rules::{
    Action, Apply, Charge, KeyEntry, Matcher, Missing, RefusalText, Rule, RuleBook, RuleHeaders, Rules,
};
use tollgate::server::BoundAddress;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tollgate::service::Service;
use tollgate::settings;
use tollgate::settings::{AdminSettings, Drain, Listen, Settings};
use tollgate::store::{MemorySettings, Stores};
use tonic::transport::Channel;

pub const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
pub const OK: i32 = 1;
pub const OVER_LIMIT: i32 = 2;

/// The timeout of a response, with time for a busy machine.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A service under test. It stops when this is dropped.
pub struct Doors {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub clock: ManualClock,
    pub service: Arc<Service>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<()>>,
}

/// The settings of tests: free loopback ports.
pub fn settings() -> Settings {
    let free = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let admin = AdminSettings { listen: Some(free.clone()), chosen: true, token: None };
    let drain = Drain { delay: Duration::ZERO, ..Drain::default() };
    Settings { grpc: free.clone(), http: free, admin, drain, ..Settings::default() }
}

impl Doors {
    pub async fn start(book: RuleBook) -> Self {
        Self::start_with(settings(), book).await
    }

    pub async fn start_with(settings: Settings, book: RuleBook) -> Self {
        let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
        Self::serve(open(&settings, book, clock.clone()).await.expect("the doors open"), clock)
    }

    /// Serves an app.
    pub fn serve(app: App, clock: ManualClock) -> Self {
        let service = app.service().clone();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let (grpc, http) = (app.grpc_address().tcp(), app.http_address().tcp());
        let admin = app.admin_address().and_then(BoundAddress::tcp);
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(app.serve(async move { drop(stopped.await) }));
        let (grpc, http, admin) = (grpc.unwrap_or(nowhere), http.unwrap_or(nowhere), admin.unwrap_or(nowhere));
        Self { grpc, http, admin, clock, service, stop: Some(stop), served: Some(served) }
    }

    /// Stops it and waits until it has stopped.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.served.take().expect("it was serving").await.expect("it stops without a panic");
    }

    /// Begins to stop it.
    pub fn begin_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// The number of times that a bound was exceeded.
    pub fn met(&self, bound: settings::Bound) -> u64 {
        let counts = self.service.doors().exceeded.counts();
        counts.filter(|(met, _)| *met == bound).map(|(_, count)| count).sum()
    }

    pub async fn rls(&self) -> Rls {
        Rls::at(self.grpc).await
    }

    /// Sends a request over plain HTTP/1.1, on a new connection.
    pub async fn ask(&self, head: &str) -> Answer {
        exchange(self.http, format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await
    }
}

pub async fn open(settings: &Settings, book: RuleBook, clock: ManualClock) -> Result<App, tollgate::app::AppError> {
    let rules = Rules::compile(book).expect("the rules compile");
    App::open_at(settings, rules, Stores::memory(&[MemorySettings::default()]), Arc::new(clock)).await
}

/// Sends bytes and reads the response to its end.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("the door is open");
    stream.write_all(bytes).await.expect("bytes are sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer comes");
    Answer::read(&answer)
}

/// An HTTP/1.1 response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// A plain HTTP/2 connection.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("the door is open");
    let (client, connection) = client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// Begins a call with the first part of its body, without ending it.
pub async fn begin(
    client: &SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
    part: Bytes,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = http::Request::post(format!("http://tollgate{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.clone().ready().await.expect("the connection stands");
    let (response, mut stream) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
    // A request refused by its head may have been answered already, which closes its stream.
    let _ = stream.send_data(part, false);
    (response, stream)
}

/// The response to a call: its body with framing, and its gRPC status.
pub async fn answer(response: ResponseFuture) -> (Bytes, Option<String>) {
    let response = timeout(WAIT_TIMEOUT, response).await.expect("in time").expect("an answer");
    assert_eq!(response.status(), 200);
    let head = response.headers().get("grpc-status").map(|status| status.to_str().expect("a number").to_owned());
    let mut body = response.into_body();
    let mut read = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.expect("a whole body");
        body.flow_control().release_capacity(chunk.len()).expect("it was received");
        read.put(chunk);
    }
    let trailers = body.trailers().await.expect("whole trailers");
    let status =
        trailers.and_then(|trailers| Some(trailers.get("grpc-status")?.to_str().expect("a number").to_owned()));
    (read.freeze(), head.or(status))
}

/// A framed request that no rule matches.
pub fn framed_request() -> Bytes {
    let message = question("edge", [descriptor(&[("path", "/")])]);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("it fits");
    frame.freeze()
}

/// Whether a response is a refusal in the form that Envoy reads.
pub async fn says_no(path: &str, response: ResponseFuture) -> bool {
    let (body, status) = answer(response).await;
    assert_eq!(status.as_deref(), Some("0"), "{path} never answers with an error");
    if path == SHOULD_RATE_LIMIT {
        return RateLimitResponse::decode(&body[5..]).expect("an answer of RLS").overall_code == OVER_LIMIT;
    }
    match CheckResponse::decode(&body[5..]).expect("an answer of ext_authz").http_response {
        Some(HttpResponse::DeniedResponse(denied)) => {
            assert_eq!(denied.status.map(|status| status.code), Some(429));
            true
        }
        Some(HttpResponse::OkResponse(_)) => false,
        other => panic!("{other:?}"),
    }
}

/// Reads until the connection is closed.
pub async fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut read)).await.expect("it is closed in time");
    read
}

/// A client of the gRPC door.
#[derive(Clone)]
pub struct Rls(pub Channel);

impl Rls {
    /// Connected to the door at this address.
    pub async fn at(address: impl Display) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).expect("an address");
        Self(channel.connect().await.expect("the door is open"))
    }

    pub async fn ask(&self, request: RateLimitRequest) -> RateLimitResponse {
        self.call(SHOULD_RATE_LIMIT, request).await.expect("never an error of gRPC")
    }

    /// One descriptor in domain `edge`, one hit.
    pub async fn one(&self, entries: &[(&str, &str)]) -> RateLimitResponse {
        self.ask(question("edge", [descriptor(entries)])).await
    }

    pub async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.0.clone());
        client.ready().await.expect("the connection stands");
        let path = http::uri::PathAndQuery::from_static(path);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        client.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
    }
}

pub fn question(domain: &str, descriptors: impl IntoIterator<Item = RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest {
        domain: Bytes::copy_from_slice(domain.as_bytes()),
        descriptors: descriptors.into_iter().collect(),
        hits_addend: 0,
    }
}

pub fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let entries = entries.iter().map(|(key, value)| Entry { key: bytes(key), value: bytes(value) }).collect();
    RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
}

/// The strings of a response's metadata.
pub fn metadata(answer: &RateLimitResponse) -> Vec<(String, String)> {
    let fields = prost_types::Struct::decode(answer.dynamic_metadata.clone()).expect("a struct").fields;
    fields.into_iter().map(|(name, value)| (name, text(value))).collect()
}

fn text(value: prost_types::Value) -> String {
    match value.kind {
        Some(prost_types::value::Kind::StringValue(text)) => text,
        other => panic!("{other:?} is no text"),
    }
}

pub fn lease(answer: &RateLimitResponse) -> Option<String> {
    metadata(answer).into_iter().find(|(name, _)| name == "lease").map(|(_, lease)| lease)
}

pub fn header<'a>(answer: &'a RateLimitResponse, name: &str) -> Option<&'a str> {
    let mut headers = answer.response_headers_to_add.iter().filter(|header| header.key == name);
    headers.next().map(|header| header.value.as_str())
}

pub fn window(name: &str, limit: u32, seconds: u64) -> Limiter {
    let quota = Quota::new(limit, Duration::from_secs(seconds), Algorithm::SlidingWindow).expect("a window");
    limiter(name, Some(quota), None)
}

pub fn bucket(name: &str, limit: u32, seconds: u64, burst: u32) -> Limiter {
    let algorithm = Algorithm::TokenBucket { burst: Some(burst), max_debt: None };
    limiter(name, Some(Quota::new(limit, Duration::from_secs(seconds), algorithm).expect("a bucket")), None)
}

pub fn slots(name: &str, max: u32) -> Limiter {
    limiter(name, None, Some(Concurrency { max, lease: 300_000_000 }))
}

fn limiter(name: &str, quota: Option<Quota>, concurrency: Option<Concurrency>) -> Limiter {
    Limiter {
        name: name.to_owned(),
        store: 0,
        quota,
        concurrency,
        on_store_error: OnStoreError::Local,
        overridable: true,
        workers: WorkerSettings::default(),
    }
}

/// A rule of domain `edge` that applies limiters, each with its key entries.
pub fn rule(name: &str, matches: &[(&str, &str)], apply: &[(&str, &[&str])]) -> Rule {
    let matches = matches.iter().map(|(key, text)| ((*key).to_owned(), Matcher::parse(text))).collect();
    let apply = apply.iter().map(|(limiter, key)| Apply {
        limiter: (*limiter).to_owned(),
        otherwise: None,
        key: key.iter().map(|entry| KeyEntry { entry: (*entry).to_owned(), normalise: Vec::new() }).collect(),
        charge: Charge::Admitted,
        overdraw: false,
        missing: Missing::Skip,
        hold: None,
    });
    Rule {
        domain: "edge".to_owned(),
        name: name.to_owned(),
        matches,
        action: Action::Apply(apply.collect()),
        last: false,
        shadow: false,
        enforce_percent: None,
        refusal: RefusalText::default(),
        headers: RuleHeaders::default(),
        skip_absent: false,
    }
}

pub fn book(limiters: impl IntoIterator<Item = Limiter>, rules: impl IntoIterator<Item = Rule>) -> RuleBook {
    RuleBook { limiters: limiters.into_iter().collect(), rules: rules.into_iter().collect(), ..RuleBook::default() }
}

/// Parses an address.
pub fn address(text: &str) -> SocketAddr {
    SocketAddr::from_str(text).expect("an address")
}
