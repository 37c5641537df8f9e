//! Where counters are kept. A store executes a plan atomically and returns what it came to.
//!
//! A store knows nothing of rules: it is given checks, and the meaning of a check is [`crate::limiter::advance`].

mod backend;
mod memory;
mod slots;
mod snapshot;

use std::future::Future;
use std::path::Path;

pub use self::backend::Backend;
pub use self::memory::{Memory, MemorySettings, Usage};
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
    memory: Memory,
}

impl Stores {
    /// Stores in this process's memory, in the order that checks count them.
    pub fn memory(spaces: &[MemorySettings]) -> Self {
        Self { memory: Memory::new(spaces) }
    }

    /// Stores for the next configuration: each is one of these with all it holds, by its place here, or a new one.
    pub fn next(&self, stores: impl IntoIterator<Item = Result<usize, MemorySettings>>) -> Self {
        Self { memory: self.memory.next(stores) }
    }

    /// The bounds of the store at this place.
    pub fn settings(&self, store: usize) -> MemorySettings {
        self.memory.settings(store)
    }

    /// Forgets what no longer counts, as of `now`. Called now and then; no lock is held for long.
    pub fn sweep(&self, now: Timestamp) {
        self.memory.sweep(now);
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
}

impl Store for Stores {
    async fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        self.memory.apply(plan, now)
    }

    async fn forget(&self, store: u16, counter: CounterName) -> Result<bool, Fault> {
        Ok(self.memory.forget(store, &counter))
    }
}
