//! Reads a descriptor for a compiled rule: its normalised entries, the limiter of a reference, the name of a counter.

use std::borrow::Cow;

use super::book::Missing;
use super::compiled::{
    CompiledAction, CompiledApply, CompiledDomain, CompiledKeyEntry, CompiledRule, LimiterTemplate, Rollout,
    TemplatePart,
};
use super::form::{Form, differing};
use super::matcher::EntryTest;
use super::value_list::{ListLookups, ListTest};
use crate::descriptor::{Descriptor, ListValue};
use crate::plan::CounterName;
use crate::secret::{NamePrefix, Secret};

/// The descriptor with its values in the forms of the domain; `None` where nothing changes.
pub(super) fn rewrite<'a>(descriptor: &Descriptor<'a>, domain: &CompiledDomain) -> Option<Descriptor<'a>> {
    if descriptor.has_lists() {
        return Some(rewrite_lists(descriptor, domain));
    }
    match descriptor.entries.iter().any(|entry| domain.forms.may_have(entry.key)) {
        true => rewrite_texts(descriptor, domain),
        false => None,
    }
}

fn rewrite_texts<'a>(descriptor: &Descriptor<'a>, domain: &CompiledDomain) -> Option<Descriptor<'a>> {
    // A descriptor is several hundred bytes, so it is copied at the first value that changes.
    let mut changed: Option<Descriptor<'a>> = None;
    for (number, entry) in descriptor.entries.iter().enumerate() {
        let Some(form) = domain.forms.get(entry.key) else { continue };
        if let Some(value) = rewritten(&entry.value, form) {
            changed.get_or_insert_with(|| descriptor.clone()).entries[number].value = value;
        }
    }
    changed
}

/// The value in its form; `None` where nothing changes.
fn rewritten<'a>(value: &Cow<'a, str>, form: &Form) -> Option<Cow<'a, str>> {
    match value {
        Cow::Borrowed(text) => differing(form.value(Cow::Borrowed(text)), text),
        Cow::Owned(text) => {
            differing(form.value(Cow::Borrowed(text)), text).map(|value| Cow::Owned(value.into_owned()))
        }
    }
}

/// The descriptor with its values in their forms. A list is counted as its values in order, each once, so that neither
/// their order nor a repetition makes another counter.
fn rewrite_lists<'a>(descriptor: &Descriptor<'a>, domain: &CompiledDomain) -> Descriptor<'a> {
    let mut changed = descriptor.clone();
    for list in changed.lists_mut() {
        for value in &mut list.values {
            *value = domain.forms.value(list.key, std::mem::take(value));
        }
        if !list.repeated {
            list.values.sort_unstable();
            list.values.dedup();
        }
    }
    for index in 0..changed.entries.len() {
        let key = changed.entries[index].key;
        let joined = changed.list(key).map(|list| Cow::Owned(list.values.join(",")));
        let entry = &mut changed.entries[index];
        entry.value = joined.unwrap_or_else(|| domain.forms.value(key, std::mem::take(&mut entry.value)));
    }
    changed
}

impl EntryTest {
    /// Whether the entry passes the test.
    #[inline]
    pub(super) fn passes(&self, descriptor: &Descriptor<'_>, lookups: &ListLookups) -> bool {
        if descriptor.has_lists()
            && let Some(list) = descriptor.list(&self.entry)
        {
            return self.passes_list(list, lookups);
        }
        match descriptor.value(&self.entry) {
            Some(value) => self.test.passes(value, lookups),
            None => self.absent,
        }
    }

    /// The lists of the test: the entry, each list, and whether the list has the value that the entry has.
    pub(super) fn lists<'t>(&'t self, descriptor: &Descriptor<'_>) -> Vec<(&'t str, &'t str, bool)> {
        let lookups = ListLookups::default();
        let met = |list: &ListTest| match (descriptor.list(&self.entry), descriptor.value(&self.entry)) {
            (Some(values), _) => list.contains_any(&values.values, &lookups),
            (None, Some(value)) => list.has(value, &lookups),
            (None, None) => false,
        };
        let lists = self.test.lists().into_iter().filter(|_| descriptor.value(&self.entry).is_some());
        lists.map(|list| (self.entry.as_str(), list.name(), met(list))).collect()
    }

    /// Whether an entry with several values passes the test. Which one a repeated entry has is in doubt, but not that it
    /// is there.
    #[cold]
    fn passes_list(&self, list: &ListValue<'_>, lookups: &ListLookups) -> bool {
        if list.repeated { !self.test.matches_none() } else { self.test.passes_any(&list.values, lookups) }
    }
}

impl CompiledRule {
    /// Whether every entry passes its test.
    #[inline(always)]
    pub(super) fn matches(&self, descriptor: &Descriptor<'_>, lookups: &ListLookups) -> bool {
        self.matches.iter().all(|required| required.passes(descriptor, lookups))
    }

    /// A derived entry that the rule names and that is absent, if the rule matches otherwise: then it refuses
    /// (semantics 59).
    #[cold]
    pub(super) fn lacking(&self, descriptor: &Descriptor<'_>, lookups: &ListLookups) -> Option<&str> {
        let lacks = |test: &EntryTest| test.derived && descriptor.value(&test.entry).is_none();
        let lacking = self.matches.iter().find(|test| lacks(test) && !test.absent)?;
        let others = self.matches.iter().all(|test| lacks(test) || test.passes(descriptor, lookups));
        others.then_some(&lacking.entry)
    }

    /// The first entry that the rule matches on or counts by, and that a descriptor which it matches repeats.
    #[cold]
    pub(super) fn repeated_entry(&self, descriptor: &Descriptor<'_>) -> Option<&str> {
        self.entries().find(|entry| descriptor.repeated(entry).is_some())
    }

    /// The entries that the rule matches on or counts by.
    pub(super) fn entries(&self) -> impl Iterator<Item = &str> {
        let applies = match &self.action {
            CompiledAction::Apply(applies) => applies.as_slice(),
            CompiledAction::Allow | CompiledAction::Deny => &[],
        };
        let matched = self.matches.iter().map(|required| required.entry.as_str());
        let counted = applies.iter().flat_map(|apply| {
            let key = apply.key.iter().map(|part| part.entry.as_str());
            key.chain(apply.of.iter().map(String::as_str)).chain(apply.template.entries())
        });
        matched.chain(counted)
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
        match descriptor.has_lists() {
            true => self.enforces_any(descriptor),
            false => self.enforces_key(|entry| descriptor.value(entry)),
        }
    }

    /// Whether the rule is enforced for any value of a repeated entry. Several repeated entries have too many
    /// combinations: one of them is taken to be enforced.
    #[cold]
    fn enforces_any(&self, descriptor: &Descriptor<'_>) -> bool {
        let mut repeated = self.key.iter().filter(|part| descriptor.repeated(&part.entry).is_some());
        let value = |entry: &str| descriptor.value(entry);
        match (repeated.next(), repeated.next()) {
            (None, _) => self.enforces_key(value),
            (Some(part), None) => match descriptor.repeated(&part.entry) {
                Some(values) if !values.is_empty() => values.iter().any(|one| {
                    self.enforces_key(|entry| if entry == part.entry { Some(&**one) } else { descriptor.value(entry) })
                }),
                // It cannot be read: any value may be meant.
                _ => self.percent > 0,
            },
            (Some(_), Some(_)) => self.percent > 0,
        }
    }

    #[inline]
    fn enforces_key<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> bool {
        let mut hash = self.hash;
        for part in &self.key {
            hash.entry(&part.entry, &part.value(value(&part.entry).unwrap_or_default()));
        }
        let CounterName([_, chosen]) = hash.name();
        chosen % 100 < u64::from(self.percent)
    }
}

impl CompiledKeyEntry {
    /// A value as it is in a key.
    fn value<'v>(&self, value: &'v str) -> Cow<'v, str> {
        match self.form.is_any() {
            true => Cow::Borrowed(value),
            false => self.form.value(Cow::Borrowed(value)),
        }
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

    /// The hash of what a descriptor has in the entries whose different values are counted; `None` when a required one is
    /// missing.
    #[cold]
    pub(super) fn asked_value(
        &self,
        of: &[CompiledKeyEntry],
        counter: CounterName,
        descriptor: &Descriptor<'_>,
        secret: &Secret,
    ) -> Option<u64> {
        let value = |part: &'_ CompiledKeyEntry| match (descriptor.value(&part.entry), self.missing) {
            (Some(value), _) => Some(value),
            (None, Missing::Empty) => Some(""),
            (None, Missing::Skip | Missing::Deny) => None,
        };
        if of.iter().any(|part| value(part).is_none()) {
            return None;
        }
        let entries = of.iter().filter_map(|part| Some((part.entry.as_str(), part.value(value(part)?))));
        Some(secret.value(counter, entries))
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
