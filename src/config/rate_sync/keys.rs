//! What became of each key of a rate-sync file, in one sentence. `check` prints them, and `convert` writes them as
//! comments.

use std::time::Duration;

use crate::config::configuration::Config;
use crate::config::schema;
use crate::config::schema::StoreKind;
use crate::config::schema::values::shown_duration;
use crate::limiter::{Algorithm, Limiter, OnStoreError, Quota};
use crate::store::StoreConfig;

/// What became of `[fastapi]`.
pub(super) const FASTAPI: &str = "no effect; authz.trusted_hops selects the proxies to trust";

/// What became of a key of a store. None for keys that rate-sync does not have.
pub(super) fn of_store(key: &str, kind: StoreKind) -> Option<&'static str> {
    let became = match key {
        "engine" if kind == StoreKind::Memory => "the counters are in this process, so each instance counts alone",
        "engine" => "the instances that use this server share its counters",
        "url" => "the address of the server",
        "db" => "the number of the database",
        "password" => "the password; ${file:/run/secrets/store} keeps it out of this file",
        "key_prefix" => "begins the names of the counters; what rate-sync counted under it is not read",
        "socket_connect_timeout" => "the timeout of connecting",
        "table_name" => "begins the names of the tables; those of rate-sync are not used",
        "schema_name" => "the schema of the tables",
        "auto_create" => "whether connecting creates the tables; else tollgate store migrate does",
        "pool_max_size" if kind == StoreKind::Postgres => "the most connections",
        key => return without_effect(key),
    };
    Some(became)
}

/// Why a key of a store has no effect. None for keys that have one.
pub(super) fn without_effect(key: &str) -> Option<&'static str> {
    let reason = match key {
        "pool_min_size" => "no effect; connections are opened when they are needed",
        "pool_max_size" => "no effect; Redis needs one connection",
        "timing_margin_ms" => "no effect; the store's own clock decides",
        "socket_timeout" => "no effect; timeout says how long a decision waits",
        _ => return None,
    };
    Some(reason)
}

/// What became of a key of a limiter. None for keys that rate-sync does not have.
pub(super) fn of_limiter(key: &str, limiter: &Limiter) -> Option<String> {
    let quota = limiter.quota.as_ref();
    let became = match key {
        "store" => "where its counters are".to_owned(),
        "algorithm" => match quota.map(|quota| &quota.algorithm) {
            None => "slots alone, because there is no rate".to_owned(),
            Some(Algorithm::TokenBucket { .. }) => "tokens refill steadily".to_owned(),
            Some(Algorithm::SlidingWindow) => "counted exactly: every grant is remembered".to_owned(),
            Some(Algorithm::SlidingCounter | Algorithm::FixedWindow(_) | Algorithm::Distinct { .. }) => return None,
        },
        "rate_per_second" => rate(quota?),
        "max_concurrent" => {
            let slots = limiter.concurrency?;
            let lease = shown_duration(Duration::from_micros(slots.lease));
            let beside = match quota.map(|quota| &quota.algorithm) {
                Some(Algorithm::SlidingWindow) => "; rate-sync ignores it beside a window",
                _ => "",
            };
            format!("slots, each free again when it is released, or {lease} after its holder last renewed it{beside}")
        }
        "limit" => format!("at most {} in any {}", quota?.limit, shown_duration(quota?.window)),
        "window_seconds" => format!("the window, {}", shown_duration(quota?.window)),
        "timeout" => match limiter.workers.timeout? {
            Duration::ZERO => "callers do not wait, unless they say max_wait".to_owned(),
            timeout => format!("callers that do not say max_wait wait up to {}", shown_duration(timeout)),
        },
        "fail_closed" => match limiter.on_store_error {
            OnStoreError::Deny => "on_store_error = \"deny\": while the store does not answer, callers are refused",
            OnStoreError::Allow => "on_store_error = \"allow\": while the store does not answer, callers are admitted",
            OnStoreError::Local => return None,
        }
        .to_owned(),
        _ => return None,
    };
    Some(became)
}

/// What became of a rate.
fn rate(quota: &Quota) -> String {
    let (limit, window) = (quota.limit, shown_duration(quota.window));
    match quota.algorithm {
        Algorithm::TokenBucket { burst: Some(burst @ 2..), .. } => format!(
            "{limit} in {window}, of which {burst} can pass at once, a tenth of a second's worth; burst = 1 spaces them \
             evenly"
        ),
        _ => format!("{limit} in {window}, evenly spaced"),
    }
}

/// The keys that a limiter leaves out and that matter, and what that means.
pub(super) fn absent(written: &schema::Limiter, limiter: &Limiter, config: &Config) -> Vec<(&'static str, String)> {
    let mut absent = Vec::new();
    if let Some(timeout) = limiter.workers.timeout.filter(|_| written.timeout.is_absent()) {
        let longest = shown_duration(timeout);
        let became =
            format!("callers that do not say max_wait wait up to server.bounds.max_wait, {longest}, not for ever");
        absent.push(("timeout", became));
    }
    if is_shared(config, limiter) && written.fail_closed.is_absent() && written.on_store_error.is_absent() {
        let became = "on_store_error = \"local\": while the store does not answer, each instance counts alone; rate-sync \
                      admits all callers";
        absent.push(("fail_closed", became.to_owned()));
    }
    absent
}

/// Whether the store of a limiter is shared with other instances.
fn is_shared(config: &Config, limiter: &Limiter) -> bool {
    let store = config.stores.get(usize::from(limiter.store));
    store.is_some_and(|store| !matches!(store.config, StoreConfig::Memory(_)))
}
