//! An ext_authz request, read in place.
//!
//! The generated types make a map of the headers, two strings each, of which a few are used. This reader covers what
//! Envoy usually sends; everything else is left to the generated types, which define the meaning: a test checks that both
//! give the same answers for any bytes.
//!
//! ```text
//!   CheckRequest  1 attributes
//!                   1 source, 2 destination   Peer { 1 address { 1 socket { 2 address } }, 4 principal, .. }
//!                   4 request                 1 time, 2 http { 2 method, 3 headers, 4 path, 5 host, .. 13 raw headers }
//!                   10 context extensions     { 1 key, 2 value } each
//!                   11, 13 metadata           only if empty
//! ```

use std::borrow::Cow;

use prost::encoding::decode_varint;
use smallvec::SmallVec;

use super::super::wire::{byte, part, text};
use super::address::{client, present};
use crate::server::authz_request::AuthzRequest;
use crate::settings;

/// A name and a value. Of duplicate names the last counts, as in a map filled in order.
type Pair<'a> = (&'a str, &'a str);

/// A request that borrows from its message.
#[derive(Default)]
pub(super) struct BorrowedCheck<'a> {
    method: &'a str,
    target: &'a str,
    host: &'a str,
    headers: SmallVec<[Pair<'a>; 24]>,
    /// Whether headers are listed one by one (`encode_raw_headers`), not joined by name.
    raw: bool,
    /// The downstream peer: its address and the principal of its certificate.
    source: Peer<'a>,
    extensions: SmallVec<[Pair<'a>; 2]>,
    body: &'a [u8],
    raw_body: &'a [u8],
}

#[derive(Default)]
struct Peer<'a> {
    address: Option<&'a str>,
    principal: &'a str,
}

/// The encoded key of a length-delimited field.
const fn length_delimited(field: u8) -> u8 {
    field << 3 | 2
}

/// The encoded key of a varint field.
const fn varint(field: u8) -> u8 {
    field << 3
}

impl<'a> BorrowedCheck<'a> {
    /// Reads a `CheckRequest`. `None` if it has other fields or is malformed.
    pub(super) fn read(mut message: &'a [u8]) -> Option<Self> {
        const ATTRIBUTES: u8 = length_delimited(1);
        let mut check = Self::default();
        let mut attributes = None;
        while let Some(key) = byte(&mut message) {
            match key {
                ATTRIBUTES => once(&mut attributes, part(&mut message)?)?,
                _ => return None,
            }
        }
        check.attributes(attributes.unwrap_or_default())?;
        Some(check)
    }

    fn attributes(&mut self, mut bytes: &'a [u8]) -> Option<()> {
        const SOURCE: u8 = length_delimited(1);
        const DESTINATION: u8 = length_delimited(2);
        const REQUEST: u8 = length_delimited(4);
        const EXTENSIONS: u8 = length_delimited(10);
        const METADATA: u8 = length_delimited(11);
        const ROUTE_METADATA: u8 = length_delimited(13);
        let [mut source, mut destination, mut request] = [None; 3];
        while let Some(key) = byte(&mut bytes) {
            let part = part(&mut bytes)?;
            match key {
                SOURCE => once(&mut source, part)?,
                DESTINATION => once(&mut destination, part)?,
                REQUEST => once(&mut request, part)?,
                EXTENSIONS => self.extensions.push(pair(part)?),
                METADATA | ROUTE_METADATA if part.is_empty() => {}
                _ => return None,
            }
        }
        self.source = peer(source.unwrap_or_default())?;
        peer(destination.unwrap_or_default())?;
        self.request(request.unwrap_or_default())
    }

    fn request(&mut self, mut bytes: &'a [u8]) -> Option<()> {
        const TIME: u8 = length_delimited(1);
        const HTTP: u8 = length_delimited(2);
        let mut http = None;
        while let Some(key) = byte(&mut bytes) {
            let part = part(&mut bytes)?;
            match key {
                TIME => time(part)?,
                HTTP => once(&mut http, part)?,
                _ => return None,
            }
        }
        self.http(http.unwrap_or_default())
    }

    fn http(&mut self, mut bytes: &'a [u8]) -> Option<()> {
        const ID: u8 = length_delimited(1);
        const METHOD: u8 = length_delimited(2);
        const HEADERS: u8 = length_delimited(3);
        const PATH: u8 = length_delimited(4);
        const HOST: u8 = length_delimited(5);
        const SCHEME: u8 = length_delimited(6);
        const QUERY: u8 = length_delimited(7);
        const FRAGMENT: u8 = length_delimited(8);
        const SIZE: u8 = varint(9);
        const PROTOCOL: u8 = length_delimited(10);
        const BODY: u8 = length_delimited(11);
        const RAW_BODY: u8 = length_delimited(12);
        const HEADER_MAP: u8 = length_delimited(13);
        let mut raw = None;
        while let Some(key) = byte(&mut bytes) {
            match key {
                METHOD => self.method = text(&mut bytes)?,
                HEADERS => self.headers.push(pair(part(&mut bytes)?)?),
                PATH => self.target = text(&mut bytes)?,
                HOST => self.host = text(&mut bytes)?,
                // Strings must be UTF-8, even unused ones.
                ID | SCHEME | QUERY | FRAGMENT | PROTOCOL => drop(text(&mut bytes)?),
                BODY => self.body = text(&mut bytes)?.as_bytes(),
                SIZE => drop(decode_varint(&mut bytes).ok()?),
                RAW_BODY => self.raw_body = part(&mut bytes)?,
                HEADER_MAP => once(&mut raw, part(&mut bytes)?)?,
                _ => return None,
            }
        }
        match raw {
            // One list replaces the other.
            Some(_) if !self.headers.is_empty() => None,
            Some(raw) => self.raw_headers(raw),
            None => Some(()),
        }
    }

    fn raw_headers(&mut self, mut bytes: &'a [u8]) -> Option<()> {
        const HEADERS: u8 = length_delimited(1);
        const KEY: u8 = length_delimited(1);
        const VALUE: u8 = length_delimited(2);
        const RAW_VALUE: u8 = length_delimited(3);
        self.raw = true;
        while let Some(key) = byte(&mut bytes) {
            let HEADERS = key else { return None };
            let mut header = part(&mut bytes)?;
            let [mut name, mut value, mut raw_value] = [""; 3];
            while let Some(key) = byte(&mut header) {
                match key {
                    KEY => name = text(&mut header)?,
                    VALUE => value = text(&mut header)?,
                    // Invalid UTF-8 is left to the generated types, which replace it.
                    RAW_VALUE => raw_value = text(&mut header)?,
                    _ => return None,
                }
            }
            self.headers.push((name, if raw_value.is_empty() { value } else { raw_value }));
        }
        Some(())
    }
}

/// Stores a message that may occur once. A repeated one would have to be merged.
fn once<'a>(place: &mut Option<&'a [u8]>, part: &'a [u8]) -> Option<()> {
    place.replace(part).is_none().then_some(())
}

/// One entry of a map of strings.
fn pair(mut bytes: &[u8]) -> Option<Pair<'_>> {
    const KEY: u8 = length_delimited(1);
    const VALUE: u8 = length_delimited(2);
    let mut pair = ("", "");
    while let Some(key) = byte(&mut bytes) {
        match key {
            KEY => pair.0 = text(&mut bytes)?,
            VALUE => pair.1 = text(&mut bytes)?,
            _ => return None,
        }
    }
    Some(pair)
}

/// Skips a `google.protobuf.Timestamp`, which is unused.
fn time(mut bytes: &[u8]) -> Option<()> {
    const SECONDS: u8 = varint(1);
    const NANOS: u8 = varint(2);
    while let Some(key) = byte(&mut bytes) {
        match key {
            SECONDS | NANOS => drop(decode_varint(&mut bytes).ok()?),
            _ => return None,
        }
    }
    Some(())
}

fn peer(mut bytes: &[u8]) -> Option<Peer<'_>> {
    const ADDRESS: u8 = length_delimited(1);
    const SERVICE: u8 = length_delimited(2);
    const LABELS: u8 = length_delimited(3);
    const PRINCIPAL: u8 = length_delimited(4);
    const CERTIFICATE: u8 = length_delimited(5);
    let (mut peer, mut address) = (Peer::default(), None);
    while let Some(key) = byte(&mut bytes) {
        match key {
            ADDRESS => once(&mut address, part(&mut bytes)?)?,
            LABELS => drop(pair(part(&mut bytes)?)?),
            PRINCIPAL => peer.principal = text(&mut bytes)?,
            SERVICE | CERTIFICATE => drop(text(&mut bytes)?),
            _ => return None,
        }
    }
    peer.address = match address {
        Some(address) => Some(socket_address(address)?),
        None => None,
    };
    Some(peer)
}

/// The address of a socket. Other kinds of addresses and named ports are left to the generated types.
fn socket_address(mut bytes: &[u8]) -> Option<&str> {
    const SOCKET: u8 = length_delimited(1);
    const PROTOCOL: u8 = varint(1);
    const ADDRESS: u8 = length_delimited(2);
    const PORT: u8 = varint(3);
    let mut socket = None;
    while let Some(key) = byte(&mut bytes) {
        match key {
            SOCKET => once(&mut socket, part(&mut bytes)?)?,
            _ => return None,
        }
    }
    let (mut bytes, mut address) = (socket?, "");
    while let Some(key) = byte(&mut bytes) {
        match key {
            ADDRESS => address = text(&mut bytes)?,
            PROTOCOL | PORT => drop(decode_varint(&mut bytes).ok()?),
            _ => return None,
        }
    }
    Some(address)
}

/// The last value of a name.
fn last<'a>(pairs: &[Pair<'a>], name: &str) -> Option<&'a str> {
    pairs.iter().rfind(|(key, _)| *key == name).map(|(_, value)| *value)
}

impl AuthzRequest for BorrowedCheck<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        present(self.method)
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        present(self.target)
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        present(self.host)
    }

    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let joined = (!self.raw).then(|| last(&self.headers, name)).flatten();
        let each = self.headers.iter().filter(move |(key, _)| self.raw && key.eq_ignore_ascii_case(name));
        joined.into_iter().chain(each.map(|(_, value)| *value)).map(Cow::Borrowed)
    }

    fn joins_headers(&self) -> bool {
        !self.raw
    }

    fn remote_address(&self, settings: &settings::AuthzSettings) -> Option<Cow<'_, str>> {
        client(self, self.source.address, settings)
    }

    fn context(&self, key: &str) -> Option<&str> {
        last(&self.extensions, key)
    }

    fn metadata(&self, _: &str, _: &[String]) -> Vec<Cow<'_, str>> {
        Vec::new()
    }

    fn principal(&self) -> Option<&str> {
        Some(self.source.principal).filter(|principal| !principal.is_empty())
    }

    fn body(&self) -> Option<&[u8]> {
        Some(if self.raw_body.is_empty() { self.body } else { self.raw_body })
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
    use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    use envoy_types::pb::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, Metadata, Pipe, SocketAddress};
    use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
    use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
    use envoy_types::pb::google::protobuf::Timestamp;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use prost::Message;

    use super::super::decoded::DecodedCheck;
    use super::*;

    /// Everything that a door reads of a request.
    fn answers(request: &impl AuthzRequest) -> String {
        let settings = |trust_external_address, trusted_hops| settings::AuthzSettings {
            trust_external_address,
            trusted_hops,
            ..settings::AuthzSettings::default()
        };
        let names = ["a", "x-forwarded-for", "x-envoy-external-address", "", "missing"];
        let headers: Vec<Vec<_>> = names.map(|name| request.headers(name).collect()).into();
        let addresses = [(false, 0), (false, 1), (true, 2)]
            .map(|(trusted, hops)| request.remote_address(&settings(trusted, hops)).map(Cow::into_owned));
        format!(
            "{:?} {:?} {:?} {:?} {headers:?} {addresses:?} {:?} {:?} {:?}",
            request.method(),
            request.target(),
            request.host(),
            request.joins_headers(),
            ["a", "domain", ""].map(|key| request.context(key)),
            request.metadata("a", &["a".to_owned()]),
            request.principal(),
        )
    }

    fn address(kind: Kind) -> Option<Address> {
        Some(Address { address: Some(kind) })
    }

    fn socket(address: &str) -> SocketAddress {
        SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(4711)),
            ..SocketAddress::default()
        }
    }

    /// A request as Envoy sends it, whose strings all differ.
    fn message() -> CheckRequest {
        let peer = |address: &str, principal: &str| Peer {
            address: self::address(Kind::SocketAddress(socket(address))),
            principal: principal.to_owned(),
            service: "a service".to_owned(),
            certificate: "a certificate".to_owned(),
            labels: [("a".to_owned(), "label".to_owned())].into(),
        };
        let headers = [("a", "header"), ("x-forwarded-for", "192.0.2.7, 10.0.0.1"), (":authority", "shop.example.com")];
        let http = HttpRequest {
            id: "an id".to_owned(),
            method: "POST".to_owned(),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            path: "/login?a=b".to_owned(),
            host: "shop.example.com".to_owned(),
            scheme: "https".to_owned(),
            query: "a=b".to_owned(),
            fragment: "c".to_owned(),
            size: -1,
            protocol: "HTTP/2".to_owned(),
            body: "a body".to_owned(),
            raw_body: vec![0xff],
            header_map: None,
        };
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(peer("192.0.2.9", "spiffe://a/b")),
                destination: Some(peer("192.0.2.10", "spiffe://c/d")),
                request: Some(Request { time: Some(Timestamp { seconds: 7, nanos: 8 }), http: Some(http) }),
                context_extensions: [("domain".to_owned(), "edge".to_owned())].into(),
                metadata_context: Some(Metadata::default()),
                route_metadata_context: Some(Metadata::default()),
                tls_session: None,
            }),
        }
    }

    /// The same with `encode_raw_headers`, where the values are bytes.
    fn raw_message() -> CheckRequest {
        let mut message = message();
        let http = message.attributes.as_mut().and_then(|attributes| attributes.request.as_mut()?.http.as_mut());
        let http = http.expect("it has one");
        http.headers.clear();
        let header = |key: &str, value: &str, raw: &str| HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: raw.as_bytes().to_vec(),
        };
        http.header_map = Some(HeaderMap {
            headers: vec![
                header("a", "", "first"),
                header("A", "", "second"),
                header("x-forwarded-for", "192.0.2.7", ""),
                header("X-Forwarded-For", "", "10.0.0.1"),
                header("x-envoy-external-address", "one", "192.0.2.8"),
            ],
        });
        message
    }

    /// Compares the borrowed reading with the generated types. Returns whether the message was read in place.
    fn agrees(bytes: &[u8]) -> bool {
        let Some(check) = BorrowedCheck::read(bytes) else { return false };
        let decoded =
            CheckRequest::decode(bytes).expect("a message read in place is valid").attributes.unwrap_or_default();
        assert_eq!(answers(&check), answers(&DecodedCheck::new(&decoded)), "{bytes:?}");
        true
    }

    #[test]
    fn usual_requests_are_read_in_place_and_rare_ones_are_left_to_the_generated_types() {
        assert!(agrees(&message().encode_to_vec()));
        assert!(agrees(&raw_message().encode_to_vec()));
        assert!(agrees(&[]));
        let rare: [fn(&mut AttributeContext); 6] = [
            |attributes| {
                let pipe = Pipe { path: "/run/envoy.sock".to_owned(), mode: 0 };
                attributes.source.as_mut().expect("it has one").address = address(Kind::Pipe(pipe));
            },
            |attributes| {
                let named = PortSpecifier::NamedPort("https".to_owned());
                let socket = SocketAddress { port_specifier: Some(named), ..socket("192.0.2.9") };
                attributes.source.as_mut().expect("it has one").address = address(Kind::SocketAddress(socket));
            },
            |attributes| {
                let http = attributes.request.as_mut().and_then(|request| request.http.as_mut());
                http.expect("it has one").header_map = Some(HeaderMap::default());
            },
            |attributes| {
                let raw = raw_message().attributes.and_then(|attributes| attributes.request?.http?.header_map);
                let mut raw = raw.expect("it has one");
                raw.headers[0].raw_value = vec![0xff];
                let http = attributes.request.as_mut().and_then(|request| request.http.as_mut());
                let http = http.expect("it has one");
                http.headers.clear();
                http.header_map = Some(raw);
            },
            |attributes| {
                let fields = [("a".to_owned(), Default::default())].into();
                let metadata = Metadata { filter_metadata: fields, ..Metadata::default() };
                attributes.metadata_context = Some(metadata);
            },
            |attributes| attributes.tls_session = Some(Default::default()),
        ];
        for make in rare {
            let mut message = message();
            make(message.attributes.as_mut().expect("it has some"));
            assert!(!agrees(&message.encode_to_vec()), "{message:?}");
        }
    }

    /// Two concatenated messages are merged: every field occurs twice.
    #[test]
    fn what_comes_twice_is_merged_by_the_generated_types() {
        let bytes = message().encode_to_vec();
        assert!(!agrees(&[&bytes[..], &bytes].concat()));
        let attributes = message().attributes.expect("it has some").encode_to_vec();
        let mut whole = Vec::new();
        prost::encoding::bytes::encode(1, &[&attributes[..], &attributes].concat(), &mut whole);
        assert!(!agrees(&whole));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

        /// Invalid UTF-8, fields of other kinds and numbers, wrong lengths.
        #[test]
        fn every_request_read_in_place_reads_the_same_as_the_generated_types(
            raw: bool,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 0..4),
        ) {
            let mut bytes = if raw { raw_message() } else { message() }.encode_to_vec();
            for (place, byte, kind) in changes {
                let place = place.index(bytes.len());
                match kind {
                    0 => bytes.insert(place, byte),
                    1 => drop(bytes.remove(place)),
                    _ => bytes[place] = byte,
                }
            }
            agrees(&bytes);
        }

        /// Headers and extensions of any texts, some of them twice.
        #[test]
        fn of_two_of_one_name_the_last_counts(
            headers in prop::collection::vec(("a|x-forwarded-for|x-envoy-external-address|[a-c]{0,2}", "\\PC{0,3}|192.0.2.[1-3]"), 0..30),
            extensions in prop::collection::vec(("a|domain|", "[a-c]{0,2}|z{130}"), 0..4),
        ) {
            let map = |field: u32, pairs: &[(String, String)]| {
                let mut bytes = Vec::new();
                for (name, value) in pairs {
                    let mut entry = Vec::new();
                    prost::encoding::string::encode(1, name, &mut entry);
                    prost::encoding::string::encode(2, value, &mut entry);
                    prost::encoding::bytes::encode(field, &entry, &mut bytes);
                }
                bytes
            };
            let nested = |field: u32, inner: &Vec<u8>| {
                let mut bytes = Vec::new();
                prost::encoding::bytes::encode(field, inner, &mut bytes);
                bytes
            };
            let request = nested(4, &nested(2, &map(3, &headers)));
            let attributes = nested(1, &[request, map(10, &extensions)].concat());
            prop_assert!(agrees(&attributes));
        }
    }
}
