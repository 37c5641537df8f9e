//! Time in Unix microseconds, and the clocks that give it.
//!
//! [`SystemClock`] reads the wall clock once and adds the elapsed monotonic time, so time never goes backwards within a
//! process, and stepping the wall clock opens no window. Tests use a [`ManualClock`].

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment: microseconds since the Unix epoch. Arithmetic saturates.
///
/// ```
/// use std::time::Duration;
/// use tollgate::clock::Timestamp;
///
/// let noon = Timestamp::from_micros(43_200_000_000);
/// assert_eq!((noon + Duration::from_secs(1)).micros(), 43_201_000_000);
/// assert_eq!(noon - (noon + Duration::from_secs(1)), 0);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// The moment `micros` microseconds after the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The moment `secs` seconds after the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// This moment moved forwards by `micros`.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, by: Duration) -> Timestamp {
        self.plus(u64::try_from(by.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Sub for Timestamp {
    /// Microseconds from `earlier` to here; zero when `earlier` is the later of the two.
    type Output = u64;

    fn sub(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

/// A source of the time.
pub trait Clock: Send + Sync + 'static {
    /// The current time. Never earlier than a time returned before, unless a test sets the clock back.
    fn now(&self) -> Timestamp;
}

/// The system's clock: the wall-clock time at its creation plus the elapsed monotonic time.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    wall: Timestamp,
    started: Instant,
}

impl SystemClock {
    /// Reads the wall clock, once.
    #[expect(clippy::disallowed_methods, reason = "every other clock is read through this one")]
    pub fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { wall: Timestamp::EPOCH + wall, started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.wall + self.started.elapsed()
    }
}

/// A clock for tests that moves only by [`ManualClock::advance`] and [`ManualClock::set`]. Clones share one time.
///
/// ```
/// use std::time::Duration;
/// use tollgate::clock::{Clock, ManualClock, Timestamp};
///
/// let clock = ManualClock::at(Timestamp::from_secs(100));
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now(), Timestamp::from_secs(105));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock set to `moment`.
    pub fn at(moment: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(moment.micros())))
    }

    /// Moves every clone forwards.
    pub fn advance(&self, by: Duration) {
        self.set(self.now() + by);
    }

    /// Sets every clone to `moment`, which may be earlier.
    pub fn set(&self, moment: Timestamp) {
        self.0.store(moment.micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
