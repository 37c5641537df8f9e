//! What checks ask, without their counters.

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::limiter::{Alignment, CalendarBounds, Limit, MAX_EXACT_INTEGER};
use crate::plan::{Check, Undo};

/// A room that no counter has, and one that every counter has.
const NEVER: u64 = MAX_EXACT_INTEGER;
const ALWAYS: f64 = -(MAX_EXACT_INTEGER as f64);

/// What a check asks without the counter: doubles, as their bits.
pub(super) type Shape = SmallVec<[u64; 14]>;

/// The shapes of a batch, each once.
#[derive(Default)]
pub(super) struct Shapes {
    pub(super) list: Vec<Shape>,
    places: HashMap<Shape, usize, foldhash::fast::FixedState>,
}

impl Shapes {
    pub(super) fn of_check(&mut self, check: &Check) -> usize {
        self.place(shape_of(check, [check.charges.admitted, check.charges.passed, check.charges.refused]))
    }

    pub(super) fn of_undo(&mut self, undo: &Undo) -> usize {
        self.place(shape_of(&undo.look(), [undo.units, 0, 0]))
    }

    /// The place in ARGV.
    fn place(&mut self, shape: Shape) -> usize {
        let place = match self.list.last() {
            Some(last) if *last == shape => self.list.len() - 1,
            _ => *self.places.entry(shape).or_insert_with_key(|shape| {
                self.list.push(shape.clone());
                self.list.len() - 1
            }),
        };
        place + 2
    }
}

fn shape_of(check: &Check, [admitted, passed, refused]: [u32; 3]) -> Shape {
    let (kind, holds) = match &check.limit {
        Limit::TokenBucket(bucket) => (1, bucket.burst()),
        Limit::FixedWindow(window) => (2, window.limit),
        Limit::SlidingCounter(window) => (3, window.limit),
        Limit::SlidingWindow(window) => (4, window.limit),
        Limit::Concurrency(slots) => (5, slots.max),
    };
    let units = |units: u32| match &check.limit {
        Limit::TokenBucket(bucket) => u64::from(units).min(bucket.capacity()) * bucket.unit(),
        _ => units.into(),
    };
    let (passed, refused) = if check.shadow { (0, 0) } else { (passed, refused) };
    let mut shape = Shape::new();
    shape.push(f64::from(kind).to_bits());
    shape.push(f64::from(u8::from(check.shadow)).to_bits());
    shape.push(room(check, holds, units).to_bits());
    let mut push = |numbers: &[u64]| shape.extend(numbers.iter().map(|&number| (number as f64).to_bits()));
    push(&[admitted, passed, refused, check.refund].map(units));
    match &check.limit {
        Limit::TokenBucket(bucket) => {
            let (full, capacity, unit) = (bucket.burst().into(), bucket.capacity(), bucket.unit());
            push(&[full, capacity].map(|tokens: u64| tokens * unit));
            push(&[unit, bucket.drain(), code(unit)]);
        }
        Limit::FixedWindow(window) => {
            push(&[window.limit.into()]);
            match window.alignment {
                Alignment::Epoch(length) => push(&[0, length]),
                Alignment::FirstHit(length) => push(&[1, length]),
                Alignment::Calendar(CalendarBounds(bounds)) => {
                    push(&[2]);
                    push(&bounds.map(Timestamp::micros));
                }
            }
        }
        Limit::SlidingCounter(window) => {
            push(&[window.limit.into(), window.window, window.step(), window.steps()]);
        }
        Limit::SlidingWindow(window) => push(&[window.limit.into(), window.window]),
        Limit::Concurrency(slots) => push(&[slots.max.into(), slots.lease]),
    }
    shape
}

/// What has to be left for a check to pass, in what its counter counts.
fn room(check: &Check, holds: u32, units: impl Fn(u32) -> u64) -> f64 {
    let needs = check.needs;
    let slot = matches!(check.limit, Limit::Concurrency(_));
    let fits = if slot { needs.fits.min(1) } else { needs.fits };
    let units = match (check.always_denied, needs.one_left) {
        (true, _) => NEVER,
        (_, _) if fits > holds && !slot => NEVER,
        (_, one_left) if fits > 0 || one_left => units(fits.max(one_left.into())),
        (_, _) => return ALWAYS,
    };
    units as f64
}

/// A number of up to 4095 and so many zeroes, in two bytes; zero for any other.
fn code(mut unit: u64) -> u64 {
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
    fn a_unit_is_a_short_number_and_its_zeroes_where_it_can_be() {
        assert_eq!(code(36_000_000), 36 * 16 + 6);
        assert_eq!(code(15_625), 0, "more than 4095 and no zeroes");
        assert_eq!(code(1), 16);
        assert_eq!(code(40_950), 4095 * 16 + 1);
    }
}
