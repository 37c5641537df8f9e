//! What the slots of a shard keep beside the table: logs of grants and sets of leases, which have no fixed size.
//!
//! ```text
//!   slot: | name | words: place, 0, 0 | ...      slab: [Grants] [Grants] ...      heap: [moments]
//!                         '---------------------------------^   '-------------------------^
//! ```
//!
//! A state that fits into a slot's words is packed into them, and so is a log of a few grants, which is what most clients
//! of an exact window have. Another goes to a slab, and the first word is its place there.

use slab::Slab;
use smallvec::SmallVec;

use super::growth::{Growth, STEPS};
use super::table::{Kind, SPARE, Slot};
use crate::clock::Timestamp;
use crate::limiter::{BucketLevel, CounterPair, FixedCount, Grants, Leases, State};
use crate::store::memory::snapshot::Kept;

/// So many grants fit into the words of a slot.
const FEW: usize = 3;

/// No grant, in the words of a slot. Moments end before 2^53.
const NONE: u64 = u64::MAX;

/// The bytes of a log that is kept for the next one that is taken out of a slot's words: what a new log takes first. One of
/// another size would grow by other steps than were promised.
const SMALL: usize = 4 * size_of::<u64>();

/// The logs and leases of a shard.
#[derive(Debug, Default)]
pub(super) struct Beside {
    grants: Side<Grants>,
    leases: Side<Leases>,
    /// Bytes that they hold on the heap.
    heap: usize,
    /// Empty logs, one for each check of a usual group: what is decided out of a slot's words is no allocation.
    spare: SmallVec<[Grants; 2]>,
}

impl Beside {
    /// Bytes held, without the allocator's own and the two empty logs.
    pub(super) fn bytes(&self) -> usize {
        self.grants.bytes() + self.leases.bytes() + self.heap
    }

    /// What a slot's counter holds, copied.
    pub(super) fn kept(&self, slot: &Slot) -> Kept {
        match slot.kind {
            Kind::Vacant | Kind::Bucket => Kept::Words(0, slot.words),
            Kind::Pair => Kept::Words(1, slot.words),
            Kind::Fixed => Kept::Words(2, slot.words),
            Kind::Few => {
                let mut grants = Grants::default();
                grants.refill(few(slot));
                Kept::Grants(grants)
            }
            Kind::Grants => Kept::Grants(self.grants.slab[slot.words[0] as usize].clone()),
            Kind::Leases => Kept::Leases(self.leases.slab[slot.words[0] as usize].clone()),
        }
    }

    /// Slots held under leases, expired ones among them until they are swept.
    pub(super) fn held_leases(&self) -> usize {
        self.leases.slab.iter().map(|(_, leases)| leases.iter().count()).sum()
    }

    /// Takes the state of a slot out.
    pub(super) fn take(&mut self, slot: &Slot) -> State {
        let Slot { words: [a, b, c], kind, .. } = *slot;
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
            Kind::Few => {
                let mut grants = self.spare.pop().unwrap_or_default();
                grants.refill(few(slot));
                State::Grants(grants)
            }
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

    /// The words of a state. One that was taken out of a slab goes back to its place there.
    pub(super) fn pack(&mut self, state: State, from: Option<&Slot>) -> (Kind, [u64; 3]) {
        let place = |kind| from.filter(|slot| slot.kind == kind).map(|slot| slot.words[0]);
        match state {
            State::Bucket(BucketLevel { level, at, unit }) => (Kind::Bucket, [level, at.micros(), unit]),
            State::Pair(CounterPair { start, current, previous }) => {
                (Kind::Pair, [start.micros(), u64::from(current) | u64::from(previous) << 32, 0])
            }
            State::Fixed(FixedCount { start, end, count }) => {
                (Kind::Fixed, [start.micros(), end.micros(), u64::from(count)])
            }
            State::Grants(grants) if grants.count() <= FEW => {
                if let Some(place) = place(Kind::Grants) {
                    self.grants.slab.remove(place as usize);
                }
                let mut words = [NONE; FEW];
                words.iter_mut().zip(grants.moments()).for_each(|(word, moment)| *word = moment.micros());
                self.spare(grants);
                (Kind::Few, words)
            }
            State::Grants(grants) => {
                self.heap += grants.heap_bytes();
                (Kind::Grants, [self.grants.keep(place(Kind::Grants), grants), 0, 0])
            }
            State::Leases(leases) => {
                self.heap += leases.heap_bytes();
                (Kind::Leases, [self.leases.keep(place(Kind::Leases), leases), 0, 0])
            }
            // advance() makes a state of the limit's kind before it changes anything.
            State::Empty => (Kind::Bucket, [0; 3]),
        }
    }

    /// Puts a state that did not change back where it was taken from.
    pub(super) fn put_back(&mut self, state: State, slot: &Slot) {
        match (slot.kind, state) {
            (Kind::Few, State::Grants(grants)) => self.spare(grants),
            (Kind::Grants, State::Grants(grants)) => {
                self.heap += grants.heap_bytes();
                self.grants.keep(Some(slot.words[0]), grants);
            }
            (Kind::Leases, State::Leases(leases)) => {
                self.heap += leases.heap_bytes();
                self.leases.keep(Some(slot.words[0]), leases);
            }
            (_, _) => {}
        }
    }

    /// Keeps the room of a log whose grants are in a slot.
    fn spare(&mut self, grants: Grants) {
        if self.spare.len() < self.spare.inline_size() && grants.heap_bytes() == SMALL {
            self.spare.push(grants);
        }
    }

    /// Forgets what a slot that was removed keeps here. Says how many leases of it have expired by then.
    pub(super) fn forget(&mut self, slot: &Slot, now: Timestamp) -> u64 {
        let first = slot.words[0] as usize;
        match slot.kind {
            Kind::Vacant | Kind::Bucket | Kind::Pair | Kind::Fixed | Kind::Few => 0,
            Kind::Grants => {
                self.heap -= self.grants.slab.remove(first).heap_bytes();
                0
            }
            Kind::Leases => {
                let leases = self.leases.slab.remove(first);
                self.heap -= leases.heap_bytes();
                leases.expired(now) as u64
            }
        }
    }

    /// What a charge of so many units under this limit may add to the log of a slot, or as a new one.
    pub(super) fn log_growth(&self, slot: Option<&Slot>, units: u32, limit: u32) -> Growth {
        let held = match slot.map(|slot| (slot.kind, slot)) {
            Some((Kind::Grants, slot)) => {
                let heap = self.grants.slab[slot.words[0] as usize].growth(units, limit);
                return Growth { heap, ..Growth::default() };
            }
            Some((Kind::Few, slot)) => few(slot).count() as u32,
            _ => 0,
        };
        let full = limit.max(held);
        match (held + units.min(limit)).min(full) {
            all if all as usize <= FEW => Growth::default(),
            all => Growth { logs: 1, heap: Grants::default().growth(all, full), ..Growth::default() },
        }
    }

    /// What a lease may add to the set of a slot, or as a new one.
    pub(super) fn lease_growth(&self, slot: Option<&Slot>) -> Growth {
        match slot.filter(|slot| slot.kind == Kind::Leases) {
            Some(slot) => Growth { heap: self.leases.slab[slot.words[0] as usize].growth(), ..Growth::default() },
            None => Growth { leases: 1, heap: Leases::default().growth(), ..Growth::default() },
        }
    }

    /// What a state that is copied from a snapshot takes.
    pub(super) fn kept_growth(kept: &Kept) -> Growth {
        match kept {
            Kept::Grants(grants) if grants.count() > FEW => {
                Growth { logs: 1, heap: grants.heap_bytes(), ..Growth::default() }
            }
            Kept::Leases(leases) => Growth { leases: 1, heap: leases.heap_bytes(), ..Growth::default() },
            Kept::Words(..) | Kept::Grants(_) => Growth::default(),
        }
    }

    /// The bytes that it takes to add so much.
    pub(super) fn needs(&self, growth: Growth) -> usize {
        growth.heap
            + self.grants.missing(growth.logs) * size_of::<Grants>()
            + self.leases.missing(growth.leases) * size_of::<Leases>()
    }

    /// Grows by what is missing and, as far as `left` bytes allow, by some more; `reserved` entries are what each may
    /// come to.
    pub(super) fn grow(&mut self, growth: Growth, left: &mut usize, reserved: usize) {
        self.grants.grow(growth.logs, left, reserved);
        self.leases.grow(growth.leases, left, reserved);
    }

    /// Gives back what is free at the ends.
    pub(super) fn shrink(&mut self) {
        self.grants.shrink();
        self.leases.shrink();
    }
}

/// The grants that are in the words of a slot.
fn few(slot: &Slot) -> impl Iterator<Item = Timestamp> {
    slot.words.into_iter().take_while(|word| *word != NONE).map(Timestamp::from_micros)
}

/// Values of one kind.
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

    fn grow(&mut self, more: usize, left: &mut usize, reserved: usize) {
        let missing = self.missing(more);
        if missing == 0 {
            return;
        }
        let spare = (self.room / SPARE).max(4).min(*left / size_of::<T>());
        *left -= spare * size_of::<T>();
        self.room += missing + spare;
        self.slab.reserve_exact(reserved.max(self.room) - self.slab.len());
    }

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

#[cfg(test)]
impl Beside {
    /// The entries of logs that bytes were taken for.
    pub(super) fn room_for_logs(&self) -> usize {
        self.grants.room
    }

    /// The logs beside the table.
    pub(super) fn logs(&self) -> usize {
        self.grants.slab.len()
    }
}

fn low(word: u64) -> u32 {
    word as u32
}
