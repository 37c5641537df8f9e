//! Compiles a [`RuleBook`] into [`Rules`].

use std::time::Duration;

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use super::book::{
    Action, Apply, Charge, Derive, Domain, KeyEntry, LimiterValues, PartitionedStore, Rule, RuleBook, RuleHeaders,
};
use super::compiled::{
    CompiledAction, CompiledApply, CompiledDomain, CompiledKeyEntry, CompiledRule, DataSize, DerivedEntry, DerivedFrom,
    LeaseEntries, LimiterTarget, LimiterTemplate, QuotaTarget, Rollout, Rules, TemplatePart, name_prefix, quota_limit,
    template_parts,
};
use super::form::Form;
use super::forms::Forms;
use super::index::Index;
use super::matcher::EntryTest;
use super::{DEFAULT_IPV6_PREFIX, Matcher, NeverMet, Normaliser};
use crate::limiter::{Algorithm, Limit, Lost, Quota};
use crate::plan::Holding;
use crate::secret::{Partitions, Secret};

/// A fault of a [`RuleBook`]. Configuration reports these earlier, with file and line; a program that builds its own
/// book gets them here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Two limiters have the same name.
    #[error("limiter {0:?} is defined twice")]
    Twice(String),
    /// A limiter counts nothing.
    #[error("limiter {0:?} has neither a quota nor slots")]
    EmptyLimiter(String),
    /// A limiter names a store that does not exist.
    #[error("limiter {0:?} uses a store that does not exist")]
    UnknownStore(String),
    /// A rule applies a limiter that does not exist, or a template that matches no limiter.
    #[error("rule {rule:?} applies {limiter:?}, but no limiter has that name")]
    UnknownLimiter {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// Slots are charged on a refusal, or overdrawn. Refused requests would never release them (semantics 9).
    #[error("rule {rule:?} applies {limiter:?}, which holds slots: charge must be \"admitted\" and overdraw off")]
    ChargedSlot {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// An exact log is overdrawn. It stores no more grants than its limit, so overdrawn units would be lost
    /// (semantics 12).
    #[error("rule {rule:?} applies {limiter:?}, which is an exact sliding_window: overdraw must be off")]
    OverdrawnLog {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// What is charged to slots is held by their lease, and there is nothing else to hold (semantics 37).
    #[error("rule {rule:?} holds what it charges to {limiter:?}, which has only slots: those are held by their lease")]
    HeldSlots {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// Distinct values are charged on a refusal: beyond the limit they could only push out others (semantics 57).
    #[error("rule {rule:?} applies {limiter:?}, which counts distinct values: charge must be \"admitted\" or \"own\"")]
    ChargedValues {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// Distinct values are overdrawn or held, which only units can be (semantics 57).
    #[error(
        "rule {rule:?} applies {limiter:?}, which counts distinct values: overdraw must be off, and nothing can be held"
    )]
    OverdrawnValues {
        /// The rule.
        rule: String,
        /// The reference as configured.
        limiter: String,
    },
    /// A derived entry is derived from another one.
    #[error("domain {domain:?} derives {entry:?} from {from:?}, which is derived itself")]
    DerivedFromDerived {
        /// The domain.
        domain: String,
        /// The derived entry.
        entry: String,
        /// The entry that it is derived from.
        from: String,
    },
    /// A derived entry is derived twice.
    #[error("domain {domain:?} derives {entry:?} twice")]
    DerivedTwice {
        /// The domain.
        domain: String,
        /// The derived entry.
        entry: String,
    },
    /// A table has no such column.
    #[error("table {table:?} has no column {column:?}")]
    NoColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// A row of a table cannot be found.
    #[error("table {table:?}, line {line}, {fault}")]
    Row {
        /// The table.
        table: String,
        /// The line of the row.
        line: u32,
        /// A sentence about it without a subject.
        fault: String,
    },
    /// A rule matches an entry by a literal that its values never are, because they are normalised (semantics 27).
    #[error("rule {rule:?} matches {entry:?} by a literal {literal}")]
    NeverMet {
        /// The rule.
        rule: String,
        /// The entry.
        entry: String,
        /// The literal.
        literal: NeverMet,
    },
}

impl Rules {
    /// Compiles a book.
    ///
    /// # Errors
    ///
    /// Every fault of the book.
    pub fn compile(book: RuleBook) -> Result<Self, Vec<CompileError>> {
        Compiler::new(book).compile()
    }
}

/// Whether some values of the placeholders in `parts` produce `name`.
fn can_produce(parts: &[TemplatePart], name: &str) -> bool {
    match parts {
        [] => name.is_empty(),
        [TemplatePart::Text(text), rest @ ..] => {
            name.strip_prefix(text.as_str()).is_some_and(|name| can_produce(rest, name))
        }
        [TemplatePart::Entry(_), rest @ ..] => {
            (0..=name.len()).filter(|&end| name.is_char_boundary(end)).any(|end| can_produce(rest, &name[end..]))
        }
    }
}

/// The part of a name that fills the only placeholder of a template.
fn filled<'n>(parts: &[TemplatePart], name: &'n str) -> &'n str {
    let text = |part: Option<&TemplatePart>| match part {
        Some(TemplatePart::Text(text)) => text.len(),
        Some(TemplatePart::Entry(_)) | None => 0,
    };
    let end = if parts.len() > 1 { text(parts.last()) } else { 0 };
    &name[text(parts.first())..name.len() - end]
}

/// The names that the placeholders in `parts` produce, by values in their forms, where they would produce `name` by
/// values as written. A name with several placeholders can be produced in several ways.
fn produced(parts: &[TemplatePart], name: &str, forms: &Forms) -> Vec<String> {
    let any_text = |part: &TemplatePart| matches!(part, TemplatePart::Entry(entry) if forms.get(entry).is_some());
    if !parts.iter().any(any_text) {
        return vec![name.to_owned()];
    }
    // The names so far, by the length of what they are made of.
    let mut found: Vec<(usize, String)> = vec![(0, String::new())];
    for part in parts {
        let mut longer: Vec<(usize, String)> = Vec::new();
        for (start, made) in &found {
            match part {
                TemplatePart::Text(text) if name[*start..].starts_with(text.as_str()) => {
                    longer.push((start + text.len(), format!("{made}{text}")));
                }
                TemplatePart::Text(_) => {}
                TemplatePart::Entry(entry) => {
                    let ends = (*start..=name.len()).filter(|&end| name.is_char_boundary(end));
                    longer.extend(ends.map(|end| {
                        let value = forms.value(entry, name[*start..end].into());
                        (end, format!("{made}{value}"))
                    }));
                }
            }
        }
        // Many ways lead to few names.
        longer.sort_unstable();
        longer.dedup();
        found = longer;
    }
    found.into_iter().filter(|(end, _)| *end == name.len()).map(|(_, made)| made).collect()
}

/// A key in the order of its entries, with the form of each value: an address is cut unless the key says how.
pub(super) fn compiled_key(key: impl IntoIterator<Item = KeyEntry>, forms: &Forms) -> Vec<CompiledKeyEntry> {
    let compiled = key.into_iter().map(|part| {
        let mut normalise = part.normalise;
        let cut = normalise.iter().any(|normaliser| matches!(normaliser, Normaliser::Ipv6Prefix(_)));
        if !cut && forms.get(&part.entry).is_some_and(Form::is_address) {
            normalise.push(Normaliser::Ipv6Prefix(DEFAULT_IPV6_PREFIX));
        }
        CompiledKeyEntry { entry: part.entry, form: Form::by(normalise) }
    });
    let mut key: Vec<CompiledKeyEntry> = compiled.collect();
    key.sort_by(|a, b| a.entry.cmp(&b.entry));
    key
}

/// The entries whose different values a quota counts, with their forms. `None` if it counts units.
pub(super) fn counted_values(
    quota: &Quota,
    limiter: &str,
    normalised: &[LimiterValues],
    forms: &Forms,
) -> Option<Box<[CompiledKeyEntry]>> {
    let Algorithm::Distinct { of } = &quota.algorithm else { return None };
    let written = normalised.iter().find(|values| values.limiter == limiter).map_or(&[][..], |values| &values.of);
    let entry = |entry: &String| {
        let written = written.iter().find(|part| part.entry == *entry).cloned();
        written.unwrap_or_else(|| KeyEntry { entry: entry.clone(), normalise: Vec::new() })
    };
    Some(compiled_key(of.iter().map(entry), forms).into())
}

/// The partitions of counters with this key, and the index of the entry that determines them.
pub(super) fn partitions(
    secret: &Secret,
    partitioned: &[PartitionedStore],
    domain: &str,
    key: &[CompiledKeyEntry],
) -> Option<(Partitions, usize)> {
    let tag = partitioned.iter().find_map(|partitioned| partitioned.tag.as_deref());
    let tagged = key.iter().position(|part| Some(part.entry.as_str()) == tag).unwrap_or(0);
    key.get(tagged).map(|part| (secret.partitions(domain, &part.entry), tagged))
}

/// For each reference to a limiter, the rules that apply it and the indexes of those applies.
fn references(rules: &[CompiledRule]) -> HashMap<String, Vec<(u32, usize)>, RandomState> {
    let mut references: HashMap<String, Vec<(u32, usize)>, RandomState> = HashMap::default();
    for (number, rule) in rules.iter().enumerate() {
        let CompiledAction::Apply(applies) = &rule.action else { continue };
        for (index, apply) in applies.iter().enumerate() {
            let number = u32::try_from(number).expect("rules are fewer than 2^32");
            references.entry(apply.reference.clone()).or_default().push((number, index));
        }
    }
    references
}

/// Microseconds of a duration, at most those that 32 bits count: the longest wait of a check.
fn micros(duration: Duration) -> u64 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).into()
}

struct Compiler {
    book: RuleBook,
    errors: Vec<CompileError>,
    targets: Vec<LimiterTarget>,
    debts: Vec<u64>,
    /// What the checks of each limiter have to do with holds.
    holdings: Vec<Holding>,
    /// The drain that all buckets of a reference in a domain have: they share counters (semantics 20).
    drains: HashMap<(String, String), u64, RandomState>,
    limiter_by_name: HashMap<String, u32, RandomState>,
    /// The indexes of the domain and the rule being compiled.
    at: (usize, u32),
    /// The lists that entries of domains meet, each with its number in its domain.
    met_lists: HashMap<(usize, String, String), u32, RandomState>,
}

impl Compiler {
    fn new(book: RuleBook) -> Self {
        let mut errors = Vec::new();
        let mut limiter_by_name = HashMap::default();
        for (number, limiter) in book.limiters.iter().enumerate() {
            let number = u32::try_from(number).expect("limiters are fewer than 2^32");
            if limiter_by_name.insert(limiter.name.clone(), number).is_some() {
                errors.push(CompileError::Twice(limiter.name.clone()));
            }
            if limiter.quota.is_none() && limiter.concurrency.is_none() {
                errors.push(CompileError::EmptyLimiter(limiter.name.clone()));
            }
            if usize::from(limiter.store) >= book.stores.len() {
                errors.push(CompileError::UnknownStore(limiter.name.clone()));
            }
        }
        let (debts, holdings) = (vec![0; book.limiters.len()], vec![Holding::None; book.limiters.len()]);
        let drains = HashMap::default();
        Self {
            book,
            errors,
            targets: Vec::new(),
            debts,
            holdings,
            drains,
            limiter_by_name,
            at: (0, 0),
            met_lists: HashMap::default(),
        }
    }

    fn compile(mut self) -> Result<Rules, Vec<CompileError>> {
        let rules = std::mem::take(&mut self.book.rules);
        self.set_debts(&rules);
        let rules_reach = self.reached_by(&rules);
        self.set_drains(&rules);
        let mut settings = std::mem::take(&mut self.book.domains);
        let mut names: Vec<String> = settings.iter().map(|domain| domain.name.clone()).collect();
        for rule in &rules {
            if !names.contains(&rule.domain) {
                names.push(rule.domain.clone());
                settings.push(Domain { name: rule.domain.clone(), ..Domain::default() });
            }
        }
        let by_name: HashMap<String, usize, RandomState> =
            names.into_iter().enumerate().map(|(number, name)| (name, number)).collect();
        let forms: Vec<Forms> = settings.iter().map(Forms::of).collect();
        let mut compiled: Vec<Vec<CompiledRule>> = settings.iter().map(|_| Vec::new()).collect();
        for rule in rules {
            let domain = by_name[&rule.domain];
            self.at = (domain, u32::try_from(compiled[domain].len()).expect("rules are fewer than 2^32"));
            let rule = self.rule(rule, &settings[domain], &forms[domain]);
            compiled[domain].push(rule);
        }
        let direct = self.direct(&rules_reach);
        let derived: Vec<Vec<DerivedFrom>> =
            settings.iter().zip(&forms).map(|(domain, forms)| self.derived(domain, forms)).collect();
        let domains = settings.into_iter().zip(forms).zip(derived).zip(compiled);
        let domains = domains.map(|(((domain, forms), derived), rules)| CompiledDomain {
            derived,
            references: references(&rules),
            name: domain.name,
            unmatched: domain.unmatched,
            shadow: domain.shadow || self.book.shadow,
            forms,
            listed: domain.entries.unwrap_or_default(),
            index: Index::new(rules.iter().map(|rule| rule.matches.as_slice())),
            rules,
        });
        let domains: Vec<CompiledDomain> = domains.collect();
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        Ok(Rules {
            secret: self.book.secret,
            stores: self.book.stores,
            lease_entries: LeaseEntries::new(self.book.release_entry, self.book.settle_entry),
            bounds: self.book.bounds.clamped(),
            shadow: self.book.shadow,
            limiters: self.book.limiters,
            values: self.book.values,
            debts: self.debts,
            max_wait: micros(self.book.max_wait),
            targets: self.targets,
            direct,
            partitioned: self.book.partitioned,
            lists: self.book.lists.iter().map(|list| DataSize::of_list(list)).collect(),
            tables: self.book.tables.iter().map(|table| DataSize::of_table(table)).collect(),
            hides_headers: domains.iter().flat_map(|domain| &domain.rules).any(|rule| rule.headers != RuleHeaders::All),
            domains,
            by_name,
        })
    }

    /// Sets the default maximum debt of each bucket: none, its limit if a rule always charges it, unlimited if a rule
    /// overdraws or holds it (semantics 9 and 39). Sets which limiters have holds.
    fn set_debts(&mut self, rules: &[Rule]) {
        for rule in rules {
            let Action::Apply(applies) = &rule.action else { continue };
            for apply in applies {
                for number in self.reached(apply) {
                    let limiter = &self.book.limiters[number];
                    if let Some(hold) = apply.hold {
                        let release = hold.lost == Lost::Release;
                        let holding = if release { Holding::Released } else { Holding::Kept };
                        self.holdings[number] = self.holdings[number].merge(holding);
                    }
                    let debt = match (apply.overdraw || apply.hold.is_some(), apply.charge) {
                        (true, _) => u64::MAX,
                        (false, Charge::Always) => limiter.quota.as_ref().map_or(0, |quota| u64::from(quota.limit)),
                        (false, Charge::Admitted | Charge::Own) => 0,
                    };
                    self.debts[number] = self.debts[number].max(debt);
                }
            }
        }
    }

    /// The limit of a quota of this limiter.
    fn quota_limit(&self, limiter: usize, quota: &Quota) -> Limit {
        quota_limit(quota, &self.book.limiters[limiter], self.debts[limiter], micros(self.book.max_wait))
    }

    /// Whether any rule applies each limiter, by index.
    fn reached_by(&self, rules: &[Rule]) -> Vec<bool> {
        let mut reached = vec![false; self.book.limiters.len()];
        for rule in rules {
            let Action::Apply(applies) = &rule.action else { continue };
            applies.iter().flat_map(|apply| self.reached(apply)).for_each(|number| reached[number] = true);
        }
        reached
    }

    /// The targets of the limiters that no rule applies and that workers can ask for by name. Their names and limits are
    /// those of each ask.
    fn direct(&mut self, reached: &[bool]) -> HashMap<String, u32, RandomState> {
        let mut direct = HashMap::default();
        for (number, limiter) in self.book.limiters.iter().enumerate() {
            if limiter.workers.direct && !reached[number] {
                let limiter_number = u32::try_from(number).expect("limiters are fewer than 2^32");
                let target = LimiterTarget {
                    at: None,
                    limiter: limiter_number,
                    tier: None,
                    quota: None,
                    slots: None,
                    lease_tag: self.book.secret.limiter_tag(&limiter.name),
                };
                self.targets.push(target);
                let target = u32::try_from(self.targets.len() - 1).expect("targets are fewer than 2^32");
                direct.insert(limiter.name.clone(), target);
            }
        }
        direct
    }

    /// The indexes of the limiters that a reference can resolve to.
    fn reached(&self, apply: &Apply) -> Vec<usize> {
        let parts = template_parts(&apply.limiter);
        let named = |name: &String| self.limiter_by_name.get(name).map(|number| *number as usize);
        match parts.as_slice() {
            [TemplatePart::Text(name)] => named(name).into_iter().collect(),
            parts => {
                let all = self.book.limiters.iter().enumerate();
                let produced = all.filter(|(_, limiter)| can_produce(parts, &limiter.name)).map(|(number, _)| number);
                produced.chain(apply.otherwise.as_ref().and_then(named)).collect()
            }
        }
    }

    /// Sets the drain of each reference: the least common multiple of those of its buckets.
    fn set_drains(&mut self, rules: &[Rule]) {
        for rule in rules {
            let Action::Apply(applies) = &rule.action else { continue };
            for apply in applies {
                let reference = (rule.domain.clone(), apply.limiter.clone());
                for number in self.reached(apply) {
                    let limiter = &self.book.limiters[number];
                    let limit = limiter.quota.as_ref().map(|quota| self.quota_limit(number, quota));
                    let Some(Limit::TokenBucket(bucket)) = limit else { continue };
                    let drain = self.drains.entry(reference.clone()).or_insert(1);
                    *drain = bucket.common_drain(*drain).unwrap_or(*drain);
                }
            }
        }
    }

    fn rule(&mut self, rule: Rule, domain: &Domain, forms: &Forms) -> CompiledRule {
        let action = match rule.action {
            Action::Allow => CompiledAction::Allow,
            Action::Deny => CompiledAction::Deny,
            Action::Apply(applies) => CompiledAction::Apply(
                applies.into_iter().filter_map(|apply| self.apply(apply, &rule.name, domain, forms)).collect(),
            ),
        };
        let name = rule.name.as_str();
        let mut matches: Vec<EntryTest> =
            rule.matches.into_iter().filter_map(|(entry, test)| self.required(entry, test, name, forms)).collect();
        for test in matches.iter_mut().filter(|test| !rule.skip_absent && !test.absent) {
            test.derived = domain.derive.iter().any(|derive| derive.entry == test.entry);
        }
        CompiledRule {
            needs_derived: matches.iter().any(|test| test.derived),
            matches,
            name: rule.name,
            rollout: rule.enforce_percent.map(|percent| self.rollout(percent, &action, domain)),
            action,
            last: rule.last,
            shadow: rule.shadow || domain.shadow || self.book.shadow,
            shadow_only: rule.shadow && !domain.shadow && !self.book.shadow,
            refusal: rule.refusal,
            headers: rule.headers,
        }
    }

    /// The entries that a domain derives, together where one row gives several.
    fn derived(&mut self, domain: &Domain, forms: &Forms) -> Vec<DerivedFrom> {
        let mut derived: Vec<DerivedFrom> = Vec::new();
        let any = Form::default();
        for (number, Derive { entry, from, table, column, otherwise }) in domain.derive.iter().enumerate() {
            let (domain_name, table_name) = (|| domain.name.clone(), || table.name().to_owned());
            if domain.derive.iter().any(|other| other.entry == *from) {
                let (domain, entry, from) = (domain_name(), entry.clone(), from.clone());
                self.errors.push(CompileError::DerivedFromDerived { domain, entry, from });
            }
            if domain.derive[..number].iter().any(|other| other.entry == *entry) {
                self.errors.push(CompileError::DerivedTwice { domain: domain_name(), entry: entry.clone() });
            }
            let Some(column) = table.column(column) else {
                self.errors.push(CompileError::NoColumn { table: table_name(), column: column.clone() });
                continue;
            };
            let rows = match table.rows(forms.get(from).unwrap_or(&any)) {
                Ok(rows) => rows,
                Err(faults) => {
                    let fault = |(line, fault): &(u32, String)| CompileError::Row {
                        table: table_name(),
                        line: *line,
                        fault: fault.clone(),
                    };
                    self.errors.extend(faults.first.iter().map(fault));
                    continue;
                }
            };
            let derived_entry = DerivedEntry {
                entry: entry.clone(),
                values: table.values(column, forms.get(entry).unwrap_or(&any)),
                otherwise: otherwise.as_ref().map(|value| forms.value(entry, value.as_str().into()).into_owned()),
            };
            match derived.iter_mut().find(|known| known.from == *from && known.table == table.name()) {
                Some(known) => known.entries.push(derived_entry),
                None => derived.push(DerivedFrom {
                    from: from.clone(),
                    table: table_name(),
                    rows,
                    entries: vec![derived_entry],
                }),
            }
        }
        derived
    }

    /// The share of keys for which a rule with this action is enforced.
    fn rollout(&self, percent: u8, action: &CompiledAction, domain: &Domain) -> Rollout {
        let applies = match action {
            CompiledAction::Apply(applies) => applies.as_slice(),
            CompiledAction::Allow | CompiledAction::Deny => &[],
        };
        let mut keys = applies.iter().map(|apply| apply.key.as_slice()).filter(|key| !key.is_empty());
        let first = keys.next().unwrap_or_default();
        let mut key = first.to_vec();
        for other in keys {
            key.retain(|part| other.iter().any(|known| known.entry == part.entry));
        }
        if key.is_empty() {
            key = first.to_vec();
        }
        Rollout { percent, hash: self.book.secret.counters(&domain.name, "", "enforce_percent"), key }
    }

    /// A test whose literals are in the form of the entry's values.
    fn required(&mut self, entry: String, written: Matcher, rule: &str, forms: &Forms) -> Option<EntryTest> {
        match forms.literal(&entry, &written) {
            Ok(mut test) => {
                let written = (test != written).then_some(written);
                test.lists_mut(&mut |list| list.set_slot(self.slot(&entry, list.name())));
                Some(EntryTest::new(entry, test, written))
            }
            Err(literal) => {
                self.errors.push(CompileError::NeverMet { rule: rule.to_owned(), entry, literal });
                None
            }
        }
    }

    /// The number of a list among those that entries of the domain being compiled meet.
    fn slot(&mut self, entry: &str, list: &str) -> u32 {
        let met = (self.at.0, entry.to_owned(), list.to_owned());
        if let Some(slot) = self.met_lists.get(&met) {
            return *slot;
        }
        let before = self.met_lists.keys().filter(|(domain, ..)| *domain == self.at.0).count();
        let slot = u32::try_from(before).expect("rules are fewer than 2^32");
        self.met_lists.insert(met, slot);
        slot
    }

    fn apply(&mut self, apply: Apply, rule: &str, domain: &Domain, forms: &Forms) -> Option<CompiledApply> {
        let first_target = self.targets.len();
        let Some(template) = self.template(&apply, domain, forms) else {
            self.errors.push(CompileError::UnknownLimiter { rule: rule.to_owned(), limiter: apply.limiter });
            return None;
        };
        let exact_log = |target: &LimiterTarget| {
            let quota = self.book.limiters[target.limiter as usize].quota.as_ref();
            quota.is_some_and(|quota| matches!(quota.algorithm, Algorithm::SlidingWindow))
        };
        if apply.overdraw && self.targets[first_target..].iter().any(exact_log) {
            self.errors.push(CompileError::OverdrawnLog { rule: rule.to_owned(), limiter: apply.limiter });
            return None;
        }
        let holds_slots = self.targets[first_target..].iter().any(|target| target.slots.is_some());
        if holds_slots && (apply.charge != Charge::Admitted || apply.overdraw) {
            self.errors.push(CompileError::ChargedSlot { rule: rule.to_owned(), limiter: apply.limiter });
            return None;
        }
        let only_slots = |target: &LimiterTarget| target.quota.is_none();
        if apply.hold.is_some() && self.targets[first_target..].iter().any(only_slots) {
            self.errors.push(CompileError::HeldSlots { rule: rule.to_owned(), limiter: apply.limiter });
            return None;
        }
        let counts_values = |target: &LimiterTarget| target.quota.as_ref().is_some_and(|quota| quota.of.is_some());
        if self.targets[first_target..].iter().any(counts_values) {
            if apply.charge == Charge::Always {
                self.errors.push(CompileError::ChargedValues { rule: rule.to_owned(), limiter: apply.limiter });
                return None;
            }
            if apply.overdraw || apply.hold.is_some() {
                self.errors.push(CompileError::OverdrawnValues { rule: rule.to_owned(), limiter: apply.limiter });
                return None;
            }
        }
        let of = self.targets[first_target..].iter().filter_map(|target| target.quota.as_ref()?.of.as_deref());
        let mut of: Vec<String> = of.flatten().map(|part| part.entry.clone()).collect();
        of.sort_unstable();
        of.dedup();
        let key = compiled_key(apply.key, forms);
        Some(CompiledApply {
            of,
            partitions: partitions(&self.book.secret, &self.book.partitioned, &domain.name, &key),
            domain: domain.name.clone(),
            reference: apply.limiter,
            template,
            key,
            charge: apply.charge,
            overdraw: apply.overdraw,
            missing: apply.missing,
            hold: apply.hold,
        })
    }

    fn template(&mut self, apply: &Apply, domain: &Domain, forms: &Forms) -> Option<LimiterTemplate> {
        let parts = template_parts(&apply.limiter);
        if !parts.iter().any(|part| matches!(part, TemplatePart::Entry(_))) {
            let limiter = *self.limiter_by_name.get(&apply.limiter)?;
            return Some(LimiterTemplate::Fixed(self.target(limiter, None, apply, domain, forms)));
        }
        let otherwise = match &apply.otherwise {
            None => None,
            Some(name) => {
                let limiter = *self.limiter_by_name.get(name)?;
                Some(self.target(limiter, None, apply, domain, forms))
            }
        };
        let names: Vec<String> = self.book.limiters.iter().map(|limiter| limiter.name.clone()).collect();
        let fitting: Vec<String> = names.into_iter().filter(|name| can_produce(&parts, name)).collect();
        let one = match parts.iter().filter(|part| matches!(part, TemplatePart::Entry(_))).count() {
            1 => parts.iter().find_map(|part| match part {
                TemplatePart::Entry(entry) => Some(entry.clone()),
                TemplatePart::Text(_) => None,
            }),
            _ => None,
        };
        let mut found: HashMap<String, u32, RandomState> = HashMap::default();
        for name in fitting {
            let (tier, names) = match &one {
                Some(entry) => {
                    let tier = filled(&parts, &name).to_owned();
                    let form = forms.value(entry, tier.as_str().into()).into_owned();
                    (tier, vec![form])
                }
                None => (name.clone(), produced(&parts, &name, forms)),
            };
            let limiter = self.limiter_by_name[&name];
            let target = self.target(limiter, Some(tier.clone()), apply, domain, forms);
            for form in names {
                // Of two names with one form, the one that is written in it is meant.
                if form == tier {
                    found.insert(form, target);
                } else {
                    found.entry(form).or_insert(target);
                }
            }
        }
        if found.is_empty() {
            return None;
        }
        Some(match one {
            Some(entry) => LimiterTemplate::One { entry, by_value: found, otherwise },
            None => LimiterTemplate::Many { parts, by_name: found, otherwise },
        })
    }

    fn target(&mut self, limiter: u32, tier: Option<String>, apply: &Apply, domain: &Domain, forms: &Forms) -> u32 {
        let (secret, configured) = (&self.book.secret, &self.book.limiters[limiter as usize]);
        // The entries of a key are hashed in order of their names.
        let first = apply.key.iter().map(|part| part.entry.as_str()).min();
        let partitioned = self.book.partitioned.iter().any(|partitioned| partitioned.store == configured.store);
        let drain = self.drains.get(&(domain.name.clone(), apply.limiter.clone()));
        let prefix = |kind: &str| name_prefix(secret, &domain.name, &apply.limiter, kind, first, partitioned);
        let quota = configured.quota.as_ref().map(|quota| QuotaTarget {
            prefix: prefix(&quota.kind()),
            limit: match (self.quota_limit(limiter as usize, quota), drain) {
                (Limit::TokenBucket(bucket), Some(&drain)) => {
                    Limit::TokenBucket(bucket.with_drain(drain).unwrap_or(bucket))
                }
                (limit, _) => limit,
            },
            of: counted_values(quota, &configured.name, &self.book.values, forms),
            holding: self.holdings[limiter as usize],
        });
        let slots = configured.concurrency.map(|slots| (prefix("concurrency"), Limit::Concurrency(slots)));
        let lease_tag = secret.limiter_tag(&apply.limiter);
        self.targets.push(LimiterTarget { at: Some(self.at), limiter, tier, quota, slots, lease_tag });
        u32::try_from(self.targets.len() - 1).expect("targets are fewer than 2^32")
    }
}
