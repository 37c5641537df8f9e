//! Files of rate-sync, a Python library: limiters that its callers name themselves, without rules (semantics 50a).
//!
//! Their keys are keys of our schema, so nothing else reads them: this says which files they are, what each of their keys
//! became, and writes them in our own form.

#[cfg(feature = "server")]
pub(super) mod convert;
mod keys;

use super::configuration::Config;
use super::document::node::Position;
use super::document::problem::Problems;
use super::schema;
use super::schema::decode::SchemaTable;

/// Whether this is a file of rate-sync: no rules, a limiter with one of its keys, and none that says `direct`, which is
/// the key that a limiter without rules has in our own form.
pub(super) fn is_rate_sync(file: &schema::File) -> bool {
    let without_rules = file.rules.get().map_or(file.rules.is_absent(), |rules| rules.is_empty);
    let mut limiters = file.limiters.named().iter().filter_map(|item| item.value.as_ref());
    without_rules
        && limiters.clone().all(|limiter| limiter.direct.is_absent())
        && limiters.any(|limiter| {
            !(limiter.rate_per_second.is_absent() && limiter.window_seconds.is_absent() && limiter.timeout.is_absent())
        })
}

/// Notes what became of each key.
pub(super) fn note(file: &schema::File, config: &Config, problems: &mut Problems) {
    let (settings, book) = (&config.server, &config.book);
    problems.note(
        Position::default(),
        "",
        format!(
            "is a file of rate-sync: workers ask for its limiters by name, in the domain {:?}",
            settings.api.domain
        ),
    );
    for store in file.stores.named().iter().filter_map(|item| item.value.as_ref()) {
        let Some(kind) = store.engine.copied() else { continue };
        for (key, location) in store.given() {
            if let Some(became) = keys::of_store(key.name, kind) {
                problems.note(location.position, &location.path, format!("is {}: {became}", location.shown));
            }
        }
    }
    for item in file.limiters.named() {
        let built = book.limiters.iter().find(|limiter| limiter.name == item.name);
        let (Some(written), Some(built)) = (&item.value, built) else { continue };
        for (key, location) in written.given() {
            if let Some(became) = keys::of_limiter(key.name, built) {
                problems.note(location.position, &location.path, format!("is {}: {became}", location.shown));
            }
        }
        for (key, became) in keys::absent(written, built, config) {
            problems.note(
                item.location.position,
                &format!("{}.{key}", item.location.path),
                format!("is absent: {became}"),
            );
        }
    }
    if let Some(fastapi) = file.fastapi.get() {
        problems.note(fastapi.location.position, &fastapi.location.path, format!("is a table: {}", keys::FASTAPI));
    }
}
