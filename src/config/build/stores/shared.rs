//! The URL, and the settings of calls and caches, that all shared stores have.

use std::time::Duration;

use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::Field;
use crate::config::schema::values::{Count, Item};
use crate::store::{QueueSettings, SharedSettings};

/// The URL of a store, with one of its engine's schemes.
pub(super) struct Url<'a> {
    /// The URL, which may hold a password.
    pub(super) text: &'a str,
    pub(super) location: &'a Location,
}

impl<'a> Url<'a> {
    /// Checks the URL of a store. None if it is missing or invalid, which is reported.
    pub(super) fn of(
        item: &Item<schema::Store>,
        store: &'a schema::Store,
        schemes: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Some(url) = store.url.get() else {
            if store.url.is_absent() {
                let path = format!("{}.url", item.location.path);
                let reason = format!("is missing, expected one such as \"{}host/0\"", schemes[0]);
                problems.missing(item.location.position, &path, reason);
            }
            return None;
        };
        if !schemes.iter().any(|scheme| url.0.starts_with(scheme)) {
            problems.refuse(&url.location, format!("expected it to begin with {}", schemes.join(" or ")));
            return None;
        }
        Some(Self { text: &url.value.0, location: &url.location })
    }
}

/// Builds the settings that all shared stores have. Decisions wait `timeout` for the store.
pub(super) fn settings(name: &str, timeout: Duration, store: &schema::Store) -> SharedSettings {
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
