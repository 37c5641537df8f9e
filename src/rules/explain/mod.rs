//! Explains how a request would be decided: which rules match, which nearly match, and which counters they check.
//!
//! An explanation covers every rule of the domain, unlike a plan. No store is called.

mod explanation;
mod identity;
#[cfg(feature = "server")]
mod miss;
mod text;
mod unknown;

use self::explanation::{
    ActionExplanation, ApplyExplanation, ExplainedEntry, Explanation, Mismatch, MissingEntries, NotApplied,
    RuleExplanation,
};
pub use self::identity::{KnownCounter, NotCounted};

use super::book::Missing;
use super::compiled::{
    CompiledAction, CompiledDomain, CompiledKeyEntry, CompiledRule, DerivedFrom, LimiterTemplate, Rules, TemplatePart,
    template_parts,
};
use super::derive::GivenEntries;
use super::matcher::EntryTest;
use super::resolve::{Resolved, rewrite};
use super::value_list::ListLookups;
use crate::descriptor::Descriptor;
use crate::limiter::Limit;

impl CompiledRule {
    /// Whether this rule ends the walk of a descriptor that it matches, as in planning.
    fn ends_walk(&self, descriptor: &Descriptor<'_>) -> bool {
        let refuses_repeat = self.repeated_entry(descriptor).is_some();
        match &self.action {
            _ if refuses_repeat => !self.in_shadow(descriptor) || (self.last && self.shadow && !self.shadow_only),
            CompiledAction::Allow => !self.shadow_only,
            CompiledAction::Deny => !self.shadow || (self.last && !self.shadow_only),
            CompiledAction::Apply(_) => self.last && !self.shadow_only && (self.shadow || !self.in_shadow(descriptor)),
        }
    }
}

impl Rules {
    /// Explains one descriptor of a domain.
    fn explain(&self, domain: &str, descriptor: &Descriptor<'_>) -> Explanation {
        let Some(&index) = self.by_name.get(domain) else {
            let entries = descriptor.entries.iter().map(|entry| ExplainedEntry {
                entry: entry.key.to_owned(),
                values: vec![(entry.value.to_string(), entry.value.to_string())],
                note: String::new(),
            });
            let entries = entries.collect();
            return Explanation { domain_known: false, entries, unknown: Vec::new(), rules: Vec::new() };
        };
        let domain = &self.domains[index];
        let rewritten = rewrite(descriptor, domain);
        let requested = descriptor;
        let normalised = rewritten.as_ref().unwrap_or(descriptor);
        let derived = domain.derive(normalised, GivenEntries::Dropped);
        let descriptor = &derived;
        let mut ended = false;
        let lookups = ListLookups::default();
        let rules = domain.rules.iter().map(|rule| {
            let mismatches: Vec<Mismatch> = rule
                .matches
                .iter()
                .filter(|required| !required.passes(descriptor, &lookups))
                .map(|required| Mismatch {
                    entry: required.entry.clone(),
                    expected: expected(required),
                    found: descriptor.value(&required.entry).map(str::to_owned),
                })
                .collect();
            let normalised = rule.matches.iter().filter(|required| required.written.is_some());
            let normalised = normalised.map(|required| (required.entry.clone(), expected(required))).collect();
            let lists = rule.matches.iter().flat_map(|required| required.lists(descriptor));
            let lists = lists.map(|(entry, list, met)| (entry.to_owned(), list.to_owned(), met)).collect();
            let lacking = rule.lacking(descriptor, &lookups).filter(|_| rule.needs_derived);
            let matched = mismatches.is_empty();
            let repeated = rule.repeated_entry(descriptor).filter(|_| matched);
            let action = match &rule.action {
                CompiledAction::Allow => ActionExplanation::Allow,
                CompiledAction::Deny => ActionExplanation::Deny,
                CompiledAction::Apply(applies) => ActionExplanation::Apply(
                    applies.iter().map(|apply| self.explain_apply(apply, descriptor)).collect(),
                ),
            };
            let explained = RuleExplanation {
                rule: rule.name.clone(),
                hits: rule.matches.len() - mismatches.len(),
                mismatches,
                normalised,
                lists,
                lacking: lacking.map(str::to_owned),
                repeated: repeated.map(str::to_owned),
                unreached: ended,
                shadow: rule.in_shadow(descriptor),
                shadow_only: rule.shadow_only || (!rule.shadow && rule.in_shadow(descriptor)),
                action,
            };
            ended |= matched && rule.ends_walk(descriptor);
            explained
        });
        Explanation {
            domain_known: true,
            entries: entries(requested, normalised, descriptor, domain),
            unknown: domain.unknown_keys(descriptor, &self.lease_entries),
            rules: rules.collect(),
        }
    }

    fn explain_apply(&self, apply: &super::compiled::CompiledApply, descriptor: &Descriptor<'_>) -> ApplyExplanation {
        let counted = |part: &CompiledKeyEntry| {
            let value = descriptor.value(&part.entry).map(|value| part.form.value(value.into()).into_owned());
            (part.entry.clone(), value)
        };
        let absent = |entries: &[(String, Option<String>)]| -> Vec<String> {
            entries.iter().filter(|(_, value)| value.is_none()).map(|(entry, _)| entry.clone()).collect()
        };
        let mut explained = ApplyExplanation {
            reference: apply.reference.clone(),
            limiter: None,
            key: apply.key.iter().map(counted).collect(),
            of: Vec::new(),
            not_applied: None,
            counters: Vec::new(),
            charge: apply.charge,
            overdraw: apply.overdraw,
            hold: apply.hold,
        };
        let without = |absent: MissingEntries| match apply.missing {
            Missing::Skip => NotApplied::Skipped(absent),
            // An entry that counts as empty is never missing.
            Missing::Deny | Missing::Empty => NotApplied::Refused(absent),
        };
        let target = match apply.target(descriptor) {
            Resolved::Target(target) => target,
            Resolved::EntryMissing => {
                let missing = template_parts(&apply.reference).into_iter().find_map(|part| match part {
                    TemplatePart::Entry(entry) if descriptor.value(&entry).is_none() => Some(entry),
                    TemplatePart::Entry(_) | TemplatePart::Text(_) => None,
                });
                explained.not_applied = Some(without(MissingEntries::LimiterName(missing.unwrap_or_default())));
                return explained;
            }
            Resolved::NoLimiter => {
                let mut known: Vec<String> = match &apply.template {
                    LimiterTemplate::One { by_value, .. } => by_value.keys().cloned().collect(),
                    LimiterTemplate::Many { by_name, .. } => by_name.keys().cloned().collect(),
                    LimiterTemplate::Fixed(_) => Vec::new(),
                };
                known.sort_unstable();
                explained.not_applied = Some(NotApplied::NoLimiter { known });
                return explained;
            }
        };
        let target = &self.targets[target as usize];
        explained.limiter = Some(self.limiters[target.limiter as usize].name.clone());
        let quota = target.quota.as_ref().map(|quota| (&quota.prefix, quota.limit));
        let slots = target.slots.as_ref().map(|(prefix, limit)| (prefix, *limit));
        explained.of = target.quota.iter().filter_map(|quota| quota.of.as_deref()).flatten().map(counted).collect();
        let without_value = absent(&explained.of);
        for (prefix, limit) in quota.into_iter().chain(slots) {
            if matches!(limit, Limit::Distinct(_)) && !without_value.is_empty() && apply.missing != Missing::Empty {
                explained.not_applied = Some(without(MissingEntries::Of(without_value.clone())));
                continue;
            }
            match apply.name(prefix, descriptor) {
                Some(name) => explained.counters.push((name, limit)),
                None => {
                    explained.not_applied = Some(without(MissingEntries::Key(absent(&explained.key))));
                    break;
                }
            }
        }
        explained
    }
}

/// A test in words: its literals as they are compared, and as they are written if that is different.
fn expected(required: &EntryTest) -> String {
    let absent = if required.absent { ", or no value" } else { "" };
    match &required.written {
        None => format!("{}{absent}", required.test),
        Some(written) => format!("{}, normalised from {written}{absent}", required.test),
    }
}

/// The entries as requested, and in the forms of the domain, and then those that are derived.
fn entries(
    requested: &Descriptor<'_>,
    normalised: &Descriptor<'_>,
    derived: &Descriptor<'_>,
    domain: &CompiledDomain,
) -> Vec<ExplainedEntry> {
    let both = requested.entries.iter().zip(&normalised.entries).map(|(requested_entry, normalised_entry)| {
        let key = requested_entry.key;
        let values = match (requested.repeated(key), normalised.repeated(key)) {
            (Some(requested), Some(normalised)) => {
                let pairs = requested.iter().zip(normalised);
                pairs.map(|(requested, normalised)| (requested.to_string(), normalised.to_string())).collect()
            }
            _ => vec![(requested_entry.value.to_string(), normalised_entry.value.to_string())],
        };
        let note = match domain.derivation(key) {
            Some(_) => "ignored, because the domain derives it".to_owned(),
            None if values.len() > 1 => "repeated, so its value is in doubt".to_owned(),
            None => String::new(),
        };
        ExplainedEntry { entry: key.to_owned(), values, note }
    });
    let each = domain.derived.iter().flat_map(|from| from.entries.iter().map(move |entry| (from, &entry.entry)));
    let derived = each.map(|(from, entry)| {
        let DerivedFrom { from: source, table, rows, .. } = from;
        let found = derived.value(source).map(|value| rows.find(value).is_some());
        let value = derived.value(entry).map(|value| (value.to_owned(), value.to_owned()));
        let why = match (derived.list(source), found) {
            (Some(_), _) => format!("derived from the values of {source} by table {table}"),
            (None, None) => format!("derived from {source}, which is missing"),
            (None, Some(true)) => format!("derived from {source} by table {table}"),
            (None, Some(false)) => format!("derived from {source}, which is not in table {table}"),
        };
        let note = if value.is_some() { why } else { format!("absent: {why}") };
        ExplainedEntry { entry: entry.clone(), values: value.into_iter().collect(), note }
    });
    both.chain(derived).collect()
}

#[cfg(test)]
mod tests {
    use crate::descriptor::{Descriptor, Request};
    use crate::limiter::{Concurrency, LeaseId, Limiter, OnStoreError, WorkerSettings};
    use crate::rules::{
        Action, Apply, Charge, Domain, Missing, RefusalText, Rule, RuleBook, RuleHeaders, Rules, Unmatched,
    };

    fn rule(name: &str, action: Action) -> Rule {
        Rule {
            domain: "edge".to_owned(),
            name: name.to_owned(),
            matches: Vec::new(),
            action,
            last: false,
            shadow: false,
            enforce_percent: None,
            refusal: RefusalText::default(),
            headers: RuleHeaders::default(),
            skip_absent: false,
        }
    }

    fn apply() -> Action {
        Action::Apply(vec![Apply {
            limiter: "slots".to_owned(),
            otherwise: None,
            key: Vec::new(),
            charge: Charge::Admitted,
            overdraw: false,
            missing: Missing::Skip,
            hold: None,
        }])
    }

    #[test]
    fn explaining_ends_the_walk_where_planning_does() {
        let slots = Limiter {
            name: "slots".to_owned(),
            store: 0,
            quota: None,
            concurrency: Some(Concurrency { max: 1, lease: 60_000_000 }),
            on_store_error: OnStoreError::Local,
            overridable: false,
            workers: WorkerSettings::default(),
        };
        for bits in 0..48_u32 {
            let [last, shadow, domain_shadow, server_shadow] = [1, 2, 4, 8].map(|bit| bits & bit > 0);
            let action = [Action::Allow, Action::Deny, apply()][(bits / 16) as usize].clone();
            let domain = Domain {
                name: "edge".to_owned(),
                unmatched: Unmatched::Allow,
                shadow: domain_shadow,
                ..Domain::default()
            };
            let case = format!("{action:?} {last} {shadow} {domain_shadow} {server_shadow}");
            let first = Rule { last, shadow, ..rule("first", action) };
            let book = RuleBook {
                limiters: vec![slots.clone()],
                domains: vec![domain],
                rules: vec![first, rule("second", apply())],
                shadow: server_shadow,
                ..RuleBook::default()
            };
            let rules = Rules::compile(book).expect("a good book");
            let descriptor = Descriptor::of([("path", "/")]);
            let request = Request { domain: "edge", descriptors: [descriptor.clone()].into_iter().collect() };
            let planned = rules.plan(&request, LeaseId(0));
            let reached = planned.sources.iter().any(|source| source.rule == 1);
            assert_eq!(!rules.explain("edge", &descriptor).rules[1].unreached, reached, "{case}");
        }
    }
}
