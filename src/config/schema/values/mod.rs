//! The types of values. Each reads a value and reports exactly what is wrong with it.

mod collection;
mod duration;
mod number;
mod size;
mod text;

pub(in crate::config) use self::collection::{ByName, Item, List, OneOrTwo, name};
#[cfg(feature = "server")]
pub(super) use self::duration::SPAN_PATTERN;
pub(in crate::config) use self::duration::{Pause, Seconds, Span, SpanOrOff, Wait, shown_duration};
pub(in crate::config) use self::number::{
    Amount, Checks, Connections, Count, Descriptors, Entries, HeaderCount, IgnoredNumber, Lines, Percent, Positive,
    PrefixLength, Status, Streams, Units,
};
pub(in crate::config) use self::size::{BodyBytes, HeaderBytes, Memory, MessageBytes, UnfinishedBytes, shown_size};
pub use self::text::Hidden;
pub(in crate::config) use self::text::Switch;
