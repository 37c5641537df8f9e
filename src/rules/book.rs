//! The rules as configured.

use std::sync::Arc;
use std::time::Duration;

use super::{LookupTable, Matcher, Normaliser, ValueList};
use crate::limiter::{Limiter, Lost, MAX_HOLD};
use crate::plan::Holding;
use crate::secret::Secret;
use crate::settings::Bounds;

/// Everything that decides which limiters apply, as configured.
#[derive(Clone, Debug)]
pub struct RuleBook {
    /// The deployment's secret.
    pub secret: Secret,
    /// The names of the stores, which [`Limiter::store`] indexes.
    pub stores: Vec<String>,
    /// The partitioned stores.
    pub partitioned: Vec<PartitionedStore>,
    /// The limiters; names are unique.
    pub limiters: Vec<Limiter>,
    /// How limiters of distinct values normalise what they count. One that is not listed counts values as they are in the
    /// domain.
    pub values: Vec<LimiterValues>,
    /// The lists that rules name.
    pub lists: Vec<Arc<ValueList>>,
    /// The tables that entries are derived from.
    pub tables: Vec<Arc<LookupTable>>,
    /// The settings of domains. A domain that is not listed has the defaults.
    pub domains: Vec<Domain>,
    /// The rules, in the order of files by name and of positions in a file.
    pub rules: Vec<Rule>,
    /// Counts and reports but never denies, in all domains: the kill switch of the server.
    pub shadow: bool,
    /// The key of the entry that releases a lease (semantics 39).
    pub release_entry: String,
    /// The key of the entry that settles a lease with the hits of its descriptor.
    pub settle_entry: String,
    /// The bounds of a request.
    pub bounds: RequestBounds,
    /// The longest wait of a worker. Buckets of limiters with `wait = true` can owe what drains in it (semantics 46).
    pub max_wait: Duration,
}

impl Default for RuleBook {
    fn default() -> Self {
        Self {
            secret: Secret::development(),
            stores: vec!["memory".to_owned()],
            partitioned: Vec::new(),
            limiters: Vec::new(),
            values: Vec::new(),
            lists: Vec::new(),
            tables: Vec::new(),
            domains: Vec::new(),
            rules: Vec::new(),
            shadow: false,
            release_entry: "release".to_owned(),
            settle_entry: "settle".to_owned(),
            bounds: RequestBounds::default(),
            max_wait: Bounds::default().max_wait,
        }
    }
}

/// A partitioned store, such as Redis Cluster. Counters of one partition are decided together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionedStore {
    /// Its index in [`RuleBook::stores`].
    pub store: u16,
    /// The entry whose value determines the partition. A key without this entry uses its first one by name.
    pub tag: Option<String>,
}

/// The bounds of a request. A request that exceeds them is refused (semantics 28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    /// Maximum descriptors in a request.
    pub descriptors: usize,
    /// Maximum entries in a descriptor.
    pub entries: usize,
    /// Maximum checks of all descriptors of a request together.
    pub checks: usize,
}

impl RequestBounds {
    /// The largest bounds: a plan counts its descriptors and checks in 16 bits, and searches all its checks for a
    /// counter.
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
    /// The entries that are derived from tables. They are never a client's.
    pub derive: Vec<Derive>,
    /// All entries that its clients send, if they are listed. One that no rule uses is then no misspelling.
    pub entries: Option<Vec<String>>,
}

/// An entry that is derived from a table (semantics 59).
#[derive(Clone, Debug)]
pub struct Derive {
    /// The derived entry.
    pub entry: String,
    /// The entry whose value finds a row. It is not derived itself.
    pub from: String,
    /// The table.
    pub table: Arc<LookupTable>,
    /// The column of the value.
    pub column: String,
    /// The value where the table has no row or an empty cell. Without it the entry is absent.
    pub otherwise: Option<String>,
}

/// The verdict for a descriptor that no rule matches (semantics 26).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unmatched {
    /// It passes.
    #[default]
    Allow,
    /// The request is refused and charges nothing.
    Deny,
}

/// A rule of a domain: the descriptors that it matches, and its action.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule's domain.
    pub domain: String,
    /// Its name in refusals, metrics and logs.
    pub name: String,
    /// The required entries, each with a test of its value. If empty, every descriptor matches.
    pub matches: Vec<(String, Matcher)>,
    /// The action.
    pub action: Action,
    /// Ends the walk of a descriptor that the rule matches.
    pub last: bool,
    /// Counts and reports but never denies.
    pub shadow: bool,
    /// The percentage of keys for which the rule is enforced. It is in shadow for the others.
    pub enforce_percent: Option<u8>,
    /// The response to a refused request.
    pub refusal: RefusalText,
    /// What responses show of its checks and of its name.
    pub headers: RuleHeaders,
    /// Does not match where a derived entry of `matches` is absent. Otherwise the rule then refuses, if the others of
    /// `matches` are met.
    pub skip_absent: bool,
}

/// What responses show of a rule to the client (semantics 19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RuleHeaders {
    /// Neither numbers nor names.
    None,
    /// `Retry-After` on refusals.
    RetryAfter,
    /// Everything that the port shows.
    #[default]
    All,
}

/// The action of a rule on a descriptor that it matches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Applies limiters.
    Apply(Vec<Apply>),
    /// Ends the walk, and keeps the checks found before (semantics 25).
    Allow,
    /// Refuses the request, and charges nothing.
    Deny,
}

/// The configured parts of the response to a refused request.
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
    /// The limiter's name as configured, in which `{entry}` is replaced by the entry's value.
    pub limiter: String,
    /// The limiter to apply if no limiter has the resulting name (semantics 26).
    pub otherwise: Option<String>,
    /// The entries whose values identify the counter. If empty, all requests share one counter.
    pub key: Vec<KeyEntry>,
    /// When the check is charged.
    pub charge: Charge,
    /// Passes as long as one whole unit is left, and charges the whole cost (semantics 9).
    pub overdraw: bool,
    /// What to do when an entry of the key or of the limiter's name is missing (semantics 7).
    pub missing: Missing,
    /// Whether a lease can correct what is charged on admission (semantics 37).
    pub hold: Option<HoldFor>,
}

/// For how long a charge can be corrected, and what becomes of one that nobody corrects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldFor {
    /// How long the hold lasts: whole milliseconds, at most [`MAX_HOLD`](crate::limiter::MAX_HOLD).
    pub length: Duration,
    /// What becomes of it at its end.
    pub lost: Lost,
}

impl HoldFor {
    /// What a check has to do with it.
    pub(super) fn holding(self) -> Holding {
        let millis = u32::try_from(self.length.as_millis()).unwrap_or(u32::MAX);
        Holding::Hold { millis: millis.clamp(1, (MAX_HOLD / 1_000) as u32), lost: self.lost }
    }
}

/// The entries whose different values a limiter counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimiterValues {
    /// The limiter's name.
    pub limiter: String,
    /// Those of its entries that have normalisers.
    pub of: Vec<KeyEntry>,
}

/// One entry of a key, or one whose values are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// The entry.
    pub entry: String,
    /// The normalisers of its value. An address without [`Normaliser::Ipv6Prefix`] gets the default one.
    pub normalise: Vec<Normaliser>,
}

/// When a check is charged (semantics 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Charge {
    /// When the whole group is admitted.
    #[default]
    Admitted,
    /// When this check passes, even if another refuses.
    Own,
    /// Regardless of the verdict.
    Always,
}

/// What to do when an entry of a key is missing (semantics 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Missing {
    /// Skip the check, and keep the rule's other checks.
    #[default]
    Skip,
    /// Refuse.
    Deny,
    /// Count it as the empty value.
    Empty,
}
