//! A second implementation of every algorithm, slow and plain: it stores every grant, and searches for the time to wait
//! instead of computing it. It shares only the types of a check with `limiter`.
//!
//! ```text
//! left(now)  = allowed units - units counted at now             in grains, so that fractions of a token are exact
//! passes     = enough units are left
//! retry, reset: true at that moment and false one microsecond earlier
//! ```
//!
//! Only a bucket whose numbers changed is not known exactly: the implementation rounds its level by less than one of
//! its own fractions of a token. Then `left` is a range, and within it the implementation's answer is accepted.

use tollgate::clock::Timestamp;
use tollgate::limiter::{Alignment, LeaseId, LeaseStatus};
use tollgate::plan::{Check, Needs, Outcome};

use crate::support::reference::numbers::Numbers;

/// Grains in a unit: a multiple of every window that the tests use.
const UNIT: i128 = 7 * 3_600_000_000;

/// The state of a counter, in its plainest form.
#[derive(Clone, Debug)]
pub enum Model {
    Bucket(Bucket),
    Log(Log),
    Pair(Pair),
    Fixed(Fixed),
    Slots(Slots),
}

impl Model {
    /// The empty state of these numbers' algorithm.
    pub fn of(numbers: Numbers) -> Self {
        match numbers {
            Numbers::Bucket { .. } => Model::Bucket(Bucket::default()),
            Numbers::Log { .. } => Model::Log(Log::default()),
            Numbers::Pair { .. } => Model::Pair(Pair::default()),
            Numbers::Fixed { .. } => Model::Fixed(Fixed::default()),
            Numbers::Slots { .. } => Model::Slots(Slots::default()),
            Numbers::Values { .. } => unreachable!("distinct.rs has their model"),
        }
    }

    /// Applies a check of a group and describes an error of `outcome`, if it has one. `refused`: another check of the
    /// group refuses.
    pub fn follow(
        &mut self,
        numbers: Numbers,
        check: &Check,
        refused: bool,
        lease: LeaseId,
        now: Timestamp,
        outcome: &Outcome,
    ) {
        let now = now.micros();
        self.correct(numbers, now);
        self.refund(numbers, now, check.refund);
        let (surely, possibly) = self.met(numbers, check.needs, now);
        let passes = match (check.always_denied, surely == possibly) {
            (true, _) => false,
            (false, true) => surely,
            (false, false) => outcome.passes,
        };
        assert_eq!(outcome.passes, passes, "verdict");
        let admitted = !refused && (passes || check.shadow);
        let units = match (check.shadow, admitted, passes) {
            (true, true, true) | (false, true, _) => check.charges.admitted,
            (false, false, true) => check.charges.passed,
            (false, false, false) => check.charges.refused,
            (true, _, _) => 0,
        };
        if units > 0 {
            self.charge(numbers, now, units, lease);
        }
        self.agree(numbers, check, now, outcome);
    }

    /// Compares `outcome` with the state after the group.
    fn agree(&self, numbers: Numbers, check: &Check, now: u64, outcome: &Outcome) {
        if check.always_denied {
            assert_eq!((outcome.limit, outcome.remaining, outcome.retry_after), (0, 0, None), "always_denied");
            return;
        }
        assert_eq!(outcome.limit, numbers.holds(), "limit");
        let (least, most) = self.left(numbers, now);
        let whole = |grains: i128| (grains / UNIT).max(0);
        let remaining = i128::from(outcome.remaining);
        assert!((whole(least)..=whole(most)).contains(&remaining), "remaining {remaining}: {least} to {most} grains");

        let reset = outcome.reset;
        assert!(self.forgotten(numbers, now + reset).1, "reset {reset}: something is still counted then");
        assert!(reset == 0 || !self.forgotten(numbers, now + reset - 1).0, "reset {reset}: sooner");

        match (outcome.passes, outcome.retry_after) {
            (true, retry) => assert_eq!(retry, None, "what passes waits for nothing"),
            (false, None) => assert!(check.needs.fits > numbers.holds(), "it would fit some day"),
            (false, Some(retry)) => {
                assert!(check.needs.fits <= numbers.holds(), "it never fits");
                assert!(self.met(numbers, check.needs, now + retry).1, "retry {retry}: still refused then");
                assert!(retry > 0, "a refusal waits");
                assert!(!self.met(numbers, check.needs, now + retry - 1).0, "retry {retry}: sooner");
            }
        }
    }

    /// Whether all needs are met at a moment: certainly, and possibly.
    fn met(&self, numbers: Numbers, needs: Needs, now: u64) -> (bool, bool) {
        let (least, most) = self.left(numbers, now);
        let enough = |left: i128| {
            let fits = needs.fits == 0 || (needs.fits <= numbers.holds() && left >= i128::from(needs.fits) * UNIT);
            fits && (!needs.one_left || left >= UNIT)
        };
        (enough(least), enough(most))
    }

    /// Moves grants that lie in the future to now.
    fn correct(&mut self, numbers: Numbers, now: u64) {
        match (self, numbers) {
            (Model::Bucket(bucket), _) => bucket.at = bucket.at.min(now),
            (Model::Log(log), _) => log.grants.iter_mut().for_each(|grant| *grant = (*grant).min(now)),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => pair.correct(now / window),
            (Model::Fixed(fixed), Numbers::Fixed { alignment, .. }) => fixed.correct(alignment, now),
            (Model::Slots(slots), _) => slots.correct(now),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    fn refund(&mut self, numbers: Numbers, now: u64, units: u32) {
        if units == 0 {
            return;
        }
        match (self, numbers) {
            (Model::Bucket(bucket), numbers) => bucket.take_out(numbers, now, units),
            (Model::Log(log), Numbers::Log { window, .. }) => log.refund(window, now, units),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => pair.refund(now / window, units),
            (Model::Fixed(fixed), _) => fixed.refund(now, units),
            (Model::Slots(_), _) => {}
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    fn charge(&mut self, numbers: Numbers, now: u64, units: u32, lease: LeaseId) {
        match (self, numbers) {
            (Model::Bucket(bucket), numbers) => bucket.add(numbers, now, units),
            (Model::Log(log), Numbers::Log { limit, window }) => log.charge(limit, window, now, units),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => pair.charge(now / window, units),
            (Model::Fixed(fixed), Numbers::Fixed { alignment, .. }) => fixed.charge(alignment, now, units),
            (Model::Slots(slots), Numbers::Slots { lease: length, .. }) => slots.acquire(now, length, lease),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    /// The grains left at a moment: the least and the most possible. Negative when more is counted than allowed.
    fn left(&self, numbers: Numbers, now: u64) -> (i128, i128) {
        let exactly = |limit: u32, counted: u64| {
            let left = (i128::from(limit) - i128::from(counted)) * UNIT;
            (left, left)
        };
        match (self, numbers) {
            (Model::Bucket(bucket), Numbers::Bucket { burst, .. }) => {
                let [(least, _), (most, _)] = bucket.used(numbers, now);
                let full = i128::from(burst) * UNIT;
                (full - most, full - least)
            }
            (Model::Log(log), Numbers::Log { limit, window }) => exactly(limit, log.counted(window, now) as u64),
            (Model::Pair(pair), Numbers::Pair { limit, window }) => exactly(limit, pair.estimate(window, now)),
            (Model::Fixed(fixed), Numbers::Fixed { limit, .. }) => exactly(limit, fixed.counted(now)),
            (Model::Slots(slots), Numbers::Slots { max, .. }) => exactly(max, slots.held(now) as u64),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    /// Whether nothing is counted at a moment: certainly, and possibly.
    fn forgotten(&self, numbers: Numbers, now: u64) -> (bool, bool) {
        let exactly = |forgotten: bool| (forgotten, forgotten);
        match (self, numbers) {
            (Model::Bucket(bucket), numbers) => {
                let [(least, _), (most, _)] = bucket.used(numbers, now);
                (most == 0, least == 0)
            }
            (Model::Log(log), Numbers::Log { window, .. }) => exactly(log.counted(window, now) == 0),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => exactly(pair.estimate(window, now) == 0),
            (Model::Fixed(fixed), _) => exactly(fixed.counted(now) == 0),
            (Model::Slots(slots), _) => exactly(slots.held(now) == 0),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    /// Releases a lease or extends it.
    pub fn change(&mut self, lease: LeaseId, renew: Option<u64>, now: Timestamp, status: LeaseStatus) {
        let Model::Slots(slots) = self else { unreachable!("only slots are given back") };
        let now = now.micros();
        slots.correct(now);
        let held = slots.leases.iter_mut().find(|held| held.id == lease);
        let expected = match (&held, renew) {
            (None, _) => LeaseStatus::Unknown,
            (Some(held), Some(length)) if held.expires > now => LeaseStatus::Held(length),
            (Some(held), None) if held.expires > now => LeaseStatus::Done,
            (Some(_), _) => LeaseStatus::Expired,
        };
        assert_eq!(status, expected, "status of {lease:?}");
        match (held, renew) {
            (Some(held), Some(length)) if held.expires > now => (held.acquired, held.expires) = (now, now + length),
            (Some(_), None) => slots.leases.retain(|held| held.id != lease),
            (Some(_), Some(_)) | (None, _) => {}
        }
    }
}

/// The level of a bucket in grains when it was last written: the least and the most possible.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    least: i128,
    most: i128,
    at: u64,
    written_by: Option<Numbers>,
}

impl Bucket {
    /// What counts at a moment, and what was used beyond the capacity of the numbers that ask: the least possible of
    /// both, then the most.
    fn used(&self, numbers: Numbers, now: u64) -> [(i128, i128); 2] {
        let Numbers::Bucket { tokens, window, .. } = numbers else { unreachable!("it is a bucket's") };
        let elapsed = i128::from(now.saturating_sub(self.at));
        let drained = elapsed * i128::from(tokens) * (UNIT / i128::from(window));
        let (drained_alone, rounding) = self.drained_alone(numbers, now);
        let of = |used: i128, rounding: i128| match used <= drained_alone {
            true => (0, 0),
            false => {
                let within = (used + rounding).min(owed(numbers));
                ((within - drained).max(0), used + rounding - within)
            }
        };
        [of(self.least, 0), of(self.most, rounding)]
    }

    fn add(&mut self, numbers: Numbers, now: u64, units: u32) {
        let sum = |(counted, beyond): (i128, i128)| {
            beyond + (counted + i128::from(units) * UNIT).min(owed(numbers).max(counted))
        };
        let [least, most] = self.used(numbers, now).map(sum);
        *self = Bucket { least, most, at: now, written_by: Some(numbers) };
    }

    /// Takes units out of all that was used, at the moment of the last charge.
    fn take_out(&mut self, numbers: Numbers, now: u64, units: u32) {
        if self.written_by.is_none() {
            return;
        }
        let (drained_alone, rounding) = self.drained_alone(numbers, now);
        let units = (i128::from(units) * UNIT).min(owed(numbers));
        let rest = |used: i128, rounding: i128| match used <= drained_alone {
            true => 0,
            false => (used + rounding - units).max(0),
        };
        let (least, most) = (rest(self.least, 0), rest(self.most, rounding));
        *self = Bucket { least, most, at: self.at, written_by: Some(numbers) };
    }

    /// The grains after which the state is empty for everybody: its fractions drain as many in a microsecond as those
    /// of the numbers that ask. With it the most that a conversion to those adds.
    fn drained_alone(&self, numbers: Numbers, now: u64) -> (i128, i128) {
        let Numbers::Bucket { tokens, window, .. } = numbers else { unreachable!("it is a bucket's") };
        let elapsed = i128::from(now.saturating_sub(self.at));
        let written_by = self.written_by.unwrap_or(numbers);
        let drain = i128::from(tokens) * i128::from(parts(numbers)) / i128::from(window);
        let rounding = match parts(written_by) != parts(numbers) {
            // Rounded up to other fractions of a token, by a grid of at least 2^19 steps.
            true => UNIT / i128::from(parts(numbers)) + UNIT / (1 << 18) + 1,
            false => 0,
        };
        (elapsed * drain * (UNIT / i128::from(parts(written_by))), rounding)
    }
}

/// The most grains that a bucket can hold and owe.
fn owed(numbers: Numbers) -> i128 {
    let Numbers::Bucket { burst, debt, .. } = numbers else { unreachable!("it is a bucket's") };
    (i128::from(burst) + i128::from(debt)) * UNIT
}

/// The number of fractions of a token such that a microsecond drains a whole number of them.
fn parts(numbers: Numbers) -> u64 {
    let Numbers::Bucket { tokens, window, .. } = numbers else { unreachable!("it is a bucket's") };
    // A whole number of fractions drains when fractions * tokens / window is whole.
    let (mut divisor, mut rest) = (window, u64::from(tokens));
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    window / divisor
}

/// Every grant of an exact window.
#[derive(Clone, Debug, Default)]
pub struct Log {
    grants: Vec<u64>,
}

impl Log {
    fn counted(&self, window: u64, now: u64) -> usize {
        self.grants.iter().filter(|grant| **grant + window > now).count()
    }

    /// Removes the oldest grants that count, and expired ones with them. Does nothing if none counts.
    fn refund(&mut self, window: u64, now: u64, units: u32) {
        if self.counted(window, now) > 0 {
            self.grants.retain(|grant| grant + window > now);
            self.grants.sort_unstable();
            self.grants.drain(..self.grants.len().min(units as usize));
        }
    }

    /// Past the limit the newest grant replaces the oldest, but the number of grants never falls.
    fn charge(&mut self, limit: u32, window: u64, now: u64, units: u32) {
        self.grants.retain(|grant| grant + window > now);
        let full = self.grants.len().max(limit as usize);
        self.grants.extend((0..units.min(limit)).map(|_| now));
        self.grants.sort_unstable();
        self.grants.drain(..self.grants.len().saturating_sub(full));
    }
}

/// Units by the number of their aligned window.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    units: Vec<(u64, u64)>,
    /// The current window when the counter was last written.
    latest: u64,
}

impl Pair {
    fn correct(&mut self, number: u64) {
        if let Some(ahead) = self.latest.checked_sub(number) {
            self.units.iter_mut().for_each(|(window, _)| *window = window.saturating_sub(ahead));
            self.latest = number;
        }
    }

    fn of(&self, number: u64) -> u64 {
        let units = self.units.iter().filter(|(window, _)| *window == number).map(|(_, units)| units);
        units.sum::<u64>().min(u32::MAX.into())
    }

    /// The estimate of semantics 22.
    fn estimate(&self, window: u64, now: u64) -> u64 {
        let (number, elapsed) = (now / window, now % window);
        let s = window.div_ceil(1 << 20);
        let (all, left) = (window.div_ceil(s), (window - elapsed).div_ceil(s));
        let previous = number.checked_sub(1).map_or(0, |number| self.of(number));
        (previous * left).div_ceil(all) + self.of(number)
    }

    fn charge(&mut self, number: u64, units: u32) {
        self.units.retain(|(window, _)| window + 1 >= number);
        self.units.push((number, units.into()));
        self.latest = number;
    }

    fn refund(&mut self, number: u64, units: u32) {
        if self.units.is_empty() && self.latest == 0 {
            return;
        }
        let kept = self.of(number).saturating_sub(units.into());
        self.units.retain(|(window, _)| window + 1 == number);
        self.units.push((number, kept));
        self.latest = number;
    }
}

/// Every hit of the current window.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    window: Option<(u64, u64)>,
    hits: Vec<u32>,
}

impl Fixed {
    fn counted(&self, now: u64) -> u64 {
        match self.window {
            Some((_, end)) if now < end => self.hits.iter().map(|units| u64::from(*units)).sum(),
            _ => 0,
        }
    }

    fn correct(&mut self, alignment: Alignment, now: u64) {
        if self.window.is_some_and(|(start, _)| start > now) {
            self.window = Some(around(alignment, now));
        }
    }

    fn refund(&mut self, now: u64, units: u32) {
        let left = self.counted(now).saturating_sub(units.into());
        if self.window.is_some_and(|(_, end)| now < end) {
            self.hits = vec![u32::try_from(left).expect("a count saturates at 32 bits")];
        }
    }

    fn charge(&mut self, alignment: Alignment, now: u64, units: u32) {
        if self.counted(now) == 0 {
            self.hits.clear();
            self.window = Some(around(alignment, now));
        }
        let room = u32::MAX - self.hits.iter().sum::<u32>();
        self.hits.push(units.min(room));
    }
}

/// The start and end of a window that is hit now.
fn around(alignment: Alignment, now: u64) -> (u64, u64) {
    match alignment {
        Alignment::Epoch(window) => (now / window * window, (now / window + 1) * window),
        Alignment::FirstHit(window) => (now, now + window),
        Alignment::Calendar(calendar) => {
            let [_, start, end, _] = calendar.bounds(Timestamp::from_micros(now)).times();
            (start.micros(), end.micros())
        }
    }
}

/// Every lease that was not released.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    leases: Vec<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    id: LeaseId,
    acquired: u64,
    expires: u64,
}

impl Slots {
    fn held(&self, now: u64) -> usize {
        self.leases.iter().filter(|lease| lease.expires > now).count()
    }

    fn correct(&mut self, now: u64) {
        for lease in self.leases.iter_mut().filter(|lease| lease.acquired > now) {
            lease.expires -= lease.acquired - now;
            lease.acquired = now;
        }
    }

    fn acquire(&mut self, now: u64, length: u64, id: LeaseId) {
        self.leases.retain(|lease| lease.expires > now);
        if self.leases.iter().all(|lease| lease.id != id) {
            self.leases.push(Held { id, acquired: now, expires: now + length });
        }
    }
}
