//! ext_authz over plain HTTP.
//!
//! Beside the headers for the client an answer tells the gateway, in `x-tollgate-rule`, `-limiter`, `-tier` and
//! `-lease`, what RLS tells in its metadata. Envoy makes metadata of them with
//! `dynamic_metadata_from_headers: {patterns: [{prefix: x-tollgate-}]}`.
//!
//! nginx makes 500 of every refusal but 401 and 403. So it is answered 403, with the status that was meant in
//! `x-tollgate-status`, from which its configuration makes the answer to the client.
//!
//! A lease whose answer nobody hears is not undone here, as it is over gRPC: over HTTP/1 hyper takes an answer whole
//! and at once, so there is no moment at which it would be known. It expires.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::gateway::{Flavour, Told};
use super::respond;
use crate::decision::Decision;
use crate::server::ext_authz::{Verdict, question};
use crate::server::headers::clean;
use crate::service::Service;
use crate::telemetry::{Door, Reply};

/// ext_authz over a service.
#[derive(Debug)]
pub(super) struct Authz {
    service: Arc<Service>,
}

impl Authz {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    pub(super) async fn answer(&self, flavour: Flavour, head: &Parts, peer: Option<IpAddr>) -> Response<Full<Bytes>> {
        let told = Told { flavour, head, peer };
        if let Some(missing) = told.missing() {
            self.service.telemetry().metrics.replied(Door::AuthzHttp, Reply::Unreadable);
            return respond(StatusCode::BAD_REQUEST, HeaderMap::new(), format!("expected a header {missing}\n"));
        }
        let current = self.service.current();
        let question = question(&told, &current.settings.authz);
        let decision = current.decide(Door::AuthzHttp, &question).await;
        let Verdict { refused, headers: for_client, body } = Verdict::of(&decision, current.settings.authz_headers);
        let mut headers = HeaderMap::with_capacity(12);
        for (name, value) in for_client {
            put(&mut headers, HeaderName::from_static(name), &value);
        }
        tell_gateway(&mut headers, &decision);
        let Some(meant) = refused else { return respond(StatusCode::OK, headers, Bytes::new()) };
        let meant = StatusCode::from_u16(meant).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let status = match (flavour, meant) {
            (Flavour::Envoy | Flavour::Forward, _) | (Flavour::Nginx, StatusCode::UNAUTHORIZED) => meant,
            (Flavour::Nginx, _) => StatusCode::FORBIDDEN,
        };
        if flavour == Flavour::Nginx {
            headers.insert("x-tollgate-status", HeaderValue::from(meant.as_u16()));
        }
        respond(status, headers, body)
    }
}

fn tell_gateway(headers: &mut HeaderMap, decision: &Decision) {
    let limiter = match decision.refusal() {
        Some(refusal) => refusal.limiter,
        None => decision.tightest().map(|counted| counted.limiter),
    };
    let facts = [
        ("x-tollgate-rule", decision.rule()),
        ("x-tollgate-limiter", limiter),
        ("x-tollgate-tier", decision.tier()),
        ("x-tollgate-lease", decision.lease()),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            put(headers, HeaderName::from_static(name), value);
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(&clean(value)) {
        headers.insert(name, value);
    }
}
