//! A shared store with its wrappers (refusal cache, quota leases) and the fallback that answers while it fails.

mod backend;
mod breaker;
mod metrics;
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
pub use self::metrics::{StoreObserver, Wrapper};
pub use self::queue::{Queue, QueueSettings};
use self::quota_leases::{QuotaAnswer, QuotaLeases};
use self::refusal_cache::RefusalCache;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use self::store_clock::{CALENDAR_ATTEMPTS, StoreClock};
use super::memory::{MemorySettings, MemoryStores};
use crate::clock::Timestamp;
use crate::limiter::{LeaseStatus, OnStoreError};
use crate::plan::{Applied, Check, CounterName, Fault, Outcome, Plan};

/// The bounds of a fallback's counters.
const FALLBACK_SETTINGS: MemorySettings = MemorySettings { max_memory: 64 << 20, max_keys: None };

/// The fallback of a recovered store is discarded after this time without a failure.
const FALLBACK_GRACE_MICROS: u64 = 500_000;

/// The smallest difference between the clocks of a store and of this process that is logged. It includes the duration
/// of a call.
const MAX_CLOCK_DIFFERENCE_MICROS: u64 = 1_000_000;

/// The shortest time between two warnings of a difference.
const CLOCK_WARNING_INTERVAL: Duration = Duration::from_secs(60);

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
    /// Decides while the store fails.
    fallback: Mutex<Option<Fallback>>,
    /// When a difference of the clocks was last logged.
    last_clock_warning: Mutex<Option<Instant>>,
}

/// The local counters of one outage of the store.
#[derive(Debug)]
struct Fallback {
    memory: Arc<MemoryStores>,
    /// The store's count of recoveries when the outage began. The counters are discarded once the count has changed and
    /// nothing has failed for [`FALLBACK_GRACE_MICROS`]: otherwise each of several short outages would start with full
    /// limits.
    recoveries: u32,
    /// When the fallback last answered a plan.
    last_used: Timestamp,
}

impl Fallback {
    /// Whether the outage is still going on.
    fn is_current(&self, recoveries: u32, now: Timestamp) -> bool {
        self.recoveries == recoveries || now - self.last_used < FALLBACK_GRACE_MICROS
    }
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
                answer?;
                self.execute_on_store(plan.clone(), now, deadline).await
            }
        }
    }

    async fn execute_on_store(&self, plan: Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Fault> {
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

    /// Answers a plan by the limiters' `on_store_error` policies, because the store did not (semantics 31).
    pub(super) fn fallback(&self, plan: &Plan, fault: Fault, now: Timestamp) -> Applied {
        let local = |check: &Check| check.on_store_error == OnStoreError::Local && !check.always_denied;
        let needed = !plan.changes.is_empty() || !plan.undos.is_empty() || plan.checks.iter().any(local);
        let memory = needed.then(|| self.fallback_memory(now));
        let mut applied = Applied { admitted: !plan.refused, at: now, degraded: true, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.statuses = self.apply_changes_to_fallback(plan, memory, now);
        }
        let mut checks_by_policy = [0; 3];
        for group in plan.groups() {
            let denies =
                |check: &Check| !check.shadow && (check.always_denied || check.on_store_error == OnStoreError::Deny);
            let refused = plan.refused || group.iter().any(denies);
            let checks = group.iter().filter(|check| local(check)).map(|check| self.fallback_check(check));
            let mut local_plan = Plan { checks: checks.collect(), refused, lease: plan.lease, ..Plan::default() };
            local_plan
                .groups
                .push(u16::try_from(local_plan.checks.len()).expect("it has no more checks than its plan"));
            let decided =
                memory.as_ref().filter(|_| !local_plan.checks.is_empty()).map(|memory| memory.apply(&local_plan, now));
            applied.admitted &= !refused && decided.as_ref().is_none_or(|decided| decided.admitted);
            let mut answers = decided.into_iter().flat_map(|decided| decided.answers);
            applied.answers.extend(group.iter().map(|check| {
                checks_by_policy[check.on_store_error as usize] += u64::from(!check.shadow);
                match (check.always_denied, local(check)) {
                    // A limit of zero needs no store.
                    (true, _) => {
                        Ok(Outcome { passes: false, limit: 0, remaining: 0, reset: 0, retry_after: None, charged: 0 })
                    }
                    (_, true) => answers.next().expect("one answer for each local check"),
                    (_, false) => Err(fault),
                }
            }));
        }
        self.queue.report(|observer| {
            for policy in [OnStoreError::Allow, OnStoreError::Deny, OnStoreError::Local] {
                observer.answered_by_policy(policy, checks_by_policy[policy as usize]);
            }
        });
        applied
    }

    /// Applies lease changes and undos to the fallback, which holds the leases acquired during the outage. Leases in the
    /// store expire.
    fn apply_changes_to_fallback(
        &self,
        plan: &Plan,
        memory: &MemoryStores,
        now: Timestamp,
    ) -> smallvec::SmallVec<[LeaseStatus; 1]> {
        let changes = plan.changes.iter().map(|change| crate::plan::LeaseChange { store: 0, ..*change });
        let undos = plan.undos.iter().map(|undo| crate::plan::Undo {
            store: 0,
            limit: undo.limit.share(self.settings.instances),
            ..*undo
        });
        let (changes, undos) = (changes.collect(), undos.collect());
        memory.apply(&Plan { changes, undos, lease: plan.lease, ..Plan::default() }, now).statuses
    }

    /// A check as the fallback decides it: by this instance's share of the limit.
    fn fallback_check(&self, check: &Check) -> Check {
        Check { store: 0, limit: check.limit.share(self.settings.instances), ..*check }
    }

    /// The fallback's counters of the current outage.
    fn fallback_memory(&self, now: Timestamp) -> Arc<MemoryStores> {
        let recoveries = self.queue.recoveries();
        let mut fallback = self.fallback.lock();
        match fallback.as_mut().filter(|current| current.is_current(recoveries, now)) {
            Some(current) => {
                current.last_used = current.last_used.max(now);
                current.memory.clone()
            }
            None => {
                let memory = Arc::new(MemoryStores::new(&[FALLBACK_SETTINGS]));
                *fallback = Some(Fallback { memory: memory.clone(), recoveries, last_used: now });
                memory
            }
        }
    }

    /// Returns idle leased quota, discards the fallback of a recovered store, and sweeps the fallback's counters.
    pub(super) fn sweep(&self, now: Timestamp) {
        for plan in self.quota_leases.iter().flat_map(|leases| leases.end_idle(now)) {
            self.post(plan);
        }
        let recoveries = self.queue.recoveries();
        let memory = {
            let mut fallback = self.fallback.lock();
            fallback.take_if(|current| !current.is_current(recoveries, now));
            fallback.as_ref().map(|current| current.memory.clone())
        };
        if let Some(memory) = memory {
            memory.sweep(now);
        }
    }
}
