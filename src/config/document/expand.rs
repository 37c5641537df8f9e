//! Expands `${VAR}`, `${VAR:-default}` and `${file:/run/secrets/x}` in texts.
//!
//! ```text
//!   ${VAR}            the variable; an error if it is unset
//!   ${VAR:-default}   the default if the variable is unset or empty; the default may be empty and is not expanded
//!   ${file:path}      the content of a file, without the line break at its end; a relative path starts at the
//!                     directory of the configuration file
//!   $VAR              the variable if it is set, else unchanged, as in rate-sync
//!   $$                a dollar sign
//! ```

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::node::{TreeNode, Value, WrittenText, join};
use super::problem::Problems;

/// The largest file that `${file:...}` reads, in bytes.
const MAX_INCLUDED_FILE_BYTES: u64 = 64 * 1024;

/// Looks up an environment variable.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands the texts and keys of a tree. The result is always a text; the schema parses numbers.
///
/// Errors never quote the text, which may be part of a secret.
pub(crate) fn expand(
    node: &mut TreeNode,
    directory: &Path,
    variables: Variables<'_>,
    disk: &Disk,
    problems: &mut Problems,
) {
    Expansion { directory, variables, disk, problems }.expand_node(node, "");
}

struct Expansion<'a> {
    directory: &'a Path,
    variables: Variables<'a>,
    disk: &'a Disk,
    problems: &'a mut Problems,
}

impl Expansion<'_> {
    fn expand_node(&mut self, node: &mut TreeNode, path: &str) {
        let position = node.position;
        match &mut node.value {
            Value::Text(WrittenText { text, written }) if text.contains('$') => match self.expand_text(text) {
                Ok(expanded) => {
                    if expanded != *text {
                        *written = Some(std::mem::replace(text, expanded));
                    }
                }
                Err(reason) => {
                    self.problems.error(position, path, reason);
                    node.value = Value::Unexpanded;
                }
            },
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.expand_node(item, &format!("{path}[{index}]"));
                }
            }
            Value::Table(entries) => {
                for (key, value) in entries.iter_mut() {
                    if key.text.contains("${") {
                        match self.expand_text(&key.text) {
                            Ok(expanded) => key.text = expanded,
                            Err(reason) => {
                                let table = if path.is_empty() { "the file" } else { path };
                                self.problems.error_near(key.position, path, format!("a key of {table} {reason}"));
                            }
                        }
                    }
                    self.expand_node(value, &join(path, &key.text));
                }
            }
            _ => {}
        }
    }

    /// Expands a text. An error continues the sentence that begins with the path of the key.
    fn expand_text(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(index) = rest.find('$') {
            expanded.push_str(&rest[..index]);
            rest = &rest[index + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                expanded.push('$');
                rest = after;
            } else if let Some(braced) = rest.strip_prefix('{') {
                let Some(end) = braced.find('}') else {
                    return Err("has a \"${\" that is not closed; write $$ for a dollar sign".to_owned());
                };
                expanded.push_str(&self.expand_braced(&braced[..end])?);
                rest = &braced[end + 1..];
            } else {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                match (self.variables)(&rest[..end]).filter(|_| is_name(&rest[..end])) {
                    Some(value) => {
                        expanded.push_str(&value);
                        rest = &rest[end..];
                    }
                    None => expanded.push('$'),
                }
            }
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn expand_braced(&self, inside: &str) -> Result<String, String> {
        if let Some(path) = inside.strip_prefix("file:") {
            return self.read_file(path);
        }
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(
                "has a \"${\" without a variable's name; write ${NAME}, ${NAME:-default} or ${file:path}".to_owned()
            );
        }
        let value = (self.variables)(name);
        match (value, default) {
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
            (None, None) => {
                Err(format!("needs the variable {name}, which is not set; set it, or write ${{{name}:-default}}"))
            }
        }
    }

    fn read_file(&self, path: &str) -> Result<String, String> {
        let full = self.directory.join(path);
        let unreadable = |error: io::Error| format!("needs the file {path}, which cannot be read: {error}");
        let bytes = self.disk.read(&full, MAX_INCLUDED_FILE_BYTES).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_INCLUDED_FILE_BYTES {
            return Err(format!("needs the file {path}, which is larger than 64 KiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable(io::Error::other("not UTF-8")))?;
        Ok(text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_file_is_refused() {
        let mut problems = Problems::default();
        let expansion = Expansion {
            directory: Path::new("."),
            variables: &|_| None,
            disk: &Disk::default(),
            problems: &mut problems,
        };
        let refused = expansion.expand_text("${file:/dev/zero}").expect_err("it never ends");
        assert_eq!(refused, "needs the file /dev/zero, which is larger than 64 KiB");
    }
}
