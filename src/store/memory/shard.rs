//! The counters of one shard: by name, packed, bounded in bytes and in number.
//!
//! ```text
//!   Slots -- table.rs    a slot for each counter, found by its name; what is small is in it
//!         |- beside.rs   logs of grants and sets of leases
//!         '- pool.rs     the bytes that the shards of a store share
//! ```
//!
//! This room decides what a shard may hold: what has to go for what comes, and how far its parts grow.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::growth::{Growth, STEPS};
use super::overflow::Beside;
pub(super) use super::pool::Pool;
use super::snapshot::{Kept, Record};
pub(super) use super::table::Place;
use super::table::{Kind, SPARE, Slot, Table, places};
use crate::clock::Timestamp;
use crate::limiter::{Limit, SlidingWindow, State};
use crate::plan::{Check, CounterName, Outcome};

#[cfg(test)]
mod tests;

/// How many counters are looked at when one has to go: neighbours, from where the new one belongs, or a random place, on.
/// Where a counter is says nothing of how it is used, since its name is a keyed hash, and neighbours are on the way from
/// memory together.
const SAMPLE: usize = 16;

/// How many more are looked at when none of those may go lightly.
const PATIENCE: usize = 16 * SAMPLE;

/// The share of a counter that has nothing left. Such a counter goes last: forgetting it lets its client in again.
const EXHAUSTED: u8 = u8::MAX;

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Slots {
    table: Table,
    beside: Beside,
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

/// Which bytes a table may grow by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Widen {
    /// Those that no shard has taken yet.
    FromPool,
    /// Its own as well, where no counter can go.
    FromAny,
}

impl Slots {
    pub(super) fn new(pool: Arc<Pool>, max_keys: usize, seed: u64) -> Self {
        Self {
            table: Table::default(),
            beside: Beside::default(),
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
        self.table.taken()
    }

    /// Bytes held, without the allocator's own.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.beside.bytes()
    }

    /// Slots held under leases, expired ones among them until they are swept.
    pub(super) fn held_leases(&self) -> usize {
        self.beside.held_leases()
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
        let mut bytes = Vec::with_capacity(self.table.taken() * 50 + self.beside.bytes());
        for slot in self.table.iter() {
            let kept = self.beside.kept(slot);
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
        let growth = Growth { counters: 1, ..Beside::kept_growth(&record.kept) };
        if !self.make_room(growth, &record.name, &[], now) {
            return false;
        }
        let (kind, words) = match record.kept {
            Kept::Words(0, words) => (Kind::Bucket, words),
            Kept::Words(1, words) => (Kind::Pair, words),
            // The reader knows no other kinds.
            Kept::Words(_, words) => (Kind::Fixed, words),
            Kept::Grants(grants) => self.beside.pack(State::Grants(grants), None),
            Kept::Leases(leases) => self.beside.pack(State::Leases(leases), None),
        };
        self.table.insert(Slot { name: record.name, words, until: record.until, share: record.share, kind });
        true
    }

    /// Reads what a counter is looked for by first, so that it is on the way from memory.
    pub(super) fn touch(&self, name: &CounterName) {
        self.table.touch(name);
    }

    /// Where a counter is, if it is held.
    pub(super) fn find(&self, name: &CounterName) -> Option<Place> {
        self.table.find(name)
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
        match place {
            Some(place) => self.beside.take(&self.table[place]),
            None => State::Empty,
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
        let (until, share) = (until(now, outcome.reset), share(outcome));
        let (kind, words) = self.beside.pack(state, place.map(|place| &self.table[place]));
        let slot = Slot { name: *name, words, until, share, kind };
        match place {
            Some(place) => self.table[place] = slot,
            None => self.table.insert(slot),
        }
    }

    /// Returns a state that did not change.
    pub(super) fn put_back(&mut self, place: Option<Place>, state: State) {
        if let Some(place) = place {
            self.beside.put_back(state, &self.table[place]);
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
        let held = place.map(|place| &self.table[place]);
        let new = usize::from(place.is_none());
        match check.limit {
            Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => {
                Growth { counters: new, ..Growth::default() }
            }
            Limit::SlidingWindow(SlidingWindow { limit, .. }) => {
                Growth { counters: new, ..self.beside.log_growth(held, units, limit) }
            }
            Limit::Concurrency(_) => Growth { counters: new, ..self.beside.lease_growth(held) },
        }
    }

    /// Makes room for what a check may add to its counter. Says whether there is.
    ///
    /// Forgotten counters go first, then those with the smallest share of their limit used, of a few neighbours; counters
    /// that have nothing left go last, and leases that are held never (semantics 30). What `keep` names stays.
    pub(super) fn make_room(
        &mut self,
        growth: Growth,
        counter: &CounterName,
        keep: &[CounterName],
        now: Timestamp,
    ) -> bool {
        if growth.heap > self.pool.whole() {
            // Nobody has to go for what would not fit into an empty table.
            return false;
        }
        // The first one to go is looked for where the new one belongs: those lines are in the cache, and are written to
        // anyway. Others are from anywhere, lest a large log clears all around it.
        let mut near = Some(counter);
        loop {
            let keys_fit = self.table.taken() + growth.counters <= self.max_keys;
            if keys_fit && self.bytes_fit(growth, Widen::FromPool) {
                return true;
            }
            let Some(place) = self.victim(near.take(), keep, now) else {
                return keys_fit && self.bytes_fit(growth, Widen::FromAny);
            };
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
        let wanted = places(self.table.taken() + growth.counters);
        let more_places = match wanted.saturating_sub(self.table.places()) {
            0 => 0,
            places => places.max(self.table.places() / STEPS),
        };
        if widen == Widen::FromPool && self.pool.free() < more_places * size_of::<Slot>() {
            return false;
        }
        let needed = self.beside.needs(growth) + more_places * size_of::<Slot>();
        if needed == 0 {
            return true;
        }
        let spare = if more_places > 0 { self.table.places() / SPARE } else { 0 };
        let short = (self.bytes() + needed + spare * size_of::<Slot>()).saturating_sub(self.allowance);
        if short > 0 {
            self.allowance += self.pool.take(short);
        }
        let Some(mut left) = self.allowance.checked_sub(self.bytes() + needed) else { return false };
        // What grows takes some more than it needs now, as far as that is affordable. It is not much: a store fills up, and
        // what its tables have too much of then, its logs lack.
        let reserved = self.reserved();
        self.beside.grow(growth, &mut left, reserved);
        if more_places > 0 {
            let least = self.table.places() + more_places;
            let most = least + left / size_of::<Slot>();
            self.table.grow((self.table.places() + spare).clamp(least, most), reserved);
        }
        true
    }

    /// How many places are reserved for the table, and for what it keeps beside: twice what it has of an even share.
    fn reserved(&self) -> usize {
        (2 * self.pool.share() / size_of::<Slot>()).min(self.max_keys.saturating_mul(2))
    }

    /// Gives the memory of free places back once they cover what the bytes are short of, and not before they make a step.
    fn trade(&mut self, growth: Growth) {
        let short = (self.bytes() + self.beside.needs(growth)).saturating_sub(self.allowance);
        let wanted = places(self.table.taken() + growth.counters);
        let free = self.table.places().saturating_sub(wanted);
        if short > 0 && free * size_of::<Slot>() >= short && free >= self.table.places() / STEPS {
            self.table.shrink(wanted);
        }
    }

    /// Forgets what no longer counts. Says how many went.
    pub(super) fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.table.taken();
        let (due, beside, expired) = (seconds(now), &mut self.beside, &mut self.expired_leases);
        self.table.remove_all(|slot| slot.until <= due, |slot| *expired += beside.forget(slot, now));
        if self.table.taken() < self.table.places() / 4 {
            self.table.shrink(places(self.table.taken() * 2));
            self.beside.shrink();
        }
        self.give_back();
        before - self.table.taken()
    }

    /// Lets a quarter of the counters go, for a shard that has nothing left to let go itself.
    pub(super) fn surrender(&mut self, now: Timestamp) {
        for _ in 0..self.table.taken() / 4 {
            let Some(place) = self.victim(None, &[], now) else { break };
            self.remove(place, now);
            self.evictions += 1;
        }
        self.table.shrink(places(self.table.taken()));
        self.give_back();
    }

    /// Returns to the pool what is not used.
    fn give_back(&mut self) {
        let spare = self.allowance.saturating_sub(self.bytes());
        self.allowance -= spare;
        self.pool.give(spare);
    }

    fn remove(&mut self, place: Place, now: Timestamp) {
        let removed = self.table.remove(place);
        self.expired_leases += self.beside.forget(&removed, now);
    }

    /// Which counter goes: of those from a counter's home on, or from a random place.
    fn victim(&mut self, near: Option<&CounterName>, keep: &[CounterName], now: Timestamp) -> Option<Place> {
        if self.table.taken() == 0 {
            return None;
        }
        let mut least: Option<((u8, u32), Place)> = None;
        let mut place = match near {
            Some(counter) => self.table.home(counter),
            None => self.random(),
        };
        for looked_at in 0..SAMPLE + PATIENCE {
            // Longer only while nothing was found that goes lightly.
            if looked_at >= SAMPLE && least.is_some_and(|((share, _), _)| share != EXHAUSTED) {
                break;
            }
            let found = self.table.taken_from(place);
            let slot = &self.table[found];
            place = self.table.after(found);
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
        self.draws as usize % self.table.places()
    }
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
