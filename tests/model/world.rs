//! A whole engine in a few words: limiters, rules, a memory store and a clock that waits to be told.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::decision::Decision;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine::Engine;
use tollgate::limiter::{Algorithm, Concurrency, Limiter, OnStoreError, Quota};
use tollgate::rules::{Action, Apply, Charge, KeyPart, Matcher, Missing, RefusalText, Rule, RuleBook, Rules};
use tollgate::store::{MemorySettings, Stores};

/// The domain that everything here asks.
pub const DOMAIN: &str = "edge";

/// Where the clock stands at first: an aligned start of every window up to a day.
pub const START: Timestamp = Timestamp::from_secs(19_676 * 86_400);

/// An engine and its clock.
pub struct World {
    pub engine: Engine,
    pub clock: ManualClock,
}

impl World {
    /// With these limiters and rules, all else as it is by default.
    pub fn new(limiters: Vec<Limiter>, rules: Vec<Rule>) -> Self {
        Self::of(RuleBook { limiters, rules, ..RuleBook::default() })
    }

    /// With this book, and a memory store for each store it names.
    pub fn of(book: RuleBook) -> Self {
        let spaces = vec![MemorySettings::default(); book.stores.len()];
        let clock = ManualClock::at(START);
        let rules = Rules::compile(book).expect("the book compiles");
        Self { engine: Engine::new(rules, Stores::memory(&spaces), Arc::new(clock.clone())), clock }
    }

    /// Decides descriptors together. The memory store never waits.
    pub fn decide<'a>(&self, descriptors: impl IntoIterator<Item = Descriptor<'a>>) -> Decision {
        let request = Request { domain: DOMAIN, descriptors: descriptors.into_iter().collect() };
        self.engine.decide(&request).now_or_never().expect("the memory store never waits")
    }

    /// Decides one descriptor that brings one hit.
    pub fn ask(&self, entries: &[(&str, &str)]) -> Decision {
        self.decide([Descriptor::of(entries.iter().copied())])
    }

    /// Whether one hit of these entries passes.
    pub fn passes(&self, entries: &[(&str, &str)]) -> bool {
        self.ask(entries).allowed()
    }

    /// How many of `tries` pass, one after the other at this moment.
    pub fn admits(&self, tries: usize, entries: &[(&str, &str)]) -> usize {
        (0..tries).filter(|_| self.passes(entries)).count()
    }

    /// What is left, seen without charging.
    pub fn left(&self, entries: &[(&str, &str)]) -> u32 {
        let peek = self.decide([hits(Hits::Peek, entries)]);
        peek.tightest().expect("a limiter applies").remaining
    }

    /// Moves the clock.
    pub fn wait(&self, by: Duration) {
        self.clock.advance(by);
    }
}

/// A descriptor with its own hits.
pub fn hits<'a>(hits: Hits, entries: &[(&'a str, &'a str)]) -> Descriptor<'a> {
    Descriptor { hits, ..Descriptor::of(entries.iter().copied()) }
}

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
    }
}

/// A limiter that holds slots.
pub fn slots(name: &str, max: u32, lease: Duration) -> Limiter {
    let lease = u64::try_from(lease.as_micros()).expect("a lease is shorter than ages");
    Limiter {
        name: name.to_owned(),
        store: 0,
        quota: None,
        concurrency: Some(Concurrency { max, lease }),
        on_store_error: OnStoreError::Local,
        overridable: false,
    }
}

/// A bucket that holds its limit, or another burst.
pub fn bucket(burst: Option<u32>) -> Algorithm {
    Algorithm::TokenBucket { burst, max_debt: None }
}

/// A limiter with a key, charged when admitted.
pub fn apply(limiter: &str, key: &[&str]) -> Apply {
    let part = |entry: &&str| KeyPart { entry: (*entry).to_owned(), normalise: Vec::new() };
    Apply {
        limiter: limiter.to_owned(),
        otherwise: None,
        key: key.iter().map(part).collect(),
        charge: Charge::Admitted,
        overdraw: false,
        missing: Missing::Skip,
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
    }
}

/// A rule that applies limiters to everything.
pub fn applies(name: &str, applies: impl Into<Vec<Apply>>) -> Rule {
    rule(name, &[], Action::Apply(applies.into()))
}
