//! The rules and counters that were refused most in the last minutes, in bounded memory.
//!
//! Each minute has a sketch of its own by the space-saving algorithm (Metwally, Agrawal and El Abbadi, "Efficient
//! computation of frequent and top-k elements in data streams", 2005): it keeps [`KEPT`] names, and one that is not
//! among them takes the place of the least, with its count. So a count is never too low, it is too high by at most
//! `over`, and whatever has more than one in [`KEPT`] of a minute's refusals is among them.

use std::hash::Hash;

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::decision::{Decision, Refusal};
use crate::plan::CounterName;

/// How many minutes are remembered, the one under way among them.
pub const MINUTES: usize = 10;

/// How many rules, and how many counters, are remembered of a minute.
const KEPT: usize = 128;

/// Who was refused most.
#[derive(Debug)]
pub struct Top {
    minutes: Mutex<[Minute; MINUTES]>,
}

/// The most refused of some minutes, the most first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tops {
    /// By rule.
    pub rules: Vec<Ranked>,
    /// By counter.
    pub counters: Vec<Ranked>,
}

/// One rule, or one counter with the rule that applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The domain.
    pub domain: String,
    /// The rule that refused; none where no rule did.
    pub rule: String,
    /// The limiter that refused; none where no limiter did.
    pub limiter: String,
    /// The counter's hashed name.
    pub key: Option<CounterName>,
    /// Refusals.
    pub refused: u64,
    /// By how much that may be too high.
    pub over: u64,
}

#[derive(Debug, Default)]
struct Minute {
    number: u64,
    rules: Sketch<Place>,
    counters: Sketch<CounterName>,
}

/// A rule and limiter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    domain: String,
    rule: String,
    limiter: String,
}

/// The same before it has to be kept.
#[derive(Clone, Copy, Hash)]
struct Found<'a> {
    domain: &'a str,
    rule: &'a str,
    limiter: &'a str,
}

#[derive(Debug)]
struct Sketch<K> {
    kept: HashMap<K, Kept, RandomState>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    count: u64,
    over: u64,
    place: Place,
}

impl Top {
    /// Nobody was refused yet.
    pub fn new() -> Self {
        Self { minutes: Mutex::new(std::array::from_fn(|_| Minute::default())) }
    }

    /// Counts a refusal.
    pub fn refused(&self, decision: &Decision, refusal: &Refusal<'_>, now: Timestamp) {
        let found = Found {
            domain: decision.domain().unwrap_or_default(),
            rule: refusal.rule.unwrap_or_default(),
            limiter: refusal.limiter.unwrap_or_default(),
        };
        self.count(found, decision.counter(), now);
    }

    fn count(&self, found: Found<'_>, counter: Option<CounterName>, now: Timestamp) {
        let number = minute(now);
        let mut minutes = self.minutes.lock();
        let minute = &mut minutes[number as usize % MINUTES];
        if minute.number != number {
            *minute = Minute { number, ..Minute::default() };
        }
        if let Some(counter) = counter {
            minute.counters.count(&counter, || (counter, found.place()));
        }
        minute.rules.count(&found, || (found.place(), Place::default()));
    }

    /// The most refused of the last minutes: this one and so many before, nine at most.
    pub fn of_last(&self, before: usize, now: Timestamp) -> Tops {
        let number = minute(now);
        let first = number.saturating_sub(before.min(MINUTES - 1) as u64);
        let mut rules: HashMap<Place, Kept, RandomState> = HashMap::default();
        let mut counters: HashMap<CounterName, Kept, RandomState> = HashMap::default();
        for minute in self.minutes.lock().iter().filter(|minute| (first..=number).contains(&minute.number)) {
            minute.rules.add_to(&mut rules);
            minute.counters.add_to(&mut counters);
        }
        let ranked = |key: Option<CounterName>, place: Place, kept: &Kept| Ranked {
            domain: place.domain,
            rule: place.rule,
            limiter: place.limiter,
            key,
            refused: kept.count,
            over: kept.over,
        };
        let rules = rules.into_iter().map(|(place, kept)| ranked(None, place, &kept)).collect();
        let counters = counters.into_iter().map(|(key, kept)| ranked(Some(key), kept.place.clone(), &kept)).collect();
        Tops { rules: sorted(rules), counters: sorted(counters) }
    }
}

impl Default for Top {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Hash + Eq + Clone> Sketch<K> {
    fn count<Q: Hash + Equivalent<K>>(&mut self, key: &Q, owned: impl FnOnce() -> (K, Place)) {
        if let Some(kept) = self.kept.get_mut(key) {
            kept.count += 1;
            return;
        }
        let mut before = 0;
        if self.kept.len() >= KEPT {
            let least = self.kept.iter().min_by_key(|(_, kept)| kept.count);
            if let Some((least, count)) = least.map(|(key, kept)| (key.clone(), kept.count)) {
                self.kept.remove(&least);
                before = count;
            }
        }
        let (key, place) = owned();
        self.kept.insert(key, Kept { count: before + 1, over: before, place });
    }

    fn add_to(&self, all: &mut HashMap<K, Kept, RandomState>) {
        for (key, kept) in &self.kept {
            let sum = all.entry(key.clone()).or_insert_with(|| Kept { place: kept.place.clone(), ..Kept::default() });
            sum.count += kept.count;
            sum.over += kept.over;
        }
    }
}

impl Found<'_> {
    fn place(&self) -> Place {
        let Found { domain, rule, limiter } = *self;
        Place { domain: domain.to_owned(), rule: rule.to_owned(), limiter: limiter.to_owned() }
    }
}

impl Equivalent<Place> for Found<'_> {
    fn equivalent(&self, place: &Place) -> bool {
        self.domain == place.domain && self.rule == place.rule && self.limiter == place.limiter
    }
}

impl<K> Default for Sketch<K> {
    fn default() -> Self {
        Self { kept: HashMap::default() }
    }
}

fn minute(now: Timestamp) -> u64 {
    now.micros() / 60_000_000
}

fn sorted(mut ranked: Vec<Ranked>) -> Vec<Ranked> {
    let order =
        |a: &Ranked, b: &Ranked| (b.refused, &a.domain, &a.rule, &a.key).cmp(&(a.refused, &b.domain, &b.rule, &b.key));
    ranked.sort_by(order);
    ranked
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOGIN: Found<'_> = Found { domain: "edge", rule: "login", limiter: "login_ip" };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_attacked_account_is_first_among_a_million_others() {
        let top = Top::new();
        let attacked = CounterName([u64::MAX; 2]);
        for number in 0..1_000_000 {
            top.count(LOGIN, Some(CounterName([number, 1])), at(5));
            if number % 50 == 0 {
                top.count(LOGIN, Some(attacked), at(5));
            }
        }
        let tops = top.of_last(0, at(59));
        assert_eq!(tops.counters.len(), KEPT);
        let found = tops.counters.iter().find(|ranked| ranked.key == Some(attacked)).expect("it is kept");
        assert!(found.refused - found.over <= 20_000 && found.refused >= 20_000, "{found:?}");
        assert_eq!(tops.rules.len(), 1);
        assert_eq!((tops.rules[0].refused, tops.rules[0].over), (1_020_000, 0));
    }

    #[test]
    fn minutes_add_up_and_are_forgotten_after_ten() {
        let top = Top::new();
        let counter = CounterName([1, 2]);
        for minute in 0..12 {
            top.count(LOGIN, Some(counter), at(minute * 60));
        }
        let refused = |before, now| top.of_last(before, at(now)).counters.first().map_or(0, |ranked| ranked.refused);
        assert_eq!(refused(0, 11 * 60), 1);
        assert_eq!(refused(4, 11 * 60), 5);
        assert_eq!(refused(99, 11 * 60), 10);
        assert_eq!(refused(9, 30 * 60), 0);
    }
}
