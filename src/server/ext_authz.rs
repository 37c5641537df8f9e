//! What both doors of ext_authz share: the entries of a request, and the verdict on it.
//!
//! ext_authz has no descriptors, so one is made of the request: `remote_address`, `method`, `path` and `host`, and
//! what the operator named. An entry that cannot be had is absent.

use std::borrow::Cow;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use super::headers::{self, Header};
use crate::decision::Decision;
use crate::descriptor::{Descriptor, Entry, Request};
use crate::rules;
use crate::settings::{AuthzSettings, EntrySource, HeaderFamilies, RequestPart};

/// A request that wants to pass, as a door was told of it.
pub(super) trait AuthzRequest {
    /// Its method.
    fn method(&self) -> Option<Cow<'_, str>>;

    /// Its path with its query.
    fn target(&self) -> Option<Cow<'_, str>>;

    /// The host that it is for.
    fn host(&self) -> Option<Cow<'_, str>>;

    /// The headers of a name in lower case, one by one. Where Envoy joined them, that is one with commas.
    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>>;

    /// The client's address, by what this door believes (semantics 34).
    fn remote_address(&self, settings: &AuthzSettings) -> Option<Cow<'_, str>>;

    /// What the route says about itself.
    fn context(&self, key: &str) -> Option<&str>;

    /// What other filters said about the request.
    fn metadata(&self, namespace: &str, path: &[String]) -> Option<Cow<'_, str>>;

    /// Who the client's certificate says that it is.
    fn principal(&self) -> Option<&str>;
}

/// The question that a request asks.
pub(super) fn question<'a>(asked: &'a impl AuthzRequest, settings: &'a AuthzSettings) -> Request<'a> {
    let target = asked.target();
    let path = target.clone().map(path);
    let always = [
        ("remote_address", asked.remote_address(settings)),
        ("method", asked.method()),
        ("path", path),
        ("host", asked.host().map(host)),
    ];
    let named = settings.entries.iter().map(|(key, source)| (key.as_str(), entry(asked, target.as_deref(), source)));
    let entries = always.into_iter().chain(named);
    let entries = entries.filter_map(|(key, value)| Some(Entry { key, value: value? })).collect();
    Request {
        domain: asked.context("domain").unwrap_or(&settings.domain),
        descriptors: [Descriptor { entries, ..Descriptor::default() }].into_iter().collect(),
    }
}

fn entry<'a>(asked: &'a impl AuthzRequest, target: Option<&str>, source: &'a EntrySource) -> Option<Cow<'a, str>> {
    let value = match &source.from {
        // A client that adds a second must not get a counter of its own by it.
        RequestPart::Header(name) => asked.headers(name).next(),
        RequestPart::Cookie(name) => cookie(asked, name),
        RequestPart::Query(name) => query(target?, name).map(Cow::Owned),
        RequestPart::Context(key) => asked.context(key).map(Cow::Borrowed),
        RequestPart::Metadata { namespace, path } => asked.metadata(namespace, path),
        RequestPart::Principal => asked.principal().map(Cow::Borrowed),
    };
    value.or_else(|| source.default.as_deref().map(Cow::Borrowed))
}

fn path(target: Cow<'_, str>) -> Cow<'_, str> {
    match target {
        Cow::Borrowed(target) => rules::path(target),
        Cow::Owned(target) => Cow::Owned(rules::path(&target).into_owned()),
    }
}

/// A host in its one spelling: lower case, without a port and without the dot of the root.
fn host(host: Cow<'_, str>) -> Cow<'_, str> {
    let name = match host.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
        Some((name, port)) if !port.contains(']') => name,
        _ => &host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() == host.len() && !name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return host;
    }
    Cow::Owned(name.to_ascii_lowercase())
}

/// The first cookie of a name. Nothing but a semicolon parts cookies (RFC 6265, section 5.4): who could part them by
/// another character would have a way to put one before the real one.
fn cookie<'a>(asked: &'a impl AuthzRequest, name: &str) -> Option<Cow<'a, str>> {
    asked.headers("cookie").find_map(|cookies| {
        let pairs = cookies.split(';').filter_map(|pair| pair.trim_matches(' ').split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| Cow::Owned(value.trim_matches('"').to_owned())).next()
    })
}

/// The first parameter of a name.
fn query(target: &str, name: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| decode(key) == name).map(|(_, value)| decode(value)).next()
}

/// The values of one header that is a list, joined by commas.
pub(super) fn joined<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let mut joined = values.next()?;
    for value in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(&value);
    }
    Some(joined)
}

/// A value that is one address and nothing else. A header that came twice is joined, and so is none.
pub(super) fn one_address(value: Cow<'_, str>) -> Option<Cow<'_, str>> {
    value.parse::<IpAddr>().is_ok().then_some(value)
}

/// The address that was written by the outermost of the proxies we trust: so many entries from the right.
pub(super) fn forwarded_for(header: &str, trusted_hops: usize) -> Option<&str> {
    let from_the_right = trusted_hops.checked_sub(1)?;
    let address = header.rsplit(',').nth(from_the_right)?.trim();
    let address = without_port(address);
    (!address.is_empty()).then_some(address)
}

/// Some proxies write the port as well: `192.0.2.7:4711`, `[2001:db8::7]:4711`.
fn without_port(address: &str) -> &str {
    if let Some((address, _)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match address.split_once(':') {
        Some((address, port)) if !port.contains(':') => address,
        _ => address,
    }
}

/// What a door answers.
pub(super) struct Verdict {
    /// The status of a refusal; none lets the request pass.
    pub(super) refused: Option<u16>,
    /// What to tell the client.
    pub(super) headers: Vec<Header>,
    /// The body of a refusal.
    pub(super) body: String,
}

impl Verdict {
    /// The verdict that a decision means.
    pub(super) fn of(decision: &Decision, families: HeaderFamilies) -> Self {
        let mut headers = headers::of(decision, families);
        let Some(refusal) = decision.refusal() else {
            return Self { refused: None, headers, body: String::new() };
        };
        let body = headers::body(&refusal, families).map(|(body, media_type)| {
            headers.push(("content-type", media_type));
            body
        });
        Self { refused: Some(headers::status(&refusal)), headers, body: body.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weaknesses R11, D6: the leftmost address is believed, which is whatever the client says.
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
    fn a_parameter_is_found_by_its_decoded_name() {
        assert_eq!(query("/p?a=1&account=al%20b+c&account=2", "account").as_deref(), Some("al b c"));
        assert_eq!(query("/p?%61ccount=x#account=y", "account").as_deref(), Some("x"));
        assert_eq!(query("/p?flag", "flag").as_deref(), Some(""));
        assert_eq!(query("/p?a=%ff", "a").as_deref(), Some("\u{fffd}"));
        assert_eq!(query("/p", "a"), None);
    }
}
