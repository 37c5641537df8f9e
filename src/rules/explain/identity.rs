//! The counters of an identity, to inspect or reset a lockout.

use crate::clock::Timestamp;
use crate::descriptor::Descriptor;
use crate::limiter::{Limit, OnStoreError};
use crate::plan::{Charges, Check, CounterName, Needs};
use crate::rules::compiled::{CompiledAction, CompiledApply, CompiledDomain, CompiledRule, LimiterTemplate, Rules};
use crate::rules::plan::{Resolved, rewrite};

/// The most keys listed in an error.
const MAX_LISTED_KEYS: usize = 20;

/// One counter that a rule would ask for a request with these entries.
#[derive(Clone, Debug)]
pub struct KnownCounter {
    /// The rule; of several the first that enforces it.
    pub rule: String,
    /// The limiter.
    pub limiter: String,
    /// The entries of its key, by name.
    pub key: Vec<String>,
    /// Whether it is the limiter's slots, not its quota.
    pub slots: bool,
    /// Whether it counts and never denies.
    pub shadow: bool,
    /// Reads the counter without charging it: passes when a charge of one unit would.
    pub check: Check,
}

/// Why no counter is known by some entries. It names entries and never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotCounted {
    /// The domain has neither rules nor settings.
    #[error("there is no domain {domain:?} in the configuration; domains with rules: {known}")]
    UnknownDomain {
        /// The domain that was asked.
        domain: String,
        /// Those that have rules.
        known: String,
    },
    /// No key of the domain is made of these entries alone.
    #[error("no limiter of domain {domain:?} counts by {by}; its limiters count by: {known}")]
    OtherKeys {
        /// The domain.
        domain: String,
        /// The entries that were given, by name.
        by: String,
        /// What keys of the domain are made of.
        known: String,
    },
}

impl Rules {
    /// The counters that are identified by these entries: of every rule of the domain, whether it matches or not, each
    /// limiter whose key is made of nothing else. Where the entries leave open which of several tiers' limiters holds,
    /// all of them are returned. Without entries, the counters that are one for all.
    ///
    /// Counters of limits that came with requests are not known here.
    ///
    /// # Errors
    ///
    /// There is no such domain, or no counter.
    pub fn counters(
        &self,
        domain: &str,
        descriptor: &Descriptor<'_>,
        now: Timestamp,
    ) -> Result<Vec<KnownCounter>, NotCounted> {
        let Some(&place) = self.by_name.get(domain) else {
            let known = listed(self.domains_with_rules().into_iter().map(str::to_owned).collect());
            return Err(NotCounted::UnknownDomain { domain: domain.to_owned(), known });
        };
        let domain = &self.domains[place];
        let rewritten = rewrite(descriptor, domain);
        let descriptor = rewritten.as_ref().unwrap_or(descriptor);
        let mut known: Vec<KnownCounter> = Vec::new();
        for rule in &domain.rules {
            let CompiledAction::Apply(applies) = &rule.action else { continue };
            for apply in applies.iter().filter(|apply| apply.is_of(descriptor)) {
                for target in apply.targets(descriptor) {
                    self.counters_of(apply, target, descriptor, now, rule, &mut known);
                }
            }
        }
        match known.is_empty() {
            true => Err(not_counted(domain, descriptor)),
            false => Ok(known),
        }
    }

    /// The domains that have rules, by name.
    pub(super) fn domains_with_rules(&self) -> Vec<&str> {
        let with_rules = self.domains.iter().filter(|known| !known.rules.is_empty());
        let mut domains: Vec<&str> = with_rules.map(|known| known.name.as_str()).collect();
        domains.sort_unstable();
        domains
    }

    fn counters_of(
        &self,
        apply: &CompiledApply,
        number: u32,
        descriptor: &Descriptor<'_>,
        now: Timestamp,
        rule: &CompiledRule,
        known: &mut Vec<KnownCounter>,
    ) {
        let target = &self.targets[number as usize];
        let limiter = self.limiter(number);
        let quota = target.quota.as_ref().map(|quota| (false, &quota.prefix, self.limit(target, quota, now)));
        let slots = target.slots.as_ref().map(|(prefix, limit)| (true, prefix, *limit));
        for (slots, prefix, limit) in quota.into_iter().chain(slots) {
            let Some(counter) = apply.name(prefix, descriptor) else { continue };
            let shadow = rule.in_shadow(counter);
            let same = |other: &&mut KnownCounter| other.check.counter == counter && other.limiter == limiter.name;
            if let Some(same) = known.iter_mut().find(same) {
                if same.shadow && !shadow {
                    (same.rule, same.shadow) = (rule.name.clone(), false);
                }
                continue;
            }
            known.push(KnownCounter {
                rule: rule.name.clone(),
                shadow,
                limiter: limiter.name.clone(),
                key: apply.key.iter().map(|part| part.entry.clone()).collect(),
                slots,
                check: read_check(counter, limiter.store, limit),
            });
        }
    }
}

impl CompiledApply {
    /// Whether these entries are all of its key, and it has one; or neither has any.
    fn is_of(&self, descriptor: &Descriptor<'_>) -> bool {
        match self.key.is_empty() {
            true => descriptor.entries.is_empty(),
            false => self.key.iter().all(|part| descriptor.value(&part.entry).is_some()),
        }
    }

    /// The targets it may stand for: one where the entries say which, else all.
    fn targets(&self, descriptor: &Descriptor<'_>) -> Vec<u32> {
        if let Resolved::Target(target) = self.target(descriptor) {
            return vec![target];
        }
        let mut all: Vec<u32> = match &self.template {
            LimiterTemplate::Fixed(target) => vec![*target],
            LimiterTemplate::One { by_value: by, otherwise, .. }
            | LimiterTemplate::Many { by_name: by, otherwise, .. } => by.values().chain(otherwise).copied().collect(),
        };
        all.sort_unstable();
        all
    }
}

/// The error for entries that identify no counter.
fn not_counted(domain: &CompiledDomain, descriptor: &Descriptor<'_>) -> NotCounted {
    let applies = domain.rules.iter().filter_map(|rule| match &rule.action {
        CompiledAction::Apply(applies) => Some(applies),
        CompiledAction::Allow | CompiledAction::Deny => None,
    });
    // What each key is made of, with the limiters that have it.
    let mut keys: Vec<(String, Vec<&str>)> = Vec::new();
    for apply in applies.flatten() {
        let entries: Vec<&str> = apply.key.iter().map(|part| part.entry.as_str()).collect();
        let key = if entries.is_empty() { "nothing, one for all".to_owned() } else { entries.join(" + ") };
        let place = keys.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            keys.push((key, Vec::new()));
            keys.len() - 1
        });
        if !keys[place].1.contains(&apply.reference.as_str()) {
            keys[place].1.push(&apply.reference);
        }
    }
    let keys = keys.into_iter().map(|(key, limiters)| format!("{key} ({})", limiters.join(", ")));
    let by: Vec<&str> = descriptor.entries.iter().map(|entry| entry.key).collect();
    NotCounted::OtherKeys {
        domain: domain.name.clone(),
        by: if by.is_empty() { "nothing, as one for all".to_owned() } else { format!("{} alone", by.join(" + ")) },
        known: listed(keys.collect()),
    }
}

/// The first of some words, and how many more there are.
fn listed(words: Vec<String>) -> String {
    match words.len() {
        0 => "none".to_owned(),
        1..=MAX_LISTED_KEYS => words.join(", "),
        all => format!("{}, and {} more", words[..MAX_LISTED_KEYS].join(", "), all - MAX_LISTED_KEYS),
    }
}

/// A check that charges nothing, and passes when a charge of one would. It is in shadow, as no request is decided by it:
/// a store that is away is not said to have refused one.
fn read_check(counter: CounterName, store: u16, limit: Limit) -> Check {
    Check {
        counter,
        store,
        limit,
        needs: Needs { fits: 1, ..Needs::default() },
        charges: Charges::default(),
        refund: 0,
        shadow: true,
        always_denied: false,
        on_store_error: OnStoreError::Deny,
    }
}
