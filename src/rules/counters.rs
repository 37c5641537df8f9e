//! The counters that an identity has: what is asked when somebody is locked out.

use super::compile::{CompiledAction, CompiledApply, Rules, Template};
use super::plan::{Resolved, rewrite};
use crate::clock::Timestamp;
use crate::descriptor::Descriptor;
use crate::limiter::{Charges, Check, CounterName, Limit, Needs, OnStoreError};

/// One counter that a rule would ask for a request with these entries.
#[derive(Clone, Debug)]
pub struct KnownCounter {
    /// The rule.
    pub rule: String,
    /// The limiter.
    pub limiter: String,
    /// The entries of its key, by name.
    pub key: Vec<String>,
    /// Whether it is the limiter's slots, not its quota.
    pub slots: bool,
    /// Looks at the counter without charging it: passes when one unit would.
    pub look: Check,
}

impl Rules {
    /// The counters that are identified by these entries: of every rule of the domain, whether it matches or not, each
    /// limiter whose key is made of nothing else. Where the entries leave open which of several tiers' limiters holds,
    /// all of them are told. Without entries, the counters that are one for all.
    ///
    /// `None` when there is no such domain. Counters of limits that came with requests are not known here.
    pub fn counters(&self, domain: &str, descriptor: &Descriptor<'_>, now: Timestamp) -> Option<Vec<KnownCounter>> {
        let domain = &self.domains[*self.by_name.get(domain)?];
        let rewritten = rewrite(descriptor, domain);
        let descriptor = rewritten.as_ref().unwrap_or(descriptor);
        let mut known: Vec<KnownCounter> = Vec::new();
        for rule in &domain.rules {
            let CompiledAction::Apply(applies) = &rule.action else { continue };
            for apply in applies.iter().filter(|apply| apply.is_of(descriptor)) {
                for target in apply.targets(descriptor) {
                    self.counters_of(apply, target, descriptor, now, &rule.name, &mut known);
                }
            }
        }
        Some(known)
    }

    fn counters_of(
        &self,
        apply: &CompiledApply,
        number: u32,
        descriptor: &Descriptor<'_>,
        now: Timestamp,
        rule: &str,
        known: &mut Vec<KnownCounter>,
    ) {
        let target = &self.targets[number as usize];
        let limiter = self.limiter(number);
        let quota = target.quota.as_ref().map(|quota| (false, &quota.prefix, self.limit(target, quota, now)));
        let slots = target.slots.as_ref().map(|(prefix, limit)| (true, prefix, *limit));
        for (slots, prefix, limit) in quota.into_iter().chain(slots) {
            let Some(counter) = apply.name(prefix, descriptor) else { continue };
            let same = |other: &KnownCounter| other.look.counter == counter && other.limiter == limiter.name;
            if known.iter().any(same) {
                continue;
            }
            known.push(KnownCounter {
                rule: rule.to_owned(),
                limiter: limiter.name.clone(),
                key: apply.key.iter().map(|part| part.entry.clone()).collect(),
                slots,
                look: look(counter, limiter.store, limit),
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
            Template::Fixed(target) => vec![*target],
            Template::One { by_value: by, otherwise, .. } | Template::Many { by_name: by, otherwise, .. } => {
                by.values().chain(otherwise).copied().collect()
            }
        };
        all.sort_unstable();
        all
    }
}

/// A check that charges nothing, and passes when a charge of one would.
fn look(counter: CounterName, store: u16, limit: Limit) -> Check {
    Check {
        counter,
        store,
        limit,
        needs: Needs { fits: 1, ..Needs::default() },
        charges: Charges::default(),
        refund: 0,
        shadow: false,
        barred: false,
        on_store_error: OnStoreError::Deny,
    }
}
