//! `tollgate check`: everything that is wrong, before it goes live.

use std::path::PathBuf;
use std::process::ExitCode;

use tollgate::config::Config;
use tollgate::rules::Rules;

/// Checks each path as a configuration of its own.
pub fn check(paths: &[PathBuf], print: bool) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (place, path) in paths.iter().enumerate() {
        let config = match Config::load(Some(path)) {
            Ok(config) => config,
            Err(errors) => {
                code = super::refuse(&errors);
                continue;
            }
        };
        super::warn(&config.warnings);
        let effective = print.then(|| config.effective());
        let summary = summary(&config);
        // Reading refuses all of this with its place; should a door be left open there, it is shut here.
        if let Err(errors) = Rules::compile(config.book) {
            errors.iter().for_each(|error| eprintln!("{}: {error}", path.display()));
            code = ExitCode::FAILURE;
            continue;
        }
        if let Some(effective) = effective {
            let mark = if place > 0 { "---\n" } else { "" };
            super::print(&format!("{mark}# {} as it takes effect\n{effective}", path.display()));
        } else {
            super::print(&format!("{}: good: {summary}\n", path.display()));
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
