//! Decodes a tree into typed tables and collects everything that is wrong.
//!
//! A `table!` declares the struct, its decoder with the known keys, and its JSON Schema, so that `tollgate schema`
//! prints exactly what is accepted.

use std::ops::Deref;

use super::key::KeyInfo;
use crate::config::document::node::{Key, Position, TreeNode, Value, join};
use crate::config::document::problem::{Location, Problems, nearest, remedy};

/// A type that a configuration can hold.
pub(crate) trait Decode: Sized {
    /// The expected value, for errors: `a whole number more than zero`.
    fn expected() -> String;

    /// Whether errors must not show the value.
    const SECRET: bool = false;

    /// Decodes a value. None if it is invalid, which is reported.
    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self>;

    /// Adds every key inside the value, each with its path below `path`: `.*` for a name, `[]` for an item.
    fn keys(_path: &str, _keys: &mut Vec<(String, KeyInfo)>) {}
}

/// A table with a fixed set of keys.
pub(crate) trait SchemaTable: Decode {
    /// Its keys.
    const KEYS: &'static [KeyInfo];

    /// The keys that are given and valid, with their locations.
    fn given(&self) -> Vec<(&'static KeyInfo, &Location)>;

    /// The given keys that do not belong to this engine or algorithm.
    fn foreign(&self, kind: &str) -> impl Iterator<Item = (&'static KeyInfo, &Location)> {
        self.given().into_iter().filter(move |(key, _)| !key.belongs_to(kind))
    }
}

/// A setting with a fixed set of words.
pub(crate) trait Choice: Decode {
    /// All words, in the order of the documentation.
    const WORDS: &'static [&'static str];

    /// The word as a file writes it.
    fn word(self) -> &'static str;
}

/// A value with its location.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    /// The value.
    pub value: T,
    /// Its path and position, and its text for errors.
    pub location: Location,
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A key of a table: given, absent, or invalid.
#[derive(Clone, Debug)]
pub(crate) enum Field<T> {
    /// Given and valid.
    Given(Located<T>),
    /// Not given.
    Absent,
    /// Given and invalid, which was reported.
    Invalid,
}

impl<T> Field<T> {
    /// The value, if it is valid.
    pub(crate) fn get(&self) -> Option<&Located<T>> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Invalid => None,
        }
    }

    /// Whether it is not given. An invalid value is not absent.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    /// Its location, if it is valid.
    pub(crate) fn location(&self) -> Option<&Location> {
        self.get().map(|value| &value.location)
    }
}

impl<T: Copy> Field<T> {
    /// A copy of the value, if it is valid.
    pub(crate) fn copied(&self) -> Option<T> {
        self.get().map(|value| value.value)
    }
}

/// Keys whose values are never shown in errors, even in tables without such a key.
const SECRETS: [&str; 3] = ["secret", "url", "password"];

/// Decodes one value.
pub(crate) fn field<T: Decode>(node: &TreeNode, path: String, problems: &mut Problems) -> Field<T> {
    let secret = T::SECRET || SECRETS.iter().any(|key| path.rsplit('.').next() == Some(key));
    let shown = if secret { "\"***\"".to_owned() } else { node.value.to_string() };
    if matches!(node.value, Value::Unexpanded) {
        return Field::Invalid;
    }
    let location = Location { path, shown, position: node.position };
    match T::decode(node, &location, problems) {
        Some(value) => Field::Given(Located { value, location }),
        None => Field::Invalid,
    }
}

/// Returns the entries of a table. None if the value is not a table, which is reported.
pub(crate) fn entries<'a>(
    node: &'a TreeNode,
    location: &Location,
    problems: &mut Problems,
) -> Option<&'a [(Key, TreeNode)]> {
    match &node.value {
        Value::Table(entries) => Some(entries),
        Value::Null => Some(&[]),
        // The text is not shown: it may be `password:secret`, a table without the space after the colon.
        Value::Text(_) => {
            problems.error(location.position, &location.path, "is a text, expected a table");
            None
        }
        _ => {
            problems.refuse(location, "expected a table");
            None
        }
    }
}

/// Reports unknown keys.
pub(crate) fn known_keys(entries: &[(Key, TreeNode)], location: &Location, known: &[KeyInfo], problems: &mut Problems) {
    let known = known.iter().map(|key| key.name);
    for (key, _) in entries.iter().filter(|(key, _)| !known.clone().any(|known| known == key.text)) {
        // The value of `{ password:secret }` must not be shown.
        let foreign = key.text.char_indices().find(|(_, c)| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.'));
        if let Some((end, mark)) = foreign {
            let path = join(&location.path, &key.text[..end]);
            let reason = match mark {
                ':' => "a colon, expected a space after it".to_owned(),
                mark => format!("{mark:?}, which no key contains; expected a known key"),
            };
            problems.error(key.position, &path, format_args!("is followed by {reason}"));
            continue;
        }
        let path = join(&location.path, &key.text);
        let remedy = remedy(&key.text, known.clone(), "known keys");
        problems.error(key.position, &path, format_args!("is not a known key{remedy}"));
        if let Some(meant) = nearest(&key.text, known.clone()) {
            problems.record_misspelt(join(&location.path, meant));
        }
    }
}

/// Decodes the value of a key. Reports a required key that is missing.
pub(crate) fn key<T: Decode>(
    entries: &[(Key, TreeNode)],
    info: &KeyInfo,
    location: &Location,
    problems: &mut Problems,
) -> Field<T> {
    let path = join(&location.path, info.name);
    match entries.iter().find(|(key, _)| key.text == info.name) {
        Some((key, node)) => {
            // A scalar is reported at its key, even if it stands on the next line.
            let position = Position { line: key.position.line.max(1), ..key.position };
            match &node.value {
                Value::List(_) | Value::Table(_) => field(node, path, problems),
                _ => field(&TreeNode { position, value: node.value.clone() }, path, problems),
            }
        }
        None => {
            if info.required {
                problems.missing(location.position, &path, format!("is missing, expected {}", T::expected()));
            }
            Field::Absent
        }
    }
}

/// Declares a table of the configuration: a struct of [`Field`]s, its decoder and its JSON Schema. The properties of a
/// key come before it in brackets, as calls of the builders of [`KeyInfo`]: `[required, restart]`. The name of a key
/// may differ from its field: `last as "final"`.
macro_rules! table {
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $(
                $([$($fact:ident $(($argument:expr))?),+])?
                $(#[doc = $doc:literal])*
                $field:ident $(as $key:literal)?: $type:ty,
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name {
            $( $(#[doc = $doc])* pub $field: $crate::config::schema::decode::Field<$type>, )*
        }

        impl $crate::config::schema::decode::SchemaTable for $name {
            const KEYS: &'static [$crate::config::schema::key::KeyInfo] = &[$(
                $crate::config::schema::key::KeyInfo::named(table!(@key $field $($key)?))
                    $($( .$fact($($argument)?) )+)?
            ),*];

            fn given(&self) -> Vec<(&'static $crate::config::schema::key::KeyInfo, &$crate::config::document::problem::Location)> {
                let locations = [$( self.$field.location() ),*];
                Self::KEYS.iter().zip(locations).filter_map(|(key, location)| Some((key, location?))).collect()
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
                let known = <Self as $crate::config::schema::decode::SchemaTable>::KEYS;
                $crate::config::schema::decode::known_keys(entries, location, known, problems);
                // The keys are in the order of the fields.
                let mut keys = known.iter();
                $( let $field = $crate::config::schema::decode::key(entries, keys.next()?, location, problems); )*
                Some(Self { $($field),* })
            }

            fn keys(path: &str, keys: &mut Vec<(String, $crate::config::schema::key::KeyInfo)>) {
                let mut known = <Self as $crate::config::schema::decode::SchemaTable>::KEYS.iter();
                $(
                    if let Some(key) = known.next() {
                        let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
                        keys.push((path.clone(), *key));
                        <$type as $crate::config::schema::decode::Decode>::keys(&path, keys);
                    }
                )*
            }
        }

        #[cfg(feature = "server")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut table = $crate::config::schema::json::TableSchema::new(&[$($about),*]);
                let mut keys = <Self as $crate::config::schema::decode::SchemaTable>::KEYS.iter();
                $(
                    if let Some(key) = keys.next() {
                        table.key::<$type>(key, &[$($doc),*], generator);
                    }
                )*
                table.finish()
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}

pub(in crate::config) use table;

/// Declares a setting with a fixed set of words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])*
        $name:ident { $( $(#[doc = $doc:literal])* $word:literal => $variant:ident, )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum $name { $( $(#[doc = $doc])* $variant, )* }

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

        #[cfg(feature = "server")]
        $crate::config::schema::json::referenced!(
            $name,
            stringify!($name),
            $crate::config::schema::json::choice(&[$($about),*], &[$( ($word, &[$($doc),*]) ),*])
        );
    };
}

pub(in crate::config) use choice;

/// Decodes one of a fixed set of words.
pub(crate) fn word(
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
