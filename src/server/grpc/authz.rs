//! Envoy's external authorization over gRPC: `envoy.service.auth.v3.Authorization`.
//!
//! The address of the client is, where the operator trusts it, the one in `x-envoy-external-address`; else the one in
//! `X-Forwarded-For`, `trusted_hops` from the right; else the direct peer.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, Metadata};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Value;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::rpc;
use http::Response;
use prost::Message;
use tonic::Code;
use tonic::body::Body;

use super::undo::Acquired;
use super::{Refused, frame, metadata, unary};
use crate::decision::Decision;
use crate::server::authz::{Asked, Verdict, forwarded_for, joined, one_address, question};
use crate::server::desk::Desk;
use crate::server::headers::Header;
use crate::server::settings::{self, HeaderFamilies};
use crate::telemetry::Door;

/// The answer to a question that cannot be read.
pub(super) const UNREAD: Refused = || frame(&denied(429, Vec::new(), String::new()));

/// The service.
#[derive(Debug)]
pub(super) struct Authz {
    desk: Arc<Desk>,
}

impl Authz {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk }
    }

    /// Answers one question; `None` when it makes no sense.
    pub(super) async fn answer(&self, message: Bytes) -> Option<Response<Body>> {
        let attributes = CheckRequest::decode(message).ok()?.attributes.unwrap_or_default();
        let told = Told::new(&attributes);
        let in_use = self.desk.in_use();
        let question = question(&told, &in_use.settings.authz);
        let decision = self.desk.decide(&in_use, Door::AuthzGrpc, &question).await;
        let frame = frame(&answer(&decision, in_use.settings.authz_headers));
        Some(unary::answer(frame, decision.lease().map(|lease| Acquired(lease.into()))))
    }
}

/// What Envoy told about a request.
struct Told<'a> {
    attributes: &'a AttributeContext,
    http: Option<&'a HttpRequest>,
}

impl<'a> Told<'a> {
    fn new(attributes: &'a AttributeContext) -> Self {
        let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        Self { attributes, http }
    }

    fn source(&self) -> Option<&'a Peer> {
        self.attributes.source.as_ref()
    }
}

impl Asked for Told<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.method)
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.path)
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.host)
    }

    /// From the map, or, with `encode_raw_headers`, from the list that stands in its place.
    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let joined = self.http.and_then(|http| http.headers.get(name));
        let raw = self.http.filter(|_| joined.is_none()).and_then(|http| http.header_map.as_ref());
        let raw = raw.into_iter().flat_map(|map| &map.headers).filter(|header| header.key.eq_ignore_ascii_case(name));
        let raw = raw.map(|header| match header.raw_value.is_empty() {
            true => Cow::Borrowed(header.value.as_str()),
            false => String::from_utf8_lossy(&header.raw_value),
        });
        joined.map(|value| Cow::Borrowed(value.as_str())).into_iter().chain(raw)
    }

    fn remote_address(&self, settings: &settings::Authz) -> Option<Cow<'_, str>> {
        if settings.trust_external_address
            && let Some(address) = joined(self.headers("x-envoy-external-address")).and_then(one_address)
        {
            return Some(address);
        }
        if let Some(header) = joined(self.headers("x-forwarded-for"))
            && let Some(address) = forwarded_for(&header, settings.trusted_hops)
        {
            return Some(Cow::Owned(address.to_owned()));
        }
        match self.source()?.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => present(&socket.address),
            Address::Pipe(_) | Address::EnvoyInternalAddress(_) => None,
        }
    }

    fn context(&self, key: &str) -> Option<&str> {
        self.attributes.context_extensions.get(key).map(String::as_str)
    }

    /// Of the request, or else of its route.
    fn metadata(&self, namespace: &str, path: &[String]) -> Option<Cow<'_, str>> {
        let AttributeContext { metadata_context, route_metadata_context, .. } = self.attributes;
        let found = |metadata: &'_ Option<Metadata>| value(metadata.as_ref()?, namespace, path).and_then(text);
        found(metadata_context).or_else(|| found(route_metadata_context)).map(Cow::Owned)
    }

    fn principal(&self) -> Option<&str> {
        self.source().map(|source| source.principal.as_str()).filter(|principal| !principal.is_empty())
    }
}

/// Proto3 says nothing by an empty text.
fn present(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

fn value<'a>(metadata: &'a Metadata, namespace: &str, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let outermost = metadata.filter_metadata.get(namespace)?.fields.get(first)?;
    rest.iter().try_fold(outermost, |value, key| match &value.kind {
        Some(Kind::StructValue(inner)) => inner.fields.get(key),
        _ => None,
    })
}

/// A value as a rule would write it. Numbers arrive as doubles: 42 is `42`.
fn text(value: &Value) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(truth) => Some(truth.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

fn answer(decision: &Decision, families: HeaderFamilies) -> CheckResponse {
    let Verdict { refused, headers, body } = Verdict::of(decision, families);
    let response = match refused {
        None => passed(headers),
        Some(status) => denied(status, headers, body),
    };
    CheckResponse { dynamic_metadata: metadata::message(decision), ..response }
}

fn passed(headers: Vec<Header>) -> CheckResponse {
    let ok = OkHttpResponse {
        response_headers_to_add: headers.into_iter().map(header).collect(),
        ..OkHttpResponse::default()
    };
    CheckResponse {
        status: Some(rpc::Status { code: Code::Ok.into(), ..rpc::Status::default() }),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: None,
    }
}

fn denied(status: u16, headers: Vec<Header>, body: String) -> CheckResponse {
    // Envoy reads no more of the code than that it is not zero; others may.
    let code = match status {
        429 => Code::ResourceExhausted,
        500..=599 => Code::Unavailable,
        _ => Code::PermissionDenied,
    };
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: i32::from(status) }),
        headers: headers.into_iter().map(header).collect(),
        body,
    };
    CheckResponse {
        status: Some(rpc::Status { code: code.into(), ..rpc::Status::default() }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        dynamic_metadata: None,
    }
}

/// One value of a header, in the place of any that is there. Envoy drops headers of a refusal whose `append` is true,
/// so that is never said.
fn header((name, value): Header) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, raw_value: Vec::new() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}
