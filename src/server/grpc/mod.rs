//! The gRPC door: RLS, ext_authz, the API of workers, health and reflection, served directly by hyper's HTTP/2.
//!
//! The handlers of gateways never return a gRPC error. So a status in the *head* of a response means that the request
//! could not be read, and `refuse_unreadable` replaces it by a refusal: Envoy lets requests pass on errors.

mod acquire;
mod authz;
mod frame;
mod generated;
mod guarded_body;
mod health;
mod limits;
mod metadata;
mod rls;
mod unary;
mod wire;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME as AUTHZ;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic_health::pb::health_server::{HealthServer, SERVICE_NAME as HEALTH};
use tower::Service as _;
use tower::util::BoxCloneSyncService;

use self::frame::RefusalFrame;
use self::generated::envoy::service::ratelimit::v3::rate_limit_service_server::SERVICE_NAME as RLS;
pub(super) use self::guarded_body::GuardedBody;
use self::health::HealthService;
use self::limits::{GrpcLimits, LimitsMethod, SERVICE_NAME as LIMITS};
use self::unary::ReadError;
use super::api::Reach;
use super::budget::{Budget, MeteredBody, TotalBudget};
use super::connection::{self, AcceptOptions, Activity, Port};
use super::lease_guard::{HandedOutLease, LeaseGuard};
use super::listen::Listener;
use super::panics;
use crate::server::head;
use crate::service::Service;
use crate::settings::{Bound, Bounds};
use crate::telemetry::{Door, Mistake, Reply};

/// The generated messages of RLS.
pub use self::generated::envoy as messages;
/// The generated messages of the API of workers.
pub use self::generated::tollgate::v1 as limits_messages;

/// Envoy resets every call that timed out, so a burst of resets means a slow moment, not an attack. hyper's default of
/// 20 would close the connection, and with it all calls that are in time.
const MAX_PENDING_RESETS: usize = 4096;

/// Each frame of a refused call that is on its way already counts as an error of its client, and hyper's default of 1024
/// would close the connection of one that had begun a few dozen large calls. A client that does nothing else reaches this.
const MAX_LATE_FRAMES: usize = 65_536;

/// OUT_OF_RANGE, which here means only a message past its bound.
const GRPC_OUT_OF_RANGE: &str = "11";

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// The result of a call, as tonic's services return it.
type CallResult = Result<http::Response<Body>, Infallible>;

/// A call in flight.
type BoxedCall = Pin<Box<dyn Future<Output = CallResult> + Send>>;

type DoorResult = Result<http::Response<GuardedBody>, Infallible>;

type Reflection = BoxCloneSyncService<http::Request<MeteredBody>, http::Response<Body>, Infallible>;

/// The services of the gRPC door.
#[derive(Clone, Debug)]
pub struct Grpc(Arc<Services>);

#[derive(Debug)]
struct Services {
    service: Arc<Service>,
    rls: rls::Rls,
    authz: authz::GrpcAuthz,
    health: HealthServer<HealthService>,
    reflection: Reflection,
    reflection_alpha: Reflection,
    limits: GrpcLimits,
    /// Whether health is reported as SERVING. `None` once the process has ended all watches.
    serving: Arc<Mutex<Option<watch::Sender<bool>>>>,
    /// Whether RLS and ext_authz are served here.
    serves_gateways: bool,
    /// Whether the API of workers is served here.
    serves_workers: bool,
    bounds: Bounds,
}

impl Grpc {
    /// Creates the gRPC door of a service, with its current bounds. Reports the health of the service. Serves the API of
    /// workers too, unless that has an address of its own.
    pub fn new(service: Arc<Service>) -> Self {
        let serves_workers = service.current().settings.api.listen.is_none();
        let serving = Arc::new(Mutex::new(Some(watch::Sender::new(service.health().ready()))));
        Self::serving(service, serving, true, serves_workers)
    }

    /// The same for the API's own address: without RLS and ext_authz. It reports the same health.
    pub(super) fn for_workers(&self) -> Self {
        Self::serving(self.0.service.clone(), self.0.serving.clone(), false, true)
    }

    fn serving(
        service: Arc<Service>,
        serving: Arc<Mutex<Option<watch::Sender<bool>>>>,
        serves_gateways: bool,
        serves_workers: bool,
    ) -> Self {
        let bounds = service.current().settings.bounds.clone();
        let watched = match &*lock(&serving) {
            Some(serving) => serving.subscribe(),
            None => watch::Sender::new(false).subscribe(),
        };
        let rls = rls::Rls::new(service.clone());
        let authz = authz::GrpcAuthz::new(service.clone());
        let (reflection, reflection_alpha) = reflection();
        Self(Arc::new(Services {
            limits: GrpcLimits::new(service.clone()),
            service,
            rls,
            authz,
            health: HealthServer::new(HealthService::new(watched)),
            reflection,
            reflection_alpha,
            serving,
            serves_gateways,
            serves_workers,
            bounds,
        }))
    }

    /// Reports SERVING, unless the process is draining.
    pub fn set_serving(&self) {
        if self.0.service.health().set_serving() {
            self.report(true);
        }
    }

    /// Reports NOT_SERVING while a required store does not answer.
    pub fn set_not_serving(&self) {
        self.0.service.health().set_waiting();
        self.report(false);
    }

    /// Reports NOT_SERVING because the process is about to stop. Calls are still answered.
    pub fn set_draining(&self) {
        self.0.service.begin_to_stop();
        self.report(false);
    }

    /// Ends the streams that watch health. They have received the last status and would keep their connections open.
    pub fn end_watches(&self) {
        *lock(&self.0.serving) = None;
    }

    /// Serves a listener until `stop`, and then its connections until they have finished.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let Services { bounds, service, .. } = &*self.0;
        let doors = service.doors();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .max_concurrent_streams(bounds.streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LATE_FRAMES)
            .max_header_list_size(head::decoder_limit(bounds))
            .auto_date_header(false);
        let total = TotalBudget::new(bounds, doors);
        let options = AcceptOptions {
            port: Port::Grpc,
            bounds: bounds.clone(),
            doors: doors.clone(),
            open: |doors| &doors.grpc_connections,
        };
        let reach = Reach::of(listener.bound());
        connection::accept(listener, stop, options, |stream, _, activity| {
            let services = self.0.clone();
            let connection_state = ConnectionState { activity: activity.clone(), budget: total.connection(), reach };
            let answer = service_fn(move |request| services.answer(request, &connection_state));
            let connection = connection::drive(builder.serve_connection(TokioIo::new(stream), answer), activity);
            async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "gRPC connection failed");
                }
            }
        })
        .await;
    }

    /// Answers one call without a connection, for programs that have a listener of their own. `frame` and the result are
    /// gRPC frames; `method` is `ShouldRateLimit`, `Check` or `Acquire`, whose errors have no frame.
    ///
    /// # Panics
    ///
    /// With another `method`.
    pub async fn answer_call(&self, method: &str, frame: Bytes) -> Bytes {
        let request = |service| {
            let mut request = http::Request::new(Full::new(frame));
            *request.uri_mut() = http::Uri::try_from(format!("/{service}/{method}")).expect("names make a path");
            request.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
            request
        };
        let (door, refusal, call): (Door, RefusalFrame, BoxedCall) = match method {
            "ShouldRateLimit" => (Door::Rls, rls::UNREADABLE_REFUSAL, Box::pin(self.0.clone().rls(request(RLS)))),
            "Check" => (Door::AuthzGrpc, authz::UNREADABLE_REFUSAL, Box::pin(self.0.clone().authz(request(AUTHZ)))),
            "Acquire" => {
                let (request, limit) = (request(LIMITS), self.0.bounds.message_bytes);
                let answer = self.0.limits.answer(LimitsMethod::Acquire, request, Reach::Socket, limit).await;
                let answer = self.0.reply(answer).into_body().collect().await;
                return answer.expect("an answer is there as a whole").to_bytes();
            }
            other => panic!("{other} is no method that decides"),
        };
        let Ok(mut response) = call.await;
        self.0.refuse_unreadable(&mut response, door, refusal);
        let answer = self.0.reply(response).into_body().collect().await;
        answer.expect("an answer is there as a whole").to_bytes()
    }

    fn report(&self, serving: bool) {
        if let Some(health) = &*lock(&self.0.serving) {
            health.send_replace(serving);
        }
    }

    /// Answers a call of a connection.
    pub(super) fn answer(
        &self,
        request: http::Request<Incoming>,
        connection_state: &ConnectionState,
    ) -> impl Future<Output = DoorResult> + use<> {
        self.0.answer(request, connection_state)
    }
}

fn lock(serving: &Mutex<Option<watch::Sender<bool>>>) -> MutexGuard<'_, Option<watch::Sender<bool>>> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) activity: Arc<Activity>,
    pub(super) budget: Arc<Budget>,
    pub(super) reach: Reach,
}

/// A method of the door.
#[derive(Clone, Copy)]
enum Method {
    ShouldRateLimit,
    Check,
    Limits(LimitsMethod),
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
            Some((LIMITS, method)) => LimitsMethod::of(method).map_or(Self::Unknown, Self::Limits),
            Some((HEALTH, _)) => Self::Health,
            Some((REFLECTION, _)) => Self::Reflection,
            Some((REFLECTION_ALPHA, _)) => Self::ReflectionAlpha,
            _ => Self::Unknown,
        }
    }

    /// For a method that decides: its door, and the refusal of a request that cannot be read.
    fn refusal_if_unreadable(self) -> Option<(Door, RefusalFrame)> {
        match self {
            Self::ShouldRateLimit => Some((Door::Rls, rls::UNREADABLE_REFUSAL)),
            Self::Check => Some((Door::AuthzGrpc, authz::UNREADABLE_REFUSAL)),
            Self::Limits(_) | Self::Health | Self::Reflection | Self::ReflectionAlpha | Self::Unknown => None,
        }
    }
}

impl Services {
    /// Calls the service of a request, unless the request exceeds a bound. The request moves into the call at once, so that
    /// hyper's state of a stream stays small: it is moved several times before it is first polled.
    fn answer(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        connection_state: &ConnectionState,
    ) -> impl Future<Output = DoorResult> + use<> {
        let method = self.served(Method::of(request.uri().path()));
        let in_flight = match method {
            Method::Health => Some(connection_state.activity.begin_long_call()),
            _ => connection_state.activity.begin(),
        };
        let call: BoxedCall = match MeteredBody::request(request, connection_state.budget.clone()) {
            Ok(request) if in_flight.is_some() => self.call(method, request, connection_state.reach),
            Ok(_) => over_bound(),
            Err(bound) => {
                self.service.doors().exceeded.count(bound);
                over_bound()
            }
        };
        let services = self.clone();
        async move {
            let result = panics::catch(services.service.doors(), call).await;
            if let Method::Limits(_) = method {
                return Ok(match result {
                    Some(Ok(response)) => services.reply(response),
                    None => services.fail(Some(Door::Api)),
                });
            }
            Ok(match (result, method.refusal_if_unreadable()) {
                (Some(Ok(response)), None) => response.map(|body| GuardedBody::streaming(body, in_flight)),
                (Some(Ok(mut response)), Some((door, refusal))) => {
                    services.refuse_unreadable(&mut response, door, refusal);
                    services.reply(response)
                }
                (None, deciding) => services.fail(deciding.map(|(door, _)| door)),
            })
        }
    }

    /// The method, if it is served at this address.
    fn served(&self, method: Method) -> Method {
        match method {
            Method::ShouldRateLimit | Method::Check if !self.serves_gateways => Method::Unknown,
            Method::Limits(_) if !self.serves_workers => Method::Unknown,
            method => method,
        }
    }

    fn call(self: &Arc<Self>, method: Method, request: http::Request<MeteredBody>, reach: Reach) -> BoxedCall {
        match method {
            Method::Limits(method) => {
                let services = self.clone();
                let limit = self.bounds.message_bytes;
                Box::pin(async move { Ok(services.limits.answer(method, request, reach, limit).await) })
            }
            Method::ShouldRateLimit => Box::pin(self.clone().rls(request)),
            Method::Check => Box::pin(self.clone().authz(request)),
            Method::Health => self.health.clone().call(request),
            Method::Reflection => self.reflection.clone().call(request),
            Method::ReflectionAlpha => self.reflection_alpha.clone().call(request),
            Method::Unknown => {
                self.service.doors().mistakes.record(Mistake::UnknownMethod, method_named(&request));
                Box::pin(async { Ok(Status::unimplemented("no such method here").into_http()) })
            }
        }
    }

    async fn rls<B: unary::RequestBody>(self: Arc<Self>, request: http::Request<B>) -> CallResult {
        Ok(match unary::read_message(request, self.bounds.message_bytes).await {
            Ok(message) => match self.rls.answer(message).await {
                Some(response) => response,
                None => unary::error_response(&ReadError::Malformed),
            },
            Err(error) => self.unreadable(&error),
        })
    }

    async fn authz<B: unary::RequestBody>(self: Arc<Self>, request: http::Request<B>) -> CallResult {
        Ok(match unary::read_message(request, self.bounds.message_bytes).await {
            Ok(message) => {
                self.authz.answer(message).await.unwrap_or_else(|| unary::error_response(&ReadError::Malformed))
            }
            Err(error) => self.unreadable(&error),
        })
    }

    /// The error response to a request that cannot be read, which `refuse_unreadable` replaces.
    fn unreadable(&self, error: &ReadError) -> http::Response<Body> {
        if let ReadError::Encoding(encoding) = error {
            self.service.doors().mistakes.record(Mistake::Encoding, encoding);
        }
        unary::error_response(error)
    }

    /// The response to a request that panicked: an error, so Envoy's `failure_mode_deny` decides.
    fn fail(&self, door: Option<Door>) -> http::Response<GuardedBody> {
        if let Some(door) = door {
            self.service.telemetry().metrics.record_reply(door, Reply::Failed);
        }
        Status::internal("internal error; see the log of tollgate").into_http::<Body>().map(GuardedBody::from)
    }

    /// Replaces the error about a request that is too large or malformed by a refusal.
    fn refuse_unreadable(&self, response: &mut http::Response<Body>, door: Door, refusal: RefusalFrame) {
        let Some(status) = response.headers().get(Status::GRPC_STATUS) else { return };
        if status == GRPC_OUT_OF_RANGE {
            self.service.doors().exceeded.count(Bound::MessageBytes);
        }
        self.service.telemetry().metrics.record_reply(door, Reply::Unreadable);
        let mut trailers = http::HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
        let body = Full::new(refusal()).with_trailers(async { Some(Ok(trailers)) });
        *response = http::Response::new(Body::new(body));
        response.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    }

    /// A response that releases the lease it hands out unless it is sent to its end.
    fn reply(&self, mut response: http::Response<Body>) -> http::Response<GuardedBody> {
        let lease = response.extensions_mut().remove::<HandedOutLease>();
        response.map(|body| match lease {
            None => GuardedBody::from(body),
            Some(lease) => GuardedBody::with_lease(body, LeaseGuard::new(self.service.clone(), lease)),
        })
    }
}

/// The method that a request of an unknown one names, for a log. A path that is no method of gRPC may hold identities.
fn method_named<B>(request: &http::Request<B>) -> &str {
    let is_grpc = head::is_grpc(request.headers());
    let path = request.uri().path();
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
    match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
        Some((service, method)) if is_grpc && service.contains('.') && is_name(service) && is_name(method) => path,
        _ => "a path that is no method of gRPC",
    }
}

/// The error for a request past a bound; a method that decides replaces it by its refusal.
fn over_bound() -> BoxedCall {
    Box::pin(async { Ok(Status::resource_exhausted("the request exceeds a bound of server.bounds").into_http()) })
}

fn reflection() -> (Reflection, Reflection) {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(generated::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let valid = "the descriptors are generated, and a test checks them";
    let v1 = builder().build_v1().expect(valid);
    let v1alpha = builder().build_v1alpha().expect(valid);
    (BoxCloneSyncService::new(v1), BoxCloneSyncService::new(v1alpha))
}
