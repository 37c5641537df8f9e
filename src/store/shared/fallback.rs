//! The fallback, which answers plans by the limiters' `on_store_error` policies while the store does not (semantics 31).

use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::backlog::ChargedPlace;
use super::metrics::StoreObserver;
use super::owed::is_owed_check;
use super::queue::Queue;
use super::settle::{DecidedCheck, PolicyDecision, Unanswered};
use crate::clock::Timestamp;
use crate::limiter::{LeaseStatus, Limit, OnStoreError};
use crate::plan::{Applied, Check, CounterName, HoldAction, HoldChange, LeaseChange, Outcome, Plan, Undo};
use crate::store::memory::{MemorySettings, MemoryStores};

/// The bounds of its counters.
const SETTINGS: MemorySettings = MemorySettings { max_memory: 64 << 20, max_keys: None };

/// The counters of this process for a store that does not answer. They are kept until they have expired, so that every
/// outage goes on with the counts of the one before.
#[derive(Debug)]
pub(super) struct Fallback {
    /// The number of instances that share the store: each counts up to its share of every limit.
    instances: u32,
    memory: Mutex<Option<Arc<MemoryStores>>>,
}

impl Fallback {
    pub(super) fn new(instances: u32) -> Self {
        Self { instances, memory: Mutex::default() }
    }

    /// Goes on with the counters of a fallback that this one replaces.
    pub(super) fn take_over(&self, old: &Self) {
        let memory = old.memory.lock().clone();
        *self.memory.lock() = memory;
    }

    /// Answers a plan by the limiters' `on_store_error` policies, because the store did not.
    pub(super) fn answer(&self, queue: &Queue, plan: &Plan, unanswered: Unanswered, now: Timestamp) -> Applied {
        let fault = unanswered.fault;
        let changes = !plan.changes.is_empty() || !plan.holds.is_empty() || !plan.undos.is_empty();
        let needed = changes || plan.checks.iter().any(is_local);
        let memory = needed.then(|| self.memory());
        let mut applied = Applied { admitted: !plan.refused, at: now, degraded: true, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.statuses = self.change(queue, plan, memory, now);
        }
        let looking = plan.found_held(&applied.statuses).then(|| plan.looking());
        let plan = looking.as_ref().unwrap_or(plan);
        let mut checks_by_policy = [0; 3];
        let mut decision =
            PolicyDecision { checks: SmallVec::new(), lease: plan.lease, named: plan.has_named_lease(), at: now };
        for group in plan.groups() {
            let denies =
                |check: &Check| !check.shadow && (check.always_denied || check.on_store_error == OnStoreError::Deny);
            let refused = plan.refused || group.iter().any(denies);
            let checks = group.iter().filter(|check| is_local(check)).map(|check| self.share_of(check));
            let mut local_plan = Plan { checks: checks.collect(), refused, ..plan.of_same_asker() };
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
                    (true, _) => Ok(Outcome {
                        passes: false,
                        limit: 0,
                        remaining: 0,
                        reset: 0,
                        retry_after: None,
                        charged: 0,
                        held: 0,
                    }),
                    (_, true) => answers.next().expect("one answer for each local check"),
                    (_, false) => Err(fault),
                };
                decision.checks.push(decided_check(check, plan, admitted, answer.as_ref().ok()));
                answer
            }));
        }
        queue.report(|observer: &dyn StoreObserver| {
            for policy in [OnStoreError::Allow, OnStoreError::Deny, OnStoreError::Local] {
                observer.answered_by_policy(policy, checks_by_policy[policy as usize]);
            }
        });
        queue.settle(decision, unanswered);
        applied
    }

    /// Applies changes of leases and holds, and undos, and takes them off what is owed.
    fn change(&self, queue: &Queue, plan: &Plan, memory: &MemoryStores, now: Timestamp) -> SmallVec<[LeaseStatus; 1]> {
        for undo in &plan.undos {
            match &undo.limit {
                Limit::Concurrency(_) => queue.backlog().cancel_slot(undo.counter, plan.lease),
                Limit::TokenBucket(_) => {
                    // What was charged is in levels of this instance's share.
                    let Limit::TokenBucket(share) = undo.limit.share(self.instances) else { continue };
                    let units = u32::try_from(undo.charged.div_ceil(share.unit())).unwrap_or(u32::MAX);
                    queue.backlog().cancel_charge(undo.counter.into(), units);
                }
                Limit::Distinct(distinct) => {
                    for value in distinct.asked.of(plan.values.as_slice()) {
                        queue.backlog().cancel_charge(ChargedPlace::value(undo.counter, *value), 1);
                    }
                }
                Limit::SlidingWindow(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {
                    let units = u32::try_from(undo.charged).unwrap_or(u32::MAX);
                    queue.backlog().cancel_charge(undo.counter.into(), units);
                }
            }
        }
        let holds = plan.holds.iter().map(|change| self.change_hold(queue, change, memory, now)).collect();
        let changes = plan.changes.iter().map(|change| LeaseChange { store: 0, ..*change });
        let share = |undo: &Undo| Undo { store: 0, limit: undo.limit.share(self.instances), ..*undo };
        let (changes, undos) = (changes.collect(), plan.undos.iter().map(share).collect());
        memory.apply(&Plan { changes, holds, undos, ..plan.of_same_asker() }, now).statuses
    }

    /// A change of a hold as it is made here, by this instance's share of the limit. What it gives back or charges is taken
    /// off what is owed, or is owed too: what has reached the store already cannot be corrected there.
    fn change_hold(&self, queue: &Queue, change: &HoldChange, memory: &MemoryStores, now: Timestamp) -> HoldChange {
        let local = HoldChange { store: 0, limit: change.limit.share(self.instances), ..*change };
        let held = memory.held_units(0, &change.counter, change.lease);
        if let (Some(held), HoldAction::Settle(Some(units))) = (held, change.action) {
            queue.backlog().cancel_charge(change.counter.into(), held.saturating_sub(units));
            let more = units.saturating_sub(held);
            let check = Check::charge(change.counter, change.limit, more);
            let check = Check { store: change.store, ..check };
            // What has left the window of the fallback meanwhile is taken off by the next decision.
            let counted = u32::MAX;
            if more > 0 && !queue.backlog().expect_charge(change.counter.into(), &check, more, counted, now) {
                queue.backlog().settle_charge(change.counter.into(), more, false);
            }
        }
        local
    }

    /// Applies the changes of leases and holds of a plan that the store has executed here too: they may be held here.
    pub(super) fn change_leases(&self, queue: &Queue, plan: &Plan, mut applied: Applied, now: Timestamp) -> Applied {
        if plan.changes.is_empty() && plan.holds.is_empty() {
            return applied;
        }
        let Some(memory) = self.memory.lock().clone() else { return applied };
        let Plan { changes, holds, lease, .. } = plan;
        let changes = Plan { changes: changes.clone(), holds: holds.clone(), lease: *lease, ..Plan::default() };
        let local = self.change(queue, &changes, &memory, now);
        for (status, local) in applied.statuses.iter_mut().zip(local) {
            if *status == LeaseStatus::Unknown {
                *status = local;
            }
        }
        applied
    }

    /// Removes a counter.
    pub(super) fn forget(&self, counter: CounterName) {
        if let Some(memory) = self.memory.lock().clone() {
            memory.forget(0, &counter);
        }
    }

    /// A check as it is decided here: by this instance's share of the limit.
    fn share_of(&self, check: &Check) -> Check {
        Check { store: 0, limit: check.limit.share(self.instances), ..*check }
    }

    fn memory(&self) -> Arc<MemoryStores> {
        self.memory.lock().get_or_insert_with(|| Arc::new(MemoryStores::new(&[SETTINGS]))).clone()
    }

    /// Removes the expired counters, and the memory once it has none and nobody uses it.
    pub(super) fn sweep(&self, now: Timestamp) {
        let Some(memory) = self.memory.lock().clone() else { return };
        memory.sweep(now);
        drop(memory);
        let mut memory = self.memory.lock();
        memory.take_if(|memory| Arc::strong_count(memory) == 1 && memory.usage()[0].keys == 0);
    }
}

/// Whether a check is decided by the fallback's counters.
fn is_local(check: &Check) -> bool {
    check.on_store_error == OnStoreError::Local && !check.always_denied
}

/// A check with what the fallback charged for it. Recorded uses are owed by the plan that failed.
fn decided_check(check: &Check, plan: &Plan, admitted: bool, outcome: Option<&Outcome>) -> DecidedCheck {
    let charged = outcome.filter(|outcome| outcome.charged > 0 && !is_owed_check(check));
    let units = charged.map_or(0, |outcome| check.units_charged(admitted, outcome.passes));
    let counted = charged.map_or(0, |outcome| outcome.limit.saturating_sub(outcome.remaining));
    let values = match &check.limit {
        Limit::Distinct(distinct) => distinct.asked.of(plan.values.as_slice()).into(),
        _ => SmallVec::new(),
    };
    DecidedCheck { check: *check, values, units, counted }
}
