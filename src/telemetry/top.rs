//! The rules and counters that refused most in the last minutes, in bounded memory.
//!
//! Each minute has its own sketches by the space-saving algorithm (Metwally, Agrawal and El Abbadi, "Efficient
//! computation of frequent and top-k elements in data streams", 2005). A sketch holds [`SKETCH_CAPACITY`] names. A new
//! name replaces the one with the lowest count and inherits that count. So a count is never too low, and too high by at
//! most `over`; a name with more than one in [`SKETCH_CAPACITY`] of a minute's refusals is always in the sketch.

use std::hash::Hash;

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::decision::{Decision, Refusal};
use crate::plan::CounterName;

/// Minutes retained, including the current one.
pub(crate) const RETAINED_MINUTES: usize = 10;

/// The most rules, and the most counters, in the sketches of one minute.
const SKETCH_CAPACITY: usize = 128;

/// Counts refusals by rule and by counter, for the last minutes.
#[derive(Debug)]
pub struct Top {
    minutes: Mutex<[MinuteSketches; RETAINED_MINUTES]>,
}

/// The rules and counters that refused most, highest count first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopRefusals {
    /// By rule.
    pub rules: Vec<TopEntry>,
    /// By counter.
    pub counters: Vec<TopEntry>,
}

/// One rule, or one counter with the rule that applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopEntry {
    /// The domain.
    pub domain: String,
    /// The rule that refused; empty if none did.
    pub rule: String,
    /// The limiter that refused; empty if none did.
    pub limiter: String,
    /// The counter's hashed name; none for a rule.
    pub key: Option<CounterName>,
    /// Refusals.
    pub refused: u64,
    /// The most by which `refused` may be too high.
    pub over: u64,
}

#[derive(Debug, Default)]
struct MinuteSketches {
    number: u64,
    rules: SpaceSavingSketch<RefusalSource>,
    counters: SpaceSavingSketch<CounterName>,
}

/// The rule and limiter that refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct RefusalSource {
    domain: String,
    rule: String,
    limiter: String,
}

/// A borrowed [`RefusalSource`], for lookups without allocation.
#[derive(Clone, Copy, Hash)]
struct RefusalSourceRef<'a> {
    domain: &'a str,
    rule: &'a str,
    limiter: &'a str,
}

#[derive(Debug)]
struct SpaceSavingSketch<K> {
    entries: HashMap<K, SketchEntry, RandomState>,
}

#[derive(Clone, Debug, Default)]
struct SketchEntry {
    count: u64,
    over: u64,
    source: RefusalSource,
}

impl Top {
    /// No refusals yet.
    pub fn new() -> Self {
        Self { minutes: Mutex::new(std::array::from_fn(|_| MinuteSketches::default())) }
    }

    /// Counts a refusal.
    pub fn record(&self, decision: &Decision, refusal: &Refusal<'_>, now: Timestamp) {
        let source = RefusalSourceRef {
            domain: decision.domain().unwrap_or_default(),
            rule: refusal.rule.unwrap_or_default(),
            limiter: refusal.limiter.unwrap_or_default(),
        };
        self.count(source, decision.counter(), now);
    }

    fn count(&self, source: RefusalSourceRef<'_>, counter: Option<CounterName>, now: Timestamp) {
        let number = minute(now);
        let mut minutes = self.minutes.lock();
        let minute = &mut minutes[number as usize % RETAINED_MINUTES];
        if minute.number != number {
            *minute = MinuteSketches { number, ..MinuteSketches::default() };
        }
        if let Some(counter) = counter {
            minute.counters.count(&counter, || (counter, source.to_owned()));
        }
        minute.rules.count(&source, || (source.to_owned(), RefusalSource::default()));
    }

    /// The refusals of the current minute and of up to nine minutes `before` it.
    pub fn of_last(&self, before: usize, now: Timestamp) -> TopRefusals {
        let number = minute(now);
        let first = number.saturating_sub(before.min(RETAINED_MINUTES - 1) as u64);
        let mut rules: HashMap<RefusalSource, SketchEntry, RandomState> = HashMap::default();
        let mut counters: HashMap<CounterName, SketchEntry, RandomState> = HashMap::default();
        for minute in self.minutes.lock().iter().filter(|minute| (first..=number).contains(&minute.number)) {
            minute.rules.add_to(&mut rules);
            minute.counters.add_to(&mut counters);
        }
        let ranked = |key: Option<CounterName>, source: RefusalSource, entry: &SketchEntry| TopEntry {
            domain: source.domain,
            rule: source.rule,
            limiter: source.limiter,
            key,
            refused: entry.count,
            over: entry.over,
        };
        let rules = rules.into_iter().map(|(source, entry)| ranked(None, source, &entry)).collect();
        let counters =
            counters.into_iter().map(|(key, entry)| ranked(Some(key), entry.source.clone(), &entry)).collect();
        TopRefusals { rules: sorted(rules), counters: sorted(counters) }
    }
}

impl Default for Top {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Hash + Eq + Clone> SpaceSavingSketch<K> {
    fn count<Q: Hash + Equivalent<K>>(&mut self, key: &Q, owned: impl FnOnce() -> (K, RefusalSource)) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.count += 1;
            return;
        }
        let mut inherited = 0;
        if self.entries.len() >= SKETCH_CAPACITY {
            let least = self.entries.iter().min_by_key(|(_, entry)| entry.count);
            if let Some((least, count)) = least.map(|(key, entry)| (key.clone(), entry.count)) {
                self.entries.remove(&least);
                inherited = count;
            }
        }
        let (key, source) = owned();
        self.entries.insert(key, SketchEntry { count: inherited + 1, over: inherited, source });
    }

    fn add_to(&self, all: &mut HashMap<K, SketchEntry, RandomState>) {
        for (key, entry) in &self.entries {
            let sum = all
                .entry(key.clone())
                .or_insert_with(|| SketchEntry { source: entry.source.clone(), ..SketchEntry::default() });
            sum.count += entry.count;
            sum.over += entry.over;
        }
    }
}

impl RefusalSourceRef<'_> {
    fn to_owned(self) -> RefusalSource {
        let RefusalSourceRef { domain, rule, limiter } = self;
        RefusalSource { domain: domain.to_owned(), rule: rule.to_owned(), limiter: limiter.to_owned() }
    }
}

impl Equivalent<RefusalSource> for RefusalSourceRef<'_> {
    fn equivalent(&self, source: &RefusalSource) -> bool {
        self.domain == source.domain && self.rule == source.rule && self.limiter == source.limiter
    }
}

impl<K> Default for SpaceSavingSketch<K> {
    fn default() -> Self {
        Self { entries: HashMap::default() }
    }
}

fn minute(now: Timestamp) -> u64 {
    now.micros() / 60_000_000
}

fn sorted(mut ranked: Vec<TopEntry>) -> Vec<TopEntry> {
    let order = |a: &TopEntry, b: &TopEntry| {
        (b.refused, &a.domain, &a.rule, &a.key).cmp(&(a.refused, &b.domain, &b.rule, &b.key))
    };
    ranked.sort_by(order);
    ranked
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LOGIN: RefusalSourceRef<'_> = RefusalSourceRef { domain: "edge", rule: "login", limiter: "login_ip" };

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
        assert_eq!(tops.counters.len(), SKETCH_CAPACITY);
        let attacked_entry =
            tops.counters.iter().find(|ranked| ranked.key == Some(attacked)).expect("it is in the sketch");
        assert!(
            attacked_entry.refused - attacked_entry.over <= 20_000 && attacked_entry.refused >= 20_000,
            "{attacked_entry:?}"
        );
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
