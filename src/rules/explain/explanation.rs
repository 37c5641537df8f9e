//! The parts of an explanation.

use std::fmt;

use crate::limiter::Limit;
use crate::plan::CounterName;
use crate::rules::book::Charge;

/// How the rules of a domain treat one descriptor.
#[derive(Debug)]
pub struct Explanation {
    /// Whether the domain has rules or settings.
    pub domain_known: bool,
    /// The entries as the domain normalises them.
    pub entries: Vec<(String, String)>,
    /// Every rule of the domain, in order.
    pub rules: Vec<RuleExplanation>,
}

/// How one rule treats a descriptor.
#[derive(Debug)]
pub struct RuleExplanation {
    /// Its name.
    pub rule: String,
    /// The entries that do not match; empty when the rule matches.
    pub mismatches: Vec<Mismatch>,
    /// How many of the entries it names passed.
    pub hits: usize,
    /// Whether an earlier rule ended the walk before it.
    pub unreached: bool,
    /// In shadow: set on the rule, its domain or the server.
    pub shadow: bool,
    /// In shadow while its domain and the server are enforced; it does not end the walk either.
    pub shadow_only: bool,
    /// What it does.
    pub action: ActionExplanation,
}

/// What a rule does with a descriptor that it matches.
#[derive(Debug)]
pub enum ActionExplanation {
    /// Lets it pass.
    Allow,
    /// Refuses it.
    Deny,
    /// Applies limiters.
    Apply(Vec<ApplyExplanation>),
}

/// Why a rule does not match.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The entry it names.
    pub entry: String,
    /// What it asks of the value.
    pub expected: String,
    /// The value; none when the entry is not there.
    pub found: Option<String>,
}

/// How one `apply` of a rule counts a descriptor.
#[derive(Debug)]
pub struct ApplyExplanation {
    /// The limiter as written.
    pub reference: String,
    /// The limiter it stands for.
    pub limiter: Option<String>,
    /// The key's entries, as they are counted.
    pub key: Vec<(String, Option<String>)>,
    /// Why nothing is counted; `None` when it counts.
    pub not_applied: Option<NotApplied>,
    /// The counters it asks, by their hashed names, with their numbers.
    pub counters: Vec<(CounterName, Limit)>,
    /// When it is charged.
    pub charge: Charge,
    /// Passes while one unit is left.
    pub overdraw: bool,
}

/// What happens where an `apply` cannot count.
#[derive(Debug, PartialEq, Eq)]
pub enum NotApplied {
    /// It is left out, and the rule's others stay.
    Skipped(MissingEntries),
    /// The request is refused.
    Refused(MissingEntries),
    /// The request is refused, for no limiter has the name that was filled.
    NoLimiter {
        /// The names, or the values of the entry, for which there is one.
        known: Vec<String>,
    },
}

impl NotApplied {
    /// Whether the request is refused, unless the rule is in shadow.
    pub fn refuses(&self) -> bool {
        match self {
            NotApplied::Skipped(_) => false,
            NotApplied::Refused(_) | NotApplied::NoLimiter { .. } => true,
        }
    }
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotApplied::Skipped(absent) => write!(f, "left out: {absent}"),
            NotApplied::Refused(absent) => write!(f, "refused: {absent}"),
            NotApplied::NoLimiter { known } => write!(f, "refused: no limiter has that name; known are {known:?}"),
        }
    }
}

/// Entries that a descriptor does not have.
#[derive(Debug, PartialEq, Eq)]
pub enum MissingEntries {
    /// One that the limiter's name is filled with.
    LimiterName(String),
    /// Those that the key lacks.
    Key(Vec<String>),
}

impl fmt::Display for MissingEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MissingEntries::LimiterName(entry) => write!(f, "the entry {entry:?} of its name is missing"),
            MissingEntries::Key(entries) => write!(f, "{entries:?} of its key is missing"),
        }
    }
}
