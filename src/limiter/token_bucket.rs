//! Token bucket as a level that drains: GCRA, with the theoretical arrival time relative to the last charge.
//!
//! The level counts used tokens. One token is `unit` levels, and `drain` levels drain in a microsecond, so that the
//! rate is an exact fraction of `drain / unit` tokens a microsecond: 100 per hour is unit 36 000 000 and drain 1.
//!
//! ```text
//!   (burst + max_debt) x unit  +---------------+  no more debt
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

/// The parameters of a bucket. [`TokenBucket::new`] keeps every product below 2^53.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct TokenBucket {
    burst: u32,
    /// Burst and maximum debt together, in tokens.
    capacity: u64,
    /// Levels in a token.
    unit: u64,
    /// Levels that drain in a microsecond.
    drain: u64,
}

/// The state of a bucket: its level at the moment of the last charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BucketLevel {
    /// Used tokens, in levels.
    pub level: u64,
    /// The moment of the last charge.
    pub at: Timestamp,
    /// Levels in a token at that moment, so that used tokens carry over when the parameters change.
    pub unit: u64,
}

/// The rate of a bucket cannot be represented within one percent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unrepresentable {
    /// The largest burst with which this rate can be represented.
    pub largest_burst: u32,
}

impl TokenBucket {
    /// A bucket of `burst` tokens that refills `tokens` per `window` microseconds and may owe `max_debt` more.
    ///
    /// The rate is exact where the fraction fits, else rounded down by less than one percent. The debt is at most what
    /// can be counted.
    ///
    /// # Errors
    ///
    /// [`Unrepresentable`] when the rate would be off by one percent or more.
    ///
    /// # Panics
    ///
    /// When `tokens`, `window` or `burst` is zero; configuration rejects those.
    pub fn new(tokens: u64, window: u64, burst: u32, max_debt: u64) -> Result<Self, Unrepresentable> {
        assert!(tokens > 0 && window > 0 && burst > 0, "a bucket has a rate and a burst");
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

    /// Tokens in a full bucket.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// Burst and maximum debt together, in tokens.
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

    /// The slower rate, the smaller burst and the larger debt of two buckets.
    pub(crate) fn strictest(self, other: Self) -> Self {
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

    /// The share of rate, burst and debt for one of `instances`, at least one token of burst.
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
        // A translation that counts in doubles divides first, so that no product exceeds 2^53: the level is zero after
        // `used / drain` microseconds.
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

    /// Subtracts the units from the level. If something else was charged since, the part of the charge that has drained
    /// already is not given back: what drained beyond the level before the charge. So later charges stay, and the
    /// bucket holds no more tokens than without the charge.
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
        let needed = self.level(state, now) + room;
        match needed > self.full() {
            false => Wait::Met,
            true => Wait::For((needed - self.full()).div_ceil(self.drain)),
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
/// The fraction of a token is rounded to a grid of 2^20, so that no product exceeds 2^53.
#[inline]
fn rescale(level: u64, from: u64, to: u64, capacity: u64) -> u64 {
    match level == 0 || from == to {
        true => level.min(capacity * to),
        false => rescale_after_change(level, from, to, capacity),
    }
}

/// [`rescale`] after a change of parameters, which is rare: once for each counter and change.
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

/// The largest burst with which a rate of `drain / unit` tokens a microsecond is represented within one percent.
fn largest_burst(drain: u64, unit: u64) -> u32 {
    // With fewer levels per token: drain x floor(MAX_EXACT_INTEGER / 2 / burst) / unit >= 100.
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
