//! The listeners of the doors, errors about them, health, reflection, and shutdown.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use futures_util::FutureExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tollgate::clock::ManualClock;
use tollgate::rules::RuleBook;
use tollgate::server::BoundAddress;
use tollgate::settings::{Listen, Settings};
use tonic::transport::Endpoint;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::support::service::*;

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

fn once() -> RuleBook {
    book([window("once", 1, 60)], [rule("once", &[], &[("once", &[])])])
}

#[tokio::test]
async fn a_door_listens_on_ipv6() {
    let both = Listen::Tcp(address("[::1]:0"));
    let service = Doors::start_with(Settings { grpc: both.clone(), http: both, ..settings() }, once()).await;
    assert!(service.grpc.is_ipv6());
    assert_eq!(service.rls().await.one(&[("a", "b")]).await.overall_code, 1);
    assert_eq!(service.ask("GET /healthcheck HTTP/1.1\r\nhost: h").await.status, 200);
}

async fn over_socket(path: &Path) -> Rls {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://tollgate");
    Rls(endpoint.connect_with_connector(connect).await.expect("the door is open"))
}

#[tokio::test]
async fn a_door_listens_on_a_unix_socket_and_removes_it_when_it_closes() {
    let directory = tempfile::tempdir().expect("a directory");
    let (grpc, http) = (directory.path().join("grpc.sock"), directory.path().join("http.sock"));
    // A socket file without a listener is replaced.
    drop(std::os::unix::net::UnixListener::bind(&grpc).expect("a socket"));
    assert!(std::fs::metadata(&grpc).expect("it stays").file_type().is_socket());
    let listen = Settings { grpc: Listen::Unix(grpc.clone()), http: Listen::Unix(http.clone()), ..settings() };
    let service = Doors::start_with(listen, once()).await;
    let rls = over_socket(&grpc).await;
    assert_eq!(rls.one(&[("a", "b")]).await.overall_code, 1);
    let mut stream = UnixStream::connect(&http).await.expect("the door is open");
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    assert_eq!(Answer::read(&answer).status, 200);
    drop(rls);
    service.stop().await;
    assert!(!grpc.exists() && !http.exists());
}

async fn refusal(settings: Settings) -> String {
    open(&settings, once(), ManualClock::default()).await.expect_err("it cannot open").to_string()
}

#[tokio::test]
async fn a_busy_address_is_one_clear_line() {
    let busy = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = busy.local_addr().expect("an address");
    let remedy = "the address is in use; stop what listens there or choose another address";
    let line = format!("cannot listen on {address}: {remedy}");
    let taken = Listen::Tcp(address);
    assert_eq!(refusal(Settings { grpc: taken.clone(), ..settings() }).await, format!("server.grpc: {line}"));
    assert_eq!(refusal(Settings { http: taken, ..settings() }).await, format!("server.http: {line}"));

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("live.sock");
    let live = UnixListener::bind(&path).expect("a socket");
    let line = refusal(Settings { grpc: Listen::Unix(path.clone()), ..settings() }).await;
    assert_eq!(line, format!("server.grpc: cannot listen on unix:{}: {remedy}", path.display()));
    drop(live);

    let file = directory.path().join("precious.txt");
    std::fs::write(&file, "precious").expect("a file");
    let line = refusal(Settings { grpc: Listen::Unix(file.clone()), ..settings() }).await;
    assert!(line.contains("the path belongs to a file that is not a socket"), "{line}");
    assert_eq!(std::fs::read_to_string(&file).expect("it stays"), "precious");
}

async fn health(rls: &Rls, service: &str) -> Result<i32, tonic::Code> {
    let asked = HealthCheckRequest { service: service.to_owned() };
    let answer = rls.call::<_, HealthCheckResponse>("/grpc.health.v1.Health/Check", asked).await;
    answer.map(|answer| answer.status).map_err(|status| status.code())
}

#[tokio::test]
async fn health_tells_of_the_server_and_of_each_service() {
    let service = Doors::start(once()).await;
    let rls = service.rls().await;
    let envoy = ["envoy.service.ratelimit.v3.RateLimitService", "envoy.service.auth.v3.Authorization"];
    // The last is the name that envoyproxy/ratelimit uses.
    for name in ["", envoy[0], envoy[1], "ratelimit"] {
        assert_eq!(health(&rls, name).await, Ok(SERVING), "{name:?}");
    }
    for name in ["nobody", "Ratelimit", "ratelimit "] {
        assert_eq!(health(&rls, name).await, Err(tonic::Code::NotFound));
    }
}

/// "If the service name is not known, the server should respond with SERVICE_UNKNOWN [...] and keep the stream open."
#[tokio::test]
async fn a_watch_of_an_unknown_service_says_so_and_stays_open_until_the_process_stops() {
    const SERVICE_UNKNOWN: i32 = 3;
    let mut service = Doors::start(once()).await;
    let rls = service.rls().await;
    let mut client = HealthClient::new(rls.0.clone());
    let mut watch = async |name: &str| {
        let asked = HealthCheckRequest { service: name.to_owned() };
        client.watch(asked).await.expect("a watch").into_inner()
    };
    let mut unknown = watch("nobody").await;
    let mut known = watch("ratelimit").await;
    assert_eq!(unknown.message().await.expect("no error").map(|answer| answer.status), Some(SERVICE_UNKNOWN));
    assert_eq!(known.message().await.expect("no error").map(|answer| answer.status), Some(SERVING));
    // Nothing more comes while nothing changes, and the stream is open.
    let mut more = std::pin::pin!(unknown.message());
    assert_eq!(health(&rls, "").await, Ok(SERVING));
    assert!(more.as_mut().now_or_never().is_none());
    service.begin_to_stop();
    assert_eq!(known.message().await.expect("no error").map(|answer| answer.status), Some(NOT_SERVING));
    assert_eq!(more.await.expect("no error"), None, "it ends with the process");
    assert_eq!(known.message().await.expect("no error"), None);
    drop((known, rls));
    service.stop().await;
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_tells_published_types() {
    let service = Doors::start(once()).await;
    let mut client = ServerReflectionClient::new(service.rls().await.0);
    let mut ask = async |request| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let mut answers =
            client.server_reflection_info(futures_util::stream::iter([request])).await.expect("an answer");
        let answer: ServerReflectionResponse =
            answers.get_mut().message().await.expect("no error").expect("one answer a question");
        answer.message_response.expect("a response")
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("a list was asked for")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in
        ["envoy.service.ratelimit.v3.RateLimitService", "envoy.service.auth.v3.Authorization", "grpc.health.v1.Health"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    let symbol = "envoy.service.ratelimit.v3.RateLimitRequest";
    let MessageResponse::FileDescriptorResponse(files) = ask(MessageRequest::FileContainingSymbol(symbol.into())).await
    else {
        panic!("a file was asked for")
    };
    let file: prost_types::FileDescriptorProto =
        prost::Message::decode(files.file_descriptor_proto[0].as_slice()).expect("a descriptor");
    assert_eq!(file.name(), "envoy/service/ratelimit/v3/rls.proto");
    let domain = &file.message_type.iter().find(|message| message.name() == "RateLimitRequest").expect("it").field[0];
    assert_eq!(domain.r#type(), prost_types::field_descriptor_proto::Type::String);
}

#[tokio::test]
async fn who_is_told_to_stop_says_so_and_finishes_what_it_began() {
    let app = open(&settings(), once(), ManualClock::default()).await.expect("the doors open");
    let (Some(grpc), Some(http)) = (app.grpc_address().tcp(), app.http_address().tcp()) else { panic!("two ports") };
    assert_eq!(app.grpc_address(), &BoundAddress::Tcp(grpc));
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(app.serve(async move { drop(stopped.await) }));

    let channel = Endpoint::from_shared(format!("http://{grpc}")).expect("an address").connect().await.expect("open");
    let rls = Rls(channel);
    let mut watch = HealthClient::new(rls.0.clone());
    let mut watch = watch.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("no error").map(|answer| answer.status), Some(SERVING));
    // A request is in flight: its head has begun.
    let mut slow = TcpStream::connect(http).await.expect("open");
    slow.write_all(b"GET /healthcheck HTTP/1.1\r\nhost: h\r\n\r\nGET /healthcheck HT").await.expect("sent");
    let mut first = [0; 12];
    slow.read_exact(&mut first).await.expect("the first answer");
    assert_eq!(&first, b"HTTP/1.1 200");

    drop(stop);
    assert_eq!(watch.message().await.expect("no error").map(|answer| answer.status), Some(NOT_SERVING));
    drop(watch);
    drop(rls);
    drop(slow);
    served.await.expect("it stops without a panic");
    assert!(TcpStream::connect(grpc).await.is_err() && TcpStream::connect(http).await.is_err());
}
