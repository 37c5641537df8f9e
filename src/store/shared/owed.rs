//! What of a plan has to reach its store although its caller has an answer: lease changes, charges to take back, refunds,
//! and charges that only record what was used (semantics 12).
//!
//! The other checks of a plan ask for room, and its caller gets an answer to them by policy.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::limiter::{Limit, MAX_HOLD, OnStoreError};
use crate::plan::{Charges, Check, HoldAction, LeaseAction, Needs, Plan};

/// How long a release is kept: longer than all but exceptional leases. The store ignores one whose lease has ended.
const RELEASE_RETENTION: Duration = Duration::from_secs(24 * 3_600);

/// How long a settlement is kept: until the longest hold and its memory have ended. The store ignores one that is unknown.
const HOLD_RETENTION: Duration = Duration::from_micros(2 * MAX_HOLD);

/// How long a renewal by the length of what it renews is kept: it would begin when the store answers again, which is long
/// after a caller that wants to keep its lease renewed it once more.
const RENEWAL_RETENTION: Duration = Duration::from_secs(60);

/// How long before the end of a window a refund is given up, because the clock of the store may be ahead: in the next
/// window it would give back units of others.
const REFUND_MARGIN_MICROS: u64 = 1_000_000;

/// Whether anything of a plan is owed.
pub(super) fn is_owed(plan: &Plan) -> bool {
    !plan.undos.is_empty() || plan.each_change().any(|change| !change.looks()) || plan.checks.iter().any(is_owed_check)
}

/// Whether a check gives units back or records what was used, and its caller gets OK for it without the store.
pub(super) fn is_owed_check(check: &Check) -> bool {
    (check.refund > 0 || check.records_use()) && check.on_store_error != OnStoreError::Deny
}

/// Whether a plan takes effect once even if it is executed twice.
pub(super) fn is_idempotent(plan: &Plan) -> bool {
    plan.undos.is_empty() && (plan.once.is_some() || plan.checks.is_empty())
}

/// Whether a plan may be sent again after its connection broke, without its undos. A charge can then be made twice, which
/// refuses early and admits nothing; a refund must not be.
pub(super) fn is_repeatable(plan: &Plan) -> bool {
    let only_undos = plan.changes.is_empty() && plan.holds.is_empty() && plan.checks.is_empty();
    !only_undos && (plan.once.is_some() || plan.checks.iter().all(|check| check.refund == 0))
}

/// Reduces a plan to what is owed of it.
pub(super) fn reduce(plan: &mut Plan) {
    let owed = |check: &Check| {
        let charges = if check.records_use() { check.charges } else { Charges::default() };
        Check { needs: Needs::default(), charges, ..*check }
    };
    plan.checks = plan.checks.iter().filter(|check| is_owed_check(check)).map(owed).collect();
    plan.groups.clear();
    if !plan.checks.is_empty() {
        plan.groups.push(u16::try_from(plan.checks.len()).expect("it has no more checks than its plan"));
    }
    plan.refused = false;
}

/// How long it makes sense to send what a plan owes, decided at `now`: until each lease and window has ended.
pub(super) fn useful_for(plan: &Plan, now: Timestamp) -> Duration {
    let changes = plan.changes.iter().map(|change| match change.action {
        LeaseAction::Release => RELEASE_RETENTION,
        LeaseAction::Renew(length) => Duration::from_micros(length),
        LeaseAction::RenewOwn => RENEWAL_RETENTION,
        LeaseAction::Look => Duration::ZERO,
    });
    let holds = plan.holds.iter().map(|change| match change.action {
        HoldAction::Settle(_) => HOLD_RETENTION,
        HoldAction::Renew(Some(length)) => Duration::from_micros(length),
        HoldAction::Renew(None) => RENEWAL_RETENTION,
        HoldAction::Look => Duration::ZERO,
    });
    let undos = plan.undos.iter().map(|undo| Duration::from_micros(undo.reset));
    let checks = plan.checks.iter().map(|check| check_is_useful_for(check, now));
    changes.chain(holds).chain(undos).chain(checks).max().unwrap_or_default().min(RELEASE_RETENTION * 366)
}

fn check_is_useful_for(check: &Check, now: Timestamp) -> Duration {
    Duration::from_micros(match check.refund {
        0 => check.limit.charge_lasts(now),
        _ => check.limit.refundable_for(now).saturating_sub(REFUND_MARGIN_MICROS),
    })
}

/// What a plan still owes after `waited`: the rest of a renewal, and of a bucket what has not drained meanwhile. Drops
/// what has become pointless. `made` is when it was decided, by this process's clock.
pub(super) fn remaining(plan: &Plan, made: Timestamp, waited: Duration) -> Plan {
    let mut plan = plan.clone();
    let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
    plan.changes.retain(|change| match &mut change.action {
        LeaseAction::Release | LeaseAction::RenewOwn => true,
        LeaseAction::Look => false,
        LeaseAction::Renew(length) => {
            *length = length.saturating_sub(micros);
            *length > 0
        }
    });
    plan.holds.retain(|change| match &mut change.action {
        HoldAction::Settle(_) | HoldAction::Renew(None) => true,
        HoldAction::Look => false,
        HoldAction::Renew(Some(length)) => {
            *length = length.saturating_sub(micros);
            *length > 0
        }
    });
    plan.undos.retain(|undo| undo.reset > micros);
    for check in &mut plan.checks {
        if check_is_useful_for(check, made) <= waited {
            (check.refund, check.charges) = (0, Charges::default());
        }
        if let Limit::TokenBucket(bucket) = &check.limit {
            let drained = bucket.refilled(micros);
            check.refund = check.refund.saturating_sub(drained);
            // Rounded against the caller, as everywhere.
            let left = |units: u32| units.saturating_sub(drained.saturating_sub(1));
            let Charges { admitted, passed, refused } = check.charges;
            check.charges = Charges { admitted: left(admitted), passed: left(passed), refused: left(refused) };
        }
    }
    plan.checks.retain(|check| check.refund > 0 || check.charges != Charges::default());
    if let Some(end) = plan.groups.last_mut() {
        *end = u16::try_from(plan.checks.len()).expect("it has no more checks than before");
    }
    if plan.checks.is_empty() {
        plan.groups.clear();
    }
    plan
}
