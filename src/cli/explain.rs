//! `tollgate explain`: how rules treat a request, by the rules of a file or of a running server.

use std::path::Path;
use std::process::ExitCode;

use tollgate::clock::{Clock, SystemClock};

use super::client::{AdminClient, identity};
use super::load;
use super::table::{self, print};

/// Explains a descriptor with these entries by the rules of a file.
pub(super) fn explain(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    match load::rules(path) {
        Ok(rules) => {
            print(&rules.explain_in_words(domain, entries, SystemClock::new().now()));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Explains a descriptor by the rules that a server has in use, and prints the values of its counters.
pub(super) fn explain_on_server(
    client: &AdminClient,
    domain: &str,
    entries: &[(String, String)],
) -> anyhow::Result<()> {
    let identity = identity(domain, entries);
    print(&client.post_for_text("/explain", &identity)?);
    let states: Vec<_> = client.post("/state", &identity).unwrap_or_default();
    if !states.is_empty() {
        print(&format!("\nnow\n{}", table::counters(&states)));
    }
    Ok(())
}
