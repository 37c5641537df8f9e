//! The tables of doors and stores, and what holds for the whole process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::stores;
use crate::config::document::problem::{Place, Problems};
use crate::config::schema::decode::{At, Choice, Field, Table};
use crate::config::schema::values::{Item, Switch, shown_size};
use crate::config::{Engine, Remote, Snapshot, Store, schema};
use crate::rules::{RequestBounds, RuleBook};
use crate::secret::Secret;
use crate::settings::{AuthzSettings, Bounds, EntrySource, HeaderFamilies, Listen, Log, RequestPart, Settings, Token};
use crate::store::MemorySettings;

/// How long a decision waits for a store that says nothing else: half of what Envoy waits for us.
const TIMEOUT: Duration = Duration::from_millis(10);

/// How often a snapshot is written where the store says nothing else.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// The entries that ext_authz always makes.
pub(in crate::config) const FIXED_ENTRIES: [&str; 4] = ["remote_address", "method", "path", "host"];

/// The doors.
pub(in crate::config) fn server(file: &schema::File, problems: &mut Problems) -> Settings {
    let mut settings = Settings::default();
    if let Some(server) = file.server.get() {
        if let Some(grpc) = server.grpc.get() {
            settings.grpc = grpc.0.clone();
        }
        if let Some(http) = server.http.get() {
            settings.http = http.0.clone();
            let zero = matches!(&http.0, Listen::Tcp(address) if address.port() == 0);
            if settings.http == settings.grpc && !zero {
                problems.refuse(&http.place, "expected another address than server.grpc has");
            }
        }
        admin(&mut settings, server, problems);
        if let Some(delay) = server.drain_delay.copied() {
            settings.drain.delay = delay.0;
        }
        if let Some(timeout) = server.drain_timeout.copied() {
            settings.drain.timeout = timeout.0;
        }
        if let Some(headers) = server.headers.get() {
            families(&mut settings.rls_headers, &headers.rls);
            families(&mut settings.authz_headers, &headers.authz);
        }
    }
    if let Some(written) = file.server.get().and_then(|server| server.bounds.get()) {
        settings.bounds = bounds(written, problems);
    }
    if let Some(fastapi) = file.fastapi.get() {
        problems.warn(&fastapi.place, "which has no effect here: trust in addresses is set by authz.trusted_hops");
    }
    settings.log = log(file);
    if let Some(written) = file.authz.get() {
        settings.authz = authz(written, problems);
    }
    settings
}

/// The admin port, which must not tell everybody about identities.
fn admin(settings: &mut Settings, server: &schema::Server, problems: &mut Problems) {
    if let Some(token) = server.admin_token.get() {
        match token.0.chars().count() {
            0 => problems.refuse(&token.place, "expected at least one character"),
            _ if token.0.trim() != token.0
                || token.0.chars().any(|letter| !letter.is_ascii_graphic() && letter != ' ') =>
            {
                problems.refuse(&token.place, "expected ASCII without spaces around it: it is shown in a header");
            }
            1..16 => problems.warn(&token.place, "shorter than 16 characters: it can be guessed"),
            _ => {}
        }
        settings.admin.token = Some(Token(token.0.clone()));
    }
    let Some(written) = server.admin.get() else { return };
    settings.admin.listen = written.0.clone();
    settings.admin.chosen = true;
    let Some(listen) = &written.0 else { return };
    let zero = matches!(listen, Listen::Tcp(address) if address.port() == 0);
    if !zero && [&settings.grpc, &settings.http].contains(&listen) {
        problems.refuse(&written.place, "expected another address than server.grpc and server.http have");
    }
    let open = matches!(listen, Listen::Tcp(address) if !address.ip().is_loopback());
    if open && server.admin_token.is_absent() {
        problems.refuse(&written.place, "where others can reach it, expected server.admin_token beside it");
    }
}

/// What is logged.
fn log(file: &schema::File) -> Log {
    let mut log = Log::default();
    if let Some(written) = file.log.get() {
        log.json = written.format.copied() == Some(schema::LogFormat::Json);
        if let Some(lines) = written.refusals_per_second.copied() {
            log.refusals_per_second = u32::try_from(lines.0).unwrap_or(u32::MAX);
        }
    }
    log
}

fn families(families: &mut HeaderFamilies, written: &Field<schema::HeaderFamilies>) {
    let Some(written) = written.get() else { return };
    let set = |family: &mut bool, switch: &Field<Switch>| {
        if let Some(switch) = switch.copied() {
            *family = switch.0;
        }
    };
    set(&mut families.x_ratelimit, &written.x_ratelimit);
    set(&mut families.ietf, &written.ietf);
    set(&mut families.retry_after, &written.retry_after);
    set(&mut families.problem_json, &written.problem_json);
}

fn bounds(written: &schema::Bounds, problems: &mut Problems) -> Bounds {
    let default = Bounds::default();
    let bounds = Bounds {
        message_bytes: written.message_bytes.copied().map_or(default.message_bytes, usize::from),
        headers: written.headers.copied().map_or(default.headers, usize::from),
        header_bytes: written.header_bytes.copied().map_or(default.header_bytes, usize::from),
        body_bytes: written.body_bytes.copied().map_or(default.body_bytes, |bytes| bytes.0),
        unfinished_bytes_per_connection: written
            .unfinished_bytes_per_connection
            .copied()
            .map_or(default.unfinished_bytes_per_connection, usize::from),
        unfinished_bytes: written.unfinished_bytes.copied().map_or(default.unfinished_bytes, usize::from),
        requests: written.requests.copied().map_or(default.requests, |count| count.0),
        connections: written.connections.copied().map_or(default.connections, u32::from),
        streams: written.streams.copied().map_or(default.streams, u32::from),
        head_timeout: written.head_timeout.copied().map_or(default.head_timeout, |span| span.0),
        request_timeout: written.request_timeout.copied().map_or(default.request_timeout, |span| span.0),
        idle_timeout: written.idle_timeout.copied().map_or(default.idle_timeout, |span| span.0),
    };
    // What one of these lets in, the next must have room for.
    let [message, connection, all] = [
        (bounds.message_bytes, "message_bytes", &written.message_bytes.place()),
        (
            bounds.unfinished_bytes_per_connection,
            "unfinished_bytes_per_connection",
            &written.unfinished_bytes_per_connection.place(),
        ),
        (bounds.unfinished_bytes, "unfinished_bytes", &written.unfinished_bytes.place()),
    ];
    for ((less, inner, inner_place), (more, outer, outer_place)) in [(message, connection), (connection, all)] {
        if less <= more {
            continue;
        }
        if let Some(place) = outer_place {
            problems.refuse(place, format!("expected at least {inner}, which is {}", shown_size(less as u64)));
        } else if let Some(place) = inner_place {
            problems.refuse(place, format!("expected at most {outer}, which is {}", shown_size(more as u64)));
        }
    }
    bounds
}

fn authz(written: &schema::Authz, problems: &mut Problems) -> AuthzSettings {
    let mut authz = AuthzSettings::default();
    if let Some(domain) = written.domain.get() {
        authz.domain = domain.value.clone();
    }
    if let Some(hops) = written.trusted_hops.copied() {
        authz.trusted_hops = usize::try_from(hops.0).unwrap_or(usize::MAX);
    }
    if let Some(trust) = written.trust_external_address.copied() {
        authz.trust_external_address = trust.0;
    }
    for item in written.entries.named() {
        if FIXED_ENTRIES.contains(&&*item.name) {
            problems.error(item.place.spot, format!("{} is always there, expected another name", item.place.path));
        }
        if let Some(source) = item.value.as_ref().and_then(|source| entry_source(item, source, problems)) {
            authz.entries.push((item.name.clone(), source));
        }
    }
    authz
}

fn entry_source(
    item: &Item<schema::EntrySource>,
    written: &schema::EntrySource,
    problems: &mut Problems,
) -> Option<EntrySource> {
    const PLACES: &str = "header, cookie, query, context, metadata or principal";
    let places: Vec<_> = written.given().into_iter().filter(|(key, _)| *key != "default").collect();
    let absent = [&written.header, &written.cookie, &written.query, &written.context, &written.metadata];
    match places[..] {
        [_] => {}
        [] => {
            if absent.iter().all(|place| place.is_absent()) && written.principal.is_absent() {
                problems.missing(item.place.spot, &item.place.path, format!("names no place, expected {PLACES}"));
            }
            return None;
        }
        [(first, _), .., (_, last)] => {
            problems.refuse(last, format!("expected one place, but {first} is given too"));
            return None;
        }
    }
    let named = |field: &Field<String>, problems: &mut Problems| {
        let name = field.get()?;
        if name.is_empty() {
            problems.refuse(&name.place, "expected a name");
        }
        Some(name.value.clone())
    };
    let from = if let Some(header) = written.header.get() {
        let valid = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:".contains(c);
        if header.is_empty() || !header.chars().all(valid) {
            problems.refuse(&header.place, "expected the name of a header");
        }
        RequestPart::Header(header.to_lowercase())
    } else if let Some(cookie) = named(&written.cookie, problems) {
        RequestPart::Cookie(cookie)
    } else if let Some(query) = named(&written.query, problems) {
        RequestPart::Query(query)
    } else if let Some(context) = named(&written.context, problems) {
        RequestPart::Context(context)
    } else if let Some(metadata) = written.metadata.get() {
        metadata_source(metadata, problems)?
    } else {
        let principal = written.principal.get()?;
        if !principal.0 {
            problems.refuse(&principal.place, "expected true, or another place");
        }
        RequestPart::Principal
    };
    Some(EntrySource { from, default: written.default.get().map(|default| default.value.clone()) })
}

fn metadata_source(metadata: &At<String>, problems: &mut Problems) -> Option<RequestPart> {
    let split = metadata.split_once(':').filter(|(namespace, path)| !namespace.is_empty() && !path.is_empty());
    let Some((namespace, path)) = split else {
        problems.refuse(&metadata.place, "expected \"namespace:path.inside.it\"");
        return None;
    };
    let path: Vec<String> = path.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        problems.refuse(&metadata.place, "expected a path without empty parts after the colon");
    }
    Some(RequestPart::Metadata { namespace: namespace.to_owned(), path })
}

/// What holds for the whole process.
pub(in crate::config) fn book(file: &schema::File, problems: &mut Problems) -> RuleBook {
    let mut book = RuleBook::default();
    let Some(server) = file.server.get() else { return book };
    if let Some(secret) = server.secret.get() {
        match secret.0.chars().count() {
            0 => problems
                .refuse(&secret.place, "expected at least one character; leave it out for the development default"),
            1..16 => problems.warn(&secret.place, "shorter than 16 characters: it can be guessed"),
            _ => {}
        }
        book.secret = Secret::new(&secret.0);
    }
    book.shadow = server.mode.copied() == Some(schema::Mode::Shadow);
    if let Some(entry) = server.release_entry.get() {
        if entry.is_empty() {
            problems.refuse(&entry.place, "expected the name of an entry");
        }
        book.release_entry = entry.value.clone();
    }
    if let Some(bounds) = server.bounds.get() {
        let default = RequestBounds::default();
        book.bounds = RequestBounds {
            descriptors: bounds.descriptors.copied().map_or(default.descriptors, usize::from),
            entries: bounds.entries.copied().map_or(default.entries, usize::from),
            checks: bounds.checks.copied().map_or(default.checks, usize::from),
        };
    }
    book
}

/// The stores. Where none can be read there is one in this process's memory.
pub(in crate::config) fn stores(file: &schema::File, problems: &mut Problems) -> Vec<Store> {
    let mut stores = Vec::new();
    for item in file.stores.named() {
        if let Some(path) = item.value.as_ref().and_then(|store| store.snapshot.get())
            && stores
                .iter()
                .filter_map(|store: &Store| store.snapshot.as_ref())
                .any(|kept| same_place(&kept.path, Path::new(&path.value)))
        {
            problems.refuse(&path.place, "which another store writes its snapshot to");
        }
        // A store that was refused keeps its name and place, so that its limiters are not refused as well.
        let engine = item.value.as_ref().and_then(|store| engine(item, store, problems));
        let timeout = item.value.as_ref().and_then(|store| store.timeout.copied());
        stores.push(Store {
            name: item.name.clone(),
            engine: engine.unwrap_or(Engine::Memory(MemorySettings::default())),
            timeout: timeout.map_or(TIMEOUT, |timeout| timeout.0),
            snapshot: item.value.as_ref().and_then(|store| snapshot(store, problems)),
        });
    }
    if stores.is_empty() {
        let engine = Engine::Memory(MemorySettings::default());
        stores.push(Store { name: "memory".to_owned(), engine, timeout: TIMEOUT, snapshot: None });
    }
    stores
}

/// Whether two paths are one, as far as can be told without looking.
fn same_place(a: &Path, b: &Path) -> bool {
    let whole = |path| std::path::absolute(path).ok();
    a == b || whole(a).is_some_and(|a| whole(b) == Some(a))
}

/// The file that a memory store survives a restart in.
fn snapshot(store: &schema::Store, problems: &mut Problems) -> Option<Snapshot> {
    let interval = store.snapshot_interval.copied().map_or(SNAPSHOT_INTERVAL, |interval| interval.0);
    let Some(path) = store.snapshot.get() else {
        if let Some(place) = store.snapshot_interval.place() {
            problems.refuse(place, "but the store has no snapshot to write");
        }
        return None;
    };
    if path.value.is_empty() {
        problems.refuse(&path.place, "expected the name of a file");
    }
    Some(Snapshot { path: PathBuf::from(&path.value), interval })
}

/// The engines that have a key.
fn owners(key: &str) -> &'static [schema::Engine] {
    use schema::Engine::{Memory, Postgres, Redis};
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

fn engine(item: &Item<schema::Store>, store: &schema::Store, problems: &mut Problems) -> Option<Engine> {
    let engine = store.engine.copied()?;
    let schemes: &[&str] = match engine {
        schema::Engine::Memory => &[],
        schema::Engine::Redis => &["redis://", "rediss://", "redis+unix://"],
        schema::Engine::Postgres => &["postgres://", "postgresql://"],
    };
    for (key, place) in store.given() {
        let owners = owners(key);
        if !owners.contains(&engine) {
            let words: Vec<&str> = owners.iter().map(|owner| owner.word()).collect();
            let (word, words) = (engine.word(), words.join(" and "));
            problems.refuse(place, format!("but a {word} store has no {key}; it belongs to {words}"));
        }
    }
    if engine == schema::Engine::Memory {
        let default = MemorySettings::default();
        let max_memory = store.max_memory.copied().map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX));
        let max_keys = store.max_keys.copied().map(usize::from);
        return Some(Engine::Memory(MemorySettings { max_memory: max_memory.unwrap_or(default.max_memory), max_keys }));
    }
    let Some(url) = store.url.get() else {
        if store.url.is_absent() {
            let example = schemes[0];
            let path = format!("{}.url", item.place.path);
            problems.missing(item.place.spot, &path, format!("is missing, expected one such as \"{example}host/0\""));
        }
        return None;
    };
    if !schemes.iter().any(|scheme| url.value.0.starts_with(scheme)) {
        problems.refuse(&url.place, format!("expected it to begin with {}", schemes.join(" or ")));
        return None;
    }
    let timeout = store.timeout.copied().map_or(TIMEOUT, |timeout| timeout.0);
    let shared = stores::shared(&item.name, timeout, store);
    let required = store.required.copied().is_some_and(|switch| switch.0);
    let options = store.given().into_iter().filter(|(key, _)| !["engine", "timeout", "url"].contains(key));
    let options = options.map(|(key, place): (_, &Place)| (key, place.shown.clone())).collect();
    let (place, url) = (&url.place, url.value.clone());
    Some(match engine {
        schema::Engine::Postgres => {
            let settings = stores::postgres(store, &url, timeout, place, problems);
            Engine::Postgres(Remote { url, options, settings, shared, required })
        }
        schema::Engine::Redis | schema::Engine::Memory => {
            let settings = stores::redis(store, &url, timeout, place, problems)?;
            Engine::Redis(Remote { url, options, settings, shared, required })
        }
    })
}
