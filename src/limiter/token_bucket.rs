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
//! Buckets of several tiers share a counter (semantics 20). What others used beyond the capacity of the bucket that asks
//! does not decide, but stays in the state:
//!
//! ```text
//!   level  +---------------+
//!          |    beyond     |  stays until the state is empty
//!  capacity +--------------+
//!          |    counted    |  decides; drains at the rate of the bucket that asks
//!       0  +---------------+
//! ```
//!
//! The state also drains as a whole, at the rate of the bucket that charged it last: once it is empty by that rate, it
//! is empty for every bucket. Its levels are read as if every bucket drained equally many in a microsecond, because the
//! state does not say how many its last bucket did. [`TokenBucket::with_drain`] makes that so for the tiers of a
//! template.
//!
//! Workers that wait are granted ahead (semantics 46): their check may fit `ahead` microseconds later, and is charged now.
//! The level then says when the last of them is let through, so the buckets of such a limiter can owe what drains in the
//! longest wait.
//!
//! ```text
//!   full + ahead x drain  +---------------+  too long a wait
//!                         |    granted    |
//!                         |     ahead     |
//!                   full  +---------------+
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
    /// Microseconds after which a cost may fit that does not fit now.
    ahead: u32,
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
        Ok(Self { burst, ahead: 0, capacity, unit, drain })
    }

    /// This bucket where a cost passes that fits within `micros` microseconds. At most what it can owe is granted ahead.
    #[must_use]
    pub fn granting_ahead(self, micros: u32) -> Self {
        Self { ahead: micros, ..self }
    }

    /// This bucket where it can owe at least what drains in `micros` microseconds, as far as that can be counted.
    #[must_use]
    pub fn owing(self, micros: u64) -> Self {
        let debt = micros.saturating_mul(self.drain).div_ceil(self.unit);
        let owing = u64::from(self.burst).saturating_add(debt).min(MAX_LEVEL / self.unit);
        Self { capacity: self.capacity.max(owing), ..self }
    }

    /// Whether a cost passes that does not fit yet.
    pub(crate) fn grants_ahead(&self) -> bool {
        self.ahead > 0
    }

    /// Levels beyond the burst that may be granted ahead.
    pub(crate) fn levels_ahead(&self) -> u64 {
        match self.ahead {
            0 => 0,
            ahead => u64::from(ahead).saturating_mul(self.drain).min(self.capacity * self.unit - self.full()),
        }
    }

    /// Microseconds until a charge fits that was granted ahead, by the reset that was reported with it. The reset is a whole
    /// number of microseconds, which a full bucket may not be: a part of a microsecond is no wait.
    pub(crate) fn fits_in(&self, reset: u64) -> u64 {
        match reset <= self.full().div_ceil(self.drain) {
            true => 0,
            false => reset - self.full() / self.drain,
        }
    }

    /// A bucket of this rate that owes as much as can be counted: it takes back what one with this rate charged.
    pub(super) fn of_rate(unit: u64, drain: u64) -> Self {
        Self { burst: 1, ahead: 0, capacity: MAX_LEVEL / unit, unit, drain }
    }

    /// A bucket with these numbers, as [`TokenBucket::numbers`] returns them. `None` if they are of no bucket.
    pub(crate) fn of_numbers([burst, capacity, unit, drain]: [u64; 4]) -> Option<Self> {
        let burst = u32::try_from(burst).ok()?;
        let counts = unit > 0 && drain > 0 && drain <= MAX_LEVEL && capacity.checked_mul(unit)? <= MAX_LEVEL;
        (counts && burst > 0 && capacity >= u64::from(burst)).then_some(Self { burst, ahead: 0, capacity, unit, drain })
    }

    /// The burst, the capacity, the unit and the drain.
    pub(crate) fn numbers(&self) -> [u64; 4] {
        [self.burst.into(), self.capacity, self.unit, self.drain]
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
        Self { burst, ahead: slow.ahead.min(fast.ahead), capacity, ..slow }
    }

    /// The least drain that this bucket and another with `drain` can both have. `None` where it exceeds what can be
    /// counted.
    pub(crate) fn common_drain(&self, drain: u64) -> Option<u64> {
        (self.drain / gcd(self.drain, drain)).checked_mul(drain).filter(|&common| common <= MAX_LEVEL)
    }

    /// Tokens that refill in `micros` microseconds, rounded up.
    pub(crate) fn refilled(&self, micros: u64) -> u32 {
        u32::try_from(micros.saturating_mul(self.drain).div_ceil(self.unit)).unwrap_or(u32::MAX)
    }

    /// Whole tokens that drain in `micros` microseconds, and the time that they take, rounded up.
    pub(crate) fn drained(&self, micros: u64) -> (u32, u64) {
        let tokens = micros.saturating_mul(self.drain) / self.unit;
        (u32::try_from(tokens).unwrap_or(u32::MAX), tokens.saturating_mul(self.unit).div_ceil(self.drain))
    }

    /// The levels of this many tokens, at most those that a counter can hold.
    pub(crate) fn levels(&self, tokens: u32) -> u64 {
        u64::from(tokens).min(self.capacity) * self.unit
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
        Self { burst, capacity, unit, drain, ..self }
    }

    /// This bucket with `drain` levels that drain in a microsecond, and as many more levels in a token: the same rate.
    /// It may owe less, if that is the most that can be counted. `None` where it cannot be counted at all.
    pub(crate) fn with_drain(self, drain: u64) -> Option<Self> {
        let unit = self.unit.checked_mul(drain / self.drain)?;
        let capacity = self.capacity.min(MAX_LEVEL / unit);
        let fits = drain.is_multiple_of(self.drain) && capacity >= u64::from(self.burst);
        fits.then_some(Self { unit, drain, capacity, ..self })
    }

    fn full(&self) -> u64 {
        u64::from(self.burst) * self.unit
    }

    /// The used tokens at `now`, in this bucket's own levels.
    #[inline]
    fn used(&self, state: &BucketLevel, now: Timestamp) -> Used {
        let drained = (now - state.at).saturating_mul(self.drain);
        if self.decides_alone(state) {
            let counted = state.level.saturating_sub(drained);
            return Used { counted, beyond: 0, lasts: counted };
        }
        self.used_by_others(state, drained)
    }

    /// Whether nothing in a state is of a bucket with another rate, nor beyond the capacity of this one.
    #[inline]
    pub(super) fn decides_alone(&self, state: &BucketLevel) -> bool {
        state.unit == self.unit && state.level <= self.capacity * self.unit
    }

    /// [`TokenBucket::used`] after a charge by a bucket of other parameters.
    #[cold]
    fn used_by_others(&self, state: &BucketLevel, drained: u64) -> Used {
        let lasts = state.level.saturating_sub(drained);
        if lasts == 0 {
            return Used { counted: 0, beyond: 0, lasts };
        }
        let level = rescale(state.level, state.unit, self.unit, MAX_LEVEL / self.unit);
        let within = level.min(self.capacity * self.unit);
        Used { counted: within.saturating_sub(drained), beyond: level - within, lasts }
    }

    fn set(&self, state: &mut BucketLevel, level: u64, now: Timestamp) {
        *state = BucketLevel { level: level.min(MAX_LEVEL), at: now, unit: self.unit };
    }

    /// Takes levels out of the state, at most until it is empty. Its moment stays, from which all buckets drain it.
    fn give_back(&self, state: &mut BucketLevel, now: Timestamp, levels: u64) {
        let all = match self.lasts(state, now) {
            0 => 0,
            _ => rescale(state.level, state.unit, self.unit, MAX_LEVEL / self.unit),
        };
        *state = BucketLevel { level: all.saturating_sub(levels), at: state.at, unit: self.unit };
    }

    /// Microseconds in which these levels drain, and at most those until the state is empty.
    fn drains_in(&self, levels: u64, used: &Used) -> u64 {
        levels.min(used.lasts).div_ceil(self.drain)
    }

    /// Microseconds for which a state counts from `now` on, for any bucket.
    pub(super) fn lasts(&self, state: &BucketLevel, now: Timestamp) -> u64 {
        state.level.saturating_sub((now - state.at).saturating_mul(self.drain)).div_ceil(self.drain)
    }
}

/// The largest level of a state.
const MAX_LEVEL: u64 = MAX_EXACT_INTEGER / 2;

/// The used tokens of a state, in the levels of the bucket that asks.
struct Used {
    /// What decides, at most the capacity.
    counted: u64,
    /// What was used beyond the capacity.
    beyond: u64,
    /// Levels until the state is empty for every bucket.
    lasts: u64,
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
        self.give_back(state, now, self.levels(units));
        true
    }

    /// Subtracts what was charged from the level. If something else was charged since, the part of the charge that has
    /// drained already is not given back: what drained beyond the level before the charge. So later charges stay, and
    /// the bucket holds no more tokens than without the charge.
    ///
    /// A charge that was granted ahead is given back only if nothing was charged since: what was granted after it would
    /// otherwise be let through together with the next one.
    fn undo(&self, state: &mut BucketLevel, now: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        let levels = charged.charged.min(MAX_LEVEL);
        if charged.only_if_last {
            let last =
                (state.at, state.unit) == (charged.at, self.unit) && state.level.div_ceil(self.drain) == charged.reset;
            if last {
                self.give_back(state, now, levels);
            }
            return last;
        }
        if (state.at, state.unit) == (charged.at, self.unit) {
            self.give_back(state, now, levels);
            return true;
        }
        // The reset was rounded up to a microsecond.
        let before = (charged.reset.saturating_sub(1)).saturating_mul(self.drain).saturating_sub(levels);
        let drained = (now - charged.at).saturating_mul(self.drain);
        self.give_back(state, now, levels.saturating_sub(drained.saturating_sub(before)));
        true
    }

    fn wait(&self, state: &BucketLevel, now: Timestamp, need: Need) -> Wait {
        let room = match need {
            Need::Fits(cost) if cost > self.burst => return Wait::Never,
            Need::Fits(cost) => u64::from(cost) * self.unit,
            Need::OneLeft => self.unit,
        };
        let used = self.used(state, now);
        let needed = used.counted + room;
        let most = self.full() + self.levels_ahead();
        match needed > most {
            false => Wait::Met,
            true => Wait::For(self.drains_in(needed - most, &used)),
        }
    }

    fn charge(&self, state: &mut BucketLevel, now: Timestamp, units: u32, _: LeaseId) -> u64 {
        let used = self.used(state, now);
        let room = self.capacity * self.unit - used.counted;
        let charged = self.levels(units).min(room);
        self.set(state, used.beyond + used.counted + charged, now);
        charged
    }

    fn report(&self, state: &BucketLevel, now: Timestamp) -> Report {
        let used = self.used(state, now);
        let left = self.full().saturating_sub(used.counted) / self.unit;
        Report {
            limit: self.burst,
            remaining: u32::try_from(left).unwrap_or(u32::MAX),
            reset: self.drains_in(used.counted, &used),
        }
    }
}

/// Converts a level from `from` to `to` levels in a token, rounded up, at most `most` tokens.
///
/// The fraction of a token is rounded to a grid of 2^20, so that no product exceeds 2^53.
fn rescale(level: u64, from: u64, to: u64, most: u64) -> u64 {
    if level == 0 || from == to {
        return level.min(most * to);
    }
    let (tokens, part) = (level / from, level % from);
    if tokens >= most {
        return most * to;
    }
    let step = from.div_ceil(1 << 20);
    let grid = from / step;
    let steps = part.div_ceil(step).min(grid);
    let part = steps * (to / grid) + (steps * (to % grid)).div_ceil(grid);
    (tokens * to + part).min(most * to)
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
