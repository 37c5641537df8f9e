//! Turns a request into a plan: walks the rules that match each descriptor.

use super::book::{Missing, Unmatched};
use super::compiled::{
    CompiledAction, CompiledApply, CompiledDomain, CompiledKeyEntry, CompiledRule, LimiterTarget, Rules, name_prefix,
};
use super::derive::GivenEntries;
use super::planned::{CheckSource, DescriptorEnd, Planned, RefusedBy};
use super::resolve::{Resolved, rewrite};
use super::terms::{quota_terms, slot_terms, value_terms};
use super::value_list::ListLookups;
use crate::descriptor::{Descriptor, Hits, LimitOverride, Request};
use crate::lease::{LeaseCommand, LeaseToken, MAX_PLACES_PER_LEASE, Units};
use crate::limiter::{Asked, Distinct, LeaseId, Limit};
use crate::plan::{Charges, Check, CounterName, Holding, Plan};
use crate::secret::NamePrefix;
use crate::settings::Bound;

impl Rules {
    /// Turns a request into checks. Slots will be held under `lease`.
    pub fn plan(&self, request: &Request<'_>, lease: LeaseId) -> Box<Planned> {
        let mut walk = Walk::new(self, lease);
        let domain = self.by_name.get(request.domain).copied();
        walk.planned.domain = domain;
        if request.descriptors.len() > self.bounds.descriptors {
            return walk.refuse_outright(RefusedBy::TooLarge(Bound::Descriptors), request);
        }
        for (number, descriptor) in request.descriptors.iter().enumerate() {
            if descriptor.entries.len() > self.bounds.entries {
                return walk.refuse_outright(RefusedBy::TooLarge(Bound::Entries), request);
            }
            let end = match (walk.change_lease(descriptor), domain) {
                (true, _) => DescriptorEnd::Released,
                (false, None) => DescriptorEnd::Unmatched,
                (false, Some(domain)) => {
                    let domain = &self.domains[domain];
                    walk.requested(number as u16, descriptor, domain)
                }
            };
            walk.planned.ends.push(end);
            let too_many = walk.planned.plan.checks.len() > self.bounds.checks || walk.asks_too_many_values;
            if too_many || walk.takes_too_many_places() {
                return walk.refuse_outright(RefusedBy::TooLarge(Bound::Checks), request);
            }
        }
        walk.finish()
    }
}

/// A plan in the making.
pub(super) struct Walk<'r> {
    rules: &'r Rules,
    /// Boxed: it is several hundred bytes, and moving it would copy them.
    pub(super) planned: Box<Planned>,
    /// Number of slots and holds requested, those of merged checks included.
    places_requested: usize,
    /// Whether enforced checks of one counter ask for more values than it can decide together.
    pub(super) asks_too_many_values: bool,
}

/// A rule and a target of it, from which checks of a descriptor come.
#[derive(Clone, Copy)]
pub(super) struct CheckOrigin {
    pub(super) descriptor: u16,
    pub(super) rule: u32,
    pub(super) target: u32,
    pub(super) shadow: bool,
}

impl<'r> Walk<'r> {
    pub(super) fn new(rules: &'r Rules, lease: LeaseId) -> Self {
        let mut walk = Walk { rules, planned: Box::default(), places_requested: 0, asks_too_many_values: false };
        walk.planned.plan.lease = lease;
        walk
    }
}

// `inline(always)` here, in index.rs and in resolve.rs: gateways and workers walk the same rules, and a function with two
// callers is not inlined by itself. A decision in memory would take 2 % more instructions.
impl Walk<'_> {
    /// Refuses the whole request and charges nothing. Leases that it releases or settles are still changed.
    fn refuse_outright(mut self, refused: RefusedBy, request: &Request<'_>) -> Box<Planned> {
        let shadow = self.rules.shadow;
        let end = if shadow { DescriptorEnd::Unmatched } else { DescriptorEnd::Refused };
        let released = |known: &DescriptorEnd| *known == DescriptorEnd::Released;
        let ends = &mut self.planned.ends;
        ends.iter_mut().filter(|known| !released(known)).for_each(|known| *known = end);
        ends.resize(request.descriptors.len(), end);
        self.planned.refused = Some(refused);
        let mut planned = self.finish();
        if shadow {
            planned.refused = None;
            planned.notes.shadow_refusals += 1;
        }
        planned
    }

    pub(super) fn finish(self) -> Box<Planned> {
        let mut planned = self.planned;
        match planned.refused {
            Some(
                RefusedBy::Denied { .. }
                | RefusedBy::Unmatched
                | RefusedBy::Repeated { .. }
                | RefusedBy::Unreadable { .. }
                | RefusedBy::TooLarge(_),
            ) => {
                // Nothing is charged. The other descriptors still report their remaining units (semantics 16).
                let ends = &planned.ends;
                planned
                    .sources
                    .retain(|source| ends.get(usize::from(source.descriptor)) != Some(&DescriptorEnd::Refused));
                if planned.sources.is_empty() || matches!(planned.refused, Some(RefusedBy::TooLarge(_))) {
                    planned.sources.clear();
                    // Refunds take effect regardless of the verdict (semantics 11).
                    planned.plan.checks.retain(|check| check.refund > 0);
                }
                for check in &mut planned.plan.checks {
                    check.charges = Charges::default();
                }
            }
            Some(RefusedBy::MissingKey { .. } | RefusedBy::NoLimiter { .. }) => planned.plan.refused = true,
            None => {}
        }
        if !planned.plan.checks.is_empty() {
            planned.plan.groups.push(planned.plan.checks.len() as u16);
        }
        planned
    }

    /// Releases or settles the lease in an entry of the descriptor, of which nothing else counts then (semantics 39).
    /// Returns whether there is a genuine one. Of several changes of one lease the first counts.
    #[inline(always)]
    fn change_lease(&mut self, descriptor: &Descriptor<'_>) -> bool {
        let names = &self.rules.lease_entries;
        if !descriptor.entries.iter().any(|entry| names.contains(entry.key)) {
            return false;
        }
        self.change_named_lease(descriptor)
    }

    #[cold]
    fn change_named_lease(&mut self, descriptor: &Descriptor<'_>) -> bool {
        let Rules { lease_entries: names, secret, stores, .. } = self.rules;
        let named = descriptor.entries.iter().filter(|entry| names.contains(entry.key));
        let opened =
            named.filter_map(|entry| Some((entry.key, LeaseToken::open(&entry.value, secret, stores)?))).next();
        let Some((key, token)) = opened else { return false };
        let plan = &mut self.planned.plan;
        let changed = plan.changes.iter().any(|change| change.lease == token.id)
            || plan.holds.iter().any(|change| change.lease == token.id);
        let command = match (descriptor.hits, descriptor.own_hits) {
            _ if key == names.release => LeaseCommand::Release,
            (Hits::Refund(_), _) => LeaseCommand::Release,
            (_, false) => LeaseCommand::Settle(Units::Charged),
            (Hits::Peek, true) => LeaseCommand::Settle(Units::Each(0)),
            (Hits::Charge(units), true) => LeaseCommand::Settle(Units::Each(units)),
        };
        if let (false, Ok(Plan { changes, holds, .. })) = (changed, token.changes(&command, secret)) {
            plan.changes.extend(changes);
            holds.iter().for_each(|change| plan.holds.push(*change));
        }
        true
    }

    /// Walks a descriptor as it was requested: normalises it, and derives entries.
    #[inline(always)]
    pub(super) fn requested(
        &mut self,
        descriptor_number: u16,
        descriptor: &Descriptor<'_>,
        domain: &CompiledDomain,
    ) -> DescriptorEnd {
        let rewritten = rewrite(descriptor, domain);
        let descriptor = rewritten.as_ref().unwrap_or(descriptor);
        match domain.derived.is_empty() {
            true => self.descriptor(descriptor_number, descriptor, domain),
            false => self.derived(descriptor_number, descriptor, domain),
        }
    }

    #[cold]
    #[inline(never)]
    fn derived(
        &mut self,
        descriptor_number: u16,
        normalised: &Descriptor<'_>,
        domain: &CompiledDomain,
    ) -> DescriptorEnd {
        self.descriptor(descriptor_number, &domain.derive(normalised, GivenEntries::Dropped), domain)
    }

    #[inline(always)]
    fn descriptor(
        &mut self,
        descriptor_number: u16,
        descriptor: &Descriptor<'_>,
        domain: &CompiledDomain,
    ) -> DescriptorEnd {
        let mut end = DescriptorEnd::Unmatched;
        let lookups = ListLookups::default();
        for rule_number in domain.index.candidates(descriptor, &lookups) {
            let rule = &domain.rules[rule_number as usize];
            if !rule.matches(descriptor, &lookups) {
                if rule.needs_derived && rule.lacking(descriptor, &lookups).is_some() {
                    end = self.refuse_lacking(descriptor, rule_number, rule).unwrap_or(end);
                }
                continue;
            }
            let shadow = rule.in_shadow(descriptor);
            // On its own: the rule's mode, or a key for which it is not enforced yet.
            let shadow_only = rule.shadow_only || (shadow && !rule.shadow);
            let repeats = descriptor.has_lists() && self.refuse_repeat(descriptor, domain, (rule_number, shadow), rule);
            match &rule.action {
                _ if repeats && shadow => {}
                _ if repeats => return DescriptorEnd::Refused,
                CompiledAction::Allow if rule.shadow_only => {}
                CompiledAction::Allow => return DescriptorEnd::Allowed,
                CompiledAction::Deny if rule.shadow => self.refuse_in_shadow(rule_number),
                CompiledAction::Deny => {
                    self.planned.refused = Some(RefusedBy::Denied { rule: rule_number });
                    return DescriptorEnd::Refused;
                }
                CompiledAction::Apply(applies) => {
                    for apply in applies {
                        if let Some(refused) = self.apply(descriptor_number, descriptor, (rule_number, shadow), apply) {
                            end = DescriptorEnd::Refused;
                            self.planned.refused.get_or_insert(refused);
                        }
                    }
                }
            }
            // A rule that is in shadow on its own changes neither the verdict nor the walk.
            if end == DescriptorEnd::Unmatched && !shadow_only {
                end = DescriptorEnd::Checked;
            }
            let too_many = self.planned.plan.checks.len() > self.rules.bounds.checks;
            if too_many || (rule.last && !shadow_only) {
                break;
            }
        }
        if end == DescriptorEnd::Unmatched && domain.unmatched == Unmatched::Deny {
            if domain.shadow {
                self.planned.notes.shadow_refusals += 1;
                return end;
            }
            // This refusal charges nothing, so it takes precedence over those that still charge.
            let by_rule = matches!(
                self.planned.refused,
                Some(RefusedBy::Denied { .. } | RefusedBy::Repeated { .. } | RefusedBy::Unreadable { .. })
            );
            if !by_rule {
                self.planned.refused = Some(RefusedBy::Unmatched);
            }
            return DescriptorEnd::Refused;
        }
        end
    }

    /// Adds the checks of one limiter. Returns the refusal when the request cannot be counted.
    #[inline(always)]
    pub(super) fn apply(
        &mut self,
        descriptor_number: u16,
        descriptor: &Descriptor<'_>,
        (rule_number, shadow): (u32, bool),
        apply: &CompiledApply,
    ) -> Option<RefusedBy> {
        let refused = match apply.target(descriptor) {
            Resolved::Target(target) => {
                match self.checks(descriptor_number, descriptor, (rule_number, shadow), apply, target) {
                    Some(()) => return None,
                    None if apply.missing == Missing::Deny => RefusedBy::MissingKey { rule: rule_number },
                    None => {
                        self.planned.notes.skipped += 1;
                        return None;
                    }
                }
            }
            Resolved::EntryMissing if apply.missing == Missing::Skip => {
                self.planned.notes.skipped += 1;
                return None;
            }
            Resolved::EntryMissing => RefusedBy::MissingKey { rule: rule_number },
            Resolved::NoLimiter => RefusedBy::NoLimiter { rule: rule_number },
        };
        if shadow {
            self.refuse_in_shadow(rule_number);
            return None;
        }
        Some(refused)
    }

    /// Counts a refusal, regardless of counters, that shadow mode prevents.
    fn refuse_in_shadow(&mut self, rule: u32) {
        self.planned.notes.shadow_refusals += 1;
        self.planned.shadow_refused_by.get_or_insert(rule);
    }

    /// Refuses the request because a derived entry is absent that a rule names. Nothing in shadow.
    #[cold]
    fn refuse_lacking(
        &mut self,
        descriptor: &Descriptor<'_>,
        rule_number: u32,
        rule: &CompiledRule,
    ) -> Option<DescriptorEnd> {
        if rule.in_shadow(descriptor) {
            self.refuse_in_shadow(rule_number);
            return None;
        }
        self.planned.refused.get_or_insert(RefusedBy::MissingKey { rule: rule_number });
        Some(DescriptorEnd::Refused)
    }

    /// Refuses the request if the rule needs an entry that it repeats. Returns whether it does.
    #[cold]
    fn refuse_repeat(
        &mut self,
        descriptor: &Descriptor<'_>,
        domain: &CompiledDomain,
        (rule_number, shadow): (u32, bool),
        rule: &CompiledRule,
    ) -> bool {
        let Some(entry) = rule.repeated_entry(descriptor) else { return false };
        let unreadable = descriptor.list(entry).is_some_and(|list| list.unreadable);
        if !unreadable {
            let (entry, noted) = (domain.sent(entry), &mut self.planned.repeated.get_or_insert_default().0);
            if !noted.iter().any(|known| known == entry) {
                noted.push(entry.to_owned());
            }
        }
        match (shadow, unreadable) {
            (true, _) => self.refuse_in_shadow(rule_number),
            (false, true) => self.planned.refused = Some(RefusedBy::Unreadable { rule: rule_number }),
            (false, false) => self.planned.refused = Some(RefusedBy::Repeated { rule: rule_number }),
        }
        true
    }

    /// The checks of one limiter: its quota, its slots or both. `None` when an entry of the key, or one whose values are
    /// counted, is missing; slots do not need the latter.
    #[inline(always)]
    fn checks(
        &mut self,
        descriptor_number: u16,
        descriptor: &Descriptor<'_>,
        (rule_number, shadow): (u32, bool),
        apply: &CompiledApply,
        target_number: u32,
    ) -> Option<()> {
        let target = &self.rules.targets[target_number as usize];
        let origin = CheckOrigin { descriptor: descriptor_number, rule: rule_number, target: target_number, shadow };
        let mut found = Some(());
        if let Some(quota) = &target.quota {
            let mut applied_override = None;
            let mut always_denied = false;
            let mut limit = quota.limit;
            let override_prefix;
            let mut prefix = &quota.prefix;
            if let (Some(requested), true) = (descriptor.limit, self.rules.limiter(target_number).overridable) {
                match self.apply_override(apply, target, requested) {
                    Some(AppliedOverride::AlwaysDenied) => (applied_override, always_denied) = (Some(requested), true),
                    Some(AppliedOverride::Limit(prefix_of_override, limit_of_override)) => {
                        override_prefix = prefix_of_override;
                        (applied_override, prefix, limit) = (Some(requested), &override_prefix, limit_of_override);
                    }
                    None => self.planned.notes.overrides_ignored += 1,
                }
            }
            let counter = apply.name(prefix, descriptor)?;
            let overridden = (applied_override, always_denied);
            match &quota.of {
                None => self.check_quota(origin, counter, limit, descriptor.hits, apply, overridden),
                Some(of) => found = self.check_values(origin, (counter, limit), descriptor, (apply, of), overridden),
            }
        }
        if let Some((prefix, limit)) = &target.slots {
            let counter = apply.name(prefix, descriptor)?;
            self.check_slots(origin, counter, *limit, descriptor.hits);
        }
        found
    }

    /// Adds the check of a quota.
    #[inline(always)]
    pub(super) fn check_quota(
        &mut self,
        origin: CheckOrigin,
        counter: CounterName,
        limit: Limit,
        hits: Hits,
        apply: &CompiledApply,
        (applied_override, always_denied): (Option<LimitOverride>, bool),
    ) {
        let limiter = self.rules.limiter(origin.target);
        let (needs, charges, refund) = quota_terms(hits, apply);
        let check = Check {
            counter,
            store: limiter.store,
            limit,
            needs,
            charges,
            refund,
            shadow: origin.shadow,
            always_denied: always_denied && refund == 0,
            on_store_error: limiter.on_store_error,
            holding: match apply.hold {
                Some(hold) if charges.admitted > 0 => hold.holding(),
                _ => self.rules.holding(origin.target),
            },
        };
        self.places_requested += usize::from(check.holding.holds());
        self.add_from(origin, check, false, applied_override);
    }

    /// Adds the check of a limit of distinct values, with the value that the descriptor has. `None` when an entry of the value
    /// is missing. A refund has no check.
    #[cold]
    pub(super) fn check_values(
        &mut self,
        origin: CheckOrigin,
        (counter, limit): (CounterName, Limit),
        descriptor: &Descriptor<'_>,
        (apply, of): (&CompiledApply, &[CompiledKeyEntry]),
        (applied_override, always_denied): (Option<LimitOverride>, bool),
    ) -> Option<()> {
        let value = apply.asked_value(of, counter, descriptor, &self.rules.secret)?;
        let Some((needs, charges)) = value_terms(descriptor.hits, apply.charge) else { return Some(()) };
        let asked = match needs.fits {
            // A peek asks for room, whatever its value.
            0 => Some(Asked::default()),
            _ => self.planned.plan.values.ask([value]),
        };
        let (Limit::Distinct(distinct), Some(asked)) = (limit, asked) else {
            self.asks_too_many_values = true;
            return Some(());
        };
        let limiter = self.rules.limiter(origin.target);
        let check = Check {
            counter,
            store: limiter.store,
            limit: Limit::Distinct(Distinct { asked, ..distinct }),
            needs,
            charges,
            refund: 0,
            shadow: origin.shadow,
            always_denied,
            on_store_error: limiter.on_store_error,
            holding: Holding::None,
        };
        self.add_from(origin, check, false, applied_override);
        Some(())
    }

    /// Adds the check of a limiter's slots. A refund has none.
    #[inline(always)]
    pub(super) fn check_slots(&mut self, origin: CheckOrigin, counter: CounterName, limit: Limit, hits: Hits) {
        let limiter = self.rules.limiter(origin.target);
        let Some((needs, charges)) = slot_terms(hits) else { return };
        let check = Check {
            counter,
            store: limiter.store,
            limit,
            needs,
            charges,
            refund: 0,
            shadow: origin.shadow,
            always_denied: false,
            on_store_error: limiter.on_store_error,
            holding: Holding::None,
        };
        self.places_requested += usize::from(charges.admitted > 0);
        self.add_from(origin, check, true, None);
    }

    #[inline(always)]
    fn add_from(&mut self, origin: CheckOrigin, check: Check, slots: bool, applied_override: Option<LimitOverride>) {
        let CheckOrigin { descriptor, rule, target, shadow } = origin;
        let check = self.add(check);
        self.planned.sources.push(CheckSource { descriptor, check, rule, target, slots, shadow, applied_override });
    }

    /// The override that came with the request; `None` when configuration would reject its numbers.
    fn apply_override(
        &self,
        apply: &CompiledApply,
        target: &LimiterTarget,
        requested: LimitOverride,
    ) -> Option<AppliedOverride> {
        if requested.limit == 0 {
            return Some(AppliedOverride::AlwaysDenied);
        }
        let limiter = target.limiter as usize;
        let configured = self.rules.limiters[limiter].quota.as_ref()?;
        let quota = configured.overridden(requested.limit, requested.window).ok()?;
        let first = apply.key.first().map(|part| part.entry.as_str());
        let partitioned = target.quota.as_ref().is_some_and(|quota| quota.prefix.is_partitioned());
        let prefix =
            name_prefix(&self.rules.secret, &apply.domain, &apply.reference, &quota.kind(), first, partitioned);
        let limit = match (self.rules.quota_limit(limiter, &quota), target.quota.as_ref()?.limit) {
            // The same drain as the buckets with which it shares its counter.
            (Limit::TokenBucket(bucket), Limit::TokenBucket(configured)) => {
                Limit::TokenBucket(bucket.with_drain(configured.drain()).unwrap_or(bucket))
            }
            (limit, _) => limit,
        };
        Some(AppliedOverride::Limit(prefix, limit))
    }

    /// Whether the request takes more slots and holds than a lease has room for. Those in shadow are not counted: what finds
    /// no room cannot be released.
    pub(super) fn takes_too_many_places(&self) -> bool {
        let takes = |check: &&Check| (check.takes_slot() || check.holding.holds()) && !check.shadow;
        self.places_requested > MAX_PLACES_PER_LEASE
            && self.planned.plan.checks.iter().filter(takes).count() > MAX_PLACES_PER_LEASE
    }

    /// Adds a check, or merges it with the group's check of the same counter (semantics 6). Returns its index.
    fn add(&mut self, check: Check) -> u16 {
        let checks = &mut self.planned.plan.checks;
        let same = |known: &Check| known.counter == check.counter && known.store == check.store;
        let number = match checks.iter().position(same) {
            None => {
                checks.push(check);
                checks.len() - 1
            }
            Some(number) => {
                let known = &mut checks[number];
                match (known.shadow, check.shadow) {
                    (true, false) => *known = check,
                    (false, true) => {}
                    (true, true) | (false, false) => {
                        *known = known.merge(&check);
                        if !self.planned.plan.values.is_empty() {
                            self.ask_for_both(number, &check);
                        }
                    }
                }
                number
            }
        };
        number as u16
    }

    /// Asks for the values of a check too that was merged into the one with this index. What a check in shadow asks for beyond
    /// the most values is not counted.
    #[cold]
    fn ask_for_both(&mut self, number: usize, other: &Check) {
        let plan = &mut self.planned.plan;
        let check = &mut plan.checks[number];
        let (Limit::Distinct(one), Limit::Distinct(other)) = (&mut check.limit, &other.limit) else { return };
        match plan.values.ask_both(one.asked, other.asked) {
            Some(both) => one.asked = both,
            None => self.asks_too_many_values |= !check.shadow,
        }
    }
}

enum AppliedOverride {
    AlwaysDenied,
    Limit(NamePrefix, Limit),
}
