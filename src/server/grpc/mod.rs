//! The gRPC door: RLS, ext_authz, health and reflection, on hyper's HTTP/2 without a transport in between.
//!
//! Our handlers never answer with an error of gRPC. So a status in the *head* of an answer means that tonic could not
//! read the request, and `refuse_unread` puts a refusal in its place: Envoy lets requests pass on errors.

mod authz;
mod budget;
mod generated;
mod lease_guard;
mod metadata;
mod rls;
mod unary;
mod wire;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME as AUTHZ;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{HealthServer, SERVICE_NAME as HEALTH};
use tonic_health::server::{HealthReporter, HealthService};
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use self::budget::{Budget, Metered, Total};
use self::generated::envoy::service::ratelimit::v3::rate_limit_service_server::SERVICE_NAME as RLS;
use self::lease_guard::{Acquired, Undo, Undoable};
use self::unary::Unread;
use super::connection::{self, Pulse, Terms};
use super::listen::Listener;
use super::panics;
use crate::server::head;
use crate::service::Service;
use crate::settings::{Bound, Bounds};
use crate::telemetry::{Door, Reply};

/// The messages of RLS as they are on our side of the wire.
pub use self::generated::envoy as messages;

/// Envoy resets every call that missed its deadline, so a burst of resets is a slow moment and no attack. The default
/// of 20 would close the connection, and with it all calls that are in time.
const PENDING_RESETS: usize = 4096;

/// The status, out of range, that stands for a message past its bound and for nothing else.
const TOO_LARGE: &str = "11";

/// The services whose health can be asked, and the process as a whole.
const WATCHED: [&str; 3] = ["", RLS, AUTHZ];

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// What a call comes to, as the generated services give it.
type Called = Result<http::Response<Body>, Infallible>;

/// A call under way.
type Call = Pin<Box<dyn Future<Output = Called> + Send>>;

type Answer = Result<http::Response<Undoable>, Infallible>;

type Reflection = BoxCloneSyncService<http::Request<Metered>, http::Response<Body>, Infallible>;

/// The services of the gRPC door.
#[derive(Clone, Debug)]
pub struct Grpc(Arc<Services>);

#[derive(Debug)]
struct Services {
    service: Arc<Service>,
    rls: rls::Rls,
    authz: authz::Authz,
    health: HealthServer<HealthService>,
    reflection: Reflection,
    reflection_alpha: Reflection,
    reporter: HealthReporter,
    bounds: Bounds,
}

impl Grpc {
    /// The gRPC door of a service, with the bounds it has now. They report that they serve.
    pub async fn new(service: Arc<Service>) -> Self {
        let bounds = service.current().settings.bounds.clone();
        let reporter = HealthReporter::new();
        let rls = rls::Rls::new(service.clone());
        let authz = authz::Authz::new(service.clone());
        let (reflection, reflection_alpha) = reflection();
        let services = Self(Arc::new(Services {
            service,
            rls,
            authz,
            health: HealthServer::new(HealthService::from_health_reporter(reporter.clone())),
            reflection,
            reflection_alpha,
            reporter,
            bounds,
        }));
        let serving = services.0.service.health().ready();
        services.report(if serving { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        services
    }

    /// Tells who asks for our health that requests can be sent here: what was waited for is there.
    pub async fn serve_now(&self) {
        if self.0.service.health().set_serving() {
            self.report(ServingStatus::Serving).await;
        }
    }

    /// Tells who asks for our health that we wait for a store.
    pub async fn wait(&self) {
        self.report(ServingStatus::NotServing).await;
    }

    /// Tells who asks for our health that we are about to stop. Calls are still answered.
    pub async fn leave(&self) {
        self.0.service.health().set_stopping();
        self.report(ServingStatus::NotServing).await;
    }

    /// Ends the calls of who watches our health: they have been told, and would keep their connections open.
    pub async fn end_watches(&self) {
        for service in WATCHED {
            self.0.reporter.clone().clear_service_status(service).await;
        }
    }

    /// Serves a listener until `stop`, and then its connections until they have finished.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let Services { bounds, service, .. } = &*self.0;
        let doors = service.doors();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .max_concurrent_streams(bounds.streams)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_header_list_size(head::unreadable(bounds))
            .auto_date_header(false);
        let total = Total::new(bounds, doors);
        let terms = Terms { bounds: bounds.clone(), doors: doors.clone(), open: |doors| &doors.grpc_connections };
        connection::accept(listener, stop, terms, |stream, _, pulse| {
            let services = self.0.clone();
            let client = Client { pulse: pulse.clone(), budget: total.connection() };
            let answer = service_fn(move |request| services.answer(request, &client));
            let connection = connection::attend(builder.serve_connection(TokioIo::new(stream), answer), pulse);
            async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a gRPC connection broke");
                }
            }
        })
        .await;
    }

    /// The frame that answers one whole call, without a connection: for fuzzing, where a connection for each question
    /// would be most of the time. `method` is `ShouldRateLimit` or `Check`.
    #[doc(hidden)]
    pub async fn answer_whole(&self, method: &str, frame: Bytes) -> Bytes {
        let request = |service| {
            let mut request = http::Request::new(Full::new(frame));
            *request.uri_mut() = http::Uri::try_from(format!("/{service}/{method}")).expect("names make a path");
            request.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
            request
        };
        let (door, unread, call): (Door, Refused, Call) = match method {
            "ShouldRateLimit" => (Door::Rls, rls::UNREAD, Box::pin(self.0.clone().rls(request(RLS)))),
            "Check" => (Door::AuthzGrpc, authz::UNREAD, Box::pin(self.0.clone().authz(request(AUTHZ)))),
            other => panic!("{other} is no method that decides"),
        };
        let Ok(response) = call.await;
        let answer = self.0.reply(self.0.refuse_unread(response, door, unread)).into_body().collect().await;
        answer.expect("an answer is there as a whole").to_bytes()
    }

    async fn report(&self, status: ServingStatus) {
        for service in WATCHED {
            self.0.reporter.set_service_status(service, status).await;
        }
    }
}

/// Who is at the other end of a connection.
struct Client {
    pulse: Arc<Pulse>,
    budget: Arc<Budget>,
}

/// A method that somebody calls.
#[derive(Clone, Copy)]
enum Method {
    ShouldRateLimit,
    Check,
    Health,
    Reflection,
    ReflectionAlpha,
    Unknown,
}

impl Method {
    fn of(path: &str) -> Self {
        // The name of a service is followed by `/` and the name of its method.
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((RLS, "ShouldRateLimit")) => Self::ShouldRateLimit,
            Some((AUTHZ, "Check")) => Self::Check,
            Some((HEALTH, _)) => Self::Health,
            Some((REFLECTION, _)) => Self::Reflection,
            Some((REFLECTION_ALPHA, _)) => Self::ReflectionAlpha,
            _ => Self::Unknown,
        }
    }

    /// The door of a question, and the refusal of one that is not read.
    fn unread(self) -> Option<(Door, Refused)> {
        match self {
            Self::ShouldRateLimit => Some((Door::Rls, rls::UNREAD)),
            Self::Check => Some((Door::AuthzGrpc, authz::UNREAD)),
            Self::Health | Self::Reflection | Self::ReflectionAlpha | Self::Unknown => None,
        }
    }
}

impl Services {
    /// Calls the service that a request is for, unless it is past a bound already. The request moves into that call at
    /// once, so that what hyper keeps for a stream stays small: it is moved several times before it is first polled.
    fn answer(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        client: &Client,
    ) -> impl Future<Output = Answer> + use<> {
        let method = Method::of(request.uri().path());
        let in_flight = match method {
            Method::Health => Some(client.pulse.begin_watching()),
            _ => client.pulse.begin(),
        };
        let call: Call = match Metered::request(request, client.budget.clone()) {
            Ok(request) if in_flight.is_some() => self.call(method, request),
            Ok(_) => past_a_bound(),
            Err(bound) => {
                self.service.doors().exceeded.count(bound);
                past_a_bound()
            }
        };
        let services = self.clone();
        async move {
            let called = panics::apart(services.service.doors(), call).await;
            Ok(match (called, method.unread()) {
                (Some(Ok(response)), None) => response.map(|body| Undoable::going_on(body, in_flight)),
                (Some(Ok(response)), Some((door, unread))) => {
                    services.reply(services.refuse_unread(response, door, unread))
                }
                (None, asked) => services.fail(asked.map(|(door, _)| door)),
            })
        }
    }

    fn call(self: &Arc<Self>, method: Method, request: http::Request<Metered>) -> Call {
        match method {
            Method::ShouldRateLimit => Box::pin(self.clone().rls(request)),
            Method::Check => Box::pin(self.clone().authz(request)),
            Method::Health => self.health.clone().call(request),
            Method::Reflection => self.reflection.clone().call(request),
            Method::ReflectionAlpha => self.reflection_alpha.clone().call(request),
            Method::Unknown => Box::pin(async { Ok(Status::unimplemented("no such method here").into_http()) }),
        }
    }

    async fn rls<B: unary::Asked>(self: Arc<Self>, request: http::Request<B>) -> Called {
        Ok(match unary::question(request, self.bounds.message_bytes).await {
            Ok(question) => self.rls.answer(question).await.unwrap_or_else(|| unary::unread(Unread::Senseless)),
            Err(unread) => unary::unread(unread),
        })
    }

    async fn authz<B: unary::Asked>(self: Arc<Self>, request: http::Request<B>) -> Called {
        Ok(match unary::question(request, self.bounds.message_bytes).await {
            Ok(question) => self.authz.answer(question).await.unwrap_or_else(|| unary::unread(Unread::Senseless)),
            Err(unread) => unary::unread(unread),
        })
    }

    /// The answer to a request that panicked: an error, for it is Envoy's `failure_mode_deny` that says what then.
    fn fail(&self, door: Option<Door>) -> http::Response<Undoable> {
        if let Some(door) = door {
            self.service.telemetry().metrics.record_reply(door, Reply::Failed);
        }
        Status::internal("this request met an error of ours; the log has more").into_http::<Body>().map(Undoable::from)
    }

    /// Puts a refusal in the place of a complaint about a request that is too large or makes no sense.
    fn refuse_unread(&self, response: http::Response<Body>, door: Door, refusal: Refused) -> http::Response<Body> {
        let Some(status) = response.headers().get(Status::GRPC_STATUS) else { return response };
        if status == TOO_LARGE {
            self.service.doors().exceeded.count(Bound::MessageBytes);
        }
        self.service.telemetry().metrics.record_reply(door, Reply::Unreadable);
        let mut trailers = http::HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
        let body = Full::new(refusal()).with_trailers(async { Some(Ok(trailers)) });
        let mut response = http::Response::new(Body::new(body));
        response.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        response
    }

    /// An answer of ours, with what undoes its acquired lease when nobody hears it.
    fn reply(&self, mut response: http::Response<Body>) -> http::Response<Undoable> {
        let acquired = response.extensions_mut().remove::<Acquired>();
        response.map(|body| match acquired {
            None => Undoable::from(body),
            Some(acquired) => Undoable::undoing(body, Undo::new(self.service.clone(), acquired)),
        })
    }
}

/// A complaint about a request that is not looked at any further.
fn past_a_bound() -> Call {
    Box::pin(async { Ok(Status::resource_exhausted("past a bound of server.bounds").into_http()) })
}

/// Makes the frame of a refusal.
type Refused = fn() -> Bytes;

/// A message as gRPC frames it: not compressed, four bytes of length, the encoding.
fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a refusal is a few bytes"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

fn reflection() -> (Reflection, Reflection) {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(generated::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let valid = "the descriptors are generated, and a test keeps them true";
    let v1 = builder().build_v1().expect(valid);
    let v1alpha = builder().build_v1alpha().expect(valid);
    (BoxCloneSyncService::new(v1), BoxCloneSyncService::new(v1alpha))
}
