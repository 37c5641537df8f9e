//! Shared by both ext_authz doors: the entries of a request, and the verdict on it.
//!
//! ext_authz has no descriptors, so one is made from the request: `remote_address`, `method`, `path`, `host`, and the
//! entries that the operator configured. An entry whose value is not in the request is absent.

use std::borrow::Cow;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::authz_request::AuthzRequest;
use super::headers::{self, Header};
use super::named::{self, Named, Values, trimmed};
use super::request_body::{self, Field, Unreadable};
use crate::decision::{Decision, Refusal};
use crate::descriptor::{Descriptor, Entry, Request};
use crate::rules::{self, Normaliser};
use crate::settings::{AuthzSettings, EntrySource, HeaderFamilies, Repeated, RequestPart};

/// Makes the request that the rules decide: one descriptor with the entries of `authz_request`.
/// Of entries that are in a body that cannot be read, `unreadable` gets the reason.
pub(super) fn descriptor_request<'a>(
    authz_request: &'a impl AuthzRequest,
    settings: &'a AuthzSettings,
    max_body_bytes: usize,
    mut unreadable: impl FnMut(Unreadable),
) -> Request<'a> {
    let (authority, target) = authz_request.target().map(origin_form).unzip();
    let path = target.clone().map(|target| Normaliser::Path.apply(target));
    let host = authz_request.host().or_else(|| authority.flatten());
    let always = [
        ("remote_address", authz_request.remote_address(settings)),
        ("method", authz_request.method()),
        ("path", path),
    ];
    let mut descriptor = Descriptor::default();
    descriptor.entries.extend(always.into_iter().filter_map(|(key, value)| Some(Entry { key, value: value? })));
    if let Some(host) = host {
        Repeated::Deny.push(&mut descriptor, "host", hosts(host));
    }
    for (key, source) in &settings.entries {
        if let RequestPart::Body(fields) = &source.from {
            let default = source.default.as_deref().map(Cow::Borrowed);
            match request_body::field(authz_request, fields, max_body_bytes) {
                Field::Unreadable(reason) => {
                    unreadable(reason);
                    descriptor.push_unreadable(key);
                }
                Field::Value(value) => descriptor.entries.push(Entry { key, value }),
                Field::Absent => descriptor.entries.extend(default.map(|value| Entry { key, value })),
            }
            continue;
        }
        let (mut values, repeated) = values(authz_request, target.as_deref(), source);
        if values.is_empty() {
            values.extend(source.default.as_deref().map(Cow::Borrowed));
        }
        match source.from.repeats() {
            true => repeated.push(&mut descriptor, key, values),
            // A list of one value is that value.
            false if values.len() > 1 => descriptor.push_list(key, values.into_vec()),
            false => descriptor.entries.extend(values.pop().map(|value| Entry { key, value })),
        }
    }
    Request {
        domain: authz_request.context("domain").unwrap_or(&settings.domain),
        descriptors: [descriptor].into_iter().collect(),
    }
}

/// The hosts in a host. No host has a comma in it, so a comma stands between two that somebody joined: unless they are
/// the same, nobody knows which of them the upstream serves.
fn hosts(host: Cow<'_, str>) -> Values<'_> {
    let mut hosts = Values::new();
    if host.contains(',') {
        hosts.extend(host.split(',').map(|part| Cow::Owned(rules::host(part).into_owned())));
        hosts.dedup();
    } else {
        hosts.push(Normaliser::Host.apply(host));
    }
    hosts
}

/// The values of an entry in the request, and what counts of several.
fn values<'a>(request: &'a impl AuthzRequest, target: Option<&str>, source: &'a EntrySource) -> (Values<'a>, Repeated) {
    let values = match &source.from {
        RequestPart::Header(name) => return header(request, name, source.repeated),
        RequestPart::Cookie(name) => return cookies(request, name, source.repeated),
        RequestPart::Query(name) => {
            target.map_or_else(SmallVec::new, |target| named::query(target, name).counted(source.repeated))
        }
        RequestPart::Context(key) => request.context(key).map(Cow::Borrowed).into_iter().collect(),
        RequestPart::Metadata { namespace, path } => request.metadata(namespace, path).into(),
        RequestPart::Principal => request.principal().map(Cow::Borrowed).into_iter().collect(),
        RequestPart::Body(_) => Values::new(),
    };
    (values, source.repeated)
}

/// Headers of which Envoy makes one when it receives several, before it sends them on: the upstream gets the same value.
const FOLDED_BY_ENVOY: [&str; 6] = ["accept", "authorization", "content-type", "origin", "referer", "user-agent"];

/// The values of a header.
///
/// Where the gateway joins them, a comma can be part of one value or stand between two. So with a comma it is in doubt
/// whether the value is one of the parts, or the whole. The first part is the first value, or the beginning of the whole:
/// the same counter for both is safe.
fn header<'a>(request: &'a impl AuthzRequest, name: &'a str, repeated: Repeated) -> (Values<'a>, Repeated) {
    let mut values: Values<'a> = request.headers(name).collect();
    if let [joined] = values.as_slice()
        && request.joins_headers()
        && joined.contains(',')
        && !FOLDED_BY_ENVOY.contains(&name)
    {
        let parts: Values<'a> = joined.split(',').map(|part| Cow::Owned(trimmed(part).to_owned())).collect();
        match repeated {
            Repeated::Join => {}
            Repeated::First | Repeated::Last => values = parts,
            Repeated::Deny => values.extend(parts),
        }
    }
    (values, repeated)
}

/// The values of all cookies with this name, without quotes around them and without percent escapes.
///
/// Only a semicolon separates cookies (RFC 6265, section 5.4): with any other separator a client could put a forged
/// cookie before the real one. Where the gateway joins headers, a comma can also stand between two of them. If that
/// makes a difference, nobody knows which cookie the upstream reads first or last: the entry is in doubt, whatever is
/// configured.
fn cookies<'a>(request: &'a impl AuthzRequest, name: &str, repeated: Repeated) -> (Values<'a>, Repeated) {
    let mut all = Named::default();
    for header in request.headers("cookie") {
        let mut named = named::cookies(header.split(';'), name);
        if request.joins_headers() && header.contains(',') {
            let parts = named::cookies(header.split([';', ',']), name);
            if named.values != parts.values {
                all.extend(named);
                all.extend(parts);
                return (all.in_doubt(), Repeated::Deny);
            }
            named.doubtful.extend(parts.doubtful);
        }
        all.extend(named);
    }
    (all.counted(repeated), repeated)
}

/// Splits a request target into the host and port of an absolute one, if it has them, and path and query.
///
/// "To allow for transition to the absolute-form for all requests in some future version of HTTP, a server MUST accept
/// the absolute-form in requests" (RFC 9112, section 3.2.2). So an upstream serves `http://host/path` as `/path`, and
/// rules have to see the same. [`rules::split_target`] says what is absolute.
pub(super) fn origin_form(target: Cow<'_, str>) -> (Option<Cow<'_, str>>, Cow<'_, str>) {
    match target {
        Cow::Borrowed(target) => {
            let (authority, target) = rules::split_target(target);
            (authority.map(Cow::Borrowed), Cow::Borrowed(target))
        }
        Cow::Owned(target) => {
            let (authority, target) = rules::split_target(&target);
            (authority.map(|authority| Cow::Owned(authority.to_owned())), Cow::Owned(target.to_owned()))
        }
    }
}

/// Joins the values of a list header with commas.
pub(super) fn joined<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let mut joined = values.next()?;
    for value in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(&value);
    }
    Some(joined)
}

/// Returns the value if it is a single IP address. A header that was sent twice is joined, and therefore rejected.
pub(super) fn one_address(value: Cow<'_, str>) -> Option<Cow<'_, str>> {
    value.parse::<IpAddr>().is_ok().then_some(value)
}

/// The address written by the outermost trusted proxy: `trusted_hops` entries from the right.
pub(super) fn forwarded_for(header: &str, trusted_hops: usize) -> Option<&str> {
    let from_the_right = trusted_hops.checked_sub(1)?;
    let address = header.rsplit(',').nth(from_the_right)?.trim();
    let address = without_port(address);
    (!address.is_empty()).then_some(address)
}

/// Removes the port that some proxies add: `192.0.2.7:4711`, `[2001:db8::7]:4711`.
fn without_port(address: &str) -> &str {
    if let Some((address, _)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match address.split_once(':') {
        Some((address, port)) if !port.contains(':') => address,
        _ => address,
    }
}

/// The answer of an ext_authz door.
pub(super) struct Verdict {
    /// The HTTP status of a refusal. None allows the request.
    pub(super) refusal_status: Option<u16>,
    /// The headers for the client.
    pub(super) headers: Vec<Header>,
    /// The body of a refusal.
    pub(super) body: String,
}

/// Whether a request is a gRPC request.
pub(super) fn is_grpc(request: &impl AuthzRequest) -> bool {
    request.headers("content-type").next().is_some_and(|media_type| media_type.starts_with("application/grpc"))
}

/// The status code of gRPC for an HTTP status: RESOURCE_EXHAUSTED, INVALID_ARGUMENT, UNAVAILABLE or PERMISSION_DENIED.
pub(super) fn grpc_code(status: u16) -> u8 {
    match status {
        429 => 8,
        400 => 3,
        500..=599 => 14,
        _ => 7,
    }
}

impl Verdict {
    /// The verdict of a decision, with its refusal, on a request that may be a gRPC request.
    pub(super) fn of(
        decision: &Decision,
        refusal: Option<&Refusal<'_>>,
        families: HeaderFamilies,
        is_grpc: bool,
    ) -> Self {
        let mut headers = headers::of(decision, refusal, families);
        let Some(refusal) = refusal else {
            return Self { refusal_status: None, headers, body: String::new() };
        };
        if is_grpc {
            // Without these, Envoy turns the status into UNAVAILABLE, which clients retry, and the body into its message.
            let status = headers::status(refusal);
            headers.push(("grpc-status", grpc_code(status).to_string()));
            headers.push(("grpc-message", headers::detail(refusal).to_owned()));
            return Self { refusal_status: Some(status), headers, body: String::new() };
        }
        let body = headers::body(refusal, families).map(|(body, media_type)| {
            headers.push(("content-type", media_type));
            body
        });
        Self { refusal_status: Some(headers::status(refusal)), headers, body: body.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client chooses the leftmost address, so it must never be trusted.
    #[test]
    fn semantics_34_the_client_is_counted_from_the_right_and_never_the_leftmost() {
        let header = "6.6.6.6, 192.0.2.7 ,10.0.0.1";
        assert_eq!(forwarded_for(header, 0), None);
        assert_eq!(forwarded_for(header, 1), Some("10.0.0.1"));
        assert_eq!(forwarded_for(header, 2), Some("192.0.2.7"));
        assert_eq!(forwarded_for("192.0.2.7", 2), None);
        assert_eq!(forwarded_for("", 1), None);
        assert_eq!(forwarded_for("192.0.2.7:4711", 1), Some("192.0.2.7"));
        assert_eq!(forwarded_for("[2001:db8::7]:4711", 1), Some("2001:db8::7"));
        assert_eq!(forwarded_for("2001:db8::7", 1), Some("2001:db8::7"));
    }

    #[test]
    fn a_target_is_split_where_an_upstream_splits_it() {
        let cases = [
            ("/a?b", None, "/a?b"),
            ("//h/a", None, "//h/a"),
            ("/http://h/a", None, "/http://h/a"),
            ("http://h/a?b#c", Some("h"), "/a?b#c"),
            ("HTTP://U:p@H:80", Some("H:80"), ""),
            ("http://a@b@h?x=http://y/z", Some("h"), "?x=http://y/z"),
            ("http://h#/a", Some("h"), "#/a"),
            ("http://[2001:db8::7]:80/a", Some("[2001:db8::7]:80"), "/a"),
            ("http:///a", None, "/a"),
            ("http:/a", None, "/a"),
            ("http:\\\\h\\a", Some("h"), "\\a"),
            ("h:443", None, "h:443"),
            ("1http://h/a", None, "1http://h/a"),
            ("://h/a", None, "://h/a"),
            ("*", None, "*"),
            ("", None, ""),
        ];
        for (target, authority, rest) in cases {
            for target in [Cow::Borrowed(target), Cow::Owned(target.to_owned())] {
                assert_eq!(origin_form(target), (authority.map(Cow::Borrowed), Cow::Borrowed(rest)));
            }
        }
    }
}
