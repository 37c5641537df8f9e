//! `tollgate.v1.Limits` over gRPC.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderMap, Response};
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::acquire;
use super::frame::frame;
use super::unary::{self, ReadError};
use super::wire::MessageWriter;
use crate::server::api::{self, ApiError, ApiErrorKind, Limits, Reach};
use crate::server::grpc::generated::tollgate::v1::{
    AcquireRequest, ListLimitersRequest, ReleaseRequest, RenewRequest, SettleRequest,
};
use crate::server::headers;
use crate::server::lease_guard::HandedOutLease;
use crate::service::Service;
use crate::settings::Bound;
use crate::telemetry::{Door, Reply};

/// The name of the service.
pub(super) const SERVICE_NAME: &str = "tollgate.v1.Limits";

/// A method of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitsMethod {
    Acquire,
    Renew,
    Release,
    Settle,
    Peek,
    ListLimiters,
}

impl LimitsMethod {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "Acquire" => Self::Acquire,
            "Renew" => Self::Renew,
            "Release" => Self::Release,
            "Settle" => Self::Settle,
            "Peek" => Self::Peek,
            "ListLimiters" => Self::ListLimiters,
            _ => return None,
        })
    }
}

/// The service.
#[derive(Debug)]
pub(super) struct GrpcLimits {
    limits: Limits,
}

impl GrpcLimits {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { limits: Limits::new(service) }
    }

    /// Answers a call. Dropping the future ends what it waits for.
    pub(super) async fn answer<B: unary::RequestBody>(
        &self,
        method: LimitsMethod,
        request: http::Request<B>,
        reach: Reach,
        message_bytes: usize,
    ) -> Response<Body> {
        // The deadline counts from the arrival of the call.
        let deadline = timeout(request.headers()).map(|timeout| Instant::now() + timeout);
        let (head, body) = request.into_parts();
        let answered = match self.read(head, body, reach, message_bytes).await {
            Ok(message) => self.answer_message(method, message, deadline).await,
            Err(error) => Err(self.limits.unreadable(error)),
        };
        answered.unwrap_or_else(|error| status(&error).into_http())
    }

    async fn read<B: unary::RequestBody>(
        &self,
        head: Parts,
        body: B,
        reach: Reach,
        message_bytes: usize,
    ) -> Result<Bytes, ApiError> {
        api::check(self.limits.service(), &head, reach).await?;
        let read = unary::read_message(http::Request::from_parts(head, body), message_bytes).await;
        read.map_err(|error| match error {
            ReadError::TooLarge => {
                self.limits.service().doors().exceeded.count(Bound::MessageBytes);
                ApiError::new(ApiErrorKind::TooLarge, "the message exceeds server.bounds.message_bytes")
            }
            ReadError::Encoding(name) => {
                ApiError::new(ApiErrorKind::MediaType, format!("grpc-encoding {name} is not supported, expected gzip"))
            }
            ReadError::Malformed => malformed(),
        })
    }

    async fn answer_message(
        &self,
        method: LimitsMethod,
        message: Bytes,
        deadline: Option<Instant>,
    ) -> Result<Response<Body>, ApiError> {
        let limits = &self.limits;
        let answer = match method {
            LimitsMethod::Acquire => {
                let (acquisition, keyed) = match acquire::borrowed(&message) {
                    Some(asked) => {
                        (limits.acquire_asked(&asked, true, deadline).await?, asked.idempotency_key.is_some())
                    }
                    None => {
                        let message: AcquireRequest = self.decode(message)?;
                        let keyed = message.idempotency_key.is_some();
                        (limits.acquire(message, deadline).await?, keyed)
                    }
                };
                let frame = MessageWriter::frame(|writer| acquire::write(&acquisition, writer));
                // Who repeats a call with its key gets the same lease, so it is not released when an answer is lost.
                let lease = acquisition.lease.filter(|_| !keyed).map(|lease| HandedOutLease(lease.text.into()));
                return Ok(unary::response(frame, lease));
            }
            LimitsMethod::Peek => frame(&api::peeked(&limits.peek(self.decode(message)?).await?)),
            LimitsMethod::Renew => frame(&limits.renew(self.decode::<RenewRequest>(message)?).await?),
            LimitsMethod::Release => frame(&limits.release(self.decode::<ReleaseRequest>(message)?).await?),
            LimitsMethod::Settle => frame(&limits.settle(self.decode::<SettleRequest>(message)?).await?),
            LimitsMethod::ListLimiters => {
                self.decode::<ListLimitersRequest>(message)?;
                frame(&limits.limiters())
            }
        };
        limits.service().telemetry().metrics.record_reply(Door::Api, Reply::Allowed);
        Ok(unary::response(answer, None))
    }

    fn decode<M: Message + Default>(&self, message: Bytes) -> Result<M, ApiError> {
        M::decode(message).map_err(|_| self.limits.unreadable(malformed()))
    }
}

fn malformed() -> ApiError {
    ApiError::new(ApiErrorKind::Invalid, "the message is malformed")
}

/// The code of an error.
fn code(kind: ApiErrorKind) -> Code {
    match kind {
        ApiErrorKind::Invalid | ApiErrorKind::MediaType => Code::InvalidArgument,
        ApiErrorKind::NotFound => Code::NotFound,
        ApiErrorKind::Conflict => Code::AlreadyExists,
        ApiErrorKind::Unauthenticated => Code::Unauthenticated,
        ApiErrorKind::Forbidden => Code::PermissionDenied,
        ApiErrorKind::Method => Code::Unimplemented,
        ApiErrorKind::TooLarge => Code::ResourceExhausted,
        ApiErrorKind::Timeout => Code::DeadlineExceeded,
        ApiErrorKind::Unavailable { .. } => Code::Unavailable,
    }
}

/// The status of an error.
fn status(error: &ApiError) -> Status {
    let mut trailers = HeaderMap::new();
    if let ApiErrorKind::Unavailable { retry_after, .. } = error.kind {
        trailers.insert(RETRY_AFTER, headers::seconds(retry_after).max(1).into());
    }
    Status::with_metadata(code(error.kind), error.message(), MetadataMap::from_headers(trailers))
}

/// The time that the caller waits: at most eight digits and a unit, `"grpc-timeout: 100m"`.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_deadline_of_a_call_is_read_in_every_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            timeout(&headers)
        };
        for (text, seconds) in
            [("2H", 7200.0), ("3M", 180.0), ("10S", 10.0), ("250m", 0.25), ("5u", 5e-6), ("99999999S", 99_999_999.0)]
        {
            assert_eq!(read(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "S", "10", "10s", "-1S", "1.5S", "123456789S"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
