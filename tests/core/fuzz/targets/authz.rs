//! Any bytes as an ext_authz request over gRPC.

use std::sync::LazyLock;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use prost::Message;

use super::doors::Doors;

const LIMIT: usize = 3;

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [limiters]
        account = { algorithm = "sliding_window", limit = 3, window = "1h" }
        all = { algorithm = "token_bucket", limit = 3, window = "1h" }

        [[rules]]
        domain = "edge"
        name = "methods"
        match = { method = "*" }
        apply = [{ limiter = "all", key = ["path"], missing = "empty" }]

        [[rules]]
        domain = "edge"
        name = "accounts"
        match = { account = "*" }
        apply = [{ limiter = "account", key = ["account", "remote_address"], missing = "empty" }]

        [authz]
        domain = "edge"
        trusted_hops = 2
        trust_external_address = true

        [authz.entries]
        account = { header = "x-account", default = "nobody" }
        session = { cookie = "sid" }
        page = { query = "page" }
        route = { context = "route" }
        subject = { metadata = "jwt:payload.sub" }
        peer = { principal = true }
        "#,
    )
});

pub fn run(data: &[u8]) {
    let doors = DOORS.forget();
    let admits = || {
        let answer = CheckResponse::decode(doors.call("Check", data)).expect("an answer is well formed");
        match answer.http_response {
            Some(HttpResponse::OkResponse(_)) => true,
            Some(HttpResponse::DeniedResponse(_)) => false,
            other => panic!("{other:?} neither lets pass nor refuses"),
        }
    };
    let Ok(question) = CheckRequest::decode(data) else {
        assert!(!admits(), "what cannot be read is refused");
        return;
    };
    let attributes = question.attributes.unwrap_or_default();
    // A route may name another domain, which has no rules.
    let counted = attributes.context_extensions.get("domain").is_none_or(|domain| domain == "edge");
    let admitted = (0..=LIMIT).filter(|_| admits()).count();
    let expected = match (counted, attributes.request.and_then(|request| request.http)) {
        (false, _) => LIMIT + 1,
        (true, Some(http)) if repeats_account(&http) => 0,
        (true, _) => LIMIT,
    };
    assert_eq!(admitted, expected);
}

/// Whether a request names the account several times, or Envoy may have joined several.
fn repeats_account(http: &HttpRequest) -> bool {
    let raw = http.header_map.iter().flat_map(|map| &map.headers);
    let raw: Vec<_> = raw.filter(|header| header.key.eq_ignore_ascii_case("x-account")).collect();
    match (http.headers.get("x-account"), raw.as_slice()) {
        (Some(joined), _) => joined.contains(','),
        (None, [one]) => {
            let joins = http.header_map.is_none() || !http.headers.is_empty();
            let value = if one.raw_value.is_empty() { one.value.as_bytes() } else { &one.raw_value };
            joins && value.contains(&b',')
        }
        (None, several) => several.len() > 1,
    }
}
