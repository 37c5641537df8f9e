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
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use self::flavour::Flavour;
use super::connection;
use super::listen::{Bound, Listener};
use super::settings::Settings;
use crate::engine::Engine;

/// The time a client has for the head of a request, from the end of the one before. It bounds idle connections too,
/// and a gateway that asks in the moment we close one sees an error: so it is long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Room for the head of a request. What has more is answered 431, which refuses.
const LARGEST_HEAD: usize = 128 << 10;
const MOST_HEADERS: usize = 512;

/// The services of the HTTP door.
#[derive(Clone, Debug)]
pub struct Http(Arc<authz::Authz>);

impl Http {
    /// The services over an engine.
    pub fn new(engine: Arc<Engine>, settings: &Settings) -> Self {
        Self(Arc::new(authz::Authz::new(engine, settings)))
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

/// The bodies of requests are never read: they decide nothing.
async fn answer(authz: &authz::Authz, request: http::Request<Incoming>, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
    let (head, _) = request.into_parts();
    match Flavour::of(head.uri.path()) {
        Some(flavour) => authz.answer(flavour, &head, peer).await,
        None if head.uri.path() == "/healthcheck" => respond(StatusCode::OK, HeaderMap::new(), "OK"),
        None => respond(StatusCode::NOT_FOUND, HeaderMap::new(), "no such path here\n"),
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
