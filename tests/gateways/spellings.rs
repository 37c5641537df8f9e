//! Spellings of one value that a real Envoy passes on: they meet one counter (semantics 27).

use bytes::Bytes;

use crate::support::processes::{Gateway, read};
use crate::support::service::connect;

/// Sends requests with this method over HTTP/2, as `curl --http2-prior-knowledge -X post` does, and returns the statuses.
async fn asked(gateway: &Gateway, method: &str, host: &str, requests: usize) -> Vec<u16> {
    let mut client = connect(format!("127.0.0.1:{}", gateway.port(10_000)).parse().expect("an address")).await;
    let mut statuses = Vec::new();
    for _ in 0..requests {
        client = client.ready().await.expect("the connection is open");
        let method = http::Method::from_bytes(method.as_bytes()).expect("a token");
        let request = http::Request::builder().method(method).uri(format!("http://{host}/login"));
        let request = request.header("x-account", "ada").header("content-type", "application/json");
        let (response, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
        body.send_data(Bytes::from_static(br#"{"username": "ada"}"#), true).expect("sent");
        statuses.push(response.await.expect("an answer").status().as_u16());
    }
    statuses
}

/// The rule that the README begins with.
const FIRST_RULE: &str = r#"
server = { grpc = "127.0.0.1:8081", http = "127.0.0.1:8080" }
limiters.login_account = { algorithm = "sliding_window", limit = 5, window = "5m" }

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login", method = "POST", host = "Shop.Example:80" }
apply = [{ limiter = "login_account", key = ["account", "method", "host"] }]

[authz]
domain = "edge"
entries.account = { header = "x-account" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_method_and_a_host_in_any_letters_are_one_through_ext_authz() {
    for example in ["ext_authz_grpc", "ext_authz_http"] {
        let Some(gateway) = Gateway::start(&read(format!("examples/envoy/{example}.yaml")), FIRST_RULE) else { return };
        let mut admitted = 0;
        for (method, host) in [("post", "shop.example"), ("POST", "SHOP.example"), ("Post", "shop.example.:81")] {
            let statuses = asked(&gateway, method, host, 4).await;
            admitted += statuses.iter().filter(|status| **status != 429).count();
        }
        assert_eq!(admitted, 5, "{example}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_in_any_letters_is_one_through_rls() {
    let Some(gateway) = Gateway::example("login", "login") else { return };
    let mut admitted = 0;
    for method in ["post", "POST", "pOST"] {
        let statuses = asked(&gateway, method, "shop.example", 4).await;
        admitted += statuses.iter().filter(|status| **status != 429).count();
    }
    assert_eq!(admitted, 5);
}
