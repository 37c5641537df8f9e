//! Writes a [`CheckResponse`](envoy_types::pb::envoy::service::auth::v3::CheckResponse) by the numbers of its fields.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use super::super::metadata;
use super::super::wire::MessageWriter;
use crate::decision::Decision;
use crate::server::ext_authz::{Verdict, grpc_code};
use crate::server::headers::Header;
use crate::settings::HeaderFamilies;

// The fields of a `CheckResponse`.
const STATUS: u32 = 1;
const DENIED_RESPONSE: u32 = 2;
const OK_RESPONSE: u32 = 3;
const DYNAMIC_METADATA: u32 = 4;

/// Writes the response for a decision on a request, which may be a gRPC request.
pub(super) fn write(decision: &Decision, families: HeaderFamilies, is_grpc: bool, writer: &mut MessageWriter) {
    let refusal = decision.refusal();
    let Verdict { refusal_status, headers, body } = Verdict::of(decision, refusal.as_ref(), families, is_grpc);
    match refusal_status {
        None => passed(&headers, writer),
        Some(status) => denied(status, &headers, &body, writer),
    }
    metadata::write(decision, refusal.as_ref(), DYNAMIC_METADATA, writer);
}

fn passed(headers: &[Header], writer: &mut MessageWriter) {
    // OK is zero, which proto3 omits.
    writer.message(STATUS, |_| {});
    writer.message(OK_RESPONSE, |response| {
        headers.iter().for_each(|pair| response.message(6, |option| header(pair, option)));
    });
}

/// Writes a refusal with this HTTP status.
pub(super) fn denied(status: u16, headers: &[Header], body: &str, writer: &mut MessageWriter) {
    writer.message(STATUS, |rpc_status| rpc_status.number(1, grpc_code(status).into()));
    writer.message(DENIED_RESPONSE, |response| {
        response.message(1, |http_status| http_status.number(1, status.into()));
        headers.iter().for_each(|pair| response.message(2, |option| header(pair, option)));
        response.text(3, body.as_bytes());
    });
}

/// Writes a header that overwrites one of its name. Envoy drops headers of a refusal whose `append` is true, so it is
/// never set.
fn header((name, value): &Header, option: &mut MessageWriter) {
    option.message(1, |header| {
        header.text(1, name.as_bytes());
        header.text(2, value.as_bytes());
    });
    option.number(3, HeaderAppendAction::OverwriteIfExistsOrAdd as u64);
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
    use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
    use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::rpc;
    use prost::Message;

    use super::*;
    use crate::descriptor::{Descriptor, Request};
    use crate::server::grpc::frame::fixtures;
    use crate::server::grpc::frame::frame;

    /// The expected message, made of the generated types.
    fn expected_message(decision: &Decision, families: HeaderFamilies, is_grpc: bool) -> CheckResponse {
        let Verdict { refusal_status, headers, body } =
            Verdict::of(decision, decision.refusal().as_ref(), families, is_grpc);
        let headers = headers.into_iter().map(|(name, value)| HeaderValueOption {
            header: Some(HeaderValue { key: name.to_owned(), value, raw_value: Vec::new() }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        });
        let headers = headers.collect();
        let (code, response) = match refusal_status {
            None => {
                let ok = OkHttpResponse { response_headers_to_add: headers, ..OkHttpResponse::default() };
                (0, HttpResponse::OkResponse(ok))
            }
            Some(status) => {
                let http = Some(HttpStatus { code: status.into() });
                (grpc_code(status), HttpResponse::DeniedResponse(DeniedHttpResponse { status: http, headers, body }))
            }
        };
        CheckResponse {
            status: Some(rpc::Status { code: i32::from(code), ..rpc::Status::default() }),
            http_response: Some(response),
            dynamic_metadata: metadata::message(decision),
        }
    }

    #[tokio::test]
    async fn an_answer_is_written_as_the_generated_types_would_write_it() {
        let engine = fixtures::engine();
        let long = format!("/{}", "l".repeat(200));
        let all = HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true, names: true };
        let nameless = HeaderFamilies { names: false, ..all };
        let none =
            HeaderFamilies { x_ratelimit: false, ietf: false, retry_after: false, problem_json: false, names: true };
        let mut refused = 0;
        for path in ["/window", "/bucket", "/quiet", "/silent", "/other", &long] {
            for _ in 0..4 {
                let descriptors = [Descriptor::of([("path", path), ("account", "a")])].into_iter().collect();
                let decision = engine.decide(&Request { domain: "edge", descriptors }).await;
                refused += usize::from(!decision.allowed());
                for (families, is_grpc) in [(all, false), (nameless, false), (none, false), (all, true)] {
                    let written = MessageWriter::frame(|writer| write(&decision, families, is_grpc, writer));
                    let decoded = CheckResponse::decode(&written[5..]).expect("it can be read");
                    assert_eq!(decoded, expected_message(&decision, families, is_grpc), "{path}");
                    // The fields of the metadata are unordered.
                    assert_eq!(frame(&decoded).len(), written.len());
                }
            }
        }
        assert_eq!(refused, 2 + 1 + 2 + 2 + 3, "answers of both kinds were compared");
        let unread = MessageWriter::frame(|writer| denied(429, &[], "", writer));
        assert_eq!(frame(&CheckResponse::decode(&unread[5..]).expect("it can be read")), unread);
    }
}
