//! Numbers with bounds.

use std::borrow::Cow;

use crate::config::document::node::{TreeNode, Value, WrittenNumber, WrittenText};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::Decode;
#[cfg(feature = "server")]
use crate::config::schema::json;
use crate::rules::RequestBounds;

/// The number of a value: a number, or the text of one, since a variable expands to a text.
pub(super) fn number(node: &TreeNode) -> Option<Cow<'_, WrittenNumber>> {
    match &node.value {
        Value::Number(number) => Some(Cow::Borrowed(number)),
        Value::Text(WrittenText { text, .. }) => WrittenNumber::parse(text.trim()).map(Cow::Owned),
        _ => None,
    }
}

/// Reads a whole number between two bounds, both included.
pub(super) fn whole(
    node: &TreeNode,
    location: &Location,
    least: u64,
    most: u64,
    problems: &mut Problems,
) -> Option<u64> {
    let Some(number) = number(node) else {
        problems.refuse(location, "expected a whole number");
        return None;
    };
    let reason = match number.whole {
        _ if number.float < 0.0 && least == 1 => "expected more than zero".to_owned(),
        Some(0) if least == 1 => "expected more than zero".to_owned(),
        None if number.float.fract() != 0.0 => "expected a whole number".to_owned(),
        _ if number.float < least as f64 => format!("expected at least {least}"),
        Some(value) if value <= i128::from(most) => return u64::try_from(value).ok(),
        None if number.float <= most as f64 => "expected a whole number, without a point or exponent".to_owned(),
        _ => format!("expected at most {most}"),
    };
    problems.refuse(location, reason);
    None
}

/// Declares a type for each kind of whole number, with its bounds.
macro_rules! bounded {
    ($($(#[doc = $doc:literal])* $name:ident: $least:literal..=$most:expr;)*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) struct $name(pub u64);

        impl Decode for $name {
            fn expected() -> String {
                format!("a whole number from {} to {}", $least, $most)
            }

            fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
                whole(node, location, $least, $most, problems).map(Self)
            }
        }

        #[cfg(feature = "server")]
        json::inlined!($name, json::whole_number($least, $most));
    )* };
}

bounded! {
    /// Units, slots or requests: more than zero.
    Units: 1..=u64::from(u32::MAX);
    /// A count of at least one, up to 2^53: what every store counts exactly.
    Count: 1..=1_u64 << 53;
    /// A count that may be zero, up to 2^53: what every store counts exactly.
    Amount: 0..=1_u64 << 53;
    /// Descriptors of a request.
    Descriptors: 1..=RequestBounds::MAX.descriptors as u64;
    /// Entries of a descriptor.
    Entries: 1..=RequestBounds::MAX.entries as u64;
    /// Checks of a request.
    Checks: 1..=RequestBounds::MAX.checks as u64;
    /// Lines of the log in a second.
    Lines: 0..=u64::from(u32::MAX);
    /// Headers of a request. An Envoy with nothing configured sends about twenty.
    HeaderCount: 32..=10_000_u64;
    /// Connections to a port.
    Connections: 1..=1_000_000_u64;
    /// Streams of a connection.
    Streams: 1..=1_000_000_u64;
    /// A percentage.
    Percent: 0..=100_u64;
    /// Leading bits of an IPv6 address.
    PrefixLength: 0..=128_u64;
    /// The status of an HTTP refusal.
    Status: 300..=599_u64;
}

/// Declares the numbers that fit 32 bits.
macro_rules! small {
    ($($name:ident),*) => { $(
        impl From<$name> for u32 {
            fn from(count: $name) -> u32 {
                u32::try_from(count.0).unwrap_or(u32::MAX)
            }
        }
    )* };
}

small!(Units, Connections, Streams);

/// Declares the numbers that count things in memory.
macro_rules! counts {
    ($($name:ident),*) => { $(
        impl From<$name> for usize {
            fn from(count: $name) -> usize {
                usize::try_from(count.0).unwrap_or(usize::MAX)
            }
        }
    )* };
}

counts!(Count, Descriptors, Entries, Checks, HeaderCount);

/// A number more than zero that may have a fraction: a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positive(pub f64);

impl Decode for Positive {
    fn expected() -> String {
        "a number more than zero".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match number(node) {
            None => problems.refuse(location, "expected a number"),
            Some(number) if number.float <= 0.0 => problems.refuse(location, "expected more than zero"),
            Some(number) if !number.float.is_finite() => problems.refuse(location, "expected a finite number"),
            Some(number) => return Some(Self(number.float)),
        }
        None
    }
}

/// A number of rate-sync without effect here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IgnoredNumber;

impl Decode for IgnoredNumber {
    fn expected() -> String {
        "a number".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Number(number) if number.float >= 0.0 => Some(IgnoredNumber),
            Value::Text(text) if text.text.parse::<f64>().is_ok() => Some(IgnoredNumber),
            _ => {
                problems.refuse(location, "expected a number, zero or more");
                None
            }
        }
    }
}
