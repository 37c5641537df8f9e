//! The plain HTTP door: ext_authz for several gateways, and `/healthcheck`.
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
mod response;

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use self::gateway::Gateway;
pub(super) use self::response::{health, respond};
use super::body;
use super::connection::{self, AcceptOptions, Activity, InFlight, Opening, Port};
use super::listen::{self, Listener};
use super::panics;
use crate::server::head;
use crate::service::Service;
use crate::settings::{Bound, Bounds};
use crate::telemetry::{Door, Mistake, Reply};

/// The longest path that hyper reads. A longer one is answered 414, which is a refusal.
const MAX_PATH_BYTES: u64 = u16::MAX as u64 - 1;

/// The HTTP door.
#[derive(Clone, Debug)]
pub struct Http(Arc<RequestHandler>);

#[derive(Debug)]
struct RequestHandler {
    authz: authz::HttpAuthz,
    bounds: Bounds,
    service: Arc<Service>,
}

impl Http {
    /// The HTTP door of a service, with the bounds that are configured now.
    pub fn new(service: Arc<Service>) -> Self {
        let bounds = service.current().settings.bounds.clone();
        let authz = authz::HttpAuthz::new(service.clone());
        Self(Arc::new(RequestHandler { authz, bounds, service }))
    }

    /// Answers one request by its head, without a connection, for programs that have a listener of their own. `peer` is the
    /// address of the connection.
    pub async fn answer_head(&self, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        answer_head(&self.0.authz, head, peer).await
    }

    /// Serves a listener until `stop`, and then its connections until they are closed.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let RequestHandler { bounds, service, .. } = &*self.0;
        let doors = service.doors();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // The watchdog of `connection` costs less: hyper makes a new timer for each request.
            .header_read_timeout(None)
            .max_buf_size(bounds.header_bytes)
            .max_headers(bounds.headers)
            .http2()
            .max_concurrent_streams(bounds.streams)
            .max_header_list_size(head::decoder_limit(bounds));
        let options = AcceptOptions {
            port: Port::Http,
            bounds: bounds.clone(),
            doors: doors.clone(),
            open: |doors| &doors.http_connections,
        };
        connection::accept(listener, stop, options, |stream, peer, activity| {
            let service = self.0.clone();
            let peer = match peer {
                listen::BoundAddress::Tcp(peer) => Some(peer.ip()),
                listen::BoundAddress::Unix(_) => None,
            };
            let begin = activity.clone();
            let answer = service_fn(move |request| {
                let (service, activity) = (service.clone(), begin.clone());
                let in_flight = begin.begin();
                async move { Ok::<_, Infallible>(service.answer(request, peer, in_flight, &activity).await) }
            });
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
    /// Answers a request. Its body decides nothing, so it is not waited for.
    async fn answer(
        &self,
        request: http::Request<Incoming>,
        peer: Option<IpAddr>,
        in_flight: Option<InFlight>,
        activity: &Activity,
    ) -> Response<Full<Bytes>> {
        let (mut head, mut body) = request.into_parts();
        if let Some(target) = activity.take_target() {
            head.extensions.insert(target);
        }
        let mut response = self.answer_unless_over(&head, peer, in_flight.is_some()).await;
        // HTTP/2 can end the stream and keep the connection.
        if head.version != Version::HTTP_2 {
            let exceeded =
                body::finish(&head.headers, &mut body, self.bounds.body_bytes, &mut response, activity).await;
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

    async fn answer_unless_over(&self, head: &Parts, peer: Option<IpAddr>, has_room: bool) -> Response<Full<Bytes>> {
        let refuse = |status, text| {
            self.service.telemetry().metrics.record_reply(Door::AuthzHttp, Reply::Unreadable);
            respond(status, HeaderMap::new(), text)
        };
        if !has_room {
            return refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests in flight\n");
        }
        // hyper bounds the heads of HTTP/1.
        if head.version == Version::HTTP_2
            && let Err(bound) = head::bytes(&self.bounds, &head.uri, &head.headers)
        {
            self.service.doors().exceeded.count(bound);
            return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large\n");
        }
        if Gateway::of(head.uri.path()).is_none() && head::is_grpc(&head.headers) {
            self.service.doors().mistakes.record(Mistake::GrpcAtOtherPort, &Port::Http.client(peer));
        }
        let answered = panics::catch(self.service.doors(), answer_head(&self.authz, head, peer)).await;
        answered.unwrap_or_else(|| {
            self.service.telemetry().metrics.record_reply(Door::AuthzHttp, Reply::Failed);
            respond(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new(), "internal error\n")
        })
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

async fn answer_head(authz: &authz::HttpAuthz, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
    match Gateway::of(head.uri.path()) {
        Some(gateway) => authz.answer(gateway, head, peer).await,
        None => health(authz.service().health(), head.uri.path()),
    }
}
