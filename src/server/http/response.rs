//! Responses over plain HTTP that need no decision.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;

use crate::service::Health;

/// The answer to a health check, or 404.
pub(in crate::server) fn health(health: &Health, path: &str) -> Response<Full<Bytes>> {
    let answer = |ready, text| {
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        respond(status, HeaderMap::new(), text)
    };
    match (path, health.ready()) {
        ("/livez", _) | ("/healthcheck" | "/readyz", true) => answer(true, "OK"),
        ("/healthcheck" | "/readyz", false) => answer(false, "not ready: stopping, or waiting for a store\n"),
        _ => respond(StatusCode::NOT_FOUND, HeaderMap::new(), "no such path\n"),
    }
}

/// Makes a response.
pub(in crate::server) fn respond(
    status: StatusCode,
    headers: HeaderMap,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
