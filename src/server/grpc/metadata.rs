//! What an answer tells Envoy apart from headers: the lease, and what decided.
//!
//! Envoy keeps it as dynamic metadata of the request, where later filters and the access log find it.

#[cfg(test)]
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::wire::Writer;
use crate::decision::{Decision, Refusal};

/// The facts that there are, by name.
fn facts<'a>(decision: &'a Decision, refusal: Option<&Refusal<'a>>) -> impl Iterator<Item = (&'static str, &'a str)> {
    let (rule, limiter) = match refusal {
        Some(refusal) => (refusal.rule, refusal.limiter),
        None => decision.tightest().map(|counted| (counted.rule, counted.limiter)).unzip(),
    };
    let facts = [("lease", decision.lease()), ("rule", rule), ("limiter", limiter), ("tier", decision.tier())];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// As a message of ext_authz has it: what the bytes are held to.
#[cfg(test)]
pub(super) fn message(decision: &Decision) -> Option<Struct> {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let fields: std::collections::HashMap<_, _> =
        facts(decision, decision.refusal().as_ref()).map(|(name, value)| (name.to_owned(), text(value))).collect();
    (!fields.is_empty()).then_some(Struct { fields })
}

/// The same, as the bytes of a `google.protobuf.Struct` in a field of the answer. Nothing where there are no facts.
///
/// ```text
///   Struct { fields: 1 = repeated Entry { key: 1 = name, value: 2 = Value { string_value: 3 = text } } }
/// ```
pub(super) fn write(decision: &Decision, refusal: Option<&Refusal<'_>>, field: u32, writer: &mut Writer) {
    let mut facts = facts(decision, refusal).peekable();
    if facts.peek().is_none() {
        return;
    }
    writer.message(field, |fields| {
        for (name, value) in facts {
            fields.message(1, |entry| {
                entry.text(1, name.as_bytes());
                entry.message(2, |text| text.chosen_text(3, value.as_bytes()));
            });
        }
    });
}
