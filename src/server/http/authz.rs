//! ext_authz over plain HTTP.
//!
//! In addition to the headers for the client, an answer has `x-tollgate-rule`, `-limiter`, `-tier`, `-lease`, `-reason`,
//! `-degraded` and `-would-refuse` for the gateway: the same facts that RLS returns as metadata. Envoy turns them into metadata with
//! `dynamic_metadata_from_headers: {patterns: [{prefix: x-tollgate-}]}`.
//!
//! nginx turns every refusal but 401 and 403 into 500. It is therefore answered 403, with the real status in
//! `x-tollgate-status`, from which its configuration restores the answer to the client.
//!
//! When a client disconnects before it receives a lease, the lease is not released here, as it is over gRPC: hyper takes
//! an HTTP/1 response as a whole, so the failure is never reported. The lease expires.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::gateway::{Gateway, GatewayRequest};
use super::response::respond;
use crate::decision::{Decision, Refusal, ShownNames};
use crate::server::ext_authz::{Verdict, descriptor_request, is_grpc};
use crate::server::headers::clean;
use crate::service::Service;
use crate::settings::HeaderFamilies;
use crate::telemetry::{Door, Mistake, Reply};

/// Answers ext_authz requests by a service.
#[derive(Debug)]
pub(super) struct HttpAuthz {
    service: Arc<Service>,
}

impl HttpAuthz {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    pub(super) async fn answer(
        &self,
        gateway: Gateway,
        head: &Parts,
        body: Option<&[u8]>,
        peer: Option<IpAddr>,
    ) -> Response<Full<Bytes>> {
        let request = match GatewayRequest::read(gateway, head, body, peer) {
            Ok(request) => request,
            Err(error) => {
                self.service.telemetry().metrics.record_reply(Door::AuthzHttp, Reply::Unreadable);
                return respond(StatusCode::BAD_REQUEST, HeaderMap::new(), format!("{error}\n"));
            }
        };
        let current = self.service.current();
        let is_grpc = gateway == Gateway::Envoy && is_grpc(&request);
        let mistakes = &self.service.doors().mistakes;
        let request =
            descriptor_request(&request, &current.settings.authz, current.settings.bounds.authz_body_bytes, |reason| {
                mistakes.record(Mistake::UnreadableBody, reason.text());
            });
        let decision = current.decide(Door::AuthzHttp, &request).await;
        let refusal = decision.refusal();
        let Verdict { refusal_status, headers: for_client, body } =
            Verdict::of(&decision, refusal.as_ref(), current.settings.authz_headers, is_grpc);
        let mut headers = HeaderMap::with_capacity(12);
        for (name, value) in for_client {
            put(&mut headers, HeaderName::from_static(name), &value);
        }
        put_gateway_headers(&mut headers, &decision, refusal.as_ref(), current.settings.authz_headers);
        let Some(status) = refusal_status else { return respond(StatusCode::OK, headers, Bytes::new()) };
        let client_status = StatusCode::from_u16(status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let status = match (gateway, client_status) {
            (Gateway::Envoy | Gateway::ForwardAuth, _) | (Gateway::Nginx, StatusCode::UNAUTHORIZED) => client_status,
            (Gateway::Nginx, _) => StatusCode::FORBIDDEN,
        };
        if gateway == Gateway::Nginx {
            headers.insert("x-tollgate-status", HeaderValue::from(client_status.as_u16()));
        }
        respond(status, headers, body)
    }
}

/// Puts the facts for the gateway. It may pass them on to the client, so names are those that clients may see.
fn put_gateway_headers(
    headers: &mut HeaderMap,
    decision: &Decision,
    refusal: Option<&Refusal<'_>>,
    families: HeaderFamilies,
) {
    let names = if families.names { decision.shown_names() } else { ShownNames::default() };
    let facts = [
        ("x-tollgate-rule", names.rule),
        ("x-tollgate-limiter", names.limiter),
        ("x-tollgate-tier", names.tier),
        ("x-tollgate-lease", decision.lease()),
        ("x-tollgate-reason", refusal.map(|refusal| refusal.reason.name())),
        ("x-tollgate-degraded", decision.degraded().then_some("true")),
        ("x-tollgate-would-refuse", names.would_refuse),
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
