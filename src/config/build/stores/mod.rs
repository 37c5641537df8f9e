//! Builds the stores, and checks that their keys and URLs suit their engines.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_url;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod shared;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::configuration::{NamedStore, SnapshotSettings};
use crate::config::document::disk::Disk;
use crate::config::document::problem::Problems;
use crate::config::schema;
use crate::config::schema::decode::{Choice, SchemaTable};
use crate::config::schema::values::Item;
use crate::store::{MemorySettings, StoreConfig};

/// The default timeout of a store: half of Envoy's default timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10);

/// The default timeout of a PostgreSQL store, which commits to disk.
const DEFAULT_POSTGRES_TIMEOUT: Duration = Duration::from_millis(50);

/// The default time between two snapshots.
const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// Builds the stores. If the configuration has none, there is one memory store.
pub(in crate::config) fn stores(file: &schema::File, disk: &Disk, problems: &mut Problems) -> Vec<NamedStore> {
    let mut stores: Vec<NamedStore> = Vec::new();
    for item in file.stores.named() {
        if let Some(path) = item.value.as_ref().and_then(|store| store.snapshot.get())
            && stores
                .iter()
                .filter_map(|store| store.snapshot.as_ref())
                .any(|snapshot| is_same_path(&snapshot.path, Path::new(&path.value)))
        {
            problems.refuse(&path.location, "which is the snapshot of another store; expected another file");
        }
        let mut store = memory(&item.name);
        if let Some(written) = &item.value {
            store.timeout = timeout(written);
            // An invalid store keeps its name and index, so that its limiters do not cause further errors.
            if let Some(config) = config(item, written, disk, problems) {
                store.config = config;
            }
            if !matches!(store.config, StoreConfig::Memory(_)) {
                store.required = written.required.copied().is_some_and(|switch| switch.0);
                store.unready_after = written.unready_after.copied().map_or(Some(DEFAULT_UNREADY_AFTER), |span| span.0);
                store.url = written.url.get().map(|url| url.value.clone());
                let given = written.given().into_iter().map(|(key, location)| (key.name, location.shown.clone()));
                store.options = given.filter(|(key, _)| !["engine", "timeout", "url"].contains(key)).collect();
            }
            store.snapshot = snapshot(written, problems);
        }
        stores.push(store);
    }
    if stores.is_empty() {
        stores.push(memory("memory"));
    }
    stores
}

/// How long a required store may be without an answer.
const DEFAULT_UNREADY_AFTER: Duration = Duration::from_secs(5);

/// A memory store with every default.
fn memory(name: &str) -> NamedStore {
    NamedStore {
        name: name.to_owned(),
        config: StoreConfig::Memory(MemorySettings::default()),
        timeout: DEFAULT_TIMEOUT,
        required: false,
        unready_after: None,
        snapshot: None,
        url: None,
        options: Vec::new(),
    }
}

/// How long a decision waits for the store.
fn timeout(store: &schema::Store) -> Duration {
    let default = match store.engine.copied() {
        Some(schema::StoreKind::Postgres) => DEFAULT_POSTGRES_TIMEOUT,
        Some(schema::StoreKind::Memory | schema::StoreKind::Redis) | None => DEFAULT_TIMEOUT,
    };
    store.timeout.copied().map_or(default, |timeout| timeout.0)
}

/// Whether the absolute paths are equal.
fn is_same_path(a: &Path, b: &Path) -> bool {
    let absolute = |path| std::path::absolute(path).ok();
    a == b || absolute(a).is_some_and(|a| absolute(b) == Some(a))
}

/// The snapshot of a memory store.
fn snapshot(store: &schema::Store, problems: &mut Problems) -> Option<SnapshotSettings> {
    let interval = store.snapshot_interval.copied().map_or(DEFAULT_SNAPSHOT_INTERVAL, |interval| interval.0);
    let Some(path) = store.snapshot.get() else {
        if let Some(location) = store.snapshot_interval.location() {
            problems.refuse(location, "but the store has no snapshot to write");
        }
        return None;
    };
    if path.value.is_empty() {
        problems.refuse(&path.location, "expected the name of a file");
    }
    Some(SnapshotSettings { path: PathBuf::from(&path.value), interval })
}

/// The store's settings. None if they are invalid, which is reported.
fn config(
    #[cfg_attr(
        not(any(feature = "postgres", feature = "redis")),
        expect(unused_variables, reason = "only shared stores need it")
    )]
    item: &Item<schema::Store>,
    store: &schema::Store,
    #[cfg_attr(
        not(any(feature = "postgres", feature = "redis")),
        expect(unused_variables, reason = "only shared stores have files")
    )]
    disk: &Disk,
    problems: &mut Problems,
) -> Option<StoreConfig> {
    let kind = store.engine.get()?;
    let word = kind.word();
    for (key, location) in store.foreign(word) {
        let (key, owners) = (key.name, key.only.join(" and "));
        problems.refuse(location, format!("but a {word} store has no {key}; it belongs to {owners}"));
    }
    match kind.value {
        schema::StoreKind::Memory => Some(StoreConfig::Memory(memory_settings(store))),
        #[cfg(feature = "redis")]
        schema::StoreKind::Redis => {
            let url = shared::Url::of(item, store, &["redis://", "rediss://", "redis+unix://"], problems)?;
            let settings = redis::settings(store, &url, timeout(store), disk, problems)?;
            Some(StoreConfig::Redis(settings, shared::settings(&item.name, timeout(store), store)))
        }
        #[cfg(feature = "postgres")]
        schema::StoreKind::Postgres => {
            let url = shared::Url::of(item, store, &["postgres://", "postgresql://"], problems)?;
            let settings = postgres::settings(store, &url, timeout(store), disk, problems);
            Some(StoreConfig::Postgres(settings, shared::settings(&item.name, timeout(store), store)))
        }
        #[cfg(not(all(feature = "redis", feature = "postgres")))]
        _ => {
            let reason = format!("which this build does not have; build tollgate with the cargo feature \"{word}\"");
            problems.refuse(&kind.location, reason);
            None
        }
    }
}

fn memory_settings(store: &schema::Store) -> MemorySettings {
    let default = MemorySettings::default();
    MemorySettings {
        max_memory: store.max_memory.copied().map_or(default.max_memory, usize::from),
        max_keys: store.max_keys.copied().map(usize::from),
    }
}
