//! A descriptor that rules miss, in words for a log: keys and no values.

use super::explanation::{
    ActionExplanation, ApplyExplanation, Explanation, MissingEntries, NotApplied, RuleExplanation,
};
use crate::descriptor::Descriptor;
use crate::rules::compiled::Rules;

/// The longest text about one rule, in characters: a test can list any number of values.
const MAX_RULE_CHARS: usize = 300;

/// Why rules of a domain miss a descriptor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    /// Whether a rule matches it all the same.
    pub(crate) matched: bool,
    /// Whether a key is misspelt: it is unknown, and similar to one that rules use and the descriptor lacks. Or it is
    /// unknown, and every rule requires an entry that the descriptor lacks. Values do not matter.
    pub(crate) misspelt: bool,
    /// The domain, the keys that came, and the rule that was probably meant, as `explain` says it.
    pub(crate) words: String,
}

impl Rules {
    /// Says why rules of a domain miss a descriptor. `None` if there is no such domain.
    pub(crate) fn miss(&self, domain: usize, descriptor: &Descriptor<'_>) -> Option<Miss> {
        let domain = &self.domains.get(domain)?.name;
        let explanation = self.explain(domain, descriptor);
        let Explanation { unknown, rules, .. } = &explanation;
        let lacks = |rule: &RuleExplanation| rule.mismatches.iter().any(|miss| miss.found.is_none());
        let all_lack = !unknown.is_empty() && !rules.is_empty() && rules.iter().all(lacks);
        let mut keys: Vec<&str> = descriptor.entries.iter().map(|entry| entry.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut words = format!("domain {domain:?}, keys {}", keys.join(", "));
        for unknown in unknown {
            words += &format!(": {unknown}");
        }
        words += &format!(": {}", explanation.nearest_rule());
        Some(Miss {
            matched: rules.iter().any(|rule| rule.mismatches.is_empty()),
            misspelt: all_lack || unknown.iter().any(|unknown| unknown.meant.is_some()),
            words,
        })
    }

    /// Whether a descriptor is meant to release or settle a lease (semantics 39).
    pub(crate) fn is_release(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.entries.iter().any(|entry| self.lease_entries.contains(entry.key))
    }
}

impl Explanation {
    /// The rule that was probably meant: one that lacks what a misspelt key means, or else one that lacks least.
    fn nearest_rule(&self) -> String {
        let is_meant = |entry: &str| self.unknown.iter().any(|unknown| unknown.meant.as_deref() == Some(entry));
        let lacks =
            |rule: &RuleExplanation| rule.mismatches.iter().any(|miss| miss.found.is_none() && is_meant(&miss.entry));
        let others = self.rules.iter().filter(|rule| !rule.mismatches.is_empty());
        // The first of those that lack least.
        let near = others.min_by_key(|rule| (!lacks(rule), rule.mismatches.len(), usize::MAX - rule.hits));
        let uncounted = || self.rules.iter().find_map(|rule| rule.uncounted(is_meant));
        let text = match near {
            Some(near) if lacks(near) => near.nearly_matches(),
            Some(near) => uncounted().unwrap_or_else(|| near.nearly_matches()),
            None => uncounted().unwrap_or_else(|| match self.rules.is_empty() {
                true => "it has no rules".to_owned(),
                false => "every rule matches".to_owned(),
            }),
        };
        match text.char_indices().nth(MAX_RULE_CHARS) {
            None => text,
            Some((end, _)) => format!("{}...", &text[..end]),
        }
    }
}

impl RuleExplanation {
    fn nearly_matches(&self) -> String {
        let why: Vec<String> = self.mismatches.iter().map(|miss| miss.in_words(false)).collect();
        format!("rule {} nearly matches: {}", self.rule, why.join("; "))
    }

    /// What the rule does without one of these entries, if it matches and counts by one that is missing.
    fn uncounted(&self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        let ActionExplanation::Apply(applies) = &self.action else { return None };
        let applies = applies.iter().filter(|_| self.mismatches.is_empty());
        let effect = applies.filter_map(|apply| Some((apply, apply.without(&is_meant)?))).next();
        effect.map(|(apply, effect)| format!("rule {} matches, but {}: {effect}", self.rule, apply.reference))
    }
}

impl ApplyExplanation {
    /// What is counted without one of these entries, if one of them is missing.
    fn without(&self, is_meant: impl Fn(&str) -> bool) -> Option<String> {
        let missing = self.key.iter().any(|(entry, value)| value.is_none() && is_meant(entry));
        match &self.not_applied {
            None if missing => Some("counted with an empty entry in the key".to_owned()),
            None | Some(NotApplied::NoLimiter { .. }) => None,
            Some(not_applied @ (NotApplied::Skipped(absent) | NotApplied::Refused(absent))) => {
                let of_name = matches!(absent, MissingEntries::LimiterName(entry) if is_meant(entry));
                (missing || of_name).then(|| not_applied.to_string())
            }
        }
    }
}
