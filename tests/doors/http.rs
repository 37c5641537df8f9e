//! ext_authz over plain HTTP, with requests as Envoy, nginx and Caddy send them.

use tollgate::rules::{Action, RefusalText, Rule, RuleBook};
use tollgate::settings::{AuthzSettings, EntrySource, RequestPart, Settings};

use crate::support::service::*;

fn settings_with(trusted_hops: usize) -> Settings {
    let account = EntrySource::from(RequestPart::Header("x-account".into()));
    let entries = vec![("account".into(), account)];
    let authz = AuthzSettings { domain: "edge".into(), entries, trusted_hops, trust_external_address: false };
    Settings { authz, ..settings() }
}

fn login() -> RuleBook {
    let rules = [rule("login", &[("path", "/login"), ("method", "POST")], &[("login_account", &["account"])])];
    book([window("login_account", 1, 300)], rules)
}

#[tokio::test]
async fn semantics_33_envoy_asks_with_method_and_path_of_the_request() {
    let service = Doors::start_with(settings_with(0), login()).await;
    let head = "POST /authz/envoy//login?x=1 HTTP/1.1\r\nhost: shop\r\nx-account: al\r\ncontent-length: 0";
    let answer = service.ask(head).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));
    assert_eq!(answer.header("ratelimit"), Some(r#""login_account";r=0;t=300"#));
    assert_eq!(answer.header("x-tollgate-rule"), Some("login"));
    let answer = service.ask(head).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("retry-after"), Some("300"));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(answer.body.contains(r#""status":429"#), "{}", answer.body);
    assert_eq!(service.ask(&head.replace("POST", "GET")).await.status, 200);
    assert_eq!(service.ask(&head.replace("//login", "/other")).await.status, 200);
}

#[tokio::test]
async fn semantics_33_nginx_is_told_403_with_the_meant_status_beside() {
    let service = Doors::start_with(settings_with(0), login()).await;
    let head = "GET /authz/nginx HTTP/1.0\r\nx-original-uri: /login?x=1\r\nx-original-method: POST\r\nx-account: al";
    assert_eq!(service.ask(head).await.status, 200);
    let answer = service.ask(head).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("x-tollgate-status"), Some("429"));
    assert_eq!(answer.header("retry-after"), Some("300"));
}

#[tokio::test]
async fn semantics_33_nginx_hears_401_as_it_is() {
    let refusal = RefusalText { status: Some(401), ..RefusalText::default() };
    let ban = Rule { refusal, action: Action::Deny, ..rule("ban", &[], &[]) };
    let service = Doors::start_with(settings_with(0), book([], [ban])).await;
    let head = "GET /authz/nginx HTTP/1.1\r\nhost: h\r\nx-original-method: GET\r\nx-original-uri: /";
    let answer = service.ask(head).await;
    assert_eq!((answer.status, answer.header("x-tollgate-status")), (401, Some("401")));
}

#[tokio::test]
async fn a_gateway_that_sends_no_method_or_uri_gets_400_and_the_missing_header() {
    let service = Doors::start_with(settings_with(0), login()).await;
    for (path, prefix, or) in [("nginx", "x-original", " or x-original-url"), ("forward", "x-forwarded", "")] {
        let ask =
            async |headers: &str| service.ask(&format!("GET /authz/{path} HTTP/1.1\r\nhost: h\r\n{headers}")).await;
        let answer = ask(&format!("{prefix}-method: POST")).await;
        assert_eq!((answer.status, answer.body), (400, format!("expected the header {prefix}-uri{or}\n")));
        let answer = ask(&format!("{prefix}-uri: /login\r\n{prefix}-method:")).await;
        assert_eq!((answer.status, answer.body), (400, format!("expected the header {prefix}-method\n")));
        assert_eq!(ask(&format!("{prefix}-uri: /\r\n{prefix}-method: GET")).await.status, 200);
    }
}

#[tokio::test]
async fn semantics_33_caddy_and_traefik_tell_the_request_in_forwarded_headers() {
    let service = Doors::start_with(settings_with(0), login()).await;
    let head = "GET /authz/forward?x=1 HTTP/1.1\r\nhost: tollgate\r\nx-forwarded-method: POST\r\n\
                x-forwarded-uri: /login?x=1\r\nx-forwarded-host: shop\r\nx-forwarded-for: 192.0.2.7\r\nx-account: al";
    assert_eq!(service.ask(head).await.status, 200);
    let answer = service.ask(head).await;
    assert_eq!((answer.status, answer.header("x-tollgate-status")), (429, None));
}

#[tokio::test]
async fn only_exactly_200_passes_so_a_refusal_never_says_2xx() {
    let refusal = RefusalText { status: Some(204), body: Some("no".into()), content_type: None };
    let ban = Rule { refusal, action: Action::Deny, ..rule("ban", &[], &[]) };
    let service = Doors::start_with(settings_with(0), book([], [ban])).await;
    let answer = service.ask("GET /authz/envoy/ HTTP/1.1\r\nhost: h").await;
    assert_eq!((answer.status, answer.header("content-type"), &*answer.body), (403, Some("text/plain"), "no"));
}

/// Whether two requests count as one client.
async fn same(path: &str, trusted_hops: usize, first: &str, second: &str) -> bool {
    same_by(settings_with(trusted_hops), path, first, second).await
}

async fn same_by(settings: Settings, path: &str, first: &str, second: &str) -> bool {
    let rules = [rule("once", &[], &[("once", &["remote_address"])])];
    let service = Doors::start_with(settings, book([window("once", 1, 60)], rules)).await;
    let request = match path {
        "/authz/nginx" => "\r\nx-original-method: GET\r\nx-original-uri: /",
        "/authz/forward" => "\r\nx-forwarded-method: GET\r\nx-forwarded-uri: /",
        _ => "",
    };
    let head = |headers: &str| format!("GET {path} HTTP/1.1\r\nhost: h{request}{headers}");
    assert_eq!(service.ask(&head(first)).await.status, 200);
    service.ask(&head(second)).await.status != 200
}

/// Weaknesses R11, D6: the leftmost forwarded address is used, which the client can choose.
#[tokio::test]
async fn semantics_34_each_flavour_believes_what_its_gateway_writes_and_nothing_else() {
    let envoy = "/authz/envoy/";
    let (seven, eight) = ("\r\nx-envoy-external-address: 192.0.2.7", "\r\nx-envoy-external-address: 192.0.2.8");
    assert!(same(envoy, 0, seven, eight).await);
    let mut believing = settings_with(0);
    believing.authz.trust_external_address = true;
    assert!(!same_by(believing.clone(), envoy, seven, eight).await);
    assert!(same_by(believing.clone(), envoy, &seven.repeat(2), &format!("{seven}{eight}")).await);
    assert!(same(envoy, 0, "\r\nx-forwarded-for: 192.0.2.7", "\r\nx-forwarded-for: 192.0.2.8").await);
    assert!(same(envoy, 0, "\r\nx-real-ip: 192.0.2.7", "\r\nx-real-ip: 192.0.2.8").await);
    assert!(same(envoy, 1, "\r\nx-forwarded-for: 6.6.6.6, 192.0.2.7", "\r\nx-forwarded-for: 192.0.2.7").await);
    let nginx = "/authz/nginx";
    assert!(!same(nginx, 0, "\r\nx-real-ip: 192.0.2.7", "\r\nx-real-ip: 192.0.2.8").await);
    assert!(same(nginx, 0, "\r\nx-real-ip: anybody", "\r\nx-real-ip: somebody").await);
    // nginx passes on every header of the client.
    assert!(same_by(believing.clone(), nginx, seven, eight).await);
    let forward = "/authz/forward";
    assert!(!same(forward, 0, "\r\nx-forwarded-for: 192.0.2.7", "\r\nx-forwarded-for: 192.0.2.8").await);
    assert!(same(forward, 0, "\r\nx-forwarded-for: 6.6.6.6, 192.0.2.7", "\r\nx-forwarded-for: 192.0.2.7").await);
    assert!(same(forward, 0, "\r\nx-real-ip: 192.0.2.7", "\r\nx-real-ip: 192.0.2.8").await);
    assert!(same_by(believing, forward, seven, eight).await);
}

#[tokio::test]
async fn a_lease_is_in_a_header_and_not_on_a_refusal() {
    let rules = [rule("exports", &[], &[("exports", &["account"])])];
    let service = Doors::start_with(settings_with(0), book([slots("exports", 1)], rules)).await;
    let head = "HEAD /authz/envoy/export HTTP/1.1\r\nhost: h\r\nx-account: al";
    let answer = service.ask(head).await;
    let lease = answer.header("x-tollgate-lease").expect("a lease").to_owned();
    assert_eq!(service.ask(head).await.header("x-tollgate-lease"), None);
    service.rls().await.ask(question("edge", [descriptor(&[("release", &lease)])])).await;
    assert_eq!(service.ask(head).await.status, 200);
}

#[tokio::test]
async fn no_text_of_a_client_breaks_a_header_line() {
    let rules = [rule("quota", &[("account", "*")], &[("api_{account}", &["account"])])];
    let mut book = book([window("api_a\"b\u{e9}", 1, 60)], rules);
    let Action::Apply(apply) = &mut book.rules[0].action else { panic!("it applies") };
    apply[0].otherwise = Some("api_a\"b\u{e9}".into());
    let service = Doors::start_with(settings_with(0), book).await;
    let answer = service.ask("GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\nx-account: a\"b\u{e9}").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("ratelimit"), Some(r#""api_a\"b?";r=0;t=60"#));
    assert_eq!(answer.header("x-tollgate-tier"), Some("a\"b?"));
}

#[tokio::test]
async fn a_body_is_skipped_or_the_connection_is_closed() {
    let service = Doors::start_with(settings_with(0), login()).await;
    let post = |length: usize| format!("POST /authz/envoy/ HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
    let last = "GET /healthcheck HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let small = format!("{}{}{last}", post(50_000), "x".repeat(50_000));
    let answer = exchange(service.http, small.as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    assert!(answer.body.ends_with("\r\n\r\nOK"), "the next question is answered: {}", answer.body);
    let answer = exchange(service.http, post(1 << 30).as_bytes()).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
}

#[tokio::test]
async fn other_paths_are_not_found_and_health_is() {
    let service = Doors::start(login()).await;
    for path in ["/", "/authz", "/authz/envoyx", "/authz/nginx/", "/authz/forward/x"] {
        assert_eq!(service.ask(&format!("GET {path} HTTP/1.1\r\nhost: h")).await.status, 404, "{path}");
    }
    assert_eq!(service.ask("GET /healthcheck HTTP/1.1\r\nhost: h").await.status, 200);
}
