//! From a tree to typed tables, collecting everything that is wrong on the way.
//!
//! A `table!` is written once and is three things: the struct, its decoder with the list of known
//! keys, and its JSON Schema. So what `tollgate schema` prints and what is accepted cannot drift apart.

use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::config::document::node::{Key, Position, TreeNode, Value, join};
use crate::config::document::problem::{Location, Problems, nearest, remedy};

/// What can stand in a configuration.
pub trait Decode: JsonSchema + Sized {
    /// What is expected, for errors: `a whole number more than zero`.
    fn expected() -> String;

    /// Whether errors must not show the value.
    const SECRET: bool = false;

    /// Reads a value. None after an error was told.
    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self>;
}

/// A table with known keys.
pub trait SchemaTable: Decode {
    /// The keys that it knows.
    const KEYS: &'static [&'static str];

    /// The keys that are there and can be read, with their places.
    fn given(&self) -> Vec<(&'static str, &Location)>;
}

/// A choice of words.
pub trait Choice: Decode {
    /// Every word, in the order of the documentation.
    const WORDS: &'static [&'static str];

    /// The word that the file has.
    fn word(self) -> &'static str;
}

/// A value and where it was given.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its path, its looks, its file and line.
    pub location: Location,
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A key of a table: given, absent, or given as something that was refused.
#[derive(Clone, Debug)]
pub enum Field<T> {
    /// It is there and can be read.
    Given(Located<T>),
    /// It is not there.
    Absent,
    /// It is there, and an error about it was told.
    Refused,
}

impl<T> Field<T> {
    /// The value when there is a good one.
    pub fn get(&self) -> Option<&Located<T>> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Refused => None,
        }
    }

    /// Whether nothing is there, not even something wrong.
    pub fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    /// Where it was given, if it was and could be read.
    pub fn location(&self) -> Option<&Location> {
        self.get().map(|value| &value.location)
    }
}

impl<T: Copy> Field<T> {
    /// A copy of the value when there is a good one.
    pub fn copied(&self) -> Option<T> {
        self.get().map(|value| value.value)
    }
}

/// Keys whose values errors never show, even where they are out of place.
const SECRETS: [&str; 3] = ["secret", "url", "password"];

/// Reads one value.
pub fn field<T: Decode>(node: &TreeNode, path: String, problems: &mut Problems) -> Field<T> {
    let secret = T::SECRET || SECRETS.iter().any(|key| path.rsplit('.').next() == Some(key));
    let shown = if secret { "\"***\"".to_owned() } else { node.value.to_string() };
    if matches!(node.value, Value::Lost) {
        return Field::Refused;
    }
    let location = Location { path, shown, position: node.position };
    match T::decode(node, &location, problems) {
        Some(value) => Field::Given(Located { value, location }),
        None => Field::Refused,
    }
}

/// The entries of a table.
pub fn entries<'a>(node: &'a TreeNode, location: &Location, problems: &mut Problems) -> Option<&'a [(Key, TreeNode)]> {
    match &node.value {
        Value::Table(entries) => Some(entries),
        Value::Null => Some(&[]),
        // It may well be `password:secret` without the space that makes it a table.
        Value::Text(_) => {
            problems.error(location.position, format!("{} is a text, expected a table", location.path));
            None
        }
        _ => {
            problems.refuse(location, "expected a table");
            None
        }
    }
}

/// Refuses the keys that a table does not have.
pub fn known_keys(entries: &[(Key, TreeNode)], location: &Location, known: &[&str], problems: &mut Problems) {
    for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&&*key.text)) {
        // What follows the word in `{ password:secret }` is no name.
        let foreign = key.text.char_indices().find(|(_, c)| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.'));
        if let Some((end, mark)) = foreign {
            let path = join(&location.path, &key.text[..end]);
            let reason = match mark {
                ':' => "a colon without a space, expected one after it".to_owned(),
                mark => format!("{mark:?}, expected a known key; no key has that"),
            };
            problems.error(key.position, format!("{path} is followed by {reason}"));
            continue;
        }
        let path = join(&location.path, &key.text);
        let remedy = remedy(&key.text, known.iter().copied(), "known keys");
        problems.error(key.position, format!("{path} is not a known key{remedy}"));
        if let Some(meant) = nearest(&key.text, known.iter().copied()) {
            problems.excuse(join(&location.path, meant));
        }
    }
}

/// Reads the value of a key; tells when a required one is not there.
pub fn key<T: Decode>(
    entries: &[(Key, TreeNode)],
    name: &str,
    required: bool,
    location: &Location,
    problems: &mut Problems,
) -> Field<T> {
    let path = join(&location.path, name);
    match entries.iter().find(|(key, _)| key.text == name) {
        Some((key, node)) => {
            // A list that begins on the next line is still told at its key.
            let position = Position { line: key.position.line.max(1), ..key.position };
            match &node.value {
                Value::List(_) | Value::Table(_) => field(node, path, problems),
                _ => field(&TreeNode { position, value: node.value.clone() }, path, problems),
            }
        }
        None => {
            if required {
                problems.missing(location.position, &path, format!("is missing, expected {}", T::expected()));
            }
            Field::Absent
        }
    }
}

/// Declares a table of the configuration: a struct of [`Field`]s, its decoder and its JSON Schema. A key may be
/// `required`, and may be named otherwise than its field: `last as "final"`.
macro_rules! table {
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $([$required:ident])? $field:ident $(as $key:literal)?: $type:ty, )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $field: $crate::config::schema::decode::Field<$type>, )*
        }

        impl $crate::config::schema::decode::SchemaTable for $name {
            const KEYS: &'static [&'static str] = &[$( table!(@key $field $($key)?) ),*];

            fn given(&self) -> Vec<(&'static str, &$crate::config::document::problem::Location)> {
                let fields = [$( (table!(@key $field $($key)?), self.$field.location()) ),*];
                fields.into_iter().filter_map(|(key, location)| Some((key, location?))).collect()
            }
        }

        impl $crate::config::schema::decode::Decode for $name {
            fn expected() -> String {
                "a table".to_owned()
            }

            fn decode(
                node: &$crate::config::document::node::TreeNode,
                location: &$crate::config::document::problem::Location,
                problems: &mut $crate::config::document::problem::Problems,
            ) -> Option<Self> {
                let entries = $crate::config::schema::decode::entries(node, location, problems)?;
                $crate::config::schema::decode::known_keys(
                    entries,
                    location,
                    <Self as $crate::config::schema::decode::SchemaTable>::KEYS,
                    problems,
                );
                Some(Self {
                    $( $field: $crate::config::schema::decode::key(
                        entries,
                        table!(@key $field $($key)?),
                        table!(@required $($required)?),
                        location,
                        problems,
                    ), )*
                })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut table = $crate::config::schema::decode::TableSchema::new(&[$($about),*]);
                $( table.key::<$type>(
                    table!(@key $field $($key)?),
                    table!(@required $($required)?),
                    &[$($doc),*],
                    generator,
                ); )*
                table.finish()
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@required) => { false };
    (@required required) => { true };
}

pub(in crate::config) use table;

/// Declares a choice of words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])*
        $name:ident { $( $(#[doc = $doc:literal])* $word:literal => $variant:ident, )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $( $(#[doc = $doc])* $variant, )* }

        impl $crate::config::schema::decode::Choice for $name {
            const WORDS: &'static [&'static str] = &[$($word),*];

            fn word(self) -> &'static str {
                match self { $( $name::$variant => $word, )* }
            }
        }

        impl $crate::config::schema::decode::Decode for $name {
            fn expected() -> String {
                format!("one of {}", <Self as $crate::config::schema::decode::Choice>::WORDS.join(", "))
            }

            fn decode(
                node: &$crate::config::document::node::TreeNode,
                location: &$crate::config::document::problem::Location,
                problems: &mut $crate::config::document::problem::Problems,
            ) -> Option<Self> {
                $crate::config::schema::decode::word(
                    node,
                    location,
                    <Self as $crate::config::schema::decode::Choice>::WORDS,
                    problems,
                )
                .map(|word| match word {
                    $( $word => $name::$variant, )*
                    _ => unreachable!("only one of the words is returned"),
                })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $crate::config::schema::decode::choice_schema(
                    &[$($about),*],
                    &[$( ($word, &[$($doc),*]) ),*],
                )
            }
        }
    };
}

pub(in crate::config) use choice;

/// Reads one of some words.
pub fn word(
    node: &TreeNode,
    location: &Location,
    words: &'static [&'static str],
    problems: &mut Problems,
) -> Option<&'static str> {
    let written = match &node.value {
        Value::Text(text) => &*text.text,
        _ => "",
    };
    let found = words.iter().find(|word| **word == written).copied();
    if found.is_none() {
        let near = match nearest(written, words.iter().copied()) {
            Some(word) => format!("; did you mean {word:?}?"),
            None => String::new(),
        };
        let expected = match words {
            [word] => format!("expected {word:?}"),
            words => format!("expected one of {}", words.join(", ")),
        };
        problems.refuse(location, format!("{expected}{near}"));
    }
    found
}

/// Builds the JSON Schema of a table.
#[derive(Debug)]
pub struct TableSchema {
    about: String,
    properties: serde_json::Map<String, serde_json::Value>,
    required: Vec<&'static str>,
}

impl TableSchema {
    /// An empty table with this documentation.
    pub fn new(about: &[&str]) -> Self {
        Self { about: paragraph(about), properties: serde_json::Map::new(), required: Vec::new() }
    }

    /// Adds a key.
    pub fn key<T: JsonSchema>(
        &mut self,
        key: &'static str,
        required: bool,
        doc: &[&str],
        generator: &mut SchemaGenerator,
    ) {
        let mut schema = generator.subschema_for::<T>();
        schema.insert("description".to_owned(), paragraph(doc).into());
        self.properties.insert(key.to_owned(), schema.into());
        if required {
            self.required.push(key);
        }
    }

    /// The whole schema.
    pub fn finish(self) -> Schema {
        let mut schema = json_schema!({ "description": self.about, "type": "object", "additionalProperties": false });
        schema.insert("properties".to_owned(), self.properties.into());
        if !self.required.is_empty() {
            schema.insert("required".to_owned(), self.required.into());
        }
        schema
    }
}

/// The JSON Schema of a choice.
pub fn choice_schema(about: &[&str], words: &[(&str, &[&str])]) -> Schema {
    let each = words.iter().map(|(word, doc)| serde_json::json!({ "const": word, "description": paragraph(doc) }));
    let each: Vec<serde_json::Value> = each.chain([variable_schema()]).collect();
    json_schema!({ "description": paragraph(about), "anyOf": each })
}

fn paragraph(lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// A text in which a variable will be expanded can become anything.
pub fn variable_schema() -> serde_json::Value {
    serde_json::json!({ "type": "string", "pattern": "\\$" })
}
