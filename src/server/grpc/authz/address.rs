//! The client's address in a check of ext_authz.

use std::borrow::Cow;

use crate::server::authz_request::AuthzRequest;
use crate::server::ext_authz::{forwarded_for, joined, one_address};
use crate::settings::AuthzSettings;

/// The client's address: from the headers that the operator trusts, else the peer's.
pub(super) fn client<'a>(
    request: &'a impl AuthzRequest,
    peer: Option<&'a str>,
    settings: &AuthzSettings,
) -> Option<Cow<'a, str>> {
    if settings.trust_external_address
        && let Some(address) = joined(request.headers("x-envoy-external-address")).and_then(one_address)
    {
        return Some(address);
    }
    if let Some(header) = joined(request.headers("x-forwarded-for"))
        && let Some(address) = forwarded_for(&header, settings.trusted_hops)
    {
        return Some(Cow::Owned(address.to_owned()));
    }
    present(peer?)
}

/// A string, or `None` when empty: proto3 has no other absence.
pub(super) fn present(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}
