//! A shared store with what answers in its place: the policies of its limiters, and a stand-in in this process's memory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backend::Backend;
use super::memory::{Memory, MemorySettings};
use super::remote::{Remote, RemoteSettings};
use crate::clock::Timestamp;
use crate::limiter::{Applied, Check, CounterName, Fault, LeaseFate, OnStoreError, Outcome, Plan};

/// Bytes that a stand-in's counters may take.
const STAND_IN: MemorySettings = MemorySettings { max_memory: 64 << 20, max_keys: None };

/// How a shared store is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// Its name, for the log.
    pub name: String,
    /// How it is asked.
    pub remote: RemoteSettings,
    /// Whether its counters are in different places, each of which decides by itself: the slots of a cluster.
    pub parted: bool,
    /// How many instances share it: while it is away, each keeps its part of every limit.
    pub instances: u32,
}

/// A store that other instances count in too.
#[derive(Debug)]
pub struct Shared {
    pub(super) remote: Remote,
    settings: SharedSettings,
    /// Decides while the store is away.
    stand_in: Mutex<Option<StandIn>>,
}

/// Counters of the time that a store is away.
#[derive(Debug)]
struct StandIn {
    memory: Arc<Memory>,
    /// How often the store had come back when this began. It is thrown away when that has changed.
    since: u32,
}

impl Shared {
    /// A store that is asked through `backend`. To be called within a runtime, where its calls are made.
    pub fn new(settings: SharedSettings, backend: impl Backend) -> Self {
        let remote = Remote::new(&settings.name, backend, settings.remote);
        Self { remote, settings, stand_in: Mutex::new(None) }
    }

    /// How it is asked.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// How it was made.
    pub fn settings(&self) -> &SharedSettings {
        &self.settings
    }

    /// The place in this store where a counter is decided. Counters of one place are decided together.
    pub(super) fn place(&self, counter: &CounterName) -> u16 {
        if self.settings.parted { counter.home() } else { 0 }
    }

    /// Answers a plan that the store could not, as the limiters' policies say (semantics 31).
    pub(super) fn stand_in(&self, plan: &Plan, fault: Fault, now: Timestamp) -> Applied {
        let local = |check: &Check| check.on_store_error == OnStoreError::Local && !check.barred;
        let needed = !plan.changes.is_empty() || !plan.undos.is_empty() || plan.checks.iter().any(local);
        let memory = needed.then(|| self.memory());
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        if let Some(memory) = &memory {
            applied.fates = self.stand_in_for_leases(plan, memory, now);
        }
        let mut counted = [0; 3];
        for group in plan.groups() {
            let denies = |check: &Check| !check.shadow && (check.barred || check.on_store_error == OnStoreError::Deny);
            let refused = plan.refused || group.iter().any(denies);
            let checks = group.iter().filter(|check| local(check)).map(|check| self.of_stand_in(check));
            let mut part = Plan { checks: checks.collect(), refused, lease: plan.lease, ..Plan::default() };
            part.groups.push(u16::try_from(part.checks.len()).expect("a part is no longer than its plan"));
            let decided = memory.as_ref().filter(|_| !part.checks.is_empty()).map(|memory| memory.apply(&part, now));
            applied.admitted &= !refused && decided.as_ref().is_none_or(|decided| decided.admitted);
            let mut answers = decided.into_iter().flat_map(|decided| decided.answers);
            applied.answers.extend(group.iter().map(|check| {
                counted[check.on_store_error as usize] += u64::from(!check.shadow);
                match (check.barred, local(check)) {
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
    fn stand_in_for_leases(&self, plan: &Plan, memory: &Memory, now: Timestamp) -> smallvec::SmallVec<[LeaseFate; 1]> {
        let changes = plan.changes.iter().map(|change| crate::limiter::LeaseChange { store: 0, ..*change });
        let undos = plan.undos.iter().map(|undo| crate::limiter::Undo {
            store: 0,
            limit: undo.limit.share(self.settings.instances),
            ..*undo
        });
        let (changes, undos) = (changes.collect(), undos.collect());
        memory.apply(&Plan { changes, undos, lease: plan.lease, ..Plan::default() }, now).fates
    }

    fn of_stand_in(&self, check: &Check) -> Check {
        Check { store: 0, limit: check.limit.share(self.settings.instances), ..*check }
    }

    /// The stand-in's counters, of this time that the store is away.
    fn memory(&self) -> Arc<Memory> {
        let since = self.remote.returns();
        let mut stand_in = self.stand_in.lock();
        let standing = stand_in.as_ref().filter(|standing| standing.since == since).map(|standing| &standing.memory);
        match standing {
            Some(memory) => memory.clone(),
            None => {
                let memory = Arc::new(Memory::new(&[STAND_IN]));
                *stand_in = Some(StandIn { memory: memory.clone(), since });
                memory
            }
        }
    }

    /// Forgets what no longer counts, and the stand-in of a store that is back.
    pub(super) fn sweep(&self, now: Timestamp) {
        let since = self.remote.returns();
        let memory = {
            let mut stand_in = self.stand_in.lock();
            stand_in.take_if(|standing| standing.since != since);
            stand_in.as_ref().map(|standing| standing.memory.clone())
        };
        if let Some(memory) = memory {
            memory.sweep(now);
        }
    }
}
