//! Merges two checks of one counter.

use super::check::{Charges, Check, Needs};
use crate::limiter::{Concurrency, Distinct, FixedWindow, Limit, OnStoreError, SlidingCounter, SlidingWindow};

impl Check {
    /// Merges two checks of one counter in one group: the needs of both, the highest cost and charge of each kind, and
    /// the stricter limit.
    pub(crate) fn merge(&self, other: &Self) -> Self {
        Check {
            limit: self.limit.strictest(other.limit),
            needs: Needs {
                fits: self.needs.fits.max(other.needs.fits),
                one_left: self.needs.one_left || other.needs.one_left,
            },
            charges: Charges {
                admitted: self.charges.admitted.max(other.charges.admitted),
                passed: self.charges.passed.max(other.charges.passed),
                refused: self.charges.refused.max(other.charges.refused),
            },
            refund: self.refund.max(other.refund),
            always_denied: self.always_denied || other.always_denied,
            on_store_error: match (self.on_store_error, other.on_store_error) {
                (OnStoreError::Deny, _) | (_, OnStoreError::Deny) => OnStoreError::Deny,
                (OnStoreError::Local, _) | (_, OnStoreError::Local) => OnStoreError::Local,
                (OnStoreError::Allow, OnStoreError::Allow) => OnStoreError::Allow,
            },
            holding: self.holding.merge(other.holding),
            ..*self
        }
    }
}

impl Limit {
    /// The stricter parameters of two limits of one algorithm.
    fn strictest(self, other: Limit) -> Limit {
        match (self, other) {
            (Limit::TokenBucket(a), Limit::TokenBucket(b)) => Limit::TokenBucket(a.strictest(b)),
            (Limit::SlidingWindow(a), Limit::SlidingWindow(b)) => {
                Limit::SlidingWindow(SlidingWindow { limit: a.limit.min(b.limit), ..a })
            }
            (Limit::SlidingCounter(a), Limit::SlidingCounter(b)) => {
                Limit::SlidingCounter(SlidingCounter { limit: a.limit.min(b.limit), ..a })
            }
            (Limit::FixedWindow(a), Limit::FixedWindow(b)) => {
                Limit::FixedWindow(FixedWindow { limit: a.limit.min(b.limit), ..a })
            }
            (Limit::Concurrency(a), Limit::Concurrency(b)) => {
                Limit::Concurrency(Concurrency { max: a.max.min(b.max), lease: a.lease.max(b.lease) })
            }
            // The values of both are asked for by the caller, who has them.
            (Limit::Distinct(a), Limit::Distinct(b)) => Limit::Distinct(Distinct { limit: a.limit.min(b.limit), ..a }),
            // The algorithm is part of a counter's name, so the two never differ in it.
            (a, _) => a,
        }
    }
}
