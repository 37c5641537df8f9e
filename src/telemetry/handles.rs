//! The series of one version of the rules, prepared so that counting a decision needs no lookup and no allocation.

use metrics::Counter;

use super::mistakes::{Mistake, Mistakes};
use super::series::{
    CHECKS, CHECKS_SKIPPED, OVERRIDES_IGNORED, REPEATED_ENTRIES, Registry, SHADOW_REFUSALS, UNMATCHED,
};
use super::unmatched::Unmatched;
use crate::clock::Timestamp;
use crate::decision::{Decision, Reason};
use crate::descriptor::Request;
use crate::plan::Outcome;
use crate::rules::{DescriptorEnd, RefusedBy, RuleLabel, Rules};
use crate::settings::AuthzSettings;

/// The most rules with their own labels. Further rules are counted together as [`OTHER_RULES`]: a hundred thousand rules
/// would make a million series.
const MAX_LABELLED_RULES: usize = 2_000;

/// The label of the rules past [`MAX_LABELLED_RULES`], and of their limiters.
const OTHER_RULES: &str = "(others)";

/// Metric handles for the decisions of one version of the rules.
pub struct Handles {
    domains: Vec<DomainCounters>,
    /// Those of the targets that rules apply. The others are those of each domain.
    targets: Vec<TargetCounters>,
    /// Allowed requests for an unknown domain.
    no_domain: Counter,
    /// Requests for an unknown domain that are too large.
    no_domain_too_large: Counter,
}

struct DomainCounters {
    allowed: Counter,
    skipped: Counter,
    overrides: Counter,
    shadow_refusals: Counter,
    /// Refused requests that no rule matches.
    unmatched: Counter,
    /// Descriptors that pass because no rule matches them.
    unmatched_descriptors: Counter,
    unmatched_samples: Unmatched,
    too_large: Counter,
    /// For each entry of ext_authz that its rules need and requests can repeat.
    repeated: Vec<(String, Counter)>,
    /// For each rule: denied, missing key, no limiter, repeated, unreadable.
    rules: Vec<[Counter; 5]>,
    /// For each limiter that no rule applies and that workers ask for.
    direct: Vec<TargetCounters>,
}

/// Counters of one limiter as applied by one rule.
struct TargetCounters {
    /// Refusals that it decided: limit exceeded, store error.
    decided: [Counter; 2],
    /// Checks: passed, refused, failed.
    enforced: [Counter; 3],
    shadow: [Counter; 3],
}

impl TargetCounters {
    fn new(registry: &Registry<'_>, [domain, rule, limiter]: [&str; 3], enforced: bool, shadow: bool) -> Self {
        let checks = |mode: &'static str, counted: bool| {
            ["passed", "refused", "failed"].map(|verdict| {
                let labels =
                    [("domain", domain), ("rule", rule), ("limiter", limiter), ("verdict", verdict), ("mode", mode)];
                if counted { registry.counter(CHECKS, &labels) } else { Counter::noop() }
            })
        };
        Self {
            decided: [Reason::Limit, Reason::StoreError].map(|why| match enforced {
                true => registry.decisions(domain, rule, limiter, "refused", why.name()),
                false => Counter::noop(),
            }),
            enforced: checks("enforced", enforced),
            shadow: checks("shadow", shadow),
        }
    }
}

impl Handles {
    /// The counters of a target: those of the limiters that no rule applies come last, in each domain.
    fn target(&self, domain: Option<usize>, target: u32) -> &TargetCounters {
        let target = target as usize;
        match (self.targets.get(target), domain) {
            (Some(counters), _) => counters,
            (None, domain) => &self.domains[domain.unwrap_or_default()].direct[target - self.targets.len()],
        }
    }

    pub(super) fn new(rules: &Rules, authz: &AuthzSettings, registry: &Registry<'_>) -> Self {
        let sources = || authz.entries.iter().filter(|(_, source)| source.from.repeats());
        let repeatable = || sources().map(|(entry, _)| entry.as_str()).chain(["host"]);
        // Domains and rules by index, and the label of each rule.
        let domains: Vec<(&str, Vec<RuleLabel<'_>>)> =
            rules.domain_names().map(|(name, rules)| (name, rules.collect())).collect();
        let mut labels_left = MAX_LABELLED_RULES;
        let mut labels: Vec<Vec<&str>> = Vec::with_capacity(domains.len());
        for (_, rules) in &domains {
            let (own, others) = rules.split_at(rules.len().min(labels_left));
            labels_left -= own.len();
            labels.push(own.iter().map(|rule| rule.name).chain(others.iter().map(|_| OTHER_RULES)).collect());
        }
        let direct: Vec<&str> =
            rules.target_names().filter(|(at, _)| at.is_none()).map(|(_, limiter)| limiter).collect();
        let is_labelled = direct.len() * domains.len() <= MAX_LABELLED_RULES;
        let domain = |((name, _), labels): (&(&str, Vec<RuleLabel<'_>>), &Vec<&str>)| DomainCounters {
            direct: direct
                .iter()
                .map(|limiter| {
                    let limiter = if is_labelled { limiter } else { OTHER_RULES };
                    TargetCounters::new(registry, [name, "", limiter], true, true)
                })
                .collect(),
            allowed: registry.decisions(name, "", "", "allowed", ""),
            skipped: registry.counter(CHECKS_SKIPPED, &[("domain", name)]),
            overrides: registry.counter(OVERRIDES_IGNORED, &[("domain", name)]),
            shadow_refusals: registry.counter(SHADOW_REFUSALS, &[("domain", name)]),
            unmatched: registry.decisions(name, "", "", "refused", Reason::Unmatched.name()),
            unmatched_descriptors: registry.counter(UNMATCHED, &[("domain", name)]),
            unmatched_samples: Unmatched::default(),
            too_large: registry.decisions(name, "", "", "refused", Reason::TooLarge.name()),
            repeated: repeatable()
                .filter(|entry| rules.needs(name, entry))
                .map(|entry| {
                    let labels = [("domain", *name), ("entry", entry)];
                    (entry.to_owned(), registry.counter(REPEATED_ENTRIES, &labels))
                })
                .collect(),
            rules: labels
                .iter()
                .map(|rule| {
                    [Reason::Denied, Reason::MissingKey, Reason::NoLimiter, Reason::Repeated, Reason::Unreadable]
                        .map(|why| registry.decisions(name, rule, "", "refused", why.name()))
                })
                .collect(),
        };
        let target = |(at, limiter): (Option<(usize, u32)>, &str)| {
            let (domain_index, rule) = at?;
            let (domain, rules) = &domains[domain_index];
            let (rule_modes, rule) = (rules[rule as usize], labels[domain_index][rule as usize]);
            // Each of these rules may have its own limiter, so limiters are counted together too.
            let limiter = if rule == OTHER_RULES { OTHER_RULES } else { limiter };
            Some(TargetCounters::new(registry, [domain, rule, limiter], rule_modes.enforced, rule_modes.shadow))
        };
        Self {
            domains: domains.iter().zip(&labels).map(domain).collect(),
            targets: rules.target_names().filter_map(target).collect(),
            no_domain: registry.decisions("", "", "", "allowed", ""),
            no_domain_too_large: registry.decisions("", "", "", "refused", Reason::TooLarge.name()),
        }
    }

    pub(super) fn count(&self, decision: &Decision) {
        let planned = decision.planned();
        for source in &planned.sources {
            let answer = decision.applied().answers.get(usize::from(source.check));
            let verdict = match answer {
                Some(Ok(Outcome { passes: true, .. })) => 0,
                Some(Ok(Outcome { passes: false, .. })) => 1,
                Some(Err(_)) | None => 2,
            };
            let target = self.target(planned.domain, source.target);
            let counters = if source.shadow { &target.shadow } else { &target.enforced };
            counters[verdict].increment(1);
        }
        let Some(domain) = planned.domain.map(|domain| &self.domains[domain]) else {
            if decision.allowed() { &self.no_domain } else { &self.no_domain_too_large }.increment(1);
            return;
        };
        for (counter, count) in [
            (&domain.skipped, planned.notes.skipped),
            (&domain.overrides, planned.notes.overrides_ignored),
            (&domain.shadow_refusals, planned.notes.shadow_refusals),
        ] {
            if count > 0 {
                counter.increment(u64::from(count));
            }
        }
        for entry in planned.repeated.iter().flat_map(|repeated| &repeated.0) {
            if let Some((_, counter)) = domain.repeated.iter().find(|(known, _)| known == entry) {
                counter.increment(1);
            }
        }
        let Some((why, rule, target)) = decision.refused_by() else {
            domain.allowed.increment(1);
            return;
        };
        let by_rule =
            |index: usize| rule.and_then(|rule| domain.rules.get(rule as usize)).map(|counters| &counters[index]);
        let by_target = |index: usize| target.map(|target| &self.target(planned.domain, target).decided[index]);
        let counter = match why {
            Reason::Limit => by_target(0),
            Reason::StoreError => by_target(1),
            Reason::Denied => by_rule(0),
            Reason::MissingKey => by_rule(1),
            Reason::NoLimiter => by_rule(2),
            Reason::Repeated => by_rule(3),
            Reason::Unreadable => by_rule(4),
            Reason::Unmatched => Some(&domain.unmatched),
            Reason::TooLarge => Some(&domain.too_large),
            // The call of a worker is refused so, and counted by the service. A decision never is.
            Reason::QueueFull | Reason::Draining => None,
        };
        if let Some(counter) = counter {
            counter.increment(1);
        }
    }
}

impl Handles {
    /// Notes which descriptors rules missed. `keys_of_gateway` says whether the gateway chose the keys of the entries.
    #[inline]
    pub(crate) fn note_matches(
        &self,
        request: &Request<'_>,
        decision: &Decision,
        keys_of_gateway: bool,
        mistakes: &Mistakes,
    ) {
        let planned = decision.planned();
        let (mut matched, mut unmatched) = (false, planned.ends.is_empty());
        for end in &planned.ends {
            match end {
                DescriptorEnd::Unmatched => unmatched = true,
                DescriptorEnd::Checked | DescriptorEnd::Allowed | DescriptorEnd::Refused => matched = true,
                DescriptorEnd::Released => {}
            }
        }
        if matched && let Some(domain) = planned.domain {
            let samples = &self.domains[domain].unmatched_samples;
            let lacks_entry =
                planned.notes.skipped > 0 || matches!(planned.refused, Some(RefusedBy::MissingKey { .. }));
            if lacks_entry || samples.notes_matches() {
                note_matched(samples, request, decision, keys_of_gateway);
            }
        }
        if unmatched {
            self.note_unmatched(request, decision, keys_of_gateway, mistakes);
        }
    }

    #[cold]
    fn note_unmatched(&self, request: &Request<'_>, decision: &Decision, keys_of_gateway: bool, mistakes: &Mistakes) {
        let planned = decision.planned();
        let rules = decision.rules();
        // Such a request is not walked, also where the kill switch lifts the bounds.
        let bounds = rules.bounds();
        let is_large = request.descriptors.len() > bounds.descriptors
            || request.descriptors.iter().any(|descriptor| descriptor.entries.len() > bounds.entries);
        if is_large || decision.exceeded_bound().is_some() {
            return;
        }
        let Some(domain) = planned.domain else {
            let mistake = if request.domain.is_empty() { Mistake::EmptyDomain } else { Mistake::UnknownDomain };
            return mistakes.record(mistake, request.domain);
        };
        if request.descriptors.is_empty() {
            return mistakes.record(Mistake::NoDescriptors, &format!("domain {:?}", request.domain));
        }
        let domain = &self.domains[domain];
        let mut count = 0;
        for (number, (descriptor, end)) in request.descriptors.iter().zip(&planned.ends).enumerate() {
            // An expired lease, or none, may come in any domain.
            if *end != DescriptorEnd::Unmatched || rules.is_release(descriptor) {
                continue;
            }
            // A rule that is in shadow mode on its own leaves a descriptor unmatched.
            let in_shadow = planned.sources.iter().any(|source| usize::from(source.descriptor) == number);
            if in_shadow || planned.shadow_refused_by.is_some() {
                domain.unmatched_samples.note_match();
                if keys_of_gateway {
                    domain.unmatched_samples.count_matched(descriptor);
                }
                continue;
            }
            count += 1;
            domain.unmatched_samples.count(descriptor, keys_of_gateway);
        }
        domain.unmatched_descriptors.increment(count);
    }

    /// Adds the descriptors that are a mistake to the mistakes.
    pub(super) fn report_unmatched(&self, rules: &Rules, mistakes: &Mistakes, now: Timestamp) {
        for (index, domain) in self.domains.iter().enumerate() {
            domain.unmatched_samples.report(index, rules, mistakes, now);
        }
    }
}

/// Notes the descriptors of a request that rules matched.
#[cold]
fn note_matched(samples: &Unmatched, request: &Request<'_>, decision: &Decision, keys_of_gateway: bool) {
    samples.note_match();
    let matched = request.descriptors.iter().zip(&decision.planned().ends).filter(|(_, end)| match end {
        DescriptorEnd::Checked | DescriptorEnd::Allowed | DescriptorEnd::Refused => keys_of_gateway,
        DescriptorEnd::Unmatched | DescriptorEnd::Released => false,
    });
    matched.for_each(|(descriptor, _)| samples.count_matched(descriptor));
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handles")
    }
}
