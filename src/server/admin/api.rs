//! Bodies of requests and answers of the admin port, as JSON. The command line uses the same types.

use serde::{Deserialize, Serialize};

/// Selects the counters of an identity: all counters of the domain whose keys consist of these entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct IdentityQuery {
    /// The domain.
    pub domain: String,
    /// The entries, names and values.
    #[serde(default)]
    pub entries: Vec<(String, String)>,
}

/// A request to reset the counters of an identity, with its author and reason for the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct LiftRequest {
    /// The domain.
    pub domain: String,
    /// The entries, names and values.
    pub entries: Vec<(String, String)>,
    /// If present, only the counters of this limiter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limiter: Option<String>,
    /// The person who lifts the limit, for the audit log.
    pub who: String,
    /// The reason, for the audit log. A text that contains the value of an entry is rejected.
    pub why: String,
}

/// One counter of an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterState {
    /// The rule that applies the limiter.
    pub rule: String,
    /// The limiter.
    pub limiter: String,
    /// The entries of the key, by name.
    pub key_entries: Vec<String>,
    /// The counter's hashed name.
    pub key: String,
    /// The store that holds it.
    pub store: String,
    /// Whether it holds the slots of a concurrency limit.
    pub slots: bool,
    /// Whether the rule is in shadow mode: it counts and never refuses.
    pub shadow: bool,
    /// The value of the counter.
    #[serde(flatten)]
    pub state: CounterReading,
}

/// The value of a counter, or why it could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CounterReading {
    /// It was read.
    Holds {
        /// The capacity: the burst of a bucket, the limit of a window, the slots of a concurrency limit.
        limit: u32,
        /// Units used.
        used: u32,
        /// Units used that a lease can still correct.
        #[serde(default)]
        held: u32,
        /// Units left.
        remaining: u32,
        /// Whether one more unit would pass.
        passes: bool,
        /// Milliseconds until one more unit would pass. Null when it passes now or never will.
        retry_after_ms: Option<u64>,
        /// Milliseconds until the counter is empty.
        reset_ms: u64,
    },
    /// The store could not be read.
    Unknown {
        /// The reason.
        error: String,
    },
}

/// A counter after a [`LiftRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiftedCounter {
    /// The limiter.
    pub limiter: String,
    /// The counter's hashed name.
    pub key: String,
    /// Whether it was not empty.
    pub held: bool,
    /// Why it could not be reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The rules and counters that refused most in the last minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopRefused {
    /// The number of minutes, including the current one.
    pub minutes: usize,
    /// By rule, highest count first.
    pub rules: Vec<RefusalCount>,
    /// By counter, highest count first.
    pub keys: Vec<RefusalCount>,
    /// The mistakes of gateways that were seen in these minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway_mistakes: Vec<MistakeCount>,
}

/// A mistake in the configuration of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MistakeCount {
    /// Its name, as the metric has it.
    pub mistake: String,
    /// What it is, and the remedy.
    pub text: String,
    /// Occurrences since the start.
    pub count: u64,
}

/// Refusals of one rule or one counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalCount {
    /// The domain.
    pub domain: String,
    /// The rule.
    pub rule: String,
    /// The limiter.
    pub limiter: String,
    /// The counter's hashed name; absent for a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Refusals.
    pub refused: u64,
    /// The most by which `refused` may be too high.
    pub over: u64,
}

/// The body of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error text.
    pub error: String,
}
