//! Plans as the arrays that `apply` of apply.sql takes, and its answers read back.
//!
//! Counters and leases stand once in a call and are called by their places; so does everything of a check but its
//! counter, because the checks of a batch are mostly alike. All numbers are within what a `bigint` counts exactly: a plan
//! that would make the arithmetic fail would fail its whole batch.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::clock::Timestamp;
use crate::limiter::{Alignment, LeaseId, LeaseStatus, Limit, MAX_EXACT_INTEGER};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseAction, Outcome, Plan};

/// Numbers in a shape.
const SHAPE: usize = 15;
type Shape = [i64; SHAPE];

/// 128 bits as a `uuid`: the smallest type that PostgreSQL compares as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id([u8; 16]);

impl From<CounterName> for Id {
    fn from(CounterName([first, second]): CounterName) -> Self {
        Id((u128::from(first) << 64 | u128::from(second)).to_be_bytes())
    }
}

impl From<LeaseId> for Id {
    fn from(LeaseId(id): LeaseId) -> Self {
        Id(id.to_be_bytes())
    }
}

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }

    to_sql_checked!();
}

/// A batch of plans, as it is sent.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) names: Vec<Id>,
    pub(super) holders: Vec<Id>,
    pub(super) shapes: Vec<i64>,
    pub(super) program: Vec<i64>,
    pub(super) answers: i32,
}

impl Call {
    /// The call that carries out these plans.
    pub(super) fn of(plans: &[Plan]) -> Self {
        let mut writer = Writer { call: Call { answers: 1, ..Call::default() }, ..Writer::default() };
        plans.iter().for_each(|plan| writer.plan(plan));
        writer.call
    }
}

/// Where things stand that have been written.
type Places<K> = HashMap<K, i64, RandomState>;

#[derive(Default)]
struct Writer {
    call: Call,
    counters: Places<CounterName>,
    leases: Places<LeaseId>,
    shapes: Places<Shape>,
}

impl Writer {
    fn plan(&mut self, plan: &Plan) {
        let holder = self.lease(plan.lease);
        self.put([plan.refused.into(), holder, count(plan.changes.len()), count(plan.undos.len())]);
        self.put([count(plan.groups.len())]);
        for change in &plan.changes {
            let (counter, lease) = (self.counter(change.counter), self.lease(change.lease));
            let renewal = match change.action {
                LeaseAction::Release => -1,
                LeaseAction::Renew(length) => int(length),
            };
            self.put([counter, lease, renewal]);
        }
        for undo in &plan.undos {
            let counter = self.counter(undo.counter);
            let shape = self.shape(numbers(&undo.limit));
            // More than there can be would be multiplied beyond what can be counted.
            let longest = match &undo.limit {
                Limit::TokenBucket(bucket) => MAX_EXACT_INTEGER / bucket.drain() + 1,
                _ => MAX_EXACT_INTEGER,
            };
            self.put([counter, shape, undo.units.into(), int(undo.at.micros()), int(undo.reset.min(longest))]);
        }
        for group in plan.groups() {
            self.put([count(group.len())]);
            for check in group {
                let (counter, shape) = (self.counter(check.counter), self.shape(shape(check)));
                self.put([counter, shape]);
            }
        }
        let answers = 1 + plan.changes.len() + 3 * plan.checks.len();
        self.call.answers = self.call.answers.saturating_add(i32::try_from(answers).unwrap_or(i32::MAX));
    }

    fn put<const N: usize>(&mut self, numbers: [i64; N]) {
        self.call.program.extend(numbers);
    }

    fn counter(&mut self, name: CounterName) -> i64 {
        place(&mut self.counters, name, &mut self.call.names)
    }

    fn lease(&mut self, lease: LeaseId) -> i64 {
        place(&mut self.leases, lease, &mut self.call.holders)
    }

    /// Where a shape begins, counted from zero.
    fn shape(&mut self, shape: Shape) -> i64 {
        let begins = count(self.call.shapes.len());
        match self.shapes.entry(shape) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.call.shapes.extend(shape);
                *new.insert(begins)
            }
        }
    }
}

/// The place of something among those of its call, counted from one.
fn place<K: Eq + std::hash::Hash + Copy + Into<Id>>(places: &mut Places<K>, thing: K, all: &mut Vec<Id>) -> i64 {
    *places.entry(thing).or_insert_with(|| {
        all.push(thing.into());
        count(all.len())
    })
}

/// Everything of a check but its counter. The places are counted from one in apply.sql.
fn shape(check: &Check) -> Shape {
    let mut shape = numbers(&check.limit);
    let (needs, charges) = (check.needs, check.charges);
    let most = shape[1];
    let slots = matches!(check.limit, Limit::Concurrency(_));
    // All needs together ask for the most that one of them does.
    let fits = if slots { i64::from(needs.fits > 0) } else { needs.fits.into() };
    let never = !slots && fits > most;
    shape[7] = match fits.max(needs.one_left.into()) {
        0 => -1,
        _ if never => 0,
        room => room,
    };
    shape[8] = never.into();
    // No more than it can hold or owe, before anything is multiplied. A log may hold more than a limit that was lowered.
    let largest = match &check.limit {
        Limit::TokenBucket(_) => shape[2],
        Limit::SlidingWindow(_) => most,
        Limit::SlidingCounter(_) | Limit::FixedWindow(_) | Limit::Concurrency(_) => u32::MAX.into(),
    };
    let clamped = |units: u32| i64::from(units).min(largest);
    shape[9] = clamped(charges.admitted);
    shape[10] = clamped(charges.passed);
    shape[11] = clamped(charges.refused);
    shape[12] = match check.limit {
        Limit::TokenBucket(_) => clamped(check.refund),
        _ => check.refund.into(),
    };
    shape[13] = check.shadow.into();
    shape[14] = check.always_denied.into();
    shape
}

/// The kind, the most units and the numbers of a limit.
fn numbers(limit: &Limit) -> Shape {
    let mut shape = [0; SHAPE];
    shape[1] = most(limit).into();
    match limit {
        Limit::TokenBucket(bucket) => {
            shape[0] = 1;
            (shape[2], shape[3], shape[4]) = (int(bucket.capacity()), int(bucket.unit()), int(bucket.drain()));
        }
        Limit::SlidingWindow(window) => {
            shape[0] = 2;
            shape[2] = int(window.window);
        }
        Limit::SlidingCounter(counter) => {
            shape[0] = 3;
            (shape[2], shape[3], shape[4]) = (int(counter.window), int(counter.step()), int(counter.steps()));
        }
        Limit::FixedWindow(fixed) => {
            shape[0] = 4;
            match fixed.alignment {
                Alignment::Epoch(window) => shape[3] = int(window),
                Alignment::FirstHit(window) => (shape[2], shape[3]) = (1, int(window)),
                Alignment::Calendar(bounds) => {
                    shape[2] = 2;
                    shape[3..7].copy_from_slice(&bounds.0.map(|bound| int(bound.micros())));
                }
            }
        }
        Limit::Concurrency(slots) => {
            shape[0] = 5;
            shape[2] = int(slots.lease);
        }
    }
    shape
}

fn most(limit: &Limit) -> u32 {
    match limit {
        Limit::TokenBucket(bucket) => bucket.burst(),
        Limit::SlidingWindow(window) => window.limit,
        Limit::SlidingCounter(counter) => counter.limit,
        Limit::FixedWindow(fixed) => fixed.limit,
        Limit::Concurrency(slots) => slots.max,
    }
}

/// A moment or a length of time. What is beyond the year 38 000 is for ever.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number.min(1 << 60)).expect("2^60 fits")
}

fn count(number: usize) -> i64 {
    i64::try_from(number).expect("there are fewer than 2^63 of anything")
}

/// What plans came to, read from the answer to their call. `None` when it is not one.
pub(super) fn read(plans: &[Plan], answer: &[i64]) -> Option<Vec<Result<Applied, Fault>>> {
    let (at, mut rest) = answer.split_first()?;
    let at = Timestamp::from_micros(u64::try_from(*at).ok()?);
    let mut all = Vec::with_capacity(plans.len());
    for plan in plans {
        let mut applied = Applied { admitted: next(&mut rest)? == 1, at, ..Applied::default() };
        for _ in &plan.changes {
            applied.statuses.push(match next(&mut rest)? {
                0 => LeaseStatus::Done,
                1 => LeaseStatus::Expired,
                _ => LeaseStatus::Unknown,
            });
        }
        let mut answers = SmallVec::new();
        for check in &plan.checks {
            let (remaining, reset, wait) = (next(&mut rest)?, next(&mut rest)?, next(&mut rest)?);
            answers.push(Ok(Outcome {
                passes: wait == -2,
                limit: if check.always_denied { 0 } else { most(&check.limit) },
                remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
                reset: u64::try_from(reset).ok()?,
                retry_after: u64::try_from(wait).ok(),
            }));
        }
        applied.answers = answers;
        all.push(Ok(applied));
    }
    rest.is_empty().then_some(all)
}

fn next(rest: &mut &[i64]) -> Option<i64> {
    let (first, more) = rest.split_first()?;
    *rest = more;
    Some(*first)
}
