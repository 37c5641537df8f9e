//! The plan of a request and the answers of the stores, as plain data.
//!
//! [`advance`] defines the meaning of a plan: the memory store runs it, and shared stores run a translation of it.

mod advance;
mod change;
mod changes;
mod check;
mod fault;
mod merge;
mod outcome;
mod values;

use std::num::NonZeroU32;

use smallvec::SmallVec;

pub(crate) use self::advance::advance_each;
pub use self::advance::{Asker, GroupOutcome, StateCell, advance, change_hold, change_lease, undo};
pub use self::change::{HoldAction, HoldChange, HoldChanges, LeaseAction, LeaseChange, Undo};
pub use self::changes::Change;
pub use self::check::{Charges, Check, CounterName, Holding, Needs};
pub use self::fault::Fault;
pub use self::outcome::{Applied, Outcome};
pub use self::values::Values;
use crate::limiter::{LeaseId, LeaseStatus};

/// All checks of one request, as plain data (semantics 6).
///
/// Changes of slots come first, then those of holds, then charges are taken back. Then the groups are decided in order.
/// Each is admitted whole or not at all, and sees the charges of those before it. If the plan looks at a slot or a hold
/// that is held, they charge nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Slots that are released, renewed or looked at, regardless of the verdict.
    pub changes: SmallVec<[LeaseChange; 1]>,
    /// Holds that are settled, renewed or looked at, regardless of the verdict too.
    pub holds: HoldChanges,
    /// Charges to take back, which were made under this plan's lease.
    pub undos: Vec<Undo>,
    /// The checks of all groups, one group after the other.
    pub checks: SmallVec<[Check; 3]>,
    /// The values that checks of distinct ones ask for.
    pub values: Values,
    /// Where each group ends in `checks`.
    pub groups: SmallVec<[u16; 2]>,
    /// Refuses all groups regardless of their checks, which still make their charges on refusals.
    pub refused: bool,
    /// The id under which every slot of this request is held.
    pub lease: LeaseId,
    /// An id of this process that shared stores remember for a while: refunds, and charges that are made whatever the
    /// verdict, take effect only in the first of the calls that carry it. Four bytes keep a plan from growing by 16.
    pub once: Option<NonZeroU32>,
}

impl Plan {
    /// A plan of one group.
    ///
    /// # Panics
    ///
    /// With more than 65535 checks.
    pub fn of(checks: impl IntoIterator<Item = Check>) -> Self {
        let checks: SmallVec<[Check; 3]> = checks.into_iter().collect();
        let end = u16::try_from(checks.len()).expect("a plan has at most 65535 checks");
        Self { checks, groups: SmallVec::from_slice(&[end]), ..Self::default() }
    }

    /// Who asks for its checks.
    pub fn asker(&self) -> Asker<'_> {
        Asker { lease: self.lease, values: self.values.as_slice() }
    }

    /// A plan of the same asker that has nothing to do yet. Checks and undos of this one keep the places of their values.
    #[must_use]
    pub fn of_same_asker(&self) -> Self {
        Self { lease: self.lease, values: self.values.clone(), ..Self::default() }
    }

    /// Whether the plan has nothing for a store to do.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.changes.is_empty() && self.holds.is_empty() && self.undos.is_empty()
    }

    /// Whether its lease has a name by which its caller finds it again: it looks at what is held under it (semantics 53).
    /// What such a lease took is not given back because an answer was not heard.
    pub(crate) fn has_named_lease(&self) -> bool {
        self.each_change().any(|change| change.looks())
    }

    /// Its changes of slots and then of holds, in the order of [`Applied::statuses`](crate::plan::Applied::statuses).
    pub fn each_change(&self) -> impl Iterator<Item = Change> {
        self.changes.iter().copied().map(Change::Slot).chain(self.holds.iter().copied().map(Change::Hold))
    }

    /// Makes its changes in order by `make`, which makes one and returns its status. If something has ended that the plan
    /// renews, nothing of that lease is renewed.
    pub fn make_changes(&self, mut make: impl FnMut(Change) -> LeaseStatus) -> SmallVec<[LeaseStatus; 1]> {
        let renewals = || self.each_change().filter(Change::renews);
        let mut ended: SmallVec<[LeaseId; 1]> = SmallVec::new();
        if renewals().nth(1).is_some() {
            let gone = renewals().filter(|renewal| renewal.has_ended(make(renewal.as_look())));
            ended.extend(gone.map(|renewal| renewal.lease()));
        }
        let made = self.each_change().map(|change| match change.renews() && ended.contains(&change.lease()) {
            true => make(change.as_look()).not_renewed(),
            false => make(change),
        });
        made.collect()
    }

    /// Whether its changes are made in one step with each other, and with its groups: it renews more than one slot or
    /// hold, or looks at one.
    pub(crate) fn is_joint(&self) -> bool {
        self.has_named_lease() || self.each_change().filter(Change::renews).nth(1).is_some()
    }

    /// Whether one of its looks found something held: its groups are then only looked at, as in [`Plan::looking`].
    pub fn found_held(&self, statuses: &[LeaseStatus]) -> bool {
        self.each_change().zip(statuses).any(|(change, status)| change.looks() && status.is_held())
    }

    /// The same plan, whose checks charge, refund and hold nothing.
    #[must_use]
    pub fn looking(&self) -> Self {
        let look = |check: &Check| Check {
            charges: Charges::default(),
            refund: 0,
            holding: check.holding.looking(),
            ..*check
        };
        Self { checks: self.checks.iter().map(look).collect(), ..self.clone() }
    }

    /// The name under which a shared store remembers the id of [`Plan::once`], in the partition of the plan's counters.
    /// `process` tells the ids of one process from those of others.
    pub(crate) fn once_name(&self, process: u64) -> Option<CounterName> {
        let id = u64::from(self.once?.get());
        // The lower half of a name ends with its partition. Names of counters are hashes: one is equal to this as seldom as
        // to another counter's.
        Some(CounterName([process, id << 32 | 0x6f6e << 16]).in_partition(self.partition()))
    }

    /// The partition of the first counter. A plan for a partitioned store has counters of one partition only.
    pub(crate) fn partition(&self) -> u16 {
        let changes = self.changes.iter().map(|change| change.counter);
        let undos = self.undos.iter().map(|undo| undo.counter);
        let holds = self.holds.iter().map(|change| change.counter);
        let mut counters = self.checks.iter().map(|check| check.counter).chain(changes).chain(holds).chain(undos);
        counters.next().map_or(0, |counter| counter.partition())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Concurrency, Limit};

    #[test]
    fn groups_of_a_plan_end_where_it_says() {
        let limit = Limit::Concurrency(Concurrency { max: 2, lease: 1 });
        let check = Check::charge(CounterName::default(), limit, 1);
        let plan = Plan {
            checks: [check, check, check].into_iter().collect(),
            groups: [2, 3].into_iter().collect(),
            ..Plan::default()
        };
        let sizes: Vec<usize> = plan.groups().map(<[Check]>::len).collect();
        assert_eq!(sizes, [2, 1]);
    }
}
