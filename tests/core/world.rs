//! A whole engine for tests: rules, a memory store and a manual clock.

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

/// The initial time: an aligned start of every window up to a day.
pub const START: Timestamp = Timestamp::from_secs(19_676 * 86_400);

/// An engine and its clock.
pub struct World {
    pub engine: Engine,
    pub clock: ManualClock,
}

impl World {
    /// A world of these limiters and rules, otherwise with defaults.
    pub fn new(limiters: Vec<Limiter>, rules: Vec<Rule>) -> Self {
        Self::of(RuleBook { limiters, rules, ..RuleBook::default() })
    }

    /// A world of this book, with a memory store for each store that it names.
    pub fn of(book: RuleBook) -> Self {
        let spaces = vec![MemorySettings::default(); book.stores.len()];
        let clock = ManualClock::at(START);
        let rules = Rules::compile(book).expect("the book compiles");
        Self { engine: Engine::new(rules, Stores::memory(&spaces), Arc::new(clock.clone())), clock }
    }

    /// Decides descriptors together. The memory store answers at once.
    pub fn decide<'a>(&self, descriptors: impl IntoIterator<Item = Descriptor<'a>>) -> Decision {
        let request = Request { domain: DOMAIN, descriptors: descriptors.into_iter().collect() };
        self.engine.decide(&request).now_or_never().expect("the memory store never waits")
    }

    /// Decides one descriptor with one hit.
    pub fn ask(&self, entries: &[(&str, &str)]) -> Decision {
        self.decide([Descriptor::of(entries.iter().copied())])
    }

    /// Whether one hit with these entries passes.
    pub fn passes(&self, entries: &[(&str, &str)]) -> bool {
        self.ask(entries).allowed()
    }

    /// How many of `tries` pass, one after the other at the same moment.
    pub fn admits(&self, tries: usize, entries: &[(&str, &str)]) -> usize {
        (0..tries).filter(|_| self.passes(entries)).count()
    }

    /// The units left, by a peek.
    pub fn left(&self, entries: &[(&str, &str)]) -> u32 {
        let peek = self.decide([hits(Hits::Peek, entries)]);
        peek.tightest().expect("a limiter applies").remaining
    }

    /// Moves the clock.
    pub fn wait(&self, by: Duration) {
        self.clock.advance(by);
    }
}

/// A descriptor with a number of hits.
pub fn hits<'a>(hits: Hits, entries: &[(&'a str, &'a str)]) -> Descriptor<'a> {
    Descriptor { hits, ..Descriptor::of(entries.iter().copied()) }
}
