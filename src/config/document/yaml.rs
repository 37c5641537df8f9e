//! Parses YAML into a tree with line numbers.
//!
//! Scalars follow the core schema of YAML 1.2: `no` is a text, `017` is seventeen. Duplicate keys are errors, aliases
//! are copied up to a bound, and tagged values are refused, because no setting has one.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::node::{Key, Position, TreeNode, Value, WrittenNumber, WrittenText, join};
use super::problem::Problems;

/// The maximum number of values in a file. Values that an alias copies count each time.
const MAX_VALUES: usize = 500_000;

/// The maximum depth of nested lists and tables.
const MAX_DEPTH: usize = 64;

/// Parses a file. After a syntax error, the tree has only what comes before it.
pub(crate) fn parse(text: &str, file: u16, problems: &mut Problems) -> TreeNode {
    let mut tree = TreeBuilder { file, open: Vec::new(), root: None, anchors: HashMap::new(), values: 0, documents: 0 };
    for event in Parser::new_from_str(text) {
        let outcome = match event {
            Ok((event, span)) => tree.handle_event(event, span, problems),
            Err(error) => {
                problems.syntax_error(position(file, error.marker()), format!("not valid YAML: {}", error.info()));
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
    tree.root.unwrap_or(TreeNode { value: Value::Table(Vec::new()), position: Position::start(file) })
}

/// The place of a marker.
fn position(file: u16, marker: &Marker) -> Position {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Position { file, line: number(marker.line()), column: number(marker.col() + 1) }
}

struct TreeBuilder {
    file: u16,
    open: Vec<OpenCollection>,
    root: Option<TreeNode>,
    /// The value of each anchor, with the number of values in it.
    anchors: HashMap<usize, (TreeNode, usize)>,
    /// The number of values so far.
    values: usize,
    documents: usize,
}

/// A list or table whose end is not reached yet.
struct OpenCollection {
    value: Value,
    position: Position,
    anchor: usize,
    /// The path inside the file, for errors.
    path: String,
    /// The key whose value comes next.
    key: Option<Key>,
    /// The line of each key so far.
    keys: HashMap<String, u32>,
    /// The number of values of the file before this one.
    values_before: usize,
}

impl TreeBuilder {
    fn handle_event(&mut self, event: Event<'_>, span: Span, problems: &mut Problems) -> Result<(), ()> {
        let position = position(self.file, &span.start);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    problems.syntax_error(position, "a second document begins, expected one; use a directory of files");
                    return Err(());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = match tag {
                    Some(tag) => Value::Other(format!("tagged {tag}")),
                    None => scalar(&text, style),
                };
                self.count_values(1, position, problems)?;
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
                let Some((node, values)) = self.anchors.get(&anchor).cloned() else {
                    problems.syntax_error(position, "an alias refers to a value that contains it");
                    return Err(());
                };
                self.count_values(values, position, problems)?;
                self.add(TreeNode { position, ..node }, problems);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// Adds to the number of values, and reports if they are too many.
    fn count_values(&mut self, added: usize, position: Position, problems: &mut Problems) -> Result<(), ()> {
        self.values = self.values.saturating_add(added);
        if self.values > MAX_VALUES {
            problems.syntax_error(
                position,
                format!("the file has more than {MAX_VALUES} values, including copies by aliases"),
            );
            return Err(());
        }
        Ok(())
    }

    fn open(&mut self, value: Value, anchor: usize, position: Position, problems: &mut Problems) -> Result<(), ()> {
        let values_before = self.values;
        self.count_values(1, position, problems)?;
        if self.open.len() == MAX_DEPTH {
            problems.syntax_error(position, format!("lists and tables are nested more than {MAX_DEPTH} deep"));
            return Err(());
        }
        let path = match self.open.last() {
            None => String::new(),
            Some(OpenCollection { path, key: Some(key), .. }) => join(path, &key.text),
            Some(OpenCollection { path, value: Value::List(items), .. }) => format!("{path}[{}]", items.len()),
            Some(OpenCollection { path, .. }) => path.clone(),
        };
        self.open.push(OpenCollection {
            value,
            position,
            anchor,
            path,
            key: None,
            keys: HashMap::new(),
            values_before,
        });
        Ok(())
    }

    fn close(&mut self, problems: &mut Problems) {
        if let Some(OpenCollection { value, position, anchor, values_before, .. }) = self.open.pop() {
            let node = TreeNode { value, position };
            if anchor > 0 {
                self.anchors.insert(anchor, (node.clone(), self.values - values_before));
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
                        problems.error(
                            key.position,
                            &path,
                            format_args!("is given twice; the first is at line {first}"),
                        );
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
                    open.key = Some(Key { text, position: node.position });
                }
                Value::Bool(value) => open.key = Some(Key { text: value.to_string(), position: node.position }),
                other => {
                    problems.error_near(node.position, &open.path, format!("a key is {other}, expected a text"));
                    open.key = Some(Key { text: other.to_string(), position: node.position });
                }
            },
        }
    }
}

/// Parses a scalar by the core schema (YAML 1.2.2, section 10.3.2).
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
