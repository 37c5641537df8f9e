//! TOML as a tree of places. All syntax errors of a file are told, not just the first.

use std::ops::Range;

use ::toml::Spanned;
use ::toml::de::{DeString, DeTable, DeValue};

use super::node::{Key, Position, TreeNode, Value, WrittenNumber, WrittenText};
use super::problem::Problems;

/// The tree of a file; what could be read of it where it is not well formed.
pub fn parse(text: &str, file: u16, problems: &mut Problems) -> TreeNode {
    let toml = TomlText { text, file, lines: lines(text) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let root = TreeNode { value: toml.table(table.get_ref()), position: Position { file, line: 1 } };
    let mut errors: Vec<_> =
        errors.iter().map(|error| (error.span().unwrap_or(text.len()..text.len()), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    // The line of the last syntax error.
    let mut last = None;
    for (span, message) in errors {
        let position = toml.position(&span);
        if message == "duplicate key" {
            let key = toml.text.get(span.clone()).unwrap_or("a key");
            let first = toml.first(&root, key, span.start);
            let (path, first) = first.unwrap_or_else(|| (key.to_owned(), position));
            problems.error(position, format!("{path} is given twice; the first is at line {}", first.line));
        } else if toml.opens_table(position.line) {
            // Nothing is wrong with this line: it was read as part of what stands before it, as is all that follows.
            problems.tear(position, "not valid TOML: a [ or { above is not closed where this table begins");
            problems.lose(Position { line: position.line + 1, ..position }, u32::MAX);
            break;
        } else if last.is_some_and(|last| toml.follows(last, position.line)) {
            problems.lose(position, position.line);
            last = Some(position.line);
        } else {
            problems.tear(position, format!("not valid TOML: {message}"));
            last = Some(position.line);
        }
    }
    root
}

struct TomlText<'a> {
    text: &'a str,
    file: u16,
    /// Where each line begins.
    lines: Vec<usize>,
}

fn lines(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect()
}

impl TomlText<'_> {
    fn position(&self, span: &Range<usize>) -> Position {
        let line = self.lines.partition_point(|&begin| begin <= span.start);
        Position { file: self.file, line: u32::try_from(line).unwrap_or(u32::MAX) }
    }

    fn line(&self, line: u32) -> &str {
        let index = (line as usize).saturating_sub(1);
        self.lines.get(index).and_then(|&begin| self.text[begin..].lines().next()).unwrap_or_default()
    }

    /// Whether this line is the header of a table as it should be.
    fn opens_table(&self, line: u32) -> bool {
        let text = self.line(line);
        let text = text.split_once('#').map_or(text, |(text, _)| text).trim();
        let path = match text.strip_prefix("[[") {
            Some(rest) => rest.strip_suffix("]]"),
            None => text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')),
        };
        let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        path.is_some_and(|path| path.split('.').all(|part| !part.is_empty() && part.chars().all(bare)))
    }

    /// Whether this line goes on with a value, and nothing begins between it and an error before it.
    fn follows(&self, error: u32, line: u32) -> bool {
        let goes_on = |line: u32| self.line(line).trim_start().starts_with(['{', '}', ']', ',', '#']);
        let empty = |line: u32| self.line(line).trim().is_empty();
        line > error && goes_on(line) && (error + 1..line).all(|between| goes_on(between) || empty(between))
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

    /// Where a key that is given twice was given first: under the header it stands under, or else the last one of
    /// that name before it.
    fn first(&self, root: &TreeNode, key: &str, index: usize) -> Option<(String, Position)> {
        let name = key.trim_matches(['"', '\'']);
        let line = self.position(&(index..index)).line;
        let mut found = Vec::new();
        collect(root, "", &mut |path, key| {
            if key.text == name && key.position.line <= line {
                found.push((path.to_owned(), key.position));
            }
        });
        let above: Vec<&str> = self.text.lines().take(line as usize).collect();
        let (own, before) = above.split_last()?;
        if let Some(path) = header(own) {
            let first = before.iter().position(|line| header(line) == Some(path));
            let position =
                first.map(|index| Position { file: self.file, line: u32::try_from(index + 1).unwrap_or(u32::MAX) });
            return Some((path.to_owned(), position?));
        }
        let table = before.iter().rev().find_map(|line| header(line));
        let expected = table.map_or(name.to_owned(), |table| format!("{table}.{name}"));
        let exact = found.iter().position(|(path, _)| *path == expected);
        let index = exact.or_else(|| found.len().checked_sub(1))?;
        Some(found.swap_remove(index))
    }
}

/// The path in a line that opens a table.
fn header(line: &str) -> Option<&str> {
    let (path, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Some(path.trim_start_matches('[').trim())
}

fn collect(node: &TreeNode, path: &str, each: &mut impl FnMut(&str, &Key)) {
    match &node.value {
        Value::Table(entries) => {
            for (key, value) in entries {
                let path = super::node::join(path, &key.text);
                each(&path, key);
                collect(value, &path, each);
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, &format!("{path}[{index}]"), each);
            }
        }
        _ => {}
    }
}
