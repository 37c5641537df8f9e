//! `tollgate check`: reports all errors and warnings of configurations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tollgate::config::{Config, Note, Problem};
use tollgate::rules::Rules;

use super::load::report;
use super::table::print;

/// What `check` does besides reporting.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Print the configuration as it takes effect: defaults written out, variables expanded, secrets masked.
    #[arg(long)]
    print: bool,
    /// Treat warnings as errors.
    #[arg(long)]
    strict: bool,
    /// Print errors and warnings to standard output as JSON, one object a line, and nothing else.
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

/// Checks each path as a separate configuration.
pub(super) fn check(paths: &[PathBuf], args: CheckArgs) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (index, path) in paths.iter().enumerate() {
        let checked = CheckResult::of(path, args);
        for problem in &checked.problems {
            let error = problem.warning.is_none() || args.strict;
            if error {
                code = ExitCode::FAILURE;
            }
            match args.json {
                true => print(&Finding::of_problem(problem, error).line()),
                false => report(problem, error),
            }
        }
        // The effective configuration shows what each key became.
        for note in checked.notes.iter().filter(|_| !args.print) {
            match args.json {
                true => print(&Finding::of_note(note).line()),
                false => print(&format!("{note}\n")),
            }
        }
        match &checked.good {
            Some(effective) if args.print => {
                let separator = if index > 0 { "---\n" } else { "" };
                print(&format!("{separator}# {} as it takes effect\n{effective}", path.display()));
            }
            Some(summary) if !args.json => print(&format!("{}: good: {summary}\n", path.display())),
            Some(_) | None => {}
        }
    }
    code
}

/// One configuration.
struct CheckResult {
    /// Its errors and warnings.
    problems: Vec<Problem>,
    /// What became of the keys of a file of rate-sync.
    notes: Vec<Note>,
    /// What to print if it is good.
    good: Option<String>,
}

impl CheckResult {
    fn of(path: &Path, args: CheckArgs) -> Self {
        let config = match Config::load(Some(path)) {
            Ok(config) => config,
            Err(errors) => {
                return Self { problems: errors.iter().cloned().collect(), notes: Vec::new(), good: None };
            }
        };
        let (mut problems, notes) = (config.warnings.clone(), config.notes.clone());
        let mut good = Some(if args.print { config.effective() } else { summary(&config) });
        // Loading has reported all of these errors with their lines, so this should find none.
        if let Err(errors) = Rules::compile(config.book) {
            let file = path.display().to_string();
            let error = |text: String| Problem {
                file: file.clone(),
                line: None,
                column: None,
                path: String::new(),
                warning: None,
                text,
            };
            problems.extend(errors.iter().map(|found| error(found.to_string())));
        }
        if problems.iter().any(|problem| problem.warning.is_none() || args.strict) {
            good = None;
        }
        Self { problems, notes, good }
    }
}

/// An error, a warning or a note for editors and CI. Its keys are stable; others may be added.
#[derive(Serialize)]
struct Finding<'a> {
    /// The name of the file, as on the command line or below that directory.
    file: &'a str,
    /// The line, from one. None if it is about the whole file.
    line: Option<u32>,
    /// The column in characters, from one. None if only the line is known.
    column: Option<u32>,
    /// The path of the key, `rules[0].match.path`. Empty if it is about the whole file or its syntax.
    path: &'a str,
    /// `error`, `warning` or `note`.
    severity: &'static str,
    /// The kind of a warning, also where `--strict` makes it an error. None for other errors.
    warning: Option<&'static str>,
    /// The sentence that `check` prints otherwise.
    text: &'a str,
}

impl<'a> Finding<'a> {
    fn of_problem(problem: &'a Problem, error: bool) -> Self {
        let Problem { file, line, column, path, warning, text } = problem;
        let severity = if error { "error" } else { "warning" };
        let warning = warning.map(tollgate::config::WarningKind::name);
        Self { file, line: *line, column: *column, path, severity, warning, text }
    }

    fn of_note(note: &'a Note) -> Self {
        let Note { file, line, column, path, text } = note;
        Self { file, line: *line, column: *column, path, severity: "note", warning: None, text }
    }

    /// A line of JSON.
    fn line(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are always JSON") + "\n"
    }
}

fn summary(config: &Config) -> String {
    let count = |number: usize, noun: &str| match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    };
    let parts = [
        count(config.book.rules.len(), "rule"),
        count(config.book.limiters.len(), "limiter"),
        count(config.stores.len(), "store"),
    ];
    let data = [(config.lists.len(), "list"), (config.tables.len(), "table")];
    let data = data.into_iter().filter(|(number, _)| *number > 0).map(|(number, noun)| count(number, noun));
    parts.into_iter().chain(data).collect::<Vec<_>>().join(", ")
}
