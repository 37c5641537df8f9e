//! The bytes of a store that no shard has taken yet. A store is bounded as a whole, so that one large log or set of
//! leases finds room wherever its shard is.

use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub(in crate::store) struct Pool {
    whole: usize,
    /// What each shard has when all have the same.
    share: usize,
    free: AtomicUsize,
}

impl Pool {
    /// A pool with nothing taken, for so many shards.
    pub(in crate::store) fn new(bytes: usize, shards: usize) -> Self {
        Self { whole: bytes, share: bytes / shards, free: AtomicUsize::new(bytes) }
    }

    pub(super) fn whole(&self) -> usize {
        self.whole
    }

    pub(super) fn share(&self) -> usize {
        self.share
    }

    pub(super) fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    /// Takes so many bytes, or as many as there are.
    pub(super) fn take(&self, wanted: usize) -> usize {
        let taken = |free: usize| Some(free - free.min(wanted));
        let free = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).unwrap_or(0);
        free.min(wanted)
    }

    pub(super) fn give(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}
