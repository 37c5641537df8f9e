//! Texts, secrets, and switches.

use crate::config::document::node::{TreeNode, Value, WrittenNumber, WrittenText};
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::Decode;

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

/// A text that is never printed.
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
pub(crate) struct Switch(pub bool);

impl Decode for Switch {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Bool(value) => Some(Switch(*value)),
            // A variable expands to a text; only then is a text accepted.
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
