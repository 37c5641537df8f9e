//! Errors and warnings of a configuration, each with its location.

use std::fmt;
use std::path::{Path, PathBuf};

use super::node::Position;
use super::warning::WarningKind;
pub(crate) use crate::rules::nearest;

/// An error or a warning: `config/tollgate.toml:31: limiters.login.window is "0s", expected more than zero`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the file.
    pub file: String,
    /// The line, counted from one. None if the problem is of the whole file.
    pub line: Option<u32>,
    /// The column in that line, counted in characters from one.
    pub column: Option<u32>,
    /// The path inside the file, such as `limiters.login.window`. Empty if the problem is of the whole file, or of its
    /// syntax.
    pub path: String,
    /// The kind of a warning. None for an error.
    pub warning: Option<WarningKind>,
    /// The path, the value, what was expected, and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.text),
            None => write!(f, "{}: {}", self.file, self.text),
        }
    }
}

/// A sentence about a key that is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The name of the file.
    pub file: String,
    /// The line, counted from one. None if it is about the whole file.
    pub line: Option<u32>,
    /// The column in characters, counted from one. None if only the line is known.
    pub column: Option<u32>,
    /// The path of the key. Empty if it is about the whole file.
    pub path: String,
    /// The path, the value, and what it means.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: note: {}", self.file, self.text),
            None => write!(f, "{}: note: {}", self.file, self.text),
        }
    }
}

/// All errors of a configuration, in the order of its files and lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub(in crate::config) Vec<Problem>);

impl Errors {
    /// Iterates over the errors.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub(in crate::config) fn one(file: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (String::new(), text.into());
        Self(vec![Problem { file: file.into(), line: None, column: None, path, warning: None, text }])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Collects problems while a configuration is read.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    files: Vec<String>,
    errors: Vec<Report>,
    warnings: Vec<Report>,
    notes: Vec<Report>,
    /// The kinds of warnings that the configuration accepts.
    accepted: Vec<WarningKind>,
    /// Syntax errors. Further errors on their lines are dropped, and nothing is reported as missing.
    syntax_errors: Vec<Position>,
    /// Ranges of lines whose errors are dropped: the first line and the number of the last.
    ignored_lines: Vec<(Position, u32)>,
    /// The paths for which a misspelt key was probably meant. They are not reported as missing.
    misspelt: Vec<String>,
}

/// An error or a warning while a configuration is read.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    position: Position,
    path: String,
    warning: Option<WarningKind>,
    text: String,
}

/// The path, text and position of a value. Every error about the value begins with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Location {
    /// The path inside the configuration.
    pub path: String,
    /// The value as an error shows it.
    pub shown: String,
    /// The file and line.
    pub position: Position,
}

impl Problems {
    /// Collects the problems of these files.
    pub(crate) fn of(files: Vec<String>) -> Self {
        Self { files, ..Self::default() }
    }

    /// Whether the configuration has files.
    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Adds a file that the configuration names, and returns its number for positions.
    pub(crate) fn add_file(&mut self, name: String) -> u16 {
        self.files.push(name);
        u16::try_from(self.files.len() - 1).unwrap_or(u16::MAX)
    }

    /// The directory of the file of a position, where relative paths begin.
    pub(crate) fn directory(&self, position: Position) -> PathBuf {
        Path::new(self.file(position)).parent().unwrap_or(Path::new("")).to_owned()
    }

    /// Formats a position: `a.toml:3`.
    pub(crate) fn locate(&self, position: Position) -> String {
        format!("{}:{}", self.file(position), position.line)
    }

    /// Whether an error was reported.
    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Drops warnings of this kind.
    pub(crate) fn accept(&mut self, kind: WarningKind) {
        self.accepted.push(kind);
    }

    /// Reports an error about what is at `path`. The text begins with the path.
    pub(crate) fn error(&mut self, position: Position, path: &str, reason: impl fmt::Display) {
        self.error_near(position, path, format!("{path} {reason}"));
    }

    /// Reports an error about what is at `path`, or about the whole file without one. The text says which.
    pub(crate) fn error_near(&mut self, position: Position, path: &str, text: impl Into<String>) {
        self.errors.push(Report { position, path: path.to_owned(), warning: None, text: text.into() });
    }

    /// Reports an invalid value. The path and the value are put before `reason`.
    pub(crate) fn refuse(&mut self, location: &Location, reason: impl fmt::Display) {
        self.error(location.position, &location.path, format_args!("is {}, {reason}", location.shown));
    }

    /// Reports a warning about a value. The path and the value are put before `reason`.
    pub(crate) fn warn(&mut self, kind: WarningKind, location: &Location, reason: impl fmt::Display) {
        self.warn_of(kind, location, format_args!("is {}, {reason}", location.shown));
    }

    /// Reports a warning about what is at a location. The path is put before `reason`.
    pub(crate) fn warn_of(&mut self, kind: WarningKind, location: &Location, reason: impl fmt::Display) {
        let text = format!("{} {reason}", location.path);
        let (position, path) = (location.position, location.path.clone());
        self.warnings.push(Report { position, path, warning: Some(kind), text });
    }

    /// Reports a warning about the whole configuration.
    pub(crate) fn warn_of_all(&mut self, kind: WarningKind, text: impl Into<String>) {
        let (position, path) = (Position::default(), String::new());
        self.warnings.push(Report { position, path, warning: Some(kind), text: text.into() });
    }

    /// Notes what a key means. The path is put before `text`.
    pub(crate) fn note(&mut self, position: Position, path: &str, text: impl fmt::Display) {
        let text = if path.is_empty() { text.to_string() } else { format!("{path} {text}") };
        self.notes.push(Report { position, path: path.to_owned(), warning: None, text });
    }

    /// Takes the notes, in the order of the files.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.sort_by_key(|report| report.position);
        let notes = notes.into_iter().map(|report| self.problem(report));
        notes.map(|Problem { file, line, column, path, text, .. }| Note { file, line, column, path, text }).collect()
    }

    /// Reports a syntax error. Part of the file may be absent from the tree.
    pub(crate) fn syntax_error(&mut self, position: Position, text: impl Into<String>) {
        self.syntax_errors.push(position);
        self.error_near(position, "", text);
    }

    /// Drops all errors from line `first` to line `last`, which are consequences of an error before them.
    pub(crate) fn ignore_lines(&mut self, first: Position, last: u32) {
        self.ignored_lines.push((first, last));
    }

    /// Reports a missing key, unless a syntax error or a misspelt key may be the reason.
    pub(crate) fn missing(&mut self, position: Position, path: &str, text: impl fmt::Display) {
        let is_misspelt =
            |meant: &String| meant.strip_prefix(path).is_some_and(|rest| matches!(rest.get(..1), None | Some(".")));
        if !self.has_syntax_errors() && !self.misspelt.iter().any(is_misspelt) {
            self.error(position, path, text);
        }
    }

    /// Records the path that a misspelt key was probably meant for.
    pub(crate) fn record_misspelt(&mut self, path: String) {
        self.misspelt.push(path);
    }

    /// Whether a file has a syntax error, so that a name may be defined in a part that was not read.
    pub(crate) fn has_syntax_errors(&self) -> bool {
        !self.syntax_errors.is_empty()
    }

    /// Returns the warnings, or all errors if there are any.
    pub(crate) fn finish(mut self) -> Result<Vec<Problem>, Errors> {
        if self.errors.is_empty() {
            let mut warnings = std::mem::take(&mut self.warnings);
            warnings.retain(|report| !report.warning.is_some_and(|kind| self.accepted.contains(&kind)));
            return Ok(self.sorted(warnings));
        }
        let mut errors = std::mem::take(&mut self.errors);
        let syntax_errors = std::mem::take(&mut self.syntax_errors);
        let ignored_lines = std::mem::take(&mut self.ignored_lines);
        errors.retain(|Report { position, .. }| {
            !ignored_lines
                .iter()
                .any(|(first, last)| position.file == first.file && (first.line..=*last).contains(&position.line))
        });
        // A line with a syntax error keeps only its first error.
        let mut seen = Vec::new();
        errors.retain(|Report { position, .. }| {
            let line = position.file_and_line();
            !syntax_errors.iter().any(|error| error.file_and_line() == line)
                || !seen.contains(&line) && {
                    seen.push(line);
                    true
                }
        });
        Err(Errors(self.sorted(errors)))
    }

    fn sorted(&self, mut problems: Vec<Report>) -> Vec<Problem> {
        problems.sort_by_key(|report| report.position);
        problems.dedup_by(|a, b| a.position.file_and_line() == b.position.file_and_line() && a.text == b.text);
        problems.into_iter().map(|report| self.problem(report)).collect()
    }

    fn problem(&self, Report { position, path, warning, text }: Report) -> Problem {
        Problem {
            file: self.file(position).to_owned(),
            line: (position.line > 0).then_some(position.line),
            column: (position.column > 0).then_some(position.column),
            path,
            warning,
            text,
        }
    }

    fn file(&self, position: Position) -> &str {
        self.files.get(usize::from(position.file)).map_or("configuration", String::as_str)
    }
}

/// Returns the end of an error about an unknown name: the nearest name, or else all names if they are few.
pub(crate) fn remedy<'a>(written: &str, names: impl IntoIterator<Item = &'a str> + Clone, kind: &str) -> String {
    match nearest(written, names.clone()) {
        Some(name) => format!("; did you mean {name:?}?"),
        None => {
            let names: Vec<&str> = names.into_iter().collect();
            match names.len() {
                0 => format!("; there are no {kind}"),
                1..=40 => format!("; {kind}: {}", names.join(", ")),
                _ => String::new(),
            }
        }
    }
}
