//! ext_authz over gRPC, called over a real socket with messages as Envoy sends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::{
    Address, HeaderMap, HeaderValue, HeaderValueOption, Metadata, SocketAddress,
};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse};
use envoy_types::pb::google::protobuf::value::Kind as Value;
use envoy_types::pb::google::protobuf::{self, Struct};
use tollgate::app::App;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::rules::{Action, RefusalText, Rule, RuleBook, Rules};
use tollgate::settings::{AuthzSettings, EntrySource, RequestPart, Settings};
use tollgate::store::{MemorySettings, Stores};

use crate::support::service::*;

/// A check as Envoy sends it for this request.
fn check_request(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let http = HttpRequest {
        method: method.into(),
        path: path.into(),
        host: "Shop.Example".into(),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..HttpRequest::default()
    };
    let socket = SocketAddress { address: "10.0.0.9".into(), ..SocketAddress::default() };
    let source = Peer {
        address: Some(Address { address: Some(Kind::SocketAddress(socket)) }),
        principal: "spiffe://shop/web".into(),
        ..Peer::default()
    };
    let attributes = AttributeContext {
        source: Some(source),
        request: Some(Request { http: Some(http), time: None }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

fn http(request: &mut CheckRequest) -> &mut HttpRequest {
    let attributes = request.attributes.as_mut().expect("attributes");
    attributes.request.as_mut().and_then(|request| request.http.as_mut()).expect("a request")
}

fn attributes(request: &mut CheckRequest) -> &mut AttributeContext {
    request.attributes.as_mut().expect("attributes")
}

async fn check(rls: &Rls, request: CheckRequest) -> CheckResponse {
    rls.call(CHECK, request).await.expect("never an error of gRPC")
}

fn denied(answer: &CheckResponse) -> &DeniedHttpResponse {
    match &answer.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => denied,
        other => panic!("{other:?} is no refusal"),
    }
}

fn status(answer: &CheckResponse) -> u16 {
    match &answer.http_response {
        Some(HttpResponse::OkResponse(_)) => {
            assert_eq!(answer.status.as_ref().map(|status| status.code), Some(0));
            200
        }
        _ => {
            assert_ne!(answer.status.as_ref().map(|status| status.code), Some(0));
            denied(answer).status.as_ref().expect("a status").code as u16
        }
    }
}

fn header<'a>(headers: &'a [HeaderValueOption], name: &str) -> Option<&'a str> {
    let headers = headers.iter().filter_map(|option| option.header.as_ref());
    headers.filter(|header| header.key == name).map(|header| header.value.as_str()).next()
}

fn facts(answer: &CheckResponse) -> HashMap<String, String> {
    let fields = answer.dynamic_metadata.clone().map(|facts| facts.fields).unwrap_or_default();
    let text = |value: protobuf::Value| match value.kind {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?} is no text"),
    };
    fields.into_iter().map(|(name, value)| (name, text(value))).collect()
}

fn settings_with(entries: &[(&str, RequestPart)], trusted_hops: usize) -> Settings {
    let entries = entries.iter().map(|(key, from)| ((*key).to_owned(), from.clone().into()));
    let authz = AuthzSettings {
        domain: "edge".into(),
        entries: entries.collect(),
        trusted_hops,
        trust_external_address: false,
    };
    Settings { authz, ..settings() }
}

/// Rules that admit one request per value of an entry.
fn once_by(entry: &str) -> RuleBook {
    book([window("once", 1, 60)], [rule("once", &[], &[("once", &[entry])])])
}

/// Whether two requests are counted as one: the first must pass, and then the second is refused.
async fn same(settings: Settings, entry: &str, first: CheckRequest, second: CheckRequest) -> bool {
    let service = Doors::start_with(settings, once_by(entry)).await;
    let rls = service.rls().await;
    assert_eq!(status(&check(&rls, first).await), 200);
    let answer = check(&rls, second).await;
    status(&answer) == 429
}

#[tokio::test]
async fn a_refusal_says_why_and_until_when() {
    let settings = settings_with(&[("account", RequestPart::Header("x-account".into()))], 0);
    let rules = [rule("login", &[("path", "/login"), ("method", "POST")], &[("login_account", &["account"])])];
    let service = Doors::start_with(settings, book([window("login_account", 1, 300)], rules)).await;
    let rls = service.rls().await;
    let login = |path| check_request("POST", path, &[("x-account", "al")]);

    let answer = check(&rls, login("//login?next=/")).await;
    assert_eq!(status(&answer), 200);
    let Some(HttpResponse::OkResponse(ok)) = &answer.http_response else { panic!("{answer:?}") };
    assert_eq!(header(&ok.response_headers_to_add, "x-ratelimit-remaining"), Some("0"));
    assert_eq!(header(&ok.response_headers_to_add, "ratelimit-policy"), Some(r#""login_account";q=1;w=300"#));
    assert_eq!(ok.headers, [], "no headers for the upstream");

    service.clock.advance(Duration::from_millis(500));
    let answer = check(&rls, login("/x/../%6Cogin")).await;
    assert_eq!(status(&answer), 429);
    let refusal = denied(&answer);
    assert_eq!(header(&refusal.headers, "retry-after"), Some("300"));
    assert_eq!(header(&refusal.headers, "x-ratelimit-limit"), Some("1"));
    assert_eq!(header(&refusal.headers, "ratelimit"), Some(r#""login_account";r=0;t=300"#));
    assert_eq!(header(&refusal.headers, "content-type"), Some("application/problem+json"));
    #[expect(deprecated, reason = "Envoy drops headers of refusals that set it")]
    let appended = refusal.headers.iter().any(|option| option.append.is_some());
    assert!(!appended);
    let problem: serde_json::Value = serde_json::from_str(&refusal.body).expect("json");
    assert_eq!(problem["limiter"], "login_account");
    assert_eq!(facts(&answer)["rule"], "login");
    assert_eq!(facts(&answer)["limiter"], "login_account");

    // The rule does not apply to other methods and paths.
    assert_eq!(status(&check(&rls, check_request("GET", "/login", &[("x-account", "al")])).await), 200);
    assert_eq!(status(&check(&rls, login("/logout")).await), 200);
}

#[tokio::test]
async fn semantics_34_the_address_is_what_envoy_vouches_for() {
    let by_address = |headers: &[(&str, &str)]| check_request("GET", "/", headers);
    let same = async |trust_external_address, hops, first: &[(&str, &str)], second: &[(&str, &str)]| {
        let mut settings = settings_with(&[], hops);
        settings.authz.trust_external_address = trust_external_address;
        same(settings, "remote_address", by_address(first), by_address(second)).await
    };
    let external = |address| ("x-envoy-external-address", address);
    let forwarded = |list| ("x-forwarded-for", list);
    // Unless Envoy is configured to set the header, its value comes from the client and is ignored.
    assert!(same(false, 0, &[external("192.0.2.7")], &[external("192.0.2.8")]).await);
    // If it is configured so, the header takes precedence.
    let seen = |list| [external("192.0.2.7"), forwarded(list)];
    assert!(same(true, 1, &seen("1.1.1.1"), &seen("2.2.2.2")).await);
    assert!(!same(true, 1, &[external("192.0.2.7")], &[external("192.0.2.8")]).await);
    // Envoy writes a single address.
    assert!(same(true, 0, &[external("192.0.2.7,10.0.0.1")], &[external("192.0.2.8,10.0.0.1")]).await);
    assert!(same(true, 0, &[external("anybody")], &[external("somebody")]).await);
    // Without trusted hops, forwarded addresses are ignored.
    assert!(same(false, 0, &[forwarded("192.0.2.7")], &[forwarded("192.0.2.8")]).await);
    // Counted from the right, so that the client cannot choose.
    assert!(same(false, 1, &[forwarded("6.6.6.6, 192.0.2.7")], &[forwarded("7.7.7.7, 192.0.2.7")]).await);
    assert!(!same(false, 2, &[forwarded("6.6.6.6, 192.0.2.7")], &[forwarded("7.7.7.7, 192.0.2.7")]).await);
    // Fewer addresses than trusted hops: the address of the peer is used.
    assert!(same(false, 2, &[forwarded("6.6.6.6")], &[forwarded("7.7.7.7")]).await);
}

#[tokio::test]
async fn semantics_27_an_ipv6_client_is_its_prefix_and_a_mapped_address_is_ipv4() {
    let same = async |first: &str, second: &str| {
        let by = |address| check_request("GET", "/", &[("x-forwarded-for", address)]);
        same(settings_with(&[], 1), "remote_address", by(first), by(second)).await
    };
    assert!(same("2001:db8::1", "2001:db8::2").await);
    assert!(!same("2001:db8::1", "2001:db8:0:1::1").await);
    assert!(same("::ffff:192.0.2.7", "192.0.2.7").await);
}

#[tokio::test]
async fn entries_come_from_the_configured_parts_of_a_request() {
    let one = |source| settings_with(&[("account", source)], 0);
    let same = async |source, first, second| same(one(source), "account", first, second).await;
    let plain = |path: &str| check_request("GET", path, &[]);

    let header = || RequestPart::Header("x-account".into());
    assert!(
        !same(
            header(),
            check_request("GET", "/", &[("x-account", "a")]),
            check_request("GET", "/", &[("x-account", "b")])
        )
        .await
    );
    // With encode_raw_headers the map is empty and each header is an entry of a list.
    let raw = |name: &str, values: &[&str]| {
        let header =
            |value: &&str| HeaderValue { key: name.into(), raw_value: (*value).into(), ..HeaderValue::default() };
        let mut request = plain("/");
        http(&mut request).header_map = Some(HeaderMap { headers: values.iter().map(header).collect() });
        request
    };
    assert!(same(header(), raw("X-Account", &["a"]), raw("x-account", &["a"])).await);
    assert!(same(header(), raw("X-Account", &["a"]), check_request("GET", "/", &[("x-account", "a")])).await);

    let cookie = |text| check_request("GET", "/", &[("cookie", text)]);
    assert!(same(RequestPart::Cookie("sid".into()), cookie("a=1; sid=7; b=2"), cookie("sid=\"7\"")).await);
    assert!(!same(RequestPart::Cookie("sid".into()), cookie("sid=7"), cookie("xsid=7; sid=8")).await);
    // Only semicolons separate cookies; a comma is part of the value.
    let line = |text| raw("cookie", &[text]);
    assert!(same(RequestPart::Cookie("sid".into()), line("a=1,sid=6; sid=7"), line("a=1,sid=5; sid=7")).await);
    assert!(same(RequestPart::Cookie("sid".into()), raw("cookie", &["a=1", "sid=7"]), cookie("a=1; sid=7")).await);

    assert!(same(RequestPart::Query("user".into()), plain("/p?x=1&user=a%20b"), plain("/q?user=a+b")).await);

    let context = |value: &str| {
        let mut request = plain("/");
        attributes(&mut request).context_extensions.insert("tenant".into(), value.into());
        request
    };
    assert!(!same(RequestPart::Context("tenant".into()), context("a"), context("b")).await);

    let principal = |name: &str| {
        let mut request = plain("/");
        attributes(&mut request).source.as_mut().expect("a source").principal = name.into();
        request
    };
    assert!(!same(RequestPart::Principal, principal("a"), principal("b")).await);

    let metadata = |value: Value| {
        let inner = Struct { fields: [("sub".to_owned(), protobuf::Value { kind: Some(value) })].into() };
        let payload = protobuf::Value { kind: Some(Value::StructValue(inner)) };
        let outer = Struct { fields: [("payload".to_owned(), payload)].into() };
        Metadata { filter_metadata: [("jwt".to_owned(), outer)].into(), ..Metadata::default() }
    };
    let by_request = |value| {
        let mut request = plain("/");
        attributes(&mut request).metadata_context = Some(metadata(value));
        request
    };
    let by_route = |value| {
        let mut request = plain("/");
        attributes(&mut request).route_metadata_context = Some(metadata(value));
        request
    };
    let source = || RequestPart::Metadata { namespace: "jwt".into(), path: vec!["payload".into(), "sub".into()] };
    assert!(same(source(), by_request(Value::NumberValue(42.0)), by_route(Value::StringValue("42".into()))).await);
    assert!(!same(source(), by_request(Value::BoolValue(true)), by_request(Value::BoolValue(false))).await);
}

#[tokio::test]
async fn a_host_has_one_spelling() {
    let to = |host: &str| {
        let mut request = check_request("GET", "/", &[]);
        http(&mut request).host = host.into();
        request
    };
    let same = async |first, second| same(settings_with(&[], 0), "host", to(first), to(second)).await;
    for other in ["SHOP.example", "shop.example:443", "shop.example.", "shop.example.:80"] {
        assert!(same("shop.example", other).await, "{other}");
    }
    assert!(same("[2001:DB8::1]:443", "[2001:db8::1]").await);
    assert!(!same("[2001:db8::1]", "[2001:db8::2]").await);
}

#[tokio::test]
async fn an_entry_without_a_value_is_absent_or_its_default() {
    let tier = RequestPart::Header("x-tier".into());
    let tier = EntrySource { default: Some("free".into()), ..EntrySource::from(tier) };
    let account = EntrySource::from(RequestPart::Header("x-account".into()));
    let mut settings = settings_with(&[], 0);
    settings.authz.entries = vec![("tier".into(), tier), ("account".into(), account)];
    let rules =
        [rule("quota", &[("tier", "*")], &[("api_{tier}", &["account"]), ("per_address", &["remote_address"])])];
    let limits = [window("api_free", 5, 60), window("api_pro", 9, 60), window("per_address", 2, 60)];
    let service = Doors::start_with(settings, book(limits, rules)).await;
    let rls = service.rls().await;
    let answer = check(&rls, check_request("GET", "/", &[("x-account", "a")])).await;
    assert_eq!(facts(&answer)["tier"], "free");
    // Omitting the account does not avoid the limit on the address (semantics 7).
    assert_eq!(status(&check(&rls, check_request("GET", "/", &[])).await), 200);
    let answer = check(&rls, check_request("GET", "/", &[])).await;
    assert_eq!(status(&answer), 429);
    assert_eq!(facts(&answer)["limiter"], "per_address");
}

#[tokio::test]
async fn a_route_can_name_another_domain() {
    let elsewhere = Rule { domain: "elsewhere".into(), action: Action::Deny, ..rule("ban", &[], &[]) };
    let service = Doors::start_with(settings_with(&[], 0), book([], [elsewhere])).await;
    let rls = service.rls().await;
    assert_eq!(status(&check(&rls, check_request("GET", "/", &[])).await), 200);
    let mut request = check_request("GET", "/", &[]);
    attributes(&mut request).context_extensions.insert("domain".into(), "elsewhere".into());
    assert_eq!(status(&check(&rls, request).await), 403);
}

#[tokio::test]
async fn semantics_25_a_rule_chooses_status_body_and_media_type_of_its_refusal() {
    let refusal = RefusalText { status: Some(402), body: Some("<pay>".into()), content_type: Some("text/html".into()) };
    let pay = Rule { refusal, action: Action::Deny, ..rule("pay", &[("host", "shop.example")], &[]) };
    let service = Doors::start_with(settings_with(&[], 0), book([], [pay])).await;
    let answer = check(&service.rls().await, check_request("GET", "/", &[])).await;
    assert_eq!(status(&answer), 402);
    assert_eq!(denied(&answer).body, "<pay>");
    assert_eq!(header(&denied(&answer).headers, "content-type"), Some("text/html"));
    assert_eq!(header(&denied(&answer).headers, "retry-after"), None);
}

#[tokio::test]
async fn semantics_24_a_lease_of_ext_authz_is_given_back_through_rls() {
    let rules = [rule("exports", &[], &[("exports", &["host"])])];
    let service = Doors::start_with(settings_with(&[], 0), book([slots("exports", 1)], rules)).await;
    let rls = service.rls().await;
    let answer = check(&rls, check_request("GET", "/export", &[])).await;
    let lease = facts(&answer)["lease"].clone();
    assert_eq!(status(&check(&rls, check_request("GET", "/export", &[])).await), 429);
    rls.ask(question("edge", [descriptor(&[("release", &lease)])])).await;
    assert_eq!(status(&check(&rls, check_request("GET", "/export", &[])).await), 200);
}

#[tokio::test]
async fn semantics_28_what_cannot_be_read_is_refused_and_not_an_error() {
    let service = Doors::start_with(settings_with(&[], 0), once_by("host")).await;
    let rls = service.rls().await;
    let mut huge = check_request("POST", "/", &[]);
    http(&mut huge).raw_body = vec![0; 2 << 20];
    assert_eq!(status(&check(&rls, huge).await), 429);
    // Invalid UTF-8 in a string: field 1 is a message whose string is the byte 0xff.
    let garbage = prost_types::Any { type_url: "\u{7f}".into(), value: vec![0xff] };
    let answer: CheckResponse = rls.call(CHECK, garbage).await.expect("never an error of gRPC");
    assert_eq!(status(&answer), 429);
    // An empty message is a valid check.
    assert_eq!(status(&check(&rls, CheckRequest::default()).await), 200);
}

#[tokio::test]
async fn semantics_35_ext_authz_and_rls_share_counters() {
    let service = Doors::start_with(settings_with(&[], 0), once_by("host")).await;
    let rls = service.rls().await;
    assert_eq!(status(&check(&rls, check_request("GET", "/", &[])).await), 200);
    assert_eq!(rls.one(&[("host", "shop.example")]).await.overall_code, 2);
}

#[tokio::test]
async fn semantics_36_a_request_id_that_comes_again_is_charged_again_by_both_doors_of_ext_authz() {
    let four = book([window("four", 4, 60)], [rule("four", &[], &[("four", &["host"])])]);
    let service = Doors::start_with(settings_with(&[], 0), four).await;
    let rls = service.rls().await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let mut again = check_request("GET", "/", &[("x-request-id", "7")]);
        http(&mut again).id = "7".into();
        statuses.push(status(&check(&rls, again).await));
        let head = "GET /authz/envoy/ HTTP/1.1\r\nhost: shop.example\r\nx-request-id: 7";
        statuses.push(service.ask(head).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429]);
}

#[tokio::test]
async fn semantics_31_a_refusal_for_the_stores_sake_is_503_where_the_door_can_say_so() {
    let settings = settings_with(&[], 0);
    let rules = Rules::compile(once_by("host")).expect("the rules compile");
    let full = Stores::memory(&[MemorySettings { max_memory: 0, max_keys: None }]);
    let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
    let app = App::open_at(&settings, rules, full, Arc::new(clock.clone())).await.expect("the doors open");
    let service = Doors::serve(app, clock);
    let rls = service.rls().await;
    assert_eq!(status(&check(&rls, check_request("GET", "/", &[])).await), 503);
    assert_eq!(service.ask("GET /authz/envoy/ HTTP/1.1\r\nhost: shop.example").await.status, 503);
    assert_eq!(rls.one(&[("host", "shop.example")]).await.overall_code, OVER_LIMIT);
}

#[tokio::test]
async fn an_answer_names_the_reason_and_the_rule_in_shadow_that_would_have_refused() {
    let mut tried = rule("tried", &[("path", "/tried")], &[("once", &[])]);
    tried.shadow = true;
    let mut banned = rule("banned", &[("path", "/banned")], &[]);
    (banned.action, banned.shadow) = (Action::Deny, true);
    let mut denied = rule("denied", &[("path", "/denied")], &[]);
    denied.action = Action::Deny;
    let rules = [tried, banned, denied, rule("once", &[("path", "/once")], &[("once", &[])])];
    let service = Doors::start_with(settings_with(&[], 0), book([window("once", 1, 60)], rules)).await;
    let rls = service.rls().await;
    let asked = async |path| check(&rls, check_request("GET", path, &[])).await;
    let said = |answer: &CheckResponse, name: &str| facts(answer).get(name).cloned();

    let answer = asked("/once").await;
    assert_eq!((status(&answer), said(&answer, "reason"), said(&answer, "would_refuse")), (200, None, None));
    let answer = asked("/once").await;
    assert_eq!((status(&answer), said(&answer, "reason").as_deref()), (429, Some("limit")));
    for (path, rule) in [("/tried", "tried"), ("/banned", "banned")] {
        let answer = asked(path).await;
        assert_eq!((status(&answer), said(&answer, "would_refuse").as_deref()), (200, Some(rule)), "{path}");
        assert_eq!(said(&answer, "reason"), None, "{path}");
    }
    let answer = asked("/denied").await;
    assert_eq!((status(&answer), said(&answer, "reason").as_deref()), (403, Some("denied")));
}

#[tokio::test]
async fn a_grpc_request_is_refused_in_the_words_of_grpc() {
    let mut denied_rule = rule("denied", &[("path", "/denied")], &[]);
    denied_rule.action = Action::Deny;
    let rules = [denied_rule, rule("once", &[("path", "/once")], &[("once", &[])])];
    let service = Doors::start_with(settings_with(&[], 0), book([window("once", 1, 60)], rules)).await;
    let rls = service.rls().await;
    let of_type = |path, media_type| check_request("POST", path, &[("content-type", media_type)]);
    assert_eq!(status(&check(&rls, of_type("/once", "application/grpc")).await), 200);
    for (path, media_type, code) in [
        ("/once", "application/grpc", "8"),
        ("/once", "application/grpc+proto", "8"),
        ("/denied", "application/grpc", "7"),
    ] {
        let answer = check(&rls, of_type(path, media_type)).await;
        let refusal = denied(&answer);
        assert_eq!(header(&refusal.headers, "grpc-status"), Some(code), "{path}");
        assert!(header(&refusal.headers, "grpc-message").is_some_and(|text| text.is_ascii() && text.len() < 80));
        assert_eq!((refusal.body.as_str(), header(&refusal.headers, "content-type")), ("", None));
    }
    let other = check(&rls, of_type("/once", "application/json")).await;
    assert_eq!((status(&other), header(&denied(&other).headers, "grpc-status")), (429, None));
}
