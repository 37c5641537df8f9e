//! `tollgate table lookup`: shows the row that a table of a configuration has for a value.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use tollgate::config::Config;
use tollgate::rules::TableLookup;

use super::load::{report_errors, require_files};
use super::table::print;

/// Looks a value up. `-` reads it from standard input, so that a credential is in no history of a shell.
pub(super) fn lookup(path: Option<&Path>, table: &str, value: &str) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(errors) => return report_errors(&errors),
    };
    if let Err(code) = require_files(&config) {
        return code;
    }
    let mut read = String::new();
    let value = match value {
        "-" => match std::io::stdin().read_to_string(&mut read) {
            Ok(_) => read.trim_end_matches(['\r', '\n']),
            Err(error) => {
                eprintln!("tollgate: standard input cannot be read: {error}");
                return ExitCode::FAILURE;
            }
        },
        value => value,
    };
    let Some(found) = config.book.look_up(table, value) else {
        let names: Vec<&str> = config.book.tables.iter().map(|table| table.name()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        eprintln!("tollgate: no table has the name {table:?}; tables: {names}");
        return ExitCode::FAILURE;
    };
    print(&found.iter().map(|found| shown(table, found)).collect::<String>());
    match found.iter().any(|found| found.row.is_some()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn shown(table: &str, found: &TableLookup) -> String {
    let TableLookup { by, value, digest, row, derived } = found;
    let mut text = match by {
        Some((domain, from)) => format!("domain {domain}, {from} = {value:?} in table {table}\n"),
        None => format!("{value:?} in table {table}, which no domain derives an entry from\n"),
    };
    if let Some(digest) = digest {
        text += &format!("  sha256 {digest}\n");
    }
    match row {
        Some((line, cells)) => {
            text += &format!("  row in line {line}\n");
            for (column, cell) in cells {
                text += &format!("    {column} {cell:?}\n");
            }
        }
        None => text += "  no row\n",
    }
    for (entry, value) in derived {
        text += &match value {
            Some(value) => format!("  derives {entry} = {value:?}\n"),
            None => format!("  derives no {entry}: it is absent\n"),
        };
    }
    text
}
