//! Leases that an idempotency key names, so that a repeated call finds what the first one got (semantics 53).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::current::{Current, Service};
use crate::ask::{Acquire, Ask, AskError, Subject};
use crate::limiter::{LeaseId, LeaseStatus};
use crate::plan::{Applied, Check, HoldAction, HoldChange, HoldChanges, LeaseAction, LeaseChange, Plan};
use crate::rules::Planned;
use crate::secret::Secret;

/// How often a lease of which only a part is held is looked at again, and after how long: a call with the same key may be
/// taking the rest of it in another store.
const LOOKS: usize = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

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

/// Looks at the slots and holds that a plan takes, in the step that counts: an earlier call may hold them under its lease,
/// and then nothing is charged.
pub(super) fn look_at_lease(planned: &mut Planned) -> Result<(), AskError> {
    let plan = &mut planned.plan;
    for check in plan.checks.iter().filter(|check| !check.shadow) {
        let &Check { counter, store, limit, .. } = check;
        if check.takes_slot() {
            plan.changes.push(LeaseChange { counter, store, lease: plan.lease, action: LeaseAction::Look });
        } else if check.holding.holds() && check.charges.admitted > 0 {
            plan.holds.push(HoldChange { counter, store, limit, lease: plan.lease, action: HoldAction::Look });
        }
    }
    if !plan.has_named_lease() && planned.refused.is_none() {
        let message = "needs slots or holds: what only counts could not be found again";
        return Err(AskError::invalid("idempotency_key", message));
    }
    Ok(())
}

/// How much of what a plan takes was held under its lease before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    None,
    Some,
    /// All of it. The first of it ends after this many microseconds.
    All(u64),
}

impl Held {
    pub(super) fn of<'a>(statuses: impl IntoIterator<Item = &'a LeaseStatus>) -> Self {
        let (mut looks, mut held, mut ends_in) = (0, 0, u64::MAX);
        for status in statuses {
            looks += 1;
            if let LeaseStatus::Held(micros) = status {
                held += 1;
                ends_in = ends_in.min(*micros);
            }
        }
        match held {
            0 => Held::None,
            held if held == looks => Held::All(ends_in),
            _ => Held::Some,
        }
    }
}

/// Removes the looks at what was held before from a plan and its answers. What was held is not this plan's to take back.
pub(super) fn take_held(planned: &mut Planned, applied: &mut Applied) -> Held {
    let looks = std::mem::take(&mut planned.plan.changes);
    planned.plan.holds = HoldChanges::default();
    let statuses = std::mem::take(&mut applied.statuses);
    // A slot that a fallback gave and that its store took now too is one under one lease.
    for (look, _) in looks.iter().zip(&statuses).filter(|(_, status)| status.is_held()) {
        let checks = planned.plan.checks.iter().zip(&mut applied.answers);
        checks.filter(|(check, _)| check.counter == look.counter && check.store == look.store).for_each(
            |(_, answer)| {
                if let Ok(outcome) = answer {
                    outcome.charged = 0;
                }
            },
        );
    }
    Held::of(&statuses)
}

/// Makes the answers those of a plan that was admitted before, and charged nothing now.
pub(super) fn admit_held(planned: &mut Planned, applied: &mut Applied) {
    applied.admitted = true;
    for (check, answer) in planned.plan.checks.iter().zip(&mut applied.answers) {
        if let Ok(outcome) = answer {
            (outcome.passes, outcome.retry_after, outcome.charged) = (true, None, 0);
            // Its hold is one that the lease names, as in the first answer.
            outcome.held = outcome.held.max(u32::from(check.holding.holds()));
        }
    }
}

/// What a plan looks at.
pub(super) fn looks_of(plan: &Plan) -> Plan {
    Plan { changes: plan.changes.clone(), holds: plan.holds.clone(), ..Plan::default() }
}

impl Service {
    /// Looks again at a lease of which only a part was held.
    pub(super) async fn look_again(&self, current: &Arc<Current>, looks: &Plan) -> Held {
        let mut held = Held::Some;
        for _ in 0..LOOKS {
            sleep(LOOK_INTERVAL).await;
            held = Held::of(&current.version.apply(looks, self.clock.now()).await.statuses);
            if held != Held::Some {
                break;
            }
        }
        held
    }
}
