//! A limit of any algorithm, and the state that belongs to it.

use super::{
    BucketLevel, Concurrency, CounterPair, Distinct, FixedCount, FixedWindow, Grants, Leases, Remembered,
    SlidingCounter, SlidingWindow, TokenBucket,
};
use crate::clock::Timestamp;

/// The algorithm that decides a check, with its parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Limit {
    /// At most `burst + rate x t` units in any time `t`.
    TokenBucket(TokenBucket),
    /// At most `limit` units in any window; a log of grants.
    SlidingWindow(SlidingWindow),
    /// About `limit` units in any window; two counts.
    SlidingCounter(SlidingCounter),
    /// At most `limit` units in each window; one count.
    FixedWindow(FixedWindow),
    /// At most `max` leases at a time.
    Concurrency(Concurrency),
    /// At most `limit` different values in any window.
    Distinct(Distinct),
}

/// The state of a counter between two decisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Nothing is counted: the counter is new, or was dropped.
    #[default]
    Empty,
    /// The state of [`Limit::TokenBucket`].
    Bucket(BucketLevel),
    /// The state of [`Limit::SlidingWindow`].
    Grants(Grants),
    /// The state of [`Limit::SlidingCounter`].
    Pair(CounterPair),
    /// The state of [`Limit::FixedWindow`].
    Fixed(FixedCount),
    /// The state of [`Limit::Concurrency`].
    Leases(Leases),
    /// The state of [`Limit::Distinct`].
    Remembered(Remembered),
}

impl Limit {
    /// Microseconds from `now` on for which a state counts, whichever limit asks: the reset of this limit's report, or
    /// longer if a bucket of another tier used more.
    #[inline]
    pub(crate) fn lasts(&self, state: &State, now: Timestamp, reset: u64) -> u64 {
        match (self, state) {
            (Limit::TokenBucket(bucket), State::Bucket(level)) if !bucket.decides_alone(level) => {
                bucket.lasts(level, now)
            }
            _ => reset,
        }
    }

    /// Microseconds from `now` on for which a unit that is charged now can count. The window of a `first_hit` may end
    /// sooner.
    pub(crate) fn charge_lasts(&self, now: Timestamp) -> u64 {
        match self {
            Limit::TokenBucket(bucket) => bucket.capacity() * bucket.unit() / bucket.drain(),
            Limit::SlidingWindow(window) => window.window,
            Limit::SlidingCounter(window) => 2 * window.window - now.micros() % window.window,
            Limit::FixedWindow(window) => window.window(now).1 - now,
            Limit::Concurrency(slots) => slots.lease,
            Limit::Distinct(distinct) => distinct.window,
        }
    }

    /// Microseconds from `now` on in which a refund can give back units that are charged by now (semantics 11).
    pub(crate) fn refundable_for(&self, now: Timestamp) -> u64 {
        match self {
            Limit::SlidingCounter(window) => window.window - now.micros() % window.window,
            limit => limit.charge_lasts(now),
        }
    }

    /// The share of this limit for one of `instances`: at least one unit.
    ///
    /// All shares together are at most the limit, unless there are more instances than units.
    #[must_use]
    pub fn share(self, instances: u32) -> Self {
        let part = |units: u32| (units / instances.max(1)).max(1);
        match self {
            Limit::TokenBucket(bucket) => Limit::TokenBucket(bucket.share(instances.max(1))),
            Limit::SlidingWindow(window) => Limit::SlidingWindow(SlidingWindow { limit: part(window.limit), ..window }),
            Limit::SlidingCounter(window) => {
                Limit::SlidingCounter(SlidingCounter { limit: part(window.limit), ..window })
            }
            Limit::FixedWindow(window) => Limit::FixedWindow(FixedWindow { limit: part(window.limit), ..window }),
            Limit::Concurrency(slots) => Limit::Concurrency(Concurrency { max: part(slots.max), ..slots }),
            Limit::Distinct(distinct) => Limit::Distinct(Distinct { limit: part(distinct.limit), ..distinct }),
        }
    }
}

/// Calls `$body` with the algorithm of a limit and its state; `$values` are those of the plan, among which a check of
/// distinct ones has its own. A state of another algorithm counts as empty: the
/// algorithm is part of a counter's name, so that is a fault of the store.
macro_rules! with_algorithm {
    ($limit:expr, $held:expr, $values:expr, |$algorithm:ident, $state:ident| $body:expr) => {
        match $limit {
            $crate::limiter::Limit::TokenBucket($algorithm) => $crate::limiter::with_algorithm!(@state $held, Bucket, |$state| $body),
            $crate::limiter::Limit::SlidingWindow($algorithm) => $crate::limiter::with_algorithm!(@state $held, Grants, |$state| $body),
            $crate::limiter::Limit::SlidingCounter($algorithm) => $crate::limiter::with_algorithm!(@state $held, Pair, |$state| $body),
            $crate::limiter::Limit::FixedWindow($algorithm) => $crate::limiter::with_algorithm!(@state $held, Fixed, |$state| $body),
            $crate::limiter::Limit::Concurrency($algorithm) => $crate::limiter::with_algorithm!(@state $held, Leases, |$state| $body),
            $crate::limiter::Limit::Distinct(distinct) => {
                let $algorithm = &distinct.asking($values);
                $crate::limiter::with_algorithm!(@state $held, Remembered, |$state| $body)
            }
        }
    };
    (@state $held:expr, $variant:ident, |$state:ident| $body:expr) => {{
        if !matches!($held, $crate::limiter::State::$variant(_)) {
            *$held = $crate::limiter::State::$variant(Default::default());
        }
        match $held {
            $crate::limiter::State::$variant($state) => $body,
            _ => unreachable!("the line above made it this variant"),
        }
    }};
}

pub(crate) use with_algorithm;
