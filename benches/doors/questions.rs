//! The requests of the benches: a login with three entries through RLS, and the same with twenty headers through
//! ext_authz.

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use envoy_types::pb::google::protobuf::Timestamp;
use prost::Message;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitRequest;

pub const RLS: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
pub const AUTHZ: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The client's address where it does not matter.
pub const ADDRESS: &str = "192.0.2.7";

/// One descriptor of three entries.
pub fn rls(domain: &str, path: &str, account: &str, address: &str) -> RateLimitRequest {
    let entry = |(key, value): (&str, &str)| Entry {
        key: key.to_owned().into_bytes().into(),
        value: value.to_owned().into_bytes().into(),
    };
    let entries = [("path", path), ("account", account), ("remote_address", address)].map(entry);
    let descriptor = RateLimitDescriptor { entries: entries.into(), ..RateLimitDescriptor::default() };
    RateLimitRequest {
        domain: domain.to_owned().into_bytes().into(),
        descriptors: vec![descriptor],
        ..RateLimitRequest::default()
    }
}

/// A request as Envoy sends it with `encode_raw_headers`, which docs/envoy.md recommends.
pub fn authz(path: &str, account: &str) -> CheckRequest {
    let peer = |address: &str, port| {
        let port_specifier = Some(PortSpecifier::PortValue(port));
        let socket = SocketAddress { address: address.into(), port_specifier, ..SocketAddress::default() };
        Peer { address: Some(Address { address: Some(Kind::SocketAddress(socket)) }), ..Peer::default() }
    };
    let header =
        |(key, value): (String, String)| HeaderValue { key, raw_value: value.into(), ..HeaderValue::default() };
    let headers = authz_headers(account).into_iter().map(header).collect();
    let http = HttpRequest {
        id: "1234567890123456789".into(),
        method: "POST".into(),
        header_map: Some(HeaderMap { headers }),
        path: path.into(),
        host: "shop.example.com".into(),
        scheme: "https".into(),
        protocol: "HTTP/2".into(),
        ..HttpRequest::default()
    };
    let request = Request { time: Some(Timestamp { seconds: 1_800_000_000, nanos: 123_456_000 }), http: Some(http) };
    let attributes = AttributeContext {
        source: Some(peer(ADDRESS, 49_152)),
        destination: Some(peer("192.0.2.1", 443)),
        request: Some(request),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Twenty headers, as a browser behind an Envoy sends them.
pub fn authz_headers(account: &str) -> Vec<(String, String)> {
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let headers = [
        ("x-account", account),
        ("x-envoy-external-address", ADDRESS),
        ("x-forwarded-for", ADDRESS),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "0f9cbe7a-6c5e-4a8e-9f0e-3f1f7d0c2b11"),
        ("user-agent", agent),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-GB,en;q=0.7,de;q=0.3"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "https://shop.example.com/account"),
        ("origin", "https://shop.example.com"),
        ("cookie", "session=4f1d0a9b7c6e5d4c3b2a19080706f5e4d3c2b1a0; theme=dark"),
        ("dnt", "1"),
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-user", "?1"),
        ("upgrade-insecure-requests", "1"),
        ("priority", "u=0, i"),
        ("cache-control", "no-cache"),
    ];
    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

pub fn rls_frame(domain: &str, path: &str, account: &str, address: &str) -> Vec<u8> {
    framed(&rls(domain, path, account, address))
}

pub fn authz_frame(path: &str, account: &str) -> Vec<u8> {
    framed(&authz(path, account))
}

/// Frames a message for gRPC: a zero for "not compressed", four bytes of length, the message.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a question is short");
    [&[0][..], &length.to_be_bytes(), &body].concat()
}
