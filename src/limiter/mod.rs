//! The arithmetic of limits: one file for each algorithm, and the operations that all of them implement.
//!
//! Everything here is pure: time is an argument; nothing awaits, logs or counts. Numbers are integers, times are
//! microseconds. No intermediate value leaves 2^53, because Lua counts in doubles (semantics 4), and rounding never
//! favours the caller.

mod arithmetic;
mod calendar;
mod concurrency;
mod distinct;
mod fixed_window;
mod hold;
mod lease;
mod limit;
mod sliding_counter;
mod sliding_window;
mod spec;
mod token_bucket;

pub(crate) use self::arithmetic::{Arithmetic, MAX_EXACT_INTEGER, Need, Report, ReportedCharge, Wait};
pub use self::calendar::{Calendar, CalendarBounds, CalendarUnit};
pub use self::concurrency::Concurrency;
pub use self::distinct::{Asked, Distinct, MAX_ASKED, MAX_DISTINCT, Remembered, RememberedValue};
pub use self::fixed_window::{Alignment, FixedCount, FixedWindow};
pub use self::hold::{Hold, Holds, Lost, MAX_HOLD, MAX_HOLDS};
pub use self::lease::{Lease, LeaseId, LeaseStatus, Leases};
pub(crate) use self::limit::with_algorithm;
pub use self::limit::{Limit, State};
pub use self::sliding_counter::{CounterPair, SlidingCounter};
pub use self::sliding_window::{Grants, SlidingWindow};
pub use self::spec::{
    Algorithm, Limiter, MAX_LOG_LIMIT, MAX_SLOTS, MAX_WINDOW, OnStoreError, Quota, Schedule, SpecError, WorkerSettings,
};
pub use self::token_bucket::{BucketLevel, TokenBucket, Unrepresentable};
