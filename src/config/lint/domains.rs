//! Warnings about the names of domains.

use std::collections::{BTreeMap, BTreeSet};

use super::checked::Checked;
use crate::config::document::node::join;
use crate::config::document::problem::{Location, Problems, nearest};
use crate::config::document::warning::WarningKind;
use crate::config::schema::Verdict;

/// Domains with rules beyond which their names are not compared, since each is compared with all others.
const MAX_COMPARED: usize = 500;

/// Warns of settings of a domain without rules. One whose `unmatched` is `"deny"` needs none, unless another domain has
/// almost the same name.
pub(super) fn unused(checked: &Checked<'_>, problems: &mut Problems) {
    let ruled: BTreeMap<&str, usize> = rules_by_domain(checked);
    // Without any rule, and for the domain of ext_authz, there is another warning.
    if ruled.is_empty() {
        return;
    }
    let of_authz = |name: &str| name == checked.settings.authz.domain && checked.file.authz.get().is_some();
    // Workers ask for these limiters in any domain.
    let has_direct = checked.book.limiters.iter().any(|limiter| limiter.workers.direct);
    for item in checked.file.domains.named() {
        if ruled.contains_key(item.name.as_str()) || of_authz(&item.name) || has_direct {
            continue;
        }
        let near = nearest(&item.name, ruled.keys().copied());
        let denies = item.value.as_ref().and_then(|domain| domain.unmatched.copied()) == Some(Verdict::Deny);
        if denies && near.is_none() {
            continue;
        }
        let remedy = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None => {
                let known: Vec<&str> = ruled.keys().copied().take(20).collect();
                format!("domains with rules: {}", known.join(", "))
            }
        };
        problems.warn_of(WarningKind::UnusedDomain, &item.location, format!("is a domain without rules; {remedy}"));
    }
}

/// Warns of a domain of rules that is one letter away from one of more rules, or of an earlier one. Domains that have
/// settings, and the domain of ext_authz, are meant.
pub(super) fn similar(checked: &Checked<'_>, problems: &mut Problems) {
    let ruled = rules_by_domain(checked);
    let known = |name: &str| {
        checked.domain(name).is_some() || name == checked.settings.authz.domain && checked.file.authz.get().is_some()
    };
    // In the order of the files.
    let mut first: Vec<(&str, &Location)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (written, rule) in checked.rules() {
        if let Some(domain) = written.domain.get().filter(|_| seen.insert(rule.domain.as_str())) {
            first.push((&rule.domain, &domain.location));
        }
    }
    if first.len() > MAX_COMPARED {
        return;
    }
    for (index, (name, location)) in first.iter().enumerate().filter(|(_, (name, _))| !known(name)) {
        let meant = first.iter().enumerate().find(|(other, (meant, _))| {
            let rank = |index: usize, name: &str| (known(name), ruled[name], std::cmp::Reverse(index));
            rank(*other, meant) > rank(index, name) && is_misspelling(name, meant)
        });
        if let Some((_, (meant, _))) = meant {
            let reason = format!(
                "which is almost {meant:?}, the domain of other rules; if it is another domain, add [{}]",
                join("domains", name)
            );
            problems.warn(WarningKind::SimilarDomain, location, reason);
        }
    }
}

fn rules_by_domain<'a>(checked: &Checked<'a>) -> BTreeMap<&'a str, usize> {
    let mut ruled = BTreeMap::new();
    for rule in &checked.book.rules {
        *ruled.entry(rule.domain.as_str()).or_default() += 1;
    }
    ruled
}

/// Whether a name is another one with a letter changed, missing or added, or two exchanged. Names that differ in a
/// number or in a last part of one letter, such as `api1` and `site-a`, are a series.
fn is_misspelling(name: &str, meant: &str) -> bool {
    let letters = |text: &str| text.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>();
    let long = name.chars().count().min(meant.chars().count()) >= 4;
    let last = |text: &str| text.rsplit(['-', '_', '.', '/']).next().map_or(0, |part| part.chars().count());
    let series = letters(name) == letters(meant) || last(name) <= 1 || last(meant) <= 1;
    long && !series && strsim::damerau_levenshtein(name, meant) == 1
}

#[cfg(test)]
mod tests {
    use super::is_misspelling;

    #[test]
    fn a_misspelling_is_one_letter_away_and_not_the_next_of_a_series() {
        for name in ["egde", "edgle", "edgee", "adge"] {
            assert!(is_misspelling(name, "edge"), "{name}");
        }
        for (name, other) in
            [("api1", "api2"), ("site-a", "site-b"), ("eu", "us"), ("edge", "edges2"), ("v1.a", "v1.b")]
        {
            assert!(!is_misspelling(name, other), "{name} and {other}");
        }
    }
}
