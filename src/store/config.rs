//! The configuration of a store.

use super::memory::MemorySettings;
#[cfg(feature = "postgres")]
use super::postgres::PostgresSettings;
#[cfg(feature = "redis")]
use super::redis::RedisSettings;
#[cfg(any(feature = "postgres", feature = "redis"))]
use super::shared::SharedSettings;

/// The configuration of a store: its kind, with the settings of that kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    any(all(feature = "redis", not(feature = "postgres")), all(feature = "postgres", not(feature = "redis"))),
    expect(clippy::large_enum_variant, reason = "a configuration has a handful of them")
)]
pub enum StoreConfig {
    /// This process's memory.
    Memory(MemorySettings),
    /// Redis or Valkey.
    #[cfg(feature = "redis")]
    Redis(RedisSettings, SharedSettings),
    /// PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(PostgresSettings, SharedSettings),
}

impl StoreConfig {
    /// The kind's name in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreConfig::Memory(_) => "memory",
            #[cfg(feature = "redis")]
            StoreConfig::Redis(..) => "redis",
            #[cfg(feature = "postgres")]
            StoreConfig::Postgres(..) => "postgres",
        }
    }

    /// Whether a store opened for one configuration can serve the other. The bounds of a memory store change only at a
    /// restart.
    pub fn is_same_store(&self, other: &Self) -> bool {
        matches!((self, other), (StoreConfig::Memory(_), StoreConfig::Memory(_))) || self == other
    }
}
