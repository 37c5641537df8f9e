//! Any bytes as an ext_authz request over gRPC.

use std::sync::LazyLock;

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
    assert_eq!(admitted, if counted { LIMIT } else { LIMIT + 1 });
}
