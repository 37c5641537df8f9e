//! What tollgate tells of itself: counts for machines.
//!
//! Everything here is made from a [`Decision`](crate::decision::Decision) after it was made; nothing here can change
//! one. No identity reaches a label or a line: labels are names from the configuration, and counters are told by their
//! hashed names.

mod metrics;

pub use self::metrics::{Door, Metrics, Reply};
