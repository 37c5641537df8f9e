//! The table itself: slots of 48 bytes, open addressing.
//!
//! ```text
//!   one slot: | name 16 | words 24 | until 4 | share 1 | kind 1 |
//!
//!            home         place
//!   [ ][a][b] [c] [c'][c"][x] [ ][ ]            what does not fit at home is further on, with no gap between
//! ```
//!
//! A slot's home follows from its name, so that finding one costs one miss of the cache, not one for each of a hash, a
//! place and a slot. Removing moves the rest of a run back: there are no tombstones, and a table near its bound works on
//! without being built anew. How large it may be is decided elsewhere.

use std::ops::{Index, IndexMut};

use crate::clock::Timestamp;
use crate::plan::CounterName;

/// Of so many places as many as [`FULL`] are taken at most: runs stay short, and a counter weighs 59 bytes.
const PARTS: usize = 16;
const FULL: usize = 13;

/// A table that has shrunk by more than so large a part of it is copied to a new one: memory once written to goes back to
/// the system in no other way.
pub(super) const SPARE: usize = 8;

/// Where a slot is, until one of its table is removed or the table grows.
pub(in crate::store) type Place = usize;

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) name: CounterName,
    pub(super) words: [u64; 3],
    /// Unix seconds from which on nothing is counted, rounded up.
    pub(super) until: u32,
    /// How much of its limit is used: 0 to 254, or [`EXHAUSTED`](super::shard::EXHAUSTED).
    pub(super) share: u8,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The slot is free.
    Vacant,
    Bucket,
    Pair,
    Fixed,
    /// A log of a few grants.
    Few,
    /// A log of more, beside the table.
    Grants,
    Leases,
}

const VACANT: Slot = Slot { name: CounterName([0; 2]), words: [0; 3], until: 0, share: 0, kind: Kind::Vacant };

impl Slot {
    /// How much of the limit is used at `now`: a bucket drains evenly from its last charge to when nothing counts.
    pub(super) fn share_at(&self, now: Timestamp) -> u8 {
        if self.kind != Kind::Bucket {
            return self.share;
        }
        let end = Timestamp::from_secs(u64::from(self.until));
        let whole = (end - Timestamp::from_micros(self.words[1])).max(1);
        let left = (end - now).min(whole);
        u8::try_from(u128::from(self.share) * u128::from(left) / u128::from(whole)).unwrap_or(self.share)
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Grown and shrunk where it is: what it may come to is reserved when the first slot comes, as addresses that take no
    /// memory until they are written to. A table that moves is freed by the allocator in one piece, which takes the
    /// system milliseconds while the lock is held, and is resident twice until then.
    slots: Vec<Slot>,
    /// The most places since it was made: so many may be resident.
    touched: usize,
    /// How many of them are taken.
    taken: usize,
}

impl Table {
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn places(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }

    /// The slots that are taken.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.kind != Kind::Vacant)
    }

    /// Reads the home of a slot. Looking up the counters of a plan takes as long as the slowest only if their homes are
    /// on the way from memory together, so all of them are touched before the first is looked for.
    pub(super) fn touch(&self, name: &CounterName) {
        // Both ends of it: every second slot lies on two lines of the cache.
        std::hint::black_box(self.slots.get(self.home(name)).map(|slot| (slot.name.0[0], slot.kind)));
    }

    /// Where the slot of a name is, if there is one.
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

    /// The first slot that is taken, from a place on and around the end. There is one.
    pub(super) fn taken_from(&self, mut place: Place) -> Place {
        while self.slots[place].kind == Kind::Vacant {
            place = self.after(place);
        }
        place
    }

    /// Puts a slot that is not there yet at the first free place from its home on. There is one.
    pub(super) fn insert(&mut self, slot: Slot) {
        self.taken += 1;
        self.settle(slot);
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, place: Place) -> Slot {
        let removed = self.slots[place];
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
        removed
    }

    /// Takes out all that are due.
    pub(super) fn remove_all(&mut self, due: impl Fn(&Slot) -> bool, mut removed: impl FnMut(&Slot)) {
        let due = |slot: &Slot| slot.kind != Kind::Vacant && due(slot);
        // Every removal closes its gap. Where many are due it is sooner done to close all at once.
        let many = self.slots.len() / 16;
        if self.slots.iter().filter(|slot| due(slot)).take(many).count() == many {
            for slot in self.slots.iter_mut().filter(|slot| due(slot)) {
                removed(slot);
                *slot = VACANT;
                self.taken -= 1;
            }
            self.shrink(self.slots.len());
        }
        // Backwards from a free place, around the table's end: what a removal moves back was looked at already.
        let free = self.slots.iter().position(|slot| slot.kind == Kind::Vacant).unwrap_or(0);
        for place in (0..free).rev().chain((free..self.slots.len()).rev()) {
            if due(&self.slots[place]) {
                removed(&self.remove(place));
            }
        }
    }

    /// Adds free places, to as many; `reserved` is what it may come to. Homes lie further on then, in the same order.
    pub(super) fn grow(&mut self, places: usize, reserved: usize) {
        let before = self.slots.len();
        self.slots.reserve_exact(reserved.max(places) - before);
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

    /// Takes places away, or none, and closes every gap that was left between a slot and its home.
    pub(super) fn shrink(&mut self, places: usize) {
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

    /// Where a name's run begins.
    pub(super) fn home(&self, name: &CounterName) -> Place {
        home(name, self.slots.len())
    }

    pub(super) fn after(&self, place: Place) -> Place {
        match place + 1 == self.slots.len() {
            true => 0,
            false => place + 1,
        }
    }

    /// Puts a slot at the first free place from its home on.
    fn settle(&mut self, slot: Slot) {
        let mut place = self.home(&slot.name);
        while self.slots[place].kind != Kind::Vacant {
            place = self.after(place);
        }
        self.slots[place] = slot;
    }

    /// The first free place from `place` on, before `end`.
    fn free_until(&self, place: Place, end: Place) -> Option<Place> {
        (place..end).find(|place| self.slots[*place].kind == Kind::Vacant)
    }

    /// Steps from one place to another, around the table's end.
    fn distance(&self, from: Place, to: Place) -> usize {
        match to.checked_sub(from) {
            Some(steps) => steps,
            None => to + self.slots.len() - from,
        }
    }
}

impl Index<Place> for Table {
    type Output = Slot;

    fn index(&self, place: Place) -> &Slot {
        &self.slots[place]
    }
}

impl IndexMut<Place> for Table {
    fn index_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.slots[place]
    }
}

/// Where a name's run begins in a table of so many places. Homes rise with the hash, so that slots keep their order when
/// a table grows or shrinks.
fn home(name: &CounterName, places: usize) -> Place {
    ((u128::from(name.0[0]) * places as u128) >> 64) as usize
}

/// The places that a table needs to hold so many slots with enough of it free.
pub(super) fn places(slots: usize) -> usize {
    (slots * PARTS).div_ceil(FULL)
}
