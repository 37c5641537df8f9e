//! Reads a descriptor for a compiled rule: its normalised entries, the limiter of a reference, the name of a counter.

use std::borrow::Cow;

use super::Matcher;
use super::book::Missing;
use super::compiled::{
    CompiledApply, CompiledDomain, CompiledKeyEntry, CompiledRule, LimiterTemplate, Rollout, TemplatePart,
};
use super::normalise::address;
use crate::descriptor::{Descriptor, Entry};
use crate::plan::CounterName;
use crate::secret::NamePrefix;

/// The descriptor, normalised by its domain; `None` where nothing changes.
pub(super) fn rewrite<'a>(descriptor: &Descriptor<'a>, domain: &CompiledDomain) -> Option<Descriptor<'a>> {
    let rewritten = |entry: &Entry<'a>| -> Option<Cow<'a, str>> {
        let mut value = entry.value.clone();
        for (_, normalise) in domain.normalise.iter().filter(|(key, _)| key == entry.key) {
            value = normalise.iter().fold(value, |value, normaliser| normaliser.apply(value));
        }
        if domain.addresses.iter().any(|key| key == entry.key) {
            value = address(value);
        }
        (value != entry.value).then_some(value)
    };
    let affected = |entry: &Entry<'_>| {
        domain.normalise.iter().any(|(key, _)| key == entry.key)
            || (domain.addresses.iter().any(|key| key == entry.key) && entry.value.contains(':'))
    };
    if !descriptor.entries.iter().any(affected) {
        return None;
    }
    let mut changed = descriptor.clone();
    for entry in changed.entries.iter_mut().filter(|entry| affected(entry)) {
        if let Some(value) = rewritten(entry) {
            entry.value = value;
        }
    }
    Some(changed)
}

impl CompiledRule {
    /// Whether every required entry is present and passes its matcher.
    pub(super) fn matches(&self, descriptor: &Descriptor<'_>) -> bool {
        let passes =
            |(key, matcher): &(String, Matcher)| descriptor.value(key).is_some_and(|value| matcher.matches(value));
        self.matches.iter().all(passes)
    }

    /// Whether the rule is in shadow for a descriptor.
    #[inline]
    pub(super) fn in_shadow(&self, descriptor: &Descriptor<'_>) -> bool {
        self.shadow || self.rollout.as_ref().is_some_and(|rollout| !rollout.enforces(descriptor))
    }
}

impl Rollout {
    /// Whether the rule is enforced for a descriptor. A missing entry counts as empty here.
    fn enforces(&self, descriptor: &Descriptor<'_>) -> bool {
        let mut hash = self.hash;
        for part in &self.key {
            hash.entry(&part.entry, &part.value(descriptor.value(&part.entry).unwrap_or_default()));
        }
        let CounterName([_, chosen]) = hash.name();
        chosen % 100 < u64::from(self.percent)
    }
}

impl CompiledKeyEntry {
    /// A value as it is in a key.
    fn value<'v>(&self, value: &'v str) -> Cow<'v, str> {
        self.normalise.iter().fold(Cow::Borrowed(value), |value, step| step.apply(value))
    }
}

/// The result of resolving a reference.
pub(super) enum Resolved {
    Target(u32),
    EntryMissing,
    NoLimiter,
}

impl CompiledApply {
    /// Resolves the reference for a descriptor.
    pub(super) fn target(&self, descriptor: &Descriptor<'_>) -> Resolved {
        let value = |entry: &str| match (descriptor.value(entry), self.missing) {
            (None, Missing::Empty) => Some(""),
            (value, _) => value,
        };
        let found = match &self.template {
            LimiterTemplate::Fixed(target) => return Resolved::Target(*target),
            LimiterTemplate::One { entry, by_value, otherwise } => match value(entry) {
                None => return Resolved::EntryMissing,
                Some(value) => by_value.get(value).or(otherwise.as_ref()),
            },
            LimiterTemplate::Many { parts, by_name, otherwise } => {
                let mut name = String::new();
                for part in parts {
                    match part {
                        TemplatePart::Text(text) => name.push_str(text),
                        TemplatePart::Entry(entry) => match value(entry) {
                            None => return Resolved::EntryMissing,
                            Some(value) => name.push_str(value),
                        },
                    }
                }
                by_name.get(&name).or(otherwise.as_ref())
            }
        };
        found.map_or(Resolved::NoLimiter, |target| Resolved::Target(*target))
    }

    /// Completes a counter's name with the entries of the key; `None` when a required one is missing.
    pub(super) fn name(&self, prefix: &NamePrefix, descriptor: &Descriptor<'_>) -> Option<CounterName> {
        let mut name = *prefix;
        let mut partition = None;
        for (number, part) in self.key.iter().enumerate() {
            // The prefix ends before the value of the first entry.
            if number > 0 {
                name.text(&part.entry);
            }
            let value = match (descriptor.value(&part.entry), self.missing) {
                (Some(value), _) => value,
                (None, Missing::Empty) => "",
                (None, Missing::Skip | Missing::Deny) => return None,
            };
            let value = part.value(value);
            name.text(&value);
            if prefix.is_partitioned()
                && let Some((partitions, at)) = &self.partitions
                && *at == number
            {
                partition = Some(partitions.of(&value));
            }
        }
        Some(match partition {
            None => name.name(),
            Some(partition) => name.name().in_partition(partition),
        })
    }
}
