//! The boundaries of calendar windows in a time zone.

use std::fmt;
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};
use parking_lot::Mutex;

use super::CalendarBounds;
use crate::clock::Timestamp;

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

/// A calendar: a unit in a time zone.
pub struct Calendar {
    /// The unit.
    pub unit: CalendarUnit,
    /// The time zone.
    pub zone: TimeZone,
    /// The boundaries computed last, valid while `now` is in their middle window.
    last: Mutex<Option<CalendarBounds>>,
}

impl CalendarUnit {
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
}

impl Calendar {
    /// A calendar of this unit in this zone.
    pub fn new(unit: CalendarUnit, zone: TimeZone) -> Self {
        Self { unit, zone, last: Mutex::new(None) }
    }

    pub(super) fn bounds(&self, now: Timestamp) -> CalendarBounds {
        let mut last = self.last.lock();
        match *last {
            Some(bounds) if bounds.0[1] <= now && now < bounds.0[2] => bounds,
            _ => *last.insert(self.compute(now)),
        }
    }

    /// The start and the end of the window of `now`, with one boundary before and one after.
    fn compute(&self, now: Timestamp) -> CalendarBounds {
        let micros = i64::try_from(now.micros()).unwrap_or(i64::MAX);
        let moment = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
        let start = self.floor(&moment.to_zoned(self.zone.clone()));
        let step = |zoned: &Zoned, units: i64| {
            let span = match self.unit {
                CalendarUnit::Hour => units.hours(),
                CalendarUnit::Day => units.days(),
                CalendarUnit::Week => units.weeks(),
                CalendarUnit::Month => units.months(),
                CalendarUnit::Year => units.years(),
            };
            zoned.checked_add(span).map_or_else(|_| zoned.clone(), |zoned| self.floor(&zoned))
        };
        let end = step(&start, 1);
        let bounds = [step(&start, -1), start.clone(), end.clone(), step(&end, 1)];
        CalendarBounds(
            bounds.map(|zoned| Timestamp::from_micros(u64::try_from(zoned.timestamp().as_microsecond()).unwrap_or(0))),
        )
    }

    /// The start of the unit that contains `zoned`.
    fn floor(&self, zoned: &Zoned) -> Zoned {
        let date = zoned.date();
        let date = match self.unit {
            CalendarUnit::Hour => {
                return zoned.with().minute(0).second(0).subsec_nanosecond(0).build().unwrap_or_else(|_| zoned.clone());
            }
            CalendarUnit::Day => date,
            CalendarUnit::Week => {
                let since_monday = date.weekday().since(Weekday::Monday);
                date.checked_sub(i64::from(since_monday).days()).unwrap_or(date)
            }
            CalendarUnit::Month => date.first_of_month(),
            CalendarUnit::Year => date.first_of_year(),
        };
        // If midnight falls into a daylight-saving gap, the day begins after the gap.
        date.to_zoned(self.zone.clone()).unwrap_or_else(|_| zoned.clone())
    }
}

impl Clone for Calendar {
    fn clone(&self) -> Self {
        Self::new(self.unit, self.zone.clone())
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.unit, self.zone.iana_name().unwrap_or("UTC"))
    }
}
