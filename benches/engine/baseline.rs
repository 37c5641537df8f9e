//! The work that no engine can avoid: naming and hashing two counters, and updating both in a plain table.

use hashbrown::HashTable;
use parking_lot::Mutex;
use tollgate::plan::CounterName;
use tollgate::secret::{NamePrefix, Secret};

/// 64 shards of 32-byte entries.
pub struct Bare {
    shards: Vec<Mutex<HashTable<Entry>>>,
    account: NamePrefix,
    client: NamePrefix,
}

#[derive(Clone, Copy)]
struct Entry {
    name: CounterName,
    level: u64,
    at: u64,
}

impl Bare {
    pub fn new() -> Self {
        let secret = Secret::development();
        let prefix = |limiter: &str, key: &str| {
            let mut prefix = secret.counters("edge", limiter, "token_bucket");
            prefix.text(key);
            prefix
        };
        Self {
            shards: (0..64).map(|_| Mutex::new(HashTable::new())).collect(),
            account: prefix("per_account", "account"),
            client: prefix("per_client", "client"),
        }
    }

    /// The names of the two counters of a login.
    pub fn names(&self, account: &str, client: &str) -> [CounterName; 2] {
        [(self.account, account), (self.client, client)].map(|(mut name, value)| {
            name.text(value);
            name.name()
        })
    }

    /// Drains a counter, adds one to it, and returns the new value.
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
