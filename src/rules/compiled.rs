//! The compiled form of the rules, by which requests are planned.

use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use super::book::{
    Charge, HoldFor, LimiterValues, Missing, PartitionedStore, RefusalText, RequestBounds, RuleHeaders, Unmatched,
};
use super::form::Form;
use super::forms::Forms;
use super::index::Index;
use super::lookup_table::{Column, LookupTable, RowIndex};
use super::matcher::EntryTest;
use super::value_list::ValueList;
use crate::limiter::{Limit, Limiter, Quota};
use crate::plan::Holding;
use crate::secret::{NamePrefix, Partitions, Secret};

/// The compiled rules: immutable, and replaced as a whole.
#[derive(Debug)]
pub struct Rules {
    pub(super) secret: Secret,
    pub(super) stores: Vec<String>,
    pub(super) lease_entries: LeaseEntries,
    pub(super) bounds: RequestBounds,
    /// Never denies: the kill switch.
    pub(super) shadow: bool,
    pub(super) limiters: Vec<Limiter>,
    /// How limiters of distinct values normalise what they count.
    pub(super) values: Vec<LimiterValues>,
    /// The default maximum debt of each limiter's bucket (semantics 9).
    pub(super) debts: Vec<u64>,
    /// The longest wait of a worker, in microseconds.
    pub(super) max_wait: u64,
    pub(super) targets: Vec<LimiterTarget>,
    pub(super) domains: Vec<CompiledDomain>,
    pub(super) by_name: HashMap<String, usize, RandomState>,
    /// The limiters that no rule applies and that workers can ask for by name, with their targets.
    pub(super) direct: HashMap<String, u32, RandomState>,
    pub(super) partitioned: Vec<PartitionedStore>,
    /// The sizes of the lists.
    pub(super) lists: Vec<DataSize>,
    /// The sizes of the tables.
    pub(super) tables: Vec<DataSize>,
    /// Whether responses show less than everything of any rule.
    pub(super) hides_headers: bool,
}

/// The size of a list or a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSize {
    /// Its name.
    pub name: String,
    /// The number of its values or rows.
    pub rows: usize,
    /// The memory that it takes, in bytes.
    pub bytes: usize,
}

impl DataSize {
    /// The size of a list, in the forms of all entries that meet it.
    pub fn of_list(list: &ValueList) -> Self {
        Self { name: list.name().to_owned(), rows: list.len(), bytes: list.bytes() }
    }

    /// The size of what is looked up of a table, for all domains that derive entries from it.
    pub fn of_table(table: &LookupTable) -> Self {
        Self { name: table.name().to_owned(), rows: table.len(), bytes: table.bytes() }
    }
}

/// The keys of the entries that release and settle leases.
#[derive(Debug)]
pub(super) struct LeaseEntries {
    pub(super) release: String,
    pub(super) settle: String,
    /// A bit for each length that one of them has, so that hardly any other key is compared.
    lengths: u64,
}

impl LeaseEntries {
    pub(super) fn new(release: String, settle: String) -> Self {
        let lengths = length_bit(&release) | length_bit(&settle);
        Self { release, settle, lengths }
    }

    /// Whether a key is that of either.
    #[inline]
    pub(super) fn contains(&self, key: &str) -> bool {
        self.lengths & length_bit(key) != 0 && (key == self.release || key == self.settle)
    }
}

#[inline]
fn length_bit(key: &str) -> u64 {
    1 << (key.len() % 64)
}

#[derive(Debug)]
pub(super) struct CompiledDomain {
    pub(super) name: String,
    pub(super) unmatched: Unmatched,
    /// Never denies: set on the domain or the server.
    pub(super) shadow: bool,
    /// The forms of its entries.
    pub(super) forms: Forms,
    /// The entries that it derives from tables.
    pub(super) derived: Vec<DerivedFrom>,
    /// The entries that the configuration lists for its clients.
    pub(super) listed: Vec<String>,
    pub(super) rules: Vec<CompiledRule>,
    pub(super) index: Index,
    /// For each reference to a limiter, the rules that apply it and the indexes of those applies.
    pub(super) references: HashMap<String, Vec<(u32, usize)>, RandomState>,
}

/// The entries that a domain derives from one entry by one table.
#[derive(Debug)]
pub(super) struct DerivedFrom {
    /// The entry whose value finds a row.
    pub(super) from: String,
    /// The name of the table.
    pub(super) table: String,
    pub(super) rows: Arc<RowIndex>,
    pub(super) entries: Vec<DerivedEntry>,
}

/// An entry that is derived.
#[derive(Debug)]
pub(super) struct DerivedEntry {
    pub(super) entry: String,
    /// The values of its column, in the form of the entry.
    pub(super) values: Arc<Column>,
    /// Its value where the table has none.
    pub(super) otherwise: Option<String>,
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) name: String,
    pub(super) matches: Vec<EntryTest>,
    /// Whether it refuses where a derived entry is absent that it names.
    pub(super) needs_derived: bool,
    pub(super) action: CompiledAction,
    pub(super) last: bool,
    /// In shadow: set on the rule, its domain or the server.
    pub(super) shadow: bool,
    /// In shadow on its own, while its domain and the server are enforced.
    pub(super) shadow_only: bool,
    pub(super) rollout: Option<Rollout>,
    pub(super) refusal: RefusalText,
    pub(super) headers: RuleHeaders,
}

/// The share of keys for which a rule is enforced (`enforce_percent`), the same for all limiters of the rule.
#[derive(Debug)]
pub(super) struct Rollout {
    pub(super) percent: u8,
    /// The hash by which a key is chosen. It knows the domain and the entries, and no limiter.
    pub(super) hash: NamePrefix,
    /// The entries that choose: those that the keys of all limiters have, else those of the first key.
    pub(super) key: Vec<CompiledKeyEntry>,
}

#[derive(Debug)]
pub(super) enum CompiledAction {
    Apply(Vec<CompiledApply>),
    Allow,
    Deny,
}

#[derive(Debug)]
pub(super) struct CompiledApply {
    pub(super) domain: String,
    pub(super) reference: String,
    pub(super) template: LimiterTemplate,
    /// Sorted by name, so that two rules that list the entries in different orders share a counter.
    pub(super) key: Vec<CompiledKeyEntry>,
    /// The entries whose different values its limiters count, each once.
    pub(super) of: Vec<String>,
    /// In a partitioned store, the index of the key's entry that determines the partition.
    pub(super) partitions: Option<(Partitions, usize)>,
    pub(super) charge: Charge,
    pub(super) overdraw: bool,
    pub(super) missing: Missing,
    pub(super) hold: Option<HoldFor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CompiledKeyEntry {
    pub(super) entry: String,
    /// The form of its value in this key, besides the one in its domain.
    pub(super) form: Form,
}

/// The limiters that a reference can resolve to, as indexes into [`Rules::targets`].
#[derive(Debug)]
pub(super) enum LimiterTemplate {
    /// A name without placeholders.
    Fixed(u32),
    /// One placeholder: the limiter by the entry's value.
    One { entry: String, by_value: HashMap<String, u32, RandomState>, otherwise: Option<u32> },
    /// Several placeholders: the limiter by the whole name.
    Many { parts: Vec<TemplatePart>, by_name: HashMap<String, u32, RandomState>, otherwise: Option<u32> },
}

impl LimiterTemplate {
    /// The entries that fill the name.
    pub(super) fn entries(&self) -> impl Iterator<Item = &str> {
        let (one, parts) = match self {
            LimiterTemplate::Fixed(_) => (None, [].as_slice()),
            LimiterTemplate::One { entry, .. } => (Some(entry.as_str()), [].as_slice()),
            LimiterTemplate::Many { parts, .. } => (None, parts.as_slice()),
        };
        let several = parts.iter().filter_map(|part| match part {
            TemplatePart::Entry(entry) => Some(entry.as_str()),
            TemplatePart::Text(_) => None,
        });
        one.into_iter().chain(several)
    }

    /// The target where no limiter has the resulting name.
    #[cfg(feature = "server")]
    pub(super) fn otherwise(&self) -> Option<u32> {
        match self {
            LimiterTemplate::Fixed(_) => None,
            LimiterTemplate::One { otherwise, .. } | LimiterTemplate::Many { otherwise, .. } => *otherwise,
        }
    }

    /// Every target that it can resolve to, in order.
    pub(super) fn targets(&self) -> Vec<u32> {
        let mut all: Vec<u32> = match self {
            LimiterTemplate::Fixed(target) => vec![*target],
            LimiterTemplate::One { by_value: by, otherwise, .. }
            | LimiterTemplate::Many { by_name: by, otherwise, .. } => by.values().chain(otherwise).copied().collect(),
        };
        all.sort_unstable();
        all
    }
}

/// A part of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TemplatePart {
    Text(String),
    Entry(String),
}

/// One limiter as resolved from one reference.
#[derive(Debug)]
pub(super) struct LimiterTarget {
    /// The indexes of its domain and of its rule in the domain. `None` if no rule applies it.
    pub(super) at: Option<(usize, u32)>,
    pub(super) limiter: u32,
    /// The value of the placeholder.
    pub(super) tier: Option<String>,
    pub(super) quota: Option<QuotaTarget>,
    pub(super) slots: Option<(NamePrefix, Limit)>,
    /// The hash of its reference in a lease.
    pub(super) lease_tag: u32,
}

#[derive(Debug)]
pub(super) struct QuotaTarget {
    pub(super) prefix: NamePrefix,
    pub(super) limit: Limit,
    /// The entries whose different values are counted, sorted by name. `None` if the quota counts units.
    pub(super) of: Option<Box<[CompiledKeyEntry]>>,
    /// What a check that holds nothing itself has to do with holds.
    pub(super) holding: Holding,
}

impl Rules {
    /// The names of the stores, which checks index.
    pub fn stores(&self) -> &[String] {
        &self.stores
    }

    /// The sizes of the lists.
    pub fn lists(&self) -> &[DataSize] {
        &self.lists
    }

    /// The sizes of the tables.
    pub fn tables(&self) -> &[DataSize] {
        &self.tables
    }

    /// The bounds of a request.
    pub(crate) fn bounds(&self) -> RequestBounds {
        self.bounds
    }

    /// The deployment's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The limit of a quota of this limiter.
    pub(super) fn quota_limit(&self, limiter: usize, quota: &Quota) -> Limit {
        quota_limit(quota, &self.limiters[limiter], self.debts[limiter], self.max_wait)
    }

    /// What a check of a target that holds nothing itself has to do with holds. Workers may hold what they ask for by the
    /// name of a limiter.
    pub(super) fn holding(&self, target: u32) -> Holding {
        let target = &self.targets[target as usize];
        let direct = if target.at.is_none() { Holding::Released } else { Holding::None };
        target.quota.as_ref().map_or(direct, |quota| quota.holding)
    }

    /// The limiter of a target.
    pub(crate) fn limiter(&self, target: u32) -> &Limiter {
        &self.limiters[self.targets[target as usize].limiter as usize]
    }

    /// The hash of a target's reference in a lease.
    pub(crate) fn lease_tag(&self, target: u32) -> u32 {
        self.targets[target as usize].lease_tag
    }

    /// The value that filled a target's placeholder.
    pub(crate) fn tier(&self, target: u32) -> Option<&str> {
        self.targets[target as usize].tier.as_deref()
    }

    /// The name of every domain in order, with the labels of its rules.
    pub(crate) fn domain_names(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = RuleLabel<'_>>)> {
        self.domains.iter().map(|domain| (domain.name.as_str(), domain.rules.iter().map(RuleLabel::of)))
    }

    /// Every target in order: the indexes of its domain and rule, and the limiter's name. A limiter that no rule applies
    /// has neither.
    pub(crate) fn target_names(&self) -> impl Iterator<Item = (Option<(usize, u32)>, &str)> {
        let name = |target: &LimiterTarget| self.limiters[target.limiter as usize].name.as_str();
        self.targets.iter().map(move |target| (target.at, name(target)))
    }

    /// Whether a rule of a domain matches on an entry or counts by it, or by what is derived from it.
    pub(crate) fn needs(&self, domain: &str, entry: &str) -> bool {
        let domain = self.by_name.get(domain).map(|&domain| &self.domains[domain]);
        domain.is_some_and(|domain| {
            domain.rules.iter().any(|rule| rule.entries().any(|needed| domain.sent(needed) == entry))
        })
    }

    /// The name of the domain with this index.
    pub(crate) fn domain_name(&self, domain: usize) -> Option<&str> {
        Some(&self.domains.get(domain)?.name)
    }

    /// The name of a domain's rule.
    pub(crate) fn rule_name(&self, domain: usize, rule: u32) -> Option<&str> {
        Some(&self.domains.get(domain)?.rules.get(rule as usize)?.name)
    }

    /// The response to requests that a rule refuses.
    pub(crate) fn refusal_text(&self, domain: usize, rule: u32) -> Option<&RefusalText> {
        Some(&self.domains.get(domain)?.rules.get(rule as usize)?.refusal)
    }

    /// Whether responses show less than everything of any rule.
    pub(crate) fn hides_headers(&self) -> bool {
        self.hides_headers
    }

    /// What responses show of a rule.
    pub(crate) fn rule_headers(&self, domain: usize, rule: u32) -> RuleHeaders {
        let rule = self.domains.get(domain).and_then(|domain| domain.rules.get(rule as usize));
        rule.map_or_else(RuleHeaders::default, |rule| rule.headers)
    }
}

/// The limit of a quota of a limiter. The bucket of one that grants ahead can owe what drains in the longest wait, in
/// the plan of every caller: it decides by what it can owe.
pub(super) fn quota_limit(quota: &Quota, limiter: &Limiter, debt: u64, max_wait: u64) -> Limit {
    match quota.limit(debt) {
        Limit::TokenBucket(bucket) if limiter.workers.wait => Limit::TokenBucket(bucket.owing(max_wait)),
        limit => limit,
    }
}

/// The label of a rule in metrics and logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleLabel<'r> {
    pub(crate) name: &'r str,
    /// Whether it enforces anything.
    pub(crate) enforced: bool,
    /// Whether anything of it is in shadow.
    pub(crate) shadow: bool,
}

impl<'r> RuleLabel<'r> {
    fn of(rule: &'r CompiledRule) -> Self {
        let percent = if rule.shadow { 0 } else { rule.rollout.as_ref().map_or(100, |rollout| rollout.percent) };
        Self { name: &rule.name, enforced: percent > 0, shadow: percent < 100 }
    }
}

/// Splits `api_{tier}` into its parts. An unclosed brace is text.
pub(super) fn template_parts(reference: &str) -> Vec<TemplatePart> {
    let mut parts = Vec::new();
    let mut rest = reference;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((entry, after)) = after.split_once('}') else { break };
        if !before.is_empty() {
            parts.push(TemplatePart::Text(before.to_owned()));
        }
        parts.push(TemplatePart::Entry(entry.to_owned()));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Text(rest.to_owned()));
    }
    parts
}

/// The part of a counter's name that is the same for all requests: up to the value of the key's first entry.
pub(super) fn name_prefix(
    secret: &Secret,
    domain: &str,
    reference: &str,
    kind: &str,
    first: Option<&str>,
    partitioned: bool,
) -> NamePrefix {
    let mut prefix = secret.counters(domain, reference, kind);
    if partitioned {
        prefix = prefix.partitioned();
    }
    if let Some(first) = first {
        prefix.text(first);
    }
    prefix
}
