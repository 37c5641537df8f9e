//! Plans over several partitions (stores, or hash slots of a cluster), as a saga: steps with compensation.
//!
//! The partitions decide their steps one after the other, each atomically: shared stores in the order of the
//! configuration, then this process's memory. Once a step refuses, the later steps are executed as refused, so that the
//! answer is complete, and the charges of the earlier steps are undone exactly.
//!
//! ```text
//!   step 1 admits, charges   step 2 refuses   step 3 as refused   step 1: undo, as refused
//! ```
//!
//! Between charge and undo other requests see the charge: they may be refused early, but never admitted in excess. A
//! partition that fails is answered for by policy. If an undo fails, the charge stays until it drains or expires: fewer
//! requests are admitted, never more.

use smallvec::SmallVec;
use tokio::time::Instant;

use super::route::PlanRoute;
use super::stores::Stores;
use crate::clock::Timestamp;
use crate::limiter::LeaseStatus;
use crate::plan::{Applied, Change, Check, CounterName, Fault, HoldChanges, Outcome, Plan, Undo};

/// A store and a partition of it. Its counters are decided atomically. All memory stores are one partition, the last.
type Partition = (u16, u16);

/// The partition of all memory stores.
const MEMORY_PARTITION: Partition = (u16::MAX, 0);

/// The changes of a plan, or the checks of a group, in one partition.
#[derive(Default)]
struct SagaStep {
    partition: Partition,
    plan: Plan,
    /// The indices of its changes among the statuses.
    changes: SmallVec<[usize; 3]>,
    /// The indices of its checks in the group.
    checks: SmallVec<[usize; 3]>,
}

/// The answers of a group's checks.
type Answers = SmallVec<[Result<Outcome, Fault>; 3]>;

impl Stores {
    fn partition(&self, store: u16, counter: &CounterName) -> Partition {
        match self.shared(store) {
            Some(shared) => (store, shared.partition(counter)),
            None => MEMORY_PARTITION,
        }
    }

    /// The route of a plan.
    pub(super) fn route(&self, plan: &Plan) -> PlanRoute {
        let checks = plan.checks.iter().map(|check| self.partition(check.store, &check.counter));
        let changes = plan.changes.iter().map(|change| self.partition(change.store, &change.counter));
        let holds = plan.holds.iter().map(|change| self.partition(change.store, &change.counter));
        let mut partitions = checks.chain(changes).chain(holds);
        let first = partitions.next().unwrap_or(MEMORY_PARTITION);
        match partitions.all(|partition| partition == first) {
            true if first == MEMORY_PARTITION => PlanRoute::Memory,
            true => PlanRoute::Store(first.0),
            false => PlanRoute::Several,
        }
    }

    /// Executes a plan over several partitions.
    pub(super) async fn apply_saga(&self, plan: &Plan, now: Timestamp) -> Applied {
        let deadline = self.deadline(plan);
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        applied.statuses.resize(plan.changes.len() + plan.holds.len(), LeaseStatus::Unknown);
        let changes = self.changes(plan);
        if plan.has_named_lease() && plan.groups.len() == 1 {
            // Each partition looks in the step that counts there.
            let steps = self.steps(&plan.checks, plan, changes);
            let answers = self.apply_steps(steps, now, deadline, plan.checks.len(), &mut applied).await;
            applied.answers = answers;
            return applied;
        }
        for step in changes {
            let answer = self.execute_in(step.partition, &step.plan, now, deadline).await;
            applied.degraded |= answer.degraded;
            step.put_statuses(&answer, &mut applied);
        }
        let looking = plan.found_held(&applied.statuses).then(|| plan.looking());
        let plan = looking.as_ref().unwrap_or(plan);
        for group in plan.groups() {
            let steps = self.steps(group, plan, Vec::new());
            let answers = self.apply_steps(steps, now, deadline, group.len(), &mut applied).await;
            applied.answers.extend(answers);
        }
        applied
    }

    /// Splits the changes of a plan by partition, in the order in which they name them.
    fn changes(&self, plan: &Plan) -> Vec<SagaStep> {
        let mut steps: Vec<SagaStep> = Vec::new();
        for (index, change) in plan.each_change().enumerate() {
            let (store, counter) = change.place();
            let step = step_in(&mut steps, self.partition(store, &counter), plan);
            step.changes.push(index);
            match change {
                Change::Slot(change) => step.plan.changes.push(change),
                Change::Hold(change) => step.plan.holds.push(change),
            }
        }
        steps
    }

    /// Takes back what an admitted plan charged, without waiting for the stores. With `only_if_last`, a bucket gives its
    /// charge back only if nothing was charged since.
    pub(crate) fn take_back(&self, plan: &Plan, applied: &Applied, only_if_last: bool, now: Timestamp) {
        let mut plans: SmallVec<[(Partition, Plan); 1]> = SmallVec::new();
        for (check, answer) in plan.checks.iter().zip(&applied.answers) {
            let undo = answer.as_ref().ok().and_then(|outcome| Undo::of(check, outcome, applied.at));
            let Some(undo) = undo.map(|undo| Undo { only_if_last, ..undo }) else { continue };
            let partition = self.partition(check.store, &check.counter);
            match plans.iter_mut().find(|(known, _)| *known == partition) {
                Some((_, known)) => known.undos.push(undo),
                None => {
                    plans.push((partition, Plan { undos: vec![undo], ..plan.of_same_asker() }));
                }
            }
        }
        for (partition, plan) in plans {
            self.post(partition, plan, applied.degraded, now);
        }
    }

    /// Executes a compensation without waiting for its answer.
    fn post(&self, partition: Partition, plan: Plan, by_fallback: bool, now: Timestamp) {
        match (self.shared(partition.0), by_fallback) {
            (None, _) => drop(self.memory.apply(&plan, now)),
            (Some(shared), true) => drop(shared.apply_in_fallback(&plan, now)),
            (Some(shared), false) => shared.post(plan),
        }
    }

    /// Splits a group by partition: shared stores in their order, then memory. `steps` have the changes that are made with
    /// it.
    fn steps(&self, group: &[Check], plan: &Plan, mut steps: Vec<SagaStep>) -> Vec<SagaStep> {
        for (index, check) in group.iter().enumerate() {
            let step = step_in(&mut steps, self.partition(check.store, &check.counter), plan);
            step.plan.checks.push(*check);
            step.checks.push(index);
        }
        for step in steps.iter_mut().filter(|step| !step.checks.is_empty()) {
            step.plan.groups.push(u16::try_from(step.checks.len()).expect("it has no more checks than its plan"));
        }
        steps.sort_by_key(|step| step.partition);
        steps
    }

    /// Executes the steps of one group, and compensates if one refuses, or finds held what the plan looks at. Adds to the
    /// answer to the plan, and returns the answers of the checks.
    async fn apply_steps(
        &self,
        steps: Vec<SagaStep>,
        now: Timestamp,
        deadline: Instant,
        checks: usize,
        applied: &mut Applied,
    ) -> Answers {
        let mut answers: Answers = smallvec::smallvec![Err(Fault::Unreachable); checks];
        let mut charged = UndecidedCharges { stores: self, now, compensations: Vec::new() };
        let (mut refused, mut held) = (false, false);
        for mut step in steps {
            step.plan.refused |= refused;
            if held {
                step.plan = step.plan.looking();
            }
            let answer = self.execute_in(step.partition, &step.plan, now, deadline).await;
            refused |= !answer.admitted;
            held |= step.plan.found_held(&answer.statuses);
            applied.degraded |= answer.degraded;
            step.put_statuses(&answer, applied);
            step.checks.iter().zip(&answer.answers).for_each(|(&index, answer)| answers[index] = *answer);
            if !refused && !held {
                charged.compensations.extend(Compensation::of(step, &answer));
            }
        }
        applied.admitted &= !refused;
        if !refused && !held {
            charged.compensations.clear();
        }
        // Popped before the await: if the request is dropped meanwhile, the store's queue has the compensation already.
        while let Some(mut compensation) = charged.compensations.pop() {
            if held {
                compensation.plan = compensation.plan.looking();
            }
            let answer = self.compensate(&compensation, now, deadline).await;
            if let Some(answer) = answer {
                compensation.checks.iter().zip(answer.answers).for_each(|(&index, answer)| answers[index] = answer);
            }
        }
        answers
    }

    /// Executes a plan in one partition.
    async fn execute_in(&self, partition: Partition, plan: &Plan, now: Timestamp, deadline: Instant) -> Applied {
        let Some(shared) = self.shared(partition.0) else { return self.memory.apply(plan, now) };
        // Each store answers within its own timeout, and all of them within the longest.
        shared.apply(plan, now, deadline.min(shared.queue().deadline())).await
    }

    /// Undoes the charges of a step. Returns the answers of the step as refused if the store gives them in time.
    async fn compensate(&self, compensation: &Compensation, now: Timestamp, deadline: Instant) -> Option<Applied> {
        let Compensation { partition, plan, by_fallback, .. } = compensation;
        match (self.shared(partition.0), by_fallback) {
            (None, _) => Some(self.memory.apply(plan, now)),
            (Some(shared), true) => Some(shared.apply_in_fallback(plan, now)),
            (Some(shared), false) => {
                if Instant::now() >= deadline {
                    // Other stores took all the time: compensate without waiting.
                    shared.post(plan.clone());
                    return None;
                }
                shared.execute(plan, now, deadline).await.ok()
            }
        }
    }
}

/// The step in a partition, which is added if there is none.
fn step_in<'a>(steps: &'a mut Vec<SagaStep>, partition: Partition, plan: &Plan) -> &'a mut SagaStep {
    let known = steps.iter().position(|step| step.partition == partition);
    let position = known.unwrap_or_else(|| {
        let plan = Plan { refused: plan.refused, ..plan.of_same_asker() };
        steps.push(SagaStep { partition, plan, ..SagaStep::default() });
        steps.len() - 1
    });
    &mut steps[position]
}

impl SagaStep {
    /// Puts the statuses of its changes among those of the whole plan.
    fn put_statuses(&self, answer: &Applied, applied: &mut Applied) {
        for (&index, status) in self.changes.iter().zip(&answer.statuses) {
            applied.statuses[index] = *status;
        }
    }
}

/// The plan that compensates a charged step if its group is refused: the undos, then the checks as refused.
struct Compensation {
    partition: Partition,
    plan: Plan,
    /// Whether the fallback of a shared store has its charges, and not the store.
    by_fallback: bool,
    checks: SmallVec<[usize; 3]>,
}

impl Compensation {
    /// Returns `None` if nothing was charged, or if all charges stay on a refusal too. What stays is not held then.
    fn of(step: SagaStep, applied: &Applied) -> Option<Self> {
        let stays =
            |check: &Check| check.charges.admitted == check.charges.passed && !check.shadow && !check.holding.holds();
        if step.plan.checks.iter().all(stays) {
            return None;
        }
        let undo =
            |(check, answer): (&Check, &Result<Outcome, Fault>)| Undo::of(check, answer.as_ref().ok()?, applied.at);
        let undos: Vec<Undo> = step.plan.checks.iter().zip(&applied.answers).filter_map(undo).collect();
        // A refund is applied once.
        let checks = step.plan.checks.iter().map(|check| Check { refund: 0, ..*check }).collect();
        let plan =
            Plan { undos, checks, refused: true, changes: SmallVec::new(), holds: HoldChanges::default(), ..step.plan };
        let SagaStep { partition, checks, .. } = step;
        (!plan.undos.is_empty()).then_some(Self { partition, plan, by_fallback: applied.degraded, checks })
    }
}

/// The compensations of a group that is not decided yet. They are executed on drop, so a dropped request leaves no
/// charge.
struct UndecidedCharges<'a> {
    stores: &'a Stores,
    now: Timestamp,
    compensations: Vec<Compensation>,
}

impl Drop for UndecidedCharges<'_> {
    fn drop(&mut self) {
        let Self { stores, now, .. } = *self;
        for Compensation { partition, plan, by_fallback, .. } in self.compensations.drain(..) {
            stores.post(partition, plan, by_fallback, now);
        }
    }
}
