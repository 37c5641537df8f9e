//! The rules that are measured, and the engines that decide by them.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tollgate::clock::SystemClock;
use tollgate::decision::Decision;
use tollgate::descriptor::Request;
use tollgate::engine::Engine;
use tollgate::limiter::{Algorithm, Concurrency, Limiter, OnStoreError, Quota, WorkerSettings};
use tollgate::rules::{
    Action, Apply, Charge, KeyEntry, Matcher, Missing, RefusalText, Rule, RuleBook, RuleHeaders, Rules,
};
use tollgate::store::{MemorySettings, Stores};

/// A limiter with a quota that no bench exhausts.
pub fn limiter(name: &str, algorithm: Algorithm, limit: u32) -> Limiter {
    let quota = Quota::new(limit, Duration::from_secs(3_600), algorithm).expect("the numbers fit");
    Limiter { quota: Some(quota), concurrency: None, ..bare(name) }
}

/// A limiter of concurrency slots.
pub fn slots(name: &str, max: u32) -> Limiter {
    Limiter { quota: None, concurrency: Some(Concurrency { max, lease: 3_600_000_000 }), ..bare(name) }
}

fn bare(name: &str) -> Limiter {
    Limiter {
        name: name.into(),
        store: 0,
        quota: None,
        concurrency: None,
        on_store_error: OnStoreError::Local,
        overridable: false,
        workers: WorkerSettings::default(),
    }
}

/// A token bucket of a million tokens.
pub fn bucket(name: &str) -> Limiter {
    limiter(name, Algorithm::TokenBucket { burst: None, max_debt: None }, 1_000_000)
}

/// A limiter applied to one entry.
pub fn apply(limiter: &str, key: &str) -> Apply {
    Apply {
        limiter: limiter.into(),
        otherwise: None,
        key: vec![KeyEntry { entry: key.into(), normalise: vec![] }],
        charge: Charge::Admitted,
        overdraw: false,
        missing: Missing::Skip,
        hold: None,
    }
}

/// A rule of the domain `edge`.
pub fn rule(name: &str, matches: Vec<(String, Matcher)>, applies: Vec<Apply>) -> Rule {
    Rule {
        domain: "edge".into(),
        name: name.into(),
        matches,
        action: Action::Apply(applies),
        last: false,
        shadow: false,
        enforce_percent: None,
        refusal: RefusalText::default(),
        headers: RuleHeaders::default(),
        skip_absent: false,
    }
}

/// An engine with one memory store.
pub fn engine(limiters: Vec<Limiter>, rules: Vec<Rule>, memory: MemorySettings) -> Engine {
    let book = RuleBook { limiters, rules, ..RuleBook::default() };
    let rules = Rules::compile(book).expect("the rules are right");
    Engine::new(rules, Stores::memory(&[memory]), Arc::new(SystemClock::new()))
}

/// An engine that applies two token buckets to every login, by its account and by its client.
pub fn composite() -> Engine {
    let applies = vec![apply("per_account", "account"), apply("per_client", "client")];
    let matches = vec![("path".to_owned(), Matcher::parse("/login"))];
    let limiters = vec![bucket("per_account"), bucket("per_client")];
    engine(limiters, vec![rule("login", matches, applies)], MemorySettings::default())
}

/// The decision of an engine whose stores answer at once.
pub fn decide(engine: &Engine, request: &Request<'_>) -> Decision {
    match pin!(engine.decide(request)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(decision) => decision,
        Poll::Pending => unreachable!("the memory store answers at once"),
    }
}
