//! `tollgate explain`: shows how the rules of a file or of a running server treat a request.

use std::path::Path;
use std::process::ExitCode;

use super::client::{AdminClient, identity};
use super::load;
use super::table::{self, print};

/// Explains a descriptor with the rules of a file.
pub(super) fn explain(path: Option<&Path>, domain: &str, entries: &[(String, String)]) -> ExitCode {
    match load::rules(path) {
        Ok((rules, authz)) => {
            print(&rules.explain_in_words(domain, &authz.descriptor(entries)));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Explains a descriptor with the rules of a running server, and prints the values of its counters.
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
