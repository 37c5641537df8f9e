//! The counters of an identity, to inspect or reset a lockout.

use crate::descriptor::Descriptor;
use crate::limiter::{Limit, OnStoreError};
use crate::plan::{Charges, Check, CounterName, Holding, Needs};
use crate::rules::compiled::{CompiledAction, CompiledApply, CompiledDomain, CompiledRule, Rules};
use crate::rules::derive::GivenEntries;
use crate::rules::resolve::{Resolved, rewrite};

/// Maximum number of keys listed in an error.
const MAX_LISTED_KEYS: usize = 20;

/// A counter that a rule would check for a request with these entries.
#[derive(Clone, Debug)]
pub struct KnownCounter {
    /// The rule; of several, the first that enforces it.
    pub rule: String,
    /// The limiter.
    pub limiter: String,
    /// The names of the entries of its key.
    pub key: Vec<String>,
    /// Whether it counts the limiter's slots, not its quota.
    pub slots: bool,
    /// Counts but never denies.
    pub shadow: bool,
    /// Reads the counter without charging it: passes when a charge of one unit would.
    pub check: Check,
}

/// Why entries identify no counter. It names entries, never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotCounted {
    /// The domain has neither rules nor settings.
    #[error("no domain {domain:?} is configured; domains with rules: {known}")]
    UnknownDomain {
        /// The requested domain.
        domain: String,
        /// The domains that have rules.
        known: String,
    },
    /// No key of the domain consists of these entries.
    #[error("no limiter of domain {domain:?} counts {by}; its limiters count by: {known}")]
    OtherKeys {
        /// The domain.
        domain: String,
        /// The names of the requested entries, as a phrase.
        by: String,
        /// The keys of the domain, with their limiters.
        known: String,
    },
}

impl Rules {
    /// Returns the counters that these entries identify: those of each limiter whose key consists of such entries, in
    /// all rules of the domain, whether they match or not. Where the entries do not determine which of several tiers
    /// applies, the counters of all tiers. Without entries, the counters that all requests share.
    ///
    /// Counters of overrides are not included.
    ///
    /// # Errors
    ///
    /// There is no such domain, or no counter.
    pub fn counters(&self, domain: &str, descriptor: &Descriptor<'_>) -> Result<Vec<KnownCounter>, NotCounted> {
        let Some(&index) = self.by_name.get(domain) else {
            let known = listed(&self.domains_with_rules().into_iter().map(str::to_owned).collect::<Vec<_>>());
            return Err(NotCounted::UnknownDomain { domain: domain.to_owned(), known });
        };
        let domain = &self.domains[index];
        let rewritten = rewrite(descriptor, domain);
        // An operator names an identity also by what is derived.
        let descriptor = &domain.derive(rewritten.as_ref().unwrap_or(descriptor), GivenEntries::Kept);
        let mut known: Vec<KnownCounter> = Vec::new();
        for rule in &domain.rules {
            let CompiledAction::Apply(applies) = &rule.action else { continue };
            for apply in applies.iter().filter(|apply| apply.is_of(descriptor)) {
                for target in apply.targets(descriptor) {
                    self.counters_of(apply, target, descriptor, rule, &mut known);
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
        rule: &CompiledRule,
        known: &mut Vec<KnownCounter>,
    ) {
        let target = &self.targets[number as usize];
        let limiter = self.limiter(number);
        let quota = target.quota.as_ref().map(|quota| (false, &quota.prefix, quota.limit));
        let slots = target.slots.as_ref().map(|(prefix, limit)| (true, prefix, *limit));
        for (slots, prefix, limit) in quota.into_iter().chain(slots) {
            let Some(counter) = apply.name(prefix, descriptor) else { continue };
            let shadow = rule.in_shadow(descriptor);
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
    /// Whether the descriptor has all entries of the key, or neither has any.
    fn is_of(&self, descriptor: &Descriptor<'_>) -> bool {
        match self.key.is_empty() {
            true => descriptor.entries.is_empty(),
            false => self.key.iter().all(|part| descriptor.value(&part.entry).is_some()),
        }
    }

    /// The targets that the reference may resolve to: one where the entries determine it, else all.
    fn targets(&self, descriptor: &Descriptor<'_>) -> Vec<u32> {
        if let Resolved::Target(target) = self.target(descriptor) {
            return vec![target];
        }
        self.template.targets()
    }
}

/// The error for entries that identify no counter.
fn not_counted(domain: &CompiledDomain, descriptor: &Descriptor<'_>) -> NotCounted {
    let applies = domain.rules.iter().filter_map(|rule| match &rule.action {
        CompiledAction::Apply(applies) => Some(applies),
        CompiledAction::Allow | CompiledAction::Deny => None,
    });
    // Each key, with the limiters that have it.
    let mut keys: Vec<(String, Vec<&str>)> = Vec::new();
    for apply in applies.flatten() {
        let entries: Vec<&str> = apply.key.iter().map(|part| part.entry.as_str()).collect();
        let key = if entries.is_empty() { "nothing, all requests together".to_owned() } else { entries.join(" + ") };
        let index = keys.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            keys.push((key, Vec::new()));
            keys.len() - 1
        });
        if !keys[index].1.contains(&apply.reference.as_str()) {
            keys[index].1.push(&apply.reference);
        }
    }
    let keys = keys.into_iter().map(|(key, limiters)| format!("{key} ({})", limiters.join(", ")));
    let by: Vec<&str> = descriptor.entries.iter().map(|entry| entry.key).collect();
    NotCounted::OtherKeys {
        domain: domain.name.clone(),
        by: if by.is_empty() { "all requests together".to_owned() } else { format!("by {} alone", by.join(" + ")) },
        known: listed(&keys.collect::<Vec<_>>()),
    }
}

/// Lists the first words, and the number of the others.
fn listed(words: &[String]) -> String {
    match words.len() {
        0 => "none".to_owned(),
        1..=MAX_LISTED_KEYS => words.join(", "),
        all => format!("{}, and {} more", words[..MAX_LISTED_KEYS].join(", "), all - MAX_LISTED_KEYS),
    }
}

/// A check that charges nothing, and passes when a charge of one would. It is in shadow because it decides no request,
/// so that a store that does not answer is not reported to have refused one.
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
        holding: if matches!(limit, Limit::Concurrency(_)) { Holding::None } else { Holding::Reported },
    }
}
