//! What rules ask and stores answer: the plan of a request and what became of it, as plain data.
//!
//! [`advance`] is the meaning of a plan: the memory store runs it, and what runs inside a shared store is its
//! translation.

mod advance;
mod fault;
mod merge;

use std::fmt;

use smallvec::SmallVec;

pub(crate) use self::advance::advance_each;
pub use self::advance::{GroupOutcome, StateCell, advance, change_lease, undo};
pub use self::fault::Fault;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, LeaseStatus, Limit, OnStoreError, State};

/// Names one counter: a keyed hash (semantics 1 and 2), so that no identity reaches a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CounterName(pub [u64; 2]);

impl CounterName {
    /// Where the counter lives in a store of many places: counters that share it can be decided together. Naming puts
    /// the hash of one entry of the key here (see [`crate::rules`]).
    pub fn partition(&self) -> u16 {
        self.0[1] as u16
    }

    /// The same counter, living there.
    pub(crate) fn in_partition(self, partition: u16) -> Self {
        let [first, second] = self.0;
        Self([first, second & !0xffff | u64::from(partition)])
    }
}

/// As logs and tools show it: 32 hexadecimal digits.
impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.0;
        write!(f, "{first:016x}{second:016x}")
    }
}

/// When a check passes (semantics 9 and 10). All needs of a check must be met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Needs {
    /// The cost that must fit. Zero asks nothing.
    pub fits: u32,
    /// One whole unit must be left: a peek, or a charge with `overdraw = true`.
    pub one_left: bool,
}

/// What a check charges, by how its group ends (semantics 9). Costs of zero charge nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Charges {
    /// When the group is admitted.
    pub admitted: u32,
    /// When the group is refused and this check itself passes (`charge = "own"` and `"always"`).
    pub passed: u32,
    /// When the group is refused and this check refuses too (`charge = "always"`).
    pub refused: u32,
}

/// One counter, one limit, one cost: the unit that a store executes. A group holds at most one check a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Check {
    /// Which counter.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// By which numbers.
    pub limit: Limit,
    /// When it passes.
    pub needs: Needs,
    /// What it charges.
    pub charges: Charges,
    /// Units given back before anything is charged, whatever the verdict (semantics 11).
    pub refund: u32,
    /// Counts and reports but never denies (semantics 13).
    pub shadow: bool,
    /// Refuses always: a limit of zero that came with the request (semantics 18).
    pub always_denied: bool,
    /// What to answer when the store cannot.
    pub on_store_error: OnStoreError,
}

impl Check {
    /// A check that passes when `cost` fits, and charges it when its group is admitted. Its store is the first one.
    pub fn charge(counter: CounterName, limit: Limit, cost: u32) -> Self {
        Self {
            needs: Needs { fits: cost, ..Needs::default() },
            charges: Charges { admitted: cost, ..Charges::default() },
            ..Self::look(counter, limit)
        }
    }

    /// A check that needs nothing and charges nothing: it reports what the counter holds.
    pub fn look(counter: CounterName, limit: Limit) -> Self {
        Self {
            counter,
            store: 0,
            limit,
            needs: Needs::default(),
            charges: Charges::default(),
            refund: 0,
            shadow: false,
            always_denied: false,
            on_store_error: OnStoreError::Local,
        }
    }

    /// What this check came to, where a store that decides elsewhere tells the state after its group and whether the
    /// check passes.
    pub(crate) fn outcome(&self, state: State, passes: bool, now: Timestamp) -> Outcome {
        StateCell::judged(state, passes).settle(self, now, 0, LeaseId::default())
    }
}

/// Something done to a lease, by its id. It never fails: an unknown or expired lease is no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseChange {
    /// The counter that holds the lease.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// Which lease.
    pub lease: LeaseId,
    /// What to do.
    pub action: LeaseAction,
}

/// Takes a charge back exactly, of a group that another store refused: nobody may tell afterwards that it was made.
///
/// Unlike a refund it does not give to the caller what others paid for: a window that has ended since owes nothing, and
/// of a log the very grants go that were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undo {
    /// The counter that was charged.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// By which numbers.
    pub limit: Limit,
    /// What was charged.
    pub units: u32,
    /// When, by the clock of the store: [`Applied::at`].
    pub at: Timestamp,
    /// What was told then: microseconds until nothing is counted.
    pub reset: u64,
}

impl Undo {
    /// A check that needs nothing of the counter and charges nothing.
    pub(crate) fn look(&self) -> Check {
        Check { store: self.store, ..Check::look(self.counter, self.limit) }
    }
}

/// What to do to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    /// Gives the slot back.
    Release,
    /// Lets a lease that is still held expire this many microseconds from now.
    Renew(u64),
}

/// All checks of one request, as plain data (semantics 6).
///
/// Lease changes come first, then what is taken back. Then the groups run in order, each admitted whole or not at all, each seeing what the
/// one before did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Releases and renewals, which take effect whatever the verdict.
    pub changes: SmallVec<[LeaseChange; 1]>,
    /// Charges to take back, made under this plan's lease.
    pub undos: Vec<Undo>,
    /// The checks of all groups, one group after the other.
    pub checks: SmallVec<[Check; 3]>,
    /// Where each group ends in `checks`.
    pub groups: SmallVec<[u16; 2]>,
    /// The groups are refused already, whatever their checks say; what is charged on refusals still is.
    pub refused: bool,
    /// The id under which every slot of this request is held.
    pub lease: LeaseId,
}

impl Plan {
    /// A plan of one group.
    pub fn of(checks: impl IntoIterator<Item = Check>) -> Self {
        let checks: SmallVec<[Check; 3]> = checks.into_iter().collect();
        let end = u16::try_from(checks.len()).expect("a plan has at most 65535 checks");
        Self { checks, groups: SmallVec::from_slice(&[end]), ..Self::default() }
    }

    /// Whether there is nothing for a store to do.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.changes.is_empty() && self.undos.is_empty()
    }

    /// The groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = &[Check]> {
        let mut start = 0;
        self.groups.iter().map(move |&end| {
            let group = &self.checks[start..usize::from(end)];
            start = usize::from(end);
            group
        })
    }
}

/// What one check came to, after its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Whether this check itself passes; its group may still have been refused by another.
    pub passes: bool,
    /// The most units the counter holds: the burst of a bucket, the limit of a window, the slots of a concurrency.
    pub limit: u32,
    /// Whole units left.
    pub remaining: u32,
    /// Microseconds until nothing is counted.
    pub reset: u64,
    /// On a refusal: microseconds until the same check would pass. Absent when it never will.
    pub retry_after: Option<u64>,
}

/// What a plan came to.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Whether every group was admitted.
    pub admitted: bool,
    /// One answer for each check of the plan.
    pub answers: SmallVec<[Result<Outcome, Fault>; 3]>,
    /// One status for each lease change of the plan.
    pub statuses: SmallVec<[LeaseStatus; 1]>,
    /// The moment it was decided by, of the clock that decides.
    pub at: Timestamp,
}
