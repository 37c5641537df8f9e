//! Shapes: the numbers of checks, without their counters.

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::limiter::{Alignment, Limit, Lost, MAX_EXACT_INTEGER};
use crate::plan::{Charges, Check, Holding, Undo};

/// The room of a check that never passes, and of one that always does.
const ROOM_NEVER: u64 = MAX_EXACT_INTEGER;
const ROOM_ALWAYS: f64 = -(MAX_EXACT_INTEGER as f64);

/// The numbers of a check, without its counter: the bits of doubles.
pub(super) type CheckShape = SmallVec<[u64; 14]>;

/// The shapes of a batch, each once.
#[derive(Default)]
pub(super) struct Shapes {
    at: Timestamp,
    pub(super) list: Vec<CheckShape>,
    indexes: HashMap<CheckShape, usize, foldhash::fast::FixedState>,
}

impl Shapes {
    /// No shapes yet. Calendars will have the windows around `at`.
    pub(super) fn at(at: Timestamp) -> Self {
        Self { at, ..Self::default() }
    }

    pub(super) fn of_check(&mut self, check: &Check, values: &[u64]) -> usize {
        self.index(shape_of(check, values, self.at))
    }

    pub(super) fn of_undo(&mut self, undo: &Undo, values: &[u64]) -> usize {
        let mut shape = shape_of(&undo.look(), values, self.at);
        shape[ADMITTED] = (undo.charged as f64).to_bits();
        self.index(shape)
    }

    pub(super) fn of_holding(&mut self, holding: Holding) -> usize {
        let [mode, length, release] = match (holding.terms(), holding) {
            (Some((length, lost)), _) => [3, length, u64::from(lost == Lost::Release)],
            (None, Holding::Reported) => [2, 0, 0],
            (None, _) => [1, 0, 0],
        };
        self.index([6, mode, length, release].iter().map(|&number| (number as f64).to_bits()).collect())
    }

    /// The index of a shape in `ARGV`, which is added if it is new.
    fn index(&mut self, shape: CheckShape) -> usize {
        let index = match self.list.last() {
            Some(last) if *last == shape => self.list.len() - 1,
            _ => *self.indexes.entry(shape).or_insert_with_key(|shape| {
                self.list.push(shape.clone());
                self.list.len() - 1
            }),
        };
        index + 2
    }
}

/// Where the charge on admission is in a shape.
const ADMITTED: usize = 3;

/// The shape of a check; `values` are those of its plan.
fn shape_of(check: &Check, values: &[u64], at: Timestamp) -> CheckShape {
    let (kind, holds) = match &check.limit {
        Limit::TokenBucket(bucket) => (1, bucket.burst()),
        Limit::FixedWindow(window) => (2, window.limit),
        Limit::SlidingCounter(window) => (3, window.limit),
        Limit::SlidingWindow(window) => (4, window.limit),
        Limit::Distinct(distinct) => (7, distinct.limit),
        Limit::Concurrency(slots) => (5, slots.max),
    };
    let units = |units: u32| match &check.limit {
        Limit::TokenBucket(bucket) => bucket.levels(units),
        _ => units.into(),
    };
    let Charges { admitted, passed, refused } = check.charges_on_verdicts();
    let mut shape = CheckShape::new();
    shape.push(f64::from(kind).to_bits());
    shape.push(f64::from(u8::from(check.shadow)).to_bits());
    shape.push(room(check, holds, units).to_bits());
    let mut push = |numbers: &[u64]| shape.extend(numbers.iter().map(|&number| (number as f64).to_bits()));
    push(&[admitted, passed, refused, check.refund].map(units));
    match &check.limit {
        Limit::TokenBucket(bucket) => {
            let (full, capacity, unit) = (bucket.burst().into(), bucket.capacity(), bucket.unit());
            push(&[full, capacity].map(|tokens: u64| tokens * unit));
            push(&[unit, bucket.drain(), unit_code(unit)]);
        }
        Limit::FixedWindow(window) => {
            push(&[window.limit.into()]);
            match window.alignment {
                Alignment::Epoch(length) => push(&[0, length]),
                Alignment::FirstHit(length) => push(&[1, length]),
                Alignment::Calendar(calendar) => {
                    push(&[2]);
                    push(&calendar.bounds(at).times().map(Timestamp::micros));
                }
            }
        }
        Limit::SlidingCounter(window) => {
            push(&[window.limit.into(), window.window, window.step(), window.steps()]);
        }
        Limit::SlidingWindow(window) => push(&[window.limit.into(), window.window]),
        Limit::Distinct(distinct) => {
            let needs = u64::from(check.needs.fits > 0) + 2 * u64::from(check.needs.one_left);
            push(&[distinct.limit.into(), distinct.window, needs]);
            distinct.asked.of(values).iter().for_each(|value| push(&[value >> 32, value & 0xffff_ffff]));
        }
        Limit::Concurrency(slots) => push(&[slots.max.into(), slots.lease]),
    }
    shape
}

/// The room that a check needs to pass, in the units of its counter.
fn room(check: &Check, holds: u32, units: impl Fn(u32) -> u64) -> f64 {
    let needs = check.needs;
    let concurrency = matches!(check.limit, Limit::Concurrency(_));
    let fits = if concurrency { needs.fits.min(1) } else { needs.fits };
    let units = match (check.always_denied, needs.one_left) {
        (true, _) => ROOM_NEVER,
        (_, _) if fits > holds && !concurrency => ROOM_NEVER,
        (_, one_left) if fits > 0 || one_left => units(fits.max(one_left.into())),
        (_, _) => return ROOM_ALWAYS,
    };
    match &check.limit {
        // What is granted ahead may be beyond the limit: less room than none is needed.
        Limit::TokenBucket(bucket) if units != ROOM_NEVER => units as f64 - bucket.levels_ahead() as f64,
        _ => units as f64,
    }
}

/// The two-byte code of a unit m * 10^e with m below 4096 and e below 16, or 0 for any other unit.
fn unit_code(mut unit: u64) -> u64 {
    let mut zeroes = 0;
    while unit.is_multiple_of(10) && unit > 0 {
        unit /= 10;
        zeroes += 1;
    }
    if unit < 4096 && zeroes < 16 { unit * 16 + zeroes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_encoded_as_a_short_number_and_its_zeroes_where_possible() {
        assert_eq!(unit_code(36_000_000), 36 * 16 + 6);
        assert_eq!(unit_code(15_625), 0, "more than 4095 and no zeroes");
        assert_eq!(unit_code(1), 16);
        assert_eq!(unit_code(40_950), 4095 * 16 + 1);
    }
}
