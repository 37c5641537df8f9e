//! The JSON Schema (draft 2020-12) of a configuration, and of the types that are declared without a macro.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema as schema};
use serde_json::Value;

use super::address::{AdminListen, ListenAddress};
use super::authz::{EntrySource, MetadataTable, WrittenEntry, WrittenMetadata};
use super::file::File;
use super::json::{choice, inlined, referenced, variable};
use super::rule::{KeyTable, Match, WrittenKeyEntry};
use super::values::{
    ByName, Hidden, IgnoredNumber, List, OneOrTwo, Pause, Positive, SPAN_PATTERN, Seconds, Span, SpanOrOff, Switch,
    Wait,
};
use crate::config::document::warning::WarningKind;

/// The JSON Schema of a configuration.
pub fn json_schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>();
    schema.insert("title".to_owned(), "tollgate configuration".into());
    schema.to_value()
}

referenced!(WarningKind, "Warning", {
    let about: Vec<[&str; 1]> = WarningKind::ALL.iter().map(|kind| [kind.about()]).collect();
    let words: Vec<(&str, &[&str])> =
        WarningKind::ALL.iter().zip(&about).map(|(kind, about)| (kind.name(), &about[..])).collect();
    choice(&["A kind of warning."], &words)
});
inlined!(Hidden, schema!({ "type": "string" }));
inlined!(Switch, schema!({ "anyOf": [{ "type": "boolean" }, variable()] }));
inlined!(ListenAddress, schema!({ "type": "string", "pattern": "\\$|^unix:.|:[0-9]+$" }));
inlined!(AdminListen, schema!({ "type": "string", "pattern": "\\$|^off$|^unix:.|:[0-9]+$" }));
inlined!(
    Positive,
    schema!({ "anyOf": [
        { "type": "number", "exclusiveMinimum": 0 },
        { "type": "string", "pattern": "\\$|^[+]?[0-9.]" },
    ] })
);
inlined!(
    IgnoredNumber,
    schema!({ "anyOf": [{ "type": "number", "minimum": 0 }, { "type": "string", "pattern": "\\$|^[0-9.]" }] })
);
referenced!(Span, "Duration", duration());
referenced!(Pause, "Duration", duration());
referenced!(
    SpanOrOff,
    "DurationOrOff",
    schema!({
        "description": "A duration with its unit, such as 1h, or off.",
        "type": "string",
        "pattern": format!("{SPAN_PATTERN}|^off$"),
    })
);
referenced!(Seconds, "Seconds", seconds("exclusiveMinimum"));
referenced!(Wait, "SecondsOrNone", seconds("minimum"));

fn duration() -> Schema {
    schema!({
        "description": "A duration with its unit: 250ms, 30s, 5m, 1h, 1d, or 1h30m.",
        "type": "string",
        "pattern": SPAN_PATTERN,
    })
}

fn seconds(bound: &str) -> Schema {
    schema!({
        "description": "A duration with its unit, or a bare number of seconds.",
        "anyOf": [
            { "type": "number", bound: 0 },
            { "type": "string", "pattern": format!("{SPAN_PATTERN}|^[0-9.]+$") },
        ],
    })
}

impl<T: JsonSchema> JsonSchema for OneOrTwo<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrTwoOf{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let each = generator.subschema_for::<T>();
        schema!({ "anyOf": [each, { "type": "array", "minItems": 1, "maxItems": 2, "items": each }] })
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
        schema!({ "type": "array", "items": generator.subschema_for::<T>() })
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
        schema!({ "type": "object", "additionalProperties": generator.subschema_for::<T>() })
    }
}

impl JsonSchema for WrittenKeyEntry {
    fn schema_name() -> Cow<'static, str> {
        "KeyEntry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema!({
            "description": "An entry of a key: its name, or a table that says more.",
            "anyOf": [{ "type": "string" }, generator.subschema_for::<KeyTable>()],
        })
    }
}

impl JsonSchema for WrittenEntry {
    fn schema_name() -> Cow<'static, str> {
        "Entry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let source = generator.subschema_for::<EntrySource>();
        schema!({
            "description": "Where an entry's value comes from: one place of the request, or a list of fields of bodies.",
            "anyOf": [source, { "type": "array", "minItems": 1, "items": source }],
        })
    }
}

impl JsonSchema for WrittenMetadata {
    fn schema_name() -> Cow<'static, str> {
        "Metadata".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema!({
            "description": "A value in dynamic metadata: a namespace, a colon and a path, or a table.",
            "anyOf": [{ "type": "string" }, generator.subschema_for::<MetadataTable>()],
        })
    }
}

impl JsonSchema for Match {
    fn schema_name() -> Cow<'static, str> {
        "Match".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<Match>();
        schema!({
            "description": "A test of one entry's value: a text, \"*\", a pattern, a block of addresses, { list = ... }, a list of these, or { not = ... }.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "minItems": 1, "items": inner },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["list"],
                    "properties": { "list": { "type": "string" } },
                },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["not"],
                    "properties": { "not": generator.subschema_for::<Match>() },
                },
            ],
        })
    }
}
