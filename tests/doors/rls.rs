//! Envoy's rate limit service, called over a real socket.

use std::time::Duration;

use bytes::Bytes;
use tollgate::limiter::{Algorithm, Lost, Schedule};
use tollgate::rules::{Action, Apply, Domain, HoldFor, RefusalText, Rule, RuleBook, Unmatched};
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitRequest;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use tollgate::server::grpc::messages::r#type::v3::RateLimitUnit;
use tollgate::settings::{HeaderFamilies, Settings};

use crate::support::fixtures::{apply, quota, rule as rule_of, secs};
use crate::support::service::*;

const OK: i32 = Code::Ok as i32;
const OVER_LIMIT: i32 = Code::OverLimit as i32;

fn login() -> RuleBook {
    book(
        [window("login_ip", 30, 60), window("login_account", 2, 300)],
        [rule("login", &[("path", "/login")], &[("login_ip", &["remote_address"]), ("login_account", &["account"])])],
    )
}

fn seconds(status: &DescriptorStatus) -> i64 {
    status.duration_until_reset.expect("a duration").seconds
}

#[tokio::test]
async fn semantics_16_statuses_come_in_order_and_a_passing_descriptor_of_a_refused_request_is_ok() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let of = |account| descriptor(&[("path", "/login"), ("account", account)]);
    for _ in 0..2 {
        assert_eq!(rls.ask(question("edge", [of("a")])).await.overall_code, OK);
    }
    let unmatched = descriptor(&[("path", "/other")]);
    let answer = rls.ask(question("edge", [of("b"), of("a"), unmatched])).await;
    assert_eq!(answer.overall_code, OVER_LIMIT);
    let statuses: Vec<_> = answer.statuses.iter().map(|status| (status.code, status.limit_remaining)).collect();
    assert_eq!(statuses, [(OK, 2), (OVER_LIMIT, 0), (OK, 0)]);
    assert_eq!(answer.statuses[2].current_limit, None);
    // The refused request charged nothing.
    assert_eq!(rls.ask(question("edge", [of("b")])).await.statuses[0].limit_remaining, 1);
}

#[tokio::test]
async fn semantics_17_current_limit_tells_the_configured_numbers() {
    let limits = [bucket("five_minutes", 100, 300, 20), window("ninety", 3, 90), slots("slots", 2)];
    let rules = ["five_minutes", "ninety", "slots"].map(|name| rule(name, &[("use", name)], &[(name, &[])]));
    let service = Doors::start(book(limits, rules)).await;
    let rls = service.rls().await;
    let first_status = async |name| rls.one(&[("use", name)]).await.statuses[0].clone();
    let limit = |name: &str, requests_per_unit, unit: Unit, unit_multiplier: Option<u32>| RateLimit {
        name: name.to_owned(),
        requests_per_unit,
        unit: unit.into(),
        unit_multiplier,
    };
    let status = first_status("five_minutes").await;
    assert_eq!(status.current_limit, Some(limit("five_minutes", 100, Unit::Minute, Some(5))));
    assert_eq!(status.limit_remaining, 19);
    assert_eq!(seconds(&status), 3);
    assert_eq!(first_status("ninety").await.current_limit, Some(limit("ninety", 3, Unit::Second, Some(90))));
    assert_eq!(first_status("slots").await.current_limit, Some(limit("slots", 2, Unit::Unknown, None)));
}

/// Weakness R24: the reset time is truncated to whole seconds and may be in the past.
/// Weakness D8: the reported wait is zero.
#[tokio::test]
async fn semantics_17_a_refusal_waits_in_whole_seconds_rounded_up() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let ask = || rls.one(&[("path", "/login"), ("account", "a")]);
    ask().await;
    ask().await;
    service.clock.advance(Duration::from_micros(500_001));
    let answer = ask().await;
    let until = answer.statuses[0].duration_until_reset.expect("a duration");
    assert_eq!((until.seconds, until.nanos), (300, 0));
    assert_eq!(header(&answer, "retry-after"), Some("300"));
    // One microsecond before the wait ends it still refuses; then it admits.
    service.clock.advance(Duration::from_micros(299_499_998));
    assert_eq!(header(&ask().await, "retry-after"), Some("1"));
    service.clock.advance(Duration::from_micros(1));
    assert_eq!(ask().await.overall_code, OK);
}

#[tokio::test]
async fn semantics_18_a_limit_that_comes_along_replaces_the_configured_one() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let with_limit = |requests_per_unit, unit: RateLimitUnit| RateLimitDescriptor {
        limit: Some(RateLimitOverride { requests_per_unit, unit: unit.into(), unit_multiplier: Some(2) }),
        ..descriptor(&[("path", "/login"), ("account", "a")])
    };
    let answer = rls.ask(question("edge", [with_limit(7, RateLimitUnit::Hour)])).await;
    let limit = answer.statuses[0].current_limit.clone().expect("a limit");
    assert_eq!((limit.requests_per_unit, limit.unit, limit.unit_multiplier), (7, Unit::Hour as i32, Some(2)));
    assert_eq!(answer.statuses[0].limit_remaining, 6);
    assert_eq!(rls.ask(question("edge", [with_limit(0, RateLimitUnit::Hour)])).await.overall_code, OVER_LIMIT);
    // With an unknown unit the configured limit applies: one of two was used.
    let answer = rls.ask(question("edge", [with_limit(7, RateLimitUnit::Unknown)])).await;
    assert_eq!(answer.statuses[0].current_limit.as_ref().map(|limit| limit.requests_per_unit), Some(2));
}

#[tokio::test]
async fn semantics_19_by_default_only_retry_after_and_only_on_refusals() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let ask = || rls.one(&[("path", "/login"), ("account", "a")]);
    assert_eq!(ask().await.response_headers_to_add, []);
    ask().await;
    let answer = ask().await;
    let names: Vec<_> = answer.response_headers_to_add.iter().map(|header| header.key.as_str()).collect();
    assert_eq!(names, ["retry-after"]);
    assert!(answer.raw_body.is_empty());
    assert_eq!(answer.request_headers_to_add, []);
}

#[tokio::test]
async fn semantics_19_every_family_of_headers_can_be_switched_on() {
    let all = HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true, names: true };
    let service = Doors::start_with(Settings { rls_headers: all, ..settings() }, login()).await;
    let rls = service.rls().await;
    let ask = || rls.one(&[("path", "/login"), ("account", "a"), ("remote_address", "192.0.2.7")]);
    let answer = ask().await;
    assert_eq!(header(&answer, "x-ratelimit-limit"), Some("2"));
    assert_eq!(header(&answer, "x-ratelimit-remaining"), Some("1"));
    assert_eq!(header(&answer, "x-ratelimit-reset"), Some("300"));
    assert_eq!(header(&answer, "ratelimit-policy"), Some(r#""login_ip";q=30;w=60, "login_account";q=2;w=300"#));
    assert_eq!(header(&answer, "ratelimit"), Some(r#""login_account";r=1;t=300"#));
    assert_eq!(header(&answer, "retry-after"), None);
    ask().await;
    service.clock.advance(Duration::from_secs(10));
    let refusal = ask().await;
    assert_eq!(header(&refusal, "ratelimit"), Some(r#""login_account";r=0;t=290"#));
    assert_eq!(header(&refusal, "retry-after"), Some("290"));
    assert_eq!(header(&refusal, "content-type"), Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&refusal.raw_body).expect("json");
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["title"], "Too Many Requests");
    assert_eq!(problem["rule"], "login");
    assert_eq!(problem["limiter"], "login_account");
    assert_eq!(problem["retry_after"], 290);
}

#[tokio::test]
async fn a_rule_chooses_the_body_of_its_refusal() {
    let refusal =
        RefusalText { status: Some(451), body: Some("not\r\nnow".into()), content_type: Some("text/x\r\ny: z".into()) };
    let denied = Rule { refusal, action: Action::Deny, ..rule("ban", &[("path", "/login")], &[]) };
    let service = Doors::start(book([], [denied])).await;
    let answer = service.rls().await.one(&[("path", "/login")]).await;
    assert_eq!(answer.overall_code, OVER_LIMIT);
    assert_eq!(answer.raw_body, "not\r\nnow");
    assert_eq!(header(&answer, "content-type"), Some("text/x??y: z"));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(metadata(&answer), [pair("reason", "denied"), pair("rule", "ban")]);
}

#[tokio::test]
async fn semantics_05_hits_of_the_descriptor_win_zero_peeks_and_negative_refunds() {
    let service = Doors::start(book([window("w", 5, 60)], [rule("r", &[], &[("w", &[])])])).await;
    let rls = service.rls().await;
    let ask = async |hits, negative, of_request| {
        let descriptor =
            RateLimitDescriptor { hits_addend: hits, is_negative_hits: negative, ..descriptor(&[("any", "thing")]) };
        let answer = rls.ask(RateLimitRequest { hits_addend: of_request, ..question("edge", [descriptor]) }).await;
        (answer.overall_code, answer.statuses[0].limit_remaining)
    };
    assert_eq!(ask(None, false, 0).await, (OK, 4));
    assert_eq!(ask(None, false, 2).await, (OK, 2));
    assert_eq!(ask(Some(1), false, 2).await, (OK, 1));
    assert_eq!(ask(Some(0), false, 2).await, (OK, 1));
    assert_eq!(ask(Some(1), false, 0).await, (OK, 0));
    assert_eq!(ask(Some(0), false, 0).await, (OVER_LIMIT, 0));
    assert_eq!(ask(Some(2), true, 0).await, (OK, 2));
    assert_eq!(ask(Some(u64::MAX), true, 0).await, (OK, 5));
    assert_eq!(ask(Some(u64::MAX), false, 0).await, (OVER_LIMIT, 5));
}

#[tokio::test]
async fn unusual_requests_get_clear_answers() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    assert_eq!(rls.ask(RateLimitRequest::default()).await.overall_code, OK);
    let empty = rls.ask(question("edge", [RateLimitDescriptor::default()])).await;
    assert_eq!((empty.overall_code, empty.statuses.len()), (OK, 1));
    assert_eq!(rls.ask(question("nowhere", [descriptor(&[("a", "b")])])).await.overall_code, OK);
    let twice = descriptor(&[("path", "/login"), ("account", "a"), ("account", "b")]);
    let answer = rls.ask(question("edge", [twice])).await;
    assert_eq!((answer.overall_code, answer.statuses[0].limit_remaining), (OK, 1));
}

#[tokio::test]
async fn semantics_26_what_no_rule_matches_can_be_refused() {
    let domain = Domain { name: "edge".into(), unmatched: Unmatched::Deny, ..Domain::default() };
    let service = Doors::start(RuleBook { domains: vec![domain], ..login() }).await;
    let answer = service.rls().await.one(&[("path", "/other")]).await;
    assert_eq!(answer.overall_code, OVER_LIMIT);
    assert_eq!(header(&answer, "retry-after"), None);
}

#[tokio::test]
async fn texts_that_are_no_utf8_are_counted_and_not_an_error() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let mut request = question("edge", [descriptor(&[("path", "/login"), ("account", "?")])]);
    request.descriptors[0].entries[1].value = Bytes::from_static(b"al\xff");
    request.descriptors[0].entries.push(Default::default());
    request.descriptors[0].entries[2].key = Bytes::from_static(b"\xc3\x28");
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(rls.ask(request.clone()).await.overall_code);
    }
    assert_eq!(codes, [OK, OK, OVER_LIMIT]);
    request.domain = Bytes::from_static(b"\xff");
    assert_eq!(rls.ask(request).await.overall_code, OK);
}

#[tokio::test]
async fn semantics_28_past_a_size_the_answer_is_a_refusal() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    let many = rls.ask(question("edge", vec![descriptor(&[("path", "/other")]); 10_000])).await;
    assert_eq!(many.overall_code, OVER_LIMIT);
    // A long value is hashed, not refused.
    let long = "a".repeat(100_000);
    assert_eq!(rls.one(&[("path", "/login"), ("account", &long)]).await.overall_code, OK);
    // A message larger than the bound is not decoded.
    let huge = "a".repeat(3 << 20);
    assert_eq!(rls.one(&[("path", "/login"), ("account", &huge)]).await.overall_code, OVER_LIMIT);
    assert_eq!(rls.one(&[("path", "/login"), ("account", "b")]).await.overall_code, OK);
}

#[tokio::test]
async fn a_malformed_message_is_refused_by_a_response_of_rls() {
    let service = Doors::start(login()).await;
    let rls = service.rls().await;
    // Field 2 is a list of messages; this claims a message of 5 bytes and contains one.
    let garbage = prost_types::Any { type_url: "\u{7f}\u{7f}".into(), value: vec![0x12, 0x05, 0xff] };
    let answer = rls.call(SHOULD_RATE_LIMIT, garbage).await;
    let answer: tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse = answer.expect("no error");
    assert_eq!(answer.overall_code, OVER_LIMIT);
    let unknown =
        rls.call::<_, RateLimitRequest>("/envoy.service.ratelimit.v3.RateLimitService/Nope", question("a", []));
    assert_eq!(unknown.await.map_err(|status| status.code()), Err(tonic::Code::Unimplemented));
}

#[tokio::test]
async fn the_deciding_rule_the_limiter_and_the_tier_are_in_the_metadata() {
    let rules = [rule("quota", &[("tier", "*")], &[("api_{tier}", &["account"])])];
    let service = Doors::start(book([window("api_free", 1, 60), window("api_pro", 9, 60)], rules)).await;
    let rls = service.rls().await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let asked = async |code| {
        let answer = rls.one(&[("tier", "free"), ("account", "a")]).await;
        assert_eq!(answer.overall_code, code);
        metadata(&answer)
    };
    let [limiter, rule, tier] = [pair("limiter", "api_free"), pair("rule", "quota"), pair("tier", "free")];
    assert_eq!(asked(OK).await, [limiter.clone(), rule.clone(), tier.clone()]);
    assert_eq!(asked(OVER_LIMIT).await, [limiter, pair("reason", "limit"), rule, tier]);
    assert_eq!(metadata(&rls.one(&[("path", "/")]).await), []);
}

#[tokio::test]
async fn semantics_36_a_request_id_that_comes_again_is_charged_again() {
    let rules = [rule("two", &[("path", "/")], &[("two", &["path"])])];
    let service = Doors::start(book([window("two", 2, 60)], rules)).await;
    let client = connect(service.grpc).await;
    let mut refused = Vec::new();
    for _ in 0..3 {
        // As an Envoy sends it whose `initial_metadata` has the header.
        let (response, mut stream) =
            begin(&client, SHOULD_RATE_LIMIT, &[("x-request-id", "7")], framed_request()).await;
        stream.send_data(Bytes::new(), true).expect("it is sent");
        refused.push(says_no(SHOULD_RATE_LIMIT, response).await);
    }
    assert_eq!(refused, [false, false, true]);
}

#[tokio::test]
async fn semantics_24_a_lease_is_handed_out_and_given_back_once() {
    let service =
        Doors::start(book([slots("exports", 2)], [rule("exports", &[("slot", "*")], &[("exports", &["slot"])])])).await;
    let rls = service.rls().await;
    let acquire = || rls.one(&[("slot", "al")]);
    // A release is recognised by one of its entries, whatever its hits or domain.
    let release = async |lease: &str| {
        let released =
            RateLimitDescriptor { hits_addend: Some(1), is_negative_hits: true, ..descriptor(&[("release", lease)]) };
        rls.ask(question("elsewhere", [released])).await.overall_code
    };
    let remaining = async || rls.ask(question("edge", [peek(&[("slot", "al")])])).await.statuses[0].limit_remaining;

    let first = lease(&acquire().await).expect("a lease");
    let second = lease(&acquire().await).expect("a lease");
    assert_ne!(first, second);
    let refused = acquire().await;
    assert_eq!(refused.overall_code, OVER_LIMIT);
    assert_eq!(lease(&refused), None);
    assert_eq!(header(&refused, "retry-after"), Some("300"));

    assert_eq!(release(&first).await, OK);
    assert_eq!(remaining().await, 1);
    // A second release changes nothing.
    assert_eq!(release(&first).await, OK);
    assert_eq!(remaining().await, 1);
    // A forged lease is an ordinary descriptor that no rule matches.
    let forged = format!("{}{}", &second[..second.len() - 1], if second.ends_with('A') { 'B' } else { 'A' });
    assert_eq!(release(&forged).await, OK);
    assert_eq!(release("L17").await, OK);
    assert_eq!(remaining().await, 1);
    // Long after it expired, releasing it is still not an error.
    service.clock.advance(Duration::from_secs(301));
    assert_eq!(release(&second).await, OK);
    assert_eq!(remaining().await, 2);
}

#[tokio::test]
async fn semantics_39_a_descriptor_settles_by_its_own_hits_and_never_by_those_of_the_request() {
    let held = Apply { hold: Some(HoldFor { length: secs(300), lost: Lost::Charge }), ..apply("tokens", &["account"]) };
    let tokens = quota("tokens", 1000, secs(3600), Algorithm::FixedWindow(Schedule::Epoch));
    let rules = vec![rule_of("all", &[("account", "*")], Action::Apply(vec![held]))];
    let service = Doors::start(RuleBook { limiters: vec![tokens], rules, ..RuleBook::default() }).await;
    let rls = service.rls().await;
    let charge = async || {
        let charge = RateLimitDescriptor { hits_addend: Some(400), ..descriptor(&[("account", "al")]) };
        lease(&rls.ask(question("edge", [charge])).await).expect("it is held")
    };
    let left = async || rls.ask(question("edge", [peek(&[("account", "al")])])).await.statuses[0].limit_remaining;
    let settle = async |lease: &str, hits_addend: Option<u64>, is_negative_hits: bool| {
        let entries = [("path", "/v1"), ("settle", lease), ("account", "al")];
        let settled = RateLimitDescriptor { hits_addend, is_negative_hits, ..descriptor(&entries) };
        let answer = rls.ask(RateLimitRequest { hits_addend: 7, ..question("edge", [settled]) }).await;
        assert_eq!((answer.overall_code, answer.statuses[0].code), (OK, OK));
    };
    settle(&charge().await, Some(150), false).await;
    assert_eq!(left().await, 850);
    settle(&charge().await, None, false).await;
    assert_eq!(left().await, 450, "what was charged, not the seven hits of the request");
    settle(&charge().await, Some(0), false).await;
    settle(&charge().await, Some(150), true).await;
    assert_eq!(left().await, 450);
    let twice = charge().await;
    settle(&twice, Some(100), false).await;
    settle(&twice, Some(300), false).await;
    assert_eq!(left().await, 350);
}

fn peek(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    RateLimitDescriptor { hits_addend: Some(0), ..descriptor(entries) }
}
