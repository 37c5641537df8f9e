//! Time in Unix microseconds, and the clocks that give it.
//!
//! [`SystemClock`] adds the elapsed monotonic time to the wall clock, which it reads again about once a second: it follows
//! a clock that was set and a machine that slept (semantics 3). Tests use a [`ManualClock`]. A `Notice` reports what
//! happens often, at most once in an interval.

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
    /// The current time. Never earlier than a time returned before, unless the wall clock was set back.
    fn now(&self) -> Timestamp;

    /// Compares this clock with the wall clock, and follows it if it was set or the machine slept. Returns by how much
    /// in microseconds, if so. Called about once a second, off the path of a decision.
    fn synchronise(&self) -> Option<i64> {
        None
    }
}

/// The shortest difference that a [`SystemClock`] follows. NTP corrects smaller ones gradually, for the monotonic clock
/// too.
const MIN_JUMP: Duration = Duration::from_millis(100);

/// The system's clock: the wall-clock time when it was last read plus the monotonic time since then. Clones share one
/// time.
#[derive(Clone, Debug)]
pub struct SystemClock {
    started: Instant,
    /// The wall-clock time at `started`, in microseconds.
    wall: Arc<AtomicU64>,
}

impl SystemClock {
    /// Reads the wall clock.
    pub fn new() -> Self {
        let (wall, started) = read_clocks();
        Self { started, wall: Arc::new(AtomicU64::new(wall.micros())) }
    }

    fn at(&self, moment: Instant) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::Relaxed)) + moment.duration_since(self.started)
    }

    /// Follows a wall clock that shows `wall` at `moment`.
    fn follow(&self, wall: Timestamp, moment: Instant) -> Option<i64> {
        let jump = wall.micros().cast_signed().saturating_sub(self.at(moment).micros().cast_signed());
        if u128::from(jump.unsigned_abs()) < MIN_JUMP.as_micros() {
            return None;
        }
        let wall = self.wall.load(Ordering::Relaxed).saturating_add_signed(jump);
        self.wall.store(wall, Ordering::Relaxed);
        Some(jump)
    }
}

#[expect(clippy::disallowed_methods, reason = "every other clock is read through this one")]
fn read_clocks() -> (Timestamp, Instant) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    (Timestamp::EPOCH + wall, Instant::now())
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "every other clock is read through this one")]
    fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    fn synchronise(&self) -> Option<i64> {
        let (wall, moment) = read_clocks();
        self.follow(wall, moment)
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

/// Counts occurrences of something, and says when a report of them is due.
#[derive(Debug)]
pub(crate) struct Notice {
    /// The shortest time between two reports, in microseconds.
    interval: u64,
    /// When the next report may be made, in microseconds.
    next: AtomicU64,
    /// Occurrences since the last report.
    count: AtomicU64,
}

impl Notice {
    /// A notice that is due at most once in an interval.
    pub(crate) fn every(interval: Duration) -> Self {
        let interval = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        Self { interval, next: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    /// Counts occurrences.
    pub(crate) fn count(&self, occurrences: u64) {
        self.count.fetch_add(occurrences, Ordering::Relaxed);
    }

    /// The occurrences since the last report.
    pub(crate) fn counted(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns the occurrences since the last report, if there are any and a report is due.
    pub(crate) fn due(&self, now: Timestamp) -> Option<u64> {
        if self.counted() == 0 {
            return None;
        }
        let now = now.micros();
        let after = now.saturating_add(self.interval);
        // A moment far away was computed before the clock was set back.
        let due = |next| (now >= next || next > after.saturating_add(self.interval)).then_some(after);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).ok()?;
        Some(self.count.swap(0, Ordering::Relaxed)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_report_is_due_once_a_minute_with_the_number_since_the_last_one() {
        let notice = Notice::every(MINUTE);
        assert_eq!(notice.due(Timestamp::from_secs(99)), None, "nothing happened");
        let counted = [100, 100, 159, 160, 161].map(|second| {
            notice.count(1);
            notice.due(Timestamp::from_secs(second))
        });
        assert_eq!(counted, [Some(1), None, None, Some(3), None]);
        assert_eq!([219, 220, 221].map(|second| notice.due(Timestamp::from_secs(second))), [None, Some(1), None]);
    }

    #[test]
    fn a_clock_that_is_set_back_silences_nothing() {
        let notice = Notice::every(MINUTE);
        notice.count(2);
        assert_eq!(notice.due(Timestamp::from_secs(10_000)), Some(2));
        notice.count(1);
        assert_eq!(notice.due(Timestamp::from_secs(9_990)), None);
        assert_eq!(notice.due(Timestamp::from_secs(100)), Some(1));
    }

    #[test]
    fn semantics_03_a_clock_follows_the_wall_clock_over_a_jump_and_not_over_noise() {
        let clock = SystemClock::new();
        let start = clock.started;
        let wall = clock.at(start);
        let later = |seconds: u64| start + Duration::from_secs(seconds);
        // The wall clock advances like the monotonic one, except for some milliseconds.
        assert_eq!(clock.follow(wall.plus(10_020_000), later(10)), None);
        assert_eq!(clock.at(later(10)), wall.plus(10_000_000));
        // The machine slept for three hours: the monotonic clock stood still.
        let slept = 3 * 3_600_000_000;
        assert_eq!(clock.follow(wall.plus(11_000_000 + slept), later(11)), Some(slept.cast_signed()));
        assert_eq!(clock.at(later(12)), wall.plus(12_000_000 + slept));
        // It is set back.
        assert_eq!(clock.follow(wall.plus(13_000_000), later(13)), Some(-slept.cast_signed()));
        assert_eq!(clock.at(later(14)), wall.plus(14_000_000));
        assert_eq!(clock.follow(wall.plus(15_000_000), later(15)), None);
    }

    #[test]
    fn a_clock_that_shows_1970_is_followed_when_it_is_set() {
        let clock = SystemClock { started: SystemClock::new().started, wall: Arc::default() };
        assert_eq!(clock.at(clock.started), Timestamp::EPOCH);
        let now = Timestamp::from_secs(1_800_000_000);
        assert_eq!(clock.follow(now, clock.started), Some(1_800_000_000_000_000));
        assert_eq!(clock.at(clock.started), now);
    }
}
