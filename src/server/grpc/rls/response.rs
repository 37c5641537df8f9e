//! Writes responses of the rate limit service.

use super::units::unit_of;
use crate::decision::{CheckStatus, Decision, DescriptorVerdict};
use crate::rules::RuleHeaders;
use crate::server::grpc::generated::envoy::service::ratelimit::v3::rate_limit_response::Code;
use crate::server::grpc::generated::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use crate::server::grpc::metadata;
use crate::server::grpc::wire::MessageWriter;
use crate::server::headers;
use crate::settings::HeaderFamilies;

/// Writes a [`RateLimitResponse`], by the numbers of its fields.
pub(super) fn write(decision: &Decision, families: HeaderFamilies, writer: &mut MessageWriter) {
    writer.number(1, code(decision.allowed()) as u64);
    for status in decision.statuses() {
        writer.message(2, |writer| write_status(&status, families.names, writer));
    }
    let refusal = decision.refusal();
    let headers = headers::of(decision, refusal.as_ref(), families);
    let body = refusal.as_ref().and_then(|refusal| headers::body(refusal, families));
    let media_type = body.as_ref().map(|(_, media_type)| ("content-type", media_type.as_str()));
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in headers.chain(media_type) {
        writer.message(3, |header| {
            header.text(1, name.as_bytes());
            header.text(2, value.as_bytes());
        });
    }
    if let Some((body, _)) = &body {
        writer.text(5, body.as_bytes());
    }
    metadata::write(decision, refusal.as_ref(), 6, writer);
}

fn code(allowed: bool) -> Code {
    if allowed { Code::Ok } else { Code::OverLimit }
}

/// Writes a `DescriptorStatus`: everything that its check shows, with or without the limiter's name.
fn write_status(status: &DescriptorVerdict<'_>, names: bool, writer: &mut MessageWriter) {
    writer.number(1, code(status.allowed) as u64);
    let Some(counted) = &status.check else { return };
    match counted.headers {
        RuleHeaders::None => {}
        // Envoy makes the header from the time.
        RuleHeaders::RetryAfter if status.allowed => {}
        RuleHeaders::RetryAfter => write_until(counted, status.allowed, writer),
        RuleHeaders::All => {
            write_limit(counted, names, writer);
            writer.number(3, counted.remaining.into());
            write_until(counted, status.allowed, writer);
        }
    }
}

fn write_limit(counted: &CheckStatus<'_>, names: bool, writer: &mut MessageWriter) {
    // The configured numbers: the largest unit that the window is whole numbers of.
    writer.message(2, |limit| {
        let (unit, multiplier) = counted.window.map_or((Unit::Unknown, 0), unit_of);
        limit.number(1, counted.limit.into());
        limit.number(2, unit as u64);
        if names {
            limit.text(3, counted.limiter.as_bytes());
        }
        if multiplier > 1 {
            limit.message(4, |wrapped| wrapped.number(1, multiplier.into()));
        }
    });
}

fn write_until(counted: &CheckStatus<'_>, allowed: bool, writer: &mut MessageWriter) {
    writer.message(4, |duration| {
        let (seconds, nanos) = until(counted, allowed);
        duration.number(1, seconds);
        duration.number(2, nanos.into());
    });
}

/// Time until the reset. Envoy copies it to `retry-after` of a refusal in whole seconds, so that is rounded up.
fn until(counted: &CheckStatus<'_>, allowed: bool) -> (u64, u32) {
    let until = headers::until(counted);
    match allowed {
        true => (until.as_secs(), until.subsec_nanos()),
        false => (headers::seconds(until), 0),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::google::protobuf::Struct;
    use prost::Message;

    use super::*;
    use crate::descriptor::{self, Descriptor};
    use crate::server::grpc::frame::fixtures::engine;
    use crate::server::grpc::frame::frame;
    use crate::server::grpc::generated::envoy::config::core::v3::HeaderValue;
    use crate::server::grpc::generated::envoy::service::ratelimit::v3::RateLimitResponse;
    use crate::server::grpc::generated::envoy::service::ratelimit::v3::rate_limit_response::{
        DescriptorStatus, RateLimit,
    };

    /// The expected message, made of the generated types, without metadata.
    fn expected(decision: &Decision, families: HeaderFamilies) -> RateLimitResponse {
        let refusal = decision.refusal();
        let headers = headers::of(decision, refusal.as_ref(), families).into_iter();
        let mut headers: Vec<(String, String)> = headers.map(|(name, value)| (name.to_owned(), value)).collect();
        let body = refusal.and_then(|refusal| headers::body(&refusal, families));
        let raw_body = body.map_or_else(Bytes::new, |(body, media_type)| {
            headers.push(("content-type".to_owned(), media_type));
            body.into()
        });
        RateLimitResponse {
            overall_code: code(decision.allowed()).into(),
            statuses: decision.statuses().map(|status| meant_status(&status, families.names)).collect(),
            response_headers_to_add: headers
                .into_iter()
                .map(|(key, value)| HeaderValue { key, value, raw_value: Bytes::new() })
                .collect(),
            raw_body,
            ..Default::default()
        }
    }

    fn meant_status(status: &DescriptorVerdict<'_>, names: bool) -> DescriptorStatus {
        let code = code(status.allowed).into();
        let Some(counted) = status.check else { return DescriptorStatus { code, ..Default::default() } };
        let (unit, multiplier) = counted.window.map_or((Unit::Unknown, 0), unit_of);
        let (seconds, nanos) = until(&counted, status.allowed);
        let reset = Some(prost_types::Duration { seconds: seconds as i64, nanos: nanos as i32 });
        match counted.headers {
            RuleHeaders::None => return DescriptorStatus { code, ..Default::default() },
            RuleHeaders::RetryAfter => {
                let duration_until_reset = reset.filter(|_| !status.allowed);
                return DescriptorStatus { code, duration_until_reset, ..Default::default() };
            }
            RuleHeaders::All => {}
        }
        DescriptorStatus {
            code,
            limit_remaining: counted.remaining,
            duration_until_reset: reset,
            current_limit: Some(RateLimit {
                name: if names { counted.limiter.to_owned() } else { String::new() },
                requests_per_unit: counted.limit,
                unit: unit.into(),
                unit_multiplier: (multiplier > 1).then_some(multiplier),
            }),
            quota: None,
        }
    }

    #[tokio::test]
    async fn an_answer_is_written_as_the_generated_types_would_write_it() {
        let engine = engine();
        let long = format!("/{}", "l".repeat(200));
        let all = HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true, names: true };
        let nameless = HeaderFamilies { names: false, ..all };
        let none =
            HeaderFamilies { x_ratelimit: false, ietf: false, retry_after: false, problem_json: false, names: true };
        let mut refused = 0;
        for paths in [&["/window"][..], &["/quiet"], &["/silent"], &["/bucket", "/window"], &["/other"], &[&long], &[]]
        {
            for _ in 0..4 {
                let entries = |path| [("path", path), ("account", "a")];
                let descriptors = paths.iter().map(|path| Descriptor::of(entries(*path))).collect();
                let decision = engine.decide(&descriptor::Request { domain: "edge", descriptors }).await;
                refused += usize::from(!decision.allowed());
                for families in [all, nameless, none] {
                    let written = MessageWriter::frame(|writer| write(&decision, families, writer));
                    let decoded = RateLimitResponse::decode(&written[5..]).expect("it can be read");
                    assert_eq!(frame(&decoded), written, "the bytes differ");
                    let facts = Some(&decoded.dynamic_metadata).filter(|bytes| !bytes.is_empty());
                    let facts = facts.map(|bytes| Struct::decode(bytes.clone()).expect("it can be read"));
                    assert_eq!(facts, metadata::message(&decision));
                    let decoded = RateLimitResponse { dynamic_metadata: Bytes::new(), ..decoded };
                    assert_eq!(decoded, expected(&decision, families), "{paths:?}");
                }
            }
        }
        assert_eq!(refused, 2 + 2 + 2 + 4 + 3, "answers of both kinds were compared");
    }
}
