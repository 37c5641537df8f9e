//! PostgreSQL stores.

use std::time::Duration;

use super::shared::Url;
use super::tls;
use crate::config::document::disk::Disk;
use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::Field;
use crate::store::{Password, PostgresSettings, PostgresSettingsError};

/// Builds the settings of a PostgreSQL store. Decisions wait `timeout` for it.
pub(super) fn settings(
    store: &schema::Store,
    url: &Url<'_>,
    timeout: Duration,
    disk: &Disk,
    problems: &mut Problems,
) -> PostgresSettings {
    let default = PostgresSettings::default();
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let mut settings = PostgresSettings {
        url: url.text.to_owned(),
        username: text(&store.username),
        password: store.password.get().map(|secret| Password::new(secret.value.0.clone())),
        tls: tls::settings(store, disk, problems),
        schema_name: text(&store.schema_name).unwrap_or(default.schema_name),
        table_prefix: text(&store.table_name).unwrap_or(default.table_prefix),
        auto_create: store.auto_create.copied().map_or(default.auto_create, |switch| switch.0),
        pool_size: store.pool_max_size.copied().map_or(default.pool_size, usize::from),
        unlogged: store.unlogged.copied().map_or(default.unlogged, |switch| switch.0),
        synchronous_commit: store.synchronous_commit.copied().map_or(default.synchronous_commit, |switch| switch.0),
        // A connection must not time out before the decision that waits for it. The lock timeout is shorter, because
        // other batches wait behind a locked row.
        response_timeout: default.response_timeout.max(timeout),
        ..default
    };
    settings.read_files_of_url(|path| tls::file(path, disk));
    if let Err(error) = settings.check() {
        refuse(&error, &settings, store, url.location, problems);
    }
    settings
}

/// Reports invalid settings at the key that they come from.
fn refuse(
    error: &PostgresSettingsError,
    settings: &PostgresSettings,
    store: &schema::Store,
    url: &Location,
    problems: &mut Problems,
) {
    match error {
        PostgresSettingsError::Tls(error) => tls::refuse(error, &settings.tls, store, url, problems),
        PostgresSettingsError::Twice { key, parameter } => {
            let reason = format!("but the URL has {parameter} too; expected one of them");
            problems.refuse(location(store, key).unwrap_or(url), reason);
        }
        PostgresSettingsError::Unused { key } => {
            let reason = "but the URL has sslmode=disable, so TLS is not used";
            problems.refuse(location(store, key).unwrap_or(url), reason);
        }
        PostgresSettingsError::Name { key, .. } => {
            let reason = "expected at most 32 characters of a-z, A-Z, 0-9, _ and -";
            problems.refuse(location(store, key).unwrap_or(url), reason);
        }
        error => problems.refuse(url, format!("which cannot be used: {error}")),
    }
}

/// The location of a setting's key.
fn location<'a>(store: &'a schema::Store, key: &str) -> Option<&'a Location> {
    match key {
        "username" => store.username.location(),
        "password" => store.password.location(),
        "tls_ca" => store.tls_ca.location(),
        "tls_certificate" => store.tls_certificate.location(),
        "tls_server_name" => store.tls_server_name.location(),
        "schema_name" => store.schema_name.location(),
        "table_prefix" => store.table_name.location(),
        _ => None,
    }
}
