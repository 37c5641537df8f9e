//! A plan whose counters are in several places: several stores, or several slots of a cluster.
//!
//! Each place decides its part atomically, one after the other: shared stores in the order of the configuration, then
//! this process's memory. Once a part refuses, the parts after it are asked as of a group that is refused already, so
//! that the answer is complete, and what the parts before it charged is taken back exactly.
//!
//! ```text
//!   part 1 admits, charges   part 2 refuses   part 3: refused already   part 1: undo, refused already
//! ```
//!
//! Between charge and undo others see the charge: they may be refused early, and never admitted too often. A place that
//! fails in between answers by policy. Where an undo fails, the charge stays until it drains or expires: that errs on
//! the side of the limit.

use smallvec::SmallVec;
use tokio::time::Instant;

use super::Stores;
use crate::clock::Timestamp;
use crate::limiter::LeaseStatus;
use crate::plan::{Applied, Check, CounterName, Fault, LeaseChange, Outcome, Plan, Undo};

/// Where counters are decided together: a store, and a slot of it. Memory stores are one place, the last.
type Place = (u16, u16);

/// This process's memory.
const MEMORY: Place = (u16::MAX, 0);

/// One place's part of a group.
struct Part {
    place: Place,
    plan: Plan,
    /// Where its checks stand in the group.
    checks: SmallVec<[usize; 3]>,
}

/// Who answered a part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The store itself, or this process's memory.
    Store,
    /// What answers in a store's place.
    Fallback,
}

/// The answers of a group's checks.
type Answers = SmallVec<[Result<Outcome, Fault>; 3]>;

impl Stores {
    fn place(&self, store: u16, counter: &CounterName) -> Place {
        match self.shared(store) {
            Some(shared) => (store, shared.place(counter)),
            None => MEMORY,
        }
    }

    /// Whether a plan is decided in one place, and then the shared store that it is in; none is this process's memory.
    pub(super) fn one_place(&self, plan: &Plan) -> Option<Option<u16>> {
        let checks = plan.checks.iter().map(|check| self.place(check.store, &check.counter));
        let changes = plan.changes.iter().map(|change| self.place(change.store, &change.counter));
        let mut places = checks.chain(changes);
        let first = places.next().unwrap_or(MEMORY);
        places.all(|place| place == first).then(|| (first != MEMORY).then_some(first.0))
    }

    /// Executes a plan of several places.
    pub(super) async fn spread(&self, plan: &Plan, now: Timestamp) -> Applied {
        let deadline = self.deadline(plan);
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        for change in &plan.changes {
            applied.statuses.push(self.change(*change, now, deadline).await);
        }
        for group in plan.groups() {
            let parts = self.parts(group, plan);
            let (admitted, answers) = self.group(parts, now, deadline, group.len()).await;
            applied.admitted &= admitted;
            applied.answers.extend(answers);
        }
        applied
    }

    async fn change(&self, change: LeaseChange, now: Timestamp, deadline: Instant) -> LeaseStatus {
        let plan = Plan { changes: SmallVec::from_iter([change]), ..Plan::default() };
        let (applied, _) = self.ask(self.place(change.store, &change.counter), &plan, now, deadline).await;
        applied.statuses.first().copied().unwrap_or(LeaseStatus::Unknown)
    }

    /// Splits a group by place: shared stores in their order, then memory.
    fn parts(&self, group: &[Check], plan: &Plan) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (number, check) in group.iter().enumerate() {
            let place = self.place(check.store, &check.counter);
            let known = parts.iter().position(|part| part.place == place);
            let at = known.unwrap_or_else(|| {
                let plan = Plan { lease: plan.lease, refused: plan.refused, ..Plan::default() };
                parts.push(Part { place, plan, checks: SmallVec::new() });
                parts.len() - 1
            });
            parts[at].plan.checks.push(*check);
            parts[at].checks.push(number);
        }
        for part in &mut parts {
            part.plan.groups.push(u16::try_from(part.checks.len()).expect("a part is no longer than its plan"));
        }
        parts.sort_by_key(|part| part.place);
        parts
    }

    /// Decides one group over its parts.
    async fn group(&self, parts: Vec<Part>, now: Timestamp, deadline: Instant, checks: usize) -> (bool, Answers) {
        let mut answers: Answers = smallvec::smallvec![Err(Fault::Unreachable); checks];
        let mut charged = Charged { stores: self, now, parts: Vec::new() };
        let mut refused = false;
        for mut part in parts {
            part.plan.refused |= refused;
            let (answer, by) = self.ask(part.place, &part.plan, now, deadline).await;
            refused |= !answer.admitted;
            part.checks.iter().zip(&answer.answers).for_each(|(&number, answer)| answers[number] = *answer);
            if !refused {
                charged.parts.extend(Again::of(part, &answer, by));
            }
        }
        if !refused {
            charged.parts.clear();
        }
        // Whoever is dropped while it is taken back leaves that to the store's queue, which has it by then: once is enough.
        while let Some(again) = charged.parts.pop() {
            let answer = self.take_back(&again, now, deadline).await;
            if let Some(answer) = answer {
                again.checks.iter().zip(answer.answers).for_each(|(&number, answer)| answers[number] = answer);
            }
        }
        (!refused, answers)
    }

    /// Asks one place for its part.
    async fn ask(&self, place: Place, plan: &Plan, now: Timestamp, deadline: Instant) -> (Applied, By) {
        let Some(shared) = self.shared(place.0) else { return (self.memory.apply(plan, now), By::Store) };
        // Each store by its own patience, and all of them together by the longest.
        let deadline = deadline.min(shared.remote().deadline());
        match shared.ask(plan, now, self.told(now), deadline).await {
            Ok(applied) => (applied, By::Store),
            Err(fault) => (shared.fallback(plan, fault, now), By::Fallback),
        }
    }

    /// Takes back what a part charged; the answer that it gives then, where it can.
    async fn take_back(&self, again: &Again, now: Timestamp, deadline: Instant) -> Option<Applied> {
        let Again { place, plan, by, .. } = again;
        match (self.shared(place.0), by) {
            (None, _) => Some(self.memory.apply(plan, now)),
            (Some(shared), By::Fallback) => Some(shared.fallback(plan, Fault::CircuitOpen, now)),
            (Some(shared), By::Store) => {
                if Instant::now() >= deadline {
                    // Others took the time that was: it is done all the same, and nobody waits for it.
                    shared.post(plan.clone(), self.told(now));
                    return None;
                }
                shared.ask(plan, now, self.told(now), deadline).await.ok()
            }
        }
    }
}

/// A part that was charged, as it is asked again when its group is refused.
struct Again {
    place: Place,
    plan: Plan,
    by: By,
    checks: SmallVec<[usize; 3]>,
}

impl Again {
    /// None where nothing was charged, or where charges stay on a refusal too.
    fn of(part: Part, applied: &Applied, by: By) -> Option<Self> {
        let stays = |check: &Check| check.charges.admitted == check.charges.passed && !check.shadow;
        if part.plan.checks.iter().all(stays) {
            return None;
        }
        let undo = |(check, answer): (&Check, &Result<Outcome, Fault>)| {
            let outcome = answer.as_ref().ok().filter(|outcome| outcome.passes || !check.shadow)?;
            let &Check { counter, store, limit, charges, .. } = check;
            let charge = Undo { counter, store, limit, units: charges.admitted, at: applied.at, reset: outcome.reset };
            (charge.units > 0).then_some(charge)
        };
        let undos: Vec<Undo> = part.plan.checks.iter().zip(&applied.answers).filter_map(undo).collect();
        // What a refund gave back was given back once.
        let checks = part.plan.checks.iter().map(|check| Check { refund: 0, ..*check }).collect();
        let plan = Plan { undos, checks, refused: true, ..part.plan };
        (!plan.undos.is_empty()).then_some(Self { place: part.place, plan, by, checks: part.checks })
    }
}

/// What is charged until its group is decided. A request that is given up in between leaves nothing behind.
struct Charged<'a> {
    stores: &'a Stores,
    now: Timestamp,
    parts: Vec<Again>,
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        let Self { stores, now, .. } = *self;
        for Again { place, plan, by, .. } in self.parts.drain(..) {
            match (stores.shared(place.0), by) {
                (None, _) => drop(stores.memory.apply(&plan, now)),
                (Some(shared), By::Fallback) => drop(shared.fallback(&plan, Fault::CircuitOpen, now)),
                (Some(shared), By::Store) => shared.post(plan, stores.told(now)),
            }
        }
    }
}
