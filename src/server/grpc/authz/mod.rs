//! Envoy's external authorization over gRPC: `envoy.service.auth.v3.Authorization`.
//!
//! The client's address is `x-envoy-external-address` where the operator trusts it; else the entry of `X-Forwarded-For`
//! at `trusted_hops` from the right; else the direct peer.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use http::Response;
use prost::Message;
use tonic::body::Body;

use self::borrowed::BorrowedCheck;
use self::decoded::DecodedCheck;
use super::frame::RefusalFrame;
use super::unary;
use super::wire::MessageWriter;
use crate::server::authz_request::AuthzRequest;
use crate::server::ext_authz::{descriptor_request, is_grpc};
use crate::server::lease_guard::HandedOutLease;
use crate::service::Service;
use crate::telemetry::{Door, Mistake};

mod address;
mod answer;
mod borrowed;
mod decoded;

/// The refusal of a request that cannot be read.
pub(super) const UNREADABLE_REFUSAL: RefusalFrame =
    || MessageWriter::frame(|writer| answer::denied(429, &[], "", writer));

/// The ext_authz service.
#[derive(Debug)]
pub(super) struct GrpcAuthz {
    service: Arc<Service>,
}

impl GrpcAuthz {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// Answers one request. `None` when it cannot be decoded.
    pub(super) async fn answer(&self, message: Bytes) -> Option<Response<Body>> {
        if let Some(check) = BorrowedCheck::read(&message) {
            return Some(self.decide(&check).await);
        }
        let attributes = CheckRequest::decode(message).ok()?.attributes.unwrap_or_default();
        Some(self.decide(&DecodedCheck::new(&attributes)).await)
    }

    async fn decide(&self, request: &impl AuthzRequest) -> Response<Body> {
        let current = self.service.current();
        let is_grpc = is_grpc(request);
        let mistakes = &self.service.doors().mistakes;
        let request =
            descriptor_request(request, &current.settings.authz, current.settings.bounds.authz_body_bytes, |reason| {
                mistakes.record(Mistake::UnreadableBody, reason.text());
            });
        let decision = current.decide(Door::AuthzGrpc, &request).await;
        let frame =
            MessageWriter::frame(|writer| answer::write(&decision, current.settings.authz_headers, is_grpc, writer));
        unary::response(frame, decision.lease().map(|lease| HandedOutLease(lease.into())))
    }
}
