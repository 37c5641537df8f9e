//! What an answer tells Envoy apart from headers: the lease, and what decided.
//!
//! Envoy keeps it as dynamic metadata of the request, where later filters and the access log find it.

use bytes::Bytes;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::decision::Decision;

/// The facts that there are, by name.
fn facts(decision: &Decision) -> impl Iterator<Item = (&'static str, &str)> + Clone {
    let refusal = decision.refusal();
    let limiter = match &refusal {
        Some(refusal) => refusal.limiter,
        None => decision.tightest().map(|counted| counted.limiter),
    };
    let facts =
        [("lease", decision.lease()), ("rule", decision.rule()), ("limiter", limiter), ("tier", decision.tier())];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// As a message of ext_authz has it.
pub(super) fn message(decision: &Decision) -> Option<Struct> {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields: std::collections::HashMap<_, _> =
        facts(decision).map(|(name, value)| (name.to_owned(), text(value))).collect();
    (!fields.is_empty()).then_some(Struct { fields })
}

/// The same, encoded: a `google.protobuf.Struct` without the map of owned texts, for it goes out with every answer.
///
/// ```text
///   Struct { fields: 1 = repeated Entry { key: 1 = name, value: 2 = Value { string_value: 3 = text } } }
/// ```
pub(super) fn encoded(decision: &Decision) -> Bytes {
    let text_len = |text: &str| 1 + encoded_len_varint(text.len() as u64) + text.len();
    let entry_len = |name: &str, value: &str| {
        let value = text_len(value);
        text_len(name) + 1 + encoded_len_varint(value as u64) + value
    };
    let facts = facts(decision);
    let len = facts.clone().map(|(name, value)| {
        let entry = entry_len(name, value);
        1 + encoded_len_varint(entry as u64) + entry
    });
    let mut bytes = Vec::with_capacity(len.sum());
    let open = |bytes: &mut Vec<u8>, field: u32, len: usize| {
        encode_key(field, WireType::LengthDelimited, bytes);
        encode_varint(len as u64, bytes);
    };
    for (name, value) in facts {
        open(&mut bytes, 1, entry_len(name, value));
        open(&mut bytes, 1, name.len());
        bytes.extend_from_slice(name.as_bytes());
        open(&mut bytes, 2, text_len(value));
        open(&mut bytes, 3, value.len());
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.into()
}
