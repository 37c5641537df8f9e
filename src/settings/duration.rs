//! Durations as people write them, in configurations, calls and arguments.

use std::time::Duration;

/// The longest duration that can be written: the most of protobuf, ten thousand years.
pub const LONGEST_DURATION: Duration = Duration::from_secs(315_576_000_000);

/// Reads one or more parts, each a number with its unit: `250ms`, `1.5s`, `1h30m`. A longer one than
/// [`LONGEST_DURATION`] is that. `None` for any other text.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut nanos: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let (whole, after) = digits(rest)?;
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after).filter(|(fraction, _)| fraction.len() <= 9)?,
            None => ("0", after),
        };
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit: u128 = match &after[..end] {
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return None,
        };
        rest = &after[end..];
        // Only digits: what does not fit is too long.
        let whole: u128 = whole.parse::<u64>().unwrap_or(u64::MAX).into();
        let tenths = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        nanos += whole * unit + u128::from(fraction.parse::<u32>().ok()?) * unit / tenths;
        nanos = nanos.min(LONGEST_DURATION.as_nanos());
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?))
}

/// Splits the digits from the start of a text that begins with one.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_protobuf_and_as_configurations_write_them() {
        for (text, expected) in [
            ("30s", Duration::from_secs(30)),
            ("0s", Duration::ZERO),
            ("1.5s", Duration::from_millis(1_500)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("10us", Duration::from_micros(10)),
            ("250ms", Duration::from_millis(250)),
            ("5m", Duration::from_secs(300)),
            ("1h30m", Duration::from_secs(5_400)),
            ("0.5d", Duration::from_secs(43_200)),
            ("2w", Duration::from_secs(1_209_600)),
            ("4000d", Duration::from_secs(345_600_000)),
            ("99999999999999999999s", LONGEST_DURATION),
            ("18446744073709551615w18446744073709551615w", LONGEST_DURATION),
        ] {
            assert_eq!(parse_duration(text), Some(expected), "{text}");
        }
        let bad = ["", "30", "s", "-1s", "1,5s", "1.s", ".5s", "1e3s", "1 s", "1y", "1s1", "1.5", "1.0000000001s"];
        for text in bad.into_iter().chain(["\u{0661}s", "1s ", "1s\u{20ac}", "1.5.5s"]) {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
