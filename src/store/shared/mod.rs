//! A shared store with its wrappers (refusal cache, quota leases) and the fallback that answers while it fails.

mod acknowledged;
mod backend;
mod backlog;
mod breaker;
mod fallback;
mod hand_over;
mod hints;
mod lane;
mod metrics;
mod owed;
mod queue;
mod quota_leases;
mod refusal_cache;
mod settle;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod store_clock;

use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::backend::{Backend, HearText};
use self::backlog::Backlog;
use self::fallback::Fallback;
pub(crate) use self::hints::HearHint;
use self::hints::Hints;
pub use self::lane::QueueSettings;
pub use self::metrics::{DropReason, StoreObserver, Wrapper};
use self::owed::is_owed_check;
pub use self::queue::Queue;
use self::quota_leases::{QuotaAnswer, QuotaLeases};
use self::refusal_cache::RefusalCache;
use self::settle::Unanswered;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use self::store_clock::{CALENDAR_ATTEMPTS, StoreClock};
use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};

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
    fallback: Fallback,
    hints: Hints,
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
        let fallback = Fallback::new(settings.instances);
        let (hints, last_clock_warning) = (Hints::new(), Mutex::new(None));
        Self { queue, settings, refusal_cache, quota_leases, fallback, hints, last_clock_warning }
    }

    /// Its name, for the log.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Goes on with what the fallback of the store that this one replaces has counted, and with what is owed to it. It
    /// is for the same limiters, even if the server is another one.
    pub(super) fn take_over(&self, old: &Self) {
        self.fallback.take_over(&old.fallback);
        self.queue.take_over(&old.queue);
    }

    /// The queue in front of the store.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Executes a plan. If the store does not answer, the policies of the limiters do.
    pub(super) async fn apply(&self, plan: &Plan, now: Timestamp, deadline: Instant) -> Applied {
        match self.ask(plan, now, deadline).await {
            Ok(applied) => applied,
            Err(unanswered) => self.fallback.answer(&self.queue, plan, unanswered, now),
        }
    }

    /// Executes a plan without asking the store, because the fallback has its charges.
    pub(super) fn apply_in_fallback(&self, plan: &Plan, now: Timestamp) -> Applied {
        self.fallback.answer(&self.queue, plan, Fault::CircuitOpen.into(), now)
    }

    /// Executes a plan: in a wrapper if one can answer it, otherwise on the store.
    ///
    /// `now` is this process's clock. The store decides by its own.
    pub(super) async fn execute(&self, plan: &Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Fault> {
        self.ask(plan, now, deadline).await.map_err(|unanswered| unanswered.fault)
    }

    async fn ask(&self, plan: &Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Unanswered> {
        // Before the release is sent, or the slot could be handed over behind it.
        if !plan.changes.is_empty() {
            self.queue.backlog().change_slots(plan);
        }
        if let Some(applied) = self.refusal_cache.as_ref().and_then(|cache| cache.answer(plan, now)) {
            self.queue.report(|observer| observer.answered_by_wrapper(Wrapper::RefusalCache));
            return Ok(applied);
        }
        let answer = match &self.quota_leases {
            Some(leases) => self.execute_with_leases(leases, plan, now, deadline).await,
            None => self.execute_on_store(plan.clone(), now, deadline).await,
        };
        let answer = answer.map(|applied| self.fallback.change_leases(&self.queue, plan, applied, now));
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
    ) -> Result<Applied, Unanswered> {
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
                match answer {
                    Ok(_) | Err(Fault::ConnectionLost) => {}
                    Err(fault) => return Err(fault.into()),
                }
                self.execute_on_store(plan.clone(), now, deadline).await
            }
        }
    }

    async fn execute_on_store(&self, mut plan: Plan, now: Timestamp, deadline: Instant) -> Result<Applied, Unanswered> {
        if plan.once.is_none() && plan.checks.iter().any(is_owed_check) {
            plan.once = Some(Backlog::once());
        }
        let answer = self.queue.ask(plan, deadline).await;
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
        self.queue.backlog().forget(counter);
        self.fallback.forget(counter);
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
        self.fallback.sweep(now);
        self.hints.sweep();
    }

    /// Sends the hints of other instances here.
    pub(super) fn hear_hints(&self, hear: HearHint) {
        self.hints.hear(hear);
    }

    /// Listens to the hints of other instances from now on.
    pub(super) fn listen_to_hints(&self) {
        self.hints.listen(&self.queue);
    }

    /// Says to other instances that a caller waits for a counter.
    pub(super) fn hint_wanted(&self, counter: CounterName) {
        self.hints.want(&self.queue, counter);
    }

    /// Says to other instances that something of a counter was given back.
    pub(super) fn hint_freed(&self, counter: CounterName) {
        self.hints.free(&self.queue, counter);
    }
}

/// Tells the ids of plans of this process ([`Plan::once`]) from those of others. A store that replaces another one in a
/// reload sends the plans of the other again, so it is one for all.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) fn process_id() -> u64 {
    static ID: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *ID.get_or_init(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        u64::from_le_bytes(bytes)
    })
}
