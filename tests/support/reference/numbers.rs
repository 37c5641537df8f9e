//! The numbers of a limiter, shared by the model and the generators of plans.

use tollgate::limiter::{
    Alignment, Asked, Concurrency, Distinct, FixedWindow, Limit, SlidingCounter, SlidingWindow, TokenBucket,
};

/// The numbers of a limiter, as a configuration has them. Windows and leases are in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    Bucket { tokens: u32, window: u64, burst: u32, debt: u64 },
    Log { limit: u32, window: u64 },
    Pair { limit: u32, window: u64 },
    Fixed { limit: u32, alignment: Alignment },
    Slots { max: u32, lease: u64 },
    Values { limit: u32, window: u64 },
}

impl Numbers {
    /// The limit with these numbers.
    pub fn limit(self) -> Limit {
        match self {
            Numbers::Bucket { tokens, window, burst, debt } => {
                Limit::TokenBucket(TokenBucket::new(tokens.into(), window, burst, debt).expect("it can be held"))
            }
            Numbers::Log { limit, window } => Limit::SlidingWindow(SlidingWindow { limit, window }),
            Numbers::Pair { limit, window } => Limit::SlidingCounter(SlidingCounter { limit, window }),
            Numbers::Fixed { limit, alignment } => Limit::FixedWindow(FixedWindow { limit, alignment }),
            Numbers::Slots { max, lease } => Limit::Concurrency(Concurrency { max, lease }),
            Numbers::Values { limit, window } => Limit::Distinct(Distinct { limit, window, asked: Asked::default() }),
        }
    }

    /// The most units that can ever be left.
    pub fn holds(self) -> u32 {
        match self {
            Numbers::Bucket { burst, .. } => burst,
            Numbers::Log { limit, .. }
            | Numbers::Pair { limit, .. }
            | Numbers::Fixed { limit, .. }
            | Numbers::Values { limit, .. } => limit,
            Numbers::Slots { max, .. } => max,
        }
    }
}
