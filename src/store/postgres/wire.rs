//! Encodes plans as the arguments of `apply` in apply.sql, and decodes its answers.
//!
//! Counters, leases and shapes (checks without their counters) are sent once in a call and referred to by index: the
//! checks of a batch are mostly alike. All numbers are small enough that a `bigint` cannot overflow, because an error
//! of the arithmetic would fail the whole batch.

use std::error::Error;
use std::ops::Range;

use bytes::{BufMut, BytesMut};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::clock::Timestamp;
use crate::limiter::{Alignment, LeaseId, LeaseStatus, Limit, Lost, MAX_EXACT_INTEGER};
use crate::plan::{Applied, Check, CounterName, HoldAction, Holding, LeaseAction, Outcome, Plan};

/// The length of a shape.
const SHAPE_LEN: usize = 15;

/// The numbers of a shape that are charges.
const CHARGES: Range<usize> = 9..12;

/// A check without its counter, or a limit, as apply.sql describes it.
type ShapeNumbers = [i64; SHAPE_LEN];

/// 128 bits as a `uuid`: the smallest type that PostgreSQL compares as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Uuid([u8; 16]);

impl From<CounterName> for Uuid {
    fn from(CounterName([first, second]): CounterName) -> Self {
        Uuid((u128::from(first) << 64 | u128::from(second)).to_be_bytes())
    }
}

impl From<LeaseId> for Uuid {
    fn from(LeaseId(id): LeaseId) -> Self {
        Uuid(id.to_be_bytes())
    }
}

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }

    to_sql_checked!();
}

/// The arguments of `apply` for a batch of plans, by the names of its parameters.
#[derive(Debug, Default)]
pub(super) struct ApplyArguments {
    /// The counters, each once.
    pub(super) names: Vec<Uuid>,
    /// The leases, each once.
    pub(super) holders: Vec<Uuid>,
    /// The shapes, each once.
    pub(super) shapes: Vec<i64>,
    /// The plans, which refer to the others by index.
    pub(super) program: Vec<i64>,
    /// The length of the answer.
    pub(super) answers: i32,
    /// For each counter, whether a plan may charge it. `None` if that is so for all.
    pub(super) charged: Option<Vec<bool>>,
}

impl ApplyArguments {
    /// Encodes plans. Calendars have the windows around `at`.
    pub(super) fn of(plans: &[Plan], at: Timestamp) -> Self {
        let arguments = Self { answers: 1, ..Self::default() };
        let mut encoder = PlanEncoder { arguments, at, ..PlanEncoder::default() };
        plans.iter().for_each(|plan| encoder.plan(plan));
        let PlanEncoder { mut arguments, charged, .. } = encoder;
        arguments.charged = (charged.len() < arguments.names.len() || charged.contains(&false)).then(|| {
            let rest = arguments.names.len() - charged.len();
            charged.into_iter().chain(std::iter::repeat_n(false, rest)).collect()
        });
        arguments
    }
}

/// The index of each value that has been encoded.
type Indexes<K> = HashMap<K, i64, RandomState>;

#[derive(Default)]
struct PlanEncoder {
    arguments: ApplyArguments,
    at: Timestamp,
    counters: Indexes<CounterName>,
    leases: Indexes<LeaseId>,
    shapes: Indexes<ShapeNumbers>,
    /// For each counter, whether a check may charge it. Further counters are not charged.
    charged: Vec<bool>,
}

impl PlanEncoder {
    fn plan(&mut self, plan: &Plan) {
        let holder = self.lease(plan.lease);
        let holds = has_holds(plan);
        let changes = !plan.changes.is_empty() || !plan.holds.is_empty();
        let values = asks_for_values(plan);
        let refused = i64::from(plan.refused) + 2 * i64::from(holds) + 4 * i64::from(changes) + 8 * i64::from(values);
        self.put([refused, holder, count(plan.changes.len()), count(plan.undos.len())]);
        self.put([count(plan.groups.len())]);
        if holds {
            self.put([count(plan.holds.len())]);
        }
        if values {
            self.put([count(plan.values.as_slice().len())]);
            self.arguments.program.extend(plan.values.as_slice().iter().map(|value| ordered(*value)));
        }
        for change in &plan.changes {
            let (counter, lease) = (self.counter(change.counter), self.lease(change.lease));
            let renewal = match change.action {
                LeaseAction::Release => -1,
                LeaseAction::Renew(length) => bigint(length),
                LeaseAction::RenewOwn => -2,
                LeaseAction::Look => -9,
            };
            self.put([counter, lease, renewal]);
        }
        for change in &plan.holds {
            let (action, number) = match change.action {
                HoldAction::Settle(None) => (0, 0),
                HoldAction::Settle(Some(units)) => (1, units.into()),
                HoldAction::Renew(None) => (2, 0),
                HoldAction::Renew(Some(length)) => (3, bigint(length)),
                HoldAction::Look => (4, 0),
            };
            let (counter, lease) = (self.counter(change.counter), self.lease(change.lease));
            let shape = self.shape(shape_of_limit(&change.limit, self.at));
            self.put([counter, shape, lease, action, number]);
        }
        for undo in &plan.undos {
            let counter = self.counter(undo.counter);
            let shape = self.shape(shape_of_limit(&undo.limit, self.at));
            // A longer reset than a counter can have would overflow when it is multiplied by the drain.
            let max_reset = match &undo.limit {
                Limit::TokenBucket(bucket) => MAX_EXACT_INTEGER / bucket.drain() + 1,
                _ => MAX_EXACT_INTEGER,
            };
            let charged = bigint(undo.charged.min(MAX_EXACT_INTEGER));
            let reset = bigint(undo.reset.min(max_reset));
            let reset = if undo.only_if_last { -1 - reset } else { reset };
            self.put([counter, shape, charged, bigint(undo.at.micros()), reset]);
            if holds {
                self.put([undo.holds.into()]);
            }
            if values {
                self.put(place_of(&undo.limit));
            }
        }
        for group in plan.groups() {
            self.put([count(group.len())]);
            for check in group {
                let shape = shape_of_check(check, self.at);
                let counter = self.counter(check.counter);
                if shape[CHARGES].iter().any(|charge| *charge > 0) {
                    self.charge(counter);
                }
                let shape = self.shape(shape);
                self.put([counter, shape]);
                if holds {
                    self.put(numbers_of(check.holding));
                }
                if values {
                    self.put(place_of(&check.limit));
                }
            }
        }
        let of_check = if holds { 5 } else { 4 };
        let answers = 1 + plan.changes.len() + plan.holds.len() + of_check * plan.checks.len();
        self.arguments.answers = self.arguments.answers.saturating_add(i32::try_from(answers).unwrap_or(i32::MAX));
    }

    fn put<const N: usize>(&mut self, numbers: [i64; N]) {
        self.arguments.program.extend(numbers);
    }

    fn counter(&mut self, name: CounterName) -> i64 {
        index_of(name, &mut self.counters, &mut self.arguments.names)
    }

    fn lease(&mut self, lease: LeaseId) -> i64 {
        index_of(lease, &mut self.leases, &mut self.arguments.holders)
    }

    /// Notes that a counter may be charged.
    fn charge(&mut self, counter: i64) {
        let place = usize::try_from(counter - 1).expect("indexes are from one");
        if self.charged.len() <= place {
            self.charged.resize(place + 1, false);
        }
        self.charged[place] = true;
    }

    /// The offset of a shape in `shapes`, from zero.
    fn shape(&mut self, shape: ShapeNumbers) -> i64 {
        let offset = count(self.arguments.shapes.len());
        match self.shapes.entry(shape) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.arguments.shapes.extend(shape);
                *new.insert(offset)
            }
        }
    }
}

/// The index of a value in its list, from one. A new value is appended.
fn index_of<K: Eq + std::hash::Hash + Copy + Into<Uuid>>(
    value: K,
    indexes: &mut Indexes<K>,
    list: &mut Vec<Uuid>,
) -> i64 {
    *indexes.entry(value).or_insert_with(|| {
        list.push(value.into());
        count(list.len())
    })
}

/// Whether a plan has anything to do with holds.
fn has_holds(plan: &Plan) -> bool {
    let looks = || plan.checks.iter().any(|check| check.holding.looks());
    !plan.holds.is_empty() || looks() || plan.undos.iter().any(|undo| undo.holds)
}

/// Whether a plan asks for values, or takes back that it did.
fn asks_for_values(plan: &Plan) -> bool {
    let counts_values = |limit: &Limit| matches!(limit, Limit::Distinct(_));
    plan.checks.iter().any(|check| counts_values(&check.limit))
        || plan.undos.iter().any(|undo| counts_values(&undo.limit))
}

/// Where the values of a limit are among those of its plan: the first, from zero, and their number.
fn place_of(limit: &Limit) -> [i64; 2] {
    match limit {
        Limit::Distinct(distinct) => [count(distinct.asked.first()), count(distinct.asked.count())],
        _ => [0, 0],
    }
}

/// A value in the order of unsigned numbers.
fn ordered(value: u64) -> i64 {
    (value ^ 1 << 63).cast_signed()
}

/// What a check has to do with holds: how it looks at them, the length of its own, and whether that is given back.
fn numbers_of(holding: Holding) -> [i64; 3] {
    match (holding, holding.terms()) {
        (_, Some((length, lost))) => [3, bigint(length), (lost == Lost::Release).into()],
        (Holding::Reported, None) => [2, 0, 0],
        (holding, None) => [holding.looks().into(), 0, 0],
    }
}

/// The shape of a check. Indexes are from zero here, and from one in apply.sql.
fn shape_of_check(check: &Check, at: Timestamp) -> ShapeNumbers {
    let mut shape = shape_of_limit(&check.limit, at);
    let (needs, charges) = (check.needs, check.charges);
    let max_units = shape[1];
    let concurrency = matches!(check.limit, Limit::Concurrency(_));
    // The needs together require the largest room that one of them requires.
    let fits = if concurrency { i64::from(needs.fits > 0) } else { needs.fits.into() };
    let never = !concurrency && fits > max_units;
    shape[7] = match fits.max(needs.one_left.into()) {
        0 => -1,
        _ if never => 0,
        room => room,
    };
    shape[8] = never.into();
    // Charges are clamped to what the counter can hold or owe, so that no product overflows. A log may hold more than
    // its limit, if that was lowered.
    let max_charge = match &check.limit {
        Limit::TokenBucket(_) => shape[2],
        Limit::SlidingWindow(_) => max_units,
        Limit::SlidingCounter(_) | Limit::FixedWindow(_) | Limit::Concurrency(_) | Limit::Distinct(_) => {
            u32::MAX.into()
        }
    };
    let clamped = |units: u32| i64::from(units).min(max_charge);
    shape[9] = clamped(charges.admitted);
    shape[10] = clamped(charges.passed);
    shape[11] = clamped(charges.refused);
    shape[12] = match check.limit {
        Limit::TokenBucket(_) => clamped(check.refund),
        _ => check.refund.into(),
    };
    if let Limit::Distinct(_) = check.limit {
        (shape[3], shape[4]) = ((needs.fits > 0).into(), needs.one_left.into());
    }
    shape[13] = check.shadow.into();
    shape[14] = check.always_denied.into();
    shape
}

/// The shape of a limit: its kind, its maximum units and its parameters. The rest is zero.
fn shape_of_limit(limit: &Limit, at: Timestamp) -> ShapeNumbers {
    let mut shape = [0; SHAPE_LEN];
    shape[1] = max_units(limit).into();
    match limit {
        Limit::TokenBucket(bucket) => {
            shape[0] = 1;
            (shape[2], shape[3], shape[4]) = (bigint(bucket.capacity()), bigint(bucket.unit()), bigint(bucket.drain()));
            shape[5] = bigint(bucket.levels_ahead());
        }
        Limit::SlidingWindow(window) => {
            shape[0] = 2;
            shape[2] = bigint(window.window);
        }
        Limit::SlidingCounter(counter) => {
            shape[0] = 3;
            (shape[2], shape[3], shape[4]) = (bigint(counter.window), bigint(counter.step()), bigint(counter.steps()));
        }
        Limit::FixedWindow(fixed) => {
            shape[0] = 4;
            match fixed.alignment {
                Alignment::Epoch(window) => shape[3] = bigint(window),
                Alignment::FirstHit(window) => (shape[2], shape[3]) = (1, bigint(window)),
                Alignment::Calendar(calendar) => {
                    shape[2] = 2;
                    shape[3..7].copy_from_slice(&calendar.bounds(at).times().map(|bound| bigint(bound.micros())));
                }
            }
        }
        Limit::Concurrency(slots) => {
            shape[0] = 5;
            shape[2] = bigint(slots.lease);
        }
        Limit::Distinct(distinct) => {
            shape[0] = 6;
            shape[2] = bigint(distinct.window);
        }
    }
    shape
}

/// The maximum units of a limit.
fn max_units(limit: &Limit) -> u32 {
    match limit {
        Limit::TokenBucket(bucket) => bucket.burst(),
        Limit::SlidingWindow(window) => window.limit,
        Limit::SlidingCounter(counter) => counter.limit,
        Limit::FixedWindow(fixed) => fixed.limit,
        Limit::Concurrency(slots) => slots.max,
        Limit::Distinct(distinct) => distinct.limit,
    }
}

/// A number as a `bigint`, at most 2^60: as a timestamp, the year 38 000.
pub(super) fn bigint(number: u64) -> i64 {
    i64::try_from(number.min(1 << 60)).expect("2^60 fits")
}

fn count(number: usize) -> i64 {
    i64::try_from(number).expect("there are fewer than 2^63 of anything")
}

/// The answer to a call.
#[derive(Debug)]
pub(super) enum ApplyAnswer {
    /// The time of the server, and the answer to each plan.
    Answers(Timestamp, Vec<Applied>),
    /// Nothing was executed, because the windows of a calendar do not contain the server's time, given here.
    OutsideCalendar(Timestamp),
}

/// Decodes the answer to a call. `None` if it is malformed.
pub(super) fn decode(plans: &[Plan], answer: &[i64]) -> Option<ApplyAnswer> {
    let (at, mut rest) = answer.split_first()?;
    let at = Timestamp::from_micros(u64::try_from(*at).ok()?);
    if rest.is_empty() && !plans.is_empty() {
        return Some(ApplyAnswer::OutsideCalendar(at));
    }
    let mut all = Vec::with_capacity(plans.len());
    for plan in plans {
        let mut applied = Applied { admitted: next(&mut rest)? == 1, at, ..Applied::default() };
        for _ in 0..plan.changes.len() + plan.holds.len() {
            applied.statuses.push(match next(&mut rest)? {
                0 => LeaseStatus::Done,
                1 => LeaseStatus::Expired,
                held @ 3.. => LeaseStatus::Held(held.abs_diff(3)),
                _ => LeaseStatus::Unknown,
            });
        }
        let mut answers = SmallVec::new();
        for check in &plan.checks {
            let (remaining, reset) = (next(&mut rest)?, next(&mut rest)?);
            let (wait, charged) = (next(&mut rest)?, next(&mut rest)?);
            let held = if has_holds(plan) { next(&mut rest)? } else { 0 };
            answers.push(Ok(Outcome {
                passes: wait == -2,
                limit: if check.always_denied { 0 } else { max_units(&check.limit) },
                remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
                reset: u64::try_from(reset).ok()?,
                retry_after: u64::try_from(wait).ok(),
                charged: u64::try_from(charged).ok()?,
                held: match held {
                    1.. if check.holding.holds() => check.charges.admitted,
                    held => u32::try_from(held).unwrap_or(u32::MAX),
                },
            }));
        }
        applied.answers = answers;
        all.push(applied);
    }
    rest.is_empty().then_some(ApplyAnswer::Answers(at, all))
}

/// Removes and returns the first number.
fn next(rest: &mut &[i64]) -> Option<i64> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(*first)
}
