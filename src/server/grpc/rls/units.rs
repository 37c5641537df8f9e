//! Envoy's units of time.

use std::time::Duration;

use crate::server::grpc::generated::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use crate::server::grpc::generated::envoy::r#type::v3::RateLimitUnit;

const SECOND: u64 = 1;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;
const YEAR: u64 = 365 * DAY;

/// Seconds of a unit. `None` for the unknown one.
pub(super) fn seconds(unit: RateLimitUnit) -> Option<u64> {
    Some(match unit {
        RateLimitUnit::Unknown => return None,
        RateLimitUnit::Second => SECOND,
        RateLimitUnit::Minute => MINUTE,
        RateLimitUnit::Hour => HOUR,
        RateLimitUnit::Day => DAY,
        RateLimitUnit::Month => MONTH,
        RateLimitUnit::Year => YEAR,
    })
}

/// A window in Envoy's units. `Unknown` unless it is a whole number of seconds.
pub(super) fn unit_of(window: Duration) -> (Unit, u32) {
    let units = [
        (YEAR, Unit::Year),
        (MONTH, Unit::Month),
        (WEEK, Unit::Week),
        (DAY, Unit::Day),
        (HOUR, Unit::Hour),
        (MINUTE, Unit::Minute),
        (SECOND, Unit::Second),
    ];
    let seconds = window.as_secs();
    let whole = units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    match whole.filter(|_| window.subsec_nanos() == 0) {
        Some((length, unit)) => (unit, u32::try_from(seconds / length).unwrap_or(u32::MAX)),
        None => (Unit::Unknown, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_17_a_window_is_told_in_the_largest_unit_that_it_is_made_of() {
        let cases = [
            (1, Unit::Second, 1),
            (90, Unit::Second, 90),
            (300, Unit::Minute, 5),
            (3600, Unit::Hour, 1),
            (86_400, Unit::Day, 1),
            (14 * 86_400, Unit::Week, 2),
            (30 * 86_400, Unit::Month, 1),
            (365 * 86_400, Unit::Year, 1),
        ];
        for (seconds, expected, multiplier) in cases {
            assert_eq!(unit_of(Duration::from_secs(seconds)), (expected, multiplier), "{seconds} s");
        }
        assert_eq!(unit_of(Duration::from_millis(1500)), (Unit::Unknown, 0));
    }
}
