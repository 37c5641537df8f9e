//! Descriptors that rules of a domain miss: what is kept of them until the next report.
//!
//! Most descriptors that no rule matches are meant to pass, such as a request for a path that no rule limits. Two kinds
//! are mistakes: a descriptor with a misspelt key, also where some rule matches it, and a domain in which nothing
//! matches at all. A decision only counts, and copies the first descriptor with a set of keys. The copies are looked at
//! off its path.
//!
//! ```text
//!   no rule matches, or a check lacks an entry -> each descriptor is counted by its set of keys
//!   rules match, and nothing shows a mistake   -> those of one request between two reports
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use super::mistakes::{Mistake, Mistakes};
use super::sample::Sample;
use crate::clock::Timestamp;
use crate::descriptor::Descriptor;
use crate::rules::Rules;

/// The most sets of keys that are counted for a domain in a minute.
const MAX_KEY_SETS: usize = 16;

/// The most of them that are kept for descriptors that a rule matches, so that these leave places to the others.
const MAX_MATCHED_SETS: usize = 8;

/// The time after which sets of keys are forgotten, and for which nothing has to match before that is a mistake.
const MINUTE: Duration = Duration::from_secs(60);

/// What a domain keeps.
#[derive(Debug, Default)]
pub(super) struct Unmatched {
    /// Whether a rule has matched since the rules came into use.
    matched: AtomicBool,
    /// Whether a request that a rule matches was noted since the last report.
    noted: AtomicBool,
    /// Made with the first descriptor that is counted.
    kept: OnceLock<Box<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    key_sets: KeySets,
    /// Descriptors while no rule has matched.
    count: AtomicU64,
    /// When a report first saw one, in microseconds.
    since: AtomicU64,
    /// The first of them, or what is said about it.
    first: Mutex<First>,
    has_first: AtomicBool,
}

#[derive(Debug, Default)]
enum First {
    #[default]
    None,
    Sample(Sample),
    Words(String),
}

/// Sets of keys with their descriptors. Filled from the front, and emptied as a whole.
#[derive(Debug, Default)]
struct KeySets {
    /// The hash of each set, or zero, and its descriptors since the last report.
    counts: [(AtomicU64, AtomicU64); MAX_KEY_SETS],
    sets: Mutex<Vec<KeySet>>,
    hasher: RandomState,
    /// When they were last emptied, in microseconds.
    emptied: AtomicU64,
}

#[derive(Clone, Debug)]
enum KeySet {
    Sample(Sample),
    /// The keys fit the rules.
    Fits,
    /// Words about a mistake.
    Mistake(String),
}

impl Unmatched {
    /// Whether to note the next request that a rule matches.
    #[inline]
    pub(super) fn notes_matches(&self) -> bool {
        !self.noted.load(Ordering::Relaxed)
    }

    /// Notes that a rule matched.
    pub(super) fn note_match(&self) {
        for flag in [&self.matched, &self.noted] {
            // Reading first keeps the cache line shared.
            if !flag.load(Ordering::Relaxed) {
                flag.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Counts a descriptor that a rule matches and whose keys the gateway chose.
    pub(super) fn count_matched(&self, descriptor: &Descriptor<'_>) {
        self.kept.get_or_init(Box::default).key_sets.count(descriptor, MAX_MATCHED_SETS);
    }

    /// Counts a descriptor that no rule matches. `keys_of_gateway` says whether the gateway chose its keys.
    pub(super) fn count(&self, descriptor: &Descriptor<'_>, keys_of_gateway: bool) {
        let matched = self.matched.load(Ordering::Relaxed);
        if matched && !keys_of_gateway {
            return;
        }
        let kept = self.kept.get_or_init(Box::default);
        if keys_of_gateway {
            kept.key_sets.count(descriptor, MAX_KEY_SETS);
        }
        if !matched {
            kept.count.fetch_add(1, Ordering::Relaxed);
            if !kept.has_first.swap(true, Ordering::Relaxed) {
                *kept.first.lock() = First::Sample(Sample::of(descriptor));
            }
        }
    }

    /// Adds what was counted to the mistakes, where it is one. `domain` is the domain's index in the rules.
    pub(super) fn report(&self, domain: usize, rules: &Rules, mistakes: &Mistakes, now: Timestamp) {
        self.noted.store(false, Ordering::Relaxed);
        let Some(kept) = self.kept.get() else { return };
        kept.key_sets.report(domain, rules, mistakes, now);
        let matched = || self.matched.load(Ordering::Relaxed);
        let count = kept.count.load(Ordering::Relaxed);
        if matched() || count == 0 {
            *kept.first.lock() = First::None;
            return;
        }
        let since = match kept.since.load(Ordering::Relaxed) {
            0 => now.micros(),
            // The clock was set back.
            since => since.min(now.micros()),
        };
        kept.since.store(since, Ordering::Relaxed);
        if now.micros() - since < MINUTE.as_micros() as u64 {
            return;
        }
        let first = std::mem::take(&mut *kept.first.lock());
        let words = match first {
            First::None => return,
            First::Words(words) => words,
            First::Sample(sample) => match sample.with(|descriptor| rules.miss(domain, descriptor)) {
                Some(miss) if !miss.matched => miss.words,
                // A rule in shadow mode matches it.
                _ => return self.note_match(),
            },
        };
        mistakes.add(Mistake::NothingMatched, kept.count.swap(0, Ordering::Relaxed), &words);
        *kept.first.lock() = First::Words(words);
    }
}

impl KeySets {
    /// Counts a descriptor by its keys. A new set of keys takes one of the first `places`.
    fn count(&self, descriptor: &Descriptor<'_>, places: usize) {
        let hash = self.hash(descriptor);
        let mut free = None;
        for (place, (known, count)) in self.counts.iter().enumerate() {
            match known.load(Ordering::Relaxed) {
                0 => {
                    free = Some(place);
                    break;
                }
                known if known == hash => {
                    count.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                _ => {}
            }
        }
        // Sets beyond the last place are not counted. A key that is cut, or left out, would seem misspelt, or missing.
        if free.is_none_or(|free| free >= places) || !Sample::has_keys_of(descriptor) {
            return;
        }
        let mut sets = self.sets.lock();
        // Another request may have added it.
        let known = |(known, _): &(AtomicU64, AtomicU64)| [0, hash].contains(&known.load(Ordering::Relaxed));
        let Some((place, (known, count))) = self.counts[..places].iter().enumerate().find(|(_, place)| known(place))
        else {
            return;
        };
        count.fetch_add(1, Ordering::Relaxed);
        if place == sets.len() {
            sets.push(KeySet::Sample(Sample::of(descriptor)));
            known.store(hash, Ordering::Relaxed);
        }
    }

    /// A hash of the keys, in any order. Never zero.
    fn hash(&self, descriptor: &Descriptor<'_>) -> u64 {
        use std::hash::BuildHasher;
        let keys = descriptor.entries.iter().map(|entry| self.hasher.hash_one(entry.key));
        keys.fold(0, u64::wrapping_add).max(1)
    }

    fn report(&self, domain: usize, rules: &Rules, mistakes: &Mistakes, now: Timestamp) {
        // Only reports change or remove a set, so places stay the same while nothing is locked.
        let sets = self.sets.lock().clone();
        for (place, set) in sets.into_iter().enumerate() {
            let looked_at = match set {
                KeySet::Sample(sample) => {
                    let miss = sample.with(|descriptor| rules.miss(domain, descriptor));
                    let looked_at =
                        miss.filter(|miss| miss.misspelt).map_or(KeySet::Fits, |miss| KeySet::Mistake(miss.words));
                    self.sets.lock()[place] = looked_at.clone();
                    looked_at
                }
                looked_at => looked_at,
            };
            let count = self.counts[place].1.swap(0, Ordering::Relaxed);
            if let (KeySet::Mistake(words), 1..) = (looked_at, count) {
                mistakes.add(Mistake::UnknownKeys, count, &words);
            }
        }
        let emptied = match self.emptied.load(Ordering::Relaxed) {
            0 => now.micros(),
            emptied => emptied,
        };
        self.emptied.store(emptied, Ordering::Relaxed);
        if now.micros().abs_diff(emptied) >= MINUTE.as_micros() as u64 {
            let mut sets = self.sets.lock();
            // One that came since the loop above waits for the next report.
            if !sets.iter().any(|set| matches!(set, KeySet::Sample(_))) {
                self.emptied.store(now.micros(), Ordering::Relaxed);
                sets.clear();
                self.counts.iter().for_each(|(known, _)| known.store(0, Ordering::Relaxed));
            }
        }
    }
}
