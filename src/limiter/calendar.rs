//! The boundaries of calendar windows in a time zone.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};
use parking_lot::Mutex;

use crate::clock::Timestamp;

/// Maximum calendar units between two boundaries, where clocks go back and repeat time.
const MAX_REPEATED_UNITS: i64 = 3;

/// A unit of the calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CalendarUnit {
    /// From the full hour.
    Hour,
    /// From midnight.
    Day,
    /// From midnight before Monday.
    Week,
    /// From midnight before the first.
    Month,
    /// From midnight before the first of January.
    Year,
}

/// A calendar: a unit in a time zone. A window of it is computed for the clock that decides.
pub struct Calendar {
    /// The unit.
    pub unit: CalendarUnit,
    /// The time zone.
    pub zone: TimeZone,
    /// The boundaries computed last, which hold while `now` is in their middle window.
    last: Mutex<Option<CalendarBounds>>,
}

/// Four boundaries in order, of three windows: the one that was current when they were computed, and its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct CalendarBounds([Timestamp; 4]);

impl CalendarUnit {
    /// Every unit, in the order of declaration.
    const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// The nominal length, as in Envoy's units (semantics 23).
    pub fn nominal_length(self) -> Duration {
        Duration::from_secs(match self {
            CalendarUnit::Hour => 3_600,
            CalendarUnit::Day => 86_400,
            CalendarUnit::Week => 7 * 86_400,
            CalendarUnit::Month => 30 * 86_400,
            CalendarUnit::Year => 365 * 86_400,
        })
    }

    /// The shortest length that daylight saving time leaves: some zones change by half an hour, and one by two hours.
    fn shortest_length(self) -> Duration {
        let days = |days: u64| Duration::from_secs(days * 86_400 - 2 * 3_600);
        match self {
            CalendarUnit::Hour => Duration::from_secs(30 * 60),
            CalendarUnit::Day => days(1),
            CalendarUnit::Week => days(7),
            CalendarUnit::Month => days(28),
            CalendarUnit::Year => days(365),
        }
    }
}

impl Calendar {
    /// The calendar of this unit in this zone. There is one of each in a process, which is never freed, so that a
    /// [`Limit`](super::Limit) can refer to it and stay plain data.
    pub fn of(unit: CalendarUnit, zone: &TimeZone) -> &'static Self {
        static CALENDARS: Mutex<Vec<&Calendar>> = Mutex::new(Vec::new());
        let mut calendars = CALENDARS.lock();
        if let Some(known) = calendars.iter().find(|known| known.unit == unit && known.zone == *zone) {
            return known;
        }
        let calendar: &Self = Box::leak(Box::new(Self { unit, zone: zone.clone(), last: Mutex::new(None) }));
        calendars.push(calendar);
        calendar
    }

    /// The calendar of a unit, by its number in the order of declaration, in the zone with this name. An empty name is that
    /// of a zone without one, which counts as UTC. `None` if this system does not know them.
    pub(crate) fn named(unit: u8, zone: &str) -> Option<&'static Self> {
        let unit = *CalendarUnit::ALL.get(usize::from(unit))?;
        let zone = if zone.is_empty() { TimeZone::UTC } else { TimeZone::get(zone).ok()? };
        Some(Self::of(unit, &zone))
    }

    /// The name of the zone, as [`Calendar::named`] takes it.
    pub(crate) fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or_default()
    }

    /// The boundaries of the window of `now` and of its neighbours.
    pub fn bounds(&self, now: Timestamp) -> CalendarBounds {
        let mut last = self.last.lock();
        match *last {
            Some(bounds) if bounds.has_in_the_middle(now) => bounds,
            _ => *last.insert(self.compute(now)),
        }
    }

    fn compute(&self, now: Timestamp) -> CalendarBounds {
        let bounds = self.by_zone(now).and_then(|bounds| CalendarBounds::new(bounds, self.unit.shortest_length()));
        // A time zone that does not count as expected must not make a window of no length, in which nothing is limited.
        bounds.filter(|bounds| bounds.contains(now)).unwrap_or_else(|| self.nominal(now))
    }

    /// The start and the end of the window of `now`, with one boundary before and one after. None out of jiff's range.
    fn by_zone(&self, now: Timestamp) -> Option<[Timestamp; 4]> {
        let moment = jiff::Timestamp::from_microsecond(i64::try_from(now.micros()).ok()?).ok()?;
        let start = self.floor(&moment.to_zoned(self.zone.clone()))?;
        let before = self.floor(&start.checked_sub(1.microsecond()).ok()?)?;
        let end = self.next(&start)?;
        let bounds = [before, start, end.clone(), self.next(&end)?];
        let micros = bounds.map(|zoned| u64::try_from(zoned.timestamp().as_microsecond()).ok());
        let [Some(before), Some(start), Some(end), Some(after)] = micros else { return None };
        Some([before, start, end, after].map(Timestamp::from_micros))
    }

    /// Windows of the nominal length since the Unix epoch.
    fn nominal(&self, now: Timestamp) -> CalendarBounds {
        let length = u64::try_from(self.unit.nominal_length().as_micros()).unwrap_or(u64::MAX);
        let windows = (now.micros() / length).saturating_sub(1);
        let bounds = [0, 1, 2, 3].map(|more| Timestamp::from_micros((windows + more).saturating_mul(length)));
        CalendarBounds::new(bounds, Duration::ZERO).unwrap_or(CalendarBounds::LAST)
    }

    /// The first boundary after this one. Adding one unit does not always reach it: when clocks go back by half an hour,
    /// as on Lord Howe Island, an hour of the calendar takes 90 minutes.
    fn next(&self, boundary: &Zoned) -> Option<Zoned> {
        (1..=MAX_REPEATED_UNITS).find_map(|units| {
            let span = match self.unit {
                CalendarUnit::Hour => units.hours(),
                CalendarUnit::Day => units.days(),
                CalendarUnit::Week => units.weeks(),
                CalendarUnit::Month => units.months(),
                CalendarUnit::Year => units.years(),
            };
            self.floor(&boundary.checked_add(span).ok()?).filter(|next| next.timestamp() > boundary.timestamp())
        })
    }

    /// The start of the unit that contains `zoned`.
    fn floor(&self, zoned: &Zoned) -> Option<Zoned> {
        let date = zoned.date();
        let date = match self.unit {
            CalendarUnit::Hour => return self.full_hour(zoned),
            CalendarUnit::Day => date,
            CalendarUnit::Week => {
                let since_monday = date.weekday().since(Weekday::Monday);
                date.checked_sub(i64::from(since_monday).days()).ok()?
            }
            CalendarUnit::Month => date.first_of_month(),
            CalendarUnit::Year => date.first_of_year(),
        };
        // If midnight falls into a daylight-saving gap, the day begins after the gap.
        date.to_zoned(self.zone.clone()).ok()
    }

    /// The last moment, up to `zoned`, at which local time was a full hour.
    fn full_hour(&self, zoned: &Zoned) -> Option<Zoned> {
        let mut zoned = zoned.clone();
        for _ in 0..MAX_REPEATED_UNITS {
            let time = zoned.time();
            let since = i64::from(time.minute()) * 60_000_000_000
                + i64::from(time.second()) * 1_000_000_000
                + i64::from(time.subsec_nanosecond());
            let hour = zoned.checked_sub(since.nanoseconds()).ok()?;
            if hour.offset() == zoned.offset() {
                return Some(hour);
            }
            // The offset changed in between, to a time without a full hour: the one before the change counts.
            let changed = self.zone.preceding(zoned.timestamp().checked_add(1.nanosecond()).ok()?).next()?;
            zoned = changed.timestamp().checked_sub(1.nanosecond()).ok()?.to_zoned(self.zone.clone());
        }
        None
    }
}

impl CalendarBounds {
    /// The end of time, where nothing else fits.
    const LAST: Self = Self([
        Timestamp::from_micros(u64::MAX - 3),
        Timestamp::from_micros(u64::MAX - 2),
        Timestamp::from_micros(u64::MAX - 1),
        Timestamp::from_micros(u64::MAX),
    ]);

    /// Boundaries of windows of at least a length. None if they are not in order or if a window is shorter.
    pub fn new(bounds: [Timestamp; 4], shortest: Duration) -> Option<Self> {
        let shortest = u64::try_from(shortest.as_micros()).unwrap_or(u64::MAX);
        bounds.is_sorted_by(|start, end| start < end && *end - *start >= shortest).then_some(Self(bounds))
    }

    /// The boundaries, each later than the one before.
    pub fn times(&self) -> [Timestamp; 4] {
        self.0
    }

    /// Whether `now` is in one of the three windows.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.0[0] <= now && now < self.0[3]
    }

    /// Whether `now` is in the middle window.
    fn has_in_the_middle(&self, now: Timestamp) -> bool {
        self.0[1] <= now && now < self.0[2]
    }

    /// The window of `now`, which is the middle one.
    pub(super) fn middle(&self) -> (Timestamp, Timestamp) {
        (self.0[1], self.0[2])
    }
}

/// There is one calendar of each unit and zone.
impl PartialEq for Calendar {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Calendar {}

impl Hash for Calendar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.unit, self.zone.iana_name().unwrap_or("UTC"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2027-01-01T00:00:00Z.
    const START: u64 = 1_798_761_600_000_000;
    const HOUR: u64 = 3_600_000_000;
    const YEARS: u64 = 5;

    fn zones() -> Vec<TimeZone> {
        jiff::tz::db().available().map(|name| TimeZone::get(name.as_str()).expect("it is available")).collect()
    }

    /// Checks the boundaries at a moment, and that the next windows agree with them.
    fn check(calendar: &Calendar, now: Timestamp) -> CalendarBounds {
        let bounds = calendar.compute(now);
        let [before, start, end, after] = bounds.0;
        assert!(before < start && start <= now && now < end && end < after, "{calendar:?} at {now:?}: {bounds:?}");
        let shortest = u64::try_from(calendar.unit.shortest_length().as_micros()).expect("it is short");
        for [start, end] in [[before, start], [start, end], [end, after]] {
            assert!(end - start >= shortest, "{calendar:?} at {now:?}: {bounds:?}");
        }
        assert_eq!(calendar.compute(end).0[..3], [start, end, after], "{calendar:?} after {now:?}");
        bounds
    }

    #[test]
    fn every_window_of_every_zone_contains_its_moments_for_five_years() {
        let zones = zones();
        assert!(zones.len() > 400, "{} zones", zones.len());
        for zone in zones {
            for unit in [CalendarUnit::Week, CalendarUnit::Month, CalendarUnit::Year] {
                let calendar = Calendar::of(unit, &zone);
                let mut now = Timestamp::from_micros(START);
                while now.micros() < START + YEARS * 365 * 24 * HOUR {
                    let [.., end, _] = check(calendar, now).0;
                    // The last moment of a window is in it too.
                    check(calendar, Timestamp::from_micros(end.micros() - 1));
                    now = end;
                }
            }
            // Hours and days are special only where the offset changes.
            let hours = Calendar::of(CalendarUnit::Hour, &zone);
            let days = Calendar::of(CalendarUnit::Day, &zone);
            let from = jiff::Timestamp::from_microsecond(START as i64).expect("in range");
            let to = jiff::Timestamp::from_microsecond((START + YEARS * 365 * 24 * HOUR) as i64).expect("in range");
            for transition in zone.following(from).take_while(|transition| transition.timestamp() < to) {
                let at = transition.timestamp().as_microsecond() as u64;
                let moment = |minutes: i64| Timestamp::from_micros(at.saturating_add_signed(minutes * 60_000_000 - 1));
                (-180..180).map(moment).for_each(|now| _ = check(hours, now));
                (-60..60).map(|hour| moment(hour * 60)).for_each(|now| _ = check(days, now));
            }
        }
    }

    #[test]
    fn an_hour_that_is_repeated_by_half_takes_ninety_minutes() {
        let zone = TimeZone::get("Australia/Lord_Howe").expect("it is known");
        let calendar = Calendar::of(CalendarUnit::Hour, &zone);
        let at = |text: &str| {
            let moment: jiff::Timestamp = text.parse().expect("a moment");
            Timestamp::from_micros(moment.as_microsecond() as u64)
        };
        for now in ["2027-04-03T14:00:00Z", "2027-04-03T15:10:00Z", "2027-04-03T15:29:59Z"] {
            let [_, start, end, _] = calendar.bounds(at(now)).0;
            assert_eq!((start, end), (at("2027-04-03T14:00:00Z"), at("2027-04-03T15:30:00Z")), "{now}");
        }
    }

    #[test]
    fn a_clock_at_either_end_of_time_has_windows_too() {
        for now in [0, 1, HOUR, u64::MAX >> 11, u64::MAX - 1] {
            for unit in [CalendarUnit::Hour, CalendarUnit::Day, CalendarUnit::Week, CalendarUnit::Month] {
                for zone in ["Asia/Tokyo", "America/Lima", "UTC"] {
                    let calendar = Calendar::of(unit, &TimeZone::get(zone).expect("it is known"));
                    let bounds = calendar.bounds(Timestamp::from_micros(now));
                    assert!(bounds.contains(Timestamp::from_micros(now)), "{calendar:?} at {now}: {bounds:?}");
                }
            }
        }
    }
}
