//! A descriptor that no rule matches, in words for a log: keys and no values.

use super::explanation::RuleExplanation;
use crate::descriptor::Descriptor;
use crate::rules::compiled::{CompiledAction, CompiledDomain, CompiledRule, LimiterTemplate, Rules, TemplatePart};
use crate::rules::nearest;

/// The longest text about the nearest rule, in characters: a test can list any number of values.
const MAX_RULE_CHARS: usize = 300;

/// Why no rule of a domain matches a descriptor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    /// Whether every rule requires an entry that the descriptor lacks, and it has one that no rule uses: a misspelt key.
    pub(crate) misspelt: bool,
    /// The domain, the keys that came, and the rule that nearly matches, as `explain` says it.
    pub(crate) words: String,
}

impl Rules {
    /// Says why no rule of a domain matches a descriptor. `None` when one does.
    pub(crate) fn miss(&self, domain: usize, descriptor: &Descriptor<'_>) -> Option<Miss> {
        let domain = self.domains.get(domain)?;
        let explained = self.explain(&domain.name, descriptor).rules;
        if explained.iter().any(|rule| rule.mismatches.is_empty()) {
            return None;
        }
        let lacks = |rule: &RuleExplanation| rule.mismatches.iter().any(|miss| miss.found.is_none());
        let mut keys: Vec<&str> = descriptor.entries.iter().map(|entry| entry.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let known = domain.known_keys();
        let unknown: Vec<&str> = keys.iter().copied().filter(|key| !known.contains(key)).collect();
        let mut words = format!("domain {:?}, keys {}", domain.name, keys.join(", "));
        for key in &unknown {
            words += &format!(": no rule uses {key}");
            if let Some(meant) = nearest(key, known.iter().copied()) {
                words += &format!(", did you mean {meant}?");
            }
        }
        // The first of those that lack least.
        let nearest = explained.iter().min_by_key(|rule| (rule.mismatches.len(), usize::MAX - rule.hits));
        words += &nearest.map_or_else(|| ": it has no rules".to_owned(), nearly_matches);
        Some(Miss { misspelt: explained.iter().all(lacks) && !explained.is_empty() && !unknown.is_empty(), words })
    }

    /// Whether a descriptor is meant to release a lease (semantics 24).
    pub(crate) fn is_release(&self, descriptor: &Descriptor<'_>) -> bool {
        matches!(descriptor.entries.as_slice(), [entry] if entry.key == self.release_entry)
    }
}

fn nearly_matches(rule: &RuleExplanation) -> String {
    let why: Vec<String> = rule.mismatches.iter().map(|miss| miss.in_words(false)).collect();
    let text = format!(": rule {} nearly matches: {}", rule.rule, why.join("; "));
    match text.char_indices().nth(MAX_RULE_CHARS) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

impl CompiledDomain {
    /// The keys that its rules use, sorted.
    fn known_keys(&self) -> Vec<&str> {
        let mut known: Vec<&str> = self.rules.iter().flat_map(CompiledRule::keys).collect();
        known.sort_unstable();
        known.dedup();
        known
    }
}

impl CompiledRule {
    /// The keys that the rule tests, counts by, or fills the name of a limiter from.
    fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.matches.iter().map(|test| test.entry.as_str()).collect();
        let CompiledAction::Apply(applies) = &self.action else { return keys };
        for apply in applies {
            keys.extend(apply.key.iter().map(|part| part.entry.as_str()));
            match &apply.template {
                LimiterTemplate::Fixed(_) => {}
                LimiterTemplate::One { entry, .. } => keys.push(entry),
                LimiterTemplate::Many { parts, .. } => keys.extend(parts.iter().filter_map(|part| match part {
                    TemplatePart::Entry(entry) => Some(entry.as_str()),
                    TemplatePart::Text(_) => None,
                })),
            }
        }
        keys
    }
}
