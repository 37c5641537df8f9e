//! The API of workers and programs: `tollgate.v1.Limits` over gRPC, and the same over HTTP/JSON at `/v1`.
//!
//! ```text
//!   grpc/limits.rs  a frame -> message ---.                            .--> frame, or a status
//!                                         |                            |
//!   routes.rs       JSON    -> message ---+--> limits.rs --> service --+--> JSON, or problem.rs
//!        ^                      ^         |        ^
//!   access.rs: who may     json.rs,    request.rs  response.rs
//!                          forms.rs, units.rs
//! ```
//!
//! The messages are generated from `proto/tollgate/v1/limits.proto`. `openapi.rs` makes its document of the same types,
//! with the comments of that file.

pub use super::grpc::limits_messages as messages;

mod access;
mod error;
pub(in crate::server) mod forms;
mod json;
mod limits;
mod openapi;
mod problem;
mod request;
mod response;
mod routes;
mod units;

pub(super) use self::access::{Reach, check, is_from_web_page};
pub(super) use self::error::{ApiError, ApiErrorKind};
pub(super) use self::limits::Limits;
pub(super) use self::response::{Refused, millis, peeked};
pub(super) use self::routes::{ApiRequest, HttpApi, is_path};
#[cfg(test)]
pub(super) use self::{request::acquire as asked, response::acquired};
