//! An ext_authz request, decoded by the generated types.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};
use envoy_types::pb::google::protobuf::Value;
use envoy_types::pb::google::protobuf::value::Kind;

use super::address::{client, present};
use crate::server::authz_request::AuthzRequest;
use crate::settings;

/// A decoded request.
pub(super) struct DecodedCheck<'a> {
    attributes: &'a AttributeContext,
    http: Option<&'a HttpRequest>,
}

impl<'a> DecodedCheck<'a> {
    pub(super) fn new(attributes: &'a AttributeContext) -> Self {
        let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        Self { attributes, http }
    }

    fn source(&self) -> Option<&'a Peer> {
        self.attributes.source.as_ref()
    }
}

impl AuthzRequest for DecodedCheck<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.method)
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.path)
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        present(&self.http?.host)
    }

    /// From the map, or from the list that replaces it with `encode_raw_headers`.
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

    fn joins_headers(&self) -> bool {
        self.http.is_none_or(|http| http.header_map.is_none() || !http.headers.is_empty())
    }

    fn remote_address(&self, settings: &settings::AuthzSettings) -> Option<Cow<'_, str>> {
        let peer = self.source().and_then(|source| match source.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => Some(socket.address.as_str()),
            Address::Pipe(_) | Address::EnvoyInternalAddress(_) => None,
        });
        client(self, peer, settings)
    }

    fn context(&self, key: &str) -> Option<&str> {
        self.attributes.context_extensions.get(key).map(String::as_str)
    }

    /// Metadata of the request, else of its route.
    fn metadata(&self, namespace: &str, path: &[String]) -> Vec<Cow<'_, str>> {
        let AttributeContext { metadata_context, route_metadata_context, .. } = self.attributes;
        let found = |metadata: &'_ Option<Metadata>| {
            let texts = texts(value(metadata.as_ref()?, namespace, path)?);
            Some(texts).filter(|texts| !texts.is_empty())
        };
        let texts = found(metadata_context).or_else(|| found(route_metadata_context)).unwrap_or_default();
        texts.into_iter().map(Cow::Owned).collect()
    }

    fn principal(&self) -> Option<&str> {
        self.source().map(|source| source.principal.as_str()).filter(|principal| !principal.is_empty())
    }

    fn body(&self) -> Option<&[u8]> {
        let Some(http) = self.http else { return Some(&[]) };
        Some(if http.raw_body.is_empty() { http.body.as_bytes() } else { &http.raw_body })
    }
}

fn value<'a>(metadata: &'a Metadata, namespace: &str, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let outermost = metadata.filter_metadata.get(namespace)?.fields.get(first)?;
    rest.iter().try_fold(outermost, |value, key| match &value.kind {
        Some(Kind::StructValue(inner)) => inner.fields.get(key),
        _ => None,
    })
}

/// The texts of a value, or of the values of a list.
fn texts(value: &Value) -> Vec<String> {
    match &value.kind {
        Some(Kind::ListValue(list)) => list.values.iter().filter_map(text).collect(),
        _ => text(value).into_iter().collect(),
    }
}

/// A value as rules write it. Numbers are doubles in protobuf: 42 becomes `42`.
fn text(value: &Value) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(truth) => Some(truth.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}
