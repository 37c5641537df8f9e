//! The doors: what gateways ask, turned into a [`Request`](crate::descriptor::Request), and the
//! [`Decision`](crate::decision::Decision) turned into what they understand.
//!
//! ```text
//!   listen.rs     an address            -> connections
//!   connection.rs a connection          -> requests, until it is told to stop
//!   bounds.rs     what clients may take of all that, and how often they wanted more
//!   grpc/         RLS, ext_authz, health, reflection
//!   http/         ext_authz over plain HTTP, in three flavours, and /healthcheck
//!   service.rs       what all doors decide by: one version of rules and settings, and who watches
//!   health.rs     whether requests should be sent here
//!   admin/        metrics, health, and what operators ask
//!   authz.rs      what both ext_authz doors share: entries of a request, the verdict on it
//!   headers.rs    what an answer tells the client
//!   panics.rs     a request that panics ends alone
//! ```
//!
//! Nothing past a door knows protobuf or HTTP, and no door decides anything. What cannot be read is refused in the
//! door's own words, never by an error of the transport: Envoy lets requests pass on errors (semantics 28).

pub mod admin;
mod connection;
mod ext_authz;
pub mod grpc;
mod head;
mod headers;
mod http;
mod listen;
mod panics;

pub use self::admin::Admin;
pub use self::http::Http;
pub use self::listen::{Bound, ListenError, Listener};
pub use self::panics::log_panics;
