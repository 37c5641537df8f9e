//! What the admin port is asked and answers, as JSON. The command line reads and writes the same.

use serde::{Deserialize, Serialize};

/// Whose counters are meant: all of a domain whose keys are made of these entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The domain.
    pub domain: String,
    /// The entries, names and values.
    #[serde(default)]
    pub entries: Vec<(String, String)>,
}

/// Which counters to forget, who says so and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lift {
    /// The domain.
    pub domain: String,
    /// The entries, names and values.
    pub entries: Vec<(String, String)>,
    /// Only the counters of this limiter, if one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limiter: Option<String>,
    /// Who asks for it, for the audit log.
    pub who: String,
    /// Why, for the audit log. A text that holds the value of one of the entries is refused.
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
    /// Whether it holds slots of concurrency.
    pub slots: bool,
    /// Whether it counts and never denies.
    pub shadow: bool,
    /// What it holds.
    #[serde(flatten)]
    pub state: State,
}

/// What a counter holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was read.
    Holds {
        /// The most units it holds: the burst of a bucket, the limit of a window, the slots of a concurrency.
        limit: u32,
        /// Units used.
        used: u32,
        /// Units left.
        remaining: u32,
        /// Whether one unit more would pass.
        passes: bool,
        /// Milliseconds until one unit more would pass; absent when it passes, or never will.
        retry_after_ms: Option<u64>,
        /// Milliseconds until nothing is counted.
        reset_ms: u64,
    },
    /// The store could not say.
    Unknown {
        /// Why.
        error: String,
    },
}

/// A counter that was to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifted {
    /// The limiter.
    pub limiter: String,
    /// The counter's hashed name.
    pub key: String,
    /// Whether it held anything.
    pub held: bool,
    /// Why it could not be forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The most refused of the last minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopRefused {
    /// How many minutes, the one under way among them.
    pub minutes: usize,
    /// By rule, the most first.
    pub rules: Vec<Refused>,
    /// By counter, the most first.
    pub keys: Vec<Refused>,
}

/// A rule, or a counter, and how often it refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
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
    /// By how many that may be too high.
    pub over: u64,
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// In words.
    pub error: String,
}
