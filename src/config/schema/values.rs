//! What a key can hold: texts, numbers with bounds, durations, sizes, lists and named tables.
//!
//! Each reads a value, tells exactly what is wrong with it, and has its JSON Schema.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::decode::{Decode, Field, Located, entries, field, variable_schema};
use crate::config::document::node::{TreeNode, Value, WrittenNumber, WrittenText, join};
use crate::config::document::problem::{Location, Problems};
use crate::rules::RequestBounds;

/// A text.
impl Decode for String {
    fn expected() -> String {
        "a text".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(text.text.clone()),
            Value::Number(WrittenNumber { written, .. }) => {
                problems.refuse(location, format!("expected a text; write \"{written}\" in quotes"));
                None
            }
            Value::Bool(value) => {
                problems.refuse(location, format!("expected a text; write \"{value}\" in quotes"));
                None
            }
            _ => {
                problems.refuse(location, "expected a text");
                None
            }
        }
    }
}

/// A text that never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Decode for Hidden {
    const SECRET: bool = true;

    fn expected() -> String {
        "a text".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(Hidden(text.text.clone())),
            _ => {
                problems.refuse(location, "expected a text in quotes");
                None
            }
        }
    }
}

/// True or false.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch(pub bool);

impl Decode for Switch {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Bool(value) => Some(Switch(*value)),
            // Only a variable makes a truth value out of a text.
            Value::Text(WrittenText { text, written: Some(_) }) if text == "true" => Some(Switch(true)),
            Value::Text(WrittenText { text, written: Some(_) }) if text == "false" => Some(Switch(false)),
            Value::Text(WrittenText { text, written: None }) if text == "true" || text == "false" => {
                problems.refuse(location, format!("expected true or false; write {text} without quotes"));
                None
            }
            _ => {
                problems.refuse(location, "expected true or false");
                None
            }
        }
    }
}

impl JsonSchema for Switch {
    fn schema_name() -> Cow<'static, str> {
        "Switch".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, variable_schema()] })
    }
}

/// The number of a value: a number, or a text that is one, as variables make them.
fn number(node: &TreeNode) -> Option<Cow<'_, WrittenNumber>> {
    match &node.value {
        Value::Number(number) => Some(Cow::Borrowed(number)),
        Value::Text(WrittenText { text, .. }) => WrittenNumber::parse(text.trim()).map(Cow::Owned),
        _ => None,
    }
}

/// A whole number between two bounds, both included.
fn whole(node: &TreeNode, location: &Location, least: u64, most: u64, problems: &mut Problems) -> Option<u64> {
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

/// Declares whole numbers with bounds of their own.
macro_rules! bounded {
    ($($(#[doc = $doc:literal])* $name:ident: $least:literal..=$most:expr;)*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub u64);

        impl Decode for $name {
            fn expected() -> String {
                format!("a whole number from {} to {}", $least, $most)
            }

            fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
                whole(node, location, $least, $most, problems).map(Self)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                number_schema("integer", $least, Some($most))
            }
        }
    )* };
}

bounded! {
    /// Units, slots or requests: more than zero.
    Units: 1..=u64::from(u32::MAX);
    /// A count of which zero makes no sense, as large as every store counts exactly.
    Count: 1..=1_u64 << 53;
    /// A count that may be zero, as large as every store counts exactly.
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
    /// Connections of a door.
    Connections: 1..=1_000_000_u64;
    /// Streams of a connection.
    Streams: 1..=1_000_000_u64;
    /// So many of a hundred.
    Percent: 0..=100_u64;
    /// Leading bits of an IPv6 address.
    PrefixLength: 0..=128_u64;
    /// The status of an HTTP refusal.
    Status: 300..=599_u64;
}

/// Declares which of them fit 32 bits.
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

/// Declares which of them count things in memory.
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

fn number_schema(kind: &str, least: u64, most: Option<u64>) -> Schema {
    let mut number = serde_json::json!({ "type": kind, "minimum": least });
    if let Some(most) = most {
        number["maximum"] = most.into();
    }
    let text = serde_json::json!({ "type": "string", "pattern": "\\$|^[+]?[0-9]" });
    json_schema!({ "anyOf": [number, text] })
}

/// A number more than zero, perhaps a fraction: a rate.
#[derive(Clone, Copy, Debug)]
pub struct Positive(pub f64);

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

impl JsonSchema for Positive {
    fn schema_name() -> Cow<'static, str> {
        "Positive".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = serde_json::json!({ "type": "string", "pattern": "\\$|^[+]?[0-9.]" });
        json_schema!({ "anyOf": [{ "type": "number", "exclusiveMinimum": 0 }, text] })
    }
}

/// A length of time more than zero: `"250ms"`, `"30s"`, `"5m"`, `"1h"`, `"1d"`, or several together: `"1h30m"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

const SPAN_PATTERN: &str = "\\$|^([0-9]+(us|ms|s|m|h|d|w))+$";

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

/// A length of time that may be none: `0s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause(pub Duration);

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

impl JsonSchema for Pause {
    fn schema_name() -> Cow<'static, str> {
        Span::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Span::json_schema(generator)
    }
}

fn span(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "expected a duration such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"1d\"";
    if text.starts_with('-') {
        return Err("expected more than zero");
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let micros: u64 = match &rest[digits..unit] {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            "w" => 604_800_000_000,
            _ => return Err(EXPECTED),
        };
        if digits == 0 {
            return Err(EXPECTED);
        }
        let count: u64 = rest[..digits].parse().map_err(|_| "expected at most 3650d")?;
        let part = count.checked_mul(micros).ok_or("expected at most 3650d")?;
        total = total.checked_add(Duration::from_micros(part)).ok_or("expected at most 3650d")?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(EXPECTED) } else { Ok(total) }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time with its unit: 250ms, 30s, 5m, 1h, 1d, or 1h30m.",
            "type": "string",
            "pattern": SPAN_PATTERN,
        })
    }
}

/// A length of time that may also be a bare number of seconds, as rate-sync writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub Duration);

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

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = serde_json::json!({ "type": "string", "pattern": format!("{SPAN_PATTERN}|^[0-9.]+$") });
        json_schema!({
            "description": "A length of time: a duration with its unit, or a bare number of seconds.",
            "anyOf": [{ "type": "number", "exclusiveMinimum": 0 }, text],
        })
    }
}

/// A number of bytes between two bounds, both included: `"256MiB"`, or a bare number.
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

/// Declares sizes with bounds of their own.
macro_rules! sizes {
    ($($(#[doc = $doc:literal])* $name:ident: $least:expr, $most:expr;)*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub u64);

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

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let text =
                    serde_json::json!({ "type": "string", "pattern": "\\$|^[0-9]+ *(B|kB|KB|MB|GB|KiB|MiB|GiB)?$" });
                json_schema!({
                    "description": "A number of bytes, or a size with its unit: 256MiB.",
                    "anyOf": [{ "type": "integer", "minimum": $least }, text],
                })
            }
        }
    )* };
}

sizes! {
    /// Bytes of memory that counters may take. A store of a few bytes can count nothing; whoever writes less than this
    /// forgot the unit.
    Memory: 1 << 20, u64::MAX >> 1;
    /// Bytes of a message.
    MessageBytes: 1 << 10, 1 << 30;
    /// Bytes of a head. hyper reads heads into no less.
    HeaderBytes: 8 << 10, 16 << 20;
    /// Bytes of a body.
    BodyBytes: 1, 1 << 30;
    /// Bytes kept of what is not finished.
    UnfinishedBytes: 64 << 10, 1 << 40;
}

/// A length of time that can also be without end: `"off"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpanOrOff(pub Option<Duration>);

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

impl JsonSchema for SpanOrOff {
    fn schema_name() -> Cow<'static, str> {
        "DurationOrOff".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time with its unit, such as 1h, or off.",
            "type": "string",
            "pattern": format!("{SPAN_PATTERN}|^off$"),
        })
    }
}

/// A list. What is wrong with one item is told, and the others stay.
#[derive(Clone, Debug)]
pub struct List<T> {
    /// The items that could be read.
    pub items: Vec<Located<T>>,
    /// Whether the file has none, not even a bad one.
    pub is_empty: bool,
}

impl<T: Decode> Decode for List<T> {
    fn expected() -> String {
        format!("a list, each {}", T::expected())
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let Value::List(items) = &node.value else {
            let remedy = match &node.value {
                Value::Text(_) | Value::Number(_) => format!("; write [{}]", location.shown),
                _ => String::new(),
            };
            problems.refuse(location, format!("expected a list{remedy}"));
            return None;
        };
        let mut list = Vec::with_capacity(items.len());
        let (mut index, mut file) = (0, location.position.file);
        for item in items {
            // A list put together from several files counts anew in each, as its reader does.
            if item.position.file != file {
                (index, file) = (0, item.position.file);
            }
            if let Field::Given(value) = field(item, format!("{}[{index}]", location.path), problems) {
                list.push(value);
            }
            index += 1;
        }
        Some(List { items: list, is_empty: items.is_empty() })
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": generator.subschema_for::<T>() })
    }
}

/// Whether a text can be a name: it may have to stand in a header or on one line of a log.
pub fn name(text: &str) -> Result<(), &'static str> {
    match text {
        "" => Err("expected at least one character"),
        text if text.chars().any(char::is_control) => Err("expected no control characters"),
        text if text.len() > 200 => Err("expected at most 200 bytes"),
        _ => Ok(()),
    }
}

/// A table whose keys are names that the operator chose, in the order of the file.
#[derive(Clone, Debug)]
pub struct ByName<T>(pub Vec<Item<T>>);

/// One of them.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// Its name.
    pub name: String,
    /// Where its name stands.
    pub location: Location,
    /// What it names. None after an error was told.
    pub value: Option<T>,
}

impl<T: Decode> Decode for ByName<T> {
    fn expected() -> String {
        "a table".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let mut named = Vec::new();
        for (key, node) in entries(node, location, problems)? {
            let path = join(&location.path, &key.text);
            if let Err(reason) = name(&key.text) {
                problems.error(key.position, format!("{path} is a name, {reason}"));
            }
            let location = Location { path: path.clone(), shown: node.value.to_string(), position: key.position };
            let node = TreeNode { position: key.position, value: node.value.clone() };
            let value = match field(&node, path, problems) {
                Field::Given(value) => Some(value.value),
                Field::Absent | Field::Refused => None,
            };
            named.push(Item { name: key.text.clone(), location, value });
        }
        Some(ByName(named))
    }
}

impl<T: JsonSchema> JsonSchema for ByName<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("NamesOf{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<T>() })
    }
}

impl<T> Field<List<T>> {
    /// The items; none when there is no list.
    pub fn items(&self) -> &[Located<T>] {
        self.get().map_or(&[], |list| &list.value.items)
    }
}

impl<T> Field<ByName<T>> {
    /// What is named; nothing when there is no table.
    pub fn named(&self) -> &[Item<T>] {
        self.get().map_or(&[], |named| &named.value.0)
    }
}

/// The schema of a text that never prints.
impl JsonSchema for Hidden {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}
