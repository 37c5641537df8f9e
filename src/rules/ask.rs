//! The plan of what a worker asks for (semantics 50).
//!
//! ```text
//!   entries                 ->  the rules of the domain, as for a gateway
//!   limiter and its key     ->  the apply of that limiter by these entries, in whichever rule it is
//!   limiter without a rule  ->  the limiter by any key, if it has `direct = true`
//! ```
//!
//! What a worker asks for is counted by the counter that a gateway's request with the same entries is counted by, or
//! the call is an error: never by another counter, and never by none.

use std::borrow::Cow;

use super::book::{Charge, HoldFor, KeyEntry, Missing};
use super::compile::{compiled_key, counted_values, partitions};
use super::compiled::{
    CompiledAction, CompiledApply, CompiledDomain, LimiterTemplate, Rules, TemplatePart, name_prefix, template_parts,
};
use super::derive::GivenEntries;
use super::nearest::nearest;
use super::plan::{CheckOrigin, Walk};
use super::planned::{CheckSource, DescriptorEnd, Planned};
use super::resolve::{Resolved, rewrite};
use crate::ask::{Ask, AskError, Place, Subject};
use crate::descriptor::{Descriptor, Entry, Hits};
use crate::limiter::{LeaseId, Limit, Lost, MAX_ASKED};
use crate::plan::CounterName;

/// Keys that an error lists at most.
const MAX_LISTED_KEYS: usize = 10;

impl Rules {
    /// Turns asks into one plan, all or nothing. Slots will be held under `lease`. `first` is the number of the first ask
    /// in its call.
    ///
    /// # Errors
    ///
    /// A domain, a limiter or entries that nothing is counted by, and asks that exceed the bounds of a request.
    pub(crate) fn plan_asks(
        &self,
        domain: &str,
        asks: &[Ask],
        first: usize,
        lease: LeaseId,
    ) -> Result<Box<Planned>, AskError> {
        let Some(&domain_index) = self.by_name.get(domain) else {
            let names = self.domains.iter().map(|domain| domain.name.as_str());
            let unknown = unknown("domain", domain, names);
            let message = format!("{unknown}; domains are those of the rules, and of [domains]");
            return Err(AskError::not_found("domain", message));
        };
        let domain = &self.domains[domain_index];
        let mut walk = Walk::new(self, lease);
        walk.planned.domain = Some(domain_index);
        for (number, ask) in asks.iter().enumerate() {
            let place = Place(first + number);
            let index =
                u16::try_from(number).map_err(|_| AskError::invalid("asks", "a call has at most 65535 asks"))?;
            let end = match &ask.subject {
                Subject::Entries(entries) => {
                    rules_hold(ask, place)?;
                    let descriptor = self.ask_descriptor(entries, ask.cost, place, "entries")?;
                    self.plan_entries(&mut walk, index, &descriptor, domain_index, place)?
                }
                Subject::Limiter { limiter, key } => {
                    let descriptor = self.ask_descriptor(key, ask.cost, place, "key")?;
                    let rewritten = rewrite(&descriptor, domain);
                    let descriptor = rewritten.as_ref().unwrap_or(&descriptor);
                    match domain.derived.is_empty() {
                        true => self.plan_limiter(&mut walk, index, descriptor, domain, (limiter, ask), place)?,
                        false => {
                            let derived = domain.derive(descriptor, GivenEntries::Dropped);
                            self.plan_limiter(&mut walk, index, &derived, domain, (limiter, ask), place)?
                        }
                    }
                }
            };
            walk.planned.ends.push(end);
            if walk.planned.plan.checks.len() > self.bounds.checks {
                let most = self.bounds.checks;
                return Err(AskError::invalid(place.to_string(), format!("the call makes more than {most} checks")));
            }
            if walk.asks_too_many_values {
                let message = format!("the call asks for more than {MAX_ASKED} different values of one counter");
                return Err(AskError::invalid(place.to_string(), message));
            }
            if walk.takes_too_many_places() {
                return Err(AskError::invalid(
                    place.to_string(),
                    "the call takes more than 8 slots and holds, the most of a lease",
                ));
            }
        }
        Ok(walk.finish())
    }

    fn ask_descriptor<'a>(
        &self,
        entries: &'a [(String, String)],
        cost: u32,
        place: Place,
        field: &str,
    ) -> Result<Descriptor<'a>, AskError> {
        let most = self.bounds.entries;
        if entries.len() > most {
            return Err(AskError::invalid(format!("{place}.{field}"), format!("expected at most {most} entries")));
        }
        for (number, (entry, _)) in entries.iter().enumerate() {
            if entries[..number].iter().any(|(known, _)| known == entry) {
                return Err(AskError::invalid(format!("{place}.{field}"), format!("names entry {entry:?} twice")));
            }
        }
        let entries = entries.iter().map(|(key, value)| Entry { key, value: Cow::Borrowed(value.as_str()) });
        Ok(Descriptor { entries: entries.collect(), hits: Hits::Charge(cost), ..Descriptor::default() })
    }

    /// Plans entries as for a gateway, but refuses to pass what nothing counts.
    fn plan_entries(
        &self,
        walk: &mut Walk<'_>,
        index: u16,
        descriptor: &Descriptor<'_>,
        domain_index: usize,
        place: Place,
    ) -> Result<DescriptorEnd, AskError> {
        let domain = &self.domains[domain_index];
        let before = walk.planned.plan.checks.len();
        let (skipped, in_shadow) = (walk.planned.notes.skipped, walk.planned.notes.shadow_refusals);
        let end = walk.requested(index, descriptor, domain);
        let counted = walk.planned.sources.iter().any(|source| source.descriptor == index);
        let judged = counted || walk.planned.notes.shadow_refusals > in_shadow;
        let uncounted = match end {
            // A rule that is in shadow on its own leaves a descriptor unmatched.
            DescriptorEnd::Unmatched => !judged,
            // Every check of the rules that match was skipped, because an entry of its key is missing.
            DescriptorEnd::Checked => !judged && walk.planned.notes.skipped > skipped,
            DescriptorEnd::Allowed | DescriptorEnd::Released | DescriptorEnd::Refused => false,
        };
        debug_assert!(!uncounted || walk.planned.plan.checks.len() == before, "a check has a source");
        if uncounted {
            let words = self.miss(domain_index, descriptor).map(|miss| miss.words).unwrap_or_default();
            let message = format!("no rule counts these entries: {words}");
            return Err(AskError::not_found(format!("{place}.entries"), message));
        }
        Ok(end)
    }

    /// Plans a limiter by the apply of a rule, or directly.
    fn plan_limiter(
        &self,
        walk: &mut Walk<'_>,
        index: u16,
        descriptor: &Descriptor<'_>,
        domain: &CompiledDomain,
        (limiter, ask): (&str, &Ask),
        place: Place,
    ) -> Result<DescriptorEnd, AskError> {
        let Some(applies) = domain.references.get(limiter) else {
            let Some(&target) = self.direct.get(limiter) else {
                return Err(AskError::not_found(format!("{place}.limiter"), self.no_reference(domain, limiter)));
            };
            if ask.hold.is_some() && self.limiter(target).quota.is_none() {
                let message = format!(
                    "expected none: limiter {limiter:?} has slots only, which are held as its lease says; ask for another \
                     length with lease"
                );
                return Err(AskError::invalid(format!("{place}.hold"), message));
            }
            self.plan_direct(walk, index, descriptor, domain, (target, ask), place)?;
            return Ok(DescriptorEnd::Checked);
        };
        rules_hold(ask, place)?;
        let found = applies.iter().filter_map(|&(rule, index)| Some((rule, domain.apply(rule, index)?)));
        let found: Vec<(u32, &CompiledApply)> = found.collect();
        let mut fitting = found.iter().copied().filter(|(_, apply)| apply.is_asked_by(descriptor, domain));
        let Some((mut rule, mut apply)) = fitting.next() else {
            let known = found.iter().map(|(_, apply)| apply.asked_entries(domain).join(" + "));
            return Err(AskError::not_found(format!("{place}.key"), other_keys(domain, limiter, descriptor, known)));
        };
        let in_shadow = |rule: u32| domain.rules[rule as usize].in_shadow(descriptor);
        for (other_rule, other) in fitting {
            if !apply.counts_as(other, self) {
                let [one, two] = [rule, other_rule].map(|rule| &domain.rules[rule as usize].name);
                let message = format!(
                    "rules {one:?} and {two:?} apply {limiter:?} by this key in different ways; ask with entries"
                );
                return Err(AskError::invalid(format!("{place}.limiter"), message));
            }
            // Where one of them is in shadow, the enforced one decides (semantics 13).
            if in_shadow(rule) && !in_shadow(other_rule) {
                (rule, apply) = (other_rule, other);
            }
        }
        if matches!(apply.target(descriptor), Resolved::NoLimiter) {
            let names = self.limiters.iter().map(|limiter| limiter.name.as_str());
            let filled = filled(limiter, descriptor);
            return Err(AskError::not_found(format!("{place}.key"), unknown("limiter", &filled, names)));
        }
        let skipped = walk.planned.notes.skipped;
        let refused = walk.apply(index, descriptor, (rule, in_shadow(rule)), apply);
        if walk.planned.notes.skipped > skipped {
            let message = format!("no row of a table has this key, so {limiter:?} counts nothing (missing = \"skip\")");
            return Err(AskError::not_found(format!("{place}.key"), message));
        }
        let Some(refused) = refused else { return Ok(DescriptorEnd::Checked) };
        debug_assert!(!domain.derived.is_empty(), "all entries that are not derived are there");
        walk.planned.refused.get_or_insert(refused);
        Ok(DescriptorEnd::Refused)
    }

    /// Plans a limiter that no rule applies, by any key.
    fn plan_direct(
        &self,
        walk: &mut Walk<'_>,
        index: u16,
        descriptor: &Descriptor<'_>,
        domain: &CompiledDomain,
        (target, ask): (u32, &Ask),
        place: Place,
    ) -> Result<(), AskError> {
        let limiter = self.limiter(target);
        let quota = limiter.quota.as_ref();
        let of = quota.and_then(|quota| counted_values(quota, &limiter.name, &self.values, &domain.forms));
        let of = of.unwrap_or_default();
        if let Some(absent) = of.iter().find(|part| descriptor.value(&part.entry).is_none()) {
            let message =
                format!("expected the entry {:?}, whose different values {:?} counts", absent.entry, limiter.name);
            return Err(AskError::invalid(format!("{place}.key"), message));
        }
        if ask.hold.is_some() && !of.is_empty() {
            let message =
                format!("expected none: limiter {:?} counts different values, which cannot be held", limiter.name);
            return Err(AskError::invalid(format!("{place}.hold"), message));
        }
        let counted = |entry: &&Entry<'_>| of.iter().any(|part| part.entry == entry.key);
        let key = descriptor.entries.iter().filter(|entry| !counted(entry));
        let key = key.map(|entry| KeyEntry { entry: entry.key.to_owned(), normalise: vec![] });
        let key = compiled_key(key, &domain.forms);
        let apply = CompiledApply {
            partitions: partitions(&self.secret, &self.partitioned, &domain.name, &key),
            domain: domain.name.clone(),
            reference: limiter.name.clone(),
            template: LimiterTemplate::Fixed(target),
            key,
            of: of.iter().map(|part| part.entry.clone()).collect(),
            charge: Charge::Admitted,
            overdraw: false,
            missing: Missing::Deny,
            hold: ask
                .hold
                .map(|length| HoldFor { length, lost: if ask.release_lost { Lost::Release } else { Lost::Charge } }),
        };
        let partitioned = self.partitioned.iter().any(|partitioned| partitioned.store == limiter.store);
        let first = apply.key.first().map(|part| part.entry.as_str());
        let name = |kind: &str| -> CounterName {
            let prefix = name_prefix(&self.secret, &apply.domain, &apply.reference, kind, first, partitioned);
            apply.name(&prefix, descriptor).expect("the key has the entries of the descriptor")
        };
        let shadow = domain.shadow;
        let origin = CheckOrigin { descriptor: index, rule: CheckSource::NO_RULE, target, shadow };
        if let Some(quota) = quota {
            let limit = self.quota_limit(self.targets[target as usize].limiter as usize, quota);
            let counter = name(&quota.kind());
            match of.is_empty() {
                true => walk.check_quota(origin, counter, limit, descriptor.hits, &apply, (None, false)),
                false => {
                    let added = walk.check_values(origin, (counter, limit), descriptor, (&apply, &of), (None, false));
                    debug_assert!(added.is_some(), "the descriptor has its entries");
                }
            }
        }
        if let Some(slots) = limiter.concurrency {
            walk.check_slots(origin, name("concurrency"), Limit::Concurrency(slots), descriptor.hits);
        }
        Ok(())
    }

    /// Why a limiter cannot be asked for in a domain.
    fn no_reference(&self, domain: &CompiledDomain, limiter: &str) -> String {
        let applied_as = domain.references.iter().filter(|(reference, _)| reference.as_str() != limiter);
        let mut reaching: Vec<&str> = applied_as
            .filter(|(_, applies)| {
                let applies = applies.iter().filter_map(|&(rule, index)| domain.apply(rule, index));
                applies.flat_map(|apply| apply.template.targets()).any(|target| self.limiter(target).name == limiter)
            })
            .map(|(reference, _)| reference.as_str())
            .collect();
        reaching.sort_unstable();
        let name = &domain.name;
        if let Some(reference) = reaching.first() {
            return format!("the rules of domain {name:?} apply {limiter:?} as {reference:?}; ask for it by that name");
        }
        if self.limiters.iter().any(|known| known.name == limiter) {
            return format!(
                "no rule of domain {name:?} applies limiter {limiter:?}; ask in the domain of its rules, or set direct \
                 = true on a limiter that no rule applies"
            );
        }
        let mut names: Vec<&str> = domain.references.keys().chain(self.direct.keys()).map(String::as_str).collect();
        names.sort_unstable();
        unknown("limiter", limiter, names.into_iter())
    }
}

impl CompiledDomain {
    /// The apply with this index of a rule.
    fn apply(&self, rule: u32, index: usize) -> Option<&CompiledApply> {
        match &self.rules.get(rule as usize)?.action {
            CompiledAction::Apply(applies) => applies.get(index),
            CompiledAction::Allow | CompiledAction::Deny => None,
        }
    }
}

impl CompiledApply {
    /// The entries by which it is asked for: those of its key, those whose values are counted, and those that fill its
    /// reference. For one that is derived, what it is derived from.
    fn asked_entries<'e>(&'e self, domain: &'e CompiledDomain) -> Vec<&'e str> {
        let key = self.key.iter().map(|part| part.entry.as_str());
        let of = self.of.iter().map(String::as_str);
        let named = key.chain(of).chain(self.template.entries());
        let mut entries: Vec<&str> = named.map(|entry| domain.sent(entry)).collect();
        entries.sort_unstable();
        entries.dedup();
        entries
    }

    /// Whether a descriptor has the entries by which it is asked for, and no others.
    fn is_asked_by(&self, descriptor: &Descriptor<'_>, domain: &CompiledDomain) -> bool {
        let asked = self.asked_entries(domain);
        let given = descriptor.entries.iter().filter(|entry| domain.derivation(entry.key).is_none()).count();
        asked.len() == given && asked.iter().all(|entry| descriptor.value(entry).is_some())
    }

    /// Whether another apply of the same reference counts the same, in the same way.
    fn counts_as(&self, other: &CompiledApply, rules: &Rules) -> bool {
        let otherwise =
            |apply: &CompiledApply| apply.template.otherwise().map(|target| rules.targets[target as usize].limiter);
        self.key == other.key
            && self.charge == other.charge
            && self.overdraw == other.overdraw
            && self.hold == other.hold
            && otherwise(self) == otherwise(other)
    }
}

/// Refuses an ask that says how long it is held where a rule says that.
fn rules_hold(ask: &Ask, place: Place) -> Result<(), AskError> {
    match ask.hold {
        None => Ok(()),
        Some(_) => Err(AskError::invalid(
            format!("{place}.hold"),
            "expected none: a rule applies the limiter, and says whether it holds",
        )),
    }
}

/// The text about a name that is not known, with the nearest one that is.
fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("no {kind} has the name {name:?}; did you mean {near:?}?"),
        None => format!("no {kind} has the name {name:?}"),
    }
}

/// The text about entries by which no rule applies a limiter.
fn other_keys(
    domain: &CompiledDomain,
    limiter: &str,
    descriptor: &Descriptor<'_>,
    known: impl Iterator<Item = String>,
) -> String {
    let phrase = |entries: String| if entries.is_empty() { "no entries".to_owned() } else { entries };
    let mut known: Vec<String> = known.map(phrase).collect();
    known.sort_unstable();
    known.dedup();
    let entries: Vec<&str> = descriptor.entries.iter().map(|entry| entry.key).collect();
    let known_entries = known.iter().flat_map(|key| key.split(" + "));
    let misspelt = entries.iter().find_map(|entry| {
        let near = nearest(entry, known_entries.clone()).filter(|near| near != entry)?;
        Some(format!("; did you mean {near:?} by {entry:?}?"))
    });
    let more = known.len().saturating_sub(MAX_LISTED_KEYS);
    known.truncate(MAX_LISTED_KEYS);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    format!(
        "no rule of domain {:?} applies {limiter:?} by {}; rules apply it by: {}{more}{}",
        domain.name,
        phrase(entries.join(" + ")),
        known.join(", "),
        misspelt.unwrap_or_default()
    )
}

/// A reference with its entries filled, for an error.
fn filled(reference: &str, descriptor: &Descriptor<'_>) -> String {
    let text = |part: TemplatePart| match part {
        TemplatePart::Text(text) => text,
        TemplatePart::Entry(entry) => descriptor.value(&entry).unwrap_or_default().to_owned(),
    };
    template_parts(reference).into_iter().map(text).collect()
}
