//! One check: one counter, one limit, one cost.

use std::fmt;

use crate::limiter::{Limit, Lost, MAX_HOLD, OnStoreError};

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

/// What a check has to do with the holds of its counter (semantics 37).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Holding {
    /// No rule holds on its limiter.
    #[default]
    None,
    /// A rule holds on its limiter, so that a refusal can end before its time.
    Kept,
    /// A rule holds on its limiter with [`Lost::Release`]: what has ended is given back before the check.
    Released,
    /// Like [`Holding::Released`], and the outcome says how many units are held.
    Reported,
    /// What this check charges when its group is admitted is held.
    Hold {
        /// For how many milliseconds, at least one.
        millis: u32,
        /// What becomes of it at its end.
        lost: Lost,
    },
}

impl Holding {
    /// Whether a store has to look at the holds of the counter.
    #[inline]
    pub fn looks(self) -> bool {
        !matches!(self, Holding::None | Holding::Kept)
    }

    /// Whether what is charged on admission is held.
    pub fn holds(self) -> bool {
        matches!(self, Holding::Hold { .. })
    }

    /// The length of the hold in microseconds, and what becomes of it.
    pub(crate) fn terms(self) -> Option<(u64, Lost)> {
        match self {
            Holding::Hold { millis, lost } => Some((u64::from(millis.max(1)) * 1_000, lost)),
            Holding::None | Holding::Kept | Holding::Released | Holding::Reported => None,
        }
    }

    /// The same with this many microseconds for the length of a hold.
    pub(crate) fn lasting(self, length: u64) -> Self {
        match self {
            Holding::Hold { lost, .. } => {
                Holding::Hold { millis: u32::try_from(length.min(MAX_HOLD).div_ceil(1_000)).unwrap_or(u32::MAX), lost }
            }
            other => other,
        }
    }

    /// The same without a hold.
    pub(crate) fn looking(self) -> Self {
        if self.holds() { Holding::Released } else { self }
    }

    /// Both: the longest hold, and `charge` before `release`.
    pub(crate) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Holding::Hold { millis, lost }, Holding::Hold { millis: longer, lost: other }) => {
                Holding::Hold { millis: millis.max(longer), lost: lost.max(other) }
            }
            (hold @ Holding::Hold { .. }, _) | (_, hold @ Holding::Hold { .. }) => hold,
            (Holding::Reported, _) | (_, Holding::Reported) => Holding::Reported,
            (Holding::Released, _) | (_, Holding::Released) => Holding::Released,
            (Holding::Kept, _) | (_, Holding::Kept) => Holding::Kept,
            (Holding::None, Holding::None) => Holding::None,
        }
    }
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
    /// What it has to do with holds.
    pub holding: Holding,
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
            Limit::Distinct(distinct) => {
                if units > 0 {
                    distinct.asked.count() as u64
                } else {
                    0
                }
            }
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
            holding: Holding::None,
        }
    }
}
