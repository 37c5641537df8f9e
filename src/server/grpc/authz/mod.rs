//! Envoy's external authorization over gRPC: `envoy.service.auth.v3.Authorization`.
//!
//! The address of the client is, where the operator trusts it, the one in `x-envoy-external-address`; else the one in
//! `X-Forwarded-For`, `trusted_hops` from the right; else the direct peer.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use http::Response;
use prost::Message;
use tonic::body::Body;

use self::borrowed::Plain;
use self::decoded::Told;
use super::lease_guard::Acquired;
use super::wire::Writer;
use super::{Refused, unary};
use crate::server::ext_authz::{AuthzRequest, descriptor_request, forwarded_for, joined, one_address};
use crate::service::Service;
use crate::settings;
use crate::telemetry::Door;

mod answer;
mod borrowed;
mod decoded;

/// The answer to a question that cannot be read.
pub(super) const UNREAD: Refused = || Writer::frame(|writer| answer::denied(429, &[], "", writer));

/// The service.
#[derive(Debug)]
pub(super) struct Authz {
    service: Arc<Service>,
}

impl Authz {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// Answers one question; `None` when it makes no sense.
    pub(super) async fn answer(&self, message: Bytes) -> Option<Response<Body>> {
        if let Some(plain) = Plain::read(&message) {
            return Some(self.decide(&plain).await);
        }
        let attributes = CheckRequest::decode(message).ok()?.attributes.unwrap_or_default();
        Some(self.decide(&Told::new(&attributes)).await)
    }

    async fn decide(&self, asked: &impl AuthzRequest) -> Response<Body> {
        let current = self.service.current();
        let request = descriptor_request(asked, &current.settings.authz);
        let decision = current.decide(Door::AuthzGrpc, &request).await;
        let frame = Writer::frame(|writer| answer::write(&decision, current.settings.authz_headers, writer));
        unary::answer(frame, decision.lease().map(|lease| Acquired(lease.into())))
    }
}

/// The client's address: by the headers that the operator trusts, or else the peer's.
fn client<'a>(
    asked: &'a impl AuthzRequest,
    peer: Option<&'a str>,
    settings: &settings::AuthzSettings,
) -> Option<Cow<'a, str>> {
    if settings.trust_external_address
        && let Some(address) = joined(asked.headers("x-envoy-external-address")).and_then(one_address)
    {
        return Some(address);
    }
    if let Some(header) = joined(asked.headers("x-forwarded-for"))
        && let Some(address) = forwarded_for(&header, settings.trusted_hops)
    {
        return Some(Cow::Owned(address.to_owned()));
    }
    present(peer?)
}

/// Proto3 says nothing by an empty text.
fn present(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}
