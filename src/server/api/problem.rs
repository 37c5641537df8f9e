//! Refusals and errors over HTTP: problems (RFC 9457).

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use schemars::JsonSchema;
use serde::Serialize;

use super::error::{ApiError, ApiErrorKind};
use super::forms;
use crate::decision::Refusal;
use crate::server::answer_body::AnswerBody;
use crate::server::grpc::limits_messages::{AcquireResponse, Limit};
use crate::server::headers;

/// The media type of a problem.
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A refused acquire.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RefusalProblem {
    /// `about:blank`: the problem has no meaning beyond its status.
    r#type: &'static str,
    /// The name of the status.
    title: &'static str,
    /// The status.
    status: u16,
    /// The reason in words.
    detail: &'static str,
    /// False.
    granted: bool,
    /// Why it was refused: `limit`, `denied`, `unmatched`, `missing_key`, `no_limiter`, `too_large`, `repeated` or
    /// `queue_full`.
    reason: Option<String>,
    /// The limiter that refused.
    limiter: Option<String>,
    /// The rule that refused.
    rule: Option<String>,
    /// When it is worth another try. Null if it never is.
    #[serde(with = "forms::duration")]
    #[schemars(with = "forms::DurationText")]
    retry_after: Option<prost_types::Duration>,
    /// The same in milliseconds, rounded up.
    retry_after_ms: Option<u64>,
    /// Whether a store did not answer, so that a policy or a fallback decided a part of this.
    degraded: bool,
    /// The limits that were asked.
    limits: Vec<Limit>,
}

/// A call that is not answered by its method.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ErrorProblem {
    /// `about:blank`: the problem has no meaning beyond its status.
    r#type: &'static str,
    /// The name of the status.
    title: &'static str,
    /// The status.
    status: u16,
    /// What is wrong, with its place.
    detail: String,
    /// The place in the body, such as `asks[1].limiter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// With status 503: `store_error` or `draining`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// With status 503: whether a store did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<bool>,
}

/// The body of a refusal.
pub(super) fn refusal(response: AcquireResponse, refusal: Option<&Refusal<'_>>) -> RefusalProblem {
    let AcquireResponse { reason, limiter, rule, retry_after, retry_after_ms, degraded, limits, .. } = response;
    let detail = match reason.as_deref() {
        Some("queue_full") => "too many wait already; try again later",
        _ => refusal.map_or("refused", headers::detail),
    };
    RefusalProblem {
        r#type: "about:blank",
        title: title(StatusCode::TOO_MANY_REQUESTS),
        status: StatusCode::TOO_MANY_REQUESTS.as_u16(),
        detail,
        granted: false,
        reason,
        limiter,
        rule,
        retry_after,
        retry_after_ms,
        degraded,
        limits,
    }
}

/// The answer to a call that its method does not answer. `allow` is the method of its path.
pub(super) fn error(error: &ApiError, allow: Option<&'static str>) -> Response<AnswerBody> {
    let status = error.kind.status();
    let mut problem = ErrorProblem {
        r#type: "about:blank",
        title: title(status),
        status: status.as_u16(),
        detail: error.message(),
        place: Some(error.place.clone()).filter(|place| !place.is_empty()),
        reason: None,
        degraded: None,
    };
    let mut fields = HeaderMap::with_capacity(2);
    match error.kind {
        ApiErrorKind::Unavailable { retry_after, reason } => {
            problem.reason = Some(reason);
            problem.degraded = Some(reason == "store_error");
            fields.insert(RETRY_AFTER, HeaderValue::from(headers::seconds(retry_after).max(1)));
        }
        ApiErrorKind::Unauthenticated => {
            fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        ApiErrorKind::Method => {
            if let Some(allow) = allow {
                fields.insert(ALLOW, HeaderValue::from_static(allow));
            }
        }
        _ => {}
    }
    respond(status, fields, &problem)
}

/// Makes the answer of a problem.
pub(super) fn respond(status: StatusCode, mut fields: HeaderMap, problem: &impl Serialize) -> Response<AnswerBody> {
    fields.insert(CONTENT_TYPE, PROBLEM);
    json(status, fields, problem)
}

/// Makes an answer whose media type is among the headers.
pub(super) fn json(status: StatusCode, fields: HeaderMap, body: &impl Serialize) -> Response<AnswerBody> {
    let mut text =
        serde_json::to_vec(body).expect("answers consist of texts, numbers, lists and objects with text keys");
    text.push(b'\n');
    let mut response = Response::new(AnswerBody::from(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}
