//! What a worker was granted, or why it was not.

use std::time::Duration;

use crate::decision::{Decision, Reason};

/// The answer to an [`Acquire`](crate::ask::Acquire).
#[derive(Debug)]
pub struct Acquisition {
    /// The decision on what was granted, or on what was asked last.
    pub decision: Decision,
    /// The ask that was granted, of several of which any will do. Else zero.
    pub ask: usize,
    /// The units that were granted. Zero if none were.
    pub units: u32,
    /// How long the caller waited.
    pub waited: Duration,
    /// What holds the slots that were taken.
    pub lease: Option<Lease>,
    /// Why nothing was granted.
    pub refused: Option<Reason>,
}

impl Acquisition {
    /// Whether what was asked for was granted, or would be.
    pub fn granted(&self) -> bool {
        self.refused.is_none()
    }
}

/// A lease that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The sealed text.
    pub text: String,
    /// The time until the first of its slots and holds ends, unless it is renewed. Zero for a lease of what only rules in
    /// shadow took.
    pub ends_in: Duration,
}

pub(super) fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}
