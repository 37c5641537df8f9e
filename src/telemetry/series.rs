//! The series: their names, kinds, help texts and buckets, and how they are registered.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;

pub(super) const DECISIONS: &str = "tollgate_decisions_total";
pub(super) const CHECKS: &str = "tollgate_checks_total";
pub(super) const CHECKS_SKIPPED: &str = "tollgate_checks_skipped_total";
pub(super) const OVERRIDES_IGNORED: &str = "tollgate_overrides_ignored_total";
pub(super) const UNMATCHED: &str = "tollgate_unmatched_descriptors_total";
pub(super) const SHADOW_REFUSALS: &str = "tollgate_shadow_refusals_total";
pub(super) const REPEATED_ENTRIES: &str = "tollgate_repeated_entries_total";
pub(super) const DECISION_DURATION: &str = "tollgate_decision_duration_seconds";
pub(super) const DOOR_REQUESTS: &str = "tollgate_requests_total";
pub(super) const LEASES_RELEASED: &str = "tollgate_leases_released_total";
pub(super) const LEASES_ACQUIRED: &str = "tollgate_leases_acquired_total";
pub(super) const LEASES_EXPIRED: &str = "tollgate_leases_expired_total";
pub(super) const LEASES_HELD: &str = "tollgate_leases_held";
pub(super) const ACQUIRES: &str = "tollgate_acquires_total";
pub(super) const WAIT_DURATION: &str = "tollgate_wait_duration_seconds";
pub(super) const HOLDS_SETTLED: &str = "tollgate_holds_settled_total";
pub(super) const HOLDS_NOT_REMEMBERED: &str = "tollgate_holds_not_remembered_total";
pub(super) const HOLDS_OUTSTANDING: &str = "tollgate_holds_outstanding";
pub(super) const STORE_KEYS: &str = "tollgate_store_keys";
pub(super) const STORE_BYTES: &str = "tollgate_store_bytes";
pub(super) const STORE_MAX_BYTES: &str = "tollgate_store_max_bytes";
pub(super) const STORE_EVICTIONS: &str = "tollgate_store_evictions_total";
pub(super) const STORE_CALL_DURATION: &str = "tollgate_store_call_duration_seconds";
pub(super) const STORE_CALL_PLANS: &str = "tollgate_store_call_plans";
pub(super) const STORE_ERRORS: &str = "tollgate_store_errors_total";
pub(super) const POLICY_ANSWERS: &str = "tollgate_store_policy_answers_total";
pub(super) const STORE_SUSPENDED: &str = "tollgate_store_suspended";
pub(super) const CLOCK_DIFFERENCE: &str = "tollgate_clock_difference_seconds";
pub(super) const STORE_UNDONE: &str = "tollgate_store_undone_total";
pub(super) const STORE_BACKLOG: &str = "tollgate_store_backlog";
pub(super) const STORE_BACKLOG_HANDED_OVER: &str = "tollgate_store_backlog_handed_over_total";
pub(super) const STORE_BACKLOG_RETRIES: &str = "tollgate_store_backlog_retries_total";
pub(super) const STORE_BACKLOG_DROPPED: &str = "tollgate_store_backlog_dropped_total";
pub(super) const NEAR_ANSWERS: &str = "tollgate_store_near_answers_total";
pub(super) const CONFIG_RELOADS: &str = "tollgate_config_reloads_total";
pub(super) const LAST_RELOAD_SUCCESSFUL: &str = "tollgate_config_last_reload_successful";
pub(super) const CONFIG_LOADED_AT: &str = "tollgate_config_loaded_timestamp_seconds";
pub(super) const CONFIG_VERSION: &str = "tollgate_config_version";
pub(super) const LIST_VALUES: &str = "tollgate_list_values";
pub(super) const LIST_BYTES: &str = "tollgate_list_bytes";
pub(super) const TABLE_ROWS: &str = "tollgate_table_rows";
pub(super) const TABLE_BYTES: &str = "tollgate_table_bytes";
pub(super) const READY: &str = "tollgate_ready";
pub(super) const BUILD_INFO: &str = "tollgate_build_info";

/// Buckets in seconds: from a decision in memory (a few microseconds) to beyond the timeout of a shared store.
pub(super) const DURATION_BUCKETS: [f64; 14] =
    [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2];

/// Buckets in seconds of the time that workers wait, up to the default of the longest wait.
pub(super) const WAIT_BUCKETS: [f64; 14] =
    [1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// Buckets of plans in a call: powers of two up to the default batch limit.
pub(super) const BATCH_BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Every metric with its kind and help text.
pub(super) const DESCRIPTIONS: [(&str, MetricKind, &str); 44] = [
    (
        ACQUIRES,
        MetricKind::Counter,
        "Acquires of workers by result: granted, granted_ahead (charged before its moment), refused, queue_full, draining, or cancelled (the caller went away while it waited).",
    ),
    (WAIT_DURATION, MetricKind::Histogram, "Time that workers waited, of those who did, until they were answered."),
    (DECISIONS, MetricKind::Counter, "Requests decided. A refusal has the rule, limiter and reason that decided it."),
    (
        CHECKS,
        MetricKind::Counter,
        "Checks by rule and limiter: passed, refused, or failed because the store could not answer. Shadow checks are counted apart.",
    ),
    (CHECKS_SKIPPED, MetricKind::Counter, "Checks skipped because the request has no value for an entry of their key."),
    (
        OVERRIDES_IGNORED,
        MetricKind::Counter,
        "Limits sent with a request (overrides) that were ignored because they are invalid.",
    ),
    (UNMATCHED, MetricKind::Counter, "Descriptors that passed because no rule matches them."),
    (
        SHADOW_REFUSALS,
        MetricKind::Counter,
        "Refusals that shadow mode did not enforce and that no check counts, such as deny rules, unmatched descriptors and missing entries.",
    ),
    (
        REPEATED_ENTRIES,
        MetricKind::Counter,
        "Requests that name an entry several times where a rule needs it, by entry. They are refused, unless the rule is in shadow.",
    ),
    (DECISION_DURATION, MetricKind::Histogram, "Time to decide a request, including the answer of its store."),
    (
        DOOR_REQUESTS,
        MetricKind::Counter,
        "Requests by door and result: allowed, refused, unreadable (invalid or past a bound, and refused), or failed (an internal error).",
    ),
    (
        LEASES_RELEASED,
        MetricKind::Counter,
        "Leases released: in time, late (expired but not yet cleared), or unknown (cleared or released before).",
    ),
    (LEASES_ACQUIRED, MetricKind::Counter, "Leases handed out."),
    (
        LEASES_EXPIRED,
        MetricKind::Counter,
        "Leases that expired without a release and were cleared from a memory store.",
    ),
    (
        LEASES_HELD,
        MetricKind::Gauge,
        "Slots held by leases in a memory store, including expired leases that are not yet cleared.",
    ),
    (
        HOLDS_SETTLED,
        MetricKind::Counter,
        "Holds settled or released: in time, late (after their end), or unknown (settled before, forgotten, or gone with their counter).",
    ),
    (
        HOLDS_NOT_REMEMBERED,
        MetricKind::Counter,
        "Charges that were to be held and cannot be corrected, because their counter remembers no more holds.",
    ),
    (HOLDS_OUTSTANDING, MetricKind::Gauge, "Charges in a memory store that a lease can still correct."),
    (STORE_KEYS, MetricKind::Gauge, "Counters in a memory store."),
    (STORE_BYTES, MetricKind::Gauge, "Memory used by the counters of a memory store."),
    (STORE_MAX_BYTES, MetricKind::Gauge, "Memory that the counters of a memory store may use (max_memory)."),
    (STORE_EVICTIONS, MetricKind::Counter, "Counters evicted to make room in a full memory store."),
    (STORE_CALL_DURATION, MetricKind::Histogram, "Time from a call to a shared store to its answer."),
    (STORE_CALL_PLANS, MetricKind::Histogram, "Requests batched into one call to a shared store."),
    (
        STORE_ERRORS,
        MetricKind::Counter,
        "Requests that a shared store could not answer, by kind. The kind suspended is a request rejected by an open circuit breaker. A request whose connection was lost and that was answered by the next one is not counted.",
    ),
    (
        POLICY_ANSWERS,
        MetricKind::Counter,
        "Enforced checks answered without their store, by the on_store_error policy that answered: allow, deny or local.",
    ),
    (
        STORE_SUSPENDED,
        MetricKind::Gauge,
        "1 while the circuit breaker of a shared store, or of one of its nodes, is open.",
    ),
    (
        CLOCK_DIFFERENCE,
        MetricKind::Gauge,
        "Seconds by which the clock of a shared store is ahead of this process's, the time of a call included. The store's clock decides.",
    ),
    (
        STORE_UNDONE,
        MetricKind::Counter,
        "Calls that took charges back, by result. Charges are taken back when another store or hash slot refuses, or when leased quota is left over.",
    ),
    (
        STORE_BACKLOG,
        MetricKind::Gauge,
        "What this process owes a shared store and has not handed over yet: releases, renewals, refunds, and counters and slots that a fallback charged.",
    ),
    (STORE_BACKLOG_HANDED_OVER, MetricKind::Counter, "What reached a shared store later than it was answered."),
    (STORE_BACKLOG_RETRIES, MetricKind::Counter, "Attempts to hand something over that failed and are repeated."),
    (
        STORE_BACKLOG_DROPPED,
        MetricKind::Counter,
        "What never reaches a shared store, by reason: expired, because its lease or window has ended, so that it would change nothing; full, because there was no room; unknown, because it may have been executed and must not be twice; refused by the store; closed, because the process ended or a reload removed the store. An undo, refund or release that is dropped leaves a limit too strict, a charge leaves it too wide by that much.",
    ),
    (
        NEAR_ANSWERS,
        MetricKind::Counter,
        "Requests answered without calling the shared store, from the refusal cache or from leased quota.",
    ),
    (CONFIG_RELOADS, MetricKind::Counter, "Changed configurations read since the start, by result."),
    (LAST_RELOAD_SUCCESSFUL, MetricKind::Gauge, "1 if the configuration read last was taken, 0 if it was refused."),
    (CONFIG_LOADED_AT, MetricKind::Gauge, "When the configuration in use was read, in Unix time."),
    (CONFIG_VERSION, MetricKind::Gauge, "Configurations taken since the start, including the first."),
    (LIST_VALUES, MetricKind::Gauge, "Values of a list that rules match."),
    (
        LIST_BYTES,
        MetricKind::Gauge,
        "Memory used by a list that rules match, in the forms of all entries that meet it.",
    ),
    (TABLE_ROWS, MetricKind::Gauge, "Rows of a table that entries are derived from."),
    (TABLE_BYTES, MetricKind::Gauge, "Memory used by a table that entries are derived from, for all domains."),
    (READY, MetricKind::Gauge, "1 while this instance is ready for requests."),
    (BUILD_INFO, MetricKind::Gauge, "Always 1. The version of tollgate is a label."),
];

#[derive(Clone, Copy)]
pub(super) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// The metadata that the recorder of the metrics crate requires.
const METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, None);

/// Registers metrics and returns their handles.
pub(super) struct Registry<'a>(pub(super) &'a PrometheusRecorder);

impl Registry<'_> {
    pub(super) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &METADATA)
    }

    pub(super) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &METADATA)
    }

    pub(super) fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        self.0.register_histogram(&key(name, labels), &METADATA)
    }

    pub(super) fn decisions(&self, domain: &str, rule: &str, limiter: &str, verdict: &str, reason: &str) -> Counter {
        let labels =
            [("domain", domain), ("rule", rule), ("limiter", limiter), ("verdict", verdict), ("reason", reason)];
        self.counter(DECISIONS, &labels)
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}
