//! What is wrong with a configuration: everything at once, each with its location.

use std::fmt;

use super::node::Position;

/// One thing that is wrong, or worth a warning: `config/tollgate.toml:31: limiters.login.window is "0s", expected
/// more than zero`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// The line, counted from one. None when the whole file is meant.
    pub line: Option<u32>,
    /// The path inside the file, the value, what was expected, and what to do.
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

/// Everything that is wrong with a configuration, in the order of its files and lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub(in crate::config) Vec<Problem>);

impl Errors {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    pub(in crate::config) fn one(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![Problem { file: file.into(), line: None, text: text.into() }])
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
pub struct Problems {
    files: Vec<String>,
    errors: Vec<(Position, String)>,
    warnings: Vec<(Position, String)>,
    /// Where a file could not be read as its format: nearby, and about what is absent, there is nothing to say.
    torn: Vec<Position>,
    /// Lines of which an error before them has told: from here to this line of the same file.
    lost: Vec<(Position, u32)>,
    /// Paths that a misspelt key was meant for: they are not missing as well.
    excused: Vec<String>,
}

/// Where a value stands and what it is called: the beginning of every error about it.
#[derive(Clone, Debug, Default)]
pub struct Location {
    /// The path inside the configuration.
    pub path: String,
    /// The value as an error shows it.
    pub shown: String,
    /// The file and line.
    pub position: Position,
}

impl Problems {
    /// Problems of these files.
    pub fn of(files: Vec<String>) -> Self {
        Self { files, ..Self::default() }
    }

    /// Whether any file is read.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// The name of the file and the line: `a.toml:3`.
    pub fn locate(&self, position: Position) -> String {
        format!("{}:{}", self.file(position), position.line)
    }

    /// Something that is wrong.
    pub fn error(&mut self, position: Position, text: impl Into<String>) {
        self.errors.push((position, text.into()));
    }

    /// A value that cannot be: the path and the value come before `reason`.
    pub fn refuse(&mut self, location: &Location, reason: impl fmt::Display) {
        self.error(location.position, format!("{} is {}, {reason}", location.path, location.shown));
    }

    /// A value that works and is worth a word.
    pub fn warn(&mut self, location: &Location, reason: impl fmt::Display) {
        self.note(location.position, format!("{} is {}, {reason}", location.path, location.shown));
    }

    /// Something that works and is worth a word.
    pub fn note(&mut self, position: Position, text: impl Into<String>) {
        self.warnings.push((position, text.into()));
    }

    /// A file that is not well formed here, so that part of it may be lost.
    pub fn tear(&mut self, position: Position, text: impl Into<String>) {
        self.torn.push(position);
        self.error(position, text);
    }

    /// Lines, to `last`, that an error before them makes unreadable: what seems wrong with them is not worth a word.
    pub fn lose(&mut self, first: Position, last: u32) {
        self.lost.push((first, last));
    }

    /// Something that is not there. Where part of a file was lost, or a key is misspelt, it may well have been.
    pub fn missing(&mut self, position: Position, path: &str, text: impl fmt::Display) {
        let excused =
            |excused: &String| excused.strip_prefix(path).is_some_and(|rest| matches!(rest.get(..1), None | Some(".")));
        if !self.is_torn() && !self.excused.iter().any(excused) {
            self.error(position, format!("{path} {text}"));
        }
    }

    /// A misspelt key was meant for this path.
    pub fn excuse(&mut self, path: String) {
        self.excused.push(path);
    }

    /// Whether part of a file was lost, so that a name may be defined all the same.
    pub fn is_torn(&self) -> bool {
        !self.torn.is_empty()
    }

    /// The warnings, or all errors.
    pub fn finish(mut self) -> Result<Vec<Problem>, Errors> {
        if self.errors.is_empty() {
            let warnings = std::mem::take(&mut self.warnings);
            return Ok(self.sorted(warnings));
        }
        let mut errors = std::mem::take(&mut self.errors);
        let torn = std::mem::take(&mut self.torn);
        // What a torn line made of itself is not worth a second error.
        let mut seen = Vec::new();
        let lost = std::mem::take(&mut self.lost);
        errors.retain(|(position, _)| {
            !lost
                .iter()
                .any(|(first, last)| position.file == first.file && (first.line..=*last).contains(&position.line))
        });
        errors.retain(|(position, _)| {
            !torn.contains(position)
                || !seen.contains(position) && {
                    seen.push(*position);
                    true
                }
        });
        Err(Errors(self.sorted(errors)))
    }

    fn sorted(&self, mut found: Vec<(Position, String)>) -> Vec<Problem> {
        found.sort_by_key(|(position, _)| *position);
        found.dedup();
        found
            .into_iter()
            .map(|(position, text)| Problem {
                file: self.file(position).to_owned(),
                line: (position.line > 0).then_some(position.line),
                text,
            })
            .collect()
    }

    fn file(&self, position: Position) -> &str {
        self.files.get(usize::from(position.file)).map_or("configuration", String::as_str)
    }
}

/// The name nearest to what was written, if any is near enough to be meant.
pub fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let near = |name: &&str| strsim::damerau_levenshtein(&written, &name.to_lowercase());
    let nearest = names.into_iter().min_by_key(near)?;
    let allowed = (nearest.chars().count() / 3).clamp(1, 4);
    (near(&nearest) <= allowed).then_some(nearest)
}

/// The end of an error about an unknown name: the nearest one, or else all of them when they are few.
pub fn remedy<'a>(written: &str, names: impl IntoIterator<Item = &'a str> + Clone, kind: &str) -> String {
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
