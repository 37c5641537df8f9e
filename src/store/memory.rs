//! Counters in this process's memory: sharded, bounded, and exact.
//!
//! A plan locks the shards of its counters in order, decides, and unlocks; no lock is held across an await. Several
//! memory stores are spaces of one [`Memory`], so that a plan over two of them is still all or nothing.

use std::path::Path;
use std::sync::mpsc;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::slots::{SlotBounds, Slots};
use super::snapshot::{self, Owner, SnapshotError};
use crate::clock::Timestamp;
use crate::limiter::{
    Applied, Check, CounterName, Fault, Grants, Held, Lease, Limit, OnStoreError, Outcome, Plan, State, advance,
    change_lease,
};

/// Bytes a shard is given: small enough that growing or sweeping one takes microseconds.
const SHARD_BYTES: usize = 256 << 10;

/// The bounds of one memory store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// Bytes for counters. Default: 256 MiB.
    pub max_memory: usize,
    /// Counters, if that is to be bounded too.
    pub max_keys: Option<usize>,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self { max_memory: 256 << 20, max_keys: None }
    }
}

/// What a memory store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Counters.
    pub keys: usize,
    /// Bytes of tables, logs and leases.
    pub bytes: usize,
    /// Counters that had to go before they were forgotten.
    pub evictions: u64,
    /// Slots held under leases, expired ones among them until they are swept.
    pub leases: usize,
}

/// All memory stores of a deployment.
#[derive(Debug)]
pub struct Memory {
    spaces: Vec<Space>,
}

#[derive(Debug)]
struct Space {
    shards: Box<[Mutex<Slots>]>,
}

/// A shard's place: its space, then its number there. Locks are taken in this order.
type Shard = (u16, u32);

/// The locked shards of one group.
type Locked<'a> = SmallVec<[(Shard, MutexGuard<'a, Slots>); 4]>;

impl Memory {
    /// One space for each of the settings.
    pub fn new(settings: &[MemorySettings]) -> Self {
        Self { spaces: settings.iter().map(Space::new).collect() }
    }

    /// Executes a plan.
    pub fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        let mut applied = Applied { admitted: !plan.refused, ..Applied::default() };
        for change in &plan.changes {
            let (_, mut slots) = self.lock(self.shard(change.store, &change.counter));
            let mut held = Held::from(slots.take(&change.counter));
            applied.fates.push(change_lease(&mut held, change, now));
            match held.wrote {
                true => {
                    let outcome = leases_outcome(&held.state, now);
                    slots.put(&change.counter, held.state, &outcome, now);
                }
                false => slots.put_back(&change.counter, held.state),
            }
        }
        for group in plan.groups() {
            applied.admitted &= self.apply_group(group, plan, now, &mut applied);
        }
        applied
    }

    fn apply_group(&self, checks: &[Check], plan: &Plan, now: Timestamp, applied: &mut Applied) -> bool {
        let mut shards: SmallVec<[Shard; 4]> =
            checks.iter().map(|check| self.shard(check.store, &check.counter)).collect();
        let mine = shards.clone();
        shards.sort_unstable();
        shards.dedup();
        let mut locked: Locked<'_> = shards.iter().map(|&shard| self.lock(shard)).collect();
        let place = |shard: &Shard| shards.binary_search(shard).expect("every check's shard is locked");

        let full = make_room(checks, &mine, &mut locked, &place, now);
        if full.iter().any(|full| *full) {
            return self.apply_short(checks, &full, &mine, &mut locked, &place, plan, now, applied);
        }
        let mut held: SmallVec<[Held; 3]> = SmallVec::with_capacity(checks.len());
        for (check, shard) in checks.iter().zip(&mine) {
            held.push(Held::from(locked[place(shard)].1.take(&check.counter)));
        }
        let (admitted, outcomes) = advance(checks, &mut held, plan.lease, now, plan.refused);
        for (((check, shard), held), outcome) in checks.iter().zip(&mine).zip(held).zip(&outcomes) {
            write(&mut locked[place(shard)].1, check, held, outcome, now);
        }
        applied.answers.extend(outcomes.into_iter().map(Ok));
        admitted
    }

    /// The same when some counters cannot be held: those checks follow their policy, the others decide.
    #[expect(clippy::too_many_arguments, reason = "it continues apply_group under the same locks")]
    fn apply_short(
        &self,
        checks: &[Check],
        full: &[bool],
        mine: &[Shard],
        locked: &mut Locked<'_>,
        place: &impl Fn(&Shard) -> usize,
        plan: &Plan,
        now: Timestamp,
        applied: &mut Applied,
    ) -> bool {
        let refuses = |check: &Check| !check.shadow && check.on_store_error != OnStoreError::Allow;
        let refused = plan.refused || checks.iter().zip(full).any(|(check, full)| *full && refuses(check));
        let kept: SmallVec<[Check; 3]> =
            checks.iter().zip(full).filter(|(_, full)| !**full).map(|(check, _)| *check).collect();
        let shards: SmallVec<[Shard; 4]> =
            mine.iter().zip(full).filter(|(_, full)| !**full).map(|(shard, _)| *shard).collect();
        let mut held: SmallVec<[Held; 3]> = SmallVec::with_capacity(kept.len());
        for (check, shard) in kept.iter().zip(&shards) {
            held.push(Held::from(locked[place(shard)].1.take(&check.counter)));
        }
        let (admitted, outcomes) = advance(&kept, &mut held, plan.lease, now, refused);
        for (((check, shard), held), outcome) in kept.iter().zip(&shards).zip(held).zip(&outcomes) {
            write(&mut locked[place(shard)].1, check, held, outcome, now);
        }
        let mut outcomes = outcomes.into_iter();
        applied.answers.extend(full.iter().map(|full| match full {
            true => Err(Fault::Full),
            false => Ok(outcomes.next().expect("one outcome for each check that is held")),
        }));
        admitted
    }

    /// Forgets what no longer counts, one shard after the other.
    pub fn sweep(&self, now: Timestamp) {
        for shard in self.spaces.iter().flat_map(|space| &space.shards) {
            let mut slots = shard.lock();
            slots.copy_to_cut();
            slots.sweep(now);
        }
    }

    /// Writes what the store at `space` holds to a file: one moment for every plan (semantics 32).
    ///
    /// All shards are locked together for as long as it takes to mark them. Each is then copied when its turn comes, or
    /// by the first plan that is about to change it, so that no lock is held for longer than one shard takes to copy.
    pub fn save(&self, space: usize, path: &Path, owner: &Owner) -> Result<(), SnapshotError> {
        let shards = &self.spaces[space].shards;
        let (cut, copies) = mpsc::channel();
        {
            let mut locked: Vec<MutexGuard<'_, Slots>> = shards.iter().map(Mutex::lock).collect();
            locked.iter_mut().for_each(|slots| slots.cut = Some(cut.clone()));
        }
        drop(cut);
        shards.iter().for_each(|shard| shard.lock().copy_to_cut());
        let copies: Vec<Vec<u8>> = copies.into_iter().collect();
        snapshot::write(path, owner, &copies)
    }

    /// Reads into the store at `space` what a file holds, whole or not at all. Says how many counters it held; `None`
    /// when there is no file.
    pub fn load(&self, space: usize, path: &Path, owner: &Owner, now: Timestamp) -> Result<Option<usize>, SnapshotError> {
        let Some(records) = snapshot::read(path, owner)? else { return Ok(None) };
        let count = records.len();
        for record in records {
            let (store, number) = self.shard(space as u16, &record.name);
            self.lock((store, number)).1.restore(record, now);
        }
        Ok(Some(count))
    }

    /// What each space holds.
    pub fn usage(&self) -> Vec<Usage> {
        let of = |space: &Space| {
            space.shards.iter().fold(Usage::default(), |usage, shard| {
                let slots = shard.lock();
                Usage {
                    keys: usage.keys + slots.len(),
                    bytes: usage.bytes + slots.bytes(),
                    evictions: usage.evictions + slots.evictions,
                    leases: usage.leases + slots.held_leases(),
                }
            })
        };
        self.spaces.iter().map(of).collect()
    }

    fn shard(&self, store: u16, counter: &CounterName) -> Shard {
        let shards = self.spaces[usize::from(store)].shards.len() as u64;
        (store, (counter.0[1] % shards) as u32)
    }

    /// Locks a shard to change it.
    fn lock(&self, shard: Shard) -> (Shard, MutexGuard<'_, Slots>) {
        let mut slots = self.spaces[usize::from(shard.0)].shards[shard.1 as usize].lock();
        slots.copy_to_cut();
        (shard, slots)
    }
}

impl Space {
    fn new(settings: &MemorySettings) -> Self {
        let by_bytes = (settings.max_memory / SHARD_BYTES).max(1);
        // A bound of a few keys holds for the whole only if few shards share it.
        let by_keys = settings.max_keys.map_or(usize::MAX, |keys| (keys / 1024).max(1));
        let shards = by_bytes.min(by_keys).min(1 << 16);
        let bounds = SlotBounds {
            bytes: settings.max_memory / shards,
            keys: settings.max_keys.map_or(u32::MAX as usize, |keys| (keys / shards).max(1)),
        };
        let shard =
            |number: usize| Mutex::new(Slots::new(bounds, 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1)));
        Self { shards: (0..shards).map(shard).collect() }
    }
}

/// Makes room for every counter that may be written. Says which checks there is none for.
fn make_room(
    checks: &[Check],
    mine: &[Shard],
    locked: &mut Locked<'_>,
    place: &impl Fn(&Shard) -> usize,
    now: Timestamp,
) -> SmallVec<[bool; 4]> {
    let mut full = SmallVec::with_capacity(checks.len());
    for (number, (check, shard)) in checks.iter().zip(mine).enumerate() {
        let writes = check.charges.admitted > 0;
        let slots = &mut locked[place(shard)].1;
        let known = slots.holds(&check.counter);
        let heap = growth(check);
        if !writes || (known && heap == 0) {
            full.push(false);
            continue;
        }
        // What the group's other checks in this shard were promised is promised still.
        let before = checks[..number].iter().zip(mine).filter(|(_, other)| *other == shard).map(|(check, _)| check);
        let (mut more, mut bytes) = (usize::from(!known), heap);
        for check in before.filter(|check| check.charges.admitted > 0) {
            more += usize::from(!slots.holds(&check.counter));
            bytes += growth(check);
        }
        let keep: SmallVec<[CounterName; 4]> = checks.iter().map(|check| check.counter).collect();
        full.push(!slots.make_room(more, bytes, &keep, now));
    }
    full
}

/// Bytes on the heap by which a charge may grow a counter.
fn growth(check: &Check) -> usize {
    match check.limit {
        Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => 0,
        Limit::SlidingWindow(window) => {
            let units = check.charges.admitted.min(window.limit) as usize;
            size_of::<Grants>() + 2 * size_of::<u64>() * units.max(4)
        }
        Limit::Concurrency(_) => 4 * size_of::<Lease>(),
    }
}

fn write(slots: &mut Slots, check: &Check, held: Held, outcome: &Outcome, now: Timestamp) {
    match held.wrote {
        true => slots.put(&check.counter, held.state, outcome, now),
        false => slots.put_back(&check.counter, held.state),
    }
}

/// Until when leases have to be remembered.
fn leases_outcome(state: &State, now: Timestamp) -> Outcome {
    let last = match state {
        State::Leases(leases) => leases.iter().map(|lease| lease.expires - now).max().unwrap_or(0),
        _ => 0,
    };
    Outcome { passes: true, limit: 1, remaining: 1, reset: last, retry_after: None }
}
