//! Concurrency: a set of leases, each with its own expiry.
//!
//! The id of a lease is made before the store is called, so that an acquire that timed out can be undone and a retry
//! takes no second slot. Leases expire one by one. Releasing is idempotent and affects no other lease.

use super::{Arithmetic, Lease, LeaseId, Leases, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The parameters of a concurrency limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Concurrency {
    /// Number of slots.
    pub max: u32,
    /// Microseconds until a lease expires that is neither released nor renewed.
    pub lease: u64,
}

impl Concurrency {
    /// The time until this many more slots are free.
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

    /// Does nothing: a slot is released by the id of its lease (semantics 11).
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

    /// Takes one slot, regardless of the units.
    fn charge(&self, leases: &mut Leases, now: Timestamp, _: u32, id: LeaseId) -> u64 {
        let expired = leases.expired(now);
        leases.leases.drain(..expired);
        if !leases.leases.iter().any(|lease| lease.id == id) {
            leases.insert(Lease { id, acquired: now, expires: now.plus(self.lease) });
        }
        1
    }

    fn report(&self, leases: &Leases, now: Timestamp) -> Report {
        let expired = leases.expired(now);
        let held = u32::try_from(leases.leases.len() - expired).unwrap_or(u32::MAX);
        let reset = leases.leases[expired..].last().map_or(0, |lease| lease.expires - now);
        Report { limit: self.max, remaining: self.max.saturating_sub(held), reset }
    }
}
