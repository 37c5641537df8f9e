//! Deciding one group of checks under the locks of its shards.

use smallvec::SmallVec;

use super::growth::Growth;
use super::space::{ShardGuard, ShardId};
use super::table::EntryIndex;
use crate::clock::Timestamp;
use crate::limiter::{OnStoreError, State};
use crate::plan::{Applied, Check, CounterName, Fault, Outcome, Plan, StateCell, advance_each};

/// Where the counter of a check is: its shard, the index of that shard's guard, and its entry.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    pub(super) shard: ShardId,
    pub(super) guard: usize,
    pub(super) entry: Option<EntryIndex>,
}

/// The lookups of a group, in the order of its checks.
pub(super) type Lookups = SmallVec<[Lookup; 4]>;

pub(super) fn find(checks: &[Check], lookups: &mut [Lookup], locked: &[ShardGuard<'_>]) {
    for (check, lookup) in checks.iter().zip(lookups) {
        lookup.entry = locked[lookup.guard].find(&check.counter);
    }
}

/// Takes the states out, decides, and writes the changed ones.
pub(super) fn decide(
    checks: &[Check],
    lookups: &[Lookup],
    locked: &mut [ShardGuard<'_>],
    plan: &Plan,
    refused: bool,
    now: Timestamp,
    mut tell: impl FnMut(Outcome),
) -> bool {
    let mut take = |lookup: &Lookup| {
        let shard = &mut locked[lookup.guard];
        let state = shard.take(lookup.entry);
        // A charge drops expired leases. Those still there afterwards are subtracted again.
        shard.expired_leases += expired(&state, now);
        StateCell::from(state)
    };
    let mut held: SmallVec<[StateCell; 3]> = SmallVec::new();
    held.extend(lookups.iter().map(&mut take));
    advance_each(checks, &mut held, plan.lease, now, refused, |number, held, outcome| {
        let (shard, entry) = (&mut locked[lookups[number].guard], lookups[number].entry);
        let state = std::mem::take(&mut held.state);
        shard.expired_leases -= expired(&state, now);
        match held.wrote {
            true => shard.put(&checks[number].counter, entry, state, &outcome, now),
            false => shard.put_back(entry, state),
        }
        tell(outcome);
    })
}

/// Decides a group if some counters have no room: those checks follow their `on_store_error` policy, the others decide.
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
    let held = || full.iter().enumerate().filter(|(_, full)| !**full).map(|(number, _)| number);
    let kept: SmallVec<[Check; 3]> = held().map(|number| checks[number]).collect();
    let mut lookups: Lookups = held().map(|number| lookups[number]).collect();
    find(&kept, &mut lookups, locked);
    let mut outcomes: SmallVec<[Outcome; 3]> = SmallVec::new();
    let admitted = decide(&kept, &lookups, locked, plan, refused, now, |outcome| outcomes.push(outcome));
    let mut outcomes = outcomes.into_iter();
    applied.answers.extend(full.iter().map(|full| match full {
        true => Err(Fault::Full),
        false => Ok(outcomes.next().expect("one outcome for each check that is held")),
    }));
    admitted
}

/// Makes room for every counter that may be written. Returns for each check whether it found none.
pub(super) fn make_room(
    checks: &[Check],
    lookups: &[Lookup],
    locked: &mut [ShardGuard<'_>],
    now: Timestamp,
) -> SmallVec<[bool; 4]> {
    let keep: SmallVec<[CounterName; 4]> = checks.iter().map(|check| check.counter).collect();
    // Room made for the group's other checks in a shard stays reserved.
    let mut promised: SmallVec<[Growth; 4]> = locked.iter().map(|_| Growth::default()).collect();
    let full = checks.iter().zip(lookups).map(|(check, &Lookup { guard, .. })| {
        let shard = &mut locked[guard];
        let growth = shard.growth(check, shard.find(&check.counter));
        if growth == Growth::default() {
            return false;
        }
        let all = promised[guard].plus(growth);
        let room = shard.make_room(all, &check.counter, &keep, now);
        if room {
            promised[guard] = all;
        }
        !room
    });
    full.collect()
}

/// The number of expired leases of a state.
fn expired(state: &State, now: Timestamp) -> u64 {
    match state {
        State::Leases(leases) => leases.expired(now) as u64,
        _ => 0,
    }
}

/// An outcome whose reset is the last expiry of the leases, until which the counter must be held.
pub(super) fn leases_outcome(state: &State, now: Timestamp) -> Outcome {
    let last = match state {
        State::Leases(leases) => leases.iter().map(|lease| lease.expires - now).max().unwrap_or(0),
        _ => 0,
    };
    Outcome { passes: true, limit: 1, remaining: 1, reset: last, retry_after: None }
}
