//! Warnings about the ports.

use super::checked::Checked;
use crate::config::document::problem::Problems;
use crate::config::document::warning::WarningKind;
use crate::settings::Listen;

/// Warns of an address that the configuration gives to a port and that other machines can reach, since the ports speak
/// clear text. An address that is not given has no place in a file to warn of.
pub(super) fn clear_text(checked: &Checked<'_>, problems: &mut Problems) {
    let Some(server) = checked.file.server.get().filter(|server| server.clear_text.is_absent()) else { return };
    let ports = [
        server.grpc.get().map(|written| (&written.location, Some(&written.value.0), "the descriptors of all requests")),
        server.http.get().map(|written| (&written.location, Some(&written.value.0), "all requests")),
        server.admin.get().map(|written| (&written.location, written.value.0.as_ref(), "server.admin_token")),
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
