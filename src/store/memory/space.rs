//! The shards of one memory store, and the order in which they are locked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::pool::BytePool;
use super::shard::Shard;

/// The bytes of a shard: small enough that resizing or sweeping one takes a fraction of a millisecond, large enough that the
/// heads of all shards stay in the cache.
const SHARD_BYTES: usize = 1 << 20;

/// The minimum of a shard's bound on counters. With smaller shards a bound on the whole store would be inexact.
const MIN_KEYS_PER_SHARD: usize = 1024;

/// The maximum number of shards of a store.
const MAX_SHARDS: usize = 1 << 16;

/// The bounds of one memory store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// The maximum bytes of the counters. Default: 256 MiB.
    pub max_memory: usize,
    /// The maximum number of counters; `None` bounds only the bytes.
    pub max_keys: Option<usize>,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self { max_memory: 256 << 20, max_keys: None }
    }
}

impl MemorySettings {
    /// The settings of a space that stays empty.
    pub(in crate::store) fn unused() -> Self {
        Self { max_memory: 0, max_keys: None }
    }
}

/// The usage of a memory store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// The number of counters.
    pub keys: usize,
    /// Bytes of tables, logs and leases.
    pub bytes: usize,
    /// Counters evicted before they expired.
    pub evictions: u64,
    /// Concurrency slots held under leases, including expired leases that are not swept yet.
    pub leases: usize,
    /// Charges that leases can correct.
    pub holds: usize,
    /// Leases that were dropped because they expired without a release.
    pub expired_leases: u64,
    /// The bound on bytes.
    pub max_bytes: usize,
}

/// One memory store.
#[derive(Debug)]
pub(super) struct Space {
    /// Its position in the order in which this process created spaces. The index of a space can change with the
    /// configuration, but plans of the old and the new one must lock shards in the same order.
    pub(super) rank: u32,
    pub(super) settings: MemorySettings,
    /// Held while a snapshot is written.
    pub(super) snapshot_lock: Mutex<()>,
    pub(super) shards: Box<[Mutex<Shard>]>,
}

/// The identity of a shard. Locks are taken in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShardId {
    /// The rank of its space in the high half, its index there in the low half, so that one comparison is enough.
    pub(super) order: u64,
    /// The index of its space.
    pub(super) space: u16,
}

impl ShardId {
    /// Its index in its space.
    pub(super) fn index(self) -> usize {
        self.order as u32 as usize
    }
}

/// A locked shard.
pub(super) type ShardGuard<'a> = MutexGuard<'a, Shard>;

impl Space {
    pub(super) fn new(settings: MemorySettings) -> Self {
        static NEXT_RANK: AtomicU32 = AtomicU32::new(0);
        let by_bytes = (settings.max_memory / SHARD_BYTES).max(1);
        let by_keys = settings.max_keys.map_or(usize::MAX, |keys| (keys / MIN_KEYS_PER_SHARD).max(1));
        let shards = by_bytes.min(by_keys).min(MAX_SHARDS);
        let keys = settings.max_keys.map_or(u32::MAX as usize, |keys| (keys / shards).max(1));
        let pool = Arc::new(BytePool::new(settings.max_memory, shards));
        let seed = |number: usize| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
        let shard = |number: usize| Mutex::new(Shard::new(pool.clone(), keys, seed(number)));
        let rank = NEXT_RANK.fetch_add(1, Ordering::Relaxed);
        Self { rank, settings, snapshot_lock: Mutex::new(()), shards: (0..shards).map(shard).collect() }
    }
}
