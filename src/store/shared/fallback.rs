//! The fallback, which answers plans by the limiters' `on_store_error` policies while the store does not (semantics 31).

use std::sync::Arc;

use smallvec::SmallVec;

use super::owed::is_owed_check;
use super::settle::{DecidedCheck, PolicyDecision, Unanswered};
use super::{FALLBACK_SETTINGS, SharedStore, StoreObserver};
use crate::clock::Timestamp;
use crate::limiter::{LeaseStatus, Limit, OnStoreError};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseChange, Outcome, Plan, Undo};
use crate::store::memory::MemoryStores;

impl SharedStore {
    /// Executes a plan without asking the store, because the fallback has its charges.
    pub(in crate::store) fn apply_in_fallback(&self, plan: &Plan, now: Timestamp) -> Applied {
        self.fallback(plan, Fault::CircuitOpen.into(), now)
    }

    /// Answers a plan by the limiters' `on_store_error` policies, because the store did not.
    pub(super) fn fallback(&self, plan: &Plan, unanswered: Unanswered, now: Timestamp) -> Applied {
        let fault = unanswered.fault;
        let needed = !plan.changes.is_empty() || !plan.undos.is_empty() || plan.checks.iter().any(is_local);
        let memory = needed.then(|| self.fallback_memory());
        let mut applied = Applied { admitted: !plan.refused, at: now, degraded: true, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.statuses = self.change_fallback(plan, memory, now);
        }
        let mut checks_by_policy = [0; 3];
        let mut decision = PolicyDecision { checks: SmallVec::new(), lease: plan.lease, at: now };
        for group in plan.groups() {
            let denies =
                |check: &Check| !check.shadow && (check.always_denied || check.on_store_error == OnStoreError::Deny);
            let refused = plan.refused || group.iter().any(denies);
            let checks = group.iter().filter(|check| is_local(check)).map(|check| self.fallback_check(check));
            let mut local_plan = Plan { checks: checks.collect(), refused, lease: plan.lease, ..Plan::default() };
            local_plan
                .groups
                .push(u16::try_from(local_plan.checks.len()).expect("it has no more checks than its plan"));
            let decided =
                memory.as_ref().filter(|_| !local_plan.checks.is_empty()).map(|memory| memory.apply(&local_plan, now));
            let admitted = !refused && decided.as_ref().is_none_or(|decided| decided.admitted);
            applied.admitted &= admitted;
            let mut answers = decided.into_iter().flat_map(|decided| decided.answers);
            applied.answers.extend(group.iter().map(|check| {
                checks_by_policy[check.on_store_error as usize] += u64::from(!check.shadow);
                let answer = match (check.always_denied, is_local(check)) {
                    // A limit of zero needs no store.
                    (true, _) => {
                        Ok(Outcome { passes: false, limit: 0, remaining: 0, reset: 0, retry_after: None, charged: 0 })
                    }
                    (_, true) => answers.next().expect("one answer for each local check"),
                    (_, false) => Err(fault),
                };
                decision.checks.push(decided_check(check, admitted, answer.as_ref().ok()));
                answer
            }));
        }
        self.queue.report(|observer: &dyn StoreObserver| {
            for policy in [OnStoreError::Allow, OnStoreError::Deny, OnStoreError::Local] {
                observer.answered_by_policy(policy, checks_by_policy[policy as usize]);
            }
        });
        self.queue.settle(decision, unanswered);
        applied
    }

    /// Applies lease changes and undos to the fallback, and takes them off what is owed.
    fn change_fallback(&self, plan: &Plan, memory: &MemoryStores, now: Timestamp) -> SmallVec<[LeaseStatus; 1]> {
        for undo in &plan.undos {
            match &undo.limit {
                Limit::Concurrency(_) => self.queue.backlog().cancel_slot(undo.counter, plan.lease),
                Limit::TokenBucket(_) => {
                    // What was charged is in levels of this instance's share.
                    let Limit::TokenBucket(share) = undo.limit.share(self.settings.instances) else { continue };
                    let units = u32::try_from(undo.charged.div_ceil(share.unit())).unwrap_or(u32::MAX);
                    self.queue.backlog().cancel_charge(undo.counter, units);
                }
                _ => {
                    let units = u32::try_from(undo.charged).unwrap_or(u32::MAX);
                    self.queue.backlog().cancel_charge(undo.counter, units);
                }
            }
        }
        let changes = plan.changes.iter().map(|change| LeaseChange { store: 0, ..*change });
        let share = |undo: &Undo| Undo { store: 0, limit: undo.limit.share(self.settings.instances), ..*undo };
        let (changes, undos) = (changes.collect(), plan.undos.iter().map(share).collect());
        memory.apply(&Plan { changes, undos, lease: plan.lease, ..Plan::default() }, now).statuses
    }

    /// Applies the lease changes of a plan that the store has executed to the fallback too, which may hold the slots.
    pub(super) fn change_leases_of_fallback(&self, plan: &Plan, mut applied: Applied, now: Timestamp) -> Applied {
        if plan.changes.is_empty() {
            return applied;
        }
        let Some(memory) = self.fallback.lock().clone() else { return applied };
        let changes = Plan { changes: plan.changes.clone(), lease: plan.lease, ..Plan::default() };
        let local = self.change_fallback(&changes, &memory, now);
        for (status, local) in applied.statuses.iter_mut().zip(local) {
            if *status == LeaseStatus::Unknown {
                *status = local;
            }
        }
        applied
    }

    /// Removes a counter from the fallback, and from what is owed.
    pub(super) fn forget_in_fallback(&self, counter: CounterName) {
        self.queue.backlog().forget(counter);
        if let Some(memory) = self.fallback.lock().clone() {
            memory.forget(0, &counter);
        }
    }

    /// A check as the fallback decides it: by this instance's share of the limit.
    fn fallback_check(&self, check: &Check) -> Check {
        Check { store: 0, limit: check.limit.share(self.settings.instances), ..*check }
    }

    fn fallback_memory(&self) -> Arc<MemoryStores> {
        let mut fallback = self.fallback.lock();
        fallback.get_or_insert_with(|| Arc::new(MemoryStores::new(&[FALLBACK_SETTINGS]))).clone()
    }

    /// Removes the expired counters of the fallback, and the fallback once it has none and nobody uses it.
    pub(super) fn sweep_fallback(&self, now: Timestamp) {
        let Some(memory) = self.fallback.lock().clone() else { return };
        memory.sweep(now);
        drop(memory);
        let mut fallback = self.fallback.lock();
        fallback.take_if(|memory| Arc::strong_count(memory) == 1 && memory.usage()[0].keys == 0);
    }
}

/// Whether a check is decided by the fallback's counters.
fn is_local(check: &Check) -> bool {
    check.on_store_error == OnStoreError::Local && !check.always_denied
}

/// A check with what the fallback charged for it. Recorded uses are owed by the plan that failed.
fn decided_check(check: &Check, admitted: bool, outcome: Option<&Outcome>) -> DecidedCheck {
    let charged = outcome.filter(|outcome| outcome.charged > 0 && !is_owed_check(check));
    let units = charged.map_or(0, |outcome| check.units_charged(admitted, outcome.passes));
    let counted = charged.map_or(0, |outcome| outcome.limit.saturating_sub(outcome.remaining));
    DecidedCheck { check: *check, units, counted }
}
