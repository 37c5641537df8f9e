//! Short constructors of limiters and rules.

use std::time::Duration;

use tollgate::limiter::{Algorithm, Concurrency, Limiter, OnStoreError, Quota, WorkerSettings};
use tollgate::rules::{Action, Apply, Charge, KeyEntry, Matcher, Missing, RefusalText, Rule, RuleHeaders};

/// The domain of all rules here.
pub const DOMAIN: &str = "edge";

/// Seconds.
pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A limiter that counts a quota.
pub fn quota(name: &str, limit: u32, window: Duration, algorithm: Algorithm) -> Limiter {
    let quota = Quota::new(limit, window, algorithm).expect("the numbers can be counted");
    Limiter {
        name: name.to_owned(),
        store: 0,
        quota: Some(quota),
        concurrency: None,
        on_store_error: OnStoreError::Local,
        overridable: false,
        workers: WorkerSettings::default(),
    }
}

/// A limiter of concurrency slots.
pub fn slots(name: &str, max: u32, lease: Duration) -> Limiter {
    let lease = u64::try_from(lease.as_micros()).expect("a lease is shorter than ages");
    Limiter {
        name: name.to_owned(),
        store: 0,
        quota: None,
        concurrency: Some(Concurrency { max, lease }),
        on_store_error: OnStoreError::Local,
        overridable: false,
        workers: WorkerSettings::default(),
    }
}

/// A token bucket whose burst is its limit or another number.
pub fn bucket(burst: Option<u32>) -> Algorithm {
    Algorithm::TokenBucket { burst, max_debt: None }
}

/// A limiter with a key, charged on admission.
pub fn apply(limiter: &str, key: &[&str]) -> Apply {
    let part = |entry: &&str| KeyEntry { entry: (*entry).to_owned(), normalise: Vec::new() };
    Apply {
        limiter: limiter.to_owned(),
        otherwise: None,
        key: key.iter().map(part).collect(),
        charge: Charge::Admitted,
        overdraw: false,
        missing: Missing::Skip,
        hold: None,
    }
}

/// A rule of [`DOMAIN`].
pub fn rule(name: &str, matches: &[(&str, &str)], action: Action) -> Rule {
    Rule {
        domain: DOMAIN.to_owned(),
        name: name.to_owned(),
        matches: matches.iter().map(|(key, value)| ((*key).to_owned(), Matcher::parse(value))).collect(),
        action,
        last: false,
        shadow: false,
        enforce_percent: None,
        refusal: RefusalText::default(),
        headers: RuleHeaders::default(),
        skip_absent: false,
    }
}

/// A rule that applies limiters to every request.
pub fn applies(name: &str, applies: impl Into<Vec<Apply>>) -> Rule {
    rule(name, &[], Action::Apply(applies.into()))
}
