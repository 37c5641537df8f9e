//! A shared store with its wrappers (refusal cache, quota leases) and the fallback that answers while it fails.

mod backend;
mod backlog;
mod breaker;
mod hand_over;
mod lane;
mod metrics;
mod owed;
mod queue;
mod quota_leases;
mod refusal_cache;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod store_clock;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::backend::Backend;
pub use self::lane::QueueSettings;
pub use self::metrics::{DropReason, StoreObserver, Wrapper};
use self::owed::is_owed_check;
pub use self::queue::Queue;
use self::quota_leases::{QuotaAnswer, QuotaLeases};
use self::refusal_cache::RefusalCache;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use self::store_clock::{CALENDAR_ATTEMPTS, StoreClock};
use super::memory::{MemorySettings, MemoryStores};
use crate::clock::Timestamp;
use crate::limiter::{LeaseStatus, Limit, OnStoreError};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseChange, Outcome, Plan, Undo};

/// The smallest difference between the clocks of a store and of this process that is logged. It includes the duration
/// of a call.
const MAX_CLOCK_DIFFERENCE_MICROS: u64 = 1_000_000;

/// The shortest time between two warnings of a difference.
const CLOCK_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The bounds of a fallback's counters.
const FALLBACK_SETTINGS: MemorySettings = MemorySettings { max_memory: 64 << 20, max_keys: None };

/// The settings of a shared store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// Its name, for the log.
    pub name: String,
    /// The settings of its queue.
    pub queue: QueueSettings,
    /// Whether its counters are in partitions that decide independently: the hash slots of a cluster.
    pub partitioned: bool,
    /// The entry whose value selects the partition of a counter, if its key has that entry.
    pub tag: Option<String>,
    /// The number of instances that share it. While the store fails, each instance enforces its share of every limit.
    pub instances: u32,
    /// The longest time a refusal is answered from the cache; `None` turns the cache off.
    pub refusal_cache: Option<Duration>,
    /// The maximum units of a hot counter charged in advance; `None` turns quota leases off.
    pub quota_lease: Option<u32>,
}

impl SharedSettings {
    /// The defaults: one instance, no partitions, no wrappers.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            queue: QueueSettings::default(),
            partitioned: false,
            tag: None,
            instances: 1,
            refusal_cache: None,
            quota_lease: None,
        }
    }
}

/// A store that other instances use too.
#[derive(Debug)]
pub struct SharedStore {
    queue: Queue,
    settings: SharedSettings,
    refusal_cache: Option<RefusalCache>,
    quota_leases: Option<QuotaLeases>,
    /// Decides while the store fails. It is kept until its counters have expired, so that every outage goes on with the
    /// counts of the one before.
    fallback: Mutex<Option<Arc<MemoryStores>>>,
    /// When a difference of the clocks was last logged.
    last_clock_warning: Mutex<Option<Instant>>,
}

/// Returns unused leased quota. A store that a reload replaced is dropped after its last answer, and its queue ends once
/// it has sent what is posted here.
impl Drop for SharedStore {
    fn drop(&mut self) {
        let plans = self.quota_leases.as_ref().map(QuotaLeases::end_all).unwrap_or_default();
        if !plans.is_empty() {
            let (store, counters) = (&self.settings.name, plans.len());
            tracing::info!(store, counters, "store let go: its unused leased quota is given back");
        }
        plans.into_iter().for_each(|plan| self.queue.post(plan));
    }
}

impl SharedStore {
    /// Creates a shared store behind `backend`. Must be called within a tokio runtime.
    pub fn new(settings: SharedSettings, backend: impl Backend) -> Self {
        let queue = Queue::new(&settings.name, backend, settings.queue);
        let refusal_cache = settings.refusal_cache.map(RefusalCache::new);
        let quota_leases = settings.quota_lease.map(QuotaLeases::new);
        Self {
            queue,
            settings,
            refusal_cache,
            quota_leases,
            fallback: Mutex::new(None),
            last_clock_warning: Mutex::new(None),
        }
    }

    /// Its name, for the log.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The queue in front of the store.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Executes a plan: in a wrapper if one can answer it, otherwise on the store.
    ///
    /// `now` is this process's clock. The store decides by its own.
    pub(super) async fn execute(&self, plan: &Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Fault> {
        if let Some(applied) = self.refusal_cache.as_ref().and_then(|cache| cache.answer(plan, now)) {
            self.queue.report(|observer| observer.answered_by_wrapper(Wrapper::RefusalCache));
            return Ok(applied);
        }
        let answer = match &self.quota_leases {
            Some(leases) => self.execute_with_leases(leases, plan, now, deadline).await,
            None => self.execute_on_store(plan.clone(), now, deadline).await,
        };
        let answer = answer.map(|applied| self.change_leases_of_fallback(plan, applied, now));
        if let (Some(cache), Ok(applied)) = (&self.refusal_cache, &answer) {
            cache.record(plan, applied, now);
        }
        answer
    }

    async fn execute_with_leases(
        &self,
        leases: &QuotaLeases,
        plan: &Plan,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Applied, Fault> {
        let larger = match leases.answer(plan.clone(), now) {
            QuotaAnswer::Local(applied) => {
                self.queue.report(|observer| observer.answered_by_wrapper(Wrapper::QuotaLease));
                return Ok(applied);
            }
            QuotaAnswer::Forward(plan) => return self.execute_on_store(plan, now, deadline).await,
            QuotaAnswer::Prefetch(larger) => larger,
        };
        let answer = self.queue.prefetch(larger.clone(), deadline).await;
        match leases.accept_prefetch(&larger, plan.checks[0].needs.fits, answer.as_ref().ok(), now) {
            Some(applied) => Ok(applied),
            None => {
                // A block that was lost with its connection may be charged. The request is not.
                answer.map(drop).or_else(|fault| if fault == Fault::ConnectionLost { Ok(()) } else { Err(fault) })?;
                self.execute_on_store(plan.clone(), now, deadline).await
            }
        }
    }

    async fn execute_on_store(&self, mut plan: Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Fault> {
        if plan.once.is_none() && plan.checks.iter().any(is_owed_check) {
            plan.once = Some(self.queue.backlog().once());
        }
        let answer = self.queue.execute(plan, deadline).await;
        if let Ok(applied) = &answer {
            self.compare_clocks(applied.at, now);
        }
        answer
    }

    /// Reports the difference between the store's clock, which was read up to a timeout later, and this process's.
    fn compare_clocks(&self, store: Timestamp, process: Timestamp) {
        let difference = store.micros().cast_signed().saturating_sub(process.micros().cast_signed());
        self.queue.report(|observer| observer.clock_difference(difference));
        if difference.unsigned_abs() < MAX_CLOCK_DIFFERENCE_MICROS {
            return;
        }
        let mut last = self.last_clock_warning.lock();
        if last.is_none_or(|last| last.elapsed() >= CLOCK_WARNING_INTERVAL) {
            *last = Some(Instant::now());
            let seconds = difference as f64 / 1e6;
            tracing::warn!(
                store = self.settings.name,
                seconds,
                "clocks differ: the store's clock decides; synchronise this machine's or the store's"
            );
        }
    }

    /// Removes a counter and returns whether it held anything.
    pub(super) async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        if let Some(leases) = &self.quota_leases {
            leases.forget(&counter);
        }
        self.forget_in_fallback(counter);
        let forgotten = self.queue.forget(counter).await;
        if let Some(cache) = &self.refusal_cache {
            cache.clear();
        }
        forgotten
    }

    /// Queues a plan without waiting for its answer.
    pub(super) fn post(&self, plan: Plan) {
        if let (Some(cache), false) = (&self.refusal_cache, plan.undos.is_empty()) {
            cache.clear();
        }
        self.queue.post(plan);
    }

    /// Returns all unused leased quota to the store, until the deadline.
    pub(super) async fn return_leased_quota(&self, deadline: Instant) {
        let plans = self.quota_leases.iter().flat_map(QuotaLeases::end_all);
        // Concurrently, so that they share calls. Quota that cannot be returned drains or expires.
        join_all(plans.map(|plan| self.queue.execute(plan, deadline))).await;
    }

    /// The partition of a counter. Counters of one partition are decided atomically.
    pub(super) fn partition(&self, counter: &CounterName) -> u16 {
        if self.settings.partitioned { counter.partition() } else { 0 }
    }

    /// Returns idle leased quota, and removes the expired counters of the fallback.
    pub(super) fn sweep(&self, now: Timestamp) {
        for plan in self.quota_leases.iter().flat_map(|leases| leases.end_idle(now)) {
            self.post(plan);
        }
        self.sweep_fallback(now);
    }
}

/// The fallback, which answers plans by the limiters' `on_store_error` policies while the store does not (semantics 31).
impl SharedStore {
    /// Answers a plan by the limiters' `on_store_error` policies, because the store did not.
    pub(super) fn fallback(&self, plan: &Plan, fault: Fault, now: Timestamp) -> Applied {
        let needed = !plan.changes.is_empty() || !plan.undos.is_empty() || plan.checks.iter().any(is_local);
        let memory = needed.then(|| self.fallback_memory());
        let mut applied = Applied { admitted: !plan.refused, at: now, degraded: true, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.statuses = self.change_fallback(plan, memory, now);
        }
        let mut checks_by_policy = [0; 3];
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
                match (check.always_denied, is_local(check)) {
                    // A limit of zero needs no store.
                    (true, _) => {
                        Ok(Outcome { passes: false, limit: 0, remaining: 0, reset: 0, retry_after: None, charged: 0 })
                    }
                    (_, true) => {
                        let answer = answers.next().expect("one answer for each local check");
                        if let Ok(outcome) = &answer {
                            self.owe_charge(check, plan, admitted, outcome, now);
                        }
                        if fault == Fault::ConnectionLost && matches!(check.limit, Limit::Concurrency(_)) {
                            self.queue.release_unless_held(check, plan.lease);
                        }
                        answer
                    }
                    (_, false) => Err(fault),
                }
            }));
        }
        self.queue.report(|observer: &dyn StoreObserver| {
            for policy in [OnStoreError::Allow, OnStoreError::Deny, OnStoreError::Local] {
                observer.answered_by_policy(policy, checks_by_policy[policy as usize]);
            }
        });
        applied
    }

    /// Owes the store what a check of the fallback charged. Recorded uses are owed by the plan that failed.
    fn owe_charge(&self, check: &Check, plan: &Plan, admitted: bool, outcome: &Outcome, now: Timestamp) {
        let units = check.units_charged(admitted, outcome.passes);
        if units == 0 || outcome.charged == 0 || is_owed_check(check) {
            return;
        }
        let backlog = self.queue.backlog();
        let dropped = match &check.limit {
            Limit::Concurrency(slots) => backlog.owe_slot(check, plan.lease, slots),
            _ => backlog.owe_charge(check, units, outcome.limit.saturating_sub(outcome.remaining), now),
        };
        self.queue.report_owed(dropped);
    }

    /// Applies lease changes and undos to the fallback, and takes them off what is owed.
    fn change_fallback(
        &self,
        plan: &Plan,
        memory: &MemoryStores,
        now: Timestamp,
    ) -> smallvec::SmallVec<[LeaseStatus; 1]> {
        for change in &plan.changes {
            if change.action == crate::plan::LeaseAction::Release {
                self.queue.backlog().cancel_slot(change.counter, change.lease);
            }
        }
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
    fn change_leases_of_fallback(&self, plan: &Plan, mut applied: Applied, now: Timestamp) -> Applied {
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
    fn forget_in_fallback(&self, counter: CounterName) {
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
    fn sweep_fallback(&self, now: Timestamp) {
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
