//! A cache around a shared store: a refusal is answered here until it can change.
//!
//! A client that retries while it is refused then costs the store nothing. Only refusals of plans that charge nothing on
//! refusal are cached, and only those that time alone can end: a concurrency slot may be released at any moment.
//!
//! The cache never admits more than the store would. It can refuse for up to its maximum age too long: a refund or a
//! lift by another instance takes effect late. Passing checks of a refused plan report the units that remained when the
//! refusal was cached.

use std::time::Duration;

use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Applied, Check, Holding, Outcome, Plan, Values};

/// The maximum number of cached refusals.
const MAX_REFUSALS: usize = 16_384;

/// Refusals by the checks of their plans.
#[derive(Debug)]
pub(super) struct RefusalCache {
    max_age_micros: u64,
    refusals: Cache<AskedChecks, CachedRefusal>,
}

/// The checks of a plan, and the values that they ask for: a refusal is of those values.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
struct AskedChecks {
    checks: Box<[Check]>,
    values: Values,
}

/// The same of a plan that may not be in the cache.
#[derive(Hash)]
struct AskedOfPlan<'p> {
    checks: &'p [Check],
    values: &'p Values,
}

impl Equivalent<AskedChecks> for AskedOfPlan<'_> {
    fn equivalent(&self, known: &AskedChecks) -> bool {
        *self.checks == *known.checks && *self.values == known.values
    }
}

/// A refusal, valid from a moment of this process's clock that is not after the store's decision.
#[derive(Clone, Debug)]
struct CachedRefusal {
    applied: Applied,
    valid_from: Timestamp,
    valid_until: Timestamp,
}

impl RefusalCache {
    /// A cache that answers up to `max_age` after the store did.
    pub(super) fn new(max_age: Duration) -> Self {
        let max_age_micros = u64::try_from(max_age.as_micros()).unwrap_or(u64::MAX);
        Self { max_age_micros, refusals: Cache::new(MAX_REFUSALS) }
    }

    /// The answer to a plan, if a cached refusal is still valid.
    pub(super) fn answer(&self, plan: &Plan, now: Timestamp) -> Option<Applied> {
        if self.refusals.is_empty() || !is_cacheable(plan) {
            return None;
        }
        let cached = self.refusals.get(&AskedOfPlan { checks: &plan.checks, values: &plan.values })?;
        if !(cached.valid_from..cached.valid_until).contains(&now) {
            return None;
        }
        let passed = now - cached.valid_from;
        let mut applied = cached.applied;
        for outcome in applied.answers.iter_mut().flatten() {
            outcome.reset = outcome.reset.saturating_sub(passed);
            outcome.retry_after = outcome.retry_after.map(|wait| wait.saturating_sub(passed));
        }
        Some(applied)
    }

    /// Updates the cache from the store's answer to a plan that was sent at `since`.
    pub(super) fn record(&self, plan: &Plan, applied: &Applied, since: Timestamp) {
        if !plan.undos.is_empty() || !plan.holds.is_empty() || plan.checks.iter().any(|check| check.refund > 0) {
            return self.refusals.clear();
        }
        if applied.admitted || !is_cacheable(plan) {
            return;
        }
        let waits = plan.checks.iter().zip(&applied.answers).map(|(check, answer)| match answer {
            Ok(outcome) if outcome.passes => Some(u64::MAX),
            Ok(outcome) => unchanged_micros(check, outcome),
            Err(_) => None,
        });
        // It ends when the first refusing check passes: the answer changes then, even if the plan stays refused.
        let Some(wait) = waits.collect::<Option<Vec<u64>>>().and_then(|waits| waits.into_iter().min()) else { return };
        let valid_until = since.plus(wait.min(self.max_age_micros));
        let refusal = CachedRefusal { applied: applied.clone(), valid_from: since, valid_until };
        let asked = AskedChecks { checks: plan.checks.as_slice().into(), values: plan.values.clone() };
        self.refusals.insert(asked, refusal);
    }

    /// Drops all refusals, since a counter has changed.
    pub(super) fn clear(&self) {
        self.refusals.clear();
    }
}

/// How long the outcome of a refusing check stays the same, if time alone can change it.
fn unchanged_micros(check: &Check, outcome: &Outcome) -> Option<u64> {
    // With a cost above one the remaining units rise before it fits, except in a window, which empties at once.
    let stays = check.needs.fits <= 1 || matches!(check.limit, Limit::FixedWindow(_));
    outcome.retry_after.filter(|_| stays)
}

/// Whether refusing this plan changes nothing, so that the next equal plan is refused as well.
fn is_cacheable(plan: &Plan) -> bool {
    let plain = |check: &Check| {
        let charges_nothing = check.charges.passed == 0 && check.charges.refused == 0 && check.refund == 0;
        // A hold can be settled at any moment, and so can a slot be released.
        let held = check.holding != Holding::None;
        charges_nothing
            && !held
            && !check.shadow
            && !check.always_denied
            && !matches!(check.limit, Limit::Concurrency(_))
    };
    let no_changes = plan.changes.is_empty() && plan.holds.is_empty() && plan.undos.is_empty();
    let only_checks = no_changes && !plan.refused && plan.groups.len() == 1;
    only_checks && plan.checks.iter().all(plain)
}
