//! A shared store with what answers in its place: the policies of its limiters, and a stand-in in this process's memory.

mod backend;
mod queue;
mod quota_leases;
mod refusal_cache;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::backend::Backend;
pub use self::queue::{Queue, QueueSettings, StoreMetrics};
use self::quota_leases::{Leased, QuotaLeases};
use self::refusal_cache::RefusalCache;
use super::memory::{Memory, MemorySettings};
use crate::clock::Timestamp;
use crate::limiter::{LeaseStatus, OnStoreError};
use crate::plan::{Applied, Check, CounterName, Fault, Outcome, Plan};

/// Bytes that a stand-in's counters may take.
const STAND_IN: MemorySettings = MemorySettings { max_memory: 64 << 20, max_keys: None };

/// How long nothing may fail, in microseconds, until a store that is back is believed.
const QUIET: u64 = 500_000;

/// How a shared store is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// Its name, for the log.
    pub name: String,
    /// How it is asked.
    pub remote: QueueSettings,
    /// Whether its counters are in different places, each of which decides by itself: the slots of a cluster.
    pub partitioned: bool,
    /// The entry whose value says where a counter lives, where its key has it.
    pub tag: Option<String>,
    /// How many instances share it: while it is away, each keeps its part of every limit.
    pub instances: u32,
    /// How long a refusal is answered here at most; not at all when none.
    pub refusal_cache: Option<Duration>,
    /// Units of a hot counter that are charged at once at most; one by one when none.
    pub quota_lease: Option<u32>,
}

impl SharedSettings {
    /// What holds where nothing else is said: alone, asked for every decision.
    pub fn new(name: &str) -> Self {
        let remote = QueueSettings::default();
        Self {
            name: name.to_owned(),
            remote,
            partitioned: false,
            tag: None,
            instances: 1,
            refusal_cache: None,
            quota_lease: None,
        }
    }
}

/// A store that other instances count in too.
#[derive(Debug)]
pub struct Shared {
    remote: Queue,
    settings: SharedSettings,
    refusals: Option<RefusalCache>,
    leases: Option<QuotaLeases>,
    /// Decides while the store is away.
    fallback: Mutex<Option<Fallback>>,
}

/// Counters of the time that a store is away.
#[derive(Debug)]
struct Fallback {
    memory: Arc<Memory>,
    /// How often the store had come back when this began. It is thrown away when that has changed, and nothing failed
    /// for a while: a store that fails now and then would give everybody another limit each time.
    since: u32,
    /// When it last answered.
    used: Timestamp,
}

impl Fallback {
    /// Whether it goes on, or the time that it stood for is over.
    fn stands(&self, returns: u32, now: Timestamp) -> bool {
        self.since == returns || now - self.used < QUIET
    }
}

impl Shared {
    /// A store that is asked through `backend`. To be called within a runtime, where its calls are made.
    pub fn new(settings: SharedSettings, backend: impl Backend) -> Self {
        let remote = Queue::new(&settings.name, backend, settings.remote);
        let refusals = settings.refusal_cache.map(RefusalCache::new);
        let leases = settings.quota_lease.map(QuotaLeases::new);
        Self { remote, settings, refusals, leases, fallback: Mutex::new(None) }
    }

    /// How it is asked.
    pub fn remote(&self) -> &Queue {
        &self.remote
    }

    /// Asks the store for a plan, or answers from what is known of it here.
    ///
    /// `now` is this process's clock; `told` is the moment to decide by, where the store's own clock is not to.
    pub(super) async fn ask(
        &self,
        plan: &Plan,
        now: Timestamp,
        told: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<Applied, Fault> {
        if let Some(applied) = self.refusals.as_ref().and_then(|refusals| refusals.answer(plan, now)) {
            self.remote.count(|watch| watch.near[0].increment(1));
            return Ok(applied);
        }
        let answer = match &self.leases {
            Some(leases) => self.ask_leased(leases, plan, now, told, deadline).await,
            None => self.remote.ask(plan.clone(), told, deadline).await,
        };
        if let (Some(refusals), Ok(applied)) = (&self.refusals, &answer) {
            refusals.learn(plan, applied, now);
        }
        answer
    }

    async fn ask_leased(
        &self,
        leases: &QuotaLeases,
        plan: &Plan,
        now: Timestamp,
        told: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<Applied, Fault> {
        let larger = match leases.ask(plan.clone(), now) {
            Leased::Answered(applied) => {
                self.remote.count(|watch| watch.near[1].increment(1));
                return Ok(applied);
            }
            Leased::Plain(plan) => return self.remote.ask(plan, told, deadline).await,
            Leased::Larger(larger) => larger,
        };
        let answer = self.remote.borrow(larger.clone(), told, deadline).await;
        match leases.take(&larger, plan.checks[0].needs.fits, answer.as_ref().ok(), now) {
            Some(applied) => Ok(applied),
            None => {
                answer?;
                self.remote.ask(plan.clone(), told, deadline).await
            }
        }
    }

    /// Forgets what a counter holds. Says whether it held anything.
    pub(super) async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        if let Some(leases) = &self.leases {
            leases.forget(&counter);
        }
        let forgotten = self.remote.forget(counter).await;
        if let Some(refusals) = &self.refusals {
            refusals.clear();
        }
        forgotten
    }

    /// Has the store execute a plan whether or not anybody waits for it.
    pub(super) fn post(&self, plan: Plan, told: Option<Timestamp>) {
        if let (Some(refusals), false) = (&self.refusals, plan.undos.is_empty()) {
            refusals.clear();
        }
        self.remote.post(plan, told);
    }

    /// Returns all quota that is leased and unused. Waits until the store has it, or until the deadline.
    pub(super) async fn give_back(&self, now: Timestamp, told: Option<Timestamp>, deadline: Instant) {
        let plans = self.leases.iter().flat_map(|leases| leases.end(now, true));
        // All at once, so that they share calls. What cannot be returned drains or expires.
        join_all(plans.map(|plan| self.remote.ask(plan, told, deadline))).await;
    }

    /// The place in this store where a counter is decided. Counters of one place are decided together.
    pub(super) fn place(&self, counter: &CounterName) -> u16 {
        if self.settings.partitioned { counter.partition() } else { 0 }
    }

    /// Answers a plan that the store could not, as the limiters' policies say (semantics 31).
    pub(super) fn fallback(&self, plan: &Plan, fault: Fault, now: Timestamp) -> Applied {
        let local = |check: &Check| check.on_store_error == OnStoreError::Local && !check.always_denied;
        let needed = !plan.changes.is_empty() || !plan.undos.is_empty() || plan.checks.iter().any(local);
        let memory = needed.then(|| self.memory(now));
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.statuses = self.stand_in_for_leases(plan, memory, now);
        }
        let mut counted = [0; 3];
        for group in plan.groups() {
            let denies =
                |check: &Check| !check.shadow && (check.always_denied || check.on_store_error == OnStoreError::Deny);
            let refused = plan.refused || group.iter().any(denies);
            let checks = group.iter().filter(|check| local(check)).map(|check| self.of_stand_in(check));
            let mut part = Plan { checks: checks.collect(), refused, lease: plan.lease, ..Plan::default() };
            part.groups.push(u16::try_from(part.checks.len()).expect("a part is no longer than its plan"));
            let decided = memory.as_ref().filter(|_| !part.checks.is_empty()).map(|memory| memory.apply(&part, now));
            applied.admitted &= !refused && decided.as_ref().is_none_or(|decided| decided.admitted);
            let mut answers = decided.into_iter().flat_map(|decided| decided.answers);
            applied.answers.extend(group.iter().map(|check| {
                counted[check.on_store_error as usize] += u64::from(!check.shadow);
                match (check.always_denied, local(check)) {
                    // A limit of zero needs no store.
                    (true, _) => Ok(Outcome { passes: false, limit: 0, remaining: 0, reset: 0, retry_after: None }),
                    (_, true) => answers.next().expect("one answer for each check that was asked"),
                    (_, false) => Err(fault),
                }
            }));
        }
        self.remote.count(|watch| {
            watch.policy.iter().zip(counted).for_each(|(counter, count)| counter.increment(count));
        });
        applied
    }

    /// Leases that were taken while the store is away are here; the store's own expire by themselves.
    fn stand_in_for_leases(
        &self,
        plan: &Plan,
        memory: &Memory,
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

    fn of_stand_in(&self, check: &Check) -> Check {
        Check { store: 0, limit: check.limit.share(self.settings.instances), ..*check }
    }

    /// The stand-in's counters, of this time that the store is away.
    fn memory(&self, now: Timestamp) -> Arc<Memory> {
        let since = self.remote.returns();
        let mut fallback = self.fallback.lock();
        match fallback.as_mut().filter(|standing| standing.stands(since, now)) {
            Some(standing) => {
                standing.used = standing.used.max(now);
                standing.memory.clone()
            }
            None => {
                let memory = Arc::new(Memory::new(&[STAND_IN]));
                *fallback = Some(Fallback { memory: memory.clone(), since, used: now });
                memory
            }
        }
    }

    /// Forgets what no longer counts, and the stand-in of a store that is back.
    pub(super) fn sweep(&self, now: Timestamp, told: Option<Timestamp>) {
        for plan in self.leases.iter().flat_map(|leases| leases.end(now, false)) {
            self.post(plan, told);
        }
        let since = self.remote.returns();
        let memory = {
            let mut fallback = self.fallback.lock();
            fallback.take_if(|standing| !standing.stands(since, now));
            fallback.as_ref().map(|standing| standing.memory.clone())
        };
        if let Some(memory) = memory {
            memory.sweep(now);
        }
    }
}
