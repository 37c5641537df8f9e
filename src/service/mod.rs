//! The service behind all doors: the version in use of rules, stores and settings, a clock, and telemetry.
//!
//! ```text
//!   server: rls, authz, http -> Service::current -> CurrentGuard::decide -> Version::decide -> Telemetry::record_decision
//!                                     |
//!                                     '- Current { version, settings, handles }   replaced as a whole
//! ```

mod acquire;
mod acquisition;
mod call;
mod current;
mod health;
mod in_flight;
mod named;
mod queues;
mod settle;
mod wait;

pub use self::acquisition::{Acquisition, Lease};
pub(crate) use self::current::unix_seconds;
pub use self::current::{Current, CurrentGuard, Service};
pub use self::health::Health;
