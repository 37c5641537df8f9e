//! The JSON of fields that are not written as their type is: durations as text, entries as an object, and whole numbers
//! that are checked.
//!
//! A module reads and writes a field; the generated messages name it. The type beside it is its JSON Schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use crate::settings::parse_duration;

/// The most units of one ask.
pub(in crate::server) const MAX_COST: u64 = u32::MAX as u64;

/// Declares a JSON Schema.
macro_rules! schema {
    ($(#[doc = $doc:literal] $name:ident $schema:tt)*) => {
        $(
            #[doc = $doc]
            pub(in crate::server) struct $name;

            impl JsonSchema for $name {
                fn inline_schema() -> bool {
                    true
                }

                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!($schema)
                }
            }
        )*
    };
}

schema! {
    /// A duration as text.
    DurationText { "type": ["string", "null"], "pattern": "^([0-9]+(\\.[0-9]{1,9})?(us|ms|s|m|h|d|w))+$", "maxLength": 64, "examples": ["1.5s"] }
    /// Entries by name.
    EntryMap { "type": "object", "additionalProperties": { "type": "string" } }
    /// The units of an ask.
    UnitCount { "type": ["integer", "null"], "minimum": 1, "maximum": 4_294_967_295_u64 }
    /// What becomes of a hold that nobody ends.
    LostWord { "type": ["string", "null"], "enum": ["charge", "release", null] }
}

/// Durations: `"1.5s"`, as protobuf writes them, and `"250ms"`, `"5m"`, `"1h30m"` as configurations do.
pub(in crate::server) mod duration {
    use prost_types::Duration;
    use serde::{Deserializer, Serializer};

    use super::{DurationVisitor, InSeconds};

    pub(in crate::server) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        from.deserialize_any(DurationVisitor)
    }

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(in crate::server) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => to.collect_str(&InSeconds(duration)),
            None => to.serialize_none(),
        }
    }
}

/// Entries, each once.
pub(in crate::server) mod entries {
    use std::collections::BTreeMap;

    use serde::Deserializer;

    use super::EntriesVisitor;

    pub(in crate::server) fn deserialize<'de, D>(from: D) -> Result<BTreeMap<String, String>, D::Error>
    where
        D: Deserializer<'de>,
    {
        from.deserialize_any(EntriesVisitor)
    }
}

/// Asks, each of them an object.
pub(in crate::server) mod asks {
    use serde::{Deserialize, Deserializer};

    use super::ObjectOnly;

    pub(in crate::server) fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let asks: Vec<ObjectOnly<T>> = Vec::deserialize(from)?;
        Ok(asks.into_iter().map(|ask| ask.0).collect())
    }
}

/// Units, whose bounds are checked with their place when the message is read.
pub(in crate::server) mod units {
    use serde::Deserializer;

    use super::UnitsVisitor;

    pub(in crate::server) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        from.deserialize_any(UnitsVisitor)
    }
}

/// A message that is an object: serde reads a list as its fields in their order, too.
pub(super) struct ObjectOnly<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectOnly<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = ObjectOnly<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ObjectOnly<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(ObjectOnly)
            }
        }

        from.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Option<prost_types::Duration>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration as text, such as \"1.5s\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        parse_duration(text)
            .map(|duration| Some(message_duration(duration)))
            .ok_or_else(|| E::custom(format_args!("{}, expected {}", shown(text), Expected(&self))))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts, such as {\"account\": \"bob\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        unique(map)
    }
}

/// The fields of an object, each once.
pub(super) fn unique<'de, A: MapAccess<'de>, V: Deserialize<'de>>(mut map: A) -> Result<BTreeMap<String, V>, A::Error> {
    let mut fields = BTreeMap::new();
    while let Some(name) = map.next_key::<String>()? {
        match fields.entry(name) {
            Entry::Occupied(there) => {
                return Err(A::Error::custom(format_args!("{} is there twice", shown(there.key()))));
            }
            Entry::Vacant(free) => free.insert(map.next_value()?),
        };
    }
    Ok(fields)
}

struct UnitsVisitor;

impl Visitor<'_> for UnitsVisitor {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from 1 to {MAX_COST}")
    }

    fn visit_u64<E: Error>(self, units: u64) -> Result<Self::Value, E> {
        Ok(Some(units))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// What a visitor expects, as text.
struct Expected<'a, V>(&'a V);

impl<'de, V: Visitor<'de>> fmt::Display for Expected<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

/// The most characters of a value that an error repeats.
const MAX_SHOWN: usize = 40;

/// A value that an error repeats, in quotes.
pub(in crate::server) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A duration as a message.
pub(in crate::server) fn message_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("less than a second"),
    }
}

/// A duration in seconds, `0.34s`, without zeros at its end.
struct InSeconds<'a>(&'a prost_types::Duration);

impl fmt::Display for InSeconds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prost_types::Duration { seconds, nanos } = *self.0;
        if nanos == 0 {
            return write!(f, "{seconds}s");
        }
        let (mut fraction, mut digits) = (nanos, 9);
        while fraction % 10 == 0 {
            (fraction, digits) = (fraction / 10, digits - 1);
        }
        write!(f, "{seconds}.{fraction:0digits$}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_seconds_without_zeros_at_their_end() {
        for (seconds, nanos, expected) in
            [(15, 0, "15s"), (0, 340_000_000, "0.34s"), (1, 1_000, "1.000001s"), (0, 1, "0.000000001s"), (0, 0, "0s")]
        {
            let text = InSeconds(&prost_types::Duration { seconds, nanos }).to_string();
            assert_eq!(text, expected);
            let read = parse_duration(&text).map(message_duration);
            assert_eq!(read, Some(prost_types::Duration { seconds, nanos }));
        }
    }
}
