//! What cannot be left out: naming and hashing two counters, and touching both in a plain table.

use hashbrown::HashTable;
use parking_lot::Mutex;
use tollgate::limiter::CounterName;
use tollgate::rules::Secret;

/// 64 shards of 32-byte entries.
pub struct Bare {
    shards: Vec<Mutex<HashTable<Entry>>>,
    secret: Secret,
}

#[derive(Clone, Copy)]
struct Entry {
    name: CounterName,
    level: u64,
    at: u64,
}

impl Bare {
    pub fn new() -> Self {
        Self { shards: (0..64).map(|_| Mutex::new(HashTable::new())).collect(), secret: Secret::development() }
    }

    /// The names of the two counters of a login.
    pub fn names(&self, account: &str, client: &str) -> [CounterName; 2] {
        [("per_account", "account", account), ("per_client", "client", client)].map(|(limiter, key, value)| {
            let mut name = self.secret.counters("edge", limiter, "token_bucket");
            name.entry(key, value);
            name.name()
        })
    }

    /// Drains a counter and adds one to it. Says what it came to.
    pub fn update(&self, name: CounterName, now: u64) -> u64 {
        let hash = |name: &CounterName| name.0[0];
        let mut shard = self.shards[(name.0[1] % 64) as usize].lock();
        match shard.find_mut(hash(&name), |entry| entry.name == name) {
            Some(entry) => {
                entry.level = entry.level.saturating_sub(now.saturating_sub(entry.at)) + 1;
                entry.at = now;
                entry.level
            }
            None => {
                shard.insert_unique(hash(&name), Entry { name, level: 1, at: now }, |entry| hash(&entry.name));
                1
            }
        }
    }
}
