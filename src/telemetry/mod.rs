//! What tollgate tells of itself: counts for machines, lines for people, and who is refused most.
//!
//! ```text
//!   Decision -> metrics.rs   counts by rule and limiter, by handles that were prepared with the rules
//!            -> refusals.rs  a sampled line in the log
//!            -> top.rs       the rules and counters refused most in the last minutes
//! ```
//!
//! Everything here is made from a [`Decision`] after it was made; nothing here can change one. No identity reaches a
//! label or a line: labels are names from the configuration, and counters are told by their hashed names.

mod doors;
mod metrics;
mod refusals;
mod top;

use std::sync::Arc;
use std::time::Duration;

pub use self::doors::{DoorMetrics, Exceeded};
pub use self::metrics::{Door, DoorFact, Facts, Handles, Metrics, Reload, Reply};
pub use self::refusals::Refusals;
pub use self::top::{Ranked, Top, Tops};
use crate::clock::Timestamp;
use crate::decision::Decision;
use crate::rules::Rules;

/// What watches decisions.
#[derive(Debug)]
pub struct Telemetry {
    /// Counts.
    pub metrics: Metrics,
    /// The log of refusals.
    pub refusals: Refusals,
    /// Who is refused most.
    pub top: Top,
}

impl Telemetry {
    /// Telemetry that has seen nothing, and logs so many refusals a second at most.
    pub fn new(refusals_per_second: u32) -> Self {
        Self { metrics: Metrics::new(), refusals: Refusals::new(refusals_per_second), top: Top::new() }
    }

    /// Prepares what decisions by these rules are counted with.
    pub fn prepare(&self, rules: &Arc<Rules>) -> Handles {
        self.metrics.prepare(rules)
    }

    /// Sees a decision that was made at `now` and took so long.
    pub fn decided(&self, handles: &Handles, door: Door, decision: &Decision, now: Timestamp, took: Duration) {
        self.metrics.decided(handles, door, decision, took);
        if let Some(refusal) = decision.refusal() {
            self.refusals.log(door, decision, &refusal, now);
            self.top.refused(decision, &refusal, now);
        }
        tracing::trace!(
            target: "tollgate::decisions",
            door = door.name(),
            domain = decision.domain(),
            allowed = decision.allowed(),
            rule = decision.rule(),
            key = decision.counter().map(tracing::field::display),
            took_us = took.as_micros() as u64,
        );
    }
}
