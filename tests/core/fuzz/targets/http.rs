//! Any request head: as a request to the door itself, and as a client's request that each gateway asks about.
//!
//! ```text
//!   POST /login HTTP/1.1
//!   x-account: al
//! ```

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use tollgate::rules;
use tollgate::server::Http;

use super::doors::{Doors, wait};

const LIMIT: usize = 3;
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: &str = "192.0.2.7";

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [limiters]
        address = { algorithm = "fixed_window", limit = 3, window = "1h" }
        account = { algorithm = "token_bucket", limit = 3, window = "1h" }

        [[rules]]
        domain = "edge"
        name = "everything"
        apply = [{ limiter = "address", key = ["remote_address"], missing = "deny" }]

        [[rules]]
        domain = "edge"
        name = "login"
        match = { path = "/login" }
        action = "deny"
        status = 418

        [[rules]]
        domain = "edge"
        name = "accounts"
        match = { path = "/a*", account = "*", host = { not = "example.org" } }
        apply = [{ limiter = "account", key = ["account", "session", "page"], missing = "empty" }]

        [authz]
        domain = "edge"
        trusted_hops = 1

        [authz.entries]
        account = { header = "x-account" }
        session = { cookie = "sid" }
        page = { query = "page" }
        "#,
    )
});

pub fn run(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next().unwrap_or_default().split(|&byte| byte == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let (Ok(method), Ok(target)) = (Method::from_bytes(method), HeaderValue::from_bytes(target)) else { return };
    let headers: HeaderMap = lines.filter_map(header).collect();

    as_it_came(&method, &target, &headers);
    let gateways: [(Gateway, bool); 3] = [(envoy, true), (nginx, false), (forward, false)];
    for (gateway, is_envoy) in gateways {
        if let Some(head) = gateway(&method, &target, headers.clone()) {
            as_a_clients(&target, &head, is_envoy);
        }
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// The status that the client is to get: nginx is answered 403, with that status in a header.
fn ask(door: &Http, head: &Parts) -> StatusCode {
    let answer = wait(door.answer_head(head, Some(GATEWAY)));
    for value in answer.headers().values() {
        assert!(value.to_str().is_ok(), "{value:?} is no text");
    }
    let meant = answer.headers().get("x-tollgate-status");
    meant.map_or(answer.status(), |status| StatusCode::from_bytes(status.as_bytes()).expect("a status"))
}

fn as_it_came(method: &Method, target: &HeaderValue, headers: &HeaderMap) {
    let Some(head) = head(method.clone(), target.as_bytes(), headers.clone()) else { return };
    let door = &DOORS.forget().http;
    let rest = head.uri.path().strip_prefix("/authz/envoy");
    for _ in 0..LIMIT {
        let status = ask(door, &head).as_u16();
        assert!([200, 400, 403, 404, 418, 429].contains(&status), "{status}");
    }
    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        assert_ne!(ask(door, &head), StatusCode::OK, "the limit counts whatever address the client claims");
    }
}

/// Once a client's limit is used up, no header lets the client pass, and all spellings of a path count as one.
fn as_a_clients(target: &HeaderValue, head: &Parts, is_envoy: bool) {
    let door = &DOORS.forget().http;
    let login = match is_envoy {
        // It is a URI, and a fragment is not part of a request.
        true => {
            head.uri.path_and_query().and_then(|target| target.as_str().strip_prefix("/authz/envoy")).map(Cow::from)
        }
        false => Some(String::from_utf8_lossy(target.as_bytes())),
    };
    let login = login.is_some_and(|target| rules::path(&target) == "/login");
    let first = ask(door, head);
    // A request with two hosts is refused before the rules are tried.
    if first != StatusCode::BAD_REQUEST {
        assert_eq!(first == StatusCode::IM_A_TEAPOT, login, "{first}");
    }
    for _ in 0..LIMIT {
        let plain = envoy(&Method::GET, &HeaderValue::from_static("/"), HeaderMap::new()).expect("a plain request");
        ask(door, &plain);
    }
    assert_ne!(ask(door, head), StatusCode::OK, "the limit counts whatever the client says");
}

type Gateway = fn(&Method, &HeaderValue, HeaderMap) -> Option<Parts>;

/// Envoy forwards the request and appends the address of its peer.
fn envoy(method: &Method, target: &HeaderValue, mut headers: HeaderMap) -> Option<Parts> {
    headers.append("x-forwarded-for", HeaderValue::from_static(CLIENT));
    if !target.as_bytes().starts_with(b"/") {
        return None;
    }
    head(method.clone(), &[b"/authz/envoy", target.as_bytes()].concat(), headers)
}

/// nginx passes on the client's headers and sets its own.
fn nginx(method: &Method, target: &HeaderValue, mut headers: HeaderMap) -> Option<Parts> {
    headers.insert("x-original-method", HeaderValue::from_str(method.as_str()).ok()?);
    headers.insert("x-original-uri", told_target(target)?);
    headers.insert("x-real-ip", HeaderValue::from_static(CLIENT));
    head(Method::GET, b"/authz/nginx", headers)
}

/// Caddy and Traefik set their own headers and append the address of their peer.
fn forward(method: &Method, target: &HeaderValue, mut headers: HeaderMap) -> Option<Parts> {
    headers.insert("x-forwarded-method", HeaderValue::from_str(method.as_str()).ok()?);
    headers.insert("x-forwarded-uri", told_target(target)?);
    headers.append("x-forwarded-for", HeaderValue::from_static(CLIENT));
    head(Method::GET, b"/authz/forward", headers)
}

/// A gateway makes no call about a request without a target.
fn told_target(target: &HeaderValue) -> Option<HeaderValue> {
    (!target.is_empty()).then(|| target.clone())
}

fn head(method: Method, target: &[u8], headers: HeaderMap) -> Option<Parts> {
    let uri = Uri::try_from(target).ok()?;
    let (mut head, ()) = Request::builder().method(method).uri(uri).body(()).ok()?.into_parts();
    head.headers = headers;
    Some(head)
}
