//! Builds JSON Schemas: of tables and choices for the macros that declare them, and of values.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema as schema};
use serde_json::{Map, Value, json};

use super::key::KeyInfo;

/// Builds the JSON Schema of a table.
#[derive(Debug)]
pub(crate) struct TableSchema {
    about: String,
    properties: Map<String, Value>,
    required: Vec<&'static str>,
}

impl TableSchema {
    /// An empty table with this documentation.
    pub(crate) fn new(about: &[&str]) -> Self {
        Self { about: paragraph(about), properties: Map::new(), required: Vec::new() }
    }

    /// Adds a key.
    pub(crate) fn key<T: JsonSchema>(&mut self, key: &KeyInfo, doc: &[&str], generator: &mut SchemaGenerator) {
        let mut schema = generator.subschema_for::<T>();
        schema.insert("description".to_owned(), paragraph(doc).into());
        self.properties.insert(key.name.to_owned(), schema.into());
        if key.required {
            self.required.push(key.name);
        }
    }

    /// The whole schema.
    pub(crate) fn finish(self) -> Schema {
        let mut schema = schema!({ "description": self.about, "type": "object", "additionalProperties": false });
        schema.insert("properties".to_owned(), self.properties.into());
        if !self.required.is_empty() {
            schema.insert("required".to_owned(), self.required.into());
        }
        schema
    }
}

/// The JSON Schema of a choice of words.
pub(crate) fn choice(about: &[&str], words: &[(&str, &[&str])]) -> Schema {
    let each = words.iter().map(|(word, doc)| json!({ "const": word, "description": paragraph(doc) }));
    let each: Vec<Value> = each.chain([variable()]).collect();
    schema!({ "description": paragraph(about), "anyOf": each })
}

/// The JSON Schema of a whole number between two bounds.
pub(crate) fn whole_number(least: u64, most: u64) -> Schema {
    let text = json!({ "type": "string", "pattern": "\\$|^[+]?[0-9]" });
    schema!({ "anyOf": [{ "type": "integer", "minimum": least, "maximum": most }, text] })
}

/// The JSON Schema of a number of bytes.
pub(crate) fn size(least: u64) -> Schema {
    let text = json!({ "type": "string", "pattern": "\\$|^[0-9]+ *(B|kB|KB|MB|GB|KiB|MiB|GiB)?$" });
    schema!({
        "description": "A number of bytes, or a size with its unit: 256MiB.",
        "anyOf": [{ "type": "integer", "minimum": least }, text],
    })
}

/// Any text with a variable, since it can expand to any value.
pub(crate) fn variable() -> Value {
    json!({ "type": "string", "pattern": "\\$" })
}

fn paragraph(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// Gives a type this JSON Schema, repeated in each place where the type is used.
macro_rules! inlined {
    ($type:ty, $schema:expr) => {
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}

/// Gives a type this JSON Schema, written once under a name and referred to by that name.
macro_rules! referenced {
    ($type:ty, $name:expr, $schema:expr) => {
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}

pub(in crate::config) use {inlined, referenced};
