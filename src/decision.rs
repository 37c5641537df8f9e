//! The answer to a request, judged from its plan and the answers of the stores.
//!
//! A refusal names the rule and the limiter, and its wait is the longest among the refusing checks. A refusal by a
//! limit takes precedence over a store error (semantics 15).

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::lease::{LeasePlace, LeaseToken, MAX_PLACES_PER_LEASE};
use crate::limiter::{Limit, OnStoreError};
use crate::plan::{Applied, Check, CounterName, Outcome};
use crate::rules::{CheckSource, DescriptorEnd, Planned, RefusalText, RefusedBy, RuleHeaders, Rules};
use crate::settings::Bound;
#[cfg(feature = "server")]
use crate::{limiter::LeaseStatus, plan::Fault};

/// The time after which a request that a failing store refused is worth another try.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The decision on one request. It holds the rules that made it, so that names and texts come from the same version.
#[derive(Debug)]
pub struct Decision {
    rules: Arc<Rules>,
    /// The plan, with the answers of the stores.
    planned: Box<Planned>,
    /// Present when the request is refused.
    refused: Option<RefusalIndexes>,
    lease: Option<String>,
}

/// A refusal as indexes into the rules and the plan, found once, when the request is judged.
#[derive(Clone, Copy, Debug)]
struct RefusalIndexes {
    reason: Reason,
    /// The rule, in the domain's order.
    rule: Option<u32>,
    /// The deciding check, as an index into [`Planned::sources`].
    source: Option<u16>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A limit is exhausted.
    Limit,
    /// A rule has `action = "deny"`.
    Denied,
    /// No rule matches, and the domain has `unmatched = "deny"`.
    Unmatched,
    /// The request names an entry that a rule needs several times.
    Repeated,
    /// An entry that a rule needs is in a body that cannot be read.
    Unreadable,
    /// An entry of a key is missing, and its `apply` has `missing = "deny"`.
    MissingKey,
    /// No limiter has the name to which a template was filled.
    NoLimiter,
    /// The store did not answer, and the limiter has `on_store_error = "deny"`.
    StoreError,
    /// The request has more descriptors, entries or checks than the bounds allow.
    TooLarge,
    /// Too many workers wait already (semantics 48).
    QueueFull,
    /// The process stops, and the worker would have had to wait.
    Draining,
}

impl Reason {
    /// The value of labels and log fields.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Limit => "limit",
            Reason::Denied => "denied",
            Reason::Unmatched => "unmatched",
            Reason::Repeated => "repeated",
            Reason::Unreadable => "unreadable",
            Reason::MissingKey => "missing_key",
            Reason::NoLimiter => "no_limiter",
            Reason::StoreError => "store_error",
            Reason::TooLarge => "too_large",
            Reason::QueueFull => "queue_full",
            Reason::Draining => "draining",
        }
    }
}

/// A refusal, with everything that its response shows.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Refusal<'a> {
    /// The reason.
    pub reason: Reason,
    /// The deciding rule.
    pub rule: Option<&'a str>,
    /// The deciding limiter.
    pub limiter: Option<&'a str>,
    /// The time until the same request would pass; a second when a store did not answer. `None` when it never would, or
    /// when that is unknown.
    pub retry_after: Option<Duration>,
    /// The response configured for the deciding rule.
    pub text: Option<&'a RefusalText>,
    /// What the response shows to the client.
    pub headers: RuleHeaders,
}

/// The status of one descriptor (semantics 16).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DescriptorVerdict<'a> {
    /// Whether this descriptor passes, regardless of the others.
    pub allowed: bool,
    /// Its refusing check with the longest wait, else its check with the lowest remaining.
    pub check: Option<CheckStatus<'a>>,
}

/// The status of one enforced check, with the configured numbers.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CheckStatus<'a> {
    /// The name of the limiter.
    pub limiter: &'a str,
    /// The name of the rule that applied it. `None` for a limiter that a worker asked for and no rule applies.
    pub rule: Option<&'a str>,
    /// Units per window as configured, or slots.
    pub limit: u32,
    /// The window as configured; `None` for slots.
    pub window: Option<Duration>,
    /// Maximum units of the counter: the burst of a bucket, else the limit.
    pub capacity: u32,
    /// Whole units left.
    pub remaining: u32,
    /// The time until the counter is empty.
    pub reset: Duration,
    /// On a refusal, the time until the same check would pass. `None` when it never would.
    pub retry_after: Option<Duration>,
    /// Whether this check passes, regardless of the others.
    pub passes: bool,
    /// What responses show of it: the least that a rule with this check allows.
    pub headers: RuleHeaders,
}

/// The names in a decision, without those of rules that show less than everything.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ShownNames<'a> {
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// The limiter that decided.
    pub limiter: Option<&'a str>,
    /// The value that filled the `{entry}` of a limiter's name.
    pub tier: Option<&'a str>,
    /// The rule in shadow mode that would have refused the request.
    pub would_refuse: Option<&'a str>,
}

impl Decision {
    /// Judges the stores' answers to a plan.
    pub(crate) fn judge(rules: Arc<Rules>, mut planned: Box<Planned>, applied: Applied) -> Self {
        planned.applied = applied;
        Self::judge_applied(rules, planned)
    }

    /// Judges the answers that are in the planned request.
    pub(crate) fn judge_applied(rules: Arc<Rules>, planned: Box<Planned>) -> Self {
        let (refused, lease) = match planned.refused.is_none() && planned.applied.admitted {
            true => (None, seal_lease(&rules, &planned)),
            false => (Some(RefusalIndexes::find(&planned)), None),
        };
        Self { rules, planned, refused, lease }
    }

    /// Whether the request may pass.
    pub fn allowed(&self) -> bool {
        self.refused.is_none()
    }

    /// The refusal; `None` when the request may pass.
    pub fn refusal(&self) -> Option<Refusal<'_>> {
        let RefusalIndexes { reason, rule, .. } = self.refused?;
        let outcome = self.limiting().and_then(|source| outcome(&self.planned, source));
        Some(Refusal {
            reason,
            rule: rule.and_then(|rule| self.rule_name(rule)),
            limiter: self.deciding().map(|source| self.rules.limiter(source.target).name.as_str()),
            retry_after: match reason {
                Reason::StoreError => Some(STORE_RETRY),
                _ => outcome.and_then(|outcome| outcome.retry_after).map(Duration::from_micros),
            },
            text: rule.and_then(|rule| self.refusal_text(rule)),
            headers: self.refusal_headers(),
        })
    }

    /// Whether a store did not answer, so that a policy or a fallback decided a part of this (semantics 31).
    pub fn degraded(&self) -> bool {
        let Applied { degraded, answers, .. } = &self.planned.applied;
        *degraded || answers.iter().any(Result::is_err)
    }

    /// The first rule in shadow mode that would have refused the request (semantics 13).
    pub fn would_refuse(&self) -> Option<&str> {
        self.shadow_refused_by().and_then(|rule| self.rule_name(rule))
    }

    fn shadow_refused_by(&self) -> Option<u32> {
        let refuses = |source: &&CheckSource| {
            source.shadow && outcome(&self.planned, source).is_some_and(|outcome| !outcome.passes)
        };
        let by_check = self.planned.sources.iter().find(refuses).map(|source| source.rule);
        by_check.or(self.planned.shadow_refused_by)
    }

    /// One verdict for each descriptor, in the request's order.
    pub fn statuses(&self) -> impl Iterator<Item = DescriptorVerdict<'_>> {
        self.planned.ends.iter().enumerate().map(|(number, end)| {
            let own = || self.enforced().filter(move |source| usize::from(source.descriptor) == number);
            let check = self.tightest_of(own());
            let failed = own().any(|source| {
                let check = &self.planned.plan.checks[usize::from(source.check)];
                self.planned.applied.answers[usize::from(source.check)].is_err()
                    && check.on_store_error != OnStoreError::Allow
            });
            let refused = *end == DescriptorEnd::Refused || failed || check.is_some_and(|check| !check.passes);
            DescriptorVerdict { allowed: !refused, check }
        })
    }

    /// The deciding check of a refusal by a limit, else the enforced check with the lowest remaining.
    pub fn tightest(&self) -> Option<CheckStatus<'_>> {
        match self.limiting() {
            Some(source) => self.status(source),
            None => self.tightest_of(self.enforced()),
        }
    }

    /// The check whose numbers the client sees: [`Decision::tightest`] among those that rules show. `None` for a refusal
    /// by a check or rule that is not shown.
    pub fn tightest_shown(&self) -> Option<CheckStatus<'_>> {
        if self.refusal_headers() != RuleHeaders::All {
            return None;
        }
        match self.limiting() {
            Some(source) => self.status(source),
            None => {
                let shown = |source: &&CheckSource| self.check_headers(source) == RuleHeaders::All;
                self.tightest_of(self.enforced().filter(shown))
            }
        }
    }

    /// Every enforced check, each once.
    pub fn checks(&self) -> impl Iterator<Item = CheckStatus<'_>> {
        let sources = &self.planned.sources;
        let first = |(number, source): &(usize, &CheckSource)| {
            !sources[..*number].iter().any(|known| known.check == source.check && !known.shadow)
        };
        sources
            .iter()
            .enumerate()
            .filter(|(_, source)| !source.shadow)
            .filter(first)
            .filter_map(|(_, source)| self.status(source))
    }

    /// The sealed lease under which the request took slots.
    pub fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// The rule that decided a refusal, else the rule of [`Decision::tightest`].
    pub fn rule(&self) -> Option<&str> {
        match self.refused {
            Some(refused) => refused.rule.and_then(|rule| self.rule_name(rule)),
            None => self.tightest().and_then(|check| check.rule),
        }
    }

    /// The value that filled the `{entry}` of a limiter's name: of the deciding check, or else of the first enforced
    /// check that has one.
    pub fn tier(&self) -> Option<&str> {
        self.limiting().into_iter().chain(self.enforced()).find_map(|source| self.rules.tier(source.target))
    }

    /// The names in this decision that rules show to clients.
    pub fn shown_names(&self) -> ShownNames<'_> {
        let (rule, limiter) = match self.refusal() {
            Some(refusal) if refusal.headers == RuleHeaders::All => (refusal.rule, refusal.limiter),
            Some(_) => (None, None),
            None => self.tightest_shown().map_or((None, None), |check| (check.rule, Some(check.limiter))),
        };
        let sources = self.limiting().into_iter().chain(self.enforced());
        let shown = sources.filter(|source| self.check_headers(source) == RuleHeaders::All);
        let would_refuse = self.shadow_refused_by().filter(|rule| self.rule_headers(*rule) == RuleHeaders::All);
        ShownNames {
            rule,
            limiter,
            tier: shown.filter_map(|source| self.rules.tier(source.target)).next(),
            would_refuse: would_refuse.and_then(|rule| self.rule_name(rule)),
        }
    }

    /// The domain of the request, if it has rules.
    pub fn domain(&self) -> Option<&str> {
        self.rules.domain_name(self.planned.domain?)
    }

    /// The hashed name of the counter that decided a refusal by a limit.
    pub fn counter(&self) -> Option<CounterName> {
        Some(self.planned.plan.checks[usize::from(self.limiting()?.check)].counter)
    }

    /// The reason of a refusal, with the indexes of the rule in its domain and of the target among the rules' targets.
    pub(crate) fn refused_by(&self) -> Option<(Reason, Option<u32>, Option<u32>)> {
        let RefusalIndexes { reason, rule, .. } = self.refused?;
        Some((reason, rule, self.deciding().map(|source| source.target)))
    }

    /// The bound that the request exceeds, when it is refused as too large.
    pub(crate) fn exceeded_bound(&self) -> Option<Bound> {
        match self.planned.refused {
            Some(RefusedBy::TooLarge(bound)) => Some(bound),
            _ => None,
        }
    }

    /// The rules that made it.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The plan of the request.
    pub fn planned(&self) -> &Planned {
        &self.planned
    }

    /// The statuses of the leases that the request released, and of the holds that it settled.
    #[cfg(feature = "server")]
    pub(crate) fn lease_statuses(&self) -> (&[LeaseStatus], &[LeaseStatus]) {
        let statuses = &self.planned.applied.statuses;
        statuses.split_at(self.planned.plan.changes.len().min(statuses.len()))
    }

    /// The number of charges that were to be held, and that their counters do not remember (semantics 38).
    #[cfg(feature = "server")]
    pub(crate) fn holds_not_remembered(&self) -> u64 {
        let Planned { plan, applied, .. } = &*self.planned;
        let lost = |(check, answer): &(&Check, &Result<Outcome, Fault>)| {
            let passes = |outcome: Outcome| outcome.held == 0 && (outcome.passes || !check.shadow);
            check.holding.holds() && answer.is_ok_and(passes)
        };
        match applied.admitted {
            true => plan.checks.iter().zip(&applied.answers).filter(lost).count() as u64,
            false => 0,
        }
    }

    /// The stores' answers to the plan.
    pub fn applied(&self) -> &Applied {
        &self.planned.applied
    }

    /// The check that decided a refusal.
    fn deciding(&self) -> Option<&CheckSource> {
        self.planned.sources.get(usize::from(self.refused?.source?))
    }

    /// The check that decided a refusal by a limit.
    fn limiting(&self) -> Option<&CheckSource> {
        match self.refused?.reason {
            Reason::Limit => self.deciding(),
            _ => None,
        }
    }

    fn enforced(&self) -> impl Iterator<Item = &CheckSource> {
        self.planned.sources.iter().filter(|source| !source.shadow)
    }

    fn tightest_of<'a>(&'a self, sources: impl Iterator<Item = &'a CheckSource>) -> Option<CheckStatus<'a>> {
        // Refusing checks come before passing ones, then the longest wait or the lowest remaining. The first wins a
        // tie.
        let rank = |source: &CheckSource| {
            let outcome = outcome(&self.planned, source)?;
            Some(match refusing_wait(&self.planned, source) {
                Some(wait) => (0, u64::MAX - wait),
                None => (1, u64::from(outcome.remaining)),
            })
        };
        let ranked = sources.filter_map(|source| Some((rank(source)?, source)));
        ranked.min_by_key(|(rank, _)| *rank).and_then(|(_, source)| self.status(source))
    }

    fn status(&self, source: &CheckSource) -> Option<CheckStatus<'_>> {
        let outcome = outcome(&self.planned, source)?;
        let limiter = self.rules.limiter(source.target);
        let (limit, window) = match (source.slots, source.applied_override, &limiter.quota) {
            (false, Some(applied), _) => (applied.limit, Some(applied.window)),
            (false, None, Some(quota)) => (quota.limit, Some(quota.window)),
            (true, ..) | (false, None, None) => (outcome.limit, None),
        };
        Some(CheckStatus {
            limiter: &limiter.name,
            rule: self.rule_name(source.rule),
            limit,
            window,
            capacity: outcome.limit,
            remaining: outcome.remaining,
            reset: Duration::from_micros(outcome.reset),
            retry_after: outcome.retry_after.map(Duration::from_micros),
            passes: outcome.passes,
            headers: self.check_headers(source),
        })
    }

    /// What responses show of a refusal: everything if there is none.
    fn refusal_headers(&self) -> RuleHeaders {
        let rule = self.refused.and_then(|refused| refused.rule);
        match (self.deciding(), rule) {
            (Some(source), _) => self.check_headers(source),
            (None, Some(rule)) => self.rule_headers(rule),
            (None, None) => RuleHeaders::All,
        }
    }

    /// What responses show of a check. Rules that share one show the least that any of them allows.
    fn check_headers(&self, source: &CheckSource) -> RuleHeaders {
        if !self.rules.hides_headers() {
            return RuleHeaders::All;
        }
        let sharing = self.enforced().filter(|other| other.check == source.check);
        sharing.map(|other| self.rule_headers(other.rule)).min().unwrap_or_default()
    }

    fn rule_headers(&self, rule: u32) -> RuleHeaders {
        self.planned.domain.map_or_else(RuleHeaders::default, |domain| self.rules.rule_headers(domain, rule))
    }

    fn rule_name(&self, rule: u32) -> Option<&str> {
        self.rules.rule_name(self.planned.domain?, rule)
    }

    fn refusal_text(&self, rule: u32) -> Option<&RefusalText> {
        self.rules.refusal_text(self.planned.domain?, rule)
    }
}

impl RefusalIndexes {
    /// The refusal of a request that is not admitted.
    fn find(planned: &Planned) -> Self {
        let by_rule = |reason, rule| Self { reason, rule, source: None };
        match planned.refused {
            Some(RefusedBy::Denied { rule }) => by_rule(Reason::Denied, Some(rule)),
            Some(RefusedBy::Unmatched) => by_rule(Reason::Unmatched, None),
            Some(RefusedBy::TooLarge(_)) => by_rule(Reason::TooLarge, None),
            Some(RefusedBy::Repeated { rule }) => by_rule(Reason::Repeated, Some(rule)),
            Some(RefusedBy::Unreadable { rule }) => by_rule(Reason::Unreadable, Some(rule)),
            Some(RefusedBy::MissingKey { rule }) => by_rule(Reason::MissingKey, Some(rule)),
            Some(RefusedBy::NoLimiter { rule }) => by_rule(Reason::NoLimiter, Some(rule)),
            None => Self::by_checks(planned),
        }
    }

    fn by_checks(planned: &Planned) -> Self {
        let by = |reason, (number, source): (usize, &CheckSource)| Self {
            reason,
            rule: Some(source.rule),
            source: u16::try_from(number).ok(),
        };
        let sources = || planned.sources.iter().enumerate();
        let refusing = sources().filter_map(|found| Some((found, refusing_wait(planned, found.1)?)));
        // Of equal waits, the first decides.
        if let Some((found, _)) = refusing.rev().max_by_key(|(_, wait)| *wait) {
            return by(Reason::Limit, found);
        }
        let failed = |source: &CheckSource| planned.applied.answers[usize::from(source.check)].is_err();
        match sources().find(|(_, source)| !source.shadow && failed(source)) {
            Some(found) => by(Reason::StoreError, found),
            None => Self { reason: Reason::StoreError, rule: None, source: None },
        }
    }
}

fn outcome<'p>(planned: &'p Planned, source: &CheckSource) -> Option<&'p Outcome> {
    planned.applied.answers.get(usize::from(source.check))?.as_ref().ok()
}

/// The wait of an enforced check that refuses, in microseconds; `u64::MAX` when it would never pass.
fn refusing_wait(planned: &Planned, source: &CheckSource) -> Option<u64> {
    let outcome = outcome(planned, source).filter(|outcome| !outcome.passes && !source.shadow)?;
    Some(outcome.retry_after.unwrap_or(u64::MAX))
}

/// The sealed lease of the slots and holds that an admitted request took, if any.
fn seal_lease(rules: &Rules, planned: &Planned) -> Option<String> {
    let takes = |check: &Check| matches!(check.limit, Limit::Concurrency(_)) || check.holding.holds();
    if !planned.plan.checks.iter().any(takes) {
        return None;
    }
    let taken = |shadow: bool| {
        let answered = planned.plan.checks.iter().enumerate().zip(&planned.applied.answers);
        answered.filter_map(move |((number, check), answer)| {
            let outcome = answer.as_ref().ok().filter(|_| check.shadow == shadow)?;
            let charged_by = match check.limit {
                Limit::Concurrency(_) if check.charges.admitted > 0 && outcome.passes => None,
                Limit::Concurrency(_) => return None,
                limit if check.holding.holds() && outcome.held > 0 => Some(limit),
                _ => return None,
            };
            let source = planned.sources.iter().find(|source| usize::from(source.check) == number)?;
            let &Check { store, counter, .. } = check;
            Some(LeasePlace { store, counter, limiter: rules.lease_tag(source.target), charged_by })
        })
    };
    // A lease has room for everything enforced. What is in shadow comes last, and cannot be released without room.
    let places: SmallVec<_> = taken(false).chain(taken(true)).take(MAX_PLACES_PER_LEASE).collect();
    if places.is_empty() {
        return None;
    }
    Some(LeaseToken { id: planned.plan.lease, places }.seal(rules.secret(), rules.stores()))
}
