//! `${VAR}`, `${VAR:-default}` and `${file:/run/secrets/x}` inside texts.
//!
//! ```text
//!   ${VAR}            the variable; unset is an error
//!   ${VAR:-default}   the default when it is unset or empty; the default may be empty and is taken as it stands
//!   ${file:path}      what the file holds, without the line break at its end; a relative path starts at the
//!                     configuration's own directory
//!   $VAR              as rate-sync has it: the variable where it is set, else the text as it stands
//!   $$                a dollar sign
//! ```

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::node::{TreeNode, Value, WrittenText, join};
use super::problem::Problems;

/// The largest file that `${file:...}` reads, in bytes.
const MAX_INCLUDED_FILE_BYTES: u64 = 64 * 1024;

/// Looks a variable up.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands the texts and keys of a tree. Numbers stay texts until the schema wants a number.
///
/// What stands around a variable may be half a secret, so errors never quote it.
pub fn expand(node: &mut TreeNode, directory: &Path, variables: Variables<'_>, disk: &Disk, problems: &mut Problems) {
    Expansion { directory, variables, disk, problems }.node(node, "");
}

struct Expansion<'a> {
    directory: &'a Path,
    variables: Variables<'a>,
    disk: &'a Disk,
    problems: &'a mut Problems,
}

impl Expansion<'_> {
    fn node(&mut self, node: &mut TreeNode, path: &str) {
        let position = node.position;
        match &mut node.value {
            Value::Text(WrittenText { text, written }) if text.contains('$') => match self.text(text) {
                Ok(expanded) => {
                    if expanded != *text {
                        *written = Some(std::mem::replace(text, expanded));
                    }
                }
                Err(reason) => {
                    self.problems.error(position, format!("{path} {reason}"));
                    node.value = Value::Lost;
                }
            },
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &format!("{path}[{index}]"));
                }
            }
            Value::Table(entries) => {
                for (key, value) in entries.iter_mut() {
                    if key.text.contains("${") {
                        match self.text(&key.text) {
                            Ok(expanded) => key.text = expanded,
                            Err(reason) => {
                                let table = if path.is_empty() { "the file" } else { path };
                                self.problems.error(key.position, format!("a key of {table} {reason}"));
                            }
                        }
                    }
                    self.node(value, &join(path, &key.text));
                }
            }
            _ => {}
        }
    }

    /// The text expanded, or the end of a sentence about it.
    fn text(&self, text: &str) -> Result<String, String> {
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
                expanded.push_str(&self.braced(&braced[..end])?);
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

    fn braced(&self, inside: &str) -> Result<String, String> {
        if let Some(path) = inside.strip_prefix("file:") {
            return self.file(path);
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

    fn file(&self, path: &str) -> Result<String, String> {
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
    fn a_file_that_never_ends_is_refused() {
        let mut problems = Problems::default();
        let expansion = Expansion {
            directory: Path::new("."),
            variables: &|_| None,
            disk: &Disk::default(),
            problems: &mut problems,
        };
        let refused = expansion.text("${file:/dev/zero}").expect_err("it never ends");
        assert_eq!(refused, "needs the file /dev/zero, which is larger than 64 KiB");
    }
}
