//! The bytes of a memory store that no shard has taken yet.
//!
//! The bound holds for the whole store, so a large log or lease set finds room in any shard.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The free bytes of a store.
#[derive(Debug)]
pub(super) struct BytePool {
    total: usize,
    even_share: usize,
    free: AtomicUsize,
}

impl BytePool {
    /// A full pool of `bytes` for `shards` shards.
    pub(super) fn new(bytes: usize, shards: usize) -> Self {
        Self { total: bytes, even_share: bytes / shards, free: AtomicUsize::new(bytes) }
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The bytes of a shard if all shards had the same.
    pub(super) fn even_share(&self) -> usize {
        self.even_share
    }

    pub(super) fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    /// Takes up to `wanted` bytes and returns how many it took.
    pub(super) fn take(&self, wanted: usize) -> usize {
        let rest = |free: usize| Some(free - free.min(wanted));
        let free = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).unwrap_or(0);
        free.min(wanted)
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}
