//! A cache around a shared store: a refusal is answered here until it can change.
//!
//! Whoever keeps trying what is refused costs the store nothing meanwhile. Only plans that charge nothing when they are
//! refused are remembered, and only refusals that time alone can end: a slot may be given back any moment.
//!
//! What it may do wrong, it does on the side of the limit, and for no longer than it is told to: a refund or a lift by
//! another instance is seen late, and checks that pass beside the refusing one show what they had left before.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Applied, Check, Outcome, Plan};

/// Refusals that are remembered at most.
const MOST: usize = 16_384;

/// Refusals by the checks of their plans.
#[derive(Debug)]
pub(super) struct RefusalCache {
    longest: u64,
    refusals: Cache<Box<[Check]>, Refused>,
}

/// A refusal, as of a moment of this process's clock that is not after the store's decision.
#[derive(Clone, Debug)]
struct Refused {
    applied: Applied,
    since: Timestamp,
    until: Timestamp,
}

impl RefusalCache {
    /// A cache that answers for as long as `longest` after the store did.
    pub(super) fn new(longest: Duration) -> Self {
        let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Self { longest, refusals: Cache::new(MOST) }
    }

    /// The answer to a plan, if it is known to be refused still.
    pub(super) fn answer(&self, plan: &Plan, now: Timestamp) -> Option<Applied> {
        if self.refusals.is_empty() || !is_remembered(plan) {
            return None;
        }
        let known = self.refusals.get(plan.checks.as_slice())?;
        if !(known.since..known.until).contains(&now) {
            return None;
        }
        let passed = now - known.since;
        let mut applied = known.applied;
        for outcome in applied.answers.iter_mut().flatten() {
            outcome.reset = outcome.reset.saturating_sub(passed);
            outcome.retry_after = outcome.retry_after.map(|wait| wait.saturating_sub(passed));
        }
        Some(applied)
    }

    /// Learns from an answer of the store to a plan that was asked at `since`.
    pub(super) fn learn(&self, plan: &Plan, applied: &Applied, since: Timestamp) {
        if !plan.undos.is_empty() || plan.checks.iter().any(|check| check.refund > 0) {
            return self.refusals.clear();
        }
        if applied.admitted || !is_remembered(plan) {
            return;
        }
        let waits = plan.checks.iter().zip(&applied.answers).map(|(check, answer)| match answer {
            Ok(outcome) if outcome.passes => Some(u64::MAX),
            Ok(outcome) => wait(check, outcome),
            Err(_) => None,
        });
        // The first that passes ends it: its answer changes, if not the verdict.
        let Some(wait) = waits.collect::<Option<Vec<u64>>>().and_then(|waits| waits.into_iter().min()) else { return };
        let until = since.plus(wait.min(self.longest));
        self.refusals.insert(plan.checks.as_slice().into(), Refused { applied: applied.clone(), since, until });
    }

    /// Forgets everything: a counter is not what it was.
    pub(super) fn clear(&self) {
        self.refusals.clear();
    }
}

/// How long a refusing check goes on to say the same, if time alone can change it.
fn wait(check: &Check, outcome: &Outcome) -> Option<u64> {
    // Of a higher cost more and more is left before it fits, except in a window that empties at once.
    let same = check.needs.fits <= 1 || matches!(check.limit, Limit::FixedWindow(_));
    outcome.retry_after.filter(|_| same)
}

/// Whether refusing this plan changes nothing, so that the next one of its kind is refused as well.
fn is_remembered(plan: &Plan) -> bool {
    let plain = |check: &Check| {
        let charges_nothing = check.charges.passed == 0 && check.charges.refused == 0 && check.refund == 0;
        charges_nothing && !check.shadow && !check.always_denied && !matches!(check.limit, Limit::Concurrency(_))
    };
    let alone = plan.changes.is_empty() && plan.undos.is_empty() && !plan.refused && plan.groups.len() == 1;
    alone && plan.checks.iter().all(plain)
}
