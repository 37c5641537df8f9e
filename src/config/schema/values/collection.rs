//! Lists, and tables by name.

use crate::config::document::node::{TreeNode, Value, join};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::{Decode, Field, Located, entries, field};
use crate::config::schema::key::KeyInfo;

/// A list. An invalid item is reported, and the others are kept.
#[derive(Clone, Debug)]
pub(crate) struct List<T> {
    /// The valid items.
    pub items: Vec<Located<T>>,
    /// Whether the file has no items, not even invalid ones.
    pub is_empty: bool,
}

impl<T: Decode> Decode for List<T> {
    fn expected() -> String {
        format!("a list, each {}", T::expected())
    }

    fn keys(path: &str, keys: &mut Vec<(String, KeyInfo)>) {
        T::keys(&format!("{path}[]"), keys);
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
            // A list merged from several files is numbered from zero in each of them.
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

/// One value, or a list of one or two.
#[derive(Clone, Debug)]
pub(crate) struct OneOrTwo<T>(pub Vec<Located<T>>);

impl<T: Decode> Decode for OneOrTwo<T> {
    const SECRET: bool = T::SECRET;

    fn expected() -> String {
        format!("{}, or a list of two", T::expected())
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let Value::List(items) = &node.value else {
            let value = T::decode(node, location, problems)?;
            return Some(Self(vec![Located { value, location: location.clone() }]));
        };
        if items.is_empty() || items.len() > 2 {
            let count = format!("has {} items, expected one or two", items.len());
            problems.error(location.position, &location.path, count);
            return None;
        }
        let items = items.iter().enumerate();
        let items =
            items.filter_map(|(index, item)| match field(item, format!("{}[{index}]", location.path), problems) {
                Field::Given(value) => Some(value),
                Field::Absent | Field::Invalid => None,
            });
        Some(Self(items.collect()))
    }
}

/// Checks that a text can be a name, which appears in headers and on lines of the log.
pub(crate) fn name(text: &str) -> Result<(), &'static str> {
    match text {
        "" => Err("expected at least one character"),
        text if text.chars().any(char::is_control) => Err("expected no control characters"),
        text if text.len() > 200 => Err("expected at most 200 bytes"),
        _ => Ok(()),
    }
}

/// A table whose keys are names chosen by the operator, in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct ByName<T>(pub Vec<Item<T>>);

/// A named value.
#[derive(Clone, Debug)]
pub(crate) struct Item<T> {
    /// Its name.
    pub name: String,
    /// The location of the name.
    pub location: Location,
    /// The value. None if it was invalid, which was reported.
    pub value: Option<T>,
}

impl<T: Decode> Decode for ByName<T> {
    fn expected() -> String {
        "a table".to_owned()
    }

    fn keys(path: &str, keys: &mut Vec<(String, KeyInfo)>) {
        T::keys(&format!("{path}.*"), keys);
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        let mut named = Vec::new();
        for (key, node) in entries(node, location, problems)? {
            let path = join(&location.path, &key.text);
            if let Err(reason) = name(&key.text) {
                problems.error(key.position, &path, format_args!("is a name, {reason}"));
            }
            let location = Location { path: path.clone(), shown: node.value.to_string(), position: key.position };
            let node = TreeNode { position: key.position, value: node.value.clone() };
            let value = match field(&node, path, problems) {
                Field::Given(value) => Some(value.value),
                Field::Absent | Field::Invalid => None,
            };
            named.push(Item { name: key.text.clone(), location, value });
        }
        Some(ByName(named))
    }
}

impl<T> Field<List<T>> {
    /// The items; empty without a list.
    pub(crate) fn items(&self) -> &[Located<T>] {
        self.get().map_or(&[], |list| &list.value.items)
    }
}

impl<T> Field<ByName<T>> {
    /// The named values; empty without a table.
    pub(crate) fn named(&self) -> &[Item<T>] {
        self.get().map_or(&[], |named| &named.value.0)
    }
}
