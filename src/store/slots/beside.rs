//! What the slots of a shard keep beside the table: logs of grants and sets of leases, which have no fixed size.
//!
//! ```text
//!   slot: | name | words: place, 0, 0 | ...      slab: [Grants] [Grants] ...      heap: [moments]
//!                         '---------------------------------^   '-------------------------^
//! ```
//!
//! A state that fits into a slot's words is packed into them; another goes to a slab, and the first word is its place
//! there.

use slab::Slab;

use super::table::{Kind, SPARE, Slot};
use super::{Growth, STEPS, low};
use crate::clock::Timestamp;
use crate::limiter::{BucketLevel, CounterPair, FixedCount, Grants, Leases, State};

/// The logs and leases of a shard.
#[derive(Debug, Default)]
pub(super) struct Beside {
    grants: Side<Grants>,
    leases: Side<Leases>,
    /// Bytes that they hold on the heap.
    heap: usize,
}

impl Beside {
    /// Bytes held, without the allocator's own.
    pub(super) fn bytes(&self) -> usize {
        self.grants.bytes() + self.leases.bytes() + self.heap
    }

    /// The log of a slot that keeps one.
    pub(super) fn grants(&self, slot: &Slot) -> &Grants {
        &self.grants.slab[slot.words[0] as usize]
    }

    /// The leases of a slot that keeps some.
    pub(super) fn leases(&self, slot: &Slot) -> &Leases {
        &self.leases.slab[slot.words[0] as usize]
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

    /// The words of a state; a state on the heap goes to the place it was taken from.
    pub(super) fn pack(&mut self, state: State, taken_from: Option<u64>) -> (Kind, [u64; 3]) {
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

    /// Forgets what a slot that was removed keeps here. Says how many leases of it have expired by then.
    pub(super) fn forget(&mut self, slot: &Slot, now: Timestamp) -> u64 {
        let first = slot.words[0] as usize;
        match slot.kind {
            Kind::Vacant | Kind::Bucket | Kind::Pair | Kind::Fixed => 0,
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
}
