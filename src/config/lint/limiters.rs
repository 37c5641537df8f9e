//! Warnings about limiters and stores.

use std::collections::BTreeSet;
use std::time::Duration;

use super::checked::Checked;
use crate::config::build::rules::NameTemplate;
use crate::config::document::problem::{Location, Problems};
use crate::config::document::warning::WarningKind;
use crate::config::schema::StoreKind;

const DAY: Duration = Duration::from_secs(86_400);

/// Warns of limiters that no rule applies. Without any rule there is one warning about that.
pub(super) fn unused(checked: &Checked<'_>, problems: &mut Problems) {
    let file = checked.file;
    if checked.book.rules.is_empty() {
        return;
    }
    let applies = file.rules.items().iter().flat_map(|rule| rule.apply.items());
    let names = applies.flat_map(|apply| [apply.limiter.get(), apply.otherwise.get()]).flatten();
    let names: BTreeSet<&str> = names.map(|name| name.value.as_str()).collect();
    let templates: Vec<NameTemplate> = names.iter().filter_map(|name| NameTemplate::parse(name)).collect();
    let templates: Vec<NameTemplate> = templates.into_iter().filter(|template| !template.entries.is_empty()).collect();
    for limiter in file.limiters.named() {
        let name = limiter.name.as_str();
        if !names.contains(name) && !templates.iter().any(|template| template.matches(name)) {
            let reason = "is applied by no rule, so it limits nothing; apply it in a rule, or remove it";
            problems.warn_of(WarningKind::UnusedLimiter, &limiter.location, reason);
        }
    }
}

/// Warns of a bucket that holds more than the default, so that its first second or window admits more than the rate
/// says.
pub(super) fn large_burst(checked: &Checked<'_>, problems: &mut Problems) {
    for limiter in checked.file.limiters.named().iter().filter_map(|item| item.value.as_ref()) {
        let Some(burst) = limiter.burst.get() else { continue };
        let held = u64::from(u32::from(burst.value));
        if let Some(rate) = limiter.rate_per_second.get() {
            let most = (rate.0 / 10.0).max(1.0) as u64;
            if held > most {
                let (admitted, shown) = (held.saturating_add(rate.0 as u64), &rate.location.shown);
                let reason = format!(
                    "so the first second admits {admitted}, but rate_per_second is {shown}; expected at most {most}, \
                     which it is without burst"
                );
                problems.warn(WarningKind::LargeBurst, &burst.location, reason);
            }
        } else if let Some(limit) = limiter.limit.get() {
            let each = u64::from(u32::from(limit.value));
            if held > each {
                let admitted = held.saturating_add(each);
                let reason = format!(
                    "so the first window admits {admitted}, but limit is {each}; expected at most {each}, which it is \
                     without burst"
                );
                problems.warn(WarningKind::LargeBurst, &burst.location, reason);
            }
        }
    }
}

/// Warns of windows and leases so long that another unit was probably meant.
pub(super) fn long_window(checked: &Checked<'_>, problems: &mut Problems) {
    let mut warn = |location: &Location, length: Duration, most: Duration, reason: &str| {
        if length > most {
            problems.warn(WarningKind::LongWindow, location, reason);
        }
    };
    for limiter in checked.file.limiters.named().iter().filter_map(|item| item.value.as_ref()) {
        const YEAR: &str = "which is more than a year: a counter is kept that long; is the unit meant?";
        if let Some(window) = limiter.window.get() {
            warn(&window.location, window.0, DAY * 366, YEAR);
        }
        if let Some(window) = limiter.window_seconds.get() {
            warn(&window.location, window.0, DAY * 366, YEAR);
        }
        if let Some(lease) = limiter.lease.get() {
            const HELD: &str =
                "which is more than a day: a slot that is not released is held that long; is the unit meant?";
            warn(&lease.location, lease.0, DAY, HELD);
        }
    }
}

/// Warns of keys that only rate-sync uses.
pub(super) fn ignored_key(checked: &Checked<'_>, problems: &mut Problems) {
    for limiter in checked.file.limiters.named().iter().filter_map(|item| item.value.as_ref()) {
        if let Some(location) = limiter.timeout.location() {
            let reason = "which has no effect: requests at a gateway do not wait for a limit; remove it";
            problems.warn(WarningKind::IgnoredKey, location, reason);
        }
    }
    for store in checked.file.stores.named().iter().filter_map(|item| item.value.as_ref()) {
        let redis = store.engine.copied() == Some(StoreKind::Redis);
        let keys = [
            (store.pool_min_size.location(), "connections are opened when they are needed"),
            (store.pool_max_size.location().filter(|_| redis), "Redis needs one connection"),
            (store.timing_margin_ms.location(), "the store's own clock decides"),
            (store.socket_timeout.location(), "timeout says how long a decision waits"),
        ];
        for (location, reason) in keys {
            if let Some(location) = location {
                problems.warn(WarningKind::IgnoredKey, location, format!("which has no effect: {reason}; remove it"));
            }
        }
    }
}
