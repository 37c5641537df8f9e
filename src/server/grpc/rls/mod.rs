//! Envoy's rate limit service: `envoy.service.ratelimit.v3.RateLimitService`.

mod request;
mod response;
mod units;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use prost::Message;
use tonic::body::Body;

use super::frame::{RefusalFrame, frame};
use super::generated::envoy::service::ratelimit::v3::rate_limit_response::Code;
use super::generated::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use super::unary;
use super::wire::MessageWriter;
use crate::server::lease_guard::HandedOutLease;
use crate::service::Service;
use crate::telemetry::Door;

/// The refusal of a request that cannot be read.
pub(super) const UNREADABLE_REFUSAL: RefusalFrame =
    || frame(&RateLimitResponse { overall_code: Code::OverLimit.into(), ..Default::default() });

/// The rate limit service.
#[derive(Debug)]
pub(super) struct Rls {
    service: Arc<Service>,
}

impl Rls {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// Answers one request. `None` when it cannot be decoded.
    pub(super) async fn answer(&self, message: Bytes) -> Option<Response<Body>> {
        let current = self.service.current();
        let bounds = current.version.rules.bounds();
        let replaced;
        let request = match request::borrowed(&message, bounds).or_else(|| request::over_bounds(&message, bounds)) {
            Some(request) => request,
            None => {
                replaced = request::replace_invalid_utf8(RateLimitRequest::decode(message.clone()).ok()?);
                request::request_of(&replaced).expect("invalid UTF-8 was replaced")
            }
        };
        let decision = current.decide(Door::Rls, &request).await;
        let frame = MessageWriter::frame(|writer| response::write(&decision, current.settings.rls_headers, writer));
        Some(unary::response(frame, decision.lease().map(|lease| HandedOutLease(lease.into()))))
    }
}
