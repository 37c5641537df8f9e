//! PostgreSQL stores.

use std::time::Duration;

use super::shared::Url;
use crate::config::document::problem::Problems;
use crate::config::schema;
use crate::config::schema::decode::Field;
use crate::store::PostgresSettings;

/// Builds the settings of a PostgreSQL store. Decisions wait `timeout` for it.
pub(super) fn settings(
    store: &schema::Store,
    url: &Url<'_>,
    timeout: Duration,
    problems: &mut Problems,
) -> PostgresSettings {
    let default = PostgresSettings::default();
    let text = |field: &Field<String>| field.get().map(|text| text.value.clone());
    let settings = PostgresSettings {
        url: url.text.to_owned(),
        schema_name: text(&store.schema_name).unwrap_or(default.schema_name),
        table_prefix: text(&store.table_name).unwrap_or(default.table_prefix),
        auto_create: store.auto_create.copied().map_or(default.auto_create, |switch| switch.0),
        pool_size: store.pool_max_size.copied().map_or(default.pool_size, usize::from),
        ca: text(&store.tls_ca).map(Into::into),
        unlogged: store.unlogged.copied().map_or(default.unlogged, |switch| switch.0),
        synchronous_commit: store.synchronous_commit.copied().map_or(default.synchronous_commit, |switch| switch.0),
        // A connection must not time out before the decision that waits for it. The lock timeout is shorter, because
        // other batches wait behind a locked row.
        response_timeout: default.response_timeout.max(timeout),
        ..default
    };
    if let Err(error) = settings.check() {
        problems.refuse(url.location, format!("which cannot be used: {error}"));
    }
    settings
}
