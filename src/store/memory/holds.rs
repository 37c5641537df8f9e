//! The holds of a shard's counters, beside the table: few counters have any (semantics 37).
//!
//! A counter stays in the table until its last hold is forgotten, and its holds go when it is removed. It is evicted by
//! what it has used: for that, the expiry of its state alone is kept here.

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use crate::limiter::{Hold, Holds};
use crate::plan::CounterName;

/// The estimated bytes of a counter here, without its holds.
const COUNTER_BYTES: usize = 128;

/// The holds of a shard.
#[derive(Debug, Default)]
pub(super) struct HoldTable {
    counters: HashMap<CounterName, CounterHolds, RandomState>,
    /// The heap bytes of all holds.
    heap_bytes: usize,
}

/// The holds of a counter.
#[derive(Debug)]
pub(super) struct CounterHolds {
    /// `None` while a plan decides on them.
    holds: Option<Box<Holds>>,
    /// Unix seconds at which the state of the counter expires, rounded up.
    pub(super) state_expires_secs: u32,
    /// Unix seconds at which the last hold is forgotten, rounded up.
    pub(super) forgotten_secs: u32,
}

impl HoldTable {
    /// Whether no counter has holds.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.counters.len() * COUNTER_BYTES + self.heap_bytes
    }

    /// Bytes that one more hold of a counter may add.
    pub(super) fn growth(&self, name: &CounterName) -> usize {
        match self.counters.get(name).and_then(|counter| counter.holds.as_ref()) {
            Some(holds) => holds.growth(),
            None => COUNTER_BYTES + Holds::default().growth(),
        }
    }

    /// The counter with this name, if it has holds.
    pub(super) fn get(&self, name: &CounterName) -> Option<&CounterHolds> {
        self.counters.get(name)
    }

    /// Records when the state of a counter expires. Returns when the counter does.
    pub(super) fn state_expires(&mut self, name: &CounterName, expires_secs: u32) -> u32 {
        match self.counters.get_mut(name) {
            Some(counter) => {
                counter.state_expires_secs = expires_secs;
                expires_secs.max(counter.forgotten_secs)
            }
            None => expires_secs,
        }
    }

    /// Takes the holds of a counter out. [`HoldTable::put`] follows under the same lock.
    pub(super) fn take(&mut self, name: &CounterName) -> Option<Box<Holds>> {
        let holds = self.counters.get_mut(name)?.holds.take()?;
        self.heap_bytes -= holds.heap_bytes();
        Some(holds)
    }

    /// Puts the holds of a counter back, of which the state expires at `expires_secs` if it has none yet. Returns when the
    /// counter does.
    pub(super) fn put(&mut self, name: &CounterName, holds: Box<Holds>, expires_secs: u32) -> u32 {
        if holds.is_empty() {
            return self.counters.remove(name).map_or(expires_secs, |counter| counter.state_expires_secs);
        }
        self.heap_bytes += holds.heap_bytes();
        let forgotten = holds.last_forgotten().micros().div_ceil(1_000_000);
        let forgotten_secs = u32::try_from(forgotten).unwrap_or(u32::MAX);
        let new = || CounterHolds { holds: None, state_expires_secs: expires_secs, forgotten_secs };
        let counter = self.counters.entry(*name).or_insert_with(new);
        (counter.holds, counter.forgotten_secs) = (Some(holds), forgotten_secs);
        counter.state_expires_secs.max(forgotten_secs)
    }

    /// Drops the holds of a removed counter.
    pub(super) fn forget(&mut self, name: &CounterName) {
        if let Some(CounterHolds { holds: Some(holds), .. }) = self.counters.remove(name) {
            self.heap_bytes -= holds.heap_bytes();
        }
    }

    /// The number of holds that have not ended, as far as known.
    pub(super) fn held(&self) -> usize {
        self.counters.values().flat_map(CounterHolds::iter).filter(|hold| !hold.ended).count()
    }
}

impl CounterHolds {
    /// The holds.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter().flat_map(|holds| holds.iter())
    }
}
