//! Stores outside this process: what their keys come to.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::config::document::problem::{Place, Problems};
use crate::config::schema;
use crate::config::schema::decode::{Choice, Field, Table};
use crate::config::schema::values::Hidden;
use crate::store::{
    Address, Credentials, Password, PostgresSettings, QueueSettings, RedisSettings, SharedSettings, Topology,
};
use crate::tls::{ClientCertificate, TlsSettings};

/// The port of Redis where none is said.
const REDIS_PORT: u16 = 6379;

/// What a Redis URL says.
#[derive(Debug, Default)]
struct RedisUrl {
    tls: bool,
    user: Option<String>,
    password: Option<String>,
    addresses: Vec<Address>,
    db: Option<u32>,
}

/// How a store is asked, of the keys that all of them have.
pub(in crate::config) fn shared(name: &str, timeout: Duration, store: &schema::Store) -> SharedSettings {
    let count = |field: &Field<crate::config::schema::values::Count>| field.copied().map(usize::from);
    let default = QueueSettings::default();
    let remote = QueueSettings {
        deadline: timeout,
        batch: count(&store.max_batch).unwrap_or(default.batch),
        calls: count(&store.max_calls).unwrap_or(default.calls),
    };
    let units = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    SharedSettings {
        remote,
        partitioned: store.mode.copied() == Some(schema::RedisMode::Cluster),
        tag: store.hash_tag.get().map(|tag| tag.value.clone()),
        instances: count(&store.instances).map_or(1, units),
        refusal_cache: store.refusal_cache.copied().map(|span| span.0),
        quota_lease: count(&store.quota_lease).map(units),
        ..SharedSettings::new(name)
    }
}

/// What the keys of a PostgreSQL store come to, whose answers decisions wait for so long.
pub(in crate::config) fn postgres(
    store: &schema::Store,
    url: &Hidden,
    timeout: Duration,
    place: &Place,
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
        // A connection is not given up before the decision that waits for its answer. A row that somebody holds is given
        // up sooner, since others wait behind it.
        response_timeout: default.response_timeout.max(timeout),
        ..default
    };
    if let Err(error) = settings.check() {
        problems.refuse(place, format!("which cannot be used: {error}"));
    }
    settings
}

/// What the keys of a Redis store come to, whose answers decisions wait for so long.
pub(in crate::config) fn redis(
    store: &schema::Store,
    url: &Hidden,
    timeout: Duration,
    place: &Place,
    problems: &mut Problems,
) -> Option<RedisSettings> {
    let read = match read(&url.0) {
        Ok(read) => read,
        Err(error) => {
            problems.refuse(place, error);
            return None;
        }
    };
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let secret = |field: &Field<Hidden>| field.get().map(|secret| Password::new(secret.value.0.clone()));
    let mode = store.mode.copied().unwrap_or(schema::RedisMode::Standalone);
    let of_sentinels = ["sentinel_master", "sentinel_username", "sentinel_password"];
    for (key, place) in store.given() {
        let (belongs, word) = match key {
            _ if of_sentinels.contains(&key) => (mode == schema::RedisMode::Sentinel, "sentinel"),
            "hash_tag" => (mode == schema::RedisMode::Cluster, "cluster"),
            _ => continue,
        };
        if !belongs {
            problems.refuse(place, format!("but mode is \"{}\"; it belongs to \"{word}\"", mode.word()));
        }
    }
    let sockets = read.addresses.iter().any(|address| matches!(address, Address::Unix(_)));
    let mut addresses = read.addresses;
    let topology = match mode {
        schema::RedisMode::Standalone => {
            if addresses.len() > 1 {
                problems.refuse(place, "names several servers, expected one, or mode = \"sentinel\" or \"cluster\"");
            }
            Topology::Standalone(addresses.swap_remove(0))
        }
        _ if sockets => {
            problems.refuse(place, format!("is a socket, but mode is \"{}\"", mode.word()));
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
        problems.refuse(place, format!("is database {} of a cluster, which has only 0", settings.db));
    }
    if mode == schema::RedisMode::Cluster && settings.key_prefix.contains('{') {
        let place = store.key_prefix.place().unwrap_or(place);
        problems.refuse(place, "has a {, which says in a cluster where a key lives");
    }
    if let Some(timeout) = store.socket_connect_timeout.copied() {
        settings.connect_timeout = timeout.0;
    }
    // A connection is not given up before the decision that waits for its answer.
    settings.response_timeout = settings.response_timeout.max(timeout);
    Some(settings)
}

/// How connections to Redis are secured: where the URL says `rediss`.
fn tls(store: &schema::Store, secured: bool, problems: &mut Problems) -> Option<TlsSettings> {
    let path = |field: &Field<String>| field.get().map(|text| text.value.clone().into());
    for (key, place) in store.given() {
        if !secured && key.starts_with("tls_") {
            problems.refuse(place, "but the URL does not begin with rediss://, so nothing is secured");
        }
    }
    let identity = match (path(&store.tls_certificate), path(&store.tls_key)) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        (one, _) => {
            let (given, other) = match one.is_some() {
                true => (store.tls_certificate.place(), "tls_key"),
                false => (store.tls_key.place(), "tls_certificate"),
            };
            if let Some(place) = given {
                problems.refuse(place, format!("but there is no {other}: a certificate goes with its key"));
            }
            None
        }
    };
    let server_name = store.tls_server_name.get().map(|text| text.value.clone());
    secured.then(|| TlsSettings { ca: path(&store.tls_ca), identity, server_name })
}

/// Reads `redis://user:password@host:port,host:port/db`, the same with `rediss://`, or `redis+unix:///path?db=0`.
/// Errors continue the name of the key, and tell nothing of the URL, which may hold a password.
fn read(url: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = url.split_once("://").ok_or("is no URL")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut read = RedisUrl { tls: scheme == "rediss", ..RedisUrl::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("db", db)) => read.db = Some(number(db)?),
            Some(("user" | "username", user)) => read.user = Some(decoded(user)?),
            Some(("pass" | "password", password)) => read.password = Some(decoded(password)?),
            // What other clients say there means nothing to the counters.
            _ => {}
        }
    }
    if scheme == "redis+unix" {
        if !rest.starts_with('/') {
            return Err("expected three slashes before the path of a socket: redis+unix:///run/redis.sock".to_owned());
        }
        read.addresses.push(Address::Unix(decoded(rest)?.into()));
        return Ok(read);
    }
    // A password may hold anything but an @, so the last one is where the hosts begin.
    let (authority, path) = match rest.rfind('@') {
        Some(at) => match rest[at..].find('/') {
            Some(slash) => rest.split_at(at + slash),
            None => (rest, ""),
        },
        None => rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash)),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((who, hosts)) => {
            let (user, password) = who.split_once(':').map_or((who, None), |(user, password)| (user, Some(password)));
            read.user = Some(decoded(user)?).filter(|user| !user.is_empty()).or(read.user);
            read.password = password.map(decoded).transpose()?.or(read.password);
            hosts
        }
        None => authority,
    };
    let db = path.trim_matches('/');
    if !db.is_empty() {
        read.db = Some(number(db)?);
    }
    read.addresses = hosts.split(',').map(address).collect::<Result<_, _>>()?;
    Ok(read)
}

fn address(host: &str) -> Result<Address, String> {
    // An IPv6 address is in brackets, and nothing but a port comes after them.
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
    let (false, Some(port)) = (name.is_empty() || name.contains(['[', ']']), port) else {
        return Err("names no host, expected one such as \"redis://host:6379/0\"".to_owned());
    };
    let port = match port {
        "" => REDIS_PORT,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err("has a port that is none, expected 1 to 65535".to_owned()),
            Ok(port) => port,
        },
    };
    Ok(Address::Tcp(name.to_owned(), port))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "has a database that is no number, expected one such as \"redis://host:6379/0\"".to_owned())
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|_| "is not UTF-8 once its percent escapes are decoded".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn a_redis_url_says_who_where_and_which() {
        let read = |url| read(url).expect("it can be read");
        let whole = read("rediss://me:s%40cret@h.example:1234/3");
        assert!(whole.tls);
        assert_eq!((whole.user.as_deref(), whole.password.as_deref(), whole.db), (Some("me"), Some("s@cret"), Some(3)));
        assert_eq!(whole.addresses, [tcp("h.example", 1234)]);
        let slash = read("redis://:a/b@c@h");
        assert_eq!((slash.user, slash.password.as_deref()), (None, Some("a/b@c")));
        assert_eq!(read("redis://[::1]:7,b,c:9/").addresses, [tcp("::1", 7), tcp("b", 6379), tcp("c", 9)]);
        let unix = read("redis+unix:///run/a%20b.sock?db=2&pass=x");
        assert_eq!((unix.db, unix.password.as_deref()), (Some(2), Some("x")));
        assert_eq!(unix.addresses, [Address::Unix("/run/a b.sock".into())]);
    }

    #[test]
    fn a_redis_url_that_cannot_be_read_shows_nothing_of_itself() {
        for url in [
            "redis://",
            "redis://hush:hush@",
            "redis://[hush",
            "redis://[::1]hush",
            "redis://hush:0",
            "redis://h:hush",
            "redis://h/hush",
            "redis+unix://hush",
            "hush",
            "redis://h,,i",
        ] {
            let error = read(url).expect_err(url);
            assert!(!error.contains("hush"), "{url}: {error}");
        }
    }
}
