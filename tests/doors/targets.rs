//! The target of the client's request, however a gateway spells it: absolute, with characters that a URI must not have,
//! and in either of nginx's headers.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::rules::{Action, RefusalText, Rule, RuleBook};
use tollgate::settings::{AuthzSettings, EntrySource, RequestPart, Settings};

use crate::support::service::*;

fn deny(name: &str, matches: &[(&str, &str)], status: u16) -> Rule {
    let refusal = RefusalText { status: Some(status), ..RefusalText::default() };
    Rule { refusal, action: Action::Deny, ..rule(name, matches, &[]) }
}

/// `/internal/*` and a query are denied; so is a host.
fn walls() -> RuleBook {
    let rules = [
        deny("internal", &[("path", "/internal/*")], 404),
        deny("stolen", &[("key", "stolen")], 401),
        deny("host", &[("host", "admin.example.com")], 410),
    ];
    book([], rules)
}

async fn start(rules: RuleBook) -> Doors {
    let entry = |name: &str, from| (name.to_owned(), EntrySource::from(from));
    let entries =
        vec![entry("key", RequestPart::Query("key".into())), entry("account", RequestPart::Header("x-account".into()))];
    let authz = AuthzSettings { domain: "edge".into(), entries, ..AuthzSettings::default() };
    Doors::start_with(Settings { authz, ..settings() }, rules).await
}

/// Calls `/authz/nginx` with these headers. Returns the intended status.
async fn nginx(service: &Doors, headers: &str) -> u16 {
    let answer = service.ask(&format!("GET /authz/nginx HTTP/1.1\r\nx-original-method: GET\r\n{headers}")).await;
    answer.header("x-tollgate-status").map_or(answer.status, |status| status.parse().expect("a status"))
}

async fn forward(service: &Doors, headers: &str) -> u16 {
    let head = format!("GET /authz/forward HTTP/1.1\r\nhost: tollgate\r\nx-forwarded-method: GET\r\n{headers}");
    service.ask(&head).await.status
}

/// Calls the gRPC door. Returns 200 when the request passes.
async fn grpc(service: &Doors, path: &str, host: &str) -> u16 {
    let http = HttpRequest { method: "GET".into(), path: path.into(), host: host.into(), ..HttpRequest::default() };
    let attributes = AttributeContext {
        request: Some(Request { http: Some(http), ..Request::default() }),
        ..AttributeContext::default()
    };
    let check = CheckRequest { attributes: Some(attributes) };
    let answer: CheckResponse = service.rls().await.call(CHECK, check).await.expect("never an error of gRPC");
    use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse::*;
    match answer.http_response.expect("an answer") {
        DeniedResponse(denied) => denied.status.expect("a status").code as u16,
        _ => 200,
    }
}

/// The answers of every gateway that sends the target in a header, and of the gRPC door.
async fn everywhere(service: &Doors, target: &str) -> Vec<u16> {
    vec![
        nginx(service, &format!("host: h\r\nx-original-uri: {target}")).await,
        nginx(service, &format!("host: h\r\nx-original-url: {target}")).await,
        forward(service, &format!("x-forwarded-host: h\r\nx-forwarded-uri: {target}")).await,
        forward(service, &format!("x-forwarded-uri: {target}")).await,
        grpc(service, target, "h").await,
        grpc(service, target, "").await,
    ]
}

#[tokio::test]
async fn semantics_33_an_absolute_target_is_its_path_at_every_door() {
    let service = start(walls()).await;
    for target in [
        "/internal/k",
        "//internal/k",
        "internal/k",
        "http://x/internal/k",
        "http://x//internal/k",
        "HTTP://X/internal/k",
        "hTtPs://X:8443/internal/k?a=b",
        "http://user:pass@x/internal/k",
        "http://a@b@x:80/internal/k#f",
        "http://[2001:db8::7]:80/internal/k",
        "ws://x/internal/k",
        "git+ssh://x/internal/k",
        "http:///internal/k",
        "http:/internal/k",
        "http://x\\internal\\k",
        "http:\\\\x\\internal\\k",
        "http://x/%69nternal/k",
        "http://x/y/../internal/k",
        "http://x/./internal/k;a=b",
    ] {
        assert_eq!(everywhere(&service, target).await, [404; 6], "{target}");
    }
    for target in ["http://x?key=stolen", "http://x/?key=stolen", "http://x/page?a=b&key=stolen#f", "/?key=stolen"] {
        assert_eq!(everywhere(&service, target).await, [401; 6], "{target}");
    }
    for target in [
        "http://x",
        "http://x/",
        "http://x/page",
        "http://internal/k",
        "http://x?next=/internal/k",
        "http://x#/internal/k",
        "//x/internal/k",
        "/http://x/internal/k",
        "x:443",
        "*",
    ] {
        assert_eq!(everywhere(&service, target).await, [200; 6], "{target}");
    }
}

#[tokio::test]
async fn semantics_33_the_host_of_an_absolute_target_counts_where_no_header_has_one() {
    let service = start(walls()).await;
    for authority in [
        "admin.example.com",
        "ADMIN.Example.com:443",
        "admin.example.com.",
        "u:p@admin.example.com",
        "x@y@admin.example.com:80",
    ] {
        let target = format!("http://{authority}/page");
        assert_eq!(forward(&service, &format!("x-forwarded-uri: {target}")).await, 410, "{target}");
        assert_eq!(grpc(&service, &target, "").await, 410, "{target}");
        // ingress-nginx sends the name of the auth service as the host.
        assert_eq!(nginx(&service, &format!("host: tollgate\r\nx-original-url: {target}")).await, 410, "{target}");
        assert_eq!(forward(&service, &format!("x-forwarded-host: shop\r\nx-forwarded-uri: {target}")).await, 200);
        assert_eq!(grpc(&service, &target, "shop").await, 200);
        assert_eq!(nginx(&service, &format!("host: shop\r\nx-original-uri: {target}")).await, 200);
    }
    assert_eq!(nginx(&service, "host: admin.example.com\r\nx-original-url: /page").await, 410);
    assert_eq!(nginx(&service, "host: admin.example.com\r\nx-original-uri: http://shop/page").await, 410);
    assert_eq!(nginx(&service, "host: admin.example.com\r\nx-original-url: http://shop/page").await, 200);
}

#[tokio::test]
async fn semantics_33_ingress_nginx_sends_the_whole_url() {
    let rules = [rule("login", &[("path", "/login"), ("host", "shop.example.com")], &[("once", &["account"])])];
    let service = start(book([window("once", 1, 60)], rules)).await;
    // As ingress-nginx 1.12 sends it.
    let head = "GET /authz/nginx HTTP/1.1\r\nHost: tollgate.default.svc.cluster.local\r\n\
                X-Original-URL: https://shop.example.com/login?a=b\r\nX-Original-Method: POST\r\n\
                X-Sent-From: nginx-ingress-controller\r\nX-Real-IP: 192.0.2.7\r\nX-Forwarded-For: 192.0.2.7\r\n\
                X-Auth-Request-Redirect: /login?a=b\r\nx-account: al";
    assert_eq!(service.ask(head).await.status, 200);
    let answer = service.ask(head).await;
    assert_eq!((answer.status, answer.header("x-tollgate-status")), (403, Some("429")));
}

#[tokio::test]
async fn semantics_33_headers_that_name_two_requests_are_refused_and_the_answer_lists_what_is_accepted() {
    let service = start(walls()).await;
    let ask = async |headers: &str| {
        let answer = service.ask(&format!("GET /authz/nginx HTTP/1.1\r\nhost: shop\r\n{headers}")).await;
        (answer.status, answer.body)
    };
    let missing = (400, "expected the header x-original-uri or x-original-url\n".to_owned());
    assert_eq!(ask("x-original-method: GET").await, missing);
    assert_eq!(ask("x-original-method: GET\r\nx-original-uri:\r\nx-original-url:").await, missing);
    let missing = (400, "expected the header x-original-method\n".to_owned());
    assert_eq!(ask("x-original-url: http://shop/page").await, missing);
    // nginx passes on what a client sends, so one of two headers can be the client's.
    let differ = "the headers x-original-uri and x-original-url differ: expected one request\n";
    for headers in [
        "x-original-uri: /page\r\nx-original-url: http://shop/internal/k",
        "x-original-url: http://shop/internal/k\r\nx-original-uri: /page",
        "x-original-uri: /page\r\nx-original-url: http://other/page",
        "x-original-uri: /page\r\nx-original-url: /page?key=mine",
    ] {
        assert_eq!(ask(&format!("x-original-method: GET\r\n{headers}")).await, (400, differ.to_owned()), "{headers}");
    }
    for headers in
        ["x-original-uri: /page\r\nx-original-uri: /internal/k", "x-original-url: /page\r\nx-original-url: /"]
    {
        assert_eq!(ask(&format!("x-original-method: GET\r\n{headers}")).await.0, 400, "{headers}");
    }
    for same in [
        "x-original-uri: /page\r\nx-original-url: http://shop/page",
        "x-original-uri: /page\r\nx-original-url: HTTPS://Shop:443/page",
        "x-original-uri: /page\r\nx-original-url: /page",
        "x-original-uri: /page\r\nx-original-uri: /page",
    ] {
        assert_eq!(ask(&format!("x-original-method: GET\r\n{same}")).await.0, 200, "{same}");
    }
    let twice = "x-original-uri: /page\r\nx-original-method: GET\r\nx-original-method: POST";
    assert_eq!(ask(twice).await, (400, "the headers x-original-method differ: expected one request\n".to_owned()));
    let twice = "x-forwarded-uri: /page\r\nx-forwarded-uri: /internal/k";
    assert_eq!(forward(&service, twice).await, 400);
}

/// Envoy passes these on in the target, and no URI may have them.
const UNUSUAL: [&str; 8] = ["\"", "<", ">", "`", "{}|^", "\u{fc}", "\\", "<\">`"];

#[tokio::test]
async fn semantics_33_a_target_with_characters_that_no_uri_has_is_decided_by_the_rules() {
    let service = start(walls()).await;
    for odd in UNUSUAL {
        for (target, status) in [
            (format!("/page/{odd}"), 200),
            (format!("/page?a={odd}"), 200),
            (format!("/internal/{odd}"), 404),
            (format!("/internal/k?{odd}"), 404),
            (format!("/page?a={odd}&key=stolen"), 401),
            (format!("/page?{odd}#{odd}"), 200),
        ] {
            let answer = service.ask(&format!("GET /authz/envoy{target} HTTP/1.1\r\nhost: h")).await;
            assert_eq!(answer.status, status, "{target}");
        }
    }
    // Bytes that are not UTF-8.
    for (target, status) in [("/page/\u{1}", 400), ("/page?\u{7f}", 400)] {
        assert_eq!(service.ask(&format!("GET /authz/envoy{target} HTTP/1.1\r\nhost: h")).await.status, status);
    }
    for (target, status) in [(&b"/page/\xff\xfe"[..], 200), (b"/internal/\xff", 404), (b"/page?\xc3&key=stolen", 401)] {
        let head = [b"GET /authz/envoy", target, b" HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"].concat();
        assert_eq!(exchange(service.http, &head).await.status, status, "{target:?}");
    }
}

#[tokio::test]
async fn a_target_is_counted_by_its_own_characters_and_no_others() {
    let rules =
        [rule("each", &[("path", "*")], &[("once", &["path"])]), rule("key", &[("key", "*")], &[("key", &["key"])])];
    let service = start(book([window("once", 1, 60), window("key", 1, 60)], rules)).await;
    let ask = async |target: &str| service.ask(&format!("GET /authz/envoy{target} HTTP/1.1\r\nhost: h")).await.status;
    for target in ["/a<b", "/a>b", "/a`b", "/a_b", "/a\"b", "/a\u{fc}b", "/x?key=a<b", "/y?key=a_b", "/z?key=a>b"] {
        assert_eq!((ask(target).await, ask(target).await), (200, 429), "{target}");
    }
    assert_eq!(ask("/other?key=a<b").await, 429);
}

#[tokio::test]
async fn unusual_targets_keep_their_connection_and_unreadable_ones_are_refused() {
    let service = start(walls()).await;
    let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
    for (target, status) in
        [("/a<", "200"), ("/internal/<", "404"), ("/page", "200"), ("/page?`<key=x>&key=stolen", "401")]
    {
        // In pieces, as a network may deliver them.
        let head = format!("GET /authz/envoy{target} HTTP/1.1\r\nhost: <h>\r\nx: <\"`>\r\n\r\n");
        for piece in head.as_bytes().chunks(5) {
            stream.write_all(piece).await.expect("sent");
            tokio::task::yield_now().await;
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(WAIT_TIMEOUT, stream.read_u8()).await.expect("in time").expect("an answer"));
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {text}");
        let length = Answer::read(&head).header("content-length").map_or(0, |length| length.parse().expect("a number"));
        stream.read_exact(&mut vec![0; length]).await.expect("the body");
    }
    // No gateway sends a request before the previous one is answered: the second is refused, whatever its target.
    let two = "GET /authz/envoy/a HTTP/1.1\r\nhost: h\r\n\r\nGET /authz/envoy/b< HTTP/1.1\r\nhost: h\r\n\r\n";
    let read = exchange(service.http, two.as_bytes()).await;
    assert_eq!(read.status, 200);
    assert!(read.body.contains("HTTP/1.1 400"), "{read:?}");
}
