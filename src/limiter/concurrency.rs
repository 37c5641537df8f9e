//! Concurrency: a set of leases, each with its own expiry.
//!
//! A lease is held under an id that was made before the store was asked, so that a timed-out acquire can be undone
//! and a repeated one takes no second slot. Expired leases free themselves one by one. Releasing is idempotent and
//! touches nobody else's lease.

use super::{Arithmetic, Charged, LeaseId as Id, Need, Report, Wait};
use crate::clock::Timestamp;

/// The numbers of a concurrency limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Concurrency {
    /// Slots.
    pub max: u32,
    /// Microseconds until a lease that nobody releases expires.
    pub lease: u64,
}

/// What became of a lease that was released or renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseStatus {
    /// It was held, and has been released or renewed.
    Done,
    /// It had expired before: its slot may have gone to somebody else already.
    Expired,
    /// It is not known here: never acquired, released before, or expired and forgotten.
    Unknown,
}

/// The id of a lease: random, made anew for every request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeaseId(pub u128);

/// A held slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Who holds it.
    pub id: LeaseId,
    /// Since when.
    pub acquired: Timestamp,
    /// Until when, unless it is released or renewed.
    pub expires: Timestamp,
}

/// The leases of one counter, the first to expire first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leases {
    leases: Vec<Lease>,
}

impl Leases {
    /// The leases, the first to expire first; expired ones may be among them until the next charge.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    /// A set of these leases.
    pub fn restore(mut leases: Vec<Lease>) -> Self {
        leases.sort_by_key(|lease| lease.expires);
        Self { leases }
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.leases.capacity() * size_of::<Lease>()
    }

    /// Bytes that one more lease may add on the heap.
    pub fn growth(&self) -> usize {
        match self.leases.len() < self.leases.capacity() {
            true => 0,
            false => self.grown_capacity() * size_of::<Lease>(),
        }
    }

    /// By how many places a full set grows: it doubles.
    fn grown_capacity(&self) -> usize {
        self.leases.len().max(4)
    }

    /// Gives a lease back. Says what became of it and whether anything changed.
    pub(crate) fn release(&mut self, id: LeaseId, now: Timestamp) -> (LeaseStatus, bool) {
        let Some(place) = self.leases.iter().position(|lease| lease.id == id) else {
            return (LeaseStatus::Unknown, false);
        };
        let lease = self.leases.remove(place);
        (if lease.expires > now { LeaseStatus::Done } else { LeaseStatus::Expired }, true)
    }

    /// Lets a lease that is still held expire `length` from now.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Timestamp, length: u64) -> (LeaseStatus, bool) {
        let Some(place) = self.leases.iter().position(|lease| lease.id == id) else {
            return (LeaseStatus::Unknown, false);
        };
        if self.leases[place].expires <= now {
            return (LeaseStatus::Expired, false);
        }
        let lease = self.leases.remove(place);
        self.insert(Lease { acquired: now, expires: now.plus(length), ..lease });
        (LeaseStatus::Done, true)
    }

    /// Moves acquisitions that lie ahead of `now` to `now`, their expiry moving along.
    pub(crate) fn correct(&mut self, now: Timestamp) -> bool {
        let mut ahead = false;
        for lease in self.leases.iter_mut().filter(|lease| lease.acquired > now) {
            lease.expires = now.plus(lease.expires - lease.acquired);
            lease.acquired = now;
            ahead = true;
        }
        if ahead {
            self.leases.sort_by_key(|lease| lease.expires);
        }
        ahead
    }

    fn insert(&mut self, lease: Lease) {
        if self.leases.len() == self.leases.capacity() {
            self.leases.reserve_exact(self.grown_capacity());
        }
        let place = self.leases.partition_point(|held| held.expires <= lease.expires);
        self.leases.insert(place, lease);
    }

    /// How many have expired; those that are still held come after them.
    pub fn expired(&self, now: Timestamp) -> usize {
        self.leases.partition_point(|lease| lease.expires <= now)
    }
}

impl Concurrency {
    /// The wait until a new slot is free.
    fn wait_for_slot(&self, leases: &Leases, now: Timestamp, slots: usize) -> Wait {
        let expired = leases.expired(now);
        let over = (leases.leases.len() - expired + slots).saturating_sub(self.max as usize);
        match over {
            0 => Wait::Met,
            // The (held - max + 1)-th earliest expiry frees the slot (semantics 24).
            over => match leases.leases.get(expired + over - 1) {
                Some(lease) => Wait::For(lease.expires - now),
                None => Wait::Never,
            },
        }
    }
}

impl Arithmetic for Concurrency {
    type State = Leases;

    fn correct(&self, leases: &mut Leases, now: Timestamp) -> bool {
        leases.correct(now)
    }

    /// A refund does nothing here: a slot is given back by the id of its lease (semantics 11).
    fn refund(&self, _: &mut Leases, _: Timestamp, _: u32) -> bool {
        false
    }

    fn undo(&self, leases: &mut Leases, now: Timestamp, _: &Charged, id: Id) -> bool {
        leases.release(id, now).1
    }

    fn wait(&self, leases: &Leases, now: Timestamp, need: Need) -> Wait {
        match need {
            Need::Fits(_) | Need::OneLeft => self.wait_for_slot(leases, now, 1),
        }
    }

    /// Takes one slot, whatever the units.
    fn charge(&self, leases: &mut Leases, now: Timestamp, _: u32, id: Id) {
        let expired = leases.expired(now);
        leases.leases.drain(..expired);
        if !leases.leases.iter().any(|lease| lease.id == id) {
            leases.insert(Lease { id, acquired: now, expires: now.plus(self.lease) });
        }
    }

    fn report(&self, leases: &Leases, now: Timestamp) -> Report {
        let expired = leases.expired(now);
        let held = u32::try_from(leases.leases.len() - expired).unwrap_or(u32::MAX);
        let reset = leases.leases[expired..].last().map_or(0, |lease| lease.expires - now);
        Report { limit: self.max, remaining: self.max.saturating_sub(held), reset }
    }
}
