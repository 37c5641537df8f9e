//! The reference for every store: random plans, and the answers of the library's own `advance`.

pub mod numbers;
pub mod plans;
