//! YAML as a tree of places, from the events of a parser that knows them.
//!
//! Scalars are read by YAML 1.2's core schema: `no` is a text, `017` is seventeen. A key given twice is an error,
//! aliases are copied within a bound, and a tag is refused, for no setting takes one.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::node::{Key, Position, TreeNode, Value, WrittenNumber, WrittenText, join};
use super::problem::Problems;

/// How many values a file may hold, those copied by aliases counted each time.
const MAX_VALUES: usize = 500_000;

/// How deep lists and tables may stand inside each other.
const MAX_DEPTH: usize = 64;

/// The tree of a file; what could be read of it where it is not well formed.
pub fn parse(text: &str, file: u16, problems: &mut Problems) -> TreeNode {
    let mut tree = Tree { file, open: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0, documents: 0 };
    for event in Parser::new_from_str(text) {
        let outcome = match event {
            Ok((event, span)) => tree.take(event, span, problems),
            Err(error) => {
                let line = u32::try_from(error.marker().line()).unwrap_or(u32::MAX);
                problems.tear(Position { file, line }, format!("not valid YAML: {}", error.info()));
                Err(())
            }
        };
        if outcome.is_err() {
            break;
        }
    }
    while !tree.open.is_empty() {
        tree.close(problems);
    }
    tree.root.unwrap_or(TreeNode { value: Value::Table(Vec::new()), position: Position { file, line: 1 } })
}

struct Tree {
    file: u16,
    open: Vec<Open>,
    root: Option<TreeNode>,
    anchors: HashMap<usize, (TreeNode, usize)>,
    nodes: usize,
    documents: usize,
}

/// A list or table that is not closed yet.
struct Open {
    value: Value,
    position: Position,
    anchor: usize,
    /// The path inside the file, for errors.
    path: String,
    /// The key whose value comes next.
    key: Option<Key>,
    /// The line of each key so far.
    keys: HashMap<String, u32>,
    /// How many values the file had before.
    nodes: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, span: Span, problems: &mut Problems) -> Result<(), ()> {
        let position = Position { file: self.file, line: u32::try_from(span.start.line()).unwrap_or(u32::MAX) };
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    problems.tear(position, "a second document begins, expected one; use a directory of files");
                    return Err(());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = match tag {
                    Some(tag) => Value::Other(format!("tagged {tag}")),
                    None => scalar(&text, style),
                };
                self.grow(1, position, problems)?;
                let node = TreeNode { value, position };
                if anchor > 0 {
                    self.anchors.insert(anchor, (node.clone(), 1));
                }
                self.add(node, problems);
            }
            Event::SequenceStart(anchor, _) => self.open(Value::List(Vec::new()), anchor, position, problems)?,
            Event::MappingStart(anchor, _) => self.open(Value::Table(Vec::new()), anchor, position, problems)?,
            Event::SequenceEnd | Event::MappingEnd => self.close(problems),
            Event::Alias(anchor) => {
                let Some((node, nodes)) = self.anchors.get(&anchor).cloned() else {
                    problems.tear(position, "an alias stands inside what it names");
                    return Err(());
                };
                self.grow(nodes, position, problems)?;
                self.add(TreeNode { position, ..node }, problems);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn grow(&mut self, nodes: usize, position: Position, problems: &mut Problems) -> Result<(), ()> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_VALUES {
            problems.tear(position, format!("the file holds more than {MAX_VALUES} values, aliases counted each time"));
            return Err(());
        }
        Ok(())
    }

    fn open(&mut self, value: Value, anchor: usize, position: Position, problems: &mut Problems) -> Result<(), ()> {
        let nodes = self.nodes;
        self.grow(1, position, problems)?;
        if self.open.len() == MAX_DEPTH {
            problems.tear(position, format!("lists and tables stand more than {MAX_DEPTH} deep"));
            return Err(());
        }
        let path = match self.open.last() {
            None => String::new(),
            Some(Open { path, key: Some(key), .. }) => join(path, &key.text),
            Some(Open { path, value: Value::List(items), .. }) => format!("{path}[{}]", items.len()),
            Some(Open { path, .. }) => path.clone(),
        };
        self.open.push(Open { value, position, anchor, path, key: None, keys: HashMap::new(), nodes });
        Ok(())
    }

    fn close(&mut self, problems: &mut Problems) {
        if let Some(Open { value, position, anchor, nodes, .. }) = self.open.pop() {
            let node = TreeNode { value, position };
            if anchor > 0 {
                self.anchors.insert(anchor, (node.clone(), self.nodes - nodes));
            }
            self.add(node, problems);
        }
    }

    fn add(&mut self, node: TreeNode, problems: &mut Problems) {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match (&mut open.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Table(entries), Some(key)) => {
                let path = join(&open.path, &key.text);
                match open.keys.get(&key.text) {
                    Some(first) => {
                        problems.error(key.position, format!("{path} is given twice; the first is at line {first}"));
                    }
                    None => {
                        open.keys.insert(key.text.clone(), key.position.line);
                        entries.push((key, node));
                    }
                }
            }
            (_, _) => match node.value {
                Value::Text(WrittenText { text, .. }) => open.key = Some(Key { text, position: node.position }),
                Value::Number(WrittenNumber { written: text, .. }) => {
                    open.key = Some(Key { text, position: node.position })
                }
                Value::Bool(value) => open.key = Some(Key { text: value.to_string(), position: node.position }),
                other => {
                    problems.error(node.position, format!("a key is {other}, expected a text"));
                    open.key = Some(Key { text: other.to_string(), position: node.position });
                }
            },
        }
    }
}

/// A scalar by the core schema (YAML 1.2.2, section 10.3.2).
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style == ScalarStyle::Plain {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
            "true" | "True" | "TRUE" => return Value::Bool(true),
            "false" | "False" | "FALSE" => return Value::Bool(false),
            number if !number.contains('_') => {
                if let Some(number) = WrittenNumber::parse(number) {
                    return Value::Number(number);
                }
            }
            _ => {}
        }
    }
    Value::Text(WrittenText { text: text.to_owned(), written: None })
}
