//! What a rule cannot ask of a limiter that counts different values (semantics 57).

use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::limiter::{Algorithm, Limiter};
use crate::rules::KeyEntry;

/// The entries whose different values a limiter counts.
pub(in crate::config) fn counted(limiter: &Limiter) -> &[String] {
    match limiter.quota.as_ref().map(|quota| &quota.algorithm) {
        Some(Algorithm::Distinct { of }) => of,
        _ => &[],
    }
}

/// Refuses what a rule cannot ask of a limiter that counts different values. `check` checks that requests of the rule can
/// have an entry.
pub(super) fn refuse_impossible(
    written: &schema::Apply,
    limiter: &Limiter,
    key: &[KeyEntry],
    problems: &mut Problems,
    mut check: impl FnMut(&str, &Location, &mut Problems),
) {
    let (of, name) = (counted(limiter), &limiter.name);
    if of.is_empty() {
        return;
    }
    if let Some(charge) = written.charge.get().filter(|charge| charge.value == schema::Charge::Always) {
        let reason = format!(
            "but {name:?} counts different values, and one beyond its limit could only push out another; expected \"own\", \
             or \"admitted\""
        );
        problems.refuse(&charge.location, reason);
    }
    if let Some(overdraw) = written.overdraw.get().filter(|switch| switch.0) {
        let reason = format!("but {name:?} counts different values, which cannot be overdrawn; expected false");
        problems.refuse(&overdraw.location, reason);
    }
    if let Some(hold) = written.hold.get() {
        let reason = format!("but {name:?} counts different values, which cannot be held; remove it");
        problems.refuse(&hold.location, reason);
    }
    let Some(reference) = written.limiter.get() else { return };
    for entry in of {
        check(entry, &reference.location, problems);
        if key.iter().any(|part| part.entry == *entry) {
            let reason = format!(
                "but {name:?} counts different values of {entry:?}, and the key has that entry too: each counter has one \
                 value only, and nothing is refused; take it out of the key, or out of limiters.{name}.of"
            );
            problems.refuse(&reference.location, reason);
        }
    }
}
