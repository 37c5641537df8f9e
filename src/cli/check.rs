//! `tollgate check`: reports all errors of configurations.

use std::path::PathBuf;
use std::process::ExitCode;

use tollgate::config::Config;
use tollgate::rules::Rules;

use super::load::{report_errors, report_warnings};
use super::table::print;

/// Checks each path as a separate configuration.
pub(super) fn check(paths: &[PathBuf], print_effective: bool) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (index, path) in paths.iter().enumerate() {
        let config = match Config::load(Some(path)) {
            Ok(config) => config,
            Err(errors) => {
                code = report_errors(&errors);
                continue;
            }
        };
        report_warnings(&config.warnings);
        let effective = print_effective.then(|| config.effective());
        let summary = summary(&config);
        // Loading has reported all of these errors with their lines, so this should find none.
        if let Err(errors) = Rules::compile(config.book) {
            errors.iter().for_each(|error| eprintln!("{}: {error}", path.display()));
            code = ExitCode::FAILURE;
            continue;
        }
        if let Some(effective) = effective {
            let separator = if index > 0 { "---\n" } else { "" };
            print(&format!("{separator}# {} as it takes effect\n{effective}", path.display()));
        } else {
            print(&format!("{}: good: {summary}\n", path.display()));
        }
    }
    code
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
    parts.join(", ")
}
