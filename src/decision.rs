//! The answer: judged from a plan and what its checks came to.
//!
//! A refusal names the rule and the limiter, and waits until the longest of the refusing checks. A definite refusal
//! beats a store that could not answer (semantics 15).

use std::sync::Arc;
use std::time::Duration;

use crate::lease::{LeaseToken, MAX_SLOTS_PER_LEASE};
use crate::limiter::{Concurrency, Limit, OnStoreError};
use crate::plan::{Applied, CounterName, Outcome};
use crate::rules::{CheckSource, DescriptorEnd, Planned, RefusalText, RefusedBy, Rules};
use crate::settings::Bound;

/// What was decided for one request. It keeps the rules that decided it, so that every question about it is
/// answered by the same version.
#[derive(Debug)]
pub struct Decision {
    rules: Arc<Rules>,
    /// With what it came to.
    planned: Box<Planned>,
    /// The source of the check that decides a refusal.
    deciding: Option<usize>,
    lease: Option<String>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A limit is used up.
    Limit,
    /// A rule denies it.
    Denied,
    /// No rule matches it, and the domain refuses those.
    Unmatched,
    /// An entry that a key needs is not there.
    MissingKey,
    /// No limiter has the name a rule asked for.
    NoLimiter,
    /// The store could not answer, and the limiter refuses then.
    StoreError,
    /// It brings more descriptors, entries or checks than the bounds.
    TooLarge,
}

/// A refusal, with what the client is told.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// The limiter that decided.
    pub limiter: Option<&'a str>,
    /// When the same request would pass. None when it never will, or when that is not known.
    pub retry_after: Option<Duration>,
    /// What the deciding rule chose to say.
    pub text: Option<&'a RefusalText>,
}

/// The status of one descriptor (semantics 16).
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// Whether this descriptor itself passes.
    pub allowed: bool,
    /// Its refusing check with the longest wait, else its check with the lowest remaining.
    pub counted: Option<Counted<'a>>,
}

/// One enforced check, with the configured numbers.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// The limiter.
    pub limiter: &'a str,
    /// The rule that applied it.
    pub rule: &'a str,
    /// Units per window as configured, or slots.
    pub limit: u32,
    /// The window as configured; none for slots.
    pub window: Option<Duration>,
    /// The most units the counter holds: the burst of a bucket, else the limit.
    pub capacity: u32,
    /// Whole units left.
    pub remaining: u32,
    /// Until nothing is counted.
    pub reset: Duration,
    /// On a refusal: until the same check would pass; none when it never will.
    pub retry_after: Option<Duration>,
    /// Whether this check itself passes.
    pub passes: bool,
}

impl Decision {
    /// Judges what the checks of a plan came to.
    pub fn judge(rules: Arc<Rules>, mut planned: Box<Planned>, applied: Applied) -> Self {
        planned.applied = applied;
        let lease = match planned.refused.is_none() && planned.applied.admitted {
            true => hand_out(&rules, &planned),
            false => None,
        };
        let mut decision = Self { rules, planned, deciding: None, lease };
        if decision.planned.refused.is_none() && !decision.planned.applied.admitted {
            let sources = decision.planned.sources.iter().enumerate();
            let refusing = sources.filter_map(|(number, source)| Some((number, decision.refusing(source)?)));
            // Of equal waits the first one decides.
            decision.deciding = refusing.rev().max_by_key(|(_, wait)| *wait).map(|(number, _)| number);
        }
        decision
    }

    /// Whether the request may pass.
    pub fn allowed(&self) -> bool {
        self.planned.refused.is_none() && self.planned.applied.admitted
    }

    /// Why it may not.
    pub fn refusal(&self) -> Option<Refusal<'_>> {
        let (reason, rule, target) = self.refused_by()?;
        let retry_after = match reason {
            Reason::Limit => self.tightest().and_then(|counted| counted.retry_after),
            _ => None,
        };
        Some(Refusal {
            reason,
            rule: rule.and_then(|rule| self.rule_name(rule)),
            limiter: target.map(|target| self.rules.limiter(target).name.as_str()),
            retry_after,
            text: rule.and_then(|rule| self.refusal_text(rule)),
        })
    }

    /// One status for each descriptor, in the request's order.
    pub fn statuses(&self) -> impl Iterator<Item = Status<'_>> {
        self.planned.ends.iter().enumerate().map(|(number, end)| {
            let mine = || self.enforced().filter(move |source| usize::from(source.descriptor) == number);
            let counted = self.tightest_of(mine());
            let failed = mine().any(|source| {
                let check = &self.planned.plan.checks[usize::from(source.check)];
                self.planned.applied.answers[usize::from(source.check)].is_err()
                    && check.on_store_error != OnStoreError::Allow
            });
            let refused = *end == DescriptorEnd::RefusedBy || failed || counted.is_some_and(|counted| !counted.passes);
            Status { allowed: !refused, counted }
        })
    }

    /// The deciding check of a refusal, else the enforced check with the lowest remaining.
    pub fn tightest(&self) -> Option<Counted<'_>> {
        match self.deciding {
            Some(deciding) => self.count(&self.planned.sources[deciding]),
            None => self.tightest_of(self.enforced()),
        }
    }

    /// Every enforced check, once.
    pub fn counted(&self) -> impl Iterator<Item = Counted<'_>> {
        let sources = &self.planned.sources;
        let first = |(number, source): &(usize, &CheckSource)| {
            !sources[..*number].iter().any(|known| known.check == source.check && !known.shadow)
        };
        sources
            .iter()
            .enumerate()
            .filter(|(_, source)| !source.shadow)
            .filter(first)
            .filter_map(|(_, source)| self.count(source))
    }

    /// The lease under which slots were taken.
    pub fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The rule that decided a refusal, else the rule of [`Decision::tightest`].
    pub fn rule(&self) -> Option<&str> {
        match self.refusal() {
            Some(refusal) => refusal.rule,
            None => self.tightest().map(|counted| counted.rule),
        }
    }

    /// What a limiter's `{entry}` was filled with, for the deciding check or else the first that has any.
    pub fn tier(&self) -> Option<&str> {
        let deciding = self.deciding.map(|deciding| &self.planned.sources[deciding]);
        deciding.into_iter().chain(self.enforced()).find_map(|source| self.rules.tier(source.target))
    }

    /// The domain that was asked, where there are rules for it.
    pub fn domain(&self) -> Option<&str> {
        self.rules.domain_name(self.planned.domain?)
    }

    /// The counter of the check that decided a refusal, by its hashed name.
    pub fn counter(&self) -> Option<CounterName> {
        let source = &self.planned.sources[self.deciding?];
        Some(self.planned.plan.checks[usize::from(source.check)].counter)
    }

    /// Why it was refused, by the places of the rule in its domain and of the limiter among the rules' targets.
    pub(crate) fn refused_by(&self) -> Option<(Reason, Option<u32>, Option<u32>)> {
        if self.allowed() {
            return None;
        }
        let failed = || self.enforced().find(|source| self.planned.applied.answers[usize::from(source.check)].is_err());
        Some(match (self.planned.refused, self.deciding) {
            (Some(RefusedBy::Denied { rule }), _) => (Reason::Denied, Some(rule), None),
            (Some(RefusedBy::Unmatched), _) => (Reason::Unmatched, None, None),
            (Some(RefusedBy::TooLarge(_)), _) => (Reason::TooLarge, None, None),
            (Some(RefusedBy::MissingKey { rule }), _) => (Reason::MissingKey, Some(rule), None),
            (Some(RefusedBy::NoLimiter { rule }), _) => (Reason::NoLimiter, Some(rule), None),
            (None, Some(deciding)) => {
                let source = &self.planned.sources[deciding];
                (Reason::Limit, Some(source.rule), Some(source.target))
            }
            (None, None) => {
                let failed = failed();
                (Reason::StoreError, failed.map(|source| source.rule), failed.map(|source| source.target))
            }
        })
    }

    /// The bound that a request refused as too large exceeded.
    pub fn exceeded_bound(&self) -> Option<Bound> {
        match self.planned.refused {
            Some(RefusedBy::TooLarge(bound)) => Some(bound),
            _ => None,
        }
    }

    /// The plan that was decided, for those who count or log it.
    pub fn planned(&self) -> &Planned {
        &self.planned
    }

    /// What the checks came to.
    pub fn applied(&self) -> &Applied {
        &self.planned.applied
    }

    fn enforced(&self) -> impl Iterator<Item = &CheckSource> {
        self.planned.sources.iter().filter(|source| !source.shadow)
    }

    fn outcome(&self, source: &CheckSource) -> Option<&Outcome> {
        self.planned.applied.answers.get(usize::from(source.check))?.as_ref().ok()
    }

    /// The wait of a check that refuses; one that never passes waits longest.
    fn refusing(&self, source: &CheckSource) -> Option<u64> {
        let outcome = self.outcome(source).filter(|outcome| !outcome.passes && !source.shadow)?;
        Some(outcome.retry_after.unwrap_or(u64::MAX))
    }

    fn tightest_of<'a>(&'a self, sources: impl Iterator<Item = &'a CheckSource>) -> Option<Counted<'a>> {
        // Refusing before passing; among those the longest wait, among these the least remaining; of equals the first.
        let rank = |source: &CheckSource| {
            let outcome = self.outcome(source)?;
            Some(match self.refusing(source) {
                Some(wait) => (0, u64::MAX - wait),
                None => (1, u64::from(outcome.remaining)),
            })
        };
        let ranked = sources.filter_map(|source| Some((rank(source)?, source)));
        ranked.min_by_key(|(rank, _)| *rank).and_then(|(_, source)| self.count(source))
    }

    fn count(&self, source: &CheckSource) -> Option<Counted<'_>> {
        let outcome = self.outcome(source)?;
        let limiter = self.rules.limiter(source.target);
        let (limit, window) = match (source.slots, source.applied_override, &limiter.quota) {
            (true, ..) => (outcome.limit, None),
            (false, Some(asked), _) => (asked.limit, Some(asked.window)),
            (false, None, Some(quota)) => (quota.limit, Some(quota.window)),
            (false, None, None) => (outcome.limit, None),
        };
        Some(Counted {
            limiter: &limiter.name,
            rule: self.rule_name(source.rule)?,
            limit,
            window,
            capacity: outcome.limit,
            remaining: outcome.remaining,
            reset: Duration::from_micros(outcome.reset),
            retry_after: outcome.retry_after.map(Duration::from_micros),
            passes: outcome.passes,
        })
    }

    fn rule_name(&self, rule: u32) -> Option<&str> {
        self.rules.rule_name(self.planned.domain?, rule)
    }

    fn refusal_text(&self, rule: u32) -> Option<&RefusalText> {
        self.rules.refusal_text(self.planned.domain?, rule)
    }
}

/// The text of the lease under which this request took slots, if it took any.
fn hand_out(rules: &Rules, planned: &Planned) -> Option<String> {
    let holds = |limit: &Limit| matches!(limit, Limit::Concurrency(Concurrency { .. }));
    if !planned.plan.checks.iter().any(|check| holds(&check.limit)) {
        return None;
    }
    let taken = |shadow: bool| {
        planned.plan.checks.iter().zip(&planned.applied.answers).filter(move |(check, answer)| {
            check.shadow == shadow
                && holds(&check.limit)
                && check.charges.admitted > 0
                && answer.is_ok_and(|outcome| outcome.passes)
        })
    };
    // A lease has room for all slots that are enforced; those in shadow come after and may be left to expire.
    let slots = taken(false).chain(taken(true)).take(MAX_SLOTS_PER_LEASE);
    let slots: smallvec::SmallVec<_> = slots.map(|(check, _)| (check.store, check.counter)).collect();
    if slots.is_empty() {
        return None;
    }
    Some(LeaseToken { id: planned.plan.lease, slots }.seal(rules.secret(), rules.stores()))
}
