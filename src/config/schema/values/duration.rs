//! Durations.

use std::time::Duration;

use super::number::number;
use crate::config::document::node::{TreeNode, Value, WrittenText};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::Decode;
use crate::settings::{LONGEST_DURATION, parse_duration};

/// A duration more than zero: `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"1d"`, or several units: `"1h30m"`. Whole microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span(pub Duration);

/// Matches the texts that are durations, and those with a variable.
#[cfg(feature = "server")]
pub(crate) const SPAN_PATTERN: &str = "\\$|^([0-9]+(\\.[0-9]{1,9})?(us|ms|s|m|h|d|w))+$";

impl Decode for Span {
    fn expected() -> String {
        "a duration such as \"30s\"".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let Value::Text(WrittenText { text, .. }) = &node.value else {
            match number(node) {
                Some(number) => problems
                    .refuse(location, format!("expected a duration with its unit, such as \"{}s\"", number.written)),
                None => problems
                    .refuse(location, "expected a duration such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"1d\""),
            }
            return None;
        };
        match span(text.trim()) {
            Ok(Duration::ZERO) => problems.refuse(location, "expected more than zero"),
            Ok(duration) => return Some(Span(duration)),
            Err(reason) => problems.refuse(location, reason),
        }
        None
    }
}

/// A duration that may be zero: `0s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pause(pub Duration);

impl Decode for Pause {
    fn expected() -> String {
        Span::expected()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(WrittenText { text, .. }) if span(text.trim()) == Ok(Duration::ZERO) => {
                Some(Pause(Duration::ZERO))
            }
            _ => Span::decode(node, location, problems).map(|span| Pause(span.0)),
        }
    }
}

/// Reads a duration, which may be zero.
fn span(text: &str) -> Result<Duration, &'static str> {
    match parse_duration(text) {
        Some(duration) if duration >= LONGEST_DURATION => Err("expected at most 3650d"),
        Some(duration) if !duration.subsec_nanos().is_multiple_of(1_000) => Err("expected whole microseconds"),
        Some(duration) => Ok(duration),
        None if text.starts_with('-') => Err("expected more than zero"),
        None => Err("expected a duration such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"1d\""),
    }
}

/// A duration, or a bare number of seconds as in rate-sync files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seconds(pub Duration);

impl Decode for Seconds {
    fn expected() -> String {
        "a number of seconds or a duration such as \"30s\"".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let Some(number) = number(node) else {
            return Span::decode(node, location, problems).map(|span| Seconds(span.0));
        };
        match Duration::try_from_secs_f64(number.float) {
            _ if number.float <= 0.0 => problems.refuse(location, "expected more than zero"),
            Ok(duration) if duration > Duration::ZERO => return Some(Seconds(duration)),
            Ok(_) => problems.refuse(location, "expected more than zero"),
            Err(_) => problems.refuse(location, "expected at most 3650d"),
        }
        None
    }
}

/// A duration that may be zero, or a bare number of seconds as in rate-sync files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wait(pub Duration);

impl Decode for Wait {
    fn expected() -> String {
        Seconds::expected()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match number(node) {
            Some(number) if number.float == 0.0 => Some(Wait(Duration::ZERO)),
            Some(number) if number.float < 0.0 => {
                problems.refuse(location, "expected zero or more");
                None
            }
            Some(_) => Seconds::decode(node, location, problems).map(|seconds| Wait(seconds.0)),
            None => Pause::decode(node, location, problems).map(|pause| Wait(pause.0)),
        }
    }
}

/// A duration, or `"off"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SpanOrOff(pub Option<Duration>);

impl Decode for SpanOrOff {
    fn expected() -> String {
        "a duration such as \"1h\", or \"off\"".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(WrittenText { text, .. }) if text.trim() == "off" => Some(SpanOrOff(None)),
            Value::Text(WrittenText { text, .. }) if span(text.trim()).is_err() => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
            _ => Span::decode(node, location, problems).map(|span| SpanOrOff(Some(span.0))),
        }
    }
}

/// Formats a duration as an integer of the largest possible unit.
pub(in crate::config) fn shown_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let units: [(u128, &str); 5] =
        [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")];
    match units.into_iter().find(|(unit, _)| micros > 0 && micros.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", micros / unit),
        None => format!("{micros}us"),
    }
}
