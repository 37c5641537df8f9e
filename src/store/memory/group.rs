//! Decisions on one group of checks, under the locks of its shards.

use smallvec::SmallVec;

use super::growth::Growth;
use super::space::{ShardGuard, ShardId};
use super::table::EntryIndex;
use crate::clock::Timestamp;
use crate::limiter::{OnStoreError, State};
use crate::plan::{Applied, Check, CounterName, Fault, Outcome, Plan, StateCell, advance_each};

/// The location of a check's counter: its shard, the index of that shard's guard, and its entry.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    pub(super) shard: ShardId,
    pub(super) guard: usize,
    pub(super) entry: Option<EntryIndex>,
}

/// The lookups of a group, in the order of its checks.
pub(super) type Lookups = SmallVec<[Lookup; 4]>;

/// Finds the entries of the counters.
pub(super) fn find(checks: &[Check], lookups: &mut [Lookup], locked: &[ShardGuard<'_>]) {
    for (check, lookup) in checks.iter().zip(lookups) {
        lookup.entry = locked[lookup.guard].find(&check.counter);
    }
}

/// Takes the states out of the table, decides, and writes the changed ones back. Passes the outcomes to `report`, in
/// the order of the checks.
pub(super) fn decide(
    checks: &[Check],
    lookups: &[Lookup],
    locked: &mut [ShardGuard<'_>],
    plan: &Plan,
    refused: bool,
    now: Timestamp,
    mut report: impl FnMut(Outcome),
) -> bool {
    let mut take = |(check, lookup): (&Check, &Lookup)| {
        let shard = &mut locked[lookup.guard];
        let state = shard.take(lookup.entry);
        // A charge drops expired leases. Those that remain are subtracted again below.
        shard.expired_leases += expired_leases(&state, now);
        let mut cell = StateCell::from(state);
        if check.holding.looks() {
            cell.holds = shard.take_holds(&check.counter);
        }
        cell
    };
    let mut cells: SmallVec<[StateCell; 3]> = SmallVec::new();
    cells.extend(checks.iter().zip(lookups).map(&mut take));
    advance_each(checks, &mut cells, plan.asker(), now, refused, |index, cell, outcome| {
        let (shard, entry) = (&mut locked[lookups[index].guard], lookups[index].entry);
        let state = std::mem::take(&mut cell.state);
        shard.expired_leases -= expired_leases(&state, now);
        match cell.wrote {
            true => {
                let lasts = checks[index].limit.lasts(&state, now, outcome.reset);
                shard.put(&checks[index].counter, entry, state, &outcome, lasts, now);
            }
            false => {
                shard.put_back(entry, state);
                if !outcome.passes {
                    shard.record_refusal(entry);
                }
            }
        }
        if checks[index].holding.looks() {
            shard.put_holds(&checks[index].counter, cell.holds.take());
        }
        report(outcome);
    })
}

/// Decides a group although some counters have no room. Their checks follow the `on_store_error` policy, and the other
/// checks decide.
pub(super) fn apply_without_full(
    checks: &[Check],
    full: &[bool],
    lookups: &[Lookup],
    locked: &mut [ShardGuard<'_>],
    plan: &Plan,
    now: Timestamp,
    applied: &mut Applied,
) -> bool {
    let refuses = |check: &Check| !check.shadow && check.on_store_error != OnStoreError::Allow;
    let refused = plan.refused || checks.iter().zip(full).any(|(check, full)| *full && refuses(check));
    let with_room = || full.iter().enumerate().filter(|(_, full)| !**full).map(|(index, _)| index);
    let decided: SmallVec<[Check; 3]> = with_room().map(|index| checks[index]).collect();
    let mut lookups: Lookups = with_room().map(|index| lookups[index]).collect();
    find(&decided, &mut lookups, locked);
    let mut outcomes: SmallVec<[Outcome; 3]> = SmallVec::new();
    let admitted = decide(&decided, &lookups, locked, plan, refused, now, |outcome| outcomes.push(outcome));
    let mut outcomes = outcomes.into_iter();
    applied.answers.extend(full.iter().map(|full| match full {
        true => Err(Fault::Full),
        false => Ok(outcomes.next().expect("one outcome for each check that is decided")),
    }));
    admitted
}

/// Makes room for every counter that may be written. Returns for each check whether there is none for it.
pub(super) fn make_room(
    checks: &[Check],
    lookups: &[Lookup],
    locked: &mut [ShardGuard<'_>],
    now: Timestamp,
) -> SmallVec<[bool; 4]> {
    let keep: SmallVec<[CounterName; 4]> = checks.iter().map(|check| check.counter).collect();
    // The room of the group's earlier checks in a shard stays reserved.
    let mut reserved: SmallVec<[Growth; 4]> = locked.iter().map(|_| Growth::default()).collect();
    let full = checks.iter().zip(lookups).map(|(check, &Lookup { guard, .. })| {
        let shard = &mut locked[guard];
        let growth = shard.growth(check, shard.find(&check.counter));
        if growth == Growth::default() {
            return false;
        }
        let total = reserved[guard].plus(growth);
        let room = shard.make_room(total, &check.counter, &keep, now);
        if room {
            reserved[guard] = total;
        }
        !room
    });
    full.collect()
}

/// The number of expired leases of a state.
fn expired_leases(state: &State, now: Timestamp) -> u64 {
    match state {
        State::Leases(leases) => leases.expired(now) as u64,
        _ => 0,
    }
}

/// An outcome that resets when the last lease expires, so that the counter is held until then.
pub(super) fn leases_outcome(state: &State, now: Timestamp) -> Outcome {
    let last = match state {
        State::Leases(leases) => leases.iter().map(|lease| lease.expires - now).max().unwrap_or(0),
        _ => 0,
    };
    Outcome { passes: true, limit: 1, remaining: 1, reset: last, retry_after: None, charged: 0, held: 0 }
}
