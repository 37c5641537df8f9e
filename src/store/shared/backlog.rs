//! The backlog of a shared store: what this process owes the store because it answered without it.
//!
//! ```text
//!   a release, renewal, undo, refund or recorded use that failed --> plans   --.
//!   what the fallback admitted, by counter ------------------------> charges --+--> hand_over.rs --> the store
//!   slots that the fallback gave -----------------------------------> slots   --'
//! ```
//!
//! What the fallback admitted while a call of the same plan was in flight waits for the end of that call (settle.rs).
//!
//! Each part is bounded. What does not fit, or cannot be sent without a risk to give units back twice, is dropped,
//! counted and logged. The process that ends loses the rest.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::acknowledged::{Acknowledged, AcknowledgedPlan};
use super::metrics::DropReason;
use super::owed;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::limiter::{Concurrency, Distinct, LeaseId, Limit};
use crate::plan::{
    Charges, Check, CounterName, Fault, HoldAction, HoldChange, Holding, LeaseAction, LeaseChange, Needs, Plan, Values,
};

/// The most plans, charged counters and slots that wait, each.
const MAX_OWED: usize = 65_536;

/// How long a plan is sent again that the store answers with an error of its own: slots that migrate and functions that
/// are replaced end, a malformed call does not.
const MAX_REFUSED_AGE: Duration = Duration::from_secs(60);

/// How long after it was first sent a plan of unknown fate may be sent again: less than stores remember
/// [`Plan::once`](crate::plan::Plan::once).
const MAX_REPEAT_AGE: Duration = Duration::from_secs(50);

/// The largest id of [`Plan::once`](crate::plan::Plan::once): the bits above it are those of the store.
const MAX_ID: u32 = u32::MAX >> 2;

/// What is owed to one store.
#[derive(Debug)]
pub(super) struct Backlog {
    owed: Mutex<Owed>,
    /// Notified when something is owed.
    filled: Notify,
    /// Notified when the store answers again.
    recovered: Notify,
    /// Notified when nothing waits any more.
    emptied: Notify,
    /// The number of [`Unsettled`] plans.
    unsettled: AtomicUsize,
    /// What the store has acknowledged lately, where another server may take over.
    pub(super) acknowledged: Acknowledged,
}

/// A plan that is queued, in flight or late: until this is dropped, something may come to be owed for it.
#[derive(Debug)]
pub(super) struct Unsettled(Arc<Backlog>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.unsettled.fetch_sub(1, Ordering::AcqRel);
        // Cheap while nobody waits.
        self.0.emptied.notify_waiters();
    }
}

#[derive(Debug, Default)]
struct Owed {
    plans: VecDeque<OwedPlan>,
    charges: HashMap<ChargedPlace, OwedCharge, RandomState>,
    slots: HashMap<(CounterName, LeaseId), OwedSlot, RandomState>,
    /// The number of slots in [`SlotState::Waiting`].
    waiting_slots: usize,
    /// The number of plans that are being sent.
    in_flight: usize,
    closed: bool,
}

/// A plan that has to reach the store.
#[derive(Debug)]
pub(super) struct OwedPlan {
    pub(super) plan: Plan,
    /// When it was decided.
    made: Instant,
    made_at: Timestamp,
    /// When it becomes pointless.
    until: Instant,
    /// When it was first sent without an answer.
    sent: Option<Instant>,
    /// The slot that it hands over. It is dropped if the slot is released meanwhile.
    slot: Option<(CounterName, LeaseId)>,
}

/// What the fallback charged: a counter, or one value that a counter remembers. Charging a value twice renews it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) struct ChargedPlace {
    counter: CounterName,
    value: Option<u64>,
}

impl ChargedPlace {
    /// A value of a counter.
    pub(super) fn value(counter: CounterName, value: u64) -> Self {
        Self { counter, value: Some(value) }
    }
}

impl From<CounterName> for ChargedPlace {
    fn from(counter: CounterName) -> Self {
        Self { counter, value: None }
    }
}

/// What the fallback admitted on one counter, or of one of its values.
#[derive(Debug)]
struct OwedCharge {
    check: Check,
    /// What can be handed over.
    units: u32,
    /// What a call that is still in flight may have charged.
    pending: u32,
    /// Until when the drain of a bucket is taken off.
    at: Instant,
    until: Instant,
}

/// A slot that the fallback gave.
#[derive(Debug)]
struct OwedSlot {
    check: Check,
    lease: LeaseId,
    until: Instant,
    state: SlotState,
}

/// Where a slot is that the fallback gave. It stays known until it is released, or its lease ends: a call of unknown
/// fate may take it in the store once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Waiting,
    Sending,
    InStore,
}

/// What was taken to be sent.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) plans: Vec<OwedPlan>,
    /// How many became pointless.
    pub(super) expired: usize,
    /// How many may have been executed, so long ago that the store has forgotten their ids.
    pub(super) unknown: usize,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            owed: Mutex::default(),
            filled: Notify::new(),
            recovered: Notify::new(),
            emptied: Notify::new(),
            unsettled: AtomicUsize::new(0),
            acknowledged: Acknowledged::default(),
        }
    }

    /// A new id for [`Plan::once`](crate::plan::Plan::once).
    pub(super) fn once() -> NonZeroU32 {
        // One count for all stores of the process: two of them can be the same server.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // It comes round after more ids than stores remember.
        let id = NEXT.fetch_add(1, Ordering::Relaxed) % MAX_ID;
        NonZeroU32::MIN.saturating_add(id)
    }

    /// The number of plans, counters and slots that wait.
    pub(super) fn waiting(&self) -> usize {
        self.owed.lock().waiting()
    }

    /// Adds what is owed of a plan that failed. `sent` says that it may have been executed. Returns the reason if
    /// something of it is dropped.
    pub(super) fn owe(&self, mut plan: Plan, sent: bool) -> Option<DropReason> {
        owed::reduce(&mut plan);
        let mut dropped = None;
        if sent && !owed::is_idempotent(&plan) {
            // Sent again, these could give units back twice. Without them, fewer requests are admitted, never more.
            dropped = Some(DropReason::Unknown);
            plan.undos.clear();
            if plan.once.is_none() {
                plan.checks.clear();
                plan.groups.clear();
            }
        }
        if plan.is_empty() {
            return dropped;
        }
        let (made, made_at) = (Instant::now(), SystemClock::new().now());
        if !plan.checks.is_empty() {
            plan.once = plan.once.or_else(|| Some(Self::once()));
        }
        let until = made + owed::useful_for(&plan, made_at);
        let owed = OwedPlan { plan, made, made_at, until, sent: sent.then_some(made), slot: None };
        self.push(owed).then_some(DropReason::Full).or(dropped)
    }

    /// Owes again what the store has acknowledged lately, because another server has taken over.
    pub(super) fn owe_acknowledged(&self) {
        for AcknowledgedPlan { plan, made, made_at } in self.acknowledged.take() {
            let until = made + owed::useful_for(&plan, made_at);
            self.push(OwedPlan { plan, made, made_at, until, sent: Some(made), slot: None });
        }
    }

    /// Puts a plan back that failed. Returns the reason if something of it is dropped.
    pub(super) fn put_back(&self, mut owed: OwedPlan, fault: Fault) -> Option<DropReason> {
        let sent = fault.may_be_executed();
        let mut dropped = None;
        if sent {
            if !owed.plan.undos.is_empty() {
                owed.plan.undos.clear();
                dropped = Some(DropReason::Unknown);
            }
            owed.sent.get_or_insert_with(Instant::now);
        }
        let refused_for_good = fault == Fault::Script && owed.made.elapsed() > MAX_REFUSED_AGE;
        let mut state = self.owed.lock();
        state.in_flight -= 1;
        match owed.slot {
            _ if refused_for_good => {
                owed.slot.into_iter().for_each(|slot| state.remove_slot(slot));
                dropped = Some(DropReason::Refused);
            }
            Some(slot) if state.move_slot(slot, SlotState::Waiting) => {}
            // It was released meanwhile, perhaps before this call takes it.
            Some((counter, lease)) if sent => {
                let plan = releasing(owed.plan.checks[0].store, counter, lease);
                state.plans.push_back(OwedPlan { plan, slot: None, ..owed });
            }
            Some(_) => {}
            None if owed.plan.is_empty() => {}
            None => state.plans.push_back(owed),
        }
        self.notify_if_empty(&state);
        dropped
    }

    /// Puts a plan back that was not sent.
    pub(super) fn return_unsent(&self, owed: OwedPlan) {
        self.put_back(owed, Fault::CircuitOpen);
    }

    /// Marks a plan for which something may come to be owed.
    pub(super) fn unsettled(self: Arc<Self>) -> Unsettled {
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        Unsettled(self)
    }

    /// Whether nothing is owed, and nothing can come to be owed for a plan that is queued or in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0 && self.waiting() == 0
    }

    /// Records that a plan reached the store, or never will. Returns the release of a slot that was released while it
    /// was being handed over.
    pub(super) fn done(&self, owed: OwedPlan, may_be_taken_over: bool) -> Option<Plan> {
        let mut state = self.owed.lock();
        state.in_flight -= 1;
        let released = owed.slot.filter(|&slot| !state.move_slot(slot, SlotState::InStore));
        let released = released.map(|(counter, lease)| releasing(owed.plan.checks[0].store, counter, lease));
        self.notify_if_empty(&state);
        drop(state);
        if may_be_taken_over && owed.slot.is_none() && owed::is_idempotent(&owed.plan) {
            let OwedPlan { plan, made, made_at, .. } = owed;
            self.acknowledged.keep(AcknowledgedPlan { plan, made, made_at });
        }
        released
    }

    /// Adds units that the fallback admitted at `now`, until [`Backlog::settle_charge`] they are not handed over.
    /// `counted` is what it counts now. Returns whether they are dropped.
    pub(super) fn expect_charge(
        &self,
        place: ChargedPlace,
        check: &Check,
        units: u32,
        counted: u32,
        now: Timestamp,
    ) -> bool {
        let mut state = self.owed.lock();
        if state.charges.len() >= MAX_OWED && !state.charges.contains_key(&place) {
            return true;
        }
        let at = Instant::now();
        let empty = || OwedCharge { check: *check, units: 0, pending: 0, at, until: at };
        let charge = state.charges.entry(place).or_insert_with(empty);
        charge.drain(at);
        if !matches!(check.limit, Limit::TokenBucket(_)) {
            // What has left the window of the fallback needs not be counted elsewhere.
            charge.units = charge.units.min(counted.saturating_sub(units));
        }
        charge.pending = charge.pending.saturating_add(units);
        charge.check = *check;
        charge.until = charge.until.max(at + Duration::from_micros(check.limit.charge_lasts(now)));
        false
    }

    /// Ends the wait of expected units: the store has charged them, or they are handed over.
    pub(super) fn settle_charge(&self, place: ChargedPlace, units: u32, in_store: bool) {
        let mut state = self.owed.lock();
        if let Some(charge) = state.charges.get_mut(&place) {
            let settled = units.min(charge.pending);
            charge.drain(Instant::now());
            charge.pending -= settled;
            charge.units = charge.units.saturating_add(if in_store { 0 } else { settled });
            if charge.units == 0 && charge.pending == 0 {
                state.charges.remove(&place);
            }
        }
        self.notify_changed(state);
    }

    /// Adds a slot that the fallback gave, until [`Backlog::settle_slot`] it is not handed over. Returns whether it is
    /// dropped.
    pub(super) fn expect_slot(&self, check: &Check, lease: LeaseId, slots: &Concurrency) -> bool {
        let mut state = self.owed.lock();
        let now = Instant::now();
        if state.slots.len() >= MAX_OWED {
            // Those that were handed over stay known until they end.
            state.remove_ended_slots(now);
        }
        if state.slots.len() >= MAX_OWED {
            return true;
        }
        let until = now + Duration::from_micros(slots.lease);
        let key = (check.counter, lease);
        state.remove_slot(key);
        state.slots.insert(key, OwedSlot { check: *check, lease, until, state: SlotState::Sending });
        state.in_flight += 1;
        false
    }

    /// Ends the wait of an expected slot: the store has given it too, or it is handed over. Returns whether it is still
    /// held: it may have been released meanwhile.
    pub(super) fn settle_slot(&self, counter: CounterName, lease: LeaseId, in_store: bool) -> bool {
        let mut state = self.owed.lock();
        state.in_flight -= 1;
        let to = if in_store { SlotState::InStore } else { SlotState::Waiting };
        let held = state.move_slot((counter, lease), to);
        self.notify_changed(state);
        held
    }

    /// Takes units back that the fallback admitted, or that the store has charged after all.
    pub(super) fn cancel_charge(&self, place: ChargedPlace, units: u32) {
        let mut state = self.owed.lock();
        if let Some(charge) = state.charges.get_mut(&place) {
            let rest = units.saturating_sub(charge.units);
            charge.units = charge.units.saturating_sub(units);
            charge.pending = charge.pending.saturating_sub(rest);
        }
        // A charge of nothing is removed when the next round is taken.
        self.filled.notify_one();
    }

    /// Applies the lease changes of a plan to the slots that the fallback gave. One that is released while it is being
    /// handed over is released as soon as it is.
    pub(super) fn change_slots(&self, plan: &Plan) {
        for change in &plan.changes {
            match change.action {
                LeaseAction::Look => {}
                LeaseAction::Release => self.cancel_slot(change.counter, change.lease),
                LeaseAction::Renew(_) | LeaseAction::RenewOwn => {
                    let mut state = self.owed.lock();
                    if let Some(slot) = state.slots.get_mut(&(change.counter, change.lease)) {
                        let length = match (change.action, &slot.check.limit) {
                            (LeaseAction::Renew(length), _) => length,
                            (_, limit) => limit.charge_lasts(Timestamp::EPOCH),
                        };
                        slot.until = Instant::now() + Duration::from_micros(length);
                    }
                }
            }
        }
    }

    /// Forgets a slot that is released.
    pub(super) fn cancel_slot(&self, counter: CounterName, lease: LeaseId) {
        let mut state = self.owed.lock();
        state.remove_slot((counter, lease));
        self.notify_if_empty(&state);
    }

    /// Drops what the fallback admitted on a counter that is being removed.
    pub(super) fn forget(&self, counter: CounterName) {
        let mut state = self.owed.lock();
        state.charges.retain(|place, _| place.counter != counter);
        state.slots.retain(|(name, _), _| *name != counter);
        state.waiting_slots = state.slots.values().filter(|slot| slot.state == SlotState::Waiting).count();
        self.notify_if_empty(&state);
    }

    /// Takes up to `most` plans for lanes that are `usable`: first what the fallback admitted, since a refund gives back
    /// nothing before its charge.
    pub(super) fn take(&self, most: usize, usable: impl Fn(&Plan) -> bool) -> Round {
        let now = Instant::now();
        let mut state = self.owed.lock();
        let mut round = Round::default();
        let before = state.plans.len();
        state.plans.retain(|owed| owed.until > now);
        round.expired += before - state.plans.len();
        state.take_charges(most, now, &usable, &mut round);
        state.take_slots(most, now, &usable, &mut round);
        for _ in 0..state.plans.len() {
            if round.plans.len() >= most {
                break;
            }
            let Some(mut owed) = state.plans.pop_front() else { break };
            let rest = owed::remaining(&owed.plan, owed.made_at, now - owed.made);
            if rest.is_empty() {
                round.expired += 1;
            } else if !usable(&owed.plan) {
                state.plans.push_back(owed);
            } else {
                round.unknown += usize::from(owed.drop_if_forgotten(now));
                if !owed.plan.is_empty() {
                    round.plans.push(owed);
                }
            }
        }
        state.in_flight += round.plans.len();
        self.notify_if_empty(&state);
        round
    }

    /// Waits until something is owed, or the backlog is closed. Returns whether it is closed.
    pub(super) async fn filled(&self) -> bool {
        loop {
            let mut filled = std::pin::pin!(self.filled.notified());
            filled.as_mut().enable();
            {
                let state = self.owed.lock();
                if state.closed || state.waiting() > 0 {
                    return state.closed;
                }
            }
            filled.await;
        }
    }

    /// Waits until the store answers again.
    pub(super) async fn store_recovered(&self) {
        self.recovered.notified().await;
    }

    /// Records that the store answers again.
    pub(super) fn recovered(&self) {
        self.recovered.notify_one();
    }

    /// Waits until nothing is owed, nor can come to be.
    pub(super) async fn emptied(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.is_settled() {
                return;
            }
            emptied.await;
        }
    }

    /// Ends the task that hands over, once nothing is owed or its time is up.
    pub(super) fn close(&self) {
        self.owed.lock().closed = true;
        self.filled.notify_one();
    }

    /// Drops everything, and returns how much it was.
    pub(super) fn clear(&self) -> usize {
        let mut state = self.owed.lock();
        let waiting = state.waiting() - state.in_flight;
        state.plans.clear();
        state.charges.clear();
        state.slots.clear();
        state.waiting_slots = 0;
        waiting
    }

    /// Wakes the task that hands over, or those that wait until nothing is owed.
    fn notify_changed(&self, state: MutexGuard<'_, Owed>) {
        self.notify_if_empty(&state);
        drop(state);
        self.filled.notify_one();
    }

    fn notify_if_empty(&self, owed: &Owed) {
        if owed.waiting() == 0 {
            self.emptied.notify_waiters();
        }
    }

    fn push(&self, owed: OwedPlan) -> bool {
        let mut state = self.owed.lock();
        let full = state.plans.len() >= MAX_OWED;
        if !full {
            state.plans.push_back(owed);
        }
        drop(state);
        self.filled.notify_one();
        full
    }
}

impl Owed {
    fn waiting(&self) -> usize {
        self.plans.len() + self.charges.len() + self.waiting_slots + self.in_flight
    }

    /// Changes the state of a slot. Returns whether it is known.
    fn move_slot(&mut self, key: (CounterName, LeaseId), to: SlotState) -> bool {
        let Some(slot) = self.slots.get_mut(&key) else { return false };
        self.waiting_slots -= usize::from(slot.state == SlotState::Waiting);
        self.waiting_slots += usize::from(to == SlotState::Waiting);
        slot.state = to;
        true
    }

    fn remove_slot(&mut self, key: (CounterName, LeaseId)) {
        let removed = self.slots.remove(&key);
        self.waiting_slots -= usize::from(removed.is_some_and(|slot| slot.state == SlotState::Waiting));
    }

    fn take_charges(&mut self, most: usize, now: Instant, usable: &impl Fn(&Plan) -> bool, round: &mut Round) {
        self.charges.retain(|place, charge| {
            charge.drain(now);
            if charge.until <= now {
                round.expired += usize::from(charge.units > 0);
                charge.units = 0;
            }
            if charge.units == 0 || round.plans.len() >= most {
                return charge.units > 0 || charge.pending > 0;
            }
            let plan = Plan { once: Some(Backlog::once()), ..charging_at(*place, &charge.check, charge.units) };
            if usable(&plan) {
                let made_at = SystemClock::new().now();
                let OwedCharge { until, .. } = *charge;
                round.plans.push(OwedPlan { plan, made: now, made_at, until, sent: None, slot: None });
                charge.units = 0;
            }
            charge.units > 0 || charge.pending > 0
        });
    }

    /// Removes slots whose leases have ended. Returns how many of them waited.
    fn remove_ended_slots(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        self.slots.retain(|_, slot| {
            let ended = slot.until <= now && slot.state != SlotState::Sending;
            expired += usize::from(ended && slot.state == SlotState::Waiting);
            !ended
        });
        self.waiting_slots -= expired;
        expired
    }

    fn take_slots(&mut self, most: usize, now: Instant, usable: &impl Fn(&Plan) -> bool, round: &mut Round) {
        round.expired += self.remove_ended_slots(now);
        for (key, slot) in &mut self.slots {
            if round.plans.len() >= most {
                break;
            }
            let (SlotState::Waiting, Limit::Concurrency(slots)) = (slot.state, slot.check.limit) else { continue };
            let rest = u64::try_from((slot.until - now).as_micros()).unwrap_or(u64::MAX).max(1);
            let check = Check { limit: Limit::Concurrency(Concurrency { lease: rest, ..slots }), ..slot.check };
            let plan = Plan { lease: slot.lease, ..charging(&check, 1) };
            if !usable(&plan) {
                continue;
            }
            slot.state = SlotState::Sending;
            self.waiting_slots -= 1;
            let made_at = SystemClock::new().now();
            round.plans.push(OwedPlan { plan, made: now, made_at, until: slot.until, sent: None, slot: Some(*key) });
        }
    }
}

impl OwedPlan {
    /// Drops what takes effect once if it was sent so long ago that the store does not know its id any more. Returns
    /// whether there was something.
    fn drop_if_forgotten(&mut self, now: Instant) -> bool {
        let forgotten = self.slot.is_none()
            && !self.plan.checks.is_empty()
            && self.sent.is_some_and(|sent| now - sent > MAX_REPEAT_AGE);
        if forgotten {
            self.plan.checks.clear();
            self.plan.groups.clear();
        }
        forgotten
    }

    /// The plan as it has to be sent now.
    pub(super) fn remaining(&self) -> Plan {
        match self.slot {
            Some(_) => self.plan.clone(),
            None => owed::remaining(&self.plan, self.made_at, self.made.elapsed()),
        }
    }
}

impl OwedCharge {
    /// Takes off what a bucket has drained since.
    fn drain(&mut self, now: Instant) {
        let Limit::TokenBucket(bucket) = &self.check.limit else {
            if self.until <= now {
                self.units = 0;
            }
            return;
        };
        let micros = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX);
        // Whole tokens only. The moment advances by their time, so that no drain is lost to rounding.
        let (drained, took) = bucket.drained(micros);
        self.units = self.units.saturating_sub(drained);
        self.at = if self.units == 0 { now } else { (self.at + Duration::from_micros(took)).min(now) };
    }
}

/// A plan that releases one slot.
pub(super) fn releasing(store: u16, counter: CounterName, lease: LeaseId) -> Plan {
    let change = LeaseChange { counter, store, lease, action: LeaseAction::Release };
    Plan { changes: SmallVec::from_iter([change]), ..Plan::default() }
}

/// Adds to a plan what gives back the slot or the hold that a check takes under a lease.
pub(super) fn giving_back(check: &Check, lease: LeaseId, plan: &mut Plan) {
    let &Check { store, counter, limit, .. } = check;
    if check.takes_slot() {
        plan.changes.push(LeaseChange { counter, store, lease, action: LeaseAction::Release });
    } else if check.holding.holds() {
        plan.holds.push(HoldChange { counter, store, limit, lease, action: HoldAction::Settle(Some(0)) });
    }
}

/// A plan that charges what was charged at a place, whatever is left.
fn charging_at(place: ChargedPlace, check: &Check, units: u32) -> Plan {
    let (Limit::Distinct(distinct), Some(value)) = (check.limit, place.value) else { return charging(check, units) };
    let mut values = Values::default();
    let asked = values.ask([value]).unwrap_or_default();
    let check = Check { limit: Limit::Distinct(Distinct { asked, ..distinct }), ..*check };
    Plan { values, ..charging(&check, 1) }
}

/// A plan that charges units whatever is left.
fn charging(check: &Check, units: u32) -> Plan {
    let charges = Charges { admitted: units, passed: units, refused: units };
    // Its hold is here, where it is settled while it lasts.
    let holding = Holding::None;
    let check = Check { needs: Needs::default(), charges, refund: 0, shadow: false, holding, ..*check };
    Plan { checks: SmallVec::from_iter([check]), groups: SmallVec::from_slice(&[1]), ..Plan::default() }
}
