//! Why a call of the API is not answered by its method, with its status.

use std::time::Duration;

use http::StatusCode;

use crate::ask::{AskError, AskErrorKind};

/// A call that is not answered by its method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) struct ApiError {
    pub(in crate::server) kind: ApiErrorKind,
    /// The place in the call, such as `asks[1].limiter`. Empty if it is about the whole.
    pub(in crate::server) place: String,
    pub(in crate::server) text: String,
}

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum ApiErrorKind {
    /// The call makes no sense.
    Invalid,
    /// No such domain, limiter, entries or path.
    NotFound,
    /// Only a part of what the idempotency key names is still held.
    Conflict,
    /// No token, or another one.
    Unauthenticated,
    /// The API is not open to this client.
    Forbidden,
    /// The path is of another method.
    Method,
    /// The body is no JSON by its media type.
    MediaType,
    /// The message exceeds a bound.
    TooLarge,
    /// The message did not arrive in time.
    Timeout,
    /// A store did not answer, or the process stops: worth another try, here or elsewhere.
    Unavailable { retry_after: Duration, reason: &'static str },
}

impl ApiErrorKind {
    /// The status over HTTP.
    pub(in crate::server) fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl ApiError {
    /// An error about the whole call.
    pub(in crate::server) fn new(kind: ApiErrorKind, text: impl Into<String>) -> Self {
        Self { kind, place: String::new(), text: text.into() }
    }

    /// A value that makes no sense, with its place.
    pub(in crate::server) fn at(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { kind: ApiErrorKind::Invalid, place: place.into(), text: text.into() }
    }

    /// The place and the text.
    pub(in crate::server) fn message(&self) -> String {
        match &*self.place {
            "" => self.text.clone(),
            // A text that says what the value is.
            place if self.text.starts_with("is ") || self.text.starts_with("has ") => format!("{place} {}", self.text),
            place => format!("{place}: {}", self.text),
        }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let AskError { kind, place, message } = error;
        let kind = match kind {
            AskErrorKind::Invalid => ApiErrorKind::Invalid,
            AskErrorKind::NotFound => ApiErrorKind::NotFound,
            AskErrorKind::Conflict => ApiErrorKind::Conflict,
        };
        Self { kind, place, text: message }
    }
}
