//! Concurrency: a set of leases, each with its own expiry.
//!
//! A lease is held under an id that was made before the store was asked, so that a timed-out acquire can be undone
//! and a repeated one takes no second slot. Expired leases free themselves one by one. Releasing is idempotent and
//! touches nobody else's lease.

use super::{Arithmetic, Lease, LeaseId, Leases, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The numbers of a concurrency limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Concurrency {
    /// Slots.
    pub max: u32,
    /// Microseconds until a lease that nobody releases expires.
    pub lease: u64,
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

    fn undo(&self, leases: &mut Leases, now: Timestamp, _: &ReportedCharge, id: LeaseId) -> bool {
        leases.release(id, now).1
    }

    fn wait(&self, leases: &Leases, now: Timestamp, need: Need) -> Wait {
        match need {
            Need::Fits(_) | Need::OneLeft => self.wait_for_slot(leases, now, 1),
        }
    }

    /// Takes one slot, whatever the units.
    fn charge(&self, leases: &mut Leases, now: Timestamp, _: u32, id: LeaseId) {
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
