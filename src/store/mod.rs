//! Where counters are kept. A store executes a plan atomically and returns what it came to.
//!
//! A store knows nothing of rules: it is given checks, and the meaning of a check is [`crate::limiter::advance`].

mod backend;
mod memory;
mod remote;
mod shared;
mod slots;
mod snapshot;
mod spread;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use self::backend::Backend;
pub use self::memory::{Memory, MemorySettings, Usage};
pub use self::remote::{Remote, RemoteSettings, Watch};
use self::shared::Shared;
pub use self::snapshot::{Owner, SnapshotError};
use crate::clock::Timestamp;
use crate::limiter::{Applied, CounterName, Fault, Plan};

/// What executes plans.
pub trait Store: Send + Sync {
    /// Executes a plan: its lease changes, then its groups in order, each admitted whole or not at all.
    ///
    /// `now` is this process's clock. A store that is shared decides by its own.
    fn apply(&self, plan: &Plan, now: Timestamp) -> impl Future<Output = Applied> + Send;

    /// Forgets what a counter holds, as if it had never been asked for. Says whether it held anything. `store` counts
    /// as checks do.
    ///
    /// # Errors
    ///
    /// The store cannot be asked; the counter is as it was.
    fn forget(&self, store: u16, counter: CounterName) -> impl Future<Output = Result<bool, Fault>> + Send;
}

/// The stores of a deployment, one of which every check names.
#[derive(Debug)]
pub struct Stores {
    /// A space for each place. That of a shared store stays empty.
    memory: Memory,
    /// Shared stores by place; empty where there are none, which is asked on every decision.
    shared: Vec<Option<Arc<Shared>>>,
    /// The callers' clock decides, not that of a shared store: for tests.
    by_callers_clock: bool,
}

/// How a store is made.
#[derive(Debug)]
pub enum StoreSettings {
    /// In this process's memory.
    Memory(MemorySettings),
    /// Outside of it.
    Shared(SharedSettings),
}

/// How a shared store is made.
#[derive(Debug)]
pub struct SharedSettings {
    /// How it is asked.
    pub remote: RemoteSettings,
    /// How many instances share it: while it is away, each keeps its part of every limit.
    pub instances: u32,
    /// Which one it is. Two settings that are equal are the same store with all it holds.
    pub engine: SharedEngine,
}

/// Which shared store.
#[derive(Debug)]
pub enum SharedEngine {
}

impl Stores {
    /// Stores in this process's memory, in the order that checks count them.
    pub fn memory(spaces: &[MemorySettings]) -> Self {
        Self { memory: Memory::new(spaces), shared: Vec::new(), by_callers_clock: false }
    }

    /// Stores for the next configuration: each is one of these with all it holds, by its place here, or a new one.
    pub fn next(&self, stores: impl IntoIterator<Item = Result<usize, MemorySettings>>) -> Self {
        Self { memory: self.memory.next(stores), shared: Vec::new(), by_callers_clock: self.by_callers_clock }
    }

    /// The bounds of the store at this place.
    pub fn settings(&self, store: usize) -> MemorySettings {
        self.memory.settings(store)
    }

    /// Forgets what no longer counts, as of `now`. Called now and then; no lock is held for long.
    pub fn sweep(&self, now: Timestamp) {
        self.memory.sweep(now);
        self.shared.iter().flatten().for_each(|shared| shared.sweep(now));
    }

    /// Writes a memory store's counters to a file. `store` counts as checks do.
    pub fn save(&self, store: usize, path: &Path, owner: &Owner) -> Result<(), SnapshotError> {
        self.memory.save(store, path, owner)
    }

    /// Reads a memory store's counters from a file, whole or not at all.
    pub fn load(
        &self,
        store: usize,
        path: &Path,
        owner: &Owner,
        now: Timestamp,
    ) -> Result<Option<usize>, SnapshotError> {
        self.memory.load(store, path, owner, now)
    }

    /// What each store holds.
    pub fn usage(&self) -> Vec<Usage> {
        self.memory.usage()
    }

    fn shared(&self, store: u16) -> Option<&Shared> {
        self.shared.get(usize::from(store))?.as_deref()
    }

    /// When a plan has to be decided that begins now: the longest that one of its stores may take.
    fn deadline(&self, plan: &Plan) -> Instant {
        let stores = plan.checks.iter().map(|check| check.store).chain(plan.changes.iter().map(|change| change.store));
        let deadlines = stores.filter_map(|store| Some(self.shared(store)?.remote.deadline()));
        deadlines.max().unwrap_or_else(Instant::now)
    }

    /// The moment that a shared store is told to decide by, if not by its own clock.
    fn told(&self, now: Timestamp) -> Option<Timestamp> {
        self.by_callers_clock.then_some(now)
    }

    /// Executes a plan that is whole in one shared store.
    async fn apply_there(&self, shared: &Shared, plan: &Plan, now: Timestamp) -> Applied {
        match shared.remote.ask(plan.clone(), self.told(now), shared.remote.deadline()).await {
            Ok(applied) => applied,
            Err(fault) => shared.stand_in(plan, fault, now),
        }
    }
}

impl Store for Stores {
    async fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        if self.shared.is_empty() {
            return self.memory.apply(plan, now);
        }
        match self.one_place(plan) {
            Some(None) => self.memory.apply(plan, now),
            Some(Some(store)) => {
                let shared = self.shared(store).expect("it was found there");
                self.apply_there(shared, plan, now).await
            }
            None => self.spread(plan, now).await,
        }
    }

    async fn forget(&self, store: u16, counter: CounterName) -> Result<bool, Fault> {
        match self.shared(store) {
            Some(shared) => shared.remote.forget(counter).await,
            None => Ok(self.memory.forget(store, &counter)),
        }
    }
}
