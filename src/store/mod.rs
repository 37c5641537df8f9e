//! Where counters are kept. A store executes a plan atomically and returns what it came to.
//!
//! A store knows nothing of rules: it is given checks, and the meaning of a check is [`crate::plan::advance`].

mod compensation;
mod config;
mod memory;
mod postgres;
mod redis;
mod shared;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::config::StoreConfig;
pub use self::memory::{Memory, MemorySettings, Owner, SnapshotError, Usage};
pub use self::postgres::{MigrateError, Migrated, Postgres, PostgresSettings, PostgresSettingsError, migrate};
pub use self::redis::{
    Address, Credentials, Identity, Password, Redis, RedisSettings, TlsError, TlsSettings, Topology,
};
pub use self::shared::{Backend, Queue, QueueSettings, Shared, SharedSettings, StoreMetrics};
use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};

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

/// What is known of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFact {
    /// Of one in this process's memory.
    Memory(Usage),
    /// Of a shared one.
    Shared {
        /// Whether it is left alone until it answers again.
        circuit_open: bool,
    },
}

/// A store as it is put among others.
#[derive(Debug)]
pub enum StoreHandle {
    /// In this process's memory.
    Memory(MemorySettings),
    /// Outside of it.
    Shared(Arc<Shared>),
}

impl Stores {
    /// Stores in this process's memory, in the order that checks count them.
    pub fn memory(spaces: &[MemorySettings]) -> Self {
        Self { memory: Memory::new(spaces), shared: Vec::new(), by_callers_clock: false }
    }

    /// Stores of any kind, in the order that checks count them.
    pub fn of(keepers: impl IntoIterator<Item = StoreHandle>) -> Self {
        Self::memory(&[]).next(keepers.into_iter().map(Err))
    }

    /// Stores for the next configuration: each is one of these with all it holds, by its place here, or a new one.
    pub fn next(&self, stores: impl IntoIterator<Item = Result<usize, StoreHandle>>) -> Self {
        let (spaces, mut shared): (Vec<_>, Vec<_>) = stores.into_iter().map(|store| self.put(store)).unzip();
        if shared.iter().all(Option::is_none) {
            shared.clear();
        }
        Self { memory: self.memory.next(spaces), shared, by_callers_clock: self.by_callers_clock }
    }

    /// The space of a store, and the shared store that has its place.
    fn put(&self, store: Result<usize, StoreHandle>) -> (Result<usize, MemorySettings>, Option<Arc<Shared>>) {
        match store {
            Ok(kept) => (Ok(kept), self.shared.get(kept).cloned().flatten()),
            Err(StoreHandle::Memory(settings)) => (Err(settings), None),
            Err(StoreHandle::Shared(shared)) => (Err(MemorySettings::unused()), Some(shared)),
        }
    }

    /// Lets the callers' clock decide instead of that of a shared store: for tests, which hold it.
    pub fn by_callers_clock(self) -> Self {
        Self { by_callers_clock: true, ..self }
    }

    /// Forgets what no longer counts, as of `now`. Called now and then; no lock is held for long.
    pub fn sweep(&self, now: Timestamp) {
        self.memory.sweep(now);
        self.shared.iter().flatten().for_each(|shared| shared.sweep(now, self.told(now)));
    }

    /// Whether a store can be asked, and written to. This process's memory always can.
    pub async fn answers(&self, store: usize) -> bool {
        match self.shared.get(store).and_then(Option::as_ref) {
            Some(shared) => shared.remote().probe().await.is_ok(),
            None => true,
        }
    }

    /// Returns what shared stores have charged for nobody yet: to be called before the process ends.
    pub async fn give_back(&self, now: Timestamp, patience: Duration) {
        let deadline = Instant::now() + patience;
        for shared in self.shared.iter().flatten() {
            shared.give_back(now, self.told(now), deadline).await;
        }
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

    /// What is known of each store.
    pub fn facts(&self) -> Vec<StoreFact> {
        let shared = |place: usize| self.shared.get(place).and_then(Option::as_ref);
        let fact = |(place, usage)| match shared(place) {
            Some(shared) => StoreFact::Shared { circuit_open: shared.remote().circuit_open() },
            None => StoreFact::Memory(usage),
        };
        self.memory.usage().into_iter().enumerate().map(fact).collect()
    }

    /// Counts each shared store with what `watch` makes for its place from now on.
    pub fn watch(&self, watch: impl Fn(usize) -> StoreMetrics) {
        for (place, shared) in self.shared.iter().enumerate() {
            if let Some(shared) = shared {
                shared.remote().watch(Arc::new(watch(place)));
            }
        }
    }

    fn shared(&self, store: u16) -> Option<&Shared> {
        self.shared.get(usize::from(store))?.as_deref()
    }

    /// When a plan has to be decided that begins now: the longest that one of its stores may take.
    fn deadline(&self, plan: &Plan) -> Instant {
        let stores = plan.checks.iter().map(|check| check.store).chain(plan.changes.iter().map(|change| change.store));
        let deadlines = stores.filter_map(|store| Some(self.shared(store)?.remote().deadline()));
        deadlines.max().unwrap_or_else(Instant::now)
    }

    /// The moment that a shared store is told to decide by, if not by its own clock.
    fn told(&self, now: Timestamp) -> Option<Timestamp> {
        self.by_callers_clock.then_some(now)
    }

    /// Executes a plan that is whole in one shared store.
    async fn apply_there(&self, shared: &Shared, plan: &Plan, now: Timestamp) -> Applied {
        match shared.ask(plan, now, self.told(now), shared.remote().deadline()).await {
            Ok(applied) => applied,
            Err(fault) => shared.fallback(plan, fault, now),
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
            Some(shared) => shared.forget(counter).await,
            None => Ok(self.memory.forget(store, &counter)),
        }
    }
}
