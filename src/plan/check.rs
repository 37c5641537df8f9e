//! One check: one counter, one limit, one cost.

use std::fmt;

use crate::limiter::{Limit, OnStoreError};

/// The name of a counter: a keyed hash (semantics 1 and 2), so that no identity reaches a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CounterName(pub [u64; 2]);

impl CounterName {
    /// The partition of the counter in a partitioned store, a hash of one entry of the key. Counters of one partition
    /// are decided together.
    pub fn partition(&self) -> u16 {
        self.0[1] as u16
    }

    /// The same counter in this partition.
    pub(crate) fn in_partition(self, partition: u16) -> Self {
        let [first, second] = self.0;
        Self([first, second & !0xffff | u64::from(partition)])
    }
}

/// 32 hexadecimal digits, as in logs and tools.
impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.0;
        write!(f, "{first:016x}{second:016x}")
    }
}

/// The conditions under which a check passes (semantics 9 and 10). All must be met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Needs {
    /// The cost that must fit. Zero always fits.
    pub fits: u32,
    /// One whole unit must be left: a peek, or a charge with `overdraw = true`.
    pub one_left: bool,
}

/// The units that a check charges, by the verdict of its group (semantics 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Charges {
    /// When the group is admitted.
    pub admitted: u32,
    /// When the group is refused and this check passes (`charge = "own"` and `"always"`).
    pub passed: u32,
    /// When the group is refused and this check refuses too (`charge = "always"`).
    pub refused: u32,
}

/// One counter, one limit, one cost: the unit that a store executes. A group has at most one check for each counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Check {
    /// The counter.
    pub counter: CounterName,
    /// The index of the store that holds it.
    pub store: u16,
    /// The limit.
    pub limit: Limit,
    /// The conditions.
    pub needs: Needs,
    /// The units it charges.
    pub charges: Charges,
    /// Units given back before anything is charged, regardless of the verdict (semantics 11).
    pub refund: u32,
    /// Counts and reports but never denies (semantics 13).
    pub shadow: bool,
    /// Always refuses: an override with a limit of zero (semantics 18).
    pub always_denied: bool,
    /// The policy when the store does not answer.
    pub on_store_error: OnStoreError,
}

impl Check {
    /// A check that passes when `cost` fits, and charges it when its group is admitted. It uses the first store.
    pub fn charge(counter: CounterName, limit: Limit, cost: u32) -> Self {
        Self {
            needs: Needs { fits: cost, ..Needs::default() },
            charges: Charges { admitted: cost, ..Charges::default() },
            ..Self::look(counter, limit)
        }
    }

    /// The charges, without those that a check in shadow makes on no refusal.
    pub(crate) fn charges_on_verdicts(&self) -> Charges {
        match self.shadow {
            true => Charges { passed: 0, refused: 0, ..self.charges },
            false => self.charges,
        }
    }

    /// Whether it records what was used, whatever the verdict (semantics 12): it asks for no room of its own.
    pub(crate) fn records_use(&self) -> bool {
        self.charges.refused > 0 && self.needs.fits == 0
    }

    /// Whether it takes a slot when its group is admitted.
    pub(crate) fn takes_slot(&self) -> bool {
        matches!(self.limit, Limit::Concurrency(_)) && self.charges.admitted > 0
    }

    /// The units that this check charges with a verdict.
    pub(crate) fn units_charged(&self, admitted: bool, passes: bool) -> u32 {
        let charges = self.charges_on_verdicts();
        match (admitted, passes) {
            (true, true) => charges.admitted,
            (false, true) => charges.passed,
            (_, false) => charges.refused,
        }
    }

    /// What this check adds to its counter with a verdict, if the counter can hold all of it: levels of a bucket, else
    /// units.
    pub(crate) fn charged(&self, admitted: bool, passes: bool) -> u64 {
        let units = self.units_charged(admitted, passes);
        match &self.limit {
            Limit::TokenBucket(bucket) => bucket.levels(units),
            Limit::SlidingWindow(window) => units.min(window.limit).into(),
            Limit::Concurrency(_) => units.min(1).into(),
            Limit::SlidingCounter(_) | Limit::FixedWindow(_) => units.into(),
        }
    }

    /// A check that needs nothing and charges nothing: it only reports the counter.
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
}
