//! Leases that an idempotency key names, so that a repeated call finds what the first one got (semantics 53).

use crate::ask::{Acquire, Ask, AskError, Subject};
use crate::limiter::{LeaseId, LeaseStatus, Limit};
use crate::plan::{Applied, Check, LeaseAction, LeaseChange};
use crate::rules::Planned;
use crate::secret::Secret;

/// The id of the lease of an idempotency key, in a domain and for everything that is asked with it.
pub(super) fn named_lease(secret: &Secret, domain: &str, key: &str, acquire: &Acquire) -> LeaseId {
    let mut texts = vec![domain.to_owned(), key.to_owned(), acquire.any.to_string()];
    for Ask { subject, cost, hold, release_lost } in &acquire.asks {
        let (limiter, entries) = match subject {
            Subject::Entries(entries) => (None, entries),
            Subject::Limiter { limiter, key } => (Some(limiter), key),
        };
        let mut entries: Vec<&(String, String)> = entries.iter().collect();
        entries.sort_unstable();
        texts.push(format!("{limiter:?} {entries:?} {cost} {hold:?} {release_lost}"));
    }
    secret.lease_id(texts.iter().map(String::as_str))
}

/// Looks at the slots that a plan takes before they are counted: an earlier call may hold them under its lease.
pub(super) fn look_at_lease(planned: &mut Planned) -> Result<(), AskError> {
    let plan = &mut planned.plan;
    let slots = plan.checks.iter().filter(|check| check.takes_slot() && !check.shadow);
    let look = |check: &Check| LeaseChange {
        counter: check.counter,
        store: check.store,
        lease: plan.lease,
        action: LeaseAction::Look,
    };
    plan.changes = slots.map(look).collect();
    if plan.changes.is_empty() && planned.refused.is_none() {
        let message = "needs slots: what only counts could not be found again";
        return Err(AskError::invalid("idempotency_key", message));
    }
    Ok(())
}

/// How much of what a plan takes was held under its lease before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    None,
    Some,
    All,
}

/// Removes the looks at what was held before from a plan and its answers. What was held is not this plan's to take back.
pub(super) fn take_held(planned: &mut Planned, applied: &mut Applied) -> Held {
    let looks = std::mem::take(&mut planned.plan.changes);
    let statuses = std::mem::take(&mut applied.statuses);
    let mut held = 0;
    for (look, status) in looks.iter().zip(&statuses) {
        if *status != LeaseStatus::Done {
            continue;
        }
        held += 1;
        let checks = planned.plan.checks.iter().zip(&mut applied.answers);
        checks.filter(|(check, _)| check.counter == look.counter && check.store == look.store).for_each(
            |(_, answer)| {
                if let Ok(outcome) = answer {
                    outcome.charged = 0;
                }
            },
        );
    }
    match held {
        0 => Held::None,
        held if held == looks.len() => Held::All,
        _ => Held::Some,
    }
}

/// Makes the answers those of a plan that was admitted before, and charged nothing now.
pub(super) fn admit_held(planned: &mut Planned, applied: &mut Applied) {
    applied.admitted = true;
    for (check, answer) in planned.plan.checks.iter_mut().zip(&mut applied.answers) {
        if matches!(check.limit, Limit::Concurrency(_)) {
            check.charges.admitted = 1;
        }
        if let Ok(outcome) = answer {
            (outcome.passes, outcome.retry_after, outcome.charged) = (true, None, 0);
            // Its hold is one that the lease names, as in the first answer.
            outcome.held = outcome.held.max(u32::from(check.holding.holds()));
        }
    }
}
