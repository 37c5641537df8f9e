//! The leases of a concurrency limit: held slots, each with its own expiry.

use crate::clock::Timestamp;

/// The result of a change of a slot or a hold under a lease, or of a look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LeaseStatus {
    /// It was held and is now released or settled.
    Done,
    /// It is held: it was renewed, or a look found it. It ends after this many microseconds, unless it is renewed.
    Held(u64),
    /// It had ended; another request may have its slot already. A renewal was not made because of that, or because
    /// something else of the lease had ended (semantics 50).
    Expired,
    /// It is unknown: never acquired, already released, or expired and removed.
    Unknown,
    /// The store did not answer. A release or a settlement reaches it later.
    Unanswered,
}

impl LeaseStatus {
    /// The fate of a lease over several slots and holds: expired if one of them was, else done or held if one was. Of
    /// those that are held, the first to end counts.
    pub fn of_several(statuses: impl IntoIterator<Item = Self>) -> Self {
        statuses.into_iter().fold(LeaseStatus::Unknown, |fate, status| match (fate, status) {
            (LeaseStatus::Held(one), LeaseStatus::Held(other)) => LeaseStatus::Held(one.min(other)),
            (fate, status) if status.rank() > fate.rank() => status,
            (fate, _) => fate,
        })
    }

    fn rank(self) -> u8 {
        match self {
            LeaseStatus::Expired => 2,
            LeaseStatus::Done | LeaseStatus::Held(_) => 1,
            LeaseStatus::Unknown | LeaseStatus::Unanswered => 0,
        }
    }

    /// Whether it is held.
    pub(crate) fn is_held(self) -> bool {
        matches!(self, LeaseStatus::Held(_))
    }

    /// The status of a renewal that is not made, by a look.
    pub(crate) fn not_renewed(self) -> Self {
        if self.is_held() { LeaseStatus::Expired } else { self }
    }
}

/// The id of a lease, unique to a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeaseId(pub u128);

/// A held slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The id of the lease.
    pub id: LeaseId,
    /// When it was acquired.
    pub acquired: Timestamp,
    /// When it expires, unless it is released or renewed.
    pub expires: Timestamp,
}

/// The leases of one counter, in order of expiry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leases {
    pub(super) leases: Vec<Lease>,
}

impl Leases {
    /// The leases, in order of expiry. Expired ones may be among them until the next charge.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    /// Restores a set from its leases, in any order.
    pub(crate) fn restore(mut leases: Vec<Lease>) -> Self {
        leases.sort_by_key(|lease| lease.expires);
        Self { leases }
    }

    /// Bytes held on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.leases.capacity() * size_of::<Lease>()
    }

    /// Bytes that one more lease may add on the heap.
    pub(crate) fn growth(&self) -> usize {
        match self.leases.len() < self.leases.capacity() {
            true => 0,
            false => self.grown_capacity() * size_of::<Lease>(),
        }
    }

    /// Number of leases by which a full set grows: it doubles.
    fn grown_capacity(&self) -> usize {
        self.leases.len().max(4)
    }

    /// Releases a lease. Returns its status, and whether anything changed.
    pub(crate) fn release(&mut self, id: LeaseId, now: Timestamp) -> (LeaseStatus, bool) {
        let Some(index) = self.leases.iter().position(|lease| lease.id == id) else {
            return (LeaseStatus::Unknown, false);
        };
        let lease = self.leases.remove(index);
        (if lease.expires > now { LeaseStatus::Done } else { LeaseStatus::Expired }, true)
    }

    /// Whether a lease is held, and for how long. Moments after now were corrected before.
    pub(crate) fn status(&self, id: LeaseId, now: Timestamp) -> LeaseStatus {
        match self.leases.iter().find(|lease| lease.id == id) {
            Some(lease) if lease.expires > now => LeaseStatus::Held(lease.expires - now),
            Some(_) => LeaseStatus::Expired,
            None => LeaseStatus::Unknown,
        }
    }

    /// Makes a held lease expire `length` microseconds from now, or its own length. Returns its status, and whether
    /// anything changed.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Timestamp, length: Option<u64>) -> (LeaseStatus, bool) {
        let Some(index) = self.leases.iter().position(|lease| lease.id == id) else {
            return (LeaseStatus::Unknown, false);
        };
        if self.leases[index].expires <= now {
            return (LeaseStatus::Expired, false);
        }
        let lease = self.leases.remove(index);
        let length = length.unwrap_or(lease.expires - lease.acquired);
        self.insert(Lease { acquired: now, expires: now.plus(length), ..lease });
        (LeaseStatus::Held(length), true)
    }

    /// Moves acquisitions after `now` to `now`, and each expiry by as much. Returns whether anything moved.
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

    pub(super) fn insert(&mut self, lease: Lease) {
        if self.leases.len() == self.leases.capacity() {
            self.leases.reserve_exact(self.grown_capacity());
        }
        let index = self.leases.partition_point(|held| held.expires <= lease.expires);
        self.leases.insert(index, lease);
    }

    /// Number of expired leases, which come before those that are held.
    pub(crate) fn expired(&self, now: Timestamp) -> usize {
        self.leases.partition_point(|lease| lease.expires <= now)
    }
}
