//! The effect of each door's responses on a real Envoy, beyond the examples. Each test changes an example in one place.

use std::thread;

use super::recipes::{Recipe, settled};
use crate::support::processes::{Answer, Ask, Gateway, read, until};

fn example(name: &str) -> String {
    read(format!("examples/envoy/{name}"))
}

/// Replaces a part of a text that must occur exactly once.
fn with(text: &str, part: &str, other: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part:?} in\n{text}");
    text.replace(part, other)
}

/// An Envoy configuration whose only route returns values of a filter's dynamic metadata to the client.
fn returning_metadata(envoy: &str, filter: &str, keys: &[&str]) -> String {
    let headers: Vec<String> = keys
        .iter()
        .map(|key| {
            let name = key.trim_start_matches("x-tollgate-");
            format!("{{header: {{key: metadata-{name}, value: \"%DYNAMIC_METADATA({filter}:{key})%\"}}}}")
        })
        .collect();
    let route = "              - match: {prefix: /}\n";
    with(envoy, route, &format!("{route}                response_headers_to_add: [{}]\n", headers.join(", ")))
}

const RLS: &str = "envoy.filters.http.ratelimit";
const AUTHZ: &str = "envoy.filters.http.ext_authz";

#[test]
fn rls_returns_rule_limiter_and_lease_in_dynamic_metadata() {
    let envoy = returning_metadata(&example("concurrency.yaml"), RLS, &["rule", "limiter", "lease"]);
    let Some(gateway) = Gateway::start(&envoy, &example("concurrency.toml")) else { return };
    let first = gateway.ask(&Ask::get("/").account("ada")).expect(200);
    let second = gateway.ask(&Ask::get("/").account("ada")).expect(200);
    for answer in [&first, &second] {
        assert_eq!(answer.header("metadata-rule"), Some("exports"));
        assert_eq!(answer.header("metadata-limiter"), Some("exports"));
        assert!(answer.header("metadata-lease").is_some_and(|lease| lease.len() > 16), "{answer:?}");
    }
    assert_ne!(first.header("metadata-lease"), second.header("metadata-lease"));

    // A refusal has no lease, but names the limiter that refused.
    let slow = Ask::get("/slow").account("bob");
    let _held = [1, 2].map(|running| {
        let stream = slow.begin(gateway.port(10_000)).expect("Envoy accepts");
        until("a slot to be taken", || gateway.upstream.held() == running);
        stream
    });
    let refused = gateway.ask(&slow).expect(429);
    assert_eq!((refused.header("metadata-rule"), refused.header("metadata-lease")), (Some("exports"), None));

    // So does a refusal for a missing account.
    let refused = gateway.ask(&Ask::get("/")).expect(429);
    assert_eq!((refused.header("metadata-rule"), refused.header("metadata-lease")), (Some("exports"), None));
}

#[test]
fn a_lease_that_a_client_sends_is_worth_nothing() {
    let envoy = returning_metadata(&example("concurrency.yaml"), RLS, &["lease"]);
    let envoy = with(
        &envoy,
        "              - actions:\n                - metadata:\n                    descriptor_key: release\n",
        "              - actions:\n                - request_headers: {header_name: x-release, descriptor_key: release}\n              - actions:\n                - metadata:\n                    descriptor_key: release\n",
    );
    let Some(gateway) = Gateway::start(&envoy, &example("concurrency.toml")) else { return };
    let slow = Ask::get("/slow").account("ada");
    let _held = [1, 2].map(|running| {
        let stream = slow.begin(gateway.port(10_000)).expect("Envoy accepts");
        until("a slot to be taken", || gateway.upstream.held() == running);
        stream
    });
    for made_up in ["L17", "", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        gateway.ask(&slow.clone().header("x-release", made_up)).expect(429);
    }
}

#[test]
fn ext_authz_returns_rule_and_limiter_in_dynamic_metadata() {
    let keys = ["rule", "limiter"];
    let told_by_headers = ["x-tollgate-rule", "x-tollgate-limiter"];
    for (name, keys) in [("ext_authz_grpc", keys), ("ext_authz_http", told_by_headers)] {
        let envoy = returning_metadata(&example(&format!("{name}.yaml")), AUTHZ, &keys);
        let Some(gateway) = Gateway::start(&envoy, &example("ext_authz.toml")) else { return };
        for status in [200, 200, 200, 429] {
            let answer = gateway.ask(&Ask::get("/").account("ada").from("203.0.113.1")).expect(status);
            assert_eq!(answer.header("metadata-rule"), Some("requests"), "{name}");
            assert_eq!(answer.header("metadata-limiter"), Some("account"), "{name}");
        }
    }
}

#[test]
fn ext_authz_http_passes_only_what_the_example_names() {
    let Some(gateway) = Gateway::example("ext_authz_http", "ext_authz") else { return };
    for status in [200, 200, 200, 429] {
        let answer = gateway.ask(&Ask::get("/").account("ada").from("203.0.113.1")).expect(status);
        assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("x-tollgate")), "{answer:?}");
    }
    let seen = gateway.upstream.seen();
    assert!(seen.iter().all(|request| request.headers.iter().all(|(name, _)| !name.contains("ratelimit"))), "{seen:?}");
}

/// Envoy passes on characters that a URI must not have, and normalises only the path.
#[test]
fn a_target_that_is_no_uri_is_decided_by_the_rules_at_both_doors_of_ext_authz() {
    for name in ["ext_authz_grpc", "ext_authz_http"] {
        let envoy = with(&example(&format!("{name}.yaml")), "          normalize_path: true\n", "");
        let Some(gateway) = Gateway::start(&envoy, &example("ext_authz.toml")) else { return };
        for (n, target) in ["/?a=\"", "/?a=<b>", "/`", "/<", "/a\"b?c", "/?`"].iter().enumerate() {
            let ask = Ask::get(target).account(&format!("ada{n}")).from(&format!("203.0.113.{n}"));
            for status in [200, 200, 200, 429] {
                gateway.ask(&ask).expect(status);
            }
        }
    }
}

/// With `with_request_body` Envoy sends bodies to the HTTP door, where they decide nothing.
#[test]
fn a_body_that_envoy_sends_along_is_no_request_and_its_answer_arrives() {
    let filter = "              transport_api_version: V3\n";
    let bodies = "              with_request_body: {max_request_bytes: 300000, allow_partial_message: true}\n";
    let envoy = with(&example("ext_authz_http.yaml"), filter, &format!("{filter}{bodies}"));
    let rules = example("ext_authz.toml") + "\n[server.bounds]\nrequest_timeout = '1h'\n";
    let Some(gateway) = Gateway::start(&envoy, &rules) else { return };
    let smuggled = "GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\nx-account: ada\r\nx-forwarded-for: 203.0.113.1\r\n\r\n";
    for (n, body) in ["x", smuggled, &smuggled.repeat(100), &smuggled.repeat(3000)].into_iter().enumerate() {
        let ask = Ask::post("/").account(&format!("ada{n}")).from(&format!("203.0.113.{}", 10 + n)).body(body);
        for status in [200, 200, 200, 429] {
            gateway.ask(&ask).expect(status);
        }
    }
    for status in [200, 200, 200, 429] {
        gateway.ask(&Ask::get("/").account("ada").from("203.0.113.1")).expect(status);
    }
}

#[test]
fn a_refund_gives_units_back() {
    let charge = "hits_addend: {format: \"%CEL(request.method == 'GET' ? 1 : 5)%\"}";
    let envoy = with(
        &example("rls_filter.yaml"),
        &format!("                {charge}\n"),
        &format!(
            "                {charge}\n              - actions:\n                - remote_address: {{}}\n                - request_headers: {{header_name: x-account, descriptor_key: account}}\n                - request_headers: {{header_name: x-refund, descriptor_key: refund}}\n                hits_addend: {{number: 4, is_negative_hits: true}}\n"
        ),
    );
    let Some(gateway) = Gateway::start(&envoy, &example("rls_filter.toml")) else { return };
    let order = Ask::post("/orders").account("ada").from("203.0.113.1");
    assert_eq!(gateway.ask(&order).expect(200).remaining(), Some(5));
    // Four units are refunded before five are charged.
    assert_eq!(gateway.ask(&order.clone().header("x-refund", "yes")).expect(200).remaining(), Some(4));
    gateway.ask(&order).expect(429);
    // A refund to an untouched counter has no effect.
    let fresh = Ask::get("/orders").account("bob").from("203.0.113.9").header("x-refund", "yes");
    assert_eq!(gateway.ask(&fresh).expect(200).remaining(), Some(9));
}

#[test]
fn an_override_applies_where_the_limiter_allows_it() {
    let envoy = with(
        &example("rls_filter.yaml"),
        "                hits_addend:",
        "                limit: {rate_limit: {requests_per_unit: 2, unit: HOUR}}\n                hits_addend:",
    );
    let rules = example("rls_filter.toml");
    let heeding = with(&rules, "[limiters.account_units]\n", "[limiters.account_units]\noverride = true\n");
    for (rules, passes) in [(&rules, 10), (&heeding, 2)] {
        let Some(gateway) = Gateway::start(&envoy, rules) else { return };
        let ask = Ask::get("/orders").account("ada").from("203.0.113.1");
        for _ in 0..passes {
            gateway.ask(&ask).expect(200);
        }
        gateway.ask(&ask).expect(429);
    }
}

#[test]
fn retry_after_comes_once_even_where_envoy_writes_it_too() {
    let envoy = with(
        &example("rls_filter.yaml"),
        "              enable_x_ratelimit_headers: DRAFT_VERSION_03\n",
        "              enable_x_ratelimit_headers: DRAFT_VERSION_03\n              enable_retry_after_header: true\n",
    );
    let Some(gateway) = Gateway::start(&envoy, &example("rls_filter.toml")) else { return };
    let order = Ask::post("/orders").account("ada").from("203.0.113.1");
    for status in [200, 200, 429] {
        // Answer::header() fails on a duplicate header.
        assert_eq!(gateway.ask(&order).expect(status).retry_after().is_some(), status == 429);
    }
}

#[test]
fn all_headers_of_rls_can_be_switched_on() {
    let envoy = with(&example("rls_filter.yaml"), "              enable_x_ratelimit_headers: DRAFT_VERSION_03\n", "");
    let rules = example("rls_filter.toml");
    let rules = with(
        &rules,
        "\n[limiters.account_units]",
        "\n[server.headers.rls]\nx_ratelimit = true\nietf = true\nproblem_json = true\n\n[limiters.account_units]",
    );
    let Some(gateway) = Gateway::start(&envoy, &rules) else { return };
    let order = Ask::post("/orders").account("ada").from("203.0.113.1");
    for (status, left) in [(200, 5), (200, 0), (429, 0)] {
        let answer = gateway.ask(&order).expect(status);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("10"));
        assert_eq!(answer.remaining(), Some(left));
        assert!(answer.header("ratelimit").is_some_and(|state| state.contains(&format!("r={left};"))), "{answer:?}");
        assert!(answer.header("ratelimit-policy").is_some_and(|policy| policy.contains("q=10;w=60")), "{answer:?}");
        if status == 429 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            assert!(answer.body.starts_with('{'), "{answer:?}");
        }
    }
}

#[test]
fn of_many_at_once_exactly_the_limit_passes() {
    for (name, rules) in
        [("rls_filter", "rls_filter"), ("ext_authz_grpc", "ext_authz"), ("ext_authz_http", "ext_authz")]
    {
        let (limiter, limit) = if name == "rls_filter" { ("account_units", 10) } else { ("account", 3) };
        assert!(example(&format!("{rules}.toml")).contains(&format!("[limiters.{limiter}]")));
        let Some(gateway) = Gateway::example(name, rules) else { return };
        let answers: Vec<Answer> = thread::scope(|scope| {
            let asking: Vec<_> = (0..60)
                .map(|n| {
                    let gateway = &gateway;
                    scope.spawn(move || gateway.ask(&Ask::get("/").account("ada").from(&format!("203.0.113.{n}"))))
                })
                .collect();
            asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
        });
        let passed = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(passed, limit, "{name}");
        assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 429)), "{name}: {answers:?}");
    }
}

#[test]
fn envoy_reaches_the_grpc_door_over_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("tollgate.sock");
    let envoy = with(
        &example("rls_filter.yaml"),
        "{socket_address: {address: 127.0.0.1, port_value: 8081}}",
        &format!("{{pipe: {{path: {}}}}}", socket.display()),
    );
    let rules = with(&example("rls_filter.toml"), "127.0.0.1:8081", &format!("unix:{}", socket.display()));
    let Some(gateway) = Gateway::start(&envoy, &rules) else { return };
    let order = Ask::post("/orders").account("ada").from("203.0.113.1");
    for status in [200, 200, 429] {
        gateway.ask(&order).expect(status);
    }
}

/// The last event of a stream names the usage. A client that hangs up before it has paid its estimate.
#[test]
fn semantics_44_the_usage_of_a_stream_of_events_is_settled() {
    let envoy = example("tokens.yaml");
    let start = envoy.find("              response_rules:\n").expect("the sample reads responses");
    let end = start + envoy[start..].find("          # ").expect("the next filter has a comment");
    let Some(gateway) = Recipe::new("tokens").envoy(&envoy[start..end], SSE_TO_METADATA).start() else { return };
    let begin = |account: &str| {
        let before = gateway.upstream.held();
        let call = Ask::post("/v1/stream?tokens=150").account(account);
        let client = call.begin(gateway.port(10_000)).expect("Envoy accepts");
        until("the first event to be sent", || gateway.upstream.held() == before + 1);
        client
    };
    let (stays, goes) = (begin("ada"), begin("bob"));
    drop(goes);
    until("Envoy to see that it is gone", || gateway.stat("cluster.upstream.upstream_rq_active") == 1);
    gateway.upstream.open_gate();
    let answer = Answer::read(stays).expect("an answer").expect(200);
    assert!(answer.body.contains("Certainly") && answer.body.contains("150"), "{answer:?}");
    for (account, used) in [("ada", 150), ("bob", 400)] {
        // A token drains in 3.6 seconds.
        let found = settled(&gateway, "llm", "tokens", ("account", account));
        assert!((used - 10..=used).contains(&found), "{account}: {found}");
    }
}

const SSE_TO_METADATA: &str = r#"          - name: envoy.filters.http.sse_to_metadata
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.sse_to_metadata.v3.SseToMetadata
              response_rules:
                content_parser:
                  name: json
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.content_parsers.json.v3.JsonContentParser
                    rules:
                    - rule:
                        selectors: [{key: usage}, {key: total_tokens}]
                        on_present: {metadata_namespace: llm, key: total, type: NUMBER}
"#;
