//! Prometheus metrics.
//!
//! Handles are prepared with the rules, so counting a request needs no lookup and no allocation. The configuration bounds
//! the labels; traffic does not. Names and units follow Prometheus practice.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

use crate::decision::{Decision, Reason};
use crate::limiter::{LeaseStatus, OnStoreError};
use crate::plan::{Fault, Outcome};
use crate::rules::{RuleLabel, Rules};
use crate::store::{StoreFact, StoreObserver, Wrapper};

const DECISIONS: &str = "tollgate_decisions_total";
const CHECKS: &str = "tollgate_checks_total";
const SKIPPED: &str = "tollgate_checks_skipped_total";
const OVERRIDES: &str = "tollgate_overrides_ignored_total";
const SHADOW_REFUSALS: &str = "tollgate_shadow_refusals_total";
const DURATION: &str = "tollgate_decision_duration_seconds";
const REQUESTS: &str = "tollgate_requests_total";
const RELEASED: &str = "tollgate_leases_released_total";
const ACQUIRED: &str = "tollgate_leases_acquired_total";
const EXPIRED: &str = "tollgate_leases_expired_total";
const HELD: &str = "tollgate_leases_held";
const KEYS: &str = "tollgate_store_keys";
const BYTES: &str = "tollgate_store_bytes";
const MAX_BYTES: &str = "tollgate_store_max_bytes";
const EVICTIONS: &str = "tollgate_store_evictions_total";
const CALLS: &str = "tollgate_store_call_duration_seconds";
const BATCH: &str = "tollgate_store_call_plans";
const STORE_ERRORS: &str = "tollgate_store_errors_total";
const POLICY: &str = "tollgate_store_policy_answers_total";
const SUSPENDED: &str = "tollgate_store_suspended";
const UNDONE: &str = "tollgate_store_undone_total";
const NEAR: &str = "tollgate_store_near_answers_total";
const RELOADS: &str = "tollgate_config_reloads_total";
const RELOADED: &str = "tollgate_config_last_reload_successful";
const LOADED_AT: &str = "tollgate_config_loaded_timestamp_seconds";
const VERSION: &str = "tollgate_config_version";
const READY: &str = "tollgate_ready";
const BUILD: &str = "tollgate_build_info";

/// Buckets in seconds: from a decision in memory (a few microseconds) to past the timeout of a shared store.
const DURATION_BUCKETS: [f64; 14] =
    [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2];

/// Buckets of plans in a call: powers of two up to the default batch limit.
const BATCH_BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The most rules with their own labels. Further rules are counted together as [`OTHER_RULES`]: a hundred thousand rules
/// would make a million series.
const MAX_LABELLED_RULES: usize = 2_000;

/// The label of the rules past [`MAX_LABELLED_RULES`], and of their limiters.
const OTHER_RULES: &str = "(others)";

/// Every metric with its kind and help text.
const DESCRIPTIONS: [(&str, MetricKind, &str); 28] = [
    (DECISIONS, MetricKind::Counter, "Requests decided. A refusal has the rule, limiter and reason that decided it."),
    (
        CHECKS,
        MetricKind::Counter,
        "Checks by rule and limiter: passed, refused, or failed because the store could not answer. Shadow checks are counted apart.",
    ),
    (SKIPPED, MetricKind::Counter, "Checks skipped because the request has no value for an entry of their key."),
    (
        OVERRIDES,
        MetricKind::Counter,
        "Limits sent with a request (overrides) that were ignored because they are invalid.",
    ),
    (
        SHADOW_REFUSALS,
        MetricKind::Counter,
        "Refusals that shadow mode did not enforce and that no check counts, such as deny rules, unmatched descriptors and missing entries.",
    ),
    (DURATION, MetricKind::Histogram, "Time to decide a request, including the answer of its store."),
    (
        REQUESTS,
        MetricKind::Counter,
        "Requests by door and result: allowed, refused, unreadable (invalid or past a bound, and refused), or failed (an internal error).",
    ),
    (
        RELEASED,
        MetricKind::Counter,
        "Leases released: in time, late (expired but not yet cleared), or unknown (cleared or released before).",
    ),
    (ACQUIRED, MetricKind::Counter, "Leases handed out."),
    (
        EXPIRED,
        MetricKind::Counter,
        "Leases that a memory store cleared after they expired, because nobody had released them.",
    ),
    (
        HELD,
        MetricKind::Gauge,
        "Slots held by leases in a memory store, including expired leases that are not yet cleared.",
    ),
    (KEYS, MetricKind::Gauge, "Counters in a memory store."),
    (BYTES, MetricKind::Gauge, "Memory used by the counters of a memory store."),
    (MAX_BYTES, MetricKind::Gauge, "Memory that the counters of a memory store may use (max_memory)."),
    (EVICTIONS, MetricKind::Counter, "Counters evicted to make room in a full memory store."),
    (CALLS, MetricKind::Histogram, "Time from a call to a shared store to its answer."),
    (BATCH, MetricKind::Histogram, "Requests batched into one call to a shared store."),
    (
        STORE_ERRORS,
        MetricKind::Counter,
        "Requests that a shared store could not answer, by kind. The kind suspended is a request rejected by an open circuit breaker.",
    ),
    (
        POLICY,
        MetricKind::Counter,
        "Enforced checks answered without their store, by the on_store_error policy that answered: allow, deny or local.",
    ),
    (SUSPENDED, MetricKind::Gauge, "1 while the circuit breaker of a shared store, or of one of its nodes, is open."),
    (
        UNDONE,
        MetricKind::Counter,
        "Calls that took charges back, by result. Charges are taken back when another store or hash slot refuses, or when leased quota is left over.",
    ),
    (
        NEAR,
        MetricKind::Counter,
        "Requests answered without calling the shared store, from the refusal cache or from leased quota.",
    ),
    (RELOADS, MetricKind::Counter, "Changed configurations read since the start, by result."),
    (RELOADED, MetricKind::Gauge, "1 if the configuration read last was taken, 0 if it was refused."),
    (LOADED_AT, MetricKind::Gauge, "When the configuration in use was read, in Unix time."),
    (VERSION, MetricKind::Gauge, "Configurations taken since the start, including the first."),
    (READY, MetricKind::Gauge, "1 while this instance is ready for requests."),
    (BUILD, MetricKind::Gauge, "Always 1. The version of tollgate is a label."),
];

#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// The metrics of a process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    duration: Histogram,
    doors: [[Counter; Reply::ALL.len()]; Door::ALL.len()],
    released: [Counter; 3],
    acquired: Counter,
    process: Collector,
}

/// Values read when metrics are scraped, in addition to those counted as they happen.
#[derive(Clone, Debug, Default)]
pub struct ScrapeInput {
    /// Stores, by name.
    pub stores: Vec<(String, StoreFact)>,
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
    const ALL: [Door; 3] = [Door::Rls, Door::AuthzGrpc, Door::AuthzHttp];

    /// The name in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Door::Rls => "rls",
            Door::AuthzGrpc => "ext_authz_grpc",
            Door::AuthzHttp => "ext_authz_http",
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

/// Metric handles for the decisions of one version of the rules.
pub struct Handles {
    domains: Vec<DomainCounters>,
    targets: Vec<TargetCounters>,
    /// Allowed requests for an unknown domain.
    no_domain: Counter,
    /// Requests for an unknown domain that are too large.
    no_domain_too_large: Counter,
}

struct DomainCounters {
    allowed: Counter,
    skipped: Counter,
    overrides: Counter,
    shadow_refusals: Counter,
    unmatched: Counter,
    too_large: Counter,
    /// For each rule: denied, missing key, no limiter.
    rules: Vec<[Counter; 3]>,
}

/// Counters of one limiter as applied by one rule.
struct TargetCounters {
    /// Refusals that it decided: limit exceeded, store error.
    decided: [Counter; 2],
    /// Checks: passed, refused, failed.
    enforced: [Counter; 3],
    shadow: [Counter; 3],
}

/// The series of one shared store.
struct StoreMetrics {
    /// Seconds of each call.
    latency: Histogram,
    /// Plans of each call.
    batch: Histogram,
    /// Plans that were not answered, by [`Fault`].
    faults: [Counter; Fault::ALL.len()],
    /// Checks answered by policy: allow, deny, local.
    policy: [Counter; 3],
    /// 1 while the circuit breaker is open.
    circuit_open: Gauge,
    /// Plans that take charges back: done, failed.
    undone: [Counter; 2],
    /// Plans answered without a call: by the refusal cache, from a quota lease.
    answered_by_wrapper: [Counter; 2],
}

impl StoreObserver for StoreMetrics {
    fn called(&self, took: Duration, plans: usize) {
        self.latency.record(took);
        self.batch.record(plans as f64);
    }

    fn failed(&self, fault: Fault) {
        self.faults[fault as usize].increment(1);
    }

    fn answered_by_policy(&self, policy: OnStoreError, checks: u64) {
        self.policy[policy as usize].increment(checks);
    }

    fn circuit_changed(&self, open: bool) {
        self.circuit_open.set(f64::from(u8::from(open)));
    }

    fn undone(&self, failed: bool) {
        self.undone[usize::from(failed)].increment(1);
    }

    fn answered_by_wrapper(&self, by: Wrapper) {
        self.answered_by_wrapper[by as usize].increment(1);
    }
}

impl Metrics {
    /// Metrics with all counts zero.
    #[expect(clippy::missing_panics_doc, reason = "the buckets are constants")]
    pub fn new() -> Self {
        let buckets = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &DURATION_BUCKETS)
            .and_then(|buckets| buckets.set_buckets_for_metric(Matcher::Full(CALLS.to_owned()), &DURATION_BUCKETS))
            .and_then(|buckets| buckets.set_buckets_for_metric(Matcher::Full(BATCH.to_owned()), &BATCH_BUCKETS))
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
            Reply::ALL.map(|reply| registry.counter(REQUESTS, &[("door", door.name()), ("result", reply.name())]))
        };
        registry.gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        Self {
            handle: recorder.handle(),
            duration: recorder.register_histogram(&key(DURATION, &[]), &METADATA),
            doors: Door::ALL.map(door),
            released: ["in_time", "late", "unknown"].map(|when| registry.counter(RELEASED, &[("when", when)])),
            acquired: registry.counter(ACQUIRED, &[]),
            process,
            recorder,
        }
    }

    /// Prepares the handles for decisions by these rules. Existing series continue.
    pub fn prepare(&self, rules: &Rules) -> Handles {
        Handles::new(rules, &Registry(&self.recorder))
    }

    /// An observer that counts the calls of a shared store.
    pub fn store_observer(&self, store: &str) -> Box<dyn StoreObserver> {
        let registry = Registry(&self.recorder);
        let by = |name, label, value| registry.counter(name, &[("store", store), (label, value)]);
        let histogram = |name| self.recorder.register_histogram(&key(name, &[("store", store)]), &METADATA);
        Box::new(StoreMetrics {
            latency: histogram(CALLS),
            batch: histogram(BATCH),
            faults: Fault::ALL.map(|fault| by(STORE_ERRORS, "kind", fault.name())),
            policy: ["allow", "deny", "local"].map(|policy| by(POLICY, "policy", policy)),
            circuit_open: registry.gauge(SUSPENDED, &[("store", store)]),
            undone: ["done", "failed"].map(|result| by(UNDONE, "result", result)),
            answered_by_wrapper: ["refusal_cache", "quota_lease"].map(|wrapper| by(NEAR, "wrapper", wrapper)),
        })
    }

    /// Counts a decision and its answer.
    pub fn record_decision(&self, handles: &Handles, door: Door, decision: &Decision, took: Duration) {
        self.record_reply(door, if decision.allowed() { Reply::Allowed } else { Reply::Refused });
        self.duration.record(took);
        if decision.lease().is_some() {
            self.acquired.increment(1);
        }
        for status in &decision.applied().statuses {
            self.record_release(*status);
        }
        handles.count(decision);
    }

    /// Counts an answer that no decision made.
    pub fn record_reply(&self, door: Door, reply: Reply) {
        self.doors[door as usize][reply as usize].increment(1);
    }

    /// Counts a released lease.
    pub fn record_release(&self, status: LeaseStatus) {
        let index = match status {
            LeaseStatus::Done => 0,
            LeaseStatus::Expired => 1,
            LeaseStatus::Unknown => 2,
        };
        self.released[index].increment(1);
    }

    /// Renders all metrics in Prometheus' text format.
    pub fn render(&self, input: &ScrapeInput) -> String {
        let registry = Registry(&self.recorder);
        for (name, usage) in &input.stores {
            let StoreFact::Memory(usage) = usage else { continue };
            let labels = [("store", name.as_str())];
            registry.gauge(KEYS, &labels).set(usage.keys as f64);
            registry.gauge(BYTES, &labels).set(usage.bytes as f64);
            registry.gauge(MAX_BYTES, &labels).set(usage.max_bytes as f64);
            registry.gauge(HELD, &labels).set(usage.leases as f64);
            registry.counter(EXPIRED, &labels).absolute(usage.expired_leases);
            registry.counter(EVICTIONS, &labels).absolute(usage.evictions);
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
        registry.counter(RELOADS, &[("result", "taken")]).absolute(taken);
        registry.counter(RELOADS, &[("result", "refused")]).absolute(refused);
        registry.gauge(RELOADED, &[]).set(f64::from(u8::from(last_taken)));
        registry.gauge(LOADED_AT, &[]).set(loaded_at);
        registry.gauge(VERSION, &[]).set(version as f64);
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

impl Handles {
    fn new(rules: &Rules, registry: &Registry<'_>) -> Self {
        // Domains and rules by index, and the label of each rule.
        let domains: Vec<(&str, Vec<RuleLabel<'_>>)> =
            rules.domain_names().map(|(name, rules)| (name, rules.collect())).collect();
        let mut labels_left = MAX_LABELLED_RULES;
        let mut labels: Vec<Vec<&str>> = Vec::with_capacity(domains.len());
        for (_, rules) in &domains {
            let (own, others) = rules.split_at(rules.len().min(labels_left));
            labels_left -= own.len();
            labels.push(own.iter().map(|rule| rule.name).chain(others.iter().map(|_| OTHER_RULES)).collect());
        }
        let domain = |((name, _), labels): (&(&str, Vec<RuleLabel<'_>>), &Vec<&str>)| DomainCounters {
            allowed: registry.decisions(name, "", "", "allowed", ""),
            skipped: registry.counter(SKIPPED, &[("domain", name)]),
            overrides: registry.counter(OVERRIDES, &[("domain", name)]),
            shadow_refusals: registry.counter(SHADOW_REFUSALS, &[("domain", name)]),
            unmatched: registry.decisions(name, "", "", "refused", Reason::Unmatched.name()),
            too_large: registry.decisions(name, "", "", "refused", Reason::TooLarge.name()),
            rules: labels
                .iter()
                .map(|rule| {
                    [Reason::Denied, Reason::MissingKey, Reason::NoLimiter]
                        .map(|why| registry.decisions(name, rule, "", "refused", why.name()))
                })
                .collect(),
        };
        let target = |((domain_index, rule), limiter): ((usize, u32), &str)| {
            let (domain, rules) = &domains[domain_index];
            let (rule_modes, rule) = (rules[rule as usize], labels[domain_index][rule as usize]);
            // Each of these rules may have its own limiter, so limiters are counted together too.
            let limiter = if rule == OTHER_RULES { OTHER_RULES } else { limiter };
            let checks = |mode: &'static str, counted: bool| {
                ["passed", "refused", "failed"].map(|verdict| {
                    let labels = [
                        ("domain", *domain),
                        ("rule", rule),
                        ("limiter", limiter),
                        ("verdict", verdict),
                        ("mode", mode),
                    ];
                    if counted { registry.counter(CHECKS, &labels) } else { Counter::noop() }
                })
            };
            TargetCounters {
                decided: [Reason::Limit, Reason::StoreError].map(|why| match rule_modes.enforced {
                    true => registry.decisions(domain, rule, limiter, "refused", why.name()),
                    false => Counter::noop(),
                }),
                enforced: checks("enforced", rule_modes.enforced),
                shadow: checks("shadow", rule_modes.shadow),
            }
        };
        Self {
            domains: domains.iter().zip(&labels).map(domain).collect(),
            targets: rules.target_names().map(target).collect(),
            no_domain: registry.decisions("", "", "", "allowed", ""),
            no_domain_too_large: registry.decisions("", "", "", "refused", Reason::TooLarge.name()),
        }
    }

    fn count(&self, decision: &Decision) {
        let planned = decision.planned();
        for source in &planned.sources {
            let answer = decision.applied().answers.get(usize::from(source.check));
            let verdict = match answer {
                Some(Ok(Outcome { passes: true, .. })) => 0,
                Some(Ok(Outcome { passes: false, .. })) => 1,
                Some(Err(_)) | None => 2,
            };
            let target = &self.targets[source.target as usize];
            let counters = if source.shadow { &target.shadow } else { &target.enforced };
            counters[verdict].increment(1);
        }
        let Some(domain) = planned.domain.map(|domain| &self.domains[domain]) else {
            if decision.allowed() { &self.no_domain } else { &self.no_domain_too_large }.increment(1);
            return;
        };
        for (counter, count) in [
            (&domain.skipped, planned.notes.skipped),
            (&domain.overrides, planned.notes.overrides_ignored),
            (&domain.shadow_refusals, planned.notes.shadow_refusals),
        ] {
            if count > 0 {
                counter.increment(u64::from(count));
            }
        }
        let Some((why, rule, target)) = decision.refused_by() else {
            domain.allowed.increment(1);
            return;
        };
        let by_rule =
            |index: usize| rule.and_then(|rule| domain.rules.get(rule as usize)).map(|counters| &counters[index]);
        let by_target = |index: usize| target.map(|target| &self.targets[target as usize].decided[index]);
        let counter = match why {
            Reason::Limit => by_target(0),
            Reason::StoreError => by_target(1),
            Reason::Denied => by_rule(0),
            Reason::MissingKey => by_rule(1),
            Reason::NoLimiter => by_rule(2),
            Reason::Unmatched => Some(&domain.unmatched),
            Reason::TooLarge => Some(&domain.too_large),
        };
        if let Some(counter) = counter {
            counter.increment(1);
        }
    }
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handles")
    }
}

const METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, None);

/// Registers metrics and returns their handles.
struct Registry<'a>(&'a PrometheusRecorder);

impl Registry<'_> {
    fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &METADATA)
    }

    fn decisions(&self, domain: &str, rule: &str, limiter: &str, verdict: &str, reason: &str) -> Counter {
        let labels =
            [("domain", domain), ("rule", rule), ("limiter", limiter), ("verdict", verdict), ("reason", reason)];
        self.counter(DECISIONS, &labels)
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}
