//! The parts of an explanation.

use std::fmt;

use crate::limiter::Limit;
use crate::plan::CounterName;
use crate::rules::book::{Charge, HoldFor};

/// How the rules of a domain treat one descriptor.
#[derive(Debug)]
pub(super) struct Explanation {
    /// Whether the domain is configured, by rules or settings.
    pub(super) domain_known: bool,
    /// The entries as requested, each value once, and as the domain normalises them.
    pub(super) entries: Vec<ExplainedEntry>,
    /// The keys that no rule of the domain uses and its settings do not list, sorted.
    pub(super) unknown: Vec<UnknownKey>,
    /// Every rule of the domain, in order.
    pub(super) rules: Vec<RuleExplanation>,
}

/// An entry of the request.
#[derive(Debug)]
pub(super) struct ExplainedEntry {
    /// Its name.
    pub(super) entry: String,
    /// Its values, as requested and as normalised. An entry that is named several times has several.
    /// None for a derived entry that is absent.
    pub(super) values: Vec<(String, String)>,
    /// What becomes of it, or where it comes from. Often empty.
    pub(super) note: String,
}

/// A key of the request that no rule of its domain uses and its settings do not list.
#[derive(Debug)]
pub(super) struct UnknownKey {
    /// The key.
    pub(super) key: String,
    /// The similar key that rules use and the request lacks. If there is one, the key is misspelt.
    pub(super) meant: Option<String>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no rule uses {}", self.key)?;
        match &self.meant {
            Some(meant) => write!(f, ", did you mean {meant}?"),
            None => Ok(()),
        }
    }
}

/// How one rule treats a descriptor.
#[derive(Debug)]
pub(super) struct RuleExplanation {
    /// The rule's name.
    pub(super) rule: String,
    /// The entries that do not match; empty when the rule matches.
    pub(super) mismatches: Vec<Mismatch>,
    /// The tests whose literals are compared in another form than they are written in, with both forms.
    pub(super) normalised: Vec<(String, String)>,
    /// The lists that the rule tests entries with: the entry, the list, and whether the list has its value.
    pub(super) lists: Vec<(String, String, bool)>,
    /// The derived entry that is absent, so that the rule refuses although it does not match.
    pub(super) lacking: Option<String>,
    /// The entry that the rule needs and the request repeats, so that the rule refuses.
    pub(super) repeated: Option<String>,
    /// Number of required entries that match.
    pub(super) hits: usize,
    /// Whether an earlier rule ended the walk.
    pub(super) unreached: bool,
    /// In shadow: set on the rule, its domain or the server.
    pub(super) shadow: bool,
    /// In shadow while its domain and the server are enforced. Such a rule does not end the walk.
    pub(super) shadow_only: bool,
    /// The action.
    pub(super) action: ActionExplanation,
}

/// The action of a rule on a descriptor that it matches.
#[derive(Debug)]
pub(super) enum ActionExplanation {
    /// Allows it.
    Allow,
    /// Refuses it.
    Deny,
    /// Applies limiters.
    Apply(Vec<ApplyExplanation>),
}

/// Why a rule does not match.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// The required entry.
    pub(super) entry: String,
    /// The expected value, as compared and as configured.
    pub(super) expected: String,
    /// The value; `None` when the entry is missing.
    pub(super) found: Option<String>,
}

impl Mismatch {
    /// Says why the rule does not match, with the value that came or, for a log, without it.
    pub(super) fn in_words(&self, with_value: bool) -> String {
        let found = match &self.found {
            None => "is missing".to_owned(),
            Some(found) if with_value => format!("is {found:?}"),
            Some(_) => "has another value".to_owned(),
        };
        format!("{} {found}, expected {}", self.entry, self.expected)
    }
}

/// How one `apply` of a rule counts a descriptor.
#[derive(Debug)]
pub(super) struct ApplyExplanation {
    /// The limiter's name as configured.
    pub(super) reference: String,
    /// The limiter that it resolves to.
    pub(super) limiter: Option<String>,
    /// The entries of the key, with their values as they are counted.
    pub(super) key: Vec<(String, Option<String>)>,
    /// The entries whose different values are counted, with what the descriptor has.
    pub(super) of: Vec<(String, Option<String>)>,
    /// Why nothing is counted; `None` when all is.
    pub(super) not_applied: Option<NotApplied>,
    /// The counters that it checks, by their hashed names, with their limits.
    pub(super) counters: Vec<(CounterName, Limit)>,
    /// When the checks are charged.
    pub(super) charge: Charge,
    /// Passes while one unit is left.
    pub(super) overdraw: bool,
    /// For how long a lease can correct the charge.
    pub(super) hold: Option<HoldFor>,
}

/// The effect of an `apply` that cannot count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotApplied {
    /// It is skipped, and the rule's others stay.
    Skipped(MissingEntries),
    /// The request is refused.
    Refused(MissingEntries),
    /// The request is refused, because no limiter has the resulting name.
    NoLimiter {
        /// The names, or the values of the entry, for which there is a limiter.
        known: Vec<String>,
    },
}

impl NotApplied {
    /// Whether the request is refused, unless the rule is in shadow.
    pub(super) fn refuses(&self) -> bool {
        match self {
            NotApplied::Skipped(_) => false,
            NotApplied::Refused(_) | NotApplied::NoLimiter { .. } => true,
        }
    }
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotApplied::Skipped(absent) => write!(f, "skipped: {absent}"),
            NotApplied::Refused(absent) => write!(f, "refused: {absent}"),
            NotApplied::NoLimiter { known } => write!(f, "refused: no limiter has that name; known: {known:?}"),
        }
    }
}

/// Entries that a descriptor does not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MissingEntries {
    /// One whose value is part of the limiter's name.
    LimiterName(String),
    /// Entries of the key.
    Key(Vec<String>),
    /// Entries whose different values are counted.
    Of(Vec<String>),
}

impl fmt::Display for MissingEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MissingEntries::LimiterName(entry) => write!(f, "missing entry of the limiter's name: {entry:?}"),
            MissingEntries::Key(entries) => write!(f, "missing entries of the key: {entries:?}"),
            MissingEntries::Of(entries) => write!(f, "missing entries whose values are counted: {entries:?}"),
        }
    }
}
