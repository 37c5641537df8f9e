//! The plain HTTP door: ext_authz for several gateways, the API of workers at `/v1`, and `/healthcheck`. With an address
//! of its own (`server.api`), the API is served there and not here, with gRPC at the same port.
//!
//! | path | gateway | describes the request by |
//! |---|---|---|
//! | `/authz/envoy/<path>` | Envoy's raw HTTP service with `path_prefix: /authz/envoy` | the request itself |
//! | `/authz/nginx` | `auth_request`, ingress-nginx | `X-Original-Method`, `X-Original-URI` or `-URL`, `Host`, `X-Real-IP` |
//! | `/authz/forward` | Caddy, Traefik | `X-Forwarded-Method`, `-Uri`, `-Host`, `-For` |
//!
//! 200 allows the request, and no other status does. A gateway that does not send method and URI is answered 400, which
//! nginx turns into 500. [`gateway`] lists the headers that are trusted for each gateway.

mod authz;
mod gateway;
mod port_body;
mod response;

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use self::gateway::Gateway;
use self::port_body::PortBody;
pub(super) use self::response::{health, respond};
use super::answer_body::AnswerBody;
use super::api::{self, ApiRequest, HttpApi, Reach};
use super::body;
use super::budget::{Budget, MeteredBody, TotalBudget};
use super::connection::{self, AcceptOptions, Activity, InFlight, Opening, Port};
use super::grpc::{ConnectionState, Grpc};
use super::listen::{self, Listener};
use super::panics;
use crate::server::head;
use crate::service::Service;
use crate::settings::{Bound, Bounds};
use crate::telemetry::{Door, Mistake, Reply};

/// The longest path that hyper reads. A longer one is answered 414, which is a refusal.
const MAX_PATH_BYTES: u64 = u16::MAX as u64 - 1;

/// As at the gRPC door: a burst of cancelled calls is no attack.
const MAX_PENDING_RESETS: usize = 4096;

/// As at the gRPC door: frames of refused calls that are on their way already are no attack.
const MAX_LATE_FRAMES: usize = 65_536;

const LARGE_HEAD: &str = "the request head is too large\n";

/// The HTTP door.
#[derive(Clone, Debug)]
pub struct Http(Arc<RequestHandler>);

#[derive(Debug)]
struct RequestHandler {
    authz: authz::HttpAuthz,
    /// The API of workers, if it is served here.
    api: Option<HttpApi>,
    /// At the API's own address: gRPC. Then ext_authz is not served.
    grpc: Option<Grpc>,
    bounds: Bounds,
    service: Arc<Service>,
}

/// What the requests of one connection share.
#[derive(Debug)]
struct Client {
    address: Option<IpAddr>,
    reach: Reach,
    activity: Arc<Activity>,
    budget: Arc<Budget>,
}

/// The body of a request after its answer.
#[derive(Debug)]
enum RequestBody {
    /// Of a request that its head decides.
    Unread(Incoming),
    /// Of a call of the API, which reads it.
    Metered(MeteredBody),
}

impl RequestBody {
    fn incoming(&mut self) -> &mut Incoming {
        match self {
            Self::Unread(body) => body,
            Self::Metered(body) => body.incoming(),
        }
    }
}

impl Http {
    /// The HTTP door of a service, with the bounds that are configured now. Serves the API of workers too, unless that has
    /// an address of its own.
    pub fn new(service: Arc<Service>) -> Self {
        let serves_workers = service.current().settings.api.listen.is_none();
        let api = serves_workers.then(|| HttpApi::new(service.clone()));
        Self::serving(service, api, None)
    }

    /// The API of workers at an address of its own, over HTTP/JSON and gRPC. `grpc` is the gRPC door.
    pub fn for_workers(service: Arc<Service>, grpc: &Grpc) -> Self {
        let api = HttpApi::new(service.clone());
        Self::serving(service, Some(api), Some(grpc.for_workers()))
    }

    fn serving(service: Arc<Service>, api: Option<HttpApi>, grpc: Option<Grpc>) -> Self {
        let bounds = service.current().settings.bounds.clone();
        let authz = authz::HttpAuthz::new(service.clone());
        Self(Arc::new(RequestHandler { authz, api, grpc, bounds, service }))
    }

    /// Answers one request by its head, without a connection, for programs that have a listener of their own. `peer` is the
    /// address of the connection.
    pub async fn answer_head(&self, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        answer_head(&self.0.authz, head, Some(&[]), peer).await
    }

    /// Answers the body of one call of the API of workers, without a connection. `None` where the API is not served.
    pub async fn answer_call(&self, path: &str, body: &[u8]) -> Option<(StatusCode, Bytes)> {
        let (head, body) = self.0.api.as_ref()?.answer_call(path, body).await.into_parts();
        let Ok(body) = body.collect().await;
        Some((head.status, body.to_bytes()))
    }

    /// Serves a listener until `stop`, and then its connections until they are closed.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let RequestHandler { bounds, service, .. } = &*self.0;
        let doors = service.doors();
        let port = self.0.port();
        let reach = Reach::of(listener.bound());
        let total = TotalBudget::new(bounds, doors);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // The watchdog of `connection` costs less: hyper makes a new timer for each request.
            .header_read_timeout(None)
            .max_buf_size(bounds.header_bytes)
            .max_headers(bounds.headers)
            .http2()
            .max_concurrent_streams(bounds.streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LATE_FRAMES)
            .max_header_list_size(head::decoder_limit(bounds));
        let options = AcceptOptions {
            port,
            bounds: bounds.clone(),
            doors: doors.clone(),
            open: match port {
                Port::Api => |doors| &doors.api_connections,
                _ => |doors| &doors.http_connections,
            },
        };
        connection::accept(listener, stop, options, |stream, peer, activity| {
            let service = self.0.clone();
            let peer = match peer {
                listen::BoundAddress::Tcp(peer) => Some(peer.ip()),
                listen::BoundAddress::Unix(_) => None,
            };
            let client =
                Arc::new(Client { address: peer, reach, activity: activity.clone(), budget: total.connection() });
            let answer = service_fn(move |request| service.dispatch(request, &client));
            let connection = builder.serve_connection(TokioIo::new(stream), answer).into_owned();
            let connection = connection::drive(connection, activity.clone());
            let service = self.0.clone();
            async move {
                if let Err(error) = connection.await {
                    service.record_unread_head(&*error, &activity);
                    // Without its sources: one of them may hold text from the client.
                    tracing::debug!(%error, "HTTP connection failed");
                }
            }
        })
        .await;
    }
}

impl RequestHandler {
    fn port(&self) -> Port {
        if self.grpc.is_some() { Port::Api } else { Port::Http }
    }

    /// Answers a request of either protocol, which begins now.
    fn dispatch(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        client: &Arc<Client>,
    ) -> impl Future<Output = Result<Response<PortBody>, Infallible>> + use<> {
        if let Some(grpc) = &self.grpc
            && head::is_grpc(request.headers())
        {
            let Client { reach, activity, budget, .. } = &**client;
            let state = ConnectionState { activity: activity.clone(), budget: budget.clone(), reach: *reach };
            let call = grpc.answer(request, &state);
            return Either::Left(async { Ok(call.await?.map(PortBody::Grpc)) });
        }
        let (handler, client, in_flight) = (self.clone(), client.clone(), client.activity.begin());
        Either::Right(async move { Ok(handler.answer(request, &client, in_flight).await.map(PortBody::Http)) })
    }

    /// Answers a request.
    async fn answer(
        &self,
        request: http::Request<Incoming>,
        client: &Client,
        in_flight: Option<InFlight>,
    ) -> Response<AnswerBody> {
        let Client { activity, .. } = client;
        let (mut head, body) = request.into_parts();
        if let Some(target) = activity.take_target() {
            head.extensions.insert(target);
        }
        let api = self.api.as_ref().filter(|_| api::is_path(head.uri.path()));
        let door = if api.is_some() { Door::Api } else { Door::AuthzHttp };
        let (mut response, mut body) = match (self.over_bound(door, &head, in_flight.is_some()), api) {
            (Some(refusal), _) => (refusal, RequestBody::Unread(body)),
            (None, Some(api)) => self.answer_worker(api, &head, body, client).await,
            (None, None) if self.reads_body(&head) => self.answer_by_body(&head, body, client).await,
            // The body decides nothing, so it is not waited for.
            (None, None) => (self.answer_gateway(&head, Some(&[]), client.address).await, RequestBody::Unread(body)),
        };
        // HTTP/2 can end the stream and keep the connection.
        if head.version != Version::HTTP_2 {
            let exceeded =
                body::finish(&head.headers, body.incoming(), self.bounds.body_bytes, &mut response, activity).await;
            if let Some(bound) = exceeded {
                self.service.doors().exceeded.count(bound);
            }
            // If the server closed it, the client's next request could be lost. With this header the client closes it.
            if !self.service.health().ready() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        response
    }

    /// Answers a call of the API, whose body is read.
    async fn answer_worker(
        &self,
        api: &HttpApi,
        head: &Parts,
        body: Incoming,
        client: &Client,
    ) -> (Response<AnswerBody>, RequestBody) {
        let mut body = match self.metered(Door::Api, head, body, client) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let request = ApiRequest { head, body: &mut body, reach: client.reach, activity: &client.activity };
        let answered = panics::catch(self.service.doors(), api.answer(request)).await;
        (answered.unwrap_or_else(|| self.fail(Door::Api)), RequestBody::Metered(body))
    }

    /// Whether the body of a request decides: only Envoy sends that of its client.
    fn reads_body(&self, head: &Parts) -> bool {
        Gateway::of(head.uri.path()) == Some(Gateway::Envoy) && self.service.current().settings.authz.reads_bodies()
    }

    /// Answers Envoy once the body has come.
    async fn answer_by_body(
        &self,
        head: &Parts,
        body: Incoming,
        client: &Client,
    ) -> (Response<AnswerBody>, RequestBody) {
        let mut body = match self.metered(Door::AuthzHttp, head, body, client) {
            Ok(body) => body,
            Err(refused) => return *refused,
        };
        let most = self.service.current().settings.bounds.authz_body_bytes;
        let mut bytes = Vec::new();
        // More than the bound says that it is too large.
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            }
            if bytes.len() > most {
                break true;
            }
        };
        let sent = whole.then_some(&*bytes);
        (self.answer_gateway(head, sent, client.address).await, RequestBody::Metered(body))
    }

    /// A body whose bytes count to the memory of unfinished requests, or the refusal of one whose head takes all of that.
    fn metered(
        &self,
        door: Door,
        head: &Parts,
        body: Incoming,
        client: &Client,
    ) -> Result<MeteredBody, Box<(Response<AnswerBody>, RequestBody)>> {
        MeteredBody::new(head, body, client.budget.clone()).map_err(|(bound, body)| {
            self.service.doors().exceeded.count(bound);
            let refusal = self.refuse(door, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, LARGE_HEAD);
            Box::new((refusal, RequestBody::Unread(body)))
        })
    }

    /// Answers a gateway, or a health check.
    async fn answer_gateway(&self, head: &Parts, body: Option<&[u8]>, peer: Option<IpAddr>) -> Response<AnswerBody> {
        let port = self.port();
        if Gateway::of(head.uri.path()).is_none() && head::is_grpc(&head.headers) {
            self.service.doors().mistakes.record(Mistake::GrpcAtOtherPort, &port.client(peer));
        }
        let answer = async {
            match port {
                Port::Api => health(self.service.health(), head.uri.path()),
                _ => answer_head(&self.authz, head, body, peer).await,
            }
        };
        let answered = panics::catch(self.service.doors(), answer).await;
        answered.map_or_else(|| self.fail(Door::AuthzHttp), |answer| answer.map(AnswerBody::from))
    }

    /// The refusal of a request that is past a bound, before its body is read.
    fn over_bound(&self, door: Door, head: &Parts, has_room: bool) -> Option<Response<AnswerBody>> {
        if !has_room {
            return Some(self.refuse(door, StatusCode::TOO_MANY_REQUESTS, "too many requests in flight\n"));
        }
        // hyper bounds the heads of HTTP/1.
        if head.version == Version::HTTP_2
            && let Err(bound) = head::bytes(&self.bounds, &head.uri, &head.headers)
        {
            self.service.doors().exceeded.count(bound);
            return Some(self.refuse(door, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, LARGE_HEAD));
        }
        None
    }

    fn refuse(&self, door: Door, status: StatusCode, text: &'static str) -> Response<AnswerBody> {
        self.service.telemetry().metrics.record_reply(door, Reply::Unreadable);
        respond(status, HeaderMap::new(), text).map(AnswerBody::from)
    }

    fn fail(&self, door: Door) -> Response<AnswerBody> {
        self.service.telemetry().metrics.record_reply(door, Reply::Failed);
        respond(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new(), "internal error\n").map(AnswerBody::from)
    }

    /// Counts a request head that hyper refused, with 400, 414 or 431, and warns of it.
    fn record_unread_head(&self, error: &(dyn Error + 'static), activity: &Activity) {
        let Some(error) = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()) else { return };
        self.service.telemetry().metrics.record_reply(Door::AuthzHttp, Reply::Unreadable);
        if error.is_parse_too_large() {
            // The error does not say whether the size or the number of headers was exceeded.
            let large = activity.http1_bytes() >= MAX_PATH_BYTES.min(self.bounds.header_bytes as u64);
            self.service.doors().exceeded.count(if large { Bound::HeaderBytes } else { Bound::Headers });
        }
        // Another protocol is a mistake of its own.
        if !matches!(activity.opening(), Opening::Tls | Opening::Proxy) {
            self.service.doors().mistakes.record(Mistake::UnreadableHead, &error.to_string());
        }
    }
}

async fn answer_head(
    authz: &authz::HttpAuthz,
    head: &Parts,
    body: Option<&[u8]>,
    peer: Option<IpAddr>,
) -> Response<Full<Bytes>> {
    match Gateway::of(head.uri.path()) {
        Some(gateway) => authz.answer(gateway, head, body, peer).await,
        None => health(authz.service().health(), head.uri.path()),
    }
}
