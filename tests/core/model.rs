//! A second opinion on every algorithm, slow and plain: what was granted is kept one by one, and how long to wait is
//! not computed but looked for. It shares nothing with `limiter` but the words of a check.
//!
//! ```text
//!   left(now)  = what the numbers allow - what is counted at now      in grains, so that parts of a token are exact
//!   passes     = left is enough
//!   retry, reset: at that moment it holds, one microsecond earlier it did not
//! ```
//!
//! Only a bucket whose numbers changed is not known exactly: the implementation rounds what was used up, by less than
//! one of its own parts of a token. Then `left` is a range, and inside it the implementation is believed.

use tollgate::clock::Timestamp;
use tollgate::limiter::{Alignment, CalendarBounds, LeaseId, LeaseStatus};
use tollgate::plan::{Check, Needs, Outcome};

use crate::support::reference::numbers::Numbers;

/// Grains in a unit: every window that the tests use divides it.
const UNIT: i128 = 7 * 3_600_000_000;

/// What is counted, kept plainly.
#[derive(Clone, Debug)]
pub enum Model {
    Bucket(Bucket),
    Log(Log),
    Pair(Pair),
    Fixed(Fixed),
    Slots(Slots),
}

impl Model {
    /// Nothing counted yet by these numbers' algorithm.
    pub fn of(numbers: Numbers) -> Self {
        match numbers {
            Numbers::Bucket { .. } => Model::Bucket(Bucket::default()),
            Numbers::Log { .. } => Model::Log(Log::default()),
            Numbers::Pair { .. } => Model::Pair(Pair::default()),
            Numbers::Fixed { .. } => Model::Fixed(Fixed::default()),
            Numbers::Slots { .. } => Model::Slots(Slots::default()),
        }
    }

    /// Follows a check through its group and says where `outcome` is wrong. `refused` says that another check of the
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
        let (surely, possibly) = self.met(numbers, &check.needs, now);
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

    /// Compares what the implementation says of the state after the group.
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
                assert!(self.met(numbers, &check.needs, now + retry).1, "retry {retry}: still refused then");
                assert!(retry > 0, "a refusal waits");
                assert!(!self.met(numbers, &check.needs, now + retry - 1).0, "retry {retry}: sooner");
            }
        }
    }

    /// Whether all needs are met at a moment: surely, and possibly.
    fn met(&self, numbers: Numbers, needs: &Needs, now: u64) -> (bool, bool) {
        let (least, most) = self.left(numbers, now);
        let enough = |left: i128| {
            let fits = needs.fits == 0 || (needs.fits <= numbers.holds() && left >= i128::from(needs.fits) * UNIT);
            fits && (!needs.one_left || left >= UNIT)
        };
        (enough(least), enough(most))
    }

    /// Moments ahead of now become now.
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
            (Model::Bucket(bucket), numbers) => bucket.add(numbers, now, -i128::from(units)),
            (Model::Log(log), Numbers::Log { window, .. }) => log.refund(window, now, units),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => pair.refund(now / window, units),
            (Model::Fixed(fixed), _) => fixed.refund(now, units),
            (Model::Slots(_), _) => {}
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    fn charge(&mut self, numbers: Numbers, now: u64, units: u32, lease: LeaseId) {
        match (self, numbers) {
            (Model::Bucket(bucket), numbers) => bucket.add(numbers, now, i128::from(units)),
            (Model::Log(log), Numbers::Log { limit, window }) => log.charge(limit, window, now, units),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => pair.charge(now / window, units),
            (Model::Fixed(fixed), Numbers::Fixed { alignment, .. }) => fixed.charge(alignment, now, units),
            (Model::Slots(slots), Numbers::Slots { lease: length, .. }) => slots.acquire(now, length, lease),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    /// What is left at a moment, at least and at most, in grains. Negative when more is counted than allowed.
    fn left(&self, numbers: Numbers, now: u64) -> (i128, i128) {
        let exactly = |limit: u32, counted: u64| {
            let left = (i128::from(limit) - i128::from(counted)) * UNIT;
            (left, left)
        };
        match (self, numbers) {
            (Model::Bucket(bucket), Numbers::Bucket { burst, .. }) => {
                let (least, most) = bucket.used(numbers, now);
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

    /// Whether nothing is counted at a moment: surely, and possibly.
    fn forgotten(&self, numbers: Numbers, now: u64) -> (bool, bool) {
        let exactly = |forgotten: bool| (forgotten, forgotten);
        match (self, numbers) {
            (Model::Bucket(bucket), numbers) => {
                let (least, most) = bucket.used(numbers, now);
                (most == 0, least == 0)
            }
            (Model::Log(log), Numbers::Log { window, .. }) => exactly(log.counted(window, now) == 0),
            (Model::Pair(pair), Numbers::Pair { window, .. }) => exactly(pair.estimate(window, now) == 0),
            (Model::Fixed(fixed), _) => exactly(fixed.counted(now) == 0),
            (Model::Slots(slots), _) => exactly(slots.held(now) == 0),
            _ => unreachable!("a model follows one algorithm"),
        }
    }

    /// Gives a lease back, or lets it live longer.
    pub fn change(&mut self, lease: LeaseId, renew: Option<u64>, now: Timestamp, status: LeaseStatus) {
        let Model::Slots(slots) = self else { unreachable!("only slots are given back") };
        let now = now.micros();
        slots.correct(now);
        let held = slots.leases.iter_mut().find(|held| held.id == lease);
        let expected = match (&held, renew) {
            (None, _) => LeaseStatus::Unknown,
            (Some(held), _) if held.expires > now => LeaseStatus::Done,
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

/// What was used of a bucket, in grains, at least and at most, as of the last time it was written.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    least: i128,
    most: i128,
    at: u64,
    written_by: Option<Numbers>,
}

impl Bucket {
    fn used(&self, numbers: Numbers, now: u64) -> (i128, i128) {
        let Numbers::Bucket { tokens, window, burst, debt } = numbers else { unreachable!("it is a bucket's") };
        let mut most = self.most;
        if self.written_by.is_some_and(|writer| parts(writer) != parts(numbers)) && most > 0 {
            // Rounded up into other parts of a token, by way of a grid of at least 2^19 parts.
            most += UNIT / i128::from(parts(numbers)) + UNIT / (1 << 18) + 1;
        }
        let owed = (i128::from(burst) + i128::from(debt)) * UNIT;
        let drained = i128::from(now.saturating_sub(self.at)) * i128::from(tokens) * (UNIT / i128::from(window));
        let left_of = |used: i128| (used.min(owed) - drained).max(0);
        (left_of(self.least), left_of(most))
    }

    fn add(&mut self, numbers: Numbers, now: u64, units: i128) {
        if units < 0 && self.written_by.is_none() {
            return;
        }
        let Numbers::Bucket { burst, debt, .. } = numbers else { unreachable!("it is a bucket's") };
        let owed = (i128::from(burst) + i128::from(debt)) * UNIT;
        let (least, most) = self.used(numbers, now);
        let sum = |used: i128| (used + units * UNIT).clamp(0, owed);
        *self = Bucket { least: sum(least), most: sum(most), at: now, written_by: Some(numbers) };
    }
}

/// Into how many parts a token is divided so that a microsecond drains a whole number of them.
fn parts(numbers: Numbers) -> u64 {
    let Numbers::Bucket { tokens, window, .. } = numbers else { unreachable!("it is a bucket's") };
    // A whole number of parts drains when parts * tokens / window is whole.
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

    /// The oldest grants that count go. What no longer counts goes with them, but nothing goes for nothing.
    fn refund(&mut self, window: u64, now: u64, units: u32) {
        if self.counted(window, now) > 0 {
            self.grants.retain(|grant| grant + window > now);
            self.grants.sort_unstable();
            self.grants.drain(..self.grants.len().min(units as usize));
        }
    }

    /// Past the limit the oldest grant goes for the newest, but there are never fewer than there were.
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
    /// The window that was current when something was written.
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

    /// The formula of semantics 22.
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

/// Every hit of the window that is open.
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

/// Where a window that is hit now starts and ends.
fn around(alignment: Alignment, now: u64) -> (u64, u64) {
    match alignment {
        Alignment::Epoch(window) => (now / window * window, (now / window + 1) * window),
        Alignment::FirstHit(window) => (now, now + window),
        Alignment::Calendar(CalendarBounds(bounds)) => {
            let bounds = bounds.map(Timestamp::micros);
            let place = (1..3).rev().find(|place| bounds[*place] <= now).unwrap_or(0);
            (bounds[place], bounds[place + 1].max(now + 1))
        }
    }
}

/// Every lease that was not given back.
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
