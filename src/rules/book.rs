//! The rules as the operator wrote them.

use super::{Matcher, Normaliser};
use crate::limiter::Limiter;
use crate::secret::Secret;

/// Everything that decides which limiters apply, as the operator wrote it.
#[derive(Clone, Debug)]
pub struct RuleBook {
    /// The deployment's secret.
    pub secret: Secret,
    /// The names of the stores, in the order that [`Limiter::store`] counts them.
    pub stores: Vec<String>,
    /// The partitioned stores.
    pub partitioned: Vec<PartitionedStore>,
    /// The limiters, each name once.
    pub limiters: Vec<Limiter>,
    /// Settings of domains. A domain without any has the defaults.
    pub domains: Vec<Domain>,
    /// The rules: files in name order, then place in the file.
    pub rules: Vec<Rule>,
    /// Counts and reports but never denies: the kill switch of the whole server.
    pub shadow: bool,
    /// The entry whose only presence gives a lease back (semantics 24).
    pub release_entry: String,
    /// The bounds of a request.
    pub bounds: RequestBounds,
}

impl Default for RuleBook {
    fn default() -> Self {
        Self {
            secret: Secret::development(),
            stores: vec!["memory".to_owned()],
            partitioned: Vec::new(),
            limiters: Vec::new(),
            domains: Vec::new(),
            rules: Vec::new(),
            shadow: false,
            release_entry: "release".to_owned(),
            bounds: RequestBounds::default(),
        }
    }
}

/// A partitioned store: Redis Cluster. Counters of one partition are decided together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionedStore {
    /// Its index in [`RuleBook::stores`].
    pub store: u16,
    /// The entry whose value determines the partition. A key without it uses its first entry by name.
    pub tag: Option<String>,
}

/// The bounds of a request; a request beyond them is refused (semantics 28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    /// Descriptors in a request.
    pub descriptors: usize,
    /// Entries in a descriptor.
    pub entries: usize,
    /// Checks that all descriptors of a request make together.
    pub checks: usize,
}

impl RequestBounds {
    /// The most that bounds can be set to: a plan counts its descriptors and checks in 16 bits, and looks for a counter
    /// among the checks it has.
    pub const MAX: RequestBounds = RequestBounds { descriptors: 1_000, entries: 1_000, checks: 4_096 };

    pub(super) fn clamped(self) -> Self {
        Self {
            descriptors: self.descriptors.min(Self::MAX.descriptors),
            entries: self.entries.min(Self::MAX.entries),
            checks: self.checks.min(Self::MAX.checks),
        }
    }
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self { descriptors: 100, entries: 64, checks: 256 }
    }
}

/// The settings of one domain.
#[derive(Clone, Debug, Default)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// The verdict for a descriptor that no rule matches.
    pub unmatched: Unmatched,
    /// Counts and reports but never denies.
    pub shadow: bool,
    /// The normalisers of entries, applied before they are matched and counted.
    pub normalise: Vec<(String, Vec<Normaliser>)>,
    /// Entries that hold addresses, in addition to `remote_address`.
    pub addresses: Vec<String>,
}

/// The verdict for a descriptor that no rule matches (semantics 26).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// It passes.
    #[default]
    Allow,
    /// The request is refused and charges nothing.
    Deny,
}

/// A rule of a domain: the descriptors it matches and its action.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The domain it stands in.
    pub domain: String,
    /// Its name in refusals, metrics and logs.
    pub name: String,
    /// The entries that must be there, each with its test. None: every descriptor matches.
    pub matches: Vec<(String, Matcher)>,
    /// What it does.
    pub action: Action,
    /// Ends the walk of a descriptor that it matches.
    pub last: bool,
    /// Counts and reports but never denies.
    pub shadow: bool,
    /// The percentage of keys for which it is enforced; it is in shadow for the others.
    pub enforce_percent: Option<u8>,
    /// The response of its refusals.
    pub refusal: RefusalText,
}

/// What a rule does with a descriptor that it matches.
#[derive(Clone, Debug)]
pub enum Action {
    /// Applies limiters.
    Apply(Vec<Apply>),
    /// Ends the walk; the checks found before stay (semantics 25).
    Allow,
    /// Refuses the request; nothing is charged.
    Deny,
}

/// The response of a refusal, as far as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusalText {
    /// The HTTP status; 429 if unset.
    pub status: Option<u16>,
    /// The body.
    pub body: Option<String>,
    /// The media type of the body; `text/plain` if unset.
    pub content_type: Option<String>,
}

/// One limiter applied by a rule.
#[derive(Clone, Debug)]
pub struct Apply {
    /// The limiter's name, as written: it may hold `{entry}`, filled from the descriptor.
    pub limiter: String,
    /// The limiter for a name, once filled, that no limiter has (semantics 26).
    pub otherwise: Option<String>,
    /// The entries whose values identify the counter. None: one counter for all.
    pub key: Vec<KeyEntry>,
    /// When it is charged.
    pub charge: Charge,
    /// Passes as long as one whole unit is left, and charges the whole cost (semantics 9).
    pub overdraw: bool,
    /// What to do when an entry of the key, or of the limiter's name, is not there (semantics 7).
    pub missing: Missing,
}

/// One entry of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The entry.
    pub entry: String,
    /// The normalisers of its value. An address without an `Ipv6Prefix` gets the default one.
    pub normalise: Vec<Normaliser>,
}

/// When a check is charged (semantics 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Charge {
    /// When the whole group is admitted.
    #[default]
    Admitted,
    /// When this check passes, even if another refuses.
    Own,
    /// Whatever the verdict.
    Always,
}

/// What to do when an entry of a key is not there (semantics 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Missing {
    /// Leave the check out; the rule's others stay.
    #[default]
    Skip,
    /// Refuse.
    Deny,
    /// Count it as the empty value.
    Empty,
}
