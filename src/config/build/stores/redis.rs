//! Redis stores.

use std::time::Duration;

use super::shared::Url;
use super::{redis_url, tls};
use crate::config::document::disk::Disk;
use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::{Choice, Field, SchemaTable};
use crate::config::schema::values::Hidden;
use crate::store::{Address, Credentials, Password, RedisSettings, Topology};
use crate::tls::TlsSettings;

/// Builds the settings of a Redis store. Decisions wait `timeout` for it. None if they are invalid, which is reported.
pub(super) fn settings(
    store: &schema::Store,
    url: &Url<'_>,
    timeout: Duration,
    disk: &Disk,
    problems: &mut Problems,
) -> Option<RedisSettings> {
    let location = url.location;
    let parsed = match redis_url::parse(url.text) {
        Ok(parsed) => parsed,
        Err(error) => {
            problems.refuse(location, error);
            return None;
        }
    };
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let secret = |field: &Field<Hidden>| field.get().map(|secret| Password::new(secret.value.0.clone()));
    let mode = store.mode.copied().unwrap_or(schema::RedisMode::Standalone);
    for (key, location) in store.given() {
        if let Some(needed) = key.mode
            && needed != mode.word()
        {
            problems.refuse(location, format!("but mode is \"{}\"; it belongs to \"{needed}\"", mode.word()));
        }
    }
    let sockets = parsed.addresses.iter().any(|address| matches!(address, Address::Unix(_)));
    let mut addresses = parsed.addresses;
    let topology = match mode {
        schema::RedisMode::Standalone => {
            if addresses.len() > 1 {
                problems.refuse(
                    location,
                    "which names several servers, expected one, or mode = \"sentinel\" or \"cluster\"",
                );
            }
            Topology::Standalone(addresses.swap_remove(0))
        }
        _ if sockets => {
            problems.refuse(location, format!("which is a socket, but mode is \"{}\"", mode.word()));
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
    refuse_twice(store.username.location(), parsed.user.as_ref(), "a user", problems);
    refuse_twice(store.password.location(), parsed.password.as_ref(), "a password", problems);
    let mut settings = RedisSettings::new(topology);
    settings.credentials = Credentials {
        user: text(&store.username).or(parsed.user),
        password: secret(&store.password).or(parsed.password.map(Password::new)),
    };
    if settings.credentials.password.is_none() && settings.credentials.user.is_some() {
        let location = store.username.location().unwrap_or(location);
        problems.refuse(
            location,
            "which has a user and no password: what is before @ without a colon is the user; expected \
             redis://:password@host for a password, or redis://user:@host for a user without one",
        );
    }
    settings.tls = tls_settings(store, parsed.tls, location, disk, problems);
    if let Some(prefix) = text(&store.key_prefix) {
        settings.key_prefix = prefix;
    }
    let db = store.db.copied().map(|db| u32::try_from(db.0).unwrap_or(u32::MAX));
    settings.db = db.or(parsed.db).unwrap_or(0);
    if mode == schema::RedisMode::Cluster && settings.db > 0 {
        let location = store.db.location().unwrap_or(location);
        problems.refuse(location, format!("which selects database {}; a cluster has only database 0", settings.db));
    }
    if mode == schema::RedisMode::Cluster && settings.key_prefix.contains('{') {
        let location = store.key_prefix.location().unwrap_or(location);
        problems.refuse(location, "expected no {: in a cluster it selects the hash slot of a key");
    }
    if let Some(timeout) = store.socket_connect_timeout.copied() {
        settings.connect_timeout = timeout.0;
    }
    // A connection must not time out before the decision that waits for it.
    settings.response_timeout = settings.response_timeout.max(timeout);
    Some(settings)
}

/// The TLS settings, if the scheme of the URL is `rediss`.
fn tls_settings(
    store: &schema::Store,
    enabled: bool,
    url: &Location,
    disk: &Disk,
    problems: &mut Problems,
) -> Option<TlsSettings> {
    if !enabled {
        for (_, location) in store.given().into_iter().filter(|(key, _)| key.name.starts_with("tls_")) {
            problems.refuse(location, "but the URL does not begin with rediss://, so TLS is not used");
        }
        return None;
    }
    let settings = tls::settings(store, disk, problems);
    if let Err(error) = settings.check() {
        tls::refuse(&error, &settings, store, url, problems);
    }
    Some(settings)
}

/// Refuses a key if the URL has the same.
fn refuse_twice(key: Option<&Location>, in_url: Option<&String>, what: &str, problems: &mut Problems) {
    if let (Some(location), Some(_)) = (key, in_url) {
        problems.refuse(location, format!("but the URL has {what} too; expected one of them"));
    }
}
