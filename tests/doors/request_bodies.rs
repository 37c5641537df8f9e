//! Entries of ext_authz from the body, over both doors, with requests as Envoy sends them.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollgate::rules::RuleBook;
use tollgate::settings::{AuthzSettings, BodyField, BodyFormat, Bounds, RequestPart, Settings};

use crate::support::service::*;

fn settings_with(absent_if_unreadable: bool) -> Settings {
    let formats = [BodyFormat::Json(vec!["user".into()]), BodyFormat::Form("user".into())];
    let fields = formats.map(|format| BodyField { format, absent_if_unreadable });
    let entries = vec![("account".into(), RequestPart::Body(fields.into()).into())];
    let authz = AuthzSettings { domain: "edge".into(), entries, ..AuthzSettings::default() };
    let bounds = Bounds { authz_body_bytes: 100, ..Bounds::default() };
    Settings { authz, bounds, ..settings() }
}

/// One login for each account.
fn login() -> RuleBook {
    let rules = [rule("login", &[("path", "/login"), ("method", "POST")], &[("login_account", &["account"])])];
    book([window("login_account", 1, 300)], rules)
}

async fn check(rls: &Rls, headers: &[(&str, &str)], body: &[u8], as_bytes: bool) -> u16 {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let mut http = HttpRequest { method: "POST".into(), path: "/login".into(), headers, ..HttpRequest::default() };
    match as_bytes {
        true => http.raw_body = body.to_vec(),
        false => http.body = String::from_utf8_lossy(body).into_owned(),
    }
    let request = Some(Request { http: Some(http), time: None });
    let attributes = Some(AttributeContext { request, ..AttributeContext::default() });
    let answer: CheckResponse = rls.call(CHECK, CheckRequest { attributes }).await.expect("never an error of gRPC");
    match answer.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => denied.status.expect("a status").code as u16,
        _ => 200,
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

#[tokio::test]
async fn semantics_62_the_account_of_a_check_is_in_its_body() {
    let service = Doors::start_with(settings_with(false), login()).await;
    let rls = service.rls().await;
    assert_eq!(check(&rls, &[JSON], br#"{"user":"ada"}"#, true).await, 200);
    assert_eq!(check(&rls, &[FORM], b"user=%61da", false).await, 429, "the same account");
    assert_eq!(check(&rls, &[FORM], b"user=bob", true).await, 200);
    assert_eq!(check(&rls, &[FORM], b"user=bob&user=eve", true).await, 400);
    assert_eq!(check(&rls, &[FORM], &b"user=eve&x=".repeat(20), true).await, 400, "above the bound");
    assert_eq!(check(&rls, &[FORM, ("content-length", "8")], b"", true).await, 400, "announced and not sent");
    // Without a body the entry is absent, and its rule does not count.
    assert_eq!(check(&rls, &[], b"", true).await, 200);
    assert_eq!(check(&rls, &[], b"", true).await, 200);
}

#[tokio::test]
async fn semantics_62_envoys_raw_http_sends_the_body_too() {
    let service = Doors::start_with(settings_with(false), login()).await;
    let ask = async |path: &str, kind: &str, body: &str| {
        let head = format!(
            "POST {path}/login HTTP/1.1\r\nhost: shop\r\ncontent-type: {kind}\r\nx-original-method: POST\r\n\
             x-original-uri: /login\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(service.http, head.as_bytes()).await
    };
    assert_eq!(ask("/authz/envoy", JSON.1, r#"{"user":"ada"}"#).await.status, 200);
    assert_eq!(ask("/authz/envoy", FORM.1, "user=ada").await.status, 429);
    let refused = ask("/authz/envoy", "text/plain", "user=ada").await;
    assert_eq!((refused.status, refused.header("x-tollgate-reason")), (400, Some("unreadable")));
    assert_eq!(ask("/authz/envoy", FORM.1, &"user=ada&".repeat(20)).await.status, 400, "above the bound");
}

#[tokio::test]
async fn semantics_62_of_a_body_that_breaks_off_no_part_is_read() {
    let service = Doors::start_with(settings_with(false), login()).await;
    let head = format!("POST /authz/envoy/login HTTP/1.1\r\nhost: shop\r\ncontent-type: {}\r\n", FORM.1);
    for body in [
        "transfer-encoding: chunked\r\n\r\n8\r\nuser=bob\r\nzz\r\n",
        "content-length: 20\r\n\r\nuser=bob",
        "transfer-encoding: chunked\r\n\r\n8\r\nuser=bob\r\n",
    ] {
        let mut stream = TcpStream::connect(service.http).await.expect("the door is open");
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("it is sent");
        stream.shutdown().await.expect("nothing more is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("the connection ends");
        let answer = Answer::read(&answer);
        assert!([0, 400].contains(&answer.status), "{body:?}: {answer:?}");
    }
    let rls = service.rls().await;
    assert_eq!(check(&rls, &[FORM], b"user=bob", true).await, 200, "nothing was counted");
}

#[tokio::test]
async fn semantics_62_what_cannot_be_read_is_absent_where_the_entry_says_so() {
    let service = Doors::start_with(settings_with(true), login()).await;
    let rls = service.rls().await;
    for _ in 0..3 {
        assert_eq!(check(&rls, &[FORM], b"user=bob&user=eve", true).await, 200, "its rule does not count");
    }
    assert_eq!(check(&rls, &[FORM], b"user=bob", true).await, 200);
    assert_eq!(check(&rls, &[FORM], b"user=bob", true).await, 429);
}
