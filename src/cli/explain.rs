//! `tollgate explain`: what the rules make of a request, offline or by those a server has in use.

use std::path::Path;
use std::process::ExitCode;

use tollgate::clock::{Clock, SystemClock};
use tollgate::config::Config;
use tollgate::rules::Rules;

use super::client::{Server, identity};

/// Explains a descriptor of these entries by the rules of a file.
pub fn explain(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    match rules(path) {
        Ok(rules) => {
            super::print(&rules.explain_in_words(domain, entries, SystemClock::new().now()));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Explains it by the rules that a server has in use, and tells what its counters hold.
pub fn explain_there(server: &Server, domain: &str, entries: &[(String, String)]) -> anyhow::Result<()> {
    let identity = identity(domain, entries);
    super::print(&server.post_for_text("/explain", &identity)?);
    let states: Vec<_> = server.post("/state", &identity).unwrap_or_default();
    if !states.is_empty() {
        super::print(&format!("\nnow\n{}", super::state::table(&states)));
    }
    Ok(())
}

/// The rules of a file.
pub fn rules(path: Option<&Path>) -> Result<Rules, ExitCode> {
    let config = Config::load(path).map_err(|errors| super::refuse(&errors))?;
    if config.files.is_empty() {
        eprintln!("tollgate: no configuration found; looked at {}. Name one with --config", super::looked_at());
        return Err(ExitCode::FAILURE);
    }
    Rules::compile(config.book).map_err(|errors| {
        errors.iter().for_each(|error| eprintln!("tollgate: {error}"));
        ExitCode::FAILURE
    })
}
