//! Parses TOML. Reports all syntax errors of a file, not only the first.

use std::ops::Range;

use ::toml::Spanned;
use ::toml::de::{DeString, DeTable, DeValue};

use super::node::{Key, Position, TreeNode, Value, WrittenNumber, WrittenText};
use super::problem::Problems;

/// Parses a file. Parts with syntax errors are absent from the tree.
pub(crate) fn parse(text: &str, file: u16, problems: &mut Problems) -> TreeNode {
    let toml = TomlText { text, file, lines: lines(text) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let root = TreeNode { value: toml.table(table.get_ref()), position: Position::start(file) };
    let mut errors: Vec<_> =
        errors.iter().map(|error| (error.span().unwrap_or(text.len()..text.len()), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    // The line of the last syntax error.
    let mut last = None;
    for (span, message) in errors {
        let position = toml.position(&span);
        if message == "duplicate key" {
            let key = toml.text.get(span.clone()).unwrap_or("a key");
            let first = toml.first_definition(&root, key, span.start);
            let (path, first) = first.unwrap_or_else(|| (key.to_owned(), position));
            problems.error(position, &path, format_args!("is given twice; the first is at line {}", first.line));
        } else if toml.is_table_header(position.line) {
            // This line is correct, but the parser took it and all that follows as part of an unclosed value.
            problems.syntax_error(position, "not valid TOML: a [ or { above is not closed where this table begins");
            problems.ignore_lines(Position { line: position.line + 1, ..position }, u32::MAX);
            break;
        } else if last.is_some_and(|last| toml.continues_value(last, position.line)) {
            problems.ignore_lines(position, position.line);
            last = Some(position.line);
        } else {
            problems.syntax_error(position, format!("not valid TOML: {message}"));
            last = Some(position.line);
        }
    }
    root
}

struct TomlText<'a> {
    text: &'a str,
    file: u16,
    /// The offset of each line.
    lines: Vec<usize>,
}

fn lines(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect()
}

impl TomlText<'_> {
    fn position(&self, span: &Range<usize>) -> Position {
        let line = self.lines.partition_point(|&begin| begin <= span.start);
        let begin = line.checked_sub(1).map_or(0, |index| self.lines[index]);
        let column = self.text.get(begin..span.start).map_or(0, |before| before.chars().count() + 1);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Position { file: self.file, line: number(line), column: number(column) }
    }

    fn line(&self, line: u32) -> &str {
        let index = (line as usize).saturating_sub(1);
        self.lines.get(index).and_then(|&begin| self.text[begin..].lines().next()).unwrap_or_default()
    }

    /// Whether this line is a valid header of a table.
    fn is_table_header(&self, line: u32) -> bool {
        let text = self.line(line);
        let text = text.split_once('#').map_or(text, |(text, _)| text).trim();
        let path = match text.strip_prefix("[[") {
            Some(rest) => rest.strip_suffix("]]"),
            None => text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')),
        };
        let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        path.is_some_and(|path| path.split('.').all(|part| !part.is_empty() && part.chars().all(bare)))
    }

    /// Whether this line and all lines since the one with an error continue a value.
    fn continues_value(&self, error: u32, line: u32) -> bool {
        let continues = |line: u32| self.line(line).trim_start().starts_with(['{', '}', ']', ',', '#']);
        let empty = |line: u32| self.line(line).trim().is_empty();
        line > error && continues(line) && (error + 1..line).all(|between| continues(between) || empty(between))
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> TreeNode {
        let position = self.position(&value.span());
        let written = || self.text.get(value.span()).unwrap_or_default().to_owned();
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(WrittenText { text: text.to_string(), written: None }),
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Integer(_) | DeValue::Float(_) => {
                WrittenNumber::parse(&written()).map_or_else(|| Value::Other(written()), Value::Number)
            }
            DeValue::Datetime(_) => Value::Other(written()),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => self.table(table),
        };
        TreeNode { value, position }
    }

    fn table(&self, table: &DeTable<'_>) -> Value {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let key =
            |key: &Spanned<DeString<'_>>| Key { text: key.get_ref().to_string(), position: self.position(&key.span()) };
        Value::Table(entries.into_iter().map(|(name, value)| (key(name), self.node(value))).collect())
    }

    /// Returns the path and position of the first definition of a duplicate key: the one under the same header, or else
    /// the last key of that name before it.
    fn first_definition(&self, root: &TreeNode, key: &str, index: usize) -> Option<(String, Position)> {
        let name = key.trim_matches(['"', '\'']);
        let line = self.position(&(index..index)).line;
        let mut found = Vec::new();
        visit_keys(root, "", &mut |path, key| {
            if key.text == name && key.position.line <= line {
                found.push((path.to_owned(), key.position));
            }
        });
        let above: Vec<&str> = self.text.lines().take(line as usize).collect();
        let (own, before) = above.split_last()?;
        if let Some(path) = header_path(own) {
            let first = before.iter().position(|line| header_path(line) == Some(path));
            let position = first.map(|index| Position {
                line: u32::try_from(index + 1).unwrap_or(u32::MAX),
                ..Position::start(self.file)
            });
            return Some((path.to_owned(), position?));
        }
        let table = before.iter().rev().find_map(|line| header_path(line));
        let expected = table.map_or(name.to_owned(), |table| format!("{table}.{name}"));
        let exact = found.iter().position(|(path, _)| *path == expected);
        let index = exact.or_else(|| found.len().checked_sub(1))?;
        Some(found.swap_remove(index))
    }
}

/// Returns the path in the header of a table.
fn header_path(line: &str) -> Option<&str> {
    let (path, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Some(path.trim_start_matches('[').trim())
}

fn visit_keys(node: &TreeNode, path: &str, each: &mut impl FnMut(&str, &Key)) {
    match &node.value {
        Value::Table(entries) => {
            for (key, value) in entries {
                let path = super::node::join(path, &key.text);
                each(&path, key);
                visit_keys(value, &path, each);
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                visit_keys(item, &format!("{path}[{index}]"), each);
            }
        }
        _ => {}
    }
}
