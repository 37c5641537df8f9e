//! The API of workers over gRPC, at the gRPC door and at an address of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::Reason;
use h2::client;
use prost::Message;
use tokio::net::TcpStream;
use tollgate::server::BoundAddress;
use tollgate::server::api::messages::{
    AcquireRequest, AcquireResponse, ListLimitersRequest, ListLimitersResponse, PeekResponse, ReleaseRequest,
    ReleaseResponse, RenewRequest, RenewResponse, SettleRequest, SettleResponse, Units,
};
use tollgate::settings::{ApiSettings, Listen, Settings, Token};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::workers::{waiting, workers};
use crate::support::service::*;

const ACQUIRE: &str = "/tollgate.v1.Limits/Acquire";
const PEEK: &str = "/tollgate.v1.Limits/Peek";
const RELEASE: &str = "/tollgate.v1.Limits/Release";
const SETTLE: &str = "/tollgate.v1.Limits/Settle";

fn entries(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(entry, value)| ((*entry).to_owned(), (*value).to_owned())).collect()
}

fn login(account: &str) -> AcquireRequest {
    AcquireRequest {
        domain: Some("edge".to_owned()),
        entries: entries(&[("path", "/login"), ("account", account)]),
        ..AcquireRequest::default()
    }
}

fn upload() -> AcquireRequest {
    AcquireRequest {
        domain: Some("edge".to_owned()),
        limiter: Some("uploads".to_owned()),
        key: entries(&[("slot", "a")]),
        ..AcquireRequest::default()
    }
}

async fn acquire(client: &Rls, request: AcquireRequest) -> AcquireResponse {
    client.call(ACQUIRE, request).await.expect("an answer and no error")
}

async fn free_uploads(client: &Rls) -> u32 {
    let peeked: PeekResponse = client.call(PEEK, upload()).await.expect("an answer");
    peeked.limits[0].remaining
}

#[tokio::test]
async fn semantics_51_a_refusal_is_an_answer_of_grpc() {
    let service = Doors::start(workers()).await;
    let client = service.rls().await;
    for _ in 0..2 {
        assert!(acquire(&client, login("al")).await.granted);
    }
    let peeked: PeekResponse = client.call(PEEK, login("al")).await.expect("an answer");
    assert_eq!((peeked.would_grant, peeked.retry_after_ms), (false, Some(60_000)));
    let refused = acquire(&client, login("al")).await;
    assert_eq!((refused.granted, refused.reason.as_deref(), refused.units), (false, Some("limit"), 0));
    assert_eq!((refused.limiter.as_deref(), refused.rule.as_deref()), (Some("login"), Some("login")));
    assert_eq!(refused.retry_after, Some(prost_types::Duration { seconds: 60, nanos: 0 }));
    assert_eq!((refused.limits[0].limit, refused.limits[0].remaining), (2, 0));
}

#[tokio::test]
async fn semantics_50_every_method_is_served_over_grpc() {
    let service = Doors::start(workers()).await;
    let client = service.rls().await;
    let granted = acquire(&client, upload()).await;
    let lease = granted.lease.expect("slots have a lease");
    assert_eq!(granted.lease_ends_in, Some(prost_types::Duration { seconds: 300, nanos: 0 }));
    let length = Some(prost_types::Duration { seconds: 20, nanos: 0 });
    let renew = RenewRequest { lease: lease.clone(), length };
    let renewed: RenewResponse = client.call("/tollgate.v1.Limits/Renew", renew).await.expect("an answer");
    assert_eq!((renewed.fate.as_str(), renewed.lease_ends_in), ("done", length));
    for fate in ["done", "unknown"] {
        let released: ReleaseResponse =
            client.call(RELEASE, ReleaseRequest { lease: lease.clone() }).await.expect("an answer");
        assert_eq!(released.fate, fate);
    }
    let units = Some(Units { each: Some(1), ..Units::default() });
    let settled: SettleResponse = client.call(SETTLE, SettleRequest { lease, units }).await.expect("an answer");
    assert_eq!(settled.fate, "unknown");
    let listed: ListLimitersResponse =
        client.call("/tollgate.v1.Limits/ListLimiters", ListLimitersRequest {}).await.expect("an answer");
    assert_eq!(listed.limiters.len(), 4);
}

#[tokio::test]
async fn semantics_51_what_makes_no_sense_has_a_code_and_its_place() {
    let service = Doors::start(workers()).await;
    let client = service.rls().await;
    let year = Some(prost_types::Duration { seconds: 365 * 86_400, nanos: 0 });
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let long = "k".repeat(100_000);
    let cases = [
        (AcquireRequest { limiter: Some("upload".to_owned()), ..upload() }, Code::NotFound, "limiter"),
        (AcquireRequest { domain: Some("egde".to_owned()), ..upload() }, Code::NotFound, "domain"),
        (AcquireRequest { entries: entries(&[("path", "/none")]), ..login("al") }, Code::NotFound, "entries"),
        (AcquireRequest::default(), Code::InvalidArgument, "limiter"),
        (AcquireRequest { cost: Some(0), ..upload() }, Code::InvalidArgument, "cost"),
        // -1 as protobuf encodes it.
        (AcquireRequest { cost: Some(u64::MAX), ..upload() }, Code::InvalidArgument, "cost"),
        (AcquireRequest { max_wait: year, ..upload() }, Code::InvalidArgument, "max_wait"),
        (AcquireRequest { max_wait: negative, ..upload() }, Code::InvalidArgument, "max_wait"),
        (AcquireRequest { lost: Some("kept".to_owned()), ..upload() }, Code::InvalidArgument, "lost"),
        (AcquireRequest { key: entries(&[("slot", &long)]), ..upload() }, Code::InvalidArgument, "key.slot"),
    ];
    for (request, code, place) in cases {
        for path in [ACQUIRE, PEEK] {
            let error = client.call::<_, AcquireResponse>(path, request.clone()).await.expect_err(place);
            assert_eq!(error.code(), code, "{path} {place}: {error:?}");
            assert!(error.message().starts_with(place), "{path} {place}: {}", error.message());
        }
    }
    let error = client.call::<_, ReleaseResponse>(RELEASE, ReleaseRequest::default()).await.expect_err("no lease");
    assert_eq!((error.code(), error.message().starts_with("lease")), (Code::InvalidArgument, true), "{error:?}");
    let units = Some(Units { each: Some(u64::MAX), ..Units::default() });
    let settle = SettleRequest { lease: "a".to_owned(), units };
    let error = client.call::<_, SettleResponse>(SETTLE, settle).await.expect_err("negative units");
    assert_eq!((error.code(), error.message().starts_with("units")), (Code::InvalidArgument, true), "{error:?}");
    assert_eq!(free_uploads(&client).await, 2, "nothing was charged");
}

#[tokio::test]
async fn semantics_52_a_token_opens_the_api_over_grpc() {
    let token = "a token of sixteen".to_owned();
    let api = ApiSettings { tokens: vec![Token(token.clone())], ..ApiSettings::default() };
    let service = Doors::start_with(Settings { api, ..settings() }, workers()).await;
    let client = connect(service.grpc).await;
    for (authorization, status) in [(format!("Bearer {token}"), "0"), ("Bearer wrong".to_owned(), "16"), (token, "16")]
    {
        let headers = [("authorization", authorization.as_str())];
        let (response, mut stream) = begin(&client, PEEK, &headers, framed(&upload())).await;
        stream.send_data(Bytes::new(), true).expect("sent");
        assert_eq!(answer(response).await.1.as_deref(), Some(status), "{authorization}");
    }
    // Gateways need none.
    assert_eq!(service.rls().await.one(&[("path", "/")]).await.overall_code, OK);
}

#[tokio::test]
async fn semantics_52_over_grpc_too_a_browser_and_another_host_are_rejected() {
    let service = Doors::start(workers()).await;
    let client = connect(service.grpc).await;
    // `begin` names the host tollgate.
    for headers in [&[][..], &[("origin", "http://localhost")]] {
        let (response, mut stream) = begin(&client, PEEK, headers, framed(&upload())).await;
        let _ = stream.send_data(Bytes::new(), true);
        assert_eq!(answer(response).await.1.as_deref(), Some("7"), "{headers:?}");
    }
}

#[tokio::test]
async fn an_address_of_its_own_serves_both_protocols_and_no_gateway() {
    let free = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let settings = Settings { api: ApiSettings { listen: Some(free), ..ApiSettings::default() }, ..settings() };
    let clock = tollgate::clock::ManualClock::at(tollgate::clock::Timestamp::from_secs(1_700_000_000));
    let app = open(&settings, workers(), clock.clone()).await.expect("the doors open");
    let api = app.api_address().and_then(BoundAddress::tcp).expect("an address of its own");
    let service = Doors::serve(app, clock);
    let client = Rls::at(api).await;
    assert!(acquire(&client, upload()).await.granted);
    let body = r#"{"domain": "edge", "limiter": "uploads", "key": {"slot": "a"}}"#;
    let head = "POST /v1/peek HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = exchange(api, request.as_bytes()).await;
    assert!(answer.status == 200 && answer.body.contains("\"remaining\":1"), "{answer:?}");
    assert_eq!(exchange(service.http, request.as_bytes()).await.status, 404, "the HTTP door does not serve it");
    let get = |path: &str| format!("GET {path} HTTP/1.0\r\n\r\n").into_bytes();
    assert_eq!(exchange(api, &get("/healthcheck")).await.status, 200);
    assert_eq!(exchange(api, &get("/authz/envoy/login")).await.status, 404);
    let unimplemented = client.call::<_, AcquireResponse>(SHOULD_RATE_LIMIT, upload()).await.expect_err("no gateway");
    assert_eq!(unimplemented.code(), Code::Unimplemented);
    let gateways = service.rls().await;
    let unimplemented = gateways.call::<_, AcquireResponse>(ACQUIRE, upload()).await.expect_err("not here");
    assert_eq!(unimplemented.code(), Code::Unimplemented);
    for client in [&client, &gateways] {
        let check = HealthCheckRequest { service: "tollgate.v1.Limits".to_owned() };
        let health: HealthCheckResponse = client.call("/grpc.health.v1.Health/Check", check).await.expect("known");
        assert_eq!(health.status, 1, "SERVING");
    }
    let metrics = exchange(service.admin, &get("/metrics")).await.body;
    assert!(metrics.contains("tollgate_connections{door=\"api\"} 1\n"), "{metrics}");
}

fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("it fits");
    frame.freeze()
}

#[tokio::test]
async fn semantics_43_a_lease_is_released_when_its_stream_is_reset_before_the_answer_unless_it_has_a_key() {
    let service = Doors::start(workers()).await;
    let client = service.rls().await;
    for (key, held) in [(None, 0), (Some("a random text".to_owned()), 1)] {
        let stream = TcpStream::connect(service.grpc).await.expect("the door is open");
        let (deaf, connection) =
            client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let request =
            http::Request::post(format!("http://localhost{ACQUIRE}")).header("content-type", "application/grpc");
        let mut deaf = deaf.ready().await.expect("the connection stands");
        let (answer, mut body) = deaf.send_request(request.body(()).expect("a request"), false).expect("a stream");
        let ask = AcquireRequest { idempotency_key: key, ..upload() };
        body.send_data(framed(&ask), true).expect("sent");
        assert_eq!(answer.await.expect("the head of an answer").status(), 200);
        assert_eq!(free_uploads(&client).await, 1);
        body.send_reset(Reason::CANCEL);
        drop((body, deaf));
        connection.abort();
        for _ in 0..100_000 {
            if free_uploads(&client).await == 2 - held {
                break;
            }
        }
        assert_eq!(free_uploads(&client).await, 2 - held);
    }
}

#[tokio::test]
async fn semantics_48_a_call_waits_no_longer_than_its_deadline_and_a_reset_ends_its_wait() {
    let service = Doors::start(workers()).await;
    let client = service.rls().await;
    for _ in 0..2 {
        assert!(acquire(&client, upload()).await.granted);
    }
    let minute = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let wait = AcquireRequest { max_wait: minute, ..upload() };
    let stream = TcpStream::connect(service.grpc).await.expect("the door is open");
    let (caller, connection) = client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let call = async |timeout: &str| {
        let request = http::Request::post(format!("http://localhost{ACQUIRE}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout);
        let mut caller = caller.clone().ready().await.expect("the connection stands");
        let (response, mut body) = caller.send_request(request.body(()).expect("a request"), false).expect("a stream");
        body.send_data(framed(&wait), true).expect("sent");
        (response, body)
    };
    let (response, _body) = call("200m").await;
    let (body, status) = answer(response).await;
    assert_eq!(status.as_deref(), Some("0"));
    let refused = AcquireResponse::decode(&body[5..]).expect("an answer");
    assert_eq!((refused.granted, refused.reason.as_deref()), (false, Some("limit")));
    let (_response, mut body) = call("60S").await;
    while waiting(&service).await == 0 {}
    body.send_reset(Reason::CANCEL);
    while waiting(&service).await > 0 {}
    assert_eq!(free_uploads(&client).await, 0);
}
