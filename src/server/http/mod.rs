//! The plain HTTP door: ext_authz in three flavours, and `/healthcheck`.
//!
//! | path | asked by | about |
//! |---|---|---|
//! | `/authz/envoy/<path>` | Envoy's raw HTTP service with `path_prefix: /authz/envoy` | the request as it comes |
//! | `/authz/nginx` | `auth_request` | `X-Original-Method`, `X-Original-URI`, `Host`, `X-Real-IP` |
//! | `/authz/forward` | Caddy, Traefik | `X-Forwarded-Method`, `-Uri`, `-Host`, `-For` |
//!
//! 200 lets pass, and nothing else does. A gateway that does not say what is asked for is answered 400, of which nginx
//! makes 500. [`flavour`] says what each believes, and of whom.

mod authz;
mod gateway;

use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use self::gateway::Flavour;
use super::connection::{self, AcceptOptions, Activity, InFlight};
use super::listen::{self, Listener};
use super::panics;
use crate::server::head;
use crate::service::{Health, Service};
use crate::settings::{Bound, Bounds};
use crate::telemetry::{Door, Reply};

/// The longest path that hyper reads; what is longer is answered 414, which refuses.
const LONGEST_PATH: u64 = u16::MAX as u64 - 1;

/// The services of the HTTP door.
#[derive(Clone, Debug)]
pub struct Http(Arc<Doorway>);

#[derive(Debug)]
struct Doorway {
    authz: authz::Authz,
    bounds: Bounds,
    service: Arc<Service>,
}

impl Http {
    /// The HTTP door of a service, with the bounds it has now.
    pub fn new(service: Arc<Service>) -> Self {
        let bounds = service.current().settings.bounds.clone();
        Self(Arc::new(Doorway { authz: authz::Authz::new(service.clone()), bounds, service }))
    }

    /// The answer to one head, without a connection: for fuzzing, where a connection for each would be most of the time.
    #[doc(hidden)]
    pub async fn answer_head(&self, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        answer_head(&self.0.authz, head, peer).await
    }

    /// Serves a listener until `stop`, and then its connections until they have finished.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let Doorway { bounds, service, .. } = &*self.0;
        let doors = service.doors();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // Ours costs less; hyper's is a new timer for each request.
            .header_read_timeout(None)
            .max_buf_size(bounds.header_bytes)
            .max_headers(bounds.headers)
            .http2()
            .max_concurrent_streams(bounds.streams)
            .max_header_list_size(head::decoder_limit(bounds));
        let options =
            AcceptOptions { bounds: bounds.clone(), doors: doors.clone(), open: |doors| &doors.http_connections };
        connection::accept(listener, stop, options, |stream, peer, activity| {
            let service = self.0.clone();
            let peer = match peer {
                listen::Bound::Tcp(peer) => Some(peer.ip()),
                listen::Bound::Unix(_) => None,
            };
            let begin = activity.clone();
            let answer = service_fn(move |request| {
                let service = service.clone();
                let in_flight = begin.begin();
                async move { Ok::<_, Infallible>(service.answer(request, peer, in_flight).await) }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), answer).into_owned();
            let connection = connection::drive(connection, activity.clone());
            let service = self.0.clone();
            async move {
                if let Err(error) = connection.await {
                    service.count_unread(&*error, &activity);
                    // Without its sources: among them is what the client said when it went away.
                    tracing::debug!(%error, "an HTTP connection broke");
                }
            }
        })
        .await;
    }
}

impl Doorway {
    async fn answer(
        &self,
        request: http::Request<Incoming>,
        peer: Option<IpAddr>,
        in_flight: Option<InFlight>,
    ) -> Response<Full<Bytes>> {
        if in_flight.is_none() {
            self.service.telemetry().metrics.replied(Door::AuthzHttp, Reply::Unreadable);
            return respond(StatusCode::TOO_MANY_REQUESTS, HeaderMap::new(), "too many requests are under way\n");
        }
        let answered = panics::catch(self.service.doors(), self.answer_whole(request, peer)).await;
        answered.unwrap_or_else(|| {
            self.service.telemetry().metrics.replied(Door::AuthzHttp, Reply::Failed);
            respond(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new(), "this met an error of ours\n")
        })
    }

    /// Bodies decide nothing. A small one is passed over, so that the connection serves the next question; of another
    /// the client is told that the connection closes.
    async fn answer_whole(&self, request: http::Request<Incoming>, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        // HTTP/2 ends a stream and keeps the connection.
        if head.version == Version::HTTP_2 {
            if let Err(bound) = head::bytes(&self.bounds, &head.uri, &head.headers) {
                self.service.doors().exceeded.count(bound);
                self.service.telemetry().metrics.replied(Door::AuthzHttp, Reply::Unreadable);
                return respond(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, HeaderMap::new(), "too large a head\n");
            }
            return answer_head(&self.authz, &head, peer).await;
        }
        let passed_over = pass_over(body, &self.bounds).await;
        let mut response = answer_head(&self.authz, &head, peer).await;
        if let Err(bound) = passed_over {
            self.service.doors().exceeded.count(bound);
        }
        // A client that keeps its connection until we close it may be asking just then. Told before, it goes by itself.
        if passed_over.is_err() || !self.service.health().ready() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Counts a head that hyper refused by itself.
    fn count_unread(&self, error: &(dyn Error + 'static), activity: &Activity) {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            // It does not say whether that was for its size or for the number of headers.
            self.service.telemetry().metrics.replied(Door::AuthzHttp, Reply::Unreadable);
            let large = activity.http1_bytes() >= LONGEST_PATH.min(self.bounds.header_bytes as u64);
            self.service.doors().exceeded.count(if large { Bound::HeaderBytes } else { Bound::Headers });
        }
    }
}

/// Reads a body to its end, or tells past which bound it is.
async fn pass_over(mut body: Incoming, bounds: &Bounds) -> Result<(), Bound> {
    if body.is_end_stream() {
        return Ok(());
    }
    if body.size_hint().lower() > bounds.body_bytes {
        return Err(Bound::BodyBytes);
    }
    let read = async {
        let mut left = bounds.body_bytes;
        // What cannot be read breaks the connection by itself.
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(bytes as u64).ok_or(Bound::BodyBytes)?;
        }
        Ok(())
    };
    tokio::time::timeout(bounds.request_timeout, read).await.unwrap_or(Err(Bound::RequestTimeout))
}

async fn answer_head(authz: &authz::Authz, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
    match Flavour::of(head.uri.path()) {
        Some(flavour) => authz.answer(flavour, head, peer).await,
        None => health(authz.service().health(), head.uri.path()),
    }
}

/// The answer about our health, or that there is nothing else here.
pub(super) fn health(health: &Health, path: &str) -> Response<Full<Bytes>> {
    let told = |well, text| {
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        respond(status, HeaderMap::new(), text)
    };
    match (path, health.ready()) {
        ("/livez", _) | ("/healthcheck" | "/readyz", true) => told(true, "OK"),
        ("/healthcheck" | "/readyz", false) => told(false, "not ready: stopping, or waiting for a store\n"),
        _ => respond(StatusCode::NOT_FOUND, HeaderMap::new(), "no such path here\n"),
    }
}

/// An answer.
pub(super) fn respond(status: StatusCode, headers: HeaderMap, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
