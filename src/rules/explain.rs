//! Why a request is decided as it is: which rules match, which just miss, and which counters they would ask.
//!
//! Explaining looks at every rule of the domain; planning does not. It asks no store.

use super::compile::{CompiledAction, Part, Rules, Template, parts};
use super::plan::{Resolved, rewrite};
use super::{Charge, Missing};
use crate::clock::Timestamp;
use crate::descriptor::Descriptor;
use crate::limiter::{CounterName, Limit};

/// What the rules of a domain make of one descriptor.
#[derive(Debug)]
pub struct Explanation {
    /// Whether the domain has rules or settings.
    pub domain_known: bool,
    /// The entries as the domain normalises them.
    pub entries: Vec<(String, String)>,
    /// Every rule of the domain, in order.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule makes of a descriptor.
#[derive(Debug)]
pub struct RuleExplanation {
    /// Its name.
    pub rule: String,
    /// What kept it from matching; none when it matches.
    pub misses: Vec<Miss>,
    /// How many of the entries it names passed.
    pub hits: usize,
    /// Whether an earlier rule ended the walk before it.
    pub unreached: bool,
    /// Counts and reports but never denies.
    pub shadow: bool,
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
pub struct Miss {
    /// The entry it names.
    pub entry: String,
    /// What it asks of the value.
    pub expected: String,
    /// The value; none when the entry is not there.
    pub found: Option<String>,
}

/// What one `apply` of a matching rule comes to.
#[derive(Debug)]
pub struct ApplyExplanation {
    /// The limiter as written.
    pub reference: String,
    /// The limiter it stands for.
    pub limiter: Option<String>,
    /// The key's entries, as they are counted.
    pub key: Vec<(String, Option<String>)>,
    /// Why it is left out or refused instead.
    pub instead: Option<String>,
    /// The counters it asks, by their hashed names, with their numbers.
    pub counters: Vec<(CounterName, Limit)>,
    /// When it is charged.
    pub charge: Charge,
    /// Passes while one unit is left.
    pub overdraw: bool,
}

impl Rules {
    /// Explains one descriptor of a domain.
    pub fn explain(&self, domain: &str, descriptor: &Descriptor<'_>, now: Timestamp) -> Explanation {
        let Some(&place) = self.by_name.get(domain) else {
            let entries = entries(descriptor);
            return Explanation { domain_known: false, entries, rules: Vec::new() };
        };
        let domain = &self.domains[place];
        let rewritten = rewrite(descriptor, domain);
        let descriptor = rewritten.as_ref().unwrap_or(descriptor);
        let mut ended = false;
        let rules = domain.rules.iter().map(|rule| {
            let failing = |(key, matcher): &&(String, super::Matcher)| {
                !descriptor.value(key).is_some_and(|value| matcher.matches(value))
            };
            let misses: Vec<Miss> = rule
                .matches
                .iter()
                .filter(failing)
                .map(|(key, matcher)| Miss {
                    entry: key.clone(),
                    expected: matcher.to_string(),
                    found: descriptor.value(key).map(str::to_owned),
                })
                .collect();
            let matched = misses.is_empty();
            let action = match &rule.action {
                CompiledAction::Allow => ActionExplanation::Allow,
                CompiledAction::Deny => ActionExplanation::Deny,
                CompiledAction::Apply(applies) => ActionExplanation::Apply(
                    applies.iter().map(|apply| self.explain_apply(apply, descriptor, now)).collect(),
                ),
            };
            let explained = RuleExplanation {
                rule: rule.name.clone(),
                hits: rule.matches.len() - misses.len(),
                misses,
                unreached: ended,
                shadow: rule.shadow,
                action,
            };
            let ends = match &rule.action {
                CompiledAction::Allow => true,
                CompiledAction::Deny => !rule.shadow,
                CompiledAction::Apply(_) => rule.last,
            };
            ended |= matched && ends;
            explained
        });
        Explanation { domain_known: true, entries: entries(descriptor), rules: rules.collect() }
    }

    fn explain_apply(
        &self,
        apply: &super::compile::CompiledApply,
        descriptor: &Descriptor<'_>,
        now: Timestamp,
    ) -> ApplyExplanation {
        let key = apply.key.iter().map(|part| {
            let value = descriptor.value(&part.entry).map(|value| {
                let value = std::borrow::Cow::Borrowed(value);
                part.normalise.iter().fold(value, |value, step| step.apply(value)).into_owned()
            });
            (part.entry.clone(), value)
        });
        let mut explained = ApplyExplanation {
            reference: apply.reference.clone(),
            limiter: None,
            key: key.collect(),
            instead: None,
            counters: Vec::new(),
            charge: apply.charge,
            overdraw: apply.overdraw,
        };
        let missing = || match apply.missing {
            Missing::Skip => "left out",
            Missing::Deny => "refused",
            Missing::Empty => "counted as empty",
        };
        let target = match apply.target(descriptor) {
            Resolved::Target(target) => target,
            Resolved::EntryMissing => {
                let wanted = parts(&apply.reference).into_iter().find_map(|part| match part {
                    Part::Entry(entry) if descriptor.value(&entry).is_none() => Some(entry),
                    Part::Entry(_) | Part::Text(_) => None,
                });
                let wanted = wanted.unwrap_or_default();
                explained.instead = Some(format!("{}: the entry {wanted:?} of its name is missing", missing()));
                return explained;
            }
            Resolved::NoLimiter => {
                let known = match &apply.template {
                    Template::One { by_value, .. } => by_value.keys().cloned().collect(),
                    Template::Many { by_name, .. } => by_name.keys().cloned().collect(),
                    Template::Fixed(_) => Vec::new(),
                };
                explained.instead = Some(format!("refused: no limiter has that name; known are {known:?}"));
                return explained;
            }
        };
        let target = &self.targets[target as usize];
        explained.limiter = Some(self.limiters[target.limiter as usize].name.clone());
        let quota = target.quota.as_ref().map(|quota| (&quota.prefix, self.limit(target, quota, now)));
        let slots = target.slots.as_ref().map(|(prefix, limit)| (prefix, *limit));
        for (prefix, limit) in quota.into_iter().chain(slots) {
            match apply.name(prefix, descriptor) {
                Some(name) => explained.counters.push((name, limit)),
                None => {
                    let absent: Vec<&str> = explained
                        .key
                        .iter()
                        .filter(|(_, value)| value.is_none())
                        .map(|(key, _)| key.as_str())
                        .collect();
                    explained.instead = Some(format!("{}: {absent:?} of its key is missing", missing()));
                    break;
                }
            }
        }
        explained
    }
}

fn entries(descriptor: &Descriptor<'_>) -> Vec<(String, String)> {
    descriptor.entries.iter().map(|entry| (entry.key.to_owned(), entry.value.clone().into_owned())).collect()
}
