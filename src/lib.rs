//! tollgate decides, for gateways and workers: may this pass, and if not, when?
pub mod clock;
pub mod descriptor;
pub mod limiter;
