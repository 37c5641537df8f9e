//! The API over HTTP/JSON.

use std::error::Error;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::access::{self, Reach};
use super::error::{ApiError, ApiErrorKind};
use super::limits::Limits;
use super::{json, openapi, problem, response};
use crate::server::answer_body::AnswerBody;
use crate::server::budget::{BudgetError, MeteredBody};
use crate::server::connection::Activity;
use crate::server::grpc::limits_messages::AcquireRequest;
use crate::server::headers;
use crate::server::lease_guard::{HandedOutLease, LeaseGuard};
use crate::service::{Acquisition, Service};
use crate::settings::{Bound, HeaderFamilies};
use crate::telemetry::{Door, Reply};

/// What a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Acquire,
    Peek,
    Renew,
    Release,
    Settle,
    Limiters,
    OpenApi,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/acquire" => Self::Acquire,
            "/v1/peek" => Self::Peek,
            "/v1/renew" => Self::Renew,
            "/v1/release" => Self::Release,
            "/v1/settle" => Self::Settle,
            "/v1/limiters" => Self::Limiters,
            "/v1/openapi.json" => Self::OpenApi,
            _ => return None,
        })
    }

    fn method(self) -> Method {
        match self {
            Self::Acquire | Self::Peek | Self::Renew | Self::Release | Self::Settle => Method::POST,
            Self::Limiters | Self::OpenApi => Method::GET,
        }
    }
}

/// Whether a path belongs to the API.
pub(in crate::server) fn is_path(path: &str) -> bool {
    path.strip_prefix("/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The API over HTTP/JSON.
#[derive(Debug)]
pub(in crate::server) struct HttpApi {
    limits: Limits,
    message_bytes: usize,
}

/// A request as its connection brings it.
#[derive(Debug)]
pub(in crate::server) struct ApiRequest<'a> {
    pub(in crate::server) head: &'a Parts,
    pub(in crate::server) body: &'a mut MeteredBody,
    pub(in crate::server) reach: Reach,
    pub(in crate::server) activity: &'a Arc<Activity>,
}

impl HttpApi {
    /// The API of a service, with the bounds that are configured now.
    pub(in crate::server) fn new(service: Arc<Service>) -> Self {
        let message_bytes = service.current().settings.bounds.message_bytes;
        Self { limits: Limits::new(service), message_bytes }
    }

    /// Answers a request. Dropping the future ends what it waits for.
    pub(in crate::server) async fn answer(&self, request: ApiRequest<'_>) -> Response<AnswerBody> {
        let route = Route::of(request.head.uri.path());
        let answered = match access::check(self.limits.service(), request.head, request.reach).await {
            Ok(()) => self.answer_allowed(route, request).await,
            Err(error) => Err(self.limits.unreadable(error)),
        };
        answered.unwrap_or_else(|error| {
            let allow = route.map(|route| if route.method() == Method::POST { "POST" } else { "GET" });
            problem::error(&error, allow)
        })
    }

    async fn answer_allowed(
        &self,
        route: Option<Route>,
        request: ApiRequest<'_>,
    ) -> Result<Response<AnswerBody>, ApiError> {
        let Some(route) = route else {
            let text = "no such path; GET /v1/openapi.json describes those that there are";
            return Err(self.limits.unreadable(ApiError::new(ApiErrorKind::NotFound, text)));
        };
        if request.head.method != route.method() {
            let text = format!("expected {}", route.method());
            return Err(self.limits.unreadable(ApiError::new(ApiErrorKind::Method, text)));
        }
        let ApiRequest { head, body, activity, .. } = request;
        let body = match route.method() == Method::POST {
            true => self.body(head, body).await.map_err(|error| self.limits.unreadable(error))?,
            false => Bytes::new(),
        };
        self.answer_body(route, &body, (head.version != Version::HTTP_2).then_some(activity)).await
    }

    /// Answers the body of a call without a connection, for programs that have a listener of their own.
    pub(in crate::server) async fn answer_call(&self, path: &str, body: &[u8]) -> Response<AnswerBody> {
        let answered = match Route::of(path) {
            Some(route) => self.answer_body(route, body, None).await,
            None => Err(ApiError::new(ApiErrorKind::NotFound, "no such path")),
        };
        answered.unwrap_or_else(|error| problem::error(&error, None))
    }

    /// Answers a body. `whole` is the connection that writes the answer if it speaks HTTP/1.
    async fn answer_body(
        &self,
        route: Route,
        body: &[u8],
        whole: Option<&Arc<Activity>>,
    ) -> Result<Response<AnswerBody>, ApiError> {
        match route {
            Route::Limiters => Ok(self.done(&self.limits.limiters())),
            Route::OpenApi => {
                let needs_token = !self.limits.service().current().settings.api.tokens.is_empty();
                Ok(problem::json(StatusCode::OK, json_fields(), openapi::document(needs_token)))
            }
            Route::Acquire => {
                let message: AcquireRequest = self.read(body)?;
                let keyed = message.idempotency_key.is_some();
                let acquisition = self.limits.acquire(message, None).await?;
                Ok(self.acquired(&acquisition, whole, keyed))
            }
            Route::Peek => Ok(self.done(&response::peeked(&self.limits.peek(self.read(body)?).await?))),
            Route::Renew => Ok(self.done(&self.limits.renew(self.read(body)?).await?)),
            Route::Release => Ok(self.done(&self.limits.release(self.read(body)?).await?)),
            Route::Settle => Ok(self.done(&self.limits.settle(self.read(body)?).await?)),
        }
    }

    /// The answer of a method that cannot refuse.
    fn done(&self, message: &impl Serialize) -> Response<AnswerBody> {
        self.limits.service().telemetry().metrics.record_reply(Door::Api, Reply::Allowed);
        problem::json(StatusCode::OK, json_fields(), message)
    }

    /// The answer to an acquire, which its decision has counted.
    fn acquired(&self, acquisition: &Acquisition, whole: Option<&Arc<Activity>>, keyed: bool) -> Response<AnswerBody> {
        let message = response::acquired(acquisition);
        let families = self.limits.service().current().settings.authz_headers;
        let mut fields = json_fields();
        put_families(&mut fields, acquisition, families);
        if !message.granted {
            let refusal = acquisition.decision.refusal();
            let problem = problem::refusal(message, refusal.as_ref());
            return problem::respond(StatusCode::TOO_MANY_REQUESTS, fields, &problem);
        }
        let answer = problem::json(StatusCode::OK, fields, &message);
        // Who repeats a call with its key gets the same lease, so it is not released when an answer is lost.
        match message.lease.filter(|_| !keyed) {
            None => answer,
            Some(lease) => {
                let guard = LeaseGuard::new(self.limits.service().clone(), HandedOutLease(lease.into()));
                answer.map(|body| body.with_lease(guard, whole.cloned()))
            }
        }
    }

    /// Reads a message.
    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ApiError> {
        json::read(body).map_err(|error| self.limits.unreadable(error))
    }

    /// Reads the body of a request.
    async fn body(&self, head: &Parts, body: &mut MeteredBody) -> Result<Bytes, ApiError> {
        if !is_json(&head.headers) {
            return Err(ApiError::new(ApiErrorKind::MediaType, "expected \"content-type: application/json\""));
        }
        let mut read = Bytes::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| unfinished(&*error))?.into_data() else { continue };
            if read.len().saturating_add(data.len()) > self.message_bytes {
                self.limits.service().doors().exceeded.count(Bound::MessageBytes);
                let text =
                    format!("expected a body of at most {} bytes (server.bounds.message_bytes)", self.message_bytes);
                return Err(ApiError::new(ApiErrorKind::TooLarge, text));
            }
            // Nearly every body comes in one piece.
            read = match read.is_empty() {
                true => data,
                false => {
                    let mut both = BytesMut::from(read);
                    both.extend_from_slice(&data);
                    both.freeze()
                }
            };
        }
        Ok(read)
    }
}

/// The error about a body that did not arrive.
fn unfinished(error: &(dyn Error + Send + Sync + 'static)) -> ApiError {
    match error.downcast_ref::<BudgetError>() {
        Some(BudgetError(Bound::RequestTimeout)) => {
            ApiError::new(ApiErrorKind::Timeout, "the body did not arrive in time")
        }
        Some(error) => ApiError::new(ApiErrorKind::TooLarge, error.to_string()),
        None => ApiError::at("body", "it did not arrive as a whole"),
    }
}

/// Whether a body is JSON, by its media type.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn json_fields() -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A lease is for one client alone.
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields
}

fn put_families(fields: &mut HeaderMap, acquisition: &Acquisition, families: HeaderFamilies) {
    let refusal = acquisition.decision.refusal();
    for (name, value) in headers::of(&acquisition.decision, refusal.as_ref(), families) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            fields.insert(HeaderName::from_static(name), value);
        }
    }
}
