//! The table of one shard: counters by name, packed, bounded in bytes and in number.
//!
//! ```text
//!   index: hash -> place (5 bytes a bucket)        slots: 48 bytes each, dense
//!                                                  | name 16 | words 24 | until 4 | share 1 | kind 1 |
//! ```
//!
//! Slots are dense, so that a victim can be drawn at random and a sweep is a walk. A bucket or a window's count is
//! in its words; a log of grants or a set of leases is in a slab and the first word is its place there.

use std::sync::mpsc::Sender;

use hashbrown::HashTable;
use slab::Slab;

use super::snapshot::{Kept, Record};
use crate::clock::Timestamp;
use crate::limiter::{BucketLevel, CounterName, CounterPair, FixedCount, Grants, Leases, Outcome, State};

/// How many slots are drawn when one has to go.
const SAMPLE: usize = 16;

/// The share of a counter that has nothing left. Such a counter is never evicted: forgetting it would let its client
/// in again.
const EXHAUSTED: u8 = u8::MAX;

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Slots {
    index: HashTable<u32>,
    slots: Vec<Slot>,
    grants: Slab<Grants>,
    leases: Slab<Leases>,
    /// Bytes that logs and leases hold on the heap.
    heap: usize,
    bounds: SlotBounds,
    draws: u64,
    pub(super) evictions: u64,
    /// Where this shard's counters go before they next change: a snapshot has been cut and not yet copied them.
    pub(super) cut: Option<Sender<Vec<u8>>>,
}

/// What a shard may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotBounds {
    pub(super) bytes: usize,
    pub(super) keys: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    name: CounterName,
    words: [u64; 3],
    /// Unix seconds from which on nothing is counted, rounded up.
    until: u32,
    /// How much of its limit is used: 0 to 254, or [`EXHAUSTED`].
    share: u8,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bucket,
    Pair,
    Fixed,
    Grants,
    Leases,
}

impl Slots {
    pub(super) fn new(bounds: SlotBounds, seed: u64) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            grants: Slab::new(),
            leases: Slab::new(),
            heap: 0,
            bounds,
            draws: seed | 1,
            evictions: 0,
            cut: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held, without the allocator's own.
    pub(super) fn bytes(&self) -> usize {
        self.index.allocation_size()
            + self.slots.capacity() * size_of::<Slot>()
            + self.grants.capacity() * size_of::<Grants>()
            + self.leases.capacity() * size_of::<Leases>()
            + self.heap
    }

    /// Leases held, expired ones among them until they are swept.
    pub(super) fn held_leases(&self) -> usize {
        self.leases.iter().map(|(_, leases)| leases.iter().count()).sum()
    }

    /// Takes a counter's state out to be decided; [`Slots::put`] or [`Slots::put_back`] follows under the same lock.
    pub(super) fn take(&mut self, name: &CounterName) -> State {
        let Some(place) = self.find(name) else { return State::Empty };
        let Slot { words: [a, b, c], kind, .. } = self.slots[place];
        match kind {
            Kind::Bucket => State::Bucket(BucketLevel { level: a, at: Timestamp::from_micros(b), unit: c }),
            Kind::Pair => {
                State::Pair(CounterPair { start: Timestamp::from_micros(a), current: low(b), previous: low(b >> 32) })
            }
            Kind::Fixed => State::Fixed(FixedCount {
                start: Timestamp::from_micros(a),
                end: Timestamp::from_micros(b),
                count: low(c),
            }),
            Kind::Grants => {
                let grants = std::mem::take(&mut self.grants[a as usize]);
                self.heap -= grants.heap_bytes();
                State::Grants(grants)
            }
            Kind::Leases => {
                let leases = std::mem::take(&mut self.leases[a as usize]);
                self.heap -= leases.heap_bytes();
                State::Leases(leases)
            }
        }
    }

    /// Writes a state that changed. Room was made before.
    pub(super) fn put(&mut self, name: &CounterName, state: State, outcome: &Outcome, now: Timestamp) {
        let until = until(now, outcome.reset);
        let share = share(outcome);
        if let Some(place) = self.find(name) {
            let first = self.slots[place].words[0];
            let (kind, words) = self.pack(state, Some(first));
            self.slots[place] = Slot { name: *name, words, until, share, kind };
            return;
        }
        let (kind, words) = self.pack(state, None);
        self.insert(Slot { name: *name, words, until, share, kind });
    }

    fn insert(&mut self, slot: Slot) {
        let place = self.slots.len() as u32;
        self.slots.push(slot);
        let slots = &self.slots;
        self.index.insert_unique(hash(&slot.name), place, |&place| hash(&slots[place as usize].name));
    }

    /// Returns a state that did not change.
    pub(super) fn put_back(&mut self, name: &CounterName, state: State) {
        let on_heap = matches!(state, State::Grants(_) | State::Leases(_));
        if let (true, Some(place)) = (on_heap, self.find(name)) {
            let first = self.slots[place].words[0];
            self.pack(state, Some(first));
        }
    }

    /// Makes room for `slots` more counters and `heap` more bytes. Says whether there is.
    ///
    /// Forgotten counters go first, then those with the smallest share of their limit used, of a few drawn at random.
    /// Counters that have nothing left and leases that are held never go (semantics 30). What `keep` names stays.
    pub(super) fn make_room(&mut self, slots: usize, heap: usize, keep: &[CounterName], now: Timestamp) -> bool {
        loop {
            let keys_fit = self.slots.len() + slots <= self.bounds.keys;
            if keys_fit && self.bytes_fit(slots, heap) {
                return true;
            }
            let Some(place) = self.victim(keep, now) else { return false };
            self.remove(place);
            self.evictions += 1;
            self.trade(slots, heap);
        }
    }

    /// Whether so much more fits into the bytes; grows the table when that is what it takes.
    fn bytes_fit(&mut self, slots: usize, heap: usize) -> bool {
        let left = self.bounds.bytes.checked_sub(self.bytes() + heap);
        let missing = (self.slots.len() + slots).saturating_sub(self.slots.capacity());
        if missing == 0 {
            return heap == 0 || left.is_some();
        }
        let index = match self.slots.len() + slots > self.index.capacity() {
            true => self.index.allocation_size().max(64),
            false => 0,
        };
        // Doubling would overshoot the bound by half of it; an eighth keeps the table dense near its bound.
        let affordable = left.unwrap_or(0).saturating_sub(index) / size_of::<Slot>();
        let more = affordable.min((self.slots.len() / 8).max(8));
        if more < missing {
            return false;
        }
        self.slots.reserve_exact(self.slots.capacity() - self.slots.len() + more);
        true
    }

    /// Gives the memory of free slots back once they cover what the heap is short of.
    fn trade(&mut self, slots: usize, heap: usize) {
        let short = (self.bytes() + heap).saturating_sub(self.bounds.bytes);
        let free = self.slots.capacity().saturating_sub(self.slots.len() + slots) * size_of::<Slot>();
        if heap > 0 && short > 0 && free >= short {
            self.slots.shrink_to(self.slots.len() + slots);
        }
    }

    /// Forgets what no longer counts. Says how many went.
    pub(super) fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.slots.len();
        for place in (0..before).rev() {
            if self.slots[place].until <= seconds(now) {
                self.remove(place);
            }
        }
        if self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
            let slots = &self.slots;
            self.index.shrink_to(slots.len() * 2, |&place| hash(&slots[place as usize].name));
            self.grants.shrink_to_fit();
            self.leases.shrink_to_fit();
        }
        before - self.slots.len()
    }

    /// Copies the counters to a snapshot that was cut, if one is waiting for them.
    pub(super) fn copy_to_cut(&mut self) {
        if let Some(cut) = self.cut.take() {
            let mut bytes = Vec::with_capacity(self.slots.len() * 46 + self.heap);
            for slot in &self.slots {
                let kept = match slot.kind {
                    Kind::Grants => Kept::Grants(self.grants[slot.words[0] as usize].clone()),
                    Kind::Leases => Kept::Leases(self.leases[slot.words[0] as usize].clone()),
                    Kind::Bucket | Kind::Pair | Kind::Fixed => Kept::Words(slot.kind as u8, slot.words),
                };
                Record { name: slot.name, until: slot.until, share: slot.share, kept }.write(&mut bytes);
            }
            // The receiver is gone when the snapshot was given up.
            let _ = cut.send(bytes);
        }
    }

    /// Takes a counter from a snapshot. Says whether there was room and its kind is known.
    pub(super) fn restore(&mut self, record: Record, now: Timestamp) -> bool {
        if record.until <= seconds(now) {
            return true;
        }
        let (kind, words, heap) = match record.kept {
            Kept::Words(kind, words) => match [Kind::Bucket, Kind::Pair, Kind::Fixed].get(usize::from(kind)) {
                Some(kind) => (*kind, words, 0),
                None => return false,
            },
            Kept::Grants(grants) => {
                let heap = grants.heap_bytes();
                (Kind::Grants, [self.grants.insert(grants) as u64, 0, 0], heap)
            }
            Kept::Leases(leases) => {
                let heap = leases.heap_bytes();
                (Kind::Leases, [self.leases.insert(leases) as u64, 0, 0], heap)
            }
        };
        self.heap += heap;
        let fits = self.find(&record.name).is_none() && self.make_room(1, 0, &[], now);
        if fits {
            let slot = Slot { name: record.name, words, until: record.until, share: record.share, kind };
            self.insert(slot);
        }
        fits
    }

    /// Whether a counter is held.
    pub(super) fn holds(&self, name: &CounterName) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &CounterName) -> Option<usize> {
        let slots = &self.slots;
        let place = self.index.find(hash(name), |&place| slots[place as usize].name == *name)?;
        Some(*place as usize)
    }

    /// The words of a state; a state on the heap goes to the place it was taken from.
    fn pack(&mut self, state: State, taken_from: Option<u64>) -> (Kind, [u64; 3]) {
        match state {
            State::Bucket(BucketLevel { level, at, unit }) => (Kind::Bucket, [level, at.micros(), unit]),
            State::Pair(CounterPair { start, current, previous }) => {
                (Kind::Pair, [start.micros(), u64::from(current) | u64::from(previous) << 32, 0])
            }
            State::Fixed(FixedCount { start, end, count }) => {
                (Kind::Fixed, [start.micros(), end.micros(), u64::from(count)])
            }
            State::Grants(grants) => {
                self.heap += grants.heap_bytes();
                (Kind::Grants, [keep(&mut self.grants, taken_from, grants), 0, 0])
            }
            State::Leases(leases) => {
                self.heap += leases.heap_bytes();
                (Kind::Leases, [keep(&mut self.leases, taken_from, leases), 0, 0])
            }
            // advance() makes a state of the limit's kind before it changes anything.
            State::Empty => (Kind::Bucket, [0; 3]),
        }
    }

    fn remove(&mut self, place: usize) {
        let Slot { name, words: [first, ..], kind, .. } = self.slots[place];
        match kind {
            Kind::Bucket | Kind::Pair | Kind::Fixed => {}
            Kind::Grants => self.heap -= self.grants.remove(first as usize).heap_bytes(),
            Kind::Leases => self.heap -= self.leases.remove(first as usize).heap_bytes(),
        }
        if let Ok(entry) = self.index.find_entry(hash(&name), |&known| known as usize == place) {
            entry.remove();
        }
        self.slots.swap_remove(place);
        if let Some(moved) = self.slots.get(place) {
            let (hash, old) = (hash(&moved.name), self.slots.len() as u32);
            if let Some(known) = self.index.find_mut(hash, |&known| known == old) {
                *known = place as u32;
            }
        }
    }

    fn victim(&mut self, keep: &[CounterName], now: Timestamp) -> Option<usize> {
        let mut least: Option<(u8, usize)> = None;
        // A second, longer draw before giving up: a table with few that may go still gives them up.
        for drawn in 0..SAMPLE * 16 {
            if drawn >= SAMPLE && least.is_some() {
                break;
            }
            let place = self.draw()?;
            let slot = &self.slots[place];
            if keep.contains(&slot.name) {
                continue;
            }
            if slot.until <= seconds(now) {
                return Some(place);
            }
            let evictable = slot.kind != Kind::Leases && slot.share != EXHAUSTED;
            if evictable && least.is_none_or(|(share, _)| slot.share < share) {
                least = Some((slot.share, place));
            }
        }
        least.map(|(_, place)| place)
    }

    /// A place at random (xorshift64).
    fn draw(&mut self) -> Option<usize> {
        self.draws ^= self.draws << 13;
        self.draws ^= self.draws >> 7;
        self.draws ^= self.draws << 17;
        (self.draws as usize).checked_rem(self.slots.len())
    }
}

fn keep<T>(slab: &mut Slab<T>, taken_from: Option<u64>, value: T) -> u64 {
    match taken_from {
        Some(place) => {
            slab[place as usize] = value;
            place
        }
        None => slab.insert(value) as u64,
    }
}

/// A counter's name is a hash already.
fn hash(name: &CounterName) -> u64 {
    name.0[0]
}

fn low(word: u64) -> u32 {
    word as u32
}

fn seconds(now: Timestamp) -> u32 {
    u32::try_from(now.micros() / 1_000_000).unwrap_or(u32::MAX)
}

fn until(now: Timestamp, reset: u64) -> u32 {
    u32::try_from(now.plus(reset).micros().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn share(outcome: &Outcome) -> u8 {
    match (outcome.remaining, u64::from(outcome.limit)) {
        (0, _) | (_, 0) => EXHAUSTED,
        (remaining, limit) => {
            let used = limit.saturating_sub(u64::from(remaining));
            u8::try_from(used * 254 / limit).unwrap_or(254)
        }
    }
}
