//! The table of one shard: counters by name, packed, bounded in bytes and in number.
//!
//! ```text
//!   slots: 48 bytes each, open addressing       | name 16 | words 24 | until 4 | share 1 | kind 1 |
//!
//!            home         place
//!   [ ][a][b] [c] [c'][c"][x] [ ][ ]            what does not fit at home is further on, with no gap between
//! ```
//!
//! A counter's slot is in the table itself and its home follows from its name, so that finding one costs one miss of
//! the cache, not one for each of a hash, a place and a slot. Removing moves the rest of a run back: there are no
//! tombstones, and a table near its bound works on without being built anew. A bucket or a window's count is in its
//! slot's words; a log of grants or a set of leases is in a slab and the first word is its place there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use slab::Slab;

use super::snapshot::{Kept, Record};
use crate::clock::Timestamp;
use crate::limiter::{
    BucketLevel, Check, CounterName, CounterPair, FixedCount, Grants, Leases, Limit, Outcome, SlidingWindow, State,
};

/// Of so many slots as many as [`FULL`] are taken at most: runs stay short, and a counter weighs 59 bytes.
const PARTS: usize = 16;
const FULL: usize = 13;

/// A table grows and shrinks by so large a part of it at least: all of it is gone through each time, and that would be
/// for nearly every new counter of a table at its bound that holds counters of several sizes.
const STEPS: usize = 128;

/// How many counters are looked at when one has to go: neighbours, from a random place on. Where a counter is says nothing
/// of how it is used, since its name is a keyed hash, and neighbours are on the way from memory together.
const SAMPLE: usize = 16;

/// How many more are looked at when none of those may go lightly.
const PATIENCE: usize = 16 * SAMPLE;

/// The share of a counter that has nothing left. Such a counter goes last: forgetting it lets its client in again.
const EXHAUSTED: u8 = u8::MAX;

/// What grows takes so large a part more than it needs. A table that has shrunk by more than that is copied to a new one:
/// memory once written to goes back to the system in no other way.
const SPARE: usize = 8;

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Slots {
    /// Grown and shrunk where it is: what it may come to is reserved when the first counter comes, as addresses that
    /// take no memory until they are written to. A table that moves is freed by the allocator in one piece, which takes
    /// the system milliseconds while the lock is held, and is resident twice until then.
    slots: Vec<Slot>,
    /// The most slots since it was made: so many may be resident.
    touched: usize,
    /// How many of them are taken.
    taken: usize,
    grants: Side<Grants>,
    leases: Side<Leases>,
    /// Bytes that logs and leases hold on the heap.
    heap: usize,
    /// Bytes that were taken from the pool, used or not yet.
    allowance: usize,
    /// What the shards of the store share.
    pool: Arc<Pool>,
    /// The most counters.
    max_keys: usize,
    draws: u64,
    pub(super) evictions: u64,
    /// Leases that nobody gave back before they expired, and that were forgotten since.
    pub(super) expired_leases: u64,
    /// Where this shard's counters go before they next change: a snapshot was cut and has not copied them yet.
    pub(super) cut: Option<Sender<Vec<u8>>>,
}

/// The bytes of a store that no shard has taken yet. A store is bounded as a whole, so that one large log or set of
/// leases finds room wherever its shard is.
#[derive(Debug)]
pub(super) struct Pool {
    whole: usize,
    /// What each shard has when all have the same.
    share: usize,
    free: AtomicUsize,
}

impl Pool {
    /// A pool with nothing taken, for so many shards.
    pub(super) fn new(bytes: usize, shards: usize) -> Self {
        Self { whole: bytes, share: bytes / shards, free: AtomicUsize::new(bytes) }
    }

    /// Takes so many bytes, or as many as there are.
    fn take(&self, wanted: usize) -> usize {
        let taken = |free: usize| Some(free - free.min(wanted));
        let free = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).unwrap_or(0);
        free.min(wanted)
    }

    fn free(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    fn give(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Which bytes a table may grow by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Widen {
    /// Those that no shard has taken yet.
    FromPool,
    /// Its own as well, where no counter can go.
    FromAny,
}

/// What the slots of a kind keep beside the table.
#[derive(Debug)]
struct Side<T> {
    slab: Slab<T>,
    /// The entries that bytes were taken for. More are reserved, as places of the table are.
    room: usize,
}

impl<T> Default for Side<T> {
    fn default() -> Self {
        Self { slab: Slab::new(), room: 0 }
    }
}

impl<T> Side<T> {
    fn bytes(&self) -> usize {
        self.room * size_of::<T>()
    }

    /// By how many entries it has to grow for so many more.
    fn missing(&self, more: usize) -> usize {
        match (self.slab.len() + more).saturating_sub(self.room) {
            0 => 0,
            entries => entries.max(self.room / STEPS),
        }
    }

    /// Grows by what is missing and, as far as `left` bytes allow, by some more.
    fn grow(&mut self, missing: usize, left: &mut usize, reserved: usize) {
        if missing == 0 {
            return;
        }
        let spare = (self.room / SPARE).max(4).min(*left / size_of::<T>());
        *left -= spare * size_of::<T>();
        self.room += missing + spare;
        self.slab.reserve_exact(reserved.max(self.room) - self.slab.len());
    }

    /// Gives back what is free at the end.
    fn shrink(&mut self) {
        self.slab.shrink_to_fit();
        self.room = self.room.min(self.slab.capacity());
    }

    /// Puts a value where one was taken from, or at a place of its own.
    fn keep(&mut self, taken_from: Option<u64>, value: T) -> u64 {
        match taken_from {
            Some(place) => {
                self.slab[place as usize] = value;
                place
            }
            None => self.slab.insert(value) as u64,
        }
    }
}

/// What checks may add to a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Growth {
    /// Counters.
    counters: usize,
    /// Of these, how many keep a log.
    logs: usize,
    /// Of these, how many keep leases.
    leases: usize,
    /// Bytes that logs and sets of leases grow by.
    heap: usize,
}

impl Growth {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            counters: self.counters + other.counters,
            logs: self.logs + other.logs,
            leases: self.leases + other.leases,
            heap: self.heap + other.heap,
        }
    }
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

const VACANT: Slot = Slot { name: CounterName([0; 2]), words: [0; 3], until: 0, share: 0, kind: Kind::Vacant };

impl Slot {
    /// How much of the limit is used at `now`: a bucket drains evenly from its last charge to when nothing counts.
    fn share_at(&self, now: Timestamp) -> u8 {
        if self.kind != Kind::Bucket {
            return self.share;
        }
        let end = Timestamp::from_secs(u64::from(self.until));
        let whole = (end - Timestamp::from_micros(self.words[1])).max(1);
        let left = (end - now).min(whole);
        u8::try_from(u128::from(self.share) * u128::from(left) / u128::from(whole)).unwrap_or(self.share)
    }
}

/// Where a counter is, until a slot of its table is removed or the table grows.
pub(super) type Place = usize;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The slot is free.
    Vacant,
    Bucket,
    Pair,
    Fixed,
    Grants,
    Leases,
}

impl Slots {
    pub(super) fn new(pool: Arc<Pool>, max_keys: usize, seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            touched: 0,
            taken: 0,
            grants: Side::default(),
            leases: Side::default(),
            heap: 0,
            allowance: 0,
            pool,
            max_keys,
            draws: seed | 1,
            evictions: 0,
            expired_leases: 0,
            cut: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.taken
    }

    /// Bytes held, without the allocator's own.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + self.grants.bytes() + self.leases.bytes() + self.heap
    }

    /// How many places are reserved for the table, and for what it keeps beside: twice what it has of an even share.
    fn reserved(&self) -> usize {
        (2 * self.pool.share / size_of::<Slot>()).min(self.max_keys.saturating_mul(2))
    }

    /// Slots held under leases, expired ones among them until they are swept.
    pub(super) fn held_leases(&self) -> usize {
        self.leases.slab.iter().map(|(_, leases)| leases.iter().count()).sum()
    }

    /// Copies the counters to a snapshot that was cut, if one waits for them.
    #[inline]
    pub(super) fn copy_to_cut(&mut self) {
        if let Some(cut) = self.cut.take() {
            self.copy_to(&cut);
        }
    }

    #[cold]
    fn copy_to(&self, cut: &Sender<Vec<u8>>) {
        let mut bytes = Vec::with_capacity(self.taken * 46 + self.heap);
        for slot in &self.slots {
            let kept = match slot.kind {
                Kind::Vacant => continue,
                Kind::Bucket => Kept::Words(0, slot.words),
                Kind::Pair => Kept::Words(1, slot.words),
                Kind::Fixed => Kept::Words(2, slot.words),
                Kind::Grants => Kept::Grants(self.grants.slab[slot.words[0] as usize].clone()),
                Kind::Leases => Kept::Leases(self.leases.slab[slot.words[0] as usize].clone()),
            };
            Record { name: slot.name, until: slot.until, share: slot.share, kept }.write(&mut bytes);
        }
        // The receiver is gone when the snapshot was given up.
        let _ = cut.send(bytes);
    }

    /// Takes a counter from a snapshot, if it still counts and there is room. Says whether it was taken.
    pub(super) fn restore(&mut self, record: Record, now: Timestamp) -> bool {
        if record.until <= seconds(now) || self.find(&record.name).is_some() {
            return false;
        }
        let growth = match &record.kept {
            Kept::Words(..) => Growth { counters: 1, ..Growth::default() },
            Kept::Grants(grants) => Growth { counters: 1, logs: 1, heap: grants.heap_bytes(), ..Growth::default() },
            Kept::Leases(leases) => Growth { counters: 1, leases: 1, heap: leases.heap_bytes(), ..Growth::default() },
        };
        if !self.make_room(growth, &[], now) {
            return false;
        }
        let (kind, words) = match record.kept {
            Kept::Words(0, words) => (Kind::Bucket, words),
            Kept::Words(1, words) => (Kind::Pair, words),
            // The reader knows no other kinds.
            Kept::Words(_, words) => (Kind::Fixed, words),
            Kept::Grants(grants) => self.pack(State::Grants(grants), None),
            Kept::Leases(leases) => self.pack(State::Leases(leases), None),
        };
        let place = self.free(self.home(&record.name));
        self.taken += 1;
        self.slots[place] = Slot { name: record.name, words, until: record.until, share: record.share, kind };
        true
    }

    /// Reads a counter's home. Looking up the counters of a plan takes as long as the slowest only if their homes are
    /// on the way from memory together, so all of them are touched before the first is looked for.
    pub(super) fn touch(&self, name: &CounterName) {
        // Both ends of it: every second slot lies on two lines of the cache.
        std::hint::black_box(self.slots.get(self.home(name)).map(|slot| (slot.name.0[0], slot.kind)));
    }

    /// Where a counter is, if it is held.
    pub(super) fn find(&self, name: &CounterName) -> Option<Place> {
        let mut place = self.home(name);
        loop {
            let slot = self.slots.get(place)?;
            match slot.kind {
                Kind::Vacant => return None,
                _ if slot.name == *name => return Some(place),
                _ => place = self.after(place),
            }
        }
    }

    /// Forgets a counter. Says whether it was held.
    pub(super) fn forget(&mut self, name: &CounterName) -> bool {
        let Some(place) = self.find(name) else { return false };
        // Whoever has it forgotten ends its leases: they did not expire.
        self.remove(place, Timestamp::default());
        true
    }

    /// Takes a counter's state out to be decided; [`Slots::put`] or [`Slots::put_back`] follows under the same lock.
    pub(super) fn take(&mut self, place: Option<Place>) -> State {
        let Some(place) = place else { return State::Empty };
        let Slot { words: [a, b, c], kind, .. } = self.slots[place];
        match kind {
            Kind::Vacant => State::Empty,
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
                let grants = std::mem::take(&mut self.grants.slab[a as usize]);
                self.heap -= grants.heap_bytes();
                State::Grants(grants)
            }
            Kind::Leases => {
                let leases = std::mem::take(&mut self.leases.slab[a as usize]);
                self.heap -= leases.heap_bytes();
                State::Leases(leases)
            }
        }
    }

    /// Writes a state that changed, at its place or, when it is new, at a free one. Room was made before.
    pub(super) fn put(
        &mut self,
        name: &CounterName,
        place: Option<Place>,
        state: State,
        outcome: &Outcome,
        now: Timestamp,
    ) {
        let until = until(now, outcome.reset);
        let share = share(outcome);
        let first = place.map(|place| self.slots[place].words[0]);
        let (kind, words) = self.pack(state, first);
        let place = place.unwrap_or_else(|| {
            self.taken += 1;
            self.free(self.home(name))
        });
        self.slots[place] = Slot { name: *name, words, until, share, kind };
    }

    /// Returns a state that did not change.
    pub(super) fn put_back(&mut self, place: Option<Place>, state: State) {
        let on_heap = matches!(state, State::Grants(_) | State::Leases(_));
        if let (true, Some(place)) = (on_heap, place) {
            let first = self.slots[place].words[0];
            self.pack(state, Some(first));
        }
    }

    /// Whether a check may add anything to the counter at `place`, or as a new one.
    #[inline]
    pub(super) fn grows(&self, check: &Check, place: Option<Place>) -> bool {
        match (place, check.limit) {
            // Nearly all checks are on counters that are held in whole by their slots.
            (Some(_), Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_)) => false,
            (_, _) => self.growth(check, place) != Growth::default(),
        }
    }

    /// What a check may add to the counter at `place`, or as a new one.
    pub(super) fn growth(&self, check: &Check, place: Option<Place>) -> Growth {
        let units = check.charges.admitted.max(check.charges.passed).max(check.charges.refused);
        if units == 0 {
            return Growth::default();
        }
        let held = place.map(|place| (self.slots[place].kind, self.slots[place].words[0] as usize));
        let new = usize::from(place.is_none());
        match check.limit {
            Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {
                Growth { counters: new, ..Growth::default() }
            }
            Limit::SlidingWindow(SlidingWindow { limit, .. }) => {
                let heap = match held {
                    Some((Kind::Grants, log)) => self.grants.slab[log].growth(units, limit),
                    _ => Grants::default().growth(units, limit),
                };
                Growth { counters: new, logs: new, heap, ..Growth::default() }
            }
            Limit::Concurrency(_) => {
                let heap = match held {
                    Some((Kind::Leases, set)) => self.leases.slab[set].growth(),
                    _ => Leases::default().growth(),
                };
                Growth { counters: new, leases: new, heap, ..Growth::default() }
            }
        }
    }

    /// Makes room for what checks may add. Says whether there is.
    ///
    /// Forgotten counters go first, then those with the smallest share of their limit used, of a few at a random place;
    /// counters that have nothing left go last, and leases that are held never (semantics 30). What `keep` names stays.
    pub(super) fn make_room(&mut self, growth: Growth, keep: &[CounterName], now: Timestamp) -> bool {
        if growth.heap > self.pool.whole {
            // Nobody has to go for what would not fit into an empty table.
            return false;
        }
        loop {
            let keys_fit = self.taken + growth.counters <= self.max_keys;
            if keys_fit && self.bytes_fit(growth, Widen::FromPool) {
                return true;
            }
            let Some(place) = self.victim(keep, now) else { return keys_fit && self.bytes_fit(growth, Widen::FromAny) };
            self.remove(place, now);
            self.evictions += 1;
            self.trade(growth);
        }
    }

    /// Whether so much more fits into the bytes; grows the table and the slabs when that is what it takes.
    ///
    /// A table or a slab grows by a step or not at all, since a table is gone through when it does. One that could only
    /// grow by what it has just given up for logs does not: one counter that goes makes the place for another.
    fn bytes_fit(&mut self, growth: Growth, widen: Widen) -> bool {
        let wanted = places(self.taken + growth.counters);
        let more_places = match wanted.saturating_sub(self.slots.len()) {
            0 => 0,
            places => places.max(self.slots.len() / STEPS),
        };
        if widen == Widen::FromPool && self.pool.free() < more_places * size_of::<Slot>() {
            return false;
        }
        let more_logs = self.grants.missing(growth.logs);
        let more_sets = self.leases.missing(growth.leases);
        let needed = growth.heap
            + more_places * size_of::<Slot>()
            + more_logs * size_of::<Grants>()
            + more_sets * size_of::<Leases>();
        if needed == 0 {
            return true;
        }
        let spare = if more_places > 0 { self.slots.len() / SPARE } else { 0 };
        let short = (self.bytes() + needed + spare * size_of::<Slot>()).saturating_sub(self.allowance);
        if short > 0 {
            self.allowance += self.pool.take(short);
        }
        let Some(mut left) = self.allowance.checked_sub(self.bytes() + needed) else { return false };
        // What grows takes some more than it needs now, as far as that is affordable. It is not much: a store fills up, and
        // what its tables have too much of then, its logs lack.
        let reserved = self.reserved();
        self.grants.grow(more_logs, &mut left, reserved);
        self.leases.grow(more_sets, &mut left, reserved);
        if more_places > 0 {
            let least = self.slots.len() + more_places;
            self.grow((self.slots.len() + spare).clamp(least, least + left / size_of::<Slot>()));
        }
        true
    }

    /// Gives the memory of free slots back once they cover what the bytes are short of, and not before they make a step.
    fn trade(&mut self, growth: Growth) {
        let slabs = self.grants.missing(growth.logs) * size_of::<Grants>()
            + self.leases.missing(growth.leases) * size_of::<Leases>();
        let short = (self.bytes() + growth.heap + slabs).saturating_sub(self.allowance);
        let wanted = places(self.taken + growth.counters);
        let free = self.slots.len().saturating_sub(wanted);
        if short > 0 && free * size_of::<Slot>() >= short && free >= self.slots.len() / STEPS {
            self.shrink(wanted);
        }
    }

    /// Forgets what no longer counts. Says how many went.
    pub(super) fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.taken;
        let due = seconds(now);
        let forgotten = |slot: &Slot| slot.kind != Kind::Vacant && slot.until <= due;
        // Every removal closes its gap. Where many are due it is sooner done to close all at once.
        let many = self.slots.len() / 16;
        if self.slots.iter().filter(|slot| forgotten(slot)).take(many).count() == many {
            for place in 0..self.slots.len() {
                if forgotten(&self.slots[place]) {
                    self.drop_heap(place, now);
                    self.slots[place] = VACANT;
                    self.taken -= 1;
                }
            }
            self.shrink(self.slots.len());
        }
        // Backwards from a free place, around the table's end: what a removal moves back was looked at already.
        let free = self.slots.iter().position(|slot| slot.kind == Kind::Vacant).unwrap_or(0);
        for place in (0..free).rev().chain((free..self.slots.len()).rev()) {
            if forgotten(&self.slots[place]) {
                self.remove(place, now);
            }
        }
        if self.taken < self.slots.len() / 4 {
            self.shrink(places(self.taken * 2));
            self.grants.shrink();
            self.leases.shrink();
        }
        self.give_back();
        before - self.taken
    }

    /// Lets a quarter of the counters go, for a shard that has nothing left to let go itself.
    pub(super) fn surrender(&mut self, now: Timestamp) {
        for _ in 0..self.taken / 4 {
            let Some(place) = self.victim(&[], now) else { break };
            self.remove(place, now);
            self.evictions += 1;
        }
        self.shrink(places(self.taken));
        self.give_back();
    }

    /// Returns to the pool what is not used.
    fn give_back(&mut self) {
        let spare = self.allowance.saturating_sub(self.bytes());
        self.allowance -= spare;
        self.pool.give(spare);
    }

    /// Where a counter's run begins.
    fn home(&self, name: &CounterName) -> Place {
        home(name, self.slots.len())
    }

    fn after(&self, place: Place) -> Place {
        match place + 1 == self.slots.len() {
            true => 0,
            false => place + 1,
        }
    }

    /// The first free place from `place` on.
    fn free(&self, mut place: Place) -> Place {
        while self.slots[place].kind != Kind::Vacant {
            place = self.after(place);
        }
        place
    }

    /// Adds free places. Homes lie further on then, in the same order.
    fn grow(&mut self, places: usize) {
        let before = self.slots.len();
        self.slots.reserve_exact(self.reserved().max(places) - before);
        self.slots.resize(places, VACANT);
        self.touched = self.touched.max(places);
        // Run by run, the last one first: none has its homes before where it begins, so that what is from there on has
        // found its place already. What goes around the end joins a run at the beginning, whose turn is still to come.
        let (mut run, mut end) = (Vec::new(), before);
        while let Some(last) = self.slots[..end].iter().rposition(|slot| slot.kind != Kind::Vacant) {
            let vacant = self.slots[..last].iter().rposition(|slot| slot.kind == Kind::Vacant);
            end = vacant.map_or(0, |vacant| vacant + 1);
            run.extend_from_slice(&self.slots[end..=last]);
            self.slots[end..=last].fill(VACANT);
            run.drain(..).for_each(|slot| self.settle(slot));
        }
    }

    /// Takes places away, or none, and closes every gap that was left between a counter and its home.
    fn shrink(&mut self, places: usize) {
        // The first one first: each goes back as far as it can, and never further on. What went around the end, or
        // would, waits until all others have found their places.
        let mut around = Vec::new();
        for place in 0..self.slots.len() {
            let slot = std::mem::replace(&mut self.slots[place], VACANT);
            if slot.kind == Kind::Vacant {
                continue;
            }
            match self.free_until(home(&slot.name, places), places.min(place + 1)) {
                Some(place) => self.slots[place] = slot,
                None => around.push(slot),
            }
        }
        self.slots.truncate(places);
        around.into_iter().for_each(|slot| self.settle(slot));
        if self.touched - places > self.touched / SPARE {
            let mut anew = Vec::with_capacity(self.slots.capacity());
            anew.extend_from_slice(&self.slots);
            (self.slots, self.touched) = (anew, places);
        }
    }

    /// Puts a slot at the first free place from its home on.
    fn settle(&mut self, slot: Slot) {
        let place = self.free(self.home(&slot.name));
        self.slots[place] = slot;
    }

    /// The first free place from `place` on, before `end`.
    fn free_until(&self, place: Place, end: Place) -> Option<Place> {
        (place..end).find(|place| self.slots[*place].kind == Kind::Vacant)
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
                (Kind::Grants, [self.grants.keep(taken_from, grants), 0, 0])
            }
            State::Leases(leases) => {
                self.heap += leases.heap_bytes();
                (Kind::Leases, [self.leases.keep(taken_from, leases), 0, 0])
            }
            // advance() makes a state of the limit's kind before it changes anything.
            State::Empty => (Kind::Bucket, [0; 3]),
        }
    }

    fn remove(&mut self, place: Place, now: Timestamp) {
        self.drop_heap(place, now);
        self.taken -= 1;
        // What follows in the run moves into the gap, unless it would come to stand before its home.
        let (mut gap, mut next) = (place, self.after(place));
        while self.slots[next].kind != Kind::Vacant {
            let from_home = self.distance(self.home(&self.slots[next].name), next);
            if from_home >= self.distance(gap, next) {
                self.slots[gap] = self.slots[next];
                gap = next;
            }
            next = self.after(next);
        }
        self.slots[gap] = VACANT;
    }

    /// Gives back what a counter holds in a slab.
    fn drop_heap(&mut self, place: Place, now: Timestamp) {
        let Slot { words: [first, ..], kind, .. } = self.slots[place];
        match kind {
            Kind::Vacant | Kind::Bucket | Kind::Pair | Kind::Fixed => {}
            Kind::Grants => self.heap -= self.grants.slab.remove(first as usize).heap_bytes(),
            Kind::Leases => {
                let leases = self.leases.slab.remove(first as usize);
                self.expired_leases += leases.expired(now) as u64;
                self.heap -= leases.heap_bytes();
            }
        }
    }

    /// Steps from one place to another, around the table's end.
    fn distance(&self, from: Place, to: Place) -> usize {
        match to.checked_sub(from) {
            Some(steps) => steps,
            None => to + self.slots.len() - from,
        }
    }

    fn victim(&mut self, keep: &[CounterName], now: Timestamp) -> Option<Place> {
        if self.taken == 0 {
            return None;
        }
        let mut least: Option<((u8, u32), Place)> = None;
        let mut place = self.random();
        for looked_at in 0..SAMPLE + PATIENCE {
            // Longer only while nothing was found that goes lightly.
            if looked_at >= SAMPLE && least.is_some_and(|((share, _), _)| share != EXHAUSTED) {
                break;
            }
            while self.slots[place].kind == Kind::Vacant {
                place = self.after(place);
            }
            let (slot, found) = (&self.slots[place], place);
            place = self.after(place);
            if keep.contains(&slot.name) {
                continue;
            }
            if slot.until <= seconds(now) {
                return Some(found);
            }
            // Of equally used ones the first to be forgotten anyway.
            let rank = (slot.share_at(now), slot.until);
            if slot.kind != Kind::Leases && least.is_none_or(|(known, _)| rank < known) {
                least = Some((rank, found));
            }
        }
        least.map(|(_, place)| place)
    }

    /// A place at random (xorshift64).
    fn random(&mut self) -> Place {
        self.draws ^= self.draws << 13;
        self.draws ^= self.draws >> 7;
        self.draws ^= self.draws << 17;
        self.draws as usize % self.slots.len()
    }
}

/// Where a counter's run begins in a table of so many places. Homes rise with the hash, so that counters keep their order
/// when a table grows or shrinks.
fn home(name: &CounterName, places: usize) -> Place {
    ((u128::from(name.0[0]) * places as u128) >> 64) as usize
}

/// The places that a table needs to hold so many counters with enough of it free.
fn places(counters: usize) -> usize {
    (counters * PARTS).div_ceil(FULL)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(level: u64, at: Timestamp) -> State {
        State::Bucket(BucketLevel { level, at, unit: 1 })
    }

    /// Tables of a few to a few thousand places, whose counters lie around the end as often as anywhere else: whatever is
    /// added, swept or shrunk, each counter is found with what it holds.
    #[test]
    fn a_table_that_grows_and_shrinks_where_it_is_loses_nobody() {
        let start = Timestamp::from_secs(1_800_000_000);
        let outcome = |reset| Outcome { passes: true, limit: 1000, remaining: 999, reset, retry_after: None };
        let mut random = 1_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut past_reserve = false;
        for round in 0..200 {
            // So small a share that large tables and many logs come to more than is reserved for them.
            let mut slots = Slots::new(Arc::new(Pool::new(1 << 20, 32)), usize::MAX, 1);
            let mut held: Vec<(CounterName, u64, u64)> = Vec::new();
            let mut now = start;
            for step in 1..=6_u64 {
                for _ in 0..next() % (4 << (round % 9)) {
                    // Many near both ends of the table, where runs are long.
                    let first = match next() % 4 {
                        0 => next() % (u64::MAX >> 8),
                        1 => u64::MAX - next() % (u64::MAX >> 8),
                        _ => next(),
                    };
                    let (name, seconds) = (CounterName([first, next()]), next() % 60);
                    let grants = Grants::restore(vec![now; step as usize]).expect("they are in order");
                    let (growth, state) = match next() % 2 {
                        0 => (Growth::default(), bucket(step, now)),
                        _ => {
                            (Growth { logs: 1, heap: grants.heap_bytes(), ..Growth::default() }, State::Grants(grants))
                        }
                    };
                    assert!(slots.make_room(Growth { counters: 1, ..growth }, &[], now));
                    assert!(slots.bytes() + growth.heap <= slots.allowance);
                    slots.put(&name, None, state, &outcome(seconds * 1_000_000), now);
                    held.push((name, step, now.micros() / 1_000_000 + seconds));
                }
                if next() % 2 == 0 {
                    now = now.plus(next() % 60 * 1_000_000);
                    slots.sweep(now);
                    held.retain(|(.., until)| *until > now.micros() / 1_000_000);
                }
                if next() % 4 == 0 {
                    slots.shrink(places(slots.taken));
                }
                assert_eq!(slots.evictions, 0, "there is room for all");
                assert_eq!(slots.len(), held.len(), "round {round}");
                for (name, level, _) in &held {
                    let place = slots.find(name).unwrap_or_else(|| panic!("{name:?} is lost in round {round}"));
                    let kept = match slots.slots[place] {
                        Slot { kind: Kind::Grants, words: [log, ..], .. } => {
                            slots.grants.slab[log as usize].moments().count() as u64
                        }
                        slot => slot.words[0],
                    };
                    assert_eq!(kept, *level);
                }
                past_reserve |= slots.slots.len() > slots.reserved() && slots.grants.room > slots.reserved();
            }
        }
        assert!(past_reserve);
    }

    /// A full table of counters of two sizes, where each new one takes the place of whichever is used least.
    #[test]
    fn a_table_at_its_bound_seldom_grows_or_shrinks() {
        let now = Timestamp::from_secs(1_800_000_000);
        let mut slots = Slots::new(Arc::new(Pool::new(1 << 20, 1)), usize::MAX, 1);
        let mut name = 0_u64;
        let mut resized = 0;
        for number in 0..40_000 {
            name = name.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let grants = Grants::restore(vec![now]).expect("one is in order");
            let (growth, state, remaining) = match number % 10 {
                0 => (Growth { counters: 1, ..Growth::default() }, bucket(1, now), 999),
                _ => {
                    let growth = Growth { counters: 1, logs: 1, heap: grants.heap_bytes(), ..Growth::default() };
                    (growth, State::Grants(grants), 800)
                }
            };
            let outcome = Outcome { passes: true, limit: 1000, remaining, reset: 60_000_000, retry_after: None };
            let before = slots.slots.len();
            assert!(slots.make_room(growth, &[], now));
            resized += u32::from(number >= 20_000 && slots.slots.len() != before);
            slots.put(&CounterName([name, name]), None, state, &outcome, now);
        }
        assert!(slots.evictions > 10_000, "it is full: {} went", slots.evictions);
        assert!(resized < 100, "{resized} times for 20 000 counters");
    }
}
