//! Sizes in bytes.

use super::number::{number, whole};
use crate::config::document::node::{TreeNode, Value, WrittenText};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::Decode;
#[cfg(feature = "server")]
use crate::config::schema::json;

/// Reads a number of bytes between two bounds, both included: `"256MiB"`, or a bare number.
fn size(node: &TreeNode, location: &Location, least: u64, most: u64, problems: &mut Problems) -> Option<u64> {
    let bytes = match (&node.value, number(node)) {
        (_, Some(_)) => whole(node, location, 1, u64::MAX >> 1, problems)?,
        (Value::Text(WrittenText { text, .. }), None) => {
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let unit: Option<u64> = match text[digits..].trim_start() {
                "B" => Some(1),
                "kB" | "KB" => Some(1_000),
                "MB" => Some(1_000_000),
                "GB" => Some(1_000_000_000),
                "KiB" => Some(1 << 10),
                "MiB" => Some(1 << 20),
                "GiB" => Some(1 << 30),
                _ => None,
            };
            let bytes = unit.and_then(|unit| text[..digits].parse::<u64>().ok()?.checked_mul(unit));
            if bytes.is_none() {
                problems.refuse(location, "expected a size such as \"256MiB\", \"1GiB\" or a number of bytes");
            }
            bytes?
        }
        (_, None) => {
            problems.refuse(location, "expected a size such as \"256MiB\"");
            return None;
        }
    };
    match bytes {
        0 => problems.refuse(location, "expected more than zero"),
        _ if bytes < least => problems.refuse(location, format!("expected at least {}", shown_size(least))),
        _ if bytes > most => problems.refuse(location, format!("expected at most {}", shown_size(most))),
        _ => return Some(bytes),
    }
    None
}

/// A size in the largest unit that holds it whole.
pub(in crate::config) fn shown_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// Declares a type for each kind of size, with its bounds.
macro_rules! sizes {
    ($($(#[doc = $doc:literal])* $name:ident: $least:expr, $most:expr;)*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) struct $name(pub u64);

        impl Decode for $name {
            fn expected() -> String {
                "a size such as \"256MiB\"".to_owned()
            }

            fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
                size(node, location, $least, $most, problems).map(Self)
            }
        }

        impl From<$name> for usize {
            fn from(size: $name) -> usize {
                usize::try_from(size.0).unwrap_or(usize::MAX)
            }
        }

        #[cfg(feature = "server")]
        json::referenced!($name, stringify!($name), json::size($least));
    )* };
}

sizes! {
    /// Memory of counters. Less than the minimum is a size whose unit was forgotten.
    Memory: 1 << 20, u64::MAX >> 1;
    /// Bytes of a message.
    MessageBytes: 1 << 10, 1 << 30;
    /// Bytes of a head. The minimum is the smallest buffer of hyper.
    HeaderBytes: 8 << 10, 16 << 20;
    /// Bytes of a body.
    BodyBytes: 1, 1 << 30;
    /// Bytes of unfinished requests.
    UnfinishedBytes: 64 << 10, 1 << 40;
}
