//! Metrics, the log of refusals, and the rules and counters that refuse most.
//!
//! ```text
//!   Decision -> metrics.rs   counts by rule and limiter, through handles.rs, prepared with the rules
//!            -> refusals.rs  log lines, limited per second
//!            -> top.rs       the rules and counters that refused most in the last minutes
//!   stores   -> store.rs     counts of calls
//!   mistakes.rs              mistakes of gateways, which report nothing themselves; unmatched.rs finds those of keys
//!   series.rs                the names, kinds and help texts of all series
//! ```
//!
//! Telemetry reads a [`Decision`] after it is made and cannot change it. No identity reaches a label or a log line:
//! labels are names from the configuration, and counters appear under their hashed names.

mod doors;
mod handles;
mod metrics;
mod mistakes;
mod refusals;
mod sample;
mod series;
mod store;
mod tokens;
mod top;
mod unmatched;

use std::sync::Arc;
use std::time::Duration;

pub use self::doors::{DoorMetrics, Exceeded};
pub use self::handles::Handles;
pub(crate) use self::metrics::AcquireResult;
pub use self::metrics::{Door, MetricFamily, Metrics, ReloadStatus, Reply, ScrapeInput};
pub use self::mistakes::{Mistake, Mistakes};
pub use self::refusals::RefusalLog;
pub use self::tokens::RejectedTokens;
pub use self::top::{Top, TopEntry, TopRefusals};
use crate::clock::Timestamp;
use crate::decision::Decision;
use crate::rules::{Rules, nearest};
use crate::settings::AuthzSettings;

/// The most domains that an unknown one is compared with.
const MAX_COMPARED_DOMAINS: usize = 10_000;

/// Records decisions.
#[derive(Debug)]
pub struct Telemetry {
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// The log of refusals.
    pub refusals: RefusalLog,
    /// The rules and counters that refused most.
    pub top: Top,
}

impl Telemetry {
    /// Empty telemetry that logs at most `refusals_per_second` refusals per second.
    pub fn new(refusals_per_second: u32) -> Self {
        Self { metrics: Metrics::new(), refusals: RefusalLog::new(refusals_per_second), top: Top::new() }
    }

    /// Prepares the metric handles of these rules, on entries made like this.
    pub fn prepare(&self, rules: &Arc<Rules>, authz: &AuthzSettings) -> Handles {
        self.metrics.prepare(rules, authz)
    }

    /// Logs the mistakes of gateways that are due, each at most once a minute. Called once a second, off the path of a
    /// decision.
    pub fn report_mistakes(&self, handles: &Handles, rules: &Rules, mistakes: &Mistakes, now: Timestamp) {
        handles.report_unmatched(rules, mistakes, now);
        let domains = || rules.domain_names().map(|(name, _)| name).take(MAX_COMPARED_DOMAINS);
        mistakes.report(now, |unknown| nearest(unknown, domains()));
    }

    /// Records a decision made at `now`, and the time it took.
    pub fn record_decision(&self, handles: &Handles, door: Door, decision: &Decision, now: Timestamp, took: Duration) {
        self.metrics.record_decision(handles, door, decision, took);
        if let Some(refusal) = decision.refusal() {
            self.refusals.log(door, decision, &refusal, now);
            self.top.record(decision, &refusal, now);
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
