//! Where counters are kept. A store executes a plan atomically and returns what it came to.
//!
//! A store knows nothing of rules: it is given checks, and the meaning of a check is [`crate::limiter::advance`].

mod memory;
mod slots;
mod snapshot;

use std::future::Future;
use std::path::Path;

pub use self::memory::{Memory, MemorySettings, Usage};
pub use self::snapshot::{Owner, SnapshotError};
use crate::clock::Timestamp;
use crate::limiter::{Applied, Plan};

/// What executes plans.
pub trait Store: Send + Sync {
    /// Executes a plan: its lease changes, then its groups in order, each admitted whole or not at all.
    ///
    /// `now` is this process's clock. A store that is shared decides by its own.
    fn apply(&self, plan: &Plan, now: Timestamp) -> impl Future<Output = Applied> + Send;
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
}
