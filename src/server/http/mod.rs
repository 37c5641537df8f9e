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
mod flavour;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use self::flavour::Flavour;
use super::connection;
use super::desk::Desk;
use super::health::Health;
use super::listen::{Bound, Listener};

/// The time a client has for the head of a request, from the end of the one before. It bounds idle connections too,
/// and a gateway that asks in the moment we close one sees an error: so it is long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Room for the head of a request. What has more is answered 431, which refuses.
const LARGEST_HEAD: usize = 128 << 10;
const MOST_HEADERS: usize = 512;

/// The largest body that is passed over, and the time a client has for it.
const LARGEST_BODY: u64 = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The services of the HTTP door.
#[derive(Clone, Debug)]
pub struct Http(Arc<authz::Authz>);

impl Http {
    /// The services over a desk.
    pub fn new(desk: Arc<Desk>) -> Self {
        Self(Arc::new(authz::Authz::new(desk)))
    }

    /// The answer to one head, without a connection: for fuzzing, where a connection for each would be most of the time.
    #[doc(hidden)]
    pub async fn answer_head(&self, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        answer_head(&self.0, head, peer).await
    }

    /// Serves a listener until `stop`, and then its connections until they have finished.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(LARGEST_HEAD)
            .max_headers(MOST_HEADERS)
            .http2()
            .max_concurrent_streams(1024)
            .max_header_list_size(LARGEST_HEAD as u32);
        connection::accept(listener, stop, |stream, peer, watcher| {
            let authz = self.0.clone();
            let peer = match peer {
                Bound::Tcp(peer) => Some(peer.ip()),
                Bound::Unix(_) => None,
            };
            let answer = service_fn(move |request| {
                let authz = authz.clone();
                async move { Ok::<_, Infallible>(answer(&authz, request, peer).await) }
            });
            let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), answer).into_owned());
            async move {
                if let Err(error) = connection.await {
                    tracing::debug!(error, "an HTTP connection broke");
                }
            }
        })
        .await;
    }
}

/// Bodies decide nothing. A small one is passed over, so that the connection serves the next question; of another the
/// client is told that the connection closes.
async fn answer(authz: &authz::Authz, request: http::Request<Incoming>, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    // HTTP/2 ends a stream and keeps the connection.
    let passed_over = head.version == Version::HTTP_2 || pass_over(body).await;
    let mut response = answer_head(authz, &head, peer).await;
    if !passed_over {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether a body has come to its end.
async fn pass_over(mut body: Incoming) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if body.size_hint().upper().is_none_or(|bytes| bytes > LARGEST_BODY) {
        return false;
    }
    let read = async {
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok::<_, hyper::Error>(())
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.is_ok_and(|read| read.is_ok())
}

async fn answer_head(authz: &authz::Authz, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
    match Flavour::of(head.uri.path()) {
        Some(flavour) => authz.answer(flavour, head, peer).await,
        None => health(authz.desk().health(), head.uri.path()),
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
        ("/healthcheck" | "/readyz", false) => told(false, "stopping\n"),
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
