//! Holds: charges of a counter that a lease can still correct, each with its own end (semantics 37 to 42).
//!
//! A hold is in addition to the state of its counter, and changes nothing in how that counts. It says what to take back,
//! or what to compare with, when its lease is settled.
//!
//! ```text
//!   charged                  end = since + length          end + length
//!      |---------- held ---------|----------- lost -----------|  forgotten
//!        settled: by the            settled late: `expired`
//!        difference              ^
//!                                `- with `lost = "release"` it is given back here
//! ```

use super::{Arithmetic, LeaseId, LeaseStatus, Limit, ReportedCharge, State, TokenBucket, with_algorithm};
use crate::clock::Timestamp;

/// The most holds that a counter remembers. A charge beyond that cannot be corrected.
pub const MAX_HOLDS: usize = 10_000;

/// The longest hold: a day, in microseconds.
pub const MAX_HOLD: u64 = 86_400_000_000;

/// What becomes of a hold that nobody ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub enum Lost {
    /// Its charge is given back at its end.
    Release,
    /// It stays charged.
    #[default]
    Charge,
}

/// A charge that a lease can correct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The lease.
    pub id: LeaseId,
    /// What the charge added: levels of a bucket, else units.
    pub charged: u64,
    /// The moment of the charge.
    pub at: Timestamp,
    /// The reset reported with the charge: microseconds until the counter is empty.
    pub reset: u64,
    /// Levels in a token, and those that drain in a microsecond, of the bucket that charged; zero for other limits, whose
    /// window is part of the name of the counter.
    pub rate: (u64, u64),
    /// The moment of the charge or of the last renewal.
    pub since: Timestamp,
    /// Microseconds from then until it ends.
    pub length: u64,
    /// What becomes of it at its end.
    pub lost: Lost,
    /// Whether its end has passed and has taken effect.
    pub ended: bool,
}

impl Hold {
    /// The hold of what a limit charged.
    pub(crate) fn of(limit: &Limit, id: LeaseId, charged: ReportedCharge, length: u64, lost: Lost) -> Self {
        let rate = match limit {
            Limit::TokenBucket(bucket) => (bucket.unit(), bucket.drain()),
            _ => (0, 0),
        };
        let ReportedCharge { charged, at, reset, .. } = charged;
        Self { id, charged, at, reset, rate, since: at, length, lost, ended: false }
    }

    /// When it ends.
    pub fn ends(&self) -> Timestamp {
        self.since.plus(self.length)
    }

    /// When it is forgotten.
    pub fn forgotten(&self) -> Timestamp {
        self.ends().plus(self.length)
    }

    /// The order in which holds are looked at: lost ones, the first to be forgotten first, then held ones by their ends.
    fn order(&self) -> (bool, Timestamp, LeaseId) {
        match self.ended {
            true => (false, self.forgotten(), self.id),
            false => (true, self.ends(), self.id),
        }
    }

    /// The units that are held, rounded up.
    pub fn units(&self) -> u32 {
        let units = match self.rate {
            (0, _) => self.charged,
            (unit, _) => self.charged.div_ceil(unit),
        };
        u32::try_from(units).unwrap_or(u32::MAX)
    }

    /// What these units are, as the hold counts: at most what was charged.
    fn part(&self, units: u32) -> u64 {
        u64::from(units).saturating_mul(self.rate.0.max(1)).min(self.charged)
    }

    /// Takes a part of its charge out of the state at a moment, which may have passed. `limit` is any limit of the counter.
    fn give_back(&self, limit: &Limit, state: &mut State, charged: u64, now: Timestamp) -> bool {
        if charged == 0 || matches!(state, State::Empty) {
            return false;
        }
        let charge = ReportedCharge { charged, at: self.at, reset: self.reset, only_if_last: false };
        let own = match (limit, self.rate) {
            (Limit::TokenBucket(_), (unit, drain)) if unit > 0 => Limit::TokenBucket(TokenBucket::of_rate(unit, drain)),
            (limit, _) => *limit,
        };
        with_algorithm!(&own, state, &[], |algorithm, state| algorithm.undo(state, now, &charge, self.id))
    }
}

/// The holds of one counter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holds {
    /// Sorted by [`Hold::order`].
    holds: Vec<Hold>,
    /// No hold was made or renewed later.
    newest: Timestamp,
}

impl Holds {
    /// The holds: lost ones first, then held ones by their ends.
    pub fn iter(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Restores a set from its holds, in any order.
    pub(crate) fn restore(mut holds: Vec<Hold>) -> Self {
        holds.sort_by_key(Hold::order);
        let newest = holds.iter().map(|hold| hold.since).max().unwrap_or_default();
        Self { holds, newest }
    }

    /// Bytes held on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.holds.capacity() * size_of::<Hold>()
    }

    /// Bytes that one more hold may add on the heap.
    pub(crate) fn growth(&self) -> usize {
        match self.holds.len() < self.holds.capacity() {
            true => 0,
            false => self.grown_capacity() * size_of::<Hold>(),
        }
    }

    /// Number of holds by which a full set grows: by half.
    fn grown_capacity(&self) -> usize {
        (self.holds.len() / 2).max(1)
    }

    /// When the last one is forgotten.
    pub(crate) fn last_forgotten(&self) -> Timestamp {
        self.holds.iter().map(Hold::forgotten).max().unwrap_or_default()
    }

    /// The end of the first hold that is given back at its end.
    pub(crate) fn first_release(&self) -> Option<Timestamp> {
        self.held().find(|hold| hold.lost == Lost::Release).map(Hold::ends)
    }

    /// The units that are held and can be corrected.
    pub fn held_units(&self) -> u64 {
        self.held().map(|hold| u64::from(hold.units())).sum()
    }

    /// The holds that have not ended, by their ends.
    fn held(&self) -> impl Iterator<Item = &Hold> {
        self.holds[self.ended()..].iter()
    }

    /// Number of lost holds, which come first.
    fn ended(&self) -> usize {
        self.holds.partition_point(|hold| hold.ended)
    }

    /// Moves moments after `now` to `now` (semantics 3), and the ends with them. Returns whether anything moved.
    pub(crate) fn correct(&mut self, now: Timestamp) -> bool {
        if self.newest <= now {
            return false;
        }
        for hold in &mut self.holds {
            hold.at = hold.at.min(now);
            hold.since = hold.since.min(now);
        }
        self.newest = now;
        self.holds.sort_by_key(Hold::order);
        true
    }

    /// Ends the holds whose end has passed, in order of their ends. Those with [`Lost::Release`] are given back by the
    /// numbers that charged them, as if that had happened when they ended. Forgets those that were lost for their length.
    /// Returns whether holds changed, and whether the state did.
    ///
    /// `limit` is any limit of the counter. Moments of the state ahead of now are corrected.
    pub(crate) fn end(&mut self, limit: &Limit, state: &mut State, now: Timestamp) -> (bool, bool) {
        let mut wrote = false;
        let first = self.ended();
        let due = self.holds[first..].partition_point(|hold| hold.ends() <= now);
        for hold in &mut self.holds[first..first + due] {
            if hold.lost == Lost::Release {
                // Only a bucket drains meanwhile, and what was charged after the end is not given back. Windows know by the
                // moment of the charge what has ended.
                let ended = if let State::Bucket(level) = &*state { hold.ends().max(level.at) } else { now };
                wrote |= hold.give_back(limit, state, hold.charged, ended);
            }
            hold.ended = true;
        }
        if due > 0 {
            self.holds[..first + due].sort_by_key(Hold::order);
        }
        let forgotten = self.holds[..first + due].partition_point(|hold| hold.forgotten() <= now);
        self.holds.drain(..forgotten);
        (due > 0 || forgotten > 0, wrote)
    }

    /// Adds a hold. One of the same lease is replaced. A full set forgets the oldest lost hold first; returns whether
    /// there is room.
    pub(crate) fn insert(&mut self, hold: Hold) -> bool {
        self.remove(hold.id);
        if self.holds.len() >= MAX_HOLDS {
            if !self.holds[0].ended {
                return false;
            }
            self.holds.remove(0);
        }
        if self.holds.len() == self.holds.capacity() {
            self.holds.reserve_exact(self.grown_capacity());
        }
        self.newest = self.newest.max(hold.since);
        let index = self.holds.partition_point(|held| held.order() < hold.order());
        self.holds.insert(index, hold);
        true
    }

    /// Removes the hold of a lease.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Hold> {
        let index = self.holds.iter().position(|hold| hold.id == id)?;
        Some(self.holds.remove(index))
    }

    /// Whether the lease has a hold, and for how long. A hold whose end has passed is ended by the next check or change.
    pub(crate) fn status(&self, id: LeaseId, now: Timestamp) -> LeaseStatus {
        let Some(hold) = self.holds.iter().find(|hold| hold.id == id) else { return LeaseStatus::Unknown };
        // As it is once its moments are corrected.
        let hold = Hold { since: hold.since.min(now), ..*hold };
        match hold.ends() {
            ends if !hold.ended && ends > now => LeaseStatus::Held(ends - now),
            _ if hold.forgotten() > now => LeaseStatus::Expired,
            _ => LeaseStatus::Unknown,
        }
    }

    /// Makes the hold of a lease end its length from now, or `length` if there is one. Ended ones were ended before.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Timestamp, length: Option<u64>) -> LeaseStatus {
        let Some(hold) = self.holds.iter().find(|hold| hold.id == id) else { return LeaseStatus::Unknown };
        if hold.ended {
            return LeaseStatus::Expired;
        }
        let renewed = Hold { since: now, length: length.unwrap_or(hold.length), ..*hold };
        self.insert(renewed);
        LeaseStatus::Held(renewed.length)
    }

    /// Settles the hold of a lease with the units that were used, or those that were charged, and forgets it: fewer give
    /// the rest back, more are charged now by `limit`. Returns the status, and whether the state changed.
    ///
    /// Holds whose end has passed were ended before. One that was given back then is charged anew.
    pub(crate) fn settle(
        &mut self,
        limit: &Limit,
        state: &mut State,
        (id, units): (LeaseId, Option<u32>),
        now: Timestamp,
    ) -> (LeaseStatus, bool) {
        let Some(hold) = self.remove(id) else { return (LeaseStatus::Unknown, false) };
        let held = hold.units();
        let used = units.unwrap_or(held);
        let (given_back, more) = match (hold.ended, hold.lost) {
            (true, Lost::Release) => (0, used),
            _ if units.is_none() => (0, 0),
            _ => (hold.charged - hold.part(used), used.saturating_sub(held)),
        };
        let mut wrote = hold.give_back(limit, state, given_back, now);
        if more > 0 {
            with_algorithm!(limit, state, &[], |algorithm, state| algorithm.charge(state, now, more, id));
            wrote = true;
        }
        (if hold.ended { LeaseStatus::Expired } else { LeaseStatus::Done }, wrote)
    }
}
