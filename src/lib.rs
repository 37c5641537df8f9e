//! tollgate decides, for gateways and workers: may this pass, and if not, when?
pub mod clock;
pub mod decision;
pub mod descriptor;
pub mod engine;
pub mod limiter;
pub mod rules;
pub mod server;
pub mod store;
