//! What every store is held against: random plans, and what the library's own `advance` makes of them.

pub mod numbers;
pub mod plans;
