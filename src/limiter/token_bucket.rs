//! Token bucket, as a level that drains: GCRA with the theoretical arrival time kept relative.
//!
//! The level counts what was used. One token is `unit` levels high and one microsecond drains `drain` levels, so a
//! rate of `drain / unit` tokens a microsecond is held as an exact fraction: 100 per hour is unit 36 000 000 and
//! drain 1.
//!
//! ```text
//!   (burst + max_debt) x unit  +---------------+  what it can owe
//!                              |     debt      |
//!              burst x unit    +---------------+  full: nothing left
//!                              |     used      |  <- level, drains to zero
//!                          0   +---------------+  empty: burst tokens left
//! ```
//!
//! Source of the algorithm: ITU-T I.371, generic cell rate algorithm. In its words the arrival time is
//! `at + level / drain` and the emission interval is `unit / drain`.

use super::{Arithmetic, LeaseId, MAX_EXACT_INTEGER, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The numbers of a bucket. Made by [`TokenBucket::new`], which keeps every product below 2^53.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct TokenBucket {
    burst: u32,
    /// Tokens that the bucket can hold and owe together.
    capacity: u64,
    /// Levels in a token.
    unit: u64,
    /// Levels that drain in a microsecond.
    drain: u64,
}

/// The state of a bucket: its level at the moment of the last charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BucketLevel {
    /// What was used, in levels.
    pub level: u64,
    /// The moment of the last charge.
    pub at: Timestamp,
    /// Levels in a token when this was written, so that a change of numbers keeps what was used.
    pub unit: u64,
}

/// A bucket cannot be held within one percent of its rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unrepresentable {
    /// The largest burst that this rate can be held with.
    pub largest_burst: u32,
}

impl TokenBucket {
    /// A bucket of `burst` tokens that refills `tokens` per `window` microseconds and may owe `max_debt` more.
    ///
    /// The rate is exact where the fraction fits, else rounded down by less than one percent. Debt saturates at what
    /// can be counted.
    ///
    /// # Errors
    ///
    /// [`Unrepresentable`] when even one percent cannot be kept.
    ///
    /// # Panics
    ///
    /// When `tokens`, `window` or `burst` is zero; configuration refuses those before.
    pub fn new(tokens: u64, window: u64, burst: u32, max_debt: u64) -> Result<Self, Unrepresentable> {
        assert!(tokens > 0 && window > 0 && burst > 0, "a bucket has a rate and holds something");
        let divisor = gcd(tokens, window);
        let (exact_drain, exact_unit) = (tokens / divisor, window / divisor);
        let largest_unit = MAX_EXACT_INTEGER / 2 / u64::from(burst);
        let (drain, unit) = if exact_unit <= largest_unit && exact_drain <= MAX_EXACT_INTEGER / 2 {
            (exact_drain, exact_unit)
        } else {
            let scaled = u128::from(exact_drain) * u128::from(largest_unit) / u128::from(exact_unit);
            match u64::try_from(scaled) {
                Ok(drain) if (100..=MAX_EXACT_INTEGER / 2).contains(&drain) && exact_unit > largest_unit => {
                    (drain, largest_unit)
                }
                _ => return Err(Unrepresentable { largest_burst: largest_burst(exact_drain, exact_unit) }),
            }
        };
        let capacity =
            u64::from(burst).saturating_add(max_debt).min(MAX_EXACT_INTEGER / 2 / unit).max(u64::from(burst));
        Ok(Self { burst, capacity, unit, drain })
    }

    /// The tokens it holds when full.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Tokens that it can hold and owe together.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Levels in a token.
    pub(crate) fn unit(&self) -> u64 {
        self.unit
    }

    /// Levels that drain in a microsecond.
    pub(crate) fn drain(&self) -> u64 {
        self.drain
    }

    /// The stricter of two buckets, number by number.
    pub fn strictest(self, other: Self) -> Self {
        let slower =
            |a: &Self, b: &Self| u128::from(a.drain) * u128::from(b.unit) <= u128::from(b.drain) * u128::from(a.unit);
        let (slow, fast) = if slower(&self, &other) { (self, other) } else { (other, self) };
        let burst = slow.burst.min(fast.burst);
        let debt = (slow.capacity - u64::from(slow.burst)).max(fast.capacity - u64::from(fast.burst));
        let capacity =
            u64::from(burst).saturating_add(debt).min(MAX_EXACT_INTEGER / 2 / slow.unit).max(u64::from(burst));
        Self { burst, capacity, ..slow }
    }

    /// Tokens that refill in `micros` microseconds, rounded up.
    pub(crate) fn refilled(&self, micros: u64) -> u32 {
        u32::try_from(micros.saturating_mul(self.drain).div_ceil(self.unit)).unwrap_or(u32::MAX)
    }

    /// The share of one of `instances`: of the rate, the burst and the debt, at least one token of burst.
    pub(super) fn share(self, instances: u32) -> Self {
        let burst = (self.burst / instances).max(1);
        let debt = (self.capacity - u64::from(self.burst)) / u64::from(instances);
        let slower = self.unit.saturating_mul(u64::from(instances));
        let (unit, drain) = match slower <= MAX_EXACT_INTEGER / 2 / u64::from(burst) {
            true => (slower, self.drain),
            false => (self.unit, (self.drain / u64::from(instances)).max(1)),
        };
        let capacity = u64::from(burst).saturating_add(debt).min(MAX_EXACT_INTEGER / 2 / unit).max(u64::from(burst));
        Self { burst, capacity, unit, drain }
    }

    fn full(&self) -> u64 {
        u64::from(self.burst) * self.unit
    }

    /// The level at `now`, in this bucket's own units.
    #[inline]
    fn level(&self, state: &BucketLevel, now: Timestamp) -> u64 {
        let used = rescale(state.level, state.unit, self.unit, self.capacity);
        // A translation that counts in doubles divides first, so that no product passes 2^53: `used / drain` is what
        // elapses until nothing is used.
        used.saturating_sub((now - state.at).saturating_mul(self.drain))
    }

    fn set(&self, state: &mut BucketLevel, level: u64, now: Timestamp) {
        *state = BucketLevel { level, at: now, unit: self.unit };
    }
}

impl Arithmetic for TokenBucket {
    type State = BucketLevel;

    fn correct(&self, state: &mut BucketLevel, now: Timestamp) -> bool {
        let ahead = state.at > now;
        if ahead {
            state.at = now;
        }
        ahead
    }

    fn refund(&self, state: &mut BucketLevel, now: Timestamp, units: u32) -> bool {
        let level = self.level(state, now);
        let units = u64::from(units).min(self.capacity);
        self.set(state, level.saturating_sub(units * self.unit), now);
        true
    }

    /// Where nothing was charged since, the level is what it was. Else what drained since would have drained without
    /// the charge too, as far as there was something to drain: the rest of it was the charge draining, and is not given
    /// back. So others keep what they paid for, and nobody gets more than there was.
    fn undo(&self, state: &mut BucketLevel, now: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        let units = u64::from(charged.units).min(self.capacity) * self.unit;
        if (state.at, state.unit) == (charged.at, self.unit) {
            state.level = state.level.saturating_sub(units);
            return true;
        }
        // The reset was rounded up to a microsecond.
        let before = (charged.reset.saturating_sub(1)).saturating_mul(self.drain).saturating_sub(units);
        let drained = (now - charged.at).saturating_mul(self.drain);
        let owed = units.saturating_sub(drained.saturating_sub(before));
        let level = self.level(state, now);
        self.set(state, level.saturating_sub(owed), now);
        true
    }

    fn wait(&self, state: &BucketLevel, now: Timestamp, need: Need) -> Wait {
        let room = match need {
            Need::Fits(cost) if cost > self.burst => return Wait::Never,
            Need::Fits(cost) => u64::from(cost) * self.unit,
            Need::OneLeft => self.unit,
        };
        let wanted = self.level(state, now) + room;
        match wanted > self.full() {
            false => Wait::Met,
            true => Wait::For((wanted - self.full()).div_ceil(self.drain)),
        }
    }

    fn charge(&self, state: &mut BucketLevel, now: Timestamp, units: u32, _: LeaseId) {
        let units = u64::from(units).min(self.capacity);
        let level = self.level(state, now) + units * self.unit;
        self.set(state, level.min(self.capacity * self.unit), now);
    }

    fn report(&self, state: &BucketLevel, now: Timestamp) -> Report {
        let level = self.level(state, now);
        let left = self.full().saturating_sub(level) / self.unit;
        Report {
            limit: self.burst,
            remaining: u32::try_from(left).unwrap_or(u32::MAX),
            reset: level.div_ceil(self.drain),
        }
    }
}

/// Converts a level from `from` to `to` levels in a token, rounded up, at most `capacity` tokens.
///
/// The part of a token is carried over on a grid of 2^20, so that no product passes 2^53.
#[inline]
fn rescale(level: u64, from: u64, to: u64, capacity: u64) -> u64 {
    match level == 0 || from == to {
        true => level.min(capacity * to),
        false => rescale_after_change(level, from, to, capacity),
    }
}

/// [`rescale`] after a change of numbers, which is rare: once for each counter and change.
#[cold]
fn rescale_after_change(level: u64, from: u64, to: u64, capacity: u64) -> u64 {
    let (tokens, part) = (level / from, level % from);
    if tokens >= capacity {
        return capacity * to;
    }
    let step = from.div_ceil(1 << 20);
    let grid = from / step;
    let steps = part.div_ceil(step).min(grid);
    let part = steps * (to / grid) + (steps * (to % grid)).div_ceil(grid);
    (tokens * to + part).min(capacity * to)
}

/// The largest burst with which a rate of `drain / unit` tokens a microsecond keeps within one percent.
fn largest_burst(drain: u64, unit: u64) -> u32 {
    // With fewer levels in a token: drain x floor(MAX_EXACT_INTEGER / 2 / burst) / unit >= 100.
    let fewest_levels = (100 * u128::from(unit)).div_ceil(u128::from(drain));
    let rounded = u128::from(MAX_EXACT_INTEGER / 2) / fewest_levels;
    let exact = u128::from(MAX_EXACT_INTEGER / 2 / unit);
    u32::try_from(rounded.max(exact)).unwrap_or(u32::MAX)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}
