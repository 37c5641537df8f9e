//! Warnings about limiters and stores.

use std::collections::BTreeSet;
use std::time::Duration;

use super::checked::Checked;
use crate::config::build::rules::NameTemplate;
use crate::config::document::problem::{Location, Problems};
use crate::config::document::warning::WarningKind;
use crate::config::rate_sync::is_rate_sync;
use crate::config::schema::{self, StoreKind};
use crate::limiter::Algorithm;

const DAY: Duration = Duration::from_secs(86_400);

/// Warns of limiters that no rule applies. Without any rule there is one warning about that.
pub(super) fn unused(checked: &Checked<'_>, problems: &mut Problems) {
    if checked.book.rules.is_empty() {
        return;
    }
    let references = References::of(checked);
    for limiter in checked.file.limiters.named() {
        let direct = limiter.value.as_ref().is_some_and(is_direct);
        if !direct && references.to(&limiter.name).is_none() {
            let reason = "is applied by no rule, so it limits nothing; apply it in a rule, remove it, or, if workers ask \
                          for it by name, set direct = true";
            problems.warn_of(WarningKind::UnusedLimiter, &limiter.location, reason);
        }
    }
}

/// Warns of limiters that say `direct = true` although rules apply them.
pub(super) fn direct_applied(checked: &Checked<'_>, problems: &mut Problems) {
    let references = References::of(checked);
    for limiter in checked.file.limiters.named() {
        let Some(written) = limiter.value.as_ref().filter(|written| is_direct(written)) else { continue };
        let (Some(direct), Some(reference)) = (written.direct.location(), references.to(&limiter.name)) else {
            continue;
        };
        let Reference { text, domain, rule } = reference;
        let reason = format!(
            "but rule {rule:?} applies it, and workers ask for it as that rule does, in the domain {domain:?} as {text:?} by \
             the entries of its key; direct is for limiters that no rule applies, so remove it, or give workers a limiter \
             of their own"
        );
        problems.warn(WarningKind::DirectApplied, direct, reason);
    }
}

fn is_direct(limiter: &schema::Limiter) -> bool {
    limiter.direct.copied().is_some_and(|switch| switch.0)
}

/// The names and templates by which rules apply limiters.
struct References<'a>(Vec<(NameTemplate, Reference<'a>)>);

/// A name or template of a limiter in a rule.
#[derive(Clone, Copy)]
struct Reference<'a> {
    text: &'a str,
    domain: &'a str,
    rule: &'a str,
}

impl<'a> References<'a> {
    fn of(checked: &Checked<'a>) -> Self {
        let mut seen = BTreeSet::new();
        let mut references = Vec::new();
        for (written, rule) in checked.rules() {
            let texts = written.apply.items().iter().flat_map(|apply| [apply.limiter.get(), apply.otherwise.get()]);
            for text in texts.flatten().map(|text| text.value.as_str()).filter(|text| seen.insert(*text)) {
                let reference = Reference { text, domain: &rule.domain, rule: &rule.name };
                references.extend(NameTemplate::parse(text).map(|template| (template, reference)));
            }
        }
        Self(references)
    }

    /// The first reference that can mean a limiter: its name, or else a template.
    fn to(&self, limiter: &str) -> Option<Reference<'a>> {
        let named = self.0.iter().find(|(_, reference)| reference.text == limiter);
        let matches = |template: &NameTemplate| !template.entries.is_empty() && template.matches(limiter);
        named.or_else(|| self.0.iter().find(|(template, _)| matches(template))).map(|(_, reference)| *reference)
    }
}

/// Warns of `wait = true` on a limiter whose callers cannot be granted ahead (semantics 46).
pub(super) fn queued_wait(checked: &Checked<'_>, problems: &mut Problems) {
    for item in checked.file.limiters.named() {
        let Some(wait) = item.value.as_ref().and_then(|limiter| limiter.wait.get()).filter(|wait| wait.0) else {
            continue;
        };
        let Some(limiter) = checked.book.limiters.iter().find(|limiter| limiter.name == item.name) else { continue };
        let reason = match &limiter.quota {
            Some(quota) if matches!(quota.algorithm, Algorithm::TokenBucket { .. }) => match limiter.concurrency {
                None => continue,
                Some(_) => "but a limiter with max_concurrent",
            },
            _ => "but a limiter that is no token_bucket",
        };
        let reason = format!(
            "{reason} grants nobody ahead: its callers queue in each instance in the order of their arrival there, and one \
             that does not wait can be ahead of them; remove it: timeout and max_wait alone let them wait"
        );
        problems.warn(WarningKind::QueuedWait, &wait.location, reason);
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

/// Warns of keys that only rate-sync uses. In its own files `check` notes what became of every key.
pub(super) fn ignored_key(checked: &Checked<'_>, problems: &mut Problems) {
    if is_rate_sync(checked.file) {
        return;
    }
    if let Some(fastapi) = checked.file.fastapi.get() {
        let reason = "which has no effect here; authz.trusted_hops selects the proxies to trust";
        problems.warn(WarningKind::IgnoredKey, &fastapi.location, reason);
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
