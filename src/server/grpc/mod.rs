//! The gRPC door: RLS, ext_authz, health and reflection, on hyper's HTTP/2 without a transport in between.
//!
//! Our handlers never answer with an error of gRPC. So a status in the *head* of an answer means that tonic could not
//! read the request, and `refuse_unread` puts a refusal in its place: Envoy lets requests pass on errors.

mod authz;
mod budget;
mod generated;
mod metadata;
mod rls;
mod undo;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{AuthorizationServer, SERVICE_NAME as AUTHZ};
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
use tower::Service;
use tower::util::BoxCloneSyncService;

use self::budget::{Budget, Metered, Total};
use self::generated::envoy::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitServiceServer, SERVICE_NAME as RLS,
};
use self::undo::{Acquired, Undo, Undoable};
use super::connection;
use super::desk::Desk;
use super::listen::Listener;
use crate::telemetry::{Door, Reply};

/// The messages of RLS as they are on our side of the wire.
pub use self::generated::envoy as messages;

/// The largest question read whole. RLS questions are made of request headers, which Envoy bounds at 60 KiB unless
/// told otherwise; ext_authz may bring a body, which nothing here reads.
const LARGEST_REQUEST: usize = 1 << 20;

/// Headers of a call may carry text of the client's (`initial_metadata`), and a call refused for them would be an
/// error to Envoy. So there is much room, yet not without bound.
const LARGEST_HEADERS: u32 = 256 << 10;

/// Envoy opens a connection for each worker and sends whole bursts on it before it reads our settings.
const STREAMS: u32 = 4096;

/// Envoy resets every call that missed its deadline, so a burst of resets is a slow moment and no attack. The default
/// of 20 would close the connection, and with it all calls that are in time.
const PENDING_RESETS: usize = 4096;

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// A call under way, as the generated services give it.
type Call = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

type Answer = Result<http::Response<Undoable>, Infallible>;

type Reflection = BoxCloneSyncService<http::Request<Metered>, http::Response<Body>, Infallible>;

/// The services of the gRPC door.
#[derive(Clone, Debug)]
pub struct Grpc(Arc<Services>);

#[derive(Debug)]
struct Services {
    desk: Arc<Desk>,
    rls: RateLimitServiceServer<rls::Rls>,
    authz: AuthorizationServer<authz::Authz>,
    health: HealthServer<HealthService>,
    reflection: Reflection,
    reflection_alpha: Reflection,
    reporter: HealthReporter,
}

impl Grpc {
    /// The services over a desk. They report that they serve.
    pub async fn new(desk: Arc<Desk>) -> Self {
        let reporter = HealthReporter::new();
        let rls = rls::Rls::new(desk.clone());
        let authz = authz::Authz::new(desk.clone());
        let (reflection, reflection_alpha) = reflection();
        let services = Self(Arc::new(Services {
            desk,
            rls: RateLimitServiceServer::new(rls).max_decoding_message_size(LARGEST_REQUEST),
            authz: AuthorizationServer::new(authz).max_decoding_message_size(LARGEST_REQUEST),
            health: HealthServer::new(HealthService::from_health_reporter(reporter.clone())),
            reflection,
            reflection_alpha,
            reporter,
        }));
        services.report(ServingStatus::Serving).await;
        services
    }

    /// Tells who asks for our health that we are about to stop. Calls are still answered.
    pub async fn leave(&self) {
        self.0.desk.health().leave();
        self.report(ServingStatus::NotServing).await;
    }

    /// Serves a listener until `stop`, and then its connections until they have finished.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_header_list_size(LARGEST_HEADERS)
            .auto_date_header(false);
        let total = Total::default();
        connection::accept(listener, stop, |stream, _, watcher| {
            let services = self.0.clone();
            let budget = total.connection();
            let answer = service_fn(move |request| services.answer(request, &budget));
            let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), answer));
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
            "ShouldRateLimit" => (Door::Rls, rls::UNREAD, self.0.rls.clone().call(request(RLS))),
            "Check" => (Door::AuthzGrpc, authz::UNREAD, self.0.authz.clone().call(request(AUTHZ))),
            other => panic!("{other} is no method that decides"),
        };
        let Ok(response) = call.await;
        let answer = self.0.reply(self.0.refuse_unread(response, door, unread)).into_body().collect().await;
        answer.expect("an answer is there as a whole").to_bytes()
    }

    async fn report(&self, status: ServingStatus) {
        for service in ["", RLS, AUTHZ] {
            self.0.reporter.set_service_status(service, status).await;
        }
    }
}

impl Services {
    /// Calls the service that a request is for. The request moves into that call at once, so that what hyper keeps
    /// for a stream stays small: it is moved several times before it is first polled.
    fn answer(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        budget: &Arc<Budget>,
    ) -> impl Future<Output = Answer> + use<> {
        let request = Metered::request(request, budget.clone());
        // The name of a service is followed by `/` and the name of its method.
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        let (unread, call): (Option<(Door, Refused)>, Call) = match service {
            Some((RLS, "ShouldRateLimit")) => (Some((Door::Rls, rls::UNREAD)), self.rls.clone().call(request)),
            Some((AUTHZ, "Check")) => (Some((Door::AuthzGrpc, authz::UNREAD)), self.authz.clone().call(request)),
            Some((HEALTH, _)) => (None, self.health.clone().call(request)),
            Some((REFLECTION, _)) => (None, self.reflection.clone().call(request)),
            Some((REFLECTION_ALPHA, _)) => (None, self.reflection_alpha.clone().call(request)),
            _ => (None, Box::pin(async { Ok(Status::unimplemented("no such method here").into_http()) })),
        };
        let services = self.clone();
        async move {
            let Ok(response) = call.await;
            Ok(match unread {
                None => response.map(Undoable::from),
                Some((door, unread)) => services.reply(services.refuse_unread(response, door, unread)),
            })
        }
    }

    /// Puts a refusal in the place of tonic's complaint about a request that is too large or makes no sense.
    fn refuse_unread(&self, response: http::Response<Body>, door: Door, refusal: Refused) -> http::Response<Body> {
        if !response.headers().contains_key(Status::GRPC_STATUS) {
            return response;
        }
        self.desk.telemetry().metrics.replied(door, Reply::Unreadable);
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
            Some(acquired) => Undoable::undoing(body, Undo::new(self.desk.engine().clone(), acquired)),
        })
    }
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
