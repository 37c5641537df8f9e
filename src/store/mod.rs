//! Stores: they hold the counters, execute plans atomically and return the outcomes.
//!
//! A store knows no rules. It executes checks, whose meaning is [`crate::plan::advance`].

mod compensation;
mod config;
mod memory;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod password;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod remedy;
mod route;
mod shared;
mod stores;
mod warnings;

pub use self::config::StoreConfig;
pub use self::memory::{MemorySettings, MemoryStores, MemoryUsage, SnapshotError, SnapshotOwner};
#[cfg(any(feature = "postgres", feature = "redis"))]
pub use self::password::Password;
#[cfg(feature = "postgres")]
pub use self::postgres::{MigrateError, Migrated, Postgres, PostgresSettings, PostgresSettingsError, migrate};
#[cfg(feature = "redis")]
pub use self::redis::{Address, Credentials, Redis, RedisSettings, Topology};
#[cfg(feature = "server")]
pub(crate) use self::shared::HearHint;
pub use self::shared::{
    Backend, DropReason, HearText, Queue, QueueSettings, SharedSettings, SharedStore, StoreObserver, Wrapper,
};
pub use self::stores::{NextStore, StoreHandle, StoreStatus, Stores};
