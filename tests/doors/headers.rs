//! What responses show to clients (semantics 19): names, numbers and waits, at every door.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use prost::Message;
use tollgate::rules::{Action, Rule, RuleBook, RuleHeaders};
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse;
use tollgate::settings::{AuthzSettings, EntrySource, HeaderFamilies, RequestPart, Settings};

use crate::support::service::*;

/// Every name of [`rules`], none of which is a part of anything else.
const NAMES: [&str; 5] = ["rulename", "shadowname", "limitername", "gold", "denyname"];

/// Every family of headers, with or without names.
fn shown(names: bool) -> Settings {
    let families = HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true, names };
    let part = |name: &str| EntrySource::from(RequestPart::Header(name.to_owned()));
    let entries = vec![("tier".to_owned(), part("x-tier"))];
    let authz = AuthzSettings { domain: "edge".into(), entries, ..AuthzSettings::default() };
    Settings { rls_headers: families, authz_headers: families, authz, ..settings() }
}

/// One request in five minutes for each tier, a shadow rule that never passes, and a ban.
fn rules(headers: RuleHeaders) -> RuleBook {
    let counted = rule("rulename", &[("tier", "*")], &[("limitername_{tier}", &["tier"])]);
    let shadow = Rule { shadow: true, action: Action::Deny, ..rule("shadowname", &[], &[]) };
    let denied = Rule { action: Action::Deny, ..rule("denyname", &[("path", "/denied")], &[]) };
    let rules = [shadow, counted, denied].map(|rule| Rule { headers, ..rule });
    book([window("limitername_gold", 1, 300)], rules)
}

/// Everything that clients of one door may see of the answers to a passing, a limited and a denied request, without
/// the metadata of gRPC.
async fn by_rls(service: &Doors) -> Vec<String> {
    let rls = service.rls().await;
    let mut seen = Vec::new();
    for path in ["/", "/", "/denied"] {
        let answer = rls.one(&[("path", path), ("tier", "gold")]).await;
        assert!(String::from_utf8_lossy(&answer.dynamic_metadata).contains("shadowname"), "{answer:?}");
        let shown = RateLimitResponse { dynamic_metadata: Default::default(), ..answer };
        seen.push(String::from_utf8_lossy(&shown.encode_to_vec()).into_owned());
    }
    seen
}

async fn by_authz(service: &Doors) -> Vec<String> {
    let rls = service.rls().await;
    let mut seen = Vec::new();
    for path in ["/", "/", "/denied"] {
        let headers = [("x-tier".to_owned(), "gold".to_owned())].into();
        let http = HttpRequest { method: "GET".into(), path: path.into(), headers, ..HttpRequest::default() };
        let request = Some(Request { http: Some(http), time: None });
        let attributes = Some(AttributeContext { request, ..AttributeContext::default() });
        let check = "/envoy.service.auth.v3.Authorization/Check";
        let answer: CheckResponse = rls.call(check, CheckRequest { attributes }).await.expect("an answer");
        let facts = answer.dynamic_metadata.as_ref().expect("metadata");
        assert!(facts.fields.contains_key("would_refuse"), "{facts:?}");
        let shown = CheckResponse { dynamic_metadata: None, ..answer };
        seen.push(String::from_utf8_lossy(&shown.encode_to_vec()).into_owned());
    }
    seen
}

async fn by_http(service: &Doors) -> Vec<String> {
    let mut seen = Vec::new();
    for path in ["/", "/", "/denied"] {
        let answer = service.ask(&format!("GET /authz/envoy{path} HTTP/1.1\r\nhost: h\r\nx-tier: gold")).await;
        seen.push(format!("{} {}", answer.head, answer.body));
    }
    seen
}

/// The answers of all doors, each of a fresh service.
async fn all_doors(names: bool, headers: RuleHeaders) -> Vec<Vec<String>> {
    let start = || Doors::start_with(shown(names), rules(headers));
    let (rls, authz, http) = (start().await, start().await, start().await);
    vec![by_rls(&rls).await, by_authz(&authz).await, by_http(&http).await]
}

fn names_in(answers: &[String]) -> Vec<&str> {
    NAMES.into_iter().filter(|name| answers.iter().any(|answer| answer.contains(name))).collect()
}

#[tokio::test]
async fn semantics_19_clients_see_the_names_of_rules_limiters_and_tiers_unless_switched_off() {
    let seen = all_doors(true, RuleHeaders::All).await;
    for door in &seen {
        assert!(["rulename", "limitername", "denyname"].iter().all(|name| names_in(door).contains(name)), "{door:?}");
    }
    assert_eq!(names_in(&seen[2]), NAMES, "the HTTP door tells a gateway all of them");
    for door in all_doors(false, RuleHeaders::All).await {
        assert_eq!(names_in(&door), [""; 0], "{door:?}");
        // The numbers stay, under a number as the name of the policy.
        assert!(door[1].contains(r#""1";q=1;w=300"#) && door[1].contains(r#""1";r=0;t=300"#), "{door:?}");
        assert!(door[1].contains("retry_after"), "{door:?}");
    }
}

#[tokio::test]
async fn semantics_19_a_rule_shows_everything_or_the_wait_of_refusals_or_nothing() {
    for (headers, wait) in [(RuleHeaders::RetryAfter, true), (RuleHeaders::None, false)] {
        for door in all_doors(true, headers).await {
            assert_eq!(names_in(&door), [""; 0], "{headers:?}: {door:?}");
            for answer in &door {
                assert!(!answer.contains("ratelimit"), "{headers:?}: {answer}");
            }
            let waits: Vec<_> = door.iter().map(|answer| answer.to_lowercase().contains("retry-after")).collect();
            assert_eq!(waits, [false, wait, false], "{headers:?}: {door:?}");
            assert_eq!(door[1].contains("retry_after"), wait, "{headers:?}: {door:?}");
        }
    }
}

#[tokio::test]
async fn semantics_19_rules_that_show_everything_are_shown_beside_one_that_hides() {
    let hidden = Rule { headers: RuleHeaders::None, ..rule("hidden", &[], &[("account", &["account"])]) };
    let rules = [hidden, rule("open", &[], &[("address", &["remote_address"])])];
    let service =
        Doors::start_with(shown(true), book([window("account", 2, 60), window("address", 9, 60)], rules)).await;
    let rls = service.rls().await;
    let ask = || rls.one(&[("account", "a"), ("remote_address", "192.0.2.7")]);
    let header = |answer: &RateLimitResponse, name: &str| {
        answer.response_headers_to_add.iter().find(|header| header.key == name).map(|header| header.value.clone())
    };
    let answer = ask().await;
    assert_eq!(header(&answer, "ratelimit-policy").as_deref(), Some(r#""address";q=9;w=60"#));
    assert_eq!(header(&answer, "ratelimit").as_deref(), Some(r#""address";r=8;t=60"#));
    ask().await;
    let refused = ask().await;
    assert_eq!(refused.response_headers_to_add.len(), 1, "{refused:?}");
    assert_eq!(header(&refused, "content-type").as_deref(), Some("application/problem+json"));
}

#[tokio::test]
async fn semantics_19_rules_that_share_a_check_show_the_least_that_one_of_them_allows() {
    let shared: (&str, &[&str]) = ("shared", &["account"]);
    let quiet = Rule { headers: RuleHeaders::RetryAfter, ..rule("quiet", &[], &[shared]) };
    for rules in [[quiet.clone(), rule("open", &[], &[shared])], [rule("open", &[], &[shared]), quiet]] {
        let service = Doors::start_with(shown(true), book([window("shared", 1, 60)], rules)).await;
        let rls = service.rls().await;
        assert_eq!(rls.one(&[("account", "a")]).await.response_headers_to_add, []);
        let refused = rls.one(&[("account", "a")]).await;
        let names: Vec<_> = refused.response_headers_to_add.iter().map(|header| header.key.as_str()).collect();
        assert_eq!(names, ["retry-after", "content-type"]);
        assert_eq!(refused.statuses[0].current_limit, None);
    }
}
