//! A whole engine in a few words: a book, a memory store and a clock that waits to be told.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::decision::Decision;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine::Engine;
use tollgate::limiter::Limiter;
use tollgate::rules::{Rule, RuleBook, Rules};
use tollgate::store::{MemorySettings, Stores};

use crate::support::fixtures::DOMAIN;

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
