//! The memory store: counters in this process, sharded, bounded and exact.
//!
//! A plan locks the shards of its counters in order, decides, and unlocks. No lock is held across an await. All memory
//! stores of a deployment are spaces of one [`MemoryStores`], so that a plan over two of them is decided atomically.

mod eviction;
mod group;
mod growth;
mod holds;
mod overflow;
mod pool;
mod shard;
mod snapshot;
mod space;
mod table;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use self::group::{Lookup, Lookups, apply_without_full, decide, find, leases_outcome, make_room};
use self::shard::Shard;
use self::snapshot::{FileVersion, SnapshotRecord};
pub use self::snapshot::{SnapshotError, SnapshotOwner};
pub use self::space::{MemorySettings, MemoryUsage};
use self::space::{ShardGuard, ShardId, Space};
use self::table::EntryIndex;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, LeaseStatus};
use crate::plan::{
    Applied, Asker, Change, Check, CounterName, HoldAction, HoldChange, LeaseChange, Plan, StateCell, Undo, advance,
    change_hold, change_lease, undo,
};

/// Neighbour shards to evict from when a check finds no room: frees a few hundred KiB in about 1 ms.
const NEIGHBOUR_SHARDS: usize = 2;

/// All memory stores of a deployment.
#[derive(Debug)]
pub struct MemoryStores {
    spaces: Vec<Arc<Space>>,
}

impl MemoryStores {
    /// Creates one space for each of the settings.
    pub fn new(settings: &[MemorySettings]) -> Self {
        Self { spaces: settings.iter().map(|settings| Arc::new(Space::new(*settings))).collect() }
    }

    /// The spaces of the next configuration: `Ok` keeps the space at that index, `Err` creates a new one.
    #[must_use]
    pub fn next(&self, spaces: impl IntoIterator<Item = Result<usize, MemorySettings>>) -> Self {
        let space = |from: Result<usize, MemorySettings>| match from {
            Ok(kept) => self.spaces[kept].clone(),
            Err(settings) => Arc::new(Space::new(settings)),
        };
        Self { spaces: spaces.into_iter().map(space).collect() }
    }

    /// Removes a counter and returns whether it held anything.
    pub fn forget(&self, space: u16, counter: &CounterName) -> bool {
        self.lock(self.shard(space, counter)).forget(counter)
    }

    /// The units that a lease holds on a counter. `None` if it holds nothing there.
    pub(in crate::store) fn held_units(&self, space: u16, counter: &CounterName, lease: LeaseId) -> Option<u32> {
        self.lock(self.shard(space, counter)).held_units(counter, lease)
    }

    /// Executes a plan.
    pub fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        let mut applied = Applied::default();
        self.apply_into(plan, now, &mut applied);
        applied
    }

    /// Executes a plan, and writes the answers into an empty [`Applied`].
    pub(in crate::store) fn apply_into(&self, plan: &Plan, now: Timestamp, applied: &mut Applied) {
        (applied.admitted, applied.at) = (!plan.refused, now);
        if !plan.changes.is_empty() || !plan.holds.is_empty() {
            if plan.is_joint() {
                return self.apply_jointly(plan, applied);
            }
            applied.statuses = plan.make_changes(|change| {
                let (store, counter) = change.place();
                make_change(&mut self.lock(self.shard(store, &counter)), &change, now)
            });
        }
        for charge in &plan.undos {
            undo_charge(&mut self.lock(self.shard(charge.store, &charge.counter)), charge, plan.asker(), now);
        }
        for group in plan.groups() {
            applied.admitted &= self.apply_group(group, plan, now, applied);
        }
    }

    /// Executes a plan under the locks of all its counters: nothing else happens between its changes and its groups.
    #[cold]
    fn apply_jointly(&self, plan: &Plan, applied: &mut Applied) {
        let now = applied.at;
        let checks = plan.checks.iter().map(|check| (check.store, check.counter));
        let undos = plan.undos.iter().map(|undo| (undo.store, undo.counter));
        let places = plan.each_change().map(|change| change.place()).chain(undos).chain(checks);
        let mut shards: Vec<ShardId> = places.map(|(store, counter)| self.shard(store, &counter)).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut locked: Vec<ShardGuard<'_>> = shards.iter().map(|shard| self.lock(*shard)).collect();
        let guard = |store: u16, counter: &CounterName| {
            let shard = self.shard(store, counter);
            (shard, shards.binary_search(&shard).expect("the shards of the plan are locked"))
        };
        applied.statuses = plan.make_changes(|change| {
            let (store, counter) = change.place();
            make_change(&mut locked[guard(store, &counter).1], &change, now)
        });
        let looking = plan.found_held(&applied.statuses).then(|| plan.looking());
        let plan = looking.as_ref().unwrap_or(plan);
        for charge in &plan.undos {
            undo_charge(&mut locked[guard(charge.store, &charge.counter).1], charge, plan.asker(), now);
        }
        for checks in plan.groups() {
            let lookup = |check: &Check| {
                let (shard, guard) = guard(check.store, &check.counter);
                Lookup { shard, guard, entry: None }
            };
            let mut lookups: Lookups = checks.iter().map(lookup).collect();
            applied.admitted &= self.apply_locked(checks, &mut lookups, &mut locked, plan, now, applied);
        }
    }

    fn apply_group(&self, checks: &[Check], plan: &Plan, now: Timestamp, applied: &mut Applied) -> bool {
        let lookup = |check: &Check| Lookup { shard: self.shard(check.store, &check.counter), guard: 0, entry: None };
        // Filled in place: collecting would move the list once more.
        let mut lookups = Lookups::new();
        lookups.extend(checks.iter().map(lookup));
        let mut guards = self.lock_all(&mut lookups);
        self.apply_locked(checks, &mut lookups, &mut guards, plan, now, applied)
    }

    /// Decides a group under the locks of its shards.
    #[inline]
    fn apply_locked(
        &self,
        checks: &[Check],
        lookups: &mut [Lookup],
        locked: &mut [ShardGuard<'_>],
        plan: &Plan,
        now: Timestamp,
        applied: &mut Applied,
    ) -> bool {
        for (check, lookup) in checks.iter().zip(&*lookups) {
            locked[lookup.guard].prefetch(&check.counter);
        }
        find(checks, lookups, locked);
        let grows = |(check, lookup): (&Check, &Lookup)| locked[lookup.guard].grows(check, lookup.entry);
        if checks.iter().zip(&*lookups).any(grows) {
            let mut full = make_room(checks, lookups, locked, now);
            if full.iter().any(|full| *full) && self.evict_from_neighbours(checks, now) {
                full = make_room(checks, lookups, locked, now);
            }
            if full.iter().any(|full| *full) {
                return apply_without_full(checks, &full, lookups, locked, plan, now, applied);
            }
            // Making room may have moved entries.
            find(checks, lookups, locked);
        }
        decide(checks, lookups, locked, plan, plan.refused, now, |outcome| applied.answers.push(Ok(outcome)))
    }

    /// Locks the shards of a group in order, and sets the guard index of each lookup.
    fn lock_all(&self, lookups: &mut [Lookup]) -> SmallVec<[ShardGuard<'_>; 4]> {
        let mut shards: SmallVec<[ShardId; 4]> = SmallVec::new();
        shards.extend(lookups.iter().map(|lookup| lookup.shard));
        let shards = match shards.as_mut_slice() {
            several @ [_, _, ..] => {
                several.sort_unstable();
                shards.dedup();
                shards.as_slice()
            }
            one => one,
        };
        for lookup in lookups {
            lookup.guard = shards.iter().position(|shard| *shard == lookup.shard).expect("it is one of them");
        }
        let mut locked = SmallVec::new();
        locked.extend(shards.iter().map(|shard| self.lock(*shard)));
        locked
    }

    /// Removes expired counters, one shard after the other.
    pub fn sweep(&self, now: Timestamp) {
        for shard in self.spaces.iter().flat_map(|space| &*space.shards) {
            let mut shard = shard.lock();
            shard.copy_to_snapshot();
            shard.sweep(now);
        }
    }

    /// Writes the counters of the store at `space` to a file, as they are at one moment (semantics 32).
    ///
    /// All shards are locked together only to mark them. Each is then copied in turn, or by the first plan that is
    /// about to change it, so no lock is held for longer than copying one shard takes. A copy is freed once it is
    /// written: only shards that plans have changed and that are not written yet are in memory twice.
    ///
    /// # Errors
    ///
    /// The file system fails; the file at `path` is unchanged.
    pub fn save(&self, space: usize, path: &Path, owner: &SnapshotOwner) -> Result<(), SnapshotError> {
        let Space { snapshot_lock, shards, .. } = &*self.spaces[space];
        let _one_at_a_time = snapshot_lock.lock();
        let (sender, copies) = mpsc::channel();
        let version = {
            let mut locked: Vec<MutexGuard<'_, Shard>> = shards.iter().map(Mutex::lock).collect();
            locked.iter_mut().for_each(|shard| shard.pending_snapshot = Some(sender.clone()));
            locked.iter().map(|shard| shard.file_version()).max().unwrap_or(FileVersion::Counters)
        };
        // A plan sends its copy under the shard's lock, so all copies are sent once the last shard was locked.
        let copies_in_turn = shards.iter().flat_map(|shard| {
            shard.lock().copy_to_snapshot();
            copies.try_iter()
        });
        let written = snapshot::write(path, owner, version, copies_in_turn);
        if written.is_err() {
            shards.iter().for_each(|shard| shard.lock().pending_snapshot = None);
        }
        written
    }

    /// Loads the counters of a file into the store at `space`. Returns how many had not expired and found room, `None`
    /// if there is no file.
    ///
    /// # Errors
    ///
    /// The file is damaged, of another version, or of another secret or store. Nothing is loaded then, and the file is
    /// moved aside.
    pub fn load(
        &self,
        space: usize,
        path: &Path,
        owner: &SnapshotOwner,
        now: Timestamp,
    ) -> Result<Option<usize>, SnapshotError> {
        let records = snapshot::read(path, owner)?;
        Ok(records.map(|records| self.restore(space, &records, now)))
    }

    /// Restores counters and returns how many had not expired and found room.
    fn restore(&self, space: usize, records: &[SnapshotRecord], now: Timestamp) -> usize {
        let restore = |record: &SnapshotRecord| {
            let shard = self.shard(space as u16, &record.name);
            self.lock(shard).restore(record.clone(), now)
        };
        records.iter().filter(|record| restore(record)).count()
    }

    /// The usage of each space.
    pub fn usage(&self) -> Vec<MemoryUsage> {
        let of = |space: &Arc<Space>| {
            let empty = MemoryUsage { max_bytes: space.settings.max_memory, ..MemoryUsage::default() };
            space.shards.iter().fold(empty, |usage, shard| {
                let shard = shard.lock();
                MemoryUsage {
                    keys: usage.keys + shard.len(),
                    bytes: usage.bytes + shard.bytes(),
                    evictions: usage.evictions + shard.evictions,
                    leases: usage.leases + shard.held_leases(),
                    holds: usage.holds + shard.holds.held(),
                    expired_leases: usage.expired_leases + shard.expired_leases,
                    ..usage
                }
            })
        };
        self.spaces.iter().map(of).collect()
    }

    /// Evicts counters from unlocked neighbour shards, because a plan's own shards have nothing left to evict. Returns
    /// whether there were any such neighbours.
    fn evict_from_neighbours(&self, checks: &[Check], now: Timestamp) -> bool {
        let mut evicted_shards = 0;
        for check in checks {
            let shards = &self.spaces[usize::from(check.store)].shards;
            // From the counter's own shard on, so that counters of different shards have different neighbours.
            // `try_lock` never waits, so there is no deadlock.
            let own = self.shard(check.store, &check.counter).index();
            let others = (1..shards.len()).map(|step| &shards[(own + step) % shards.len()]);
            for mut shard in others.filter_map(Mutex::try_lock).filter(|shard| shard.len() >= 4).take(NEIGHBOUR_SHARDS)
            {
                shard.copy_to_snapshot();
                shard.evict_quarter(now);
                evicted_shards += 1;
            }
        }
        evicted_shards > 0
    }

    fn shard(&self, store: u16, counter: &CounterName) -> ShardId {
        let space = &self.spaces[usize::from(store)];
        let index = (u128::from(counter.0[1]) * space.shards.len() as u128) >> 64;
        ShardId { order: u64::from(space.rank) << 32 | index as u64, space: store }
    }

    /// Locks a shard for a change.
    fn lock(&self, shard: ShardId) -> MutexGuard<'_, Shard> {
        let mut shard = self.spaces[usize::from(shard.space)].shards[shard.index()].lock();
        shard.copy_to_snapshot();
        shard
    }
}

fn make_change(shard: &mut Shard, change: &Change, now: Timestamp) -> LeaseStatus {
    match change {
        Change::Slot(change) => change_slot(shard, change, now),
        Change::Hold(change) => change_hold_in(shard, change, now),
    }
}

fn change_slot(shard: &mut Shard, change: &LeaseChange, now: Timestamp) -> LeaseStatus {
    let entry = shard.find(&change.counter);
    let mut cell = StateCell::from(shard.take(entry));
    let status = change_lease(&mut cell, change, now);
    match cell.wrote {
        true => {
            let outcome = leases_outcome(&cell.state, now);
            shard.put(&change.counter, entry, cell.state, &outcome, outcome.reset, now);
        }
        false => shard.put_back(entry, cell.state),
    }
    status
}

fn change_hold_in(shard: &mut Shard, change: &HoldChange, now: Timestamp) -> LeaseStatus {
    let Some(held) = shard.held_units(&change.counter, change.lease) else { return LeaseStatus::Unknown };
    let mut change = *change;
    if let HoldAction::Settle(units) = change.action {
        let growth = shard.growth(&change.look(units.unwrap_or(held)), shard.find(&change.counter));
        // What finds no room is not charged. Only a log can need some.
        if !shard.make_room(growth, &change.counter, &[change.counter], now) {
            change.action = HoldAction::Settle(Some(units.unwrap_or(held).min(held)));
        }
    }
    let entry = shard.find(&change.counter);
    let mut cell = StateCell::from(shard.take(entry));
    cell.holds = shard.take_holds(&change.counter);
    let status = change_hold(&mut cell, &change, now);
    keep(shard, entry, cell, &change.look(0), now);
    status
}

fn undo_charge(shard: &mut Shard, charge: &Undo, asker: Asker<'_>, now: Timestamp) {
    let entry = shard.find(&charge.counter);
    let mut cell = StateCell::from(shard.take(entry));
    if charge.holds {
        cell.holds = shard.take_holds(&charge.counter);
    }
    undo(&mut cell, charge, asker, now);
    keep(shard, entry, cell, &charge.look(), now);
}

/// Writes a state back that no check has changed; `look` is a check of its counter that changes nothing.
fn keep(shard: &mut Shard, entry: Option<EntryIndex>, mut cell: StateCell, look: &Check, now: Timestamp) {
    let holds = cell.holds.take();
    match cell.wrote {
        true => {
            let (_, outcomes) = advance(&[*look], std::slice::from_mut(&mut cell), Asker::default(), now, false);
            let lasts = look.limit.lasts(&cell.state, now, outcomes[0].reset);
            shard.put(&look.counter, entry, cell.state, &outcomes[0], lasts, now);
        }
        false => shard.put_back(entry, cell.state),
    }
    shard.put_holds(&look.counter, holds);
}
