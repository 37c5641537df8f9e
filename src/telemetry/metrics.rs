//! Prometheus metrics.
//!
//! Handles are prepared with the rules, so counting a request needs no lookup and no allocation. The configuration bounds
//! the labels; traffic does not. Names and units follow Prometheus practice.

use std::time::Duration;

use metrics::{Counter, Histogram, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

use super::handles::Handles;
use super::series::{
    ACQUIRES, BATCH_BUCKETS, BUILD_INFO, CONFIG_LOADED_AT, CONFIG_RELOADS, CONFIG_VERSION, DECISION_DURATION,
    DESCRIPTIONS, DOOR_REQUESTS, DURATION_BUCKETS, HOLDS_NOT_REMEMBERED, HOLDS_OUTSTANDING, HOLDS_SETTLED,
    LAST_RELOAD_SUCCESSFUL, LEASES_ACQUIRED, LEASES_EXPIRED, LEASES_HELD, LEASES_RELEASED, LIST_BYTES, LIST_VALUES,
    MetricKind, READY, Registry, STORE_BACKLOG, STORE_BYTES, STORE_CALL_DURATION, STORE_CALL_PLANS, STORE_EVICTIONS,
    STORE_KEYS, STORE_MAX_BYTES, STORE_SUSPENDED, TABLE_BYTES, TABLE_ROWS, WAIT_BUCKETS, WAIT_DURATION,
};
use super::store::StoreMetrics;
use crate::decision::Decision;
use crate::limiter::LeaseStatus;
use crate::rules::Rules;
use crate::settings::AuthzSettings;
use crate::store::{StoreObserver, StoreStatus};

/// The metrics of a process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    duration: Histogram,
    doors: [[Counter; Reply::ALL.len()]; Door::ALL.len()],
    released: [Counter; 3],
    settled: [Counter; 3],
    not_remembered: Counter,
    acquired: Counter,
    acquires: [Counter; AcquireResult::ALL.len()],
    waited: Histogram,
    process: Collector,
}

/// Values read when metrics are scraped, in addition to those counted as they happen.
#[derive(Clone, Debug, Default)]
pub struct ScrapeInput {
    /// Stores, by name.
    pub stores: Vec<(String, StoreStatus)>,
    /// Whether this instance is ready.
    pub ready: bool,
    /// Configuration reloads.
    pub config: ReloadStatus,
    /// Metrics that the doors keep.
    pub doors: Vec<MetricFamily>,
}

/// One metric with the values of its label.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    /// The name.
    pub name: &'static str,
    /// The help text.
    pub help: &'static str,
    /// The name of the label; none if there is a single value.
    pub label: Option<&'static str>,
    /// The value of the metric for each value of the label.
    pub counts: Vec<(&'static str, u64)>,
    /// Whether it is a gauge rather than a counter.
    pub gauge: bool,
}

/// Counts and times of configuration reloads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReloadStatus {
    /// Configurations applied since the start, including the first.
    pub version: u64,
    /// Configurations applied after the first.
    pub taken: u64,
    /// Configurations rejected.
    pub refused: u64,
    /// Whether the configuration read last is in use.
    pub last_taken: bool,
    /// When the configuration in use was read, in seconds of Unix time.
    pub loaded_at: f64,
}

/// A door that decides requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Envoy's rate limit service.
    Rls,
    /// ext_authz over gRPC.
    AuthzGrpc,
    /// ext_authz over plain HTTP.
    AuthzHttp,
    /// The API of workers, over gRPC and HTTP/JSON.
    Api,
}

/// How a door answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request is allowed.
    Allowed,
    /// The request is refused.
    Refused,
    /// The request could not be read or exceeded a bound, and is refused.
    Unreadable,
    /// Internal error.
    Failed,
}

impl Door {
    const ALL: [Door; 4] = [Door::Rls, Door::AuthzGrpc, Door::AuthzHttp, Door::Api];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Door::Rls => "rls",
            Door::AuthzGrpc => "ext_authz_grpc",
            Door::AuthzHttp => "ext_authz_http",
            Door::Api => "api",
        }
    }
}

/// How an acquire of a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcquireResult {
    Granted,
    GrantedAhead,
    Refused,
    QueueFull,
    Draining,
    Cancelled,
}

impl AcquireResult {
    const ALL: [AcquireResult; 6] = [
        AcquireResult::Granted,
        AcquireResult::GrantedAhead,
        AcquireResult::Refused,
        AcquireResult::QueueFull,
        AcquireResult::Draining,
        AcquireResult::Cancelled,
    ];

    fn name(self) -> &'static str {
        match self {
            AcquireResult::Granted => "granted",
            AcquireResult::GrantedAhead => "granted_ahead",
            AcquireResult::Refused => "refused",
            AcquireResult::QueueFull => "queue_full",
            AcquireResult::Draining => "draining",
            AcquireResult::Cancelled => "cancelled",
        }
    }
}

impl Reply {
    const ALL: [Reply; 4] = [Reply::Allowed, Reply::Refused, Reply::Unreadable, Reply::Failed];

    fn name(self) -> &'static str {
        match self {
            Reply::Allowed => "allowed",
            Reply::Refused => "refused",
            Reply::Unreadable => "unreadable",
            Reply::Failed => "failed",
        }
    }
}

impl Metrics {
    /// Metrics with all counts zero.
    #[expect(clippy::missing_panics_doc, reason = "the buckets are constants")]
    pub fn new() -> Self {
        let buckets = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DECISION_DURATION.to_owned()), &DURATION_BUCKETS)
            .and_then(|buckets| {
                buckets.set_buckets_for_metric(Matcher::Full(STORE_CALL_DURATION.to_owned()), &DURATION_BUCKETS)
            })
            .and_then(|buckets| {
                buckets.set_buckets_for_metric(Matcher::Full(STORE_CALL_PLANS.to_owned()), &BATCH_BUCKETS)
            })
            .and_then(|buckets| buckets.set_buckets_for_metric(Matcher::Full(WAIT_DURATION.to_owned()), &WAIT_BUCKETS))
            .expect("the buckets are not empty");
        let recorder = buckets.build_recorder();
        for (name, kind, text) in DESCRIPTIONS {
            let unit = if name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
            match kind {
                MetricKind::Counter => recorder.describe_counter(name.into(), Some(unit), text.into()),
                MetricKind::Gauge => recorder.describe_gauge(name.into(), Some(unit), text.into()),
                MetricKind::Histogram => recorder.describe_histogram(name.into(), Some(unit), text.into()),
            }
        }
        let process = Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let registry = Registry(&recorder);
        let door = |door: Door| {
            Reply::ALL.map(|reply| registry.counter(DOOR_REQUESTS, &[("door", door.name()), ("result", reply.name())]))
        };
        registry.gauge(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        Self {
            handle: recorder.handle(),
            duration: registry.histogram(DECISION_DURATION, &[]),
            doors: Door::ALL.map(door),
            released: ["in_time", "late", "unknown"].map(|when| registry.counter(LEASES_RELEASED, &[("when", when)])),
            settled: ["in_time", "late", "unknown"].map(|when| registry.counter(HOLDS_SETTLED, &[("when", when)])),
            not_remembered: registry.counter(HOLDS_NOT_REMEMBERED, &[]),
            acquired: registry.counter(LEASES_ACQUIRED, &[]),
            acquires: AcquireResult::ALL.map(|result| registry.counter(ACQUIRES, &[("result", result.name())])),
            waited: registry.histogram(WAIT_DURATION, &[]),
            process,
            recorder,
        }
    }

    /// Prepares the handles for decisions by these rules, on entries made like this. Existing series continue.
    pub fn prepare(&self, rules: &Rules, authz: &AuthzSettings) -> Handles {
        let registry = Registry(&self.recorder);
        for list in rules.lists() {
            let labels = [("list", list.name.as_str())];
            registry.gauge(LIST_VALUES, &labels).set(list.rows as f64);
            registry.gauge(LIST_BYTES, &labels).set(list.bytes as f64);
        }
        for table in rules.tables() {
            let labels = [("table", table.name.as_str())];
            registry.gauge(TABLE_ROWS, &labels).set(table.rows as f64);
            registry.gauge(TABLE_BYTES, &labels).set(table.bytes as f64);
        }
        Handles::new(rules, authz, &registry)
    }

    /// An observer that counts the calls of a shared store.
    pub fn store_observer(&self, store: &str) -> Box<dyn StoreObserver> {
        Box::new(StoreMetrics::new(store, &Registry(&self.recorder)))
    }

    /// Counts a decision and its answer.
    pub fn record_decision(&self, handles: &Handles, door: Door, decision: &Decision, took: Duration) {
        self.record_reply(door, if decision.allowed() { Reply::Allowed } else { Reply::Refused });
        self.duration.record(took);
        if decision.lease().is_some() {
            self.acquired.increment(1);
        }
        let (released, settled) = decision.lease_statuses();
        released.iter().for_each(|status| self.record_release(*status));
        settled.iter().for_each(|status| self.record_settlement(*status));
        if let forgotten @ 1.. = decision.holds_not_remembered() {
            self.not_remembered.increment(forgotten);
        }
        handles.count(decision);
    }

    /// Counts an answer that no decision made.
    pub fn record_reply(&self, door: Door, reply: Reply) {
        self.doors[door as usize][reply as usize].increment(1);
    }

    /// Counts the result of an acquire, and the time that its caller waited, if it did.
    pub(crate) fn record_acquire(&self, result: AcquireResult, waited: Duration) {
        self.acquires[result as usize].increment(1);
        if !waited.is_zero() {
            self.waited.record(waited);
        }
    }

    /// Counts a released lease.
    pub fn record_release(&self, status: LeaseStatus) {
        self.released[when(status)].increment(1);
    }

    /// Counts a settled hold.
    pub fn record_settlement(&self, status: LeaseStatus) {
        self.settled[when(status)].increment(1);
    }

    /// Renders all metrics in Prometheus' text format.
    pub fn render(&self, input: &ScrapeInput) -> String {
        let registry = Registry(&self.recorder);
        for (name, usage) in &input.stores {
            let labels = [("store", name.as_str())];
            let usage = match usage {
                StoreStatus::Memory(usage) => usage,
                StoreStatus::Shared { circuit_open, owed } => {
                    // Read here, since an old store may still fail after another one has taken its name over.
                    registry.gauge(STORE_BACKLOG, &labels).set(*owed as f64);
                    registry.gauge(STORE_SUSPENDED, &labels).set(f64::from(u8::from(*circuit_open)));
                    continue;
                }
            };
            registry.gauge(STORE_KEYS, &labels).set(usage.keys as f64);
            registry.gauge(STORE_BYTES, &labels).set(usage.bytes as f64);
            registry.gauge(STORE_MAX_BYTES, &labels).set(usage.max_bytes as f64);
            registry.gauge(LEASES_HELD, &labels).set(usage.leases as f64);
            registry.gauge(HOLDS_OUTSTANDING, &labels).set(usage.holds as f64);
            registry.counter(LEASES_EXPIRED, &labels).absolute(usage.expired_leases);
            registry.counter(STORE_EVICTIONS, &labels).absolute(usage.evictions);
        }
        for family in &input.doors {
            for (value, count) in &family.counts {
                let label = family.label.map(|label| (label, *value));
                match family.gauge {
                    true => registry.gauge(family.name, label.as_slice()).set(*count as f64),
                    false => registry.counter(family.name, label.as_slice()).absolute(*count),
                }
            }
            let text = family.help.into();
            match family.gauge {
                true => self.recorder.describe_gauge(family.name.into(), None, text),
                false => self.recorder.describe_counter(family.name.into(), None, text),
            }
        }
        let ReloadStatus { version, taken, refused, last_taken, loaded_at } = input.config;
        registry.counter(CONFIG_RELOADS, &[("result", "taken")]).absolute(taken);
        registry.counter(CONFIG_RELOADS, &[("result", "refused")]).absolute(refused);
        registry.gauge(LAST_RELOAD_SUCCESSFUL, &[]).set(f64::from(u8::from(last_taken)));
        registry.gauge(CONFIG_LOADED_AT, &[]).set(loaded_at);
        registry.gauge(CONFIG_VERSION, &[]).set(version as f64);
        registry.gauge(READY, &[]).set(f64::from(u8::from(input.ready)));
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Drains the samples of histograms. Must be called every few seconds, or they grow.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The index of the counter for a status: in time, late, unknown.
fn when(status: LeaseStatus) -> usize {
    match status {
        LeaseStatus::Done | LeaseStatus::Held(_) => 0,
        LeaseStatus::Expired => 1,
        LeaseStatus::Unknown | LeaseStatus::Unanswered => 2,
    }
}
