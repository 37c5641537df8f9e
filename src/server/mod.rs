//! The doors: they read what gateways ask into a [`Request`](crate::descriptor::Request), and write the
//! [`Decision`](crate::decision::Decision) in the gateway's protocol.
//!
//! ```text
//!   listen.rs     an address            -> connections
//!   connection/   a connection          -> requests, until it is closed
//!   head.rs       the head of a request against the bounds on it
//!   body.rs       the body of an HTTP/1 request that decides nothing
//!   budget.rs     the memory of unfinished requests
//!   answer_body.rs, lease_guard.rs   a lease whose answer was not sent is released
//!   grpc/         RLS, ext_authz, health, reflection
//!   http/         ext_authz over plain HTTP for Envoy, nginx, Caddy and Traefik, and /healthcheck
//!   api/          the API of workers: its methods, and HTTP/JSON; grpc/limits.rs has it over gRPC
//!   admin/        metrics, health, and the requests of operators
//!   ext_authz.rs  shared by both ext_authz doors: entries of a request, the verdict on it; request_body.rs reads bodies
//!   headers.rs    headers and bodies of answers
//!   panics.rs     a panic ends one request and nothing else
//! ```
//!
//! Protobuf and HTTP stay in this room, and no door decides anything. A request that cannot be read is refused in the
//! door's own protocol, never by an error of the transport: Envoy lets requests pass on errors (semantics 28).

pub mod admin;
mod answer_body;
pub mod api;
mod authz_request;
mod body;
mod budget;
mod connection;
mod ext_authz;
pub mod grpc;
mod head;
mod headers;
mod http;
mod lease_guard;
mod listen;
mod named;
mod panics;
mod request_body;
mod token;

pub use self::admin::Admin;
pub use self::http::Http;
pub use self::listen::{BoundAddress, ListenError, Listener};
pub use self::panics::log_panics;
