//! A limit of any algorithm, and the state that belongs to it.

use super::{
    BucketLevel, Concurrency, CounterPair, FixedCount, FixedWindow, Grants, Leases, SlidingCounter, SlidingWindow,
    TokenBucket,
};

/// The numbers that one check is decided by.
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
}

/// The state of a counter between two decisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Nothing is counted: a counter never seen, or forgotten.
    #[default]
    Empty,
    /// Of [`Limit::TokenBucket`].
    Bucket(BucketLevel),
    /// Of [`Limit::SlidingWindow`].
    Grants(Grants),
    /// Of [`Limit::SlidingCounter`].
    Pair(CounterPair),
    /// Of [`Limit::FixedWindow`].
    Fixed(FixedCount),
    /// Of [`Limit::Concurrency`].
    Leases(Leases),
}

impl Limit {
    /// The share of this limit that one of `instances` may admit alone: at least one unit.
    ///
    /// All parts together are at most the limit, unless there are more instances than units.
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
        }
    }
}

/// Calls `$body` with the algorithm of a limit and the state that belongs to it. A state of another kind counts
/// as empty: the kind is part of a counter's name, so it can only be there by a fault of the store.
macro_rules! with_algorithm {
    ($limit:expr, $held:expr, |$algorithm:ident, $state:ident| $body:expr) => {
        match $limit {
            $crate::limiter::Limit::TokenBucket($algorithm) => $crate::limiter::with_algorithm!(@state $held, Bucket, |$state| $body),
            $crate::limiter::Limit::SlidingWindow($algorithm) => $crate::limiter::with_algorithm!(@state $held, Grants, |$state| $body),
            $crate::limiter::Limit::SlidingCounter($algorithm) => $crate::limiter::with_algorithm!(@state $held, Pair, |$state| $body),
            $crate::limiter::Limit::FixedWindow($algorithm) => $crate::limiter::with_algorithm!(@state $held, Fixed, |$state| $body),
            $crate::limiter::Limit::Concurrency($algorithm) => $crate::limiter::with_algorithm!(@state $held, Leases, |$state| $body),
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
