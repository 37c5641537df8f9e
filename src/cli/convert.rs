//! `tollgate convert`: writes a file of rate-sync in our own form.

use std::path::Path;
use std::process::ExitCode;

use super::load::report_errors;
use super::table::print;

/// Prints the converted file.
pub(super) fn convert(path: &Path) -> ExitCode {
    match tollgate::config::convert(path) {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(errors) => report_errors(&errors),
    }
}
