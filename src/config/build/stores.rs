//! The tables of stores.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::urls::read;
use crate::config::configuration::{NamedStore, SnapshotFile};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::{Choice, Field, SchemaTable};
use crate::config::schema::values::{Count, Hidden, Item};
use crate::store::{
    Address, Credentials, MemorySettings, Password, PostgresSettings, QueueSettings, RedisSettings, SharedSettings,
    StoreConfig, Topology,
};
use crate::tls::{ClientCertificate, TlsSettings};

/// The default timeout of a store: half of Envoy's default timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10);

/// The default time between two snapshots.
const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// Builds the stores. Without any there is one in this process's memory.
pub(in crate::config) fn stores(file: &schema::File, problems: &mut Problems) -> Vec<NamedStore> {
    let mut stores: Vec<NamedStore> = Vec::new();
    for item in file.stores.named() {
        if let Some(path) = item.value.as_ref().and_then(|store| store.snapshot.get())
            && stores
                .iter()
                .filter_map(|store| store.snapshot.as_ref())
                .any(|snapshot| is_same_path(&snapshot.path, Path::new(&path.value)))
        {
            problems.refuse(&path.location, "which another store writes its snapshot to");
        }
        let mut store = memory(&item.name);
        if let Some(written) = &item.value {
            store.timeout = written.timeout.copied().map_or(DEFAULT_TIMEOUT, |timeout| timeout.0);
            // A refused store keeps its name and index, so that its limiters are not refused as well.
            if let Some(config) = config(item, written, problems) {
                store.config = config;
            }
            if !matches!(store.config, StoreConfig::Memory(_)) {
                store.required = written.required.copied().is_some_and(|switch| switch.0);
                store.url = written.url.get().map(|url| url.value.clone());
                let options =
                    written.given().into_iter().filter(|(key, _)| !["engine", "timeout", "url"].contains(key));
                store.options = options.map(|(key, location)| (key, location.shown.clone())).collect();
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

/// A memory store with every default.
fn memory(name: &str) -> NamedStore {
    NamedStore {
        name: name.to_owned(),
        config: StoreConfig::Memory(MemorySettings::default()),
        timeout: DEFAULT_TIMEOUT,
        required: false,
        snapshot: None,
        url: None,
        options: Vec::new(),
    }
}

/// Whether two paths are equal once they are absolute.
fn is_same_path(a: &Path, b: &Path) -> bool {
    let absolute = |path| std::path::absolute(path).ok();
    a == b || absolute(a).is_some_and(|a| absolute(b) == Some(a))
}

/// The snapshot of a memory store.
fn snapshot(store: &schema::Store, problems: &mut Problems) -> Option<SnapshotFile> {
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
    Some(SnapshotFile { path: PathBuf::from(&path.value), interval })
}

/// The engines that have a key.
fn owners(key: &str) -> &'static [schema::StoreKind] {
    use schema::StoreKind::{Memory, Postgres, Redis};
    match key {
        "max_memory" | "max_keys" | "snapshot" | "snapshot_interval" => &[Memory],
        "mode"
        | "sentinel_master"
        | "sentinel_username"
        | "sentinel_password"
        | "hash_tag"
        | "db"
        | "username"
        | "password"
        | "key_prefix"
        | "tls_certificate"
        | "tls_key"
        | "tls_server_name"
        | "socket_timeout"
        | "socket_connect_timeout" => &[Redis],
        "table_name" | "schema_name" | "auto_create" | "unlogged" | "synchronous_commit" => &[Postgres],
        "url" | "instances" | "required" | "max_batch" | "max_calls" | "refusal_cache" | "quota_lease" | "tls_ca"
        | "pool_min_size" | "pool_max_size" | "timing_margin_ms" => &[Redis, Postgres],
        _ => &[Memory, Redis, Postgres],
    }
}

fn config(item: &Item<schema::Store>, store: &schema::Store, problems: &mut Problems) -> Option<StoreConfig> {
    let kind = store.engine.copied()?;
    let schemes: &[&str] = match kind {
        schema::StoreKind::Memory => &[],
        schema::StoreKind::Redis => &["redis://", "rediss://", "redis+unix://"],
        schema::StoreKind::Postgres => &["postgres://", "postgresql://"],
    };
    for (key, location) in store.given() {
        let owners = owners(key);
        if !owners.contains(&kind) {
            let words: Vec<&str> = owners.iter().map(|owner| owner.word()).collect();
            let (word, words) = (kind.word(), words.join(" and "));
            problems.refuse(location, format!("but a {word} store has no {key}; it belongs to {words}"));
        }
    }
    if kind == schema::StoreKind::Memory {
        let default = MemorySettings::default();
        let max_memory = store.max_memory.copied().map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX));
        let max_keys = store.max_keys.copied().map(usize::from);
        let max_memory = max_memory.unwrap_or(default.max_memory);
        return Some(StoreConfig::Memory(MemorySettings { max_memory, max_keys }));
    }
    let Some(url) = store.url.get() else {
        if store.url.is_absent() {
            let example = schemes[0];
            let path = format!("{}.url", item.location.path);
            problems.missing(
                item.location.position,
                &path,
                format!("is missing, expected one such as \"{example}host/0\""),
            );
        }
        return None;
    };
    if !schemes.iter().any(|scheme| url.value.0.starts_with(scheme)) {
        problems.refuse(&url.location, format!("expected it to begin with {}", schemes.join(" or ")));
        return None;
    }
    let timeout = store.timeout.copied().map_or(DEFAULT_TIMEOUT, |timeout| timeout.0);
    let shared = shared(&item.name, timeout, store);
    let (location, url) = (&url.location, &url.value);
    Some(match kind {
        schema::StoreKind::Postgres => StoreConfig::Postgres(postgres(store, url, timeout, location, problems), shared),
        schema::StoreKind::Redis | schema::StoreKind::Memory => {
            StoreConfig::Redis(redis(store, url, timeout, location, problems)?, shared)
        }
    })
}

/// The settings that all shared stores have.
fn shared(name: &str, timeout: Duration, store: &schema::Store) -> SharedSettings {
    let count = |field: &Field<Count>| field.copied().map(usize::from);
    let default = QueueSettings::default();
    let queue = QueueSettings {
        timeout,
        max_batch: count(&store.max_batch).unwrap_or(default.max_batch),
        max_calls: count(&store.max_calls).unwrap_or(default.max_calls),
    };
    let units = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    SharedSettings {
        queue,
        partitioned: store.mode.copied() == Some(schema::RedisMode::Cluster),
        tag: store.hash_tag.get().map(|tag| tag.value.clone()),
        instances: count(&store.instances).map_or(1, units),
        refusal_cache: store.refusal_cache.copied().map(|span| span.0),
        quota_lease: count(&store.quota_lease).map(units),
        ..SharedSettings::new(name)
    }
}

/// The settings of a PostgreSQL store that decisions wait `timeout` for.
fn postgres(
    store: &schema::Store,
    url: &Hidden,
    timeout: Duration,
    location: &Location,
    problems: &mut Problems,
) -> PostgresSettings {
    let default = PostgresSettings::default();
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let settings = PostgresSettings {
        url: url.0.clone(),
        schema_name: text(&store.schema_name).unwrap_or(default.schema_name),
        table_prefix: text(&store.table_name).unwrap_or(default.table_prefix),
        auto_create: store.auto_create.copied().map_or(default.auto_create, |switch| switch.0),
        pool_size: store.pool_max_size.copied().map_or(default.pool_size, usize::from),
        ca: text(&store.tls_ca).map(Into::into),
        unlogged: store.unlogged.copied().map_or(default.unlogged, |switch| switch.0),
        synchronous_commit: store.synchronous_commit.copied().map_or(default.synchronous_commit, |switch| switch.0),
        // A connection must not time out before the decision that waits for it. Waiting for a locked row ends sooner,
        // because other batches wait behind it.
        response_timeout: default.response_timeout.max(timeout),
        ..default
    };
    if let Err(error) = settings.check() {
        problems.refuse(location, format!("which cannot be used: {error}"));
    }
    settings
}

/// The settings of a Redis store that decisions wait `timeout` for.
fn redis(
    store: &schema::Store,
    url: &Hidden,
    timeout: Duration,
    location: &Location,
    problems: &mut Problems,
) -> Option<RedisSettings> {
    let read = match read(&url.0) {
        Ok(read) => read,
        Err(error) => {
            problems.refuse(location, error);
            return None;
        }
    };
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let secret = |field: &Field<Hidden>| field.get().map(|secret| Password::new(secret.value.0.clone()));
    let mode = store.mode.copied().unwrap_or(schema::RedisMode::Standalone);
    let of_sentinels = ["sentinel_master", "sentinel_username", "sentinel_password"];
    for (key, location) in store.given() {
        let (belongs, word) = match key {
            _ if of_sentinels.contains(&key) => (mode == schema::RedisMode::Sentinel, "sentinel"),
            "hash_tag" => (mode == schema::RedisMode::Cluster, "cluster"),
            _ => continue,
        };
        if !belongs {
            problems.refuse(location, format!("but mode is \"{}\"; it belongs to \"{word}\"", mode.word()));
        }
    }
    let sockets = read.addresses.iter().any(|address| matches!(address, Address::Unix(_)));
    let mut addresses = read.addresses;
    let topology = match mode {
        schema::RedisMode::Standalone => {
            if addresses.len() > 1 {
                problems.refuse(location, "names several servers, expected one, or mode = \"sentinel\" or \"cluster\"");
            }
            Topology::Standalone(addresses.swap_remove(0))
        }
        _ if sockets => {
            problems.refuse(location, format!("is a socket, but mode is \"{}\"", mode.word()));
            return None;
        }
        schema::RedisMode::Sentinel => Topology::Sentinel {
            sentinels: addresses,
            master: text(&store.sentinel_master).unwrap_or_else(|| "mymaster".to_owned()),
            credentials: Credentials {
                user: text(&store.sentinel_username),
                password: secret(&store.sentinel_password),
            },
        },
        schema::RedisMode::Cluster => Topology::Cluster(addresses),
    };
    let mut settings = RedisSettings::new(topology);
    settings.credentials = Credentials {
        user: text(&store.username).or(read.user),
        password: secret(&store.password).or(read.password.map(Password::new)),
    };
    settings.tls = tls(store, read.tls, problems);
    if let Some(prefix) = text(&store.key_prefix) {
        settings.key_prefix = prefix;
    }
    let db = store.db.copied().map(|db| u32::try_from(db.0).unwrap_or(u32::MAX));
    settings.db = db.or(read.db).unwrap_or(0);
    if mode == schema::RedisMode::Cluster && settings.db > 0 {
        problems.refuse(location, format!("is database {} of a cluster, which has only 0", settings.db));
    }
    if mode == schema::RedisMode::Cluster && settings.key_prefix.contains('{') {
        let location = store.key_prefix.location().unwrap_or(location);
        problems.refuse(location, "has a {, which in a cluster selects the hash slot of a key");
    }
    if let Some(timeout) = store.socket_connect_timeout.copied() {
        settings.connect_timeout = timeout.0;
    }
    // A connection must not time out before the decision that waits for it.
    settings.response_timeout = settings.response_timeout.max(timeout);
    Some(settings)
}

/// TLS to Redis, when the scheme of the URL is `rediss`.
fn tls(store: &schema::Store, secured: bool, problems: &mut Problems) -> Option<TlsSettings> {
    let path = |field: &Field<String>| field.get().map(|text| text.value.clone().into());
    for (key, location) in store.given() {
        if !secured && key.starts_with("tls_") {
            problems.refuse(location, "but the URL does not begin with rediss://, so TLS is not used");
        }
    }
    let identity = match (path(&store.tls_certificate), path(&store.tls_key)) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        (one, _) => {
            let (given, other) = match one.is_some() {
                true => (store.tls_certificate.location(), "tls_key"),
                false => (store.tls_key.location(), "tls_certificate"),
            };
            if let Some(location) = given {
                problems.refuse(location, format!("but there is no {other}: a certificate goes with its key"));
            }
            None
        }
    };
    let server_name = store.tls_server_name.get().map(|text| text.value.clone());
    secured.then(|| TlsSettings { ca: path(&store.tls_ca), identity, server_name })
}
