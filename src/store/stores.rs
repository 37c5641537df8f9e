//! The stores of a deployment. They send each plan to the store that executes it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::memory::{MemorySettings, MemoryStores, MemoryUsage, SnapshotError, SnapshotOwner};
use super::route::PlanRoute;
use super::shared::{HearHint, SharedStore, StoreObserver};
use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};

/// The stores of a deployment. Every check names one by index.
#[derive(Debug)]
pub struct Stores {
    /// One space for each store. The space of a shared store stays empty.
    pub(super) memory: MemoryStores,
    /// The shared stores by index. Empty if there are none, which a decision checks first.
    shared: Vec<Option<Arc<SharedStore>>>,
}

/// The state of a store, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreStatus {
    /// A memory store.
    Memory(MemoryUsage),
    /// A shared store.
    Shared {
        /// Whether its circuit breaker is open.
        circuit_open: bool,
        /// The number of plans, counters and slots that wait to be handed over to it.
        owed: usize,
    },
}

/// A store to put into [`Stores`].
#[derive(Debug)]
pub enum StoreHandle {
    /// A new store in this process's memory.
    Memory(MemorySettings),
    /// A store that other instances use too.
    Shared(Arc<SharedStore>),
}

/// A store of the next configuration.
#[derive(Debug)]
pub enum NextStore {
    /// The store at this index, with all its counters.
    Keep(usize),
    /// A new store.
    New(StoreHandle),
}

impl Stores {
    /// Stores in this process's memory, in the order of their [`Check::store`](crate::plan::Check).
    pub fn memory(spaces: &[MemorySettings]) -> Self {
        Self { memory: MemoryStores::new(spaces), shared: Vec::new() }
    }

    /// Stores of any kind, in the order of their [`Check::store`](crate::plan::Check).
    pub fn of(handles: impl IntoIterator<Item = StoreHandle>) -> Self {
        Self::memory(&[]).next(handles.into_iter().map(NextStore::New))
    }

    /// The stores of the next configuration: kept ones with their counters, and new ones.
    #[must_use]
    pub fn next(&self, stores: impl IntoIterator<Item = NextStore>) -> Self {
        let (spaces, mut shared): (Vec<_>, Vec<_>) = stores.into_iter().map(|store| self.resolve(store)).unzip();
        if shared.iter().all(Option::is_none) {
            shared.clear();
        }
        Self { memory: self.memory.next(spaces), shared }
    }

    /// The space of a store: kept or new. With it the shared store, if it is one.
    fn resolve(&self, store: NextStore) -> (Result<usize, MemorySettings>, Option<Arc<SharedStore>>) {
        match store {
            NextStore::Keep(kept) => (Ok(kept), self.shared.get(kept).cloned().flatten()),
            NextStore::New(StoreHandle::Memory(settings)) => (Err(settings), None),
            NextStore::New(StoreHandle::Shared(shared)) => {
                let old = self.shared.iter().flatten().find(|old| old.name() == shared.name());
                old.into_iter().for_each(|old| shared.take_over(old));
                (Err(MemorySettings::unused()), Some(shared))
            }
        }
    }

    /// Executes a plan: its lease changes, then its undos, then its groups in order. Each group is admitted completely or
    /// not at all.
    ///
    /// `now` is this process's clock. A shared store decides by its own.
    pub async fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        let mut applied = Applied::default();
        self.apply_into(plan, now, &mut applied).await;
        applied
    }

    /// Executes a plan, and writes the answers into an empty [`Applied`]: a decision in memory would move them four times,
    /// which is 3 % of its instructions.
    pub(crate) async fn apply_into(&self, plan: &Plan, now: Timestamp, applied: &mut Applied) {
        if self.shared.is_empty() {
            return self.memory.apply_into(plan, now, applied);
        }
        // Boxed, because a decision in memory would pay for the size of these futures: 2 % of its instructions.
        match self.route(plan) {
            PlanRoute::Memory => self.memory.apply_into(plan, now, applied),
            PlanRoute::Store(store) => {
                let shared = self.shared(store).expect("the route names a shared store");
                *applied = Box::pin(shared.apply(plan, now, shared.queue().deadline())).await;
            }
            PlanRoute::Several => *applied = Box::pin(self.apply_saga(plan, now)).await,
        }
    }

    /// Removes a counter of the store at index `store` and returns whether it held anything.
    ///
    /// # Errors
    ///
    /// The store did not answer.
    pub async fn forget(&self, store: u16, counter: CounterName) -> Result<bool, Fault> {
        match self.shared(store) {
            Some(shared) => shared.forget(counter).await,
            None => Ok(self.memory.forget(store, &counter)),
        }
    }

    /// Removes counters that have expired at `now`. Called periodically. No lock is held for long.
    pub fn sweep(&self, now: Timestamp) {
        self.memory.sweep(now);
        self.shared.iter().flatten().for_each(|shared| shared.sweep(now));
    }

    /// Whether a store answers and accepts writes. A memory store always does.
    pub async fn answers(&self, store: usize) -> bool {
        match self.shared.get(store).and_then(Option::as_ref) {
            Some(shared) => shared.queue().probe().await.is_ok(),
            None => true,
        }
    }

    /// How long a shared store has not answered. `None` if it never has.
    pub fn silent_for(&self, store: usize) -> Option<Duration> {
        match self.shared.get(store).and_then(Option::as_ref) {
            Some(shared) => shared.queue().silent_for(),
            None => Some(Duration::ZERO),
        }
    }

    /// Returns unused leased quota to the shared stores, within `timeout`. Called before the process ends.
    pub async fn return_leased_quota(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        for shared in self.shared.iter().flatten() {
            shared.return_leased_quota(deadline).await;
        }
    }

    /// Hands over what this process owes to the shared stores, within `timeout`. Called before the process ends.
    pub async fn hand_over(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        join_all(self.shared.iter().flatten().map(|shared| shared.queue().hand_over(deadline))).await;
    }

    /// Writes the counters of the memory store at index `store` to a file.
    ///
    /// # Errors
    ///
    /// The file system fails; the file at `path` is unchanged.
    pub fn save(&self, store: usize, path: &Path, owner: &SnapshotOwner) -> Result<(), SnapshotError> {
        self.memory.save(store, path, owner)
    }

    /// Reads the counters of the memory store at index `store` from a file. Returns how many had not expired and found
    /// room, `None` if there is no file.
    ///
    /// # Errors
    ///
    /// The file is rejected. Nothing is loaded then, and the file is moved aside.
    pub fn load(
        &self,
        store: usize,
        path: &Path,
        owner: &SnapshotOwner,
        now: Timestamp,
    ) -> Result<Option<usize>, SnapshotError> {
        self.memory.load(store, path, owner, now)
    }

    /// The state of each store.
    pub fn facts(&self) -> Vec<StoreStatus> {
        let shared = |index: usize| self.shared.get(index).and_then(Option::as_ref);
        let fact = |(index, usage)| match shared(index) {
            Some(shared) => {
                StoreStatus::Shared { circuit_open: shared.queue().circuit_open(), owed: shared.queue().owed() }
            }
            None => StoreStatus::Memory(usage),
        };
        self.memory.usage().into_iter().enumerate().map(fact).collect()
    }

    /// Sets the observer of each shared store to the one that `observer` makes for its index.
    pub fn observe(&self, observer: impl Fn(usize) -> Box<dyn StoreObserver>) {
        for (index, shared) in self.shared.iter().enumerate() {
            if let Some(shared) = shared {
                shared.queue().observe(observer(index));
            }
        }
    }

    /// Sends the hints of other instances here: that something of a counter was given back.
    pub(crate) fn hear_hints(&self, hear: &HearHint) {
        self.shared.iter().flatten().for_each(|shared| shared.hear_hints(hear.clone()));
    }

    /// Listens to the hints of other instances from now on.
    pub(crate) fn listen_to_hints(&self) {
        self.shared.iter().flatten().for_each(|shared| shared.listen_to_hints());
    }

    /// Says to other instances that a caller waits for a counter.
    pub(crate) fn hint_wanted(&self, store: u16, counter: CounterName) {
        if let Some(shared) = self.shared(store) {
            shared.hint_wanted(counter);
        }
    }

    /// Says to other instances that something of a counter was given back.
    pub(crate) fn hint_freed(&self, store: u16, counter: CounterName) {
        if let Some(shared) = self.shared(store) {
            shared.hint_freed(counter);
        }
    }

    /// The shared stores, in the order of their indexes.
    pub(crate) fn shared_stores(&self) -> impl Iterator<Item = &Arc<SharedStore>> {
        self.shared.iter().flatten()
    }

    /// The shared store at an index, `None` if a memory store is there.
    pub(super) fn shared(&self, store: u16) -> Option<&SharedStore> {
        self.shared.get(usize::from(store))?.as_deref()
    }

    /// The deadline of a plan that begins now: the latest of its stores' deadlines.
    pub(super) fn deadline(&self, plan: &Plan) -> Instant {
        let changes = plan.changes.iter().map(|change| change.store);
        let changes = changes.chain(plan.holds.iter().map(|change| change.store));
        let stores = plan.checks.iter().map(|check| check.store).chain(changes);
        let deadlines = stores.filter_map(|store| Some(self.shared(store)?.queue().deadline()));
        deadlines.max().unwrap_or_else(Instant::now)
    }
}
