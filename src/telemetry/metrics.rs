//! Prometheus metrics.
//!
//! Handles are prepared when rules are built: counting a request looks nothing up and allocates nothing. Labels are
//! bounded by the configuration, never by traffic. Names and units follow Prometheus practice.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

use crate::decision::{Decision, Reason};
use crate::engine::Observer;
use crate::limiter::{LeaseFate, Outcome};
use crate::rules::Rules;
use crate::store::Usage;

const DECISIONS: &str = "tollgate_decisions_total";
const CHECKS: &str = "tollgate_checks_total";
const SKIPPED: &str = "tollgate_checks_skipped_total";
const OVERRIDES: &str = "tollgate_overrides_ignored_total";
const SHADOW_REFUSALS: &str = "tollgate_shadow_refusals_total";
const DURATION: &str = "tollgate_decide_duration_seconds";
const REQUESTS: &str = "tollgate_requests_total";
const LEASES: &str = "tollgate_leases_released_total";
const ACQUIRED: &str = "tollgate_leases_acquired_total";
const HELD: &str = "tollgate_leases_held";
const KEYS: &str = "tollgate_store_keys";
const BYTES: &str = "tollgate_store_bytes";
const EVICTIONS: &str = "tollgate_store_evictions_total";
const RELOADS: &str = "tollgate_config_reloads_total";
const RELOADED: &str = "tollgate_config_last_reload_successful";
const LOADED_AT: &str = "tollgate_config_loaded_timestamp_seconds";
const VERSION: &str = "tollgate_config_version";
const BUILD: &str = "tollgate_build_info";

/// From a microsecond, which is what a decision in memory takes, to the deadline of a shared store.
const DURATION_BUCKETS: [f64; 12] = [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2];

/// Every metric, what it counts, and whether it is a counter, a gauge or a histogram.
const DESCRIPTIONS: [(&str, Kind, &str); 18] = [
    (DECISIONS, Kind::Counter, "Requests decided, by the rule and limiter that refused them."),
    (CHECKS, Kind::Counter, "Checks that decisions asked for, by rule and limiter, enforced and in shadow apart."),
    (SKIPPED, Kind::Counter, "Checks left out because an entry of their key was missing."),
    (OVERRIDES, Kind::Counter, "Limits that came with a request and could not be heeded."),
    (SHADOW_REFUSALS, Kind::Counter, "Refusals without a counter that shadow mode did not enforce."),
    (DURATION, Kind::Histogram, "Time from a request's descriptors to its decision."),
    (REQUESTS, Kind::Counter, "Requests by door and reply."),
    (LEASES, Kind::Counter, "Leases given back: in time, late (expired before), or unknown."),
    (ACQUIRED, Kind::Counter, "Leases handed out."),
    (HELD, Kind::Gauge, "Slots held now."),
    (KEYS, Kind::Gauge, "Counters that a store holds."),
    (BYTES, Kind::Gauge, "Bytes that a store's counters take."),
    (EVICTIONS, Kind::Counter, "Counters that a full store had to forget before their time."),
    (RELOADS, Kind::Counter, "Configurations loaded after the first, by result."),
    (RELOADED, Kind::Gauge, "Whether the last configuration loaded was taken."),
    (LOADED_AT, Kind::Gauge, "When the configuration in use was loaded."),
    (VERSION, Kind::Gauge, "How many configurations were taken since the start, the first included."),
    (BUILD, Kind::Gauge, "The version of tollgate, as a label of the constant 1."),
];

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Counts what is decided, and renders the counts.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// The rules in use and the ones before: decisions of both may be on their way.
    versions: ArcSwap<Vec<Arc<Version>>>,
    duration: Histogram,
    doors: Vec<[Counter; Reply::ALL.len()]>,
    released: [Counter; 3],
    acquired: Counter,
    unmatched_domain: Counter,
    reload_taken: Counter,
    reload_refused: Counter,
    reloaded: Gauge,
    loaded_at: Gauge,
    version: Gauge,
    process: Collector,
}

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Envoy's rate limit service.
    Rls,
    /// ext_authz over gRPC.
    AuthzGrpc,
    /// ext_authz over plain HTTP.
    AuthzHttp,
}

/// What a door replied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It may pass.
    Allowed,
    /// It may not.
    Refused,
    /// What came could not be read, or was past a bound of the protocol.
    Unreadable,
}

impl Door {
    const ALL: [Door; 3] = [Door::Rls, Door::AuthzGrpc, Door::AuthzHttp];

    fn name(self) -> &'static str {
        match self {
            Door::Rls => "rls",
            Door::AuthzGrpc => "ext_authz_grpc",
            Door::AuthzHttp => "ext_authz_http",
        }
    }
}

impl Reply {
    const ALL: [Reply; 3] = [Reply::Allowed, Reply::Refused, Reply::Unreadable];

    fn name(self) -> &'static str {
        match self {
            Reply::Allowed => "allowed",
            Reply::Refused => "refused",
            Reply::Unreadable => "unreadable",
        }
    }
}

/// The handles of one version of the rules.
struct Version {
    rules: Arc<Rules>,
    domains: Vec<DomainCounters>,
    targets: Vec<TargetCounters>,
}

struct DomainCounters {
    allowed: Counter,
    skipped: Counter,
    overrides: Counter,
    shadow_refusals: Counter,
    unmatched: Counter,
    too_large: Counter,
    /// By rule: denied, missing key, no limiter.
    rules: Vec<[Counter; 3]>,
}

/// One limiter as one rule reaches it.
struct TargetCounters {
    /// Refusals that it decided: by its limit, and by its store's failure.
    decided: [Counter; 2],
    /// Its checks: allowed, refused, failed.
    enforced: [Counter; 3],
    shadow: [Counter; 3],
}

impl Metrics {
    /// Metrics with nothing counted.
    pub fn new() -> Self {
        let buckets = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &DURATION_BUCKETS)
            .expect("the buckets are not empty");
        let recorder = buckets.build_recorder();
        for (name, kind, text) in DESCRIPTIONS {
            let unit = if name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
            match kind {
                Kind::Counter => recorder.describe_counter(name.into(), Some(unit), text.into()),
                Kind::Gauge => recorder.describe_gauge(name.into(), Some(unit), text.into()),
                Kind::Histogram => recorder.describe_histogram(name.into(), Some(unit), text.into()),
            }
        }
        let process = Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let registry = Registry(&recorder);
        let door = |door: Door| {
            Reply::ALL.map(|reply| registry.counter(REQUESTS, &[("door", door.name()), ("reply", reply.name())]))
        };
        registry.gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        Self {
            handle: recorder.handle(),
            versions: ArcSwap::default(),
            duration: recorder.register_histogram(&key(DURATION, &[]), &METADATA),
            doors: Door::ALL.map(door).into(),
            released: ["in_time", "late", "unknown"].map(|when| registry.counter(LEASES, &[("when", when)])),
            acquired: registry.counter(ACQUIRED, &[]),
            unmatched_domain: registry.decisions("", "", "", "allowed", ""),
            reload_taken: registry.counter(RELOADS, &[("result", "taken")]),
            reload_refused: registry.counter(RELOADS, &[("result", "refused")]),
            reloaded: registry.gauge(RELOADED, &[]),
            loaded_at: registry.gauge(LOADED_AT, &[]),
            version: registry.gauge(VERSION, &[]),
            process,
            recorder,
        }
    }

    /// Counts a request at its door.
    pub fn replied(&self, door: Door, reply: Reply) {
        self.doors[door as usize][reply as usize].increment(1);
    }

    /// Counts a configuration that was loaded: the first one, and every one after.
    pub fn loaded(&self, taken: bool, first: bool, unix_seconds: f64) {
        self.reloaded.set(f64::from(u8::from(taken)));
        if taken {
            self.version.increment(1.0);
            self.loaded_at.set(unix_seconds);
        }
        match (first, taken) {
            (true, _) => {}
            (false, true) => self.reload_taken.increment(1),
            (false, false) => self.reload_refused.increment(1),
        }
    }

    /// Everything counted, in Prometheus' text format, with what the stores hold now.
    pub fn render(&self, stores: &[(String, Usage)]) -> String {
        let registry = Registry(&self.recorder);
        let mut held = 0;
        for (name, usage) in stores {
            let labels = [("store", name.as_str())];
            registry.gauge(KEYS, &labels).set(usage.keys as f64);
            registry.gauge(BYTES, &labels).set(usage.bytes as f64);
            registry.counter(EVICTIONS, &labels).absolute(usage.evictions);
            held += usage.leases;
        }
        registry.gauge(HELD, &[]).set(held as f64);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Drains what histograms collected. To be called every few seconds, or they grow.
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

impl Observer for Metrics {
    fn prepare(&self, rules: &Arc<Rules>) {
        let version = Arc::new(Version::new(Arc::clone(rules), &Registry(&self.recorder)));
        let before = self.versions.load();
        let versions = std::iter::once(version).chain(before.first().cloned()).collect();
        self.versions.store(Arc::new(versions));
    }

    fn decided(&self, decision: &Decision, took: Duration) {
        self.duration.record(took);
        if decision.lease().is_some() {
            self.acquired.increment(1);
        }
        for fate in &decision.applied().fates {
            self.changed(*fate);
        }
        let versions = self.versions.load();
        let Some(version) = versions.iter().find(|version| Arc::ptr_eq(&version.rules, decision.rules())) else {
            return;
        };
        version.count(decision, &self.unmatched_domain);
    }

    fn changed(&self, fate: LeaseFate) {
        let place = match fate {
            LeaseFate::Done => 0,
            LeaseFate::Expired => 1,
            LeaseFate::Unknown => 2,
        };
        self.released[place].increment(1);
    }
}

impl Version {
    fn new(rules: Arc<Rules>, registry: &Registry<'_>) -> Self {
        let domain = |(name, names): (&str, Vec<&str>)| DomainCounters {
            allowed: registry.decisions(name, "", "", "allowed", ""),
            skipped: registry.counter(SKIPPED, &[("domain", name)]),
            overrides: registry.counter(OVERRIDES, &[("domain", name)]),
            shadow_refusals: registry.counter(SHADOW_REFUSALS, &[("domain", name)]),
            unmatched: registry.decisions(name, "", "", "refused", reason(Reason::Unmatched)),
            too_large: registry.decisions(name, "", "", "refused", reason(Reason::TooLarge)),
            rules: names
                .into_iter()
                .map(|rule| {
                    [Reason::Denied, Reason::MissingKey, Reason::NoLimiter]
                        .map(|why| registry.decisions(name, rule, "", "refused", reason(why)))
                })
                .collect(),
        };
        let target = |(domain, rule, limiter): (&str, &str, &str)| {
            let checks = |mode: &'static str| {
                ["allowed", "refused", "failed"].map(|verdict| {
                    let labels = [
                        ("domain", domain),
                        ("rule", rule),
                        ("limiter", limiter),
                        ("verdict", verdict),
                        ("mode", mode),
                    ];
                    registry.counter(CHECKS, &labels)
                })
            };
            TargetCounters {
                decided: [Reason::Limit, Reason::StoreError]
                    .map(|why| registry.decisions(domain, rule, limiter, "refused", reason(why))),
                enforced: checks("enforced"),
                shadow: checks("shadow"),
            }
        };
        let domains = rules.domain_names().map(domain).collect();
        let targets = rules.target_names().map(target).collect();
        Self { rules, domains, targets }
    }

    fn count(&self, decision: &Decision, unmatched_domain: &Counter) {
        let planned = decision.planned();
        for link in &planned.links {
            let answer = decision.applied().answers.get(usize::from(link.check));
            let verdict = match answer {
                Some(Ok(Outcome { passes: true, .. })) => 0,
                Some(Ok(Outcome { passes: false, .. })) => 1,
                Some(Err(_)) | None => 2,
            };
            let target = &self.targets[link.target as usize];
            let counters = if link.shadow { &target.shadow } else { &target.enforced };
            counters[verdict].increment(1);
        }
        let Some(domain) = planned.domain.map(|domain| &self.domains[domain]) else {
            unmatched_domain.increment(1);
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
            |place: usize| rule.and_then(|rule| domain.rules.get(rule as usize)).map(|counters| &counters[place]);
        let by_target = |place: usize| target.map(|target| &self.targets[target as usize].decided[place]);
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

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Limit => "limit",
        Reason::Denied => "denied",
        Reason::Unmatched => "unmatched",
        Reason::MissingKey => "missing_key",
        Reason::NoLimiter => "no_limiter",
        Reason::StoreError => "store_error",
        Reason::TooLarge => "too_large",
    }
}

const METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, None);

/// Makes handles.
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
