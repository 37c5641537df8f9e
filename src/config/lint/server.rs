//! Warnings about the ports.

use std::collections::BTreeSet;

use super::checked::Checked;
use crate::config::document::problem::{Problems, remedy};
use crate::config::document::warning::WarningKind;
use crate::settings::{ApiSettings, Listen};

/// Warns of an address that the configuration gives to a port and that other machines can reach, since the ports speak
/// clear text. An address that is not given has no place in a file to warn of.
pub(super) fn clear_text(checked: &Checked<'_>, problems: &mut Problems) {
    let Some(server) = checked.file.server.get().filter(|server| server.clear_text.is_absent()) else { return };
    let ports = [
        server.grpc.get().map(|written| (&written.location, Some(&written.value.0), "the descriptors of all requests")),
        server.http.get().map(|written| (&written.location, Some(&written.value.0), "all requests")),
        server.admin.get().map(|written| (&written.location, written.value.0.as_ref(), "server.admin_token")),
        server.api.get().map(|written| (&written.location, Some(&written.value.0), "server.api_token")),
    ];
    for (location, listen, sent) in ports.into_iter().flatten() {
        let Some(Listen::Tcp(address)) = listen else { continue };
        if address.ip().to_canonical().is_loopback() {
            continue;
        }
        let reason = format!(
            "so {sent} can be read on the network and by others who reach it; use a loopback address or a Unix socket, \
             or, if only gateways are on that network, set server.clear_text = \"accepted\""
        );
        problems.warn(WarningKind::ClearText, location, reason);
    }
}

/// Warns of a domain of the API that the configuration does not know, so that every call that names no domain fails.
pub(super) fn api_domain(checked: &Checked<'_>, problems: &mut Problems) {
    let Some(written) = checked.file.server.get().and_then(|server| server.api_domain.get()) else { return };
    // A limiter that says direct = true is served there.
    let domains = checked.book.domains.iter().map(|domain| domain.name.as_str());
    let known: BTreeSet<&str> = domains.chain(checked.book.rules.iter().map(|rule| rule.domain.as_str())).collect();
    // `check --print` writes the default.
    if known.contains(written.value.as_str()) || written.value == ApiSettings::default().domain {
        return;
    }
    let remedy = remedy(&written.value, known, "domains");
    let reason =
        format!("which has no rules and no limiter with direct = true, so calls that name no domain fail{remedy}");
    problems.warn(WarningKind::ApiWithoutRules, &written.location, reason);
}
