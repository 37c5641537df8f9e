//! Dynamic metadata of a response: the lease, also by a name with its domain; the rule, limiter and tier that decided; the reason of a refusal; whether a
//! store did not answer; and the rule in shadow mode that would have refused.
//!
//! Envoy attaches it to the request, where later filters and the access log find it.

#[cfg(test)]
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::wire::MessageWriter;
use crate::decision::{Decision, Refusal};

/// The field that is true if a store did not answer, and absent otherwise.
const DEGRADED: &str = "degraded";

/// The texts that are present, by name.
fn facts<'a>(decision: &'a Decision, refusal: Option<&Refusal<'a>>) -> impl Iterator<Item = (&'static str, &'a str)> {
    let (rule, limiter) = match refusal {
        Some(refusal) => (refusal.rule, refusal.limiter),
        None => decision.tightest().map_or((None, None), |counted| (counted.rule, Some(counted.limiter))),
    };
    let facts = [
        ("lease", decision.lease()),
        ("rule", rule),
        ("limiter", limiter),
        ("tier", decision.tier()),
        ("reason", refusal.map(|refusal| refusal.reason.name())),
        ("would_refuse", decision.would_refuse()),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// The lease once more, by a name with its domain: of two filters in one chain, the second would replace the first's.
fn lease_of_domain(decision: &Decision) -> Option<(String, &str)> {
    let lease = decision.lease()?;
    let planned = decision.planned();
    let domain = decision.rules().domain_name(planned.domain?)?;
    Some((format!("lease_{domain}"), lease))
}

/// Returns the metadata as a generated message, which tests compare with the written bytes.
#[cfg(test)]
pub(super) fn message(decision: &Decision) -> Option<Struct> {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let mut fields: std::collections::HashMap<_, _> =
        facts(decision, decision.refusal().as_ref()).map(|(name, value)| (name.to_owned(), text(value))).collect();
    fields.extend(lease_of_domain(decision).map(|(name, lease)| (name, text(lease))));
    if decision.degraded() {
        fields.insert(DEGRADED.to_owned(), Value { kind: Some(Kind::BoolValue(true)) });
    }
    (!fields.is_empty()).then_some(Struct { fields })
}

/// Writes the metadata as a `google.protobuf.Struct` in a field of the response, or nothing if it is empty.
///
/// ```text
///   Struct { fields: 1 = repeated Entry { key: 1 = name, value: 2 = Value { string_value: 3 = text, bool_value: 4 } } }
/// ```
pub(super) fn write(decision: &Decision, refusal: Option<&Refusal<'_>>, field: u32, writer: &mut MessageWriter) {
    let mut facts = facts(decision, refusal).peekable();
    let degraded = decision.degraded();
    if facts.peek().is_none() && !degraded {
        return;
    }
    writer.message(field, |fields| {
        let mut put = |name: &str, value: &str| {
            fields.message(1, |entry| {
                entry.text(1, name.as_bytes());
                entry.message(2, |text| text.oneof_text(3, value.as_bytes()));
            });
        };
        facts.for_each(|(name, value)| put(name, value));
        if let Some((name, lease)) = lease_of_domain(decision) {
            put(&name, lease);
        }
        if degraded {
            fields.message(1, |entry| {
                entry.text(1, DEGRADED.as_bytes());
                entry.message(2, |value| value.number(4, 1));
            });
        }
    });
}
