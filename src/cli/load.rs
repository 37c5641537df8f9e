//! Loads configurations for commands, and prints their errors and warnings.

use std::path::Path;
use std::process::ExitCode;

use tollgate::config::{CONFIG_VARIABLE, Config, Errors, Problem, search_paths};
use tollgate::rules::Rules;
use tollgate::settings::AuthzSettings;

/// Loads the rules of a configuration, and how ext_authz makes entries. Prints its errors.
pub(super) fn rules(path: Option<&Path>) -> Result<(Rules, AuthzSettings), ExitCode> {
    let config = Config::load(path).map_err(|errors| report_errors(&errors))?;
    require_files(&config)?;
    let rules = Rules::compile(config.book).map_err(|errors| {
        errors.iter().for_each(|error| eprintln!("tollgate: {error}"));
        ExitCode::FAILURE
    })?;
    Ok((rules, config.server.authz))
}

/// Says that no configuration was found, if none was.
pub(super) fn require_files(config: &Config) -> Result<(), ExitCode> {
    if config.files.is_empty() {
        eprintln!("tollgate: no configuration found; looked at {}. Name one with --config", searched_paths());
        return Err(ExitCode::FAILURE);
    }
    Ok(())
}

/// Lists the paths that are searched for a configuration that is not named.
pub(super) fn searched_paths() -> String {
    let paths: Vec<String> = search_paths().iter().map(|path| path.display().to_string()).collect();
    format!("{CONFIG_VARIABLE} (not set), {}", paths.join(", "))
}

/// Prints all errors of a configuration.
pub(super) fn report_errors(errors: &Errors) -> ExitCode {
    eprintln!("{errors}");
    ExitCode::FAILURE
}

/// Prints the warnings of a configuration.
pub(super) fn report_warnings(warnings: &[Problem]) {
    warnings.iter().for_each(|warning| report(warning, false));
}

/// Prints an error or a warning. A warning that counts as an error keeps its name.
pub(super) fn report(problem: &Problem, error: bool) {
    let Some(kind) = problem.warning else { return eprintln!("{problem}") };
    let Problem { file, line, text, .. } = problem;
    let line = line.map_or(String::new(), |line| format!("{line}:"));
    let severity = if error { "" } else { " warning:" };
    eprintln!("{file}:{line}{severity} {text} [{}]", kind.name());
}
