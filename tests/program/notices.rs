//! Warnings about mistakes of gateways: each at most once a minute, with the reason and the remedy.

use bytes::Bytes;

use crate::support::binary::{DOORS, Served, exchange};
use crate::support::service::{Rls, SHOULD_RATE_LIMIT, begin, connect, descriptor, question, says_no};

fn warnings(served: &Served, text: &str) -> usize {
    served.said().lines().filter(|line| line.contains("WARN") && line.contains(text)).count()
}

#[test]
fn an_http_head_that_cannot_be_read_is_refused_and_warned_of_once_a_minute() {
    let served = Served::start(DOORS, &[]);
    let last = b"GET /healthcheck HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    for _ in 0..3 {
        // A target with a character that hyper rejects is read only where nothing is pipelined.
        let two = b"GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\n\r\nGET /authz/envoy/< HTTP/1.1\r\nhost: h\r\n\r\n";
        assert!(exchange(&served.http, two).contains("HTTP/1.1 400"));
        assert!(exchange(&served.http, b"GET /authz/envoy/ nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    }
    served.until("HTTP requests refused");
    assert!(exchange(&served.http, last).starts_with("HTTP/1.1 200"));
    assert_eq!(warnings(&served, "HTTP requests refused"), 1, "{}", served.said());
    let unreadable = "tollgate_requests_total{door=\"ext_authz_http\",result=\"unreadable\"}";
    while served.metric(unreadable) < 6.0 {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoding_that_is_not_supported_is_refused_and_warned_of_once_a_minute() {
    let served = Served::start(DOORS, &[]);
    let client = connect(served.grpc.parse().expect("an address")).await;
    for _ in 0..3 {
        let headers = [("grpc-encoding", "zstd")];
        let (response, mut stream) =
            begin(&client, SHOULD_RATE_LIMIT, &headers, Bytes::from_static(&[1, 0, 0, 0, 1, 0])).await;
        let _ = stream.send_data(Bytes::new(), true);
        assert!(says_no(SHOULD_RATE_LIMIT, response).await);
    }
    served.until("grpc-encoding is not supported");
    assert_eq!(warnings(&served, "grpc-encoding"), 1, "{}", served.said());
    assert!(served.said().contains("encoding=\"zstd\""), "{}", served.said());
    assert_eq!(served.metric("tollgate_requests_total{door=\"rls\",result=\"unreadable\"}"), 3.0);
}

/// The metric of a mistake.
fn counted(served: &Served, mistake: &str) -> f64 {
    served.metric(&format!("tollgate_gateway_mistakes_total{{mistake=\"{mistake}\"}}"))
}

/// The lines of the log that name a mistake, once one names this.
fn lines(served: &Served, mistake: &str) -> Vec<String> {
    served.until(&format!("mistake=\"{mistake}\""));
    served.said().lines().filter(|line| line.contains("mistake=")).map(str::to_owned).collect()
}

const RULES: &str = r#"
[limiters.login]
algorithm = "sliding_window"
limit = 5
window = "5m"

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login" }
apply = [{ limiter = "login", key = ["account"] }]
"#;

/// A mistake, the bytes that are one, the names and addresses of ports, and a word of the remedy.
type ForeignProtocol<'a> = (&'a str, &'a [u8], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn another_protocol_at_a_port_is_warned_of_with_the_port_and_the_remedy() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const HELLO: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03";
    const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02";
    let proxy_1 = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\n\r\n";
    let served = Served::start(DOORS, &[]);
    let (grpc, http, admin) = (served.grpc.clone(), served.http.clone(), served.admin.clone());
    let cases: [ForeignProtocol<'_>; 5] = [
        ("http1_at_grpc_port", b"POST /a HTTP/1.1\r\nhost: h\r\n\r\n", &[("gRPC", &grpc)], "http2_protocol_options"),
        ("grpc_at_other_port", PREFACE, &[("admin", &admin)], "server.grpc"),
        ("tls", HELLO, &[("gRPC", &grpc), ("HTTP", &http), ("admin", &admin)], "transport_socket"),
        ("proxy_protocol", PROXY_2, &[("gRPC", &grpc), ("HTTP", &http)], "upstream_proxy_protocol"),
        ("proxy_protocol", proxy_1, &[("gRPC", &grpc), ("admin", &admin)], "upstream_proxy_protocol"),
    ];
    for (_, bytes, ports, _) in &cases {
        for (_, address) in *ports {
            exchange(address, bytes);
        }
    }
    for (mistake, _, ports, remedy) in cases {
        let named = lines(&served, mistake);
        let named: Vec<&String> = named.iter().filter(|line| line.contains(&format!("\"{mistake}\""))).collect();
        assert_eq!(named.len(), 1, "{named:#?}");
        assert!(named[0].contains("WARN") && named[0].contains(remedy), "{named:#?}");
        for (port, _) in ports {
            assert!(named[0].contains(&format!("{port} port, from 127.0.0.1")), "{named:#?}");
        }
    }
    assert_eq!(counted(&served, "tls"), 3.0);
    assert_eq!(counted(&served, "proxy_protocol"), 4.0);
    // They are no heads that cannot be read, and what the ports serve is no mistake.
    assert_eq!(counted(&served, "unreadable_head"), 0.0);
    assert!(exchange(&admin, b"GET /livez HTTP/1.0\r\n\r\n").contains(" 200 "));
    assert_eq!(counted(&served, "http1_at_grpc_port"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_method_or_at_a_port_that_is_not_served_are_warned_of() {
    let served = Served::start(DOORS, &[]);
    let old = "/envoy.service.ratelimit.v2.RateLimitService/ShouldRateLimit";
    let door = connect(served.grpc.parse().expect("an address")).await;
    for path in [old, old, "/users/bob@shop.example", "/envoy.service.auth.v3.Authorization/bob@shop"] {
        let (response, mut stream) = begin(&door, path, &[], Bytes::new()).await;
        let _ = stream.send_data(Bytes::new(), true);
        assert_eq!(response.await.expect("an answer").headers()["grpc-status"], "12");
    }
    let http = connect(served.http.parse().expect("an address")).await;
    let (response, mut stream) = begin(&http, SHOULD_RATE_LIMIT, &[], Bytes::new()).await;
    let _ = stream.send_data(Bytes::new(), true);
    assert_eq!(response.await.expect("an answer").status(), 404);
    let methods = lines(&served, "unknown_method");
    let line = methods.iter().find(|line| line.contains("unknown_method")).expect("a line");
    assert!(line.contains(&format!("{old} (2 of 4)")) && line.contains("V3"), "{line}");
    assert!(!line.contains("bob"), "{line}");
    let ports = lines(&served, "grpc_at_other_port");
    assert_eq!(ports.len(), 2, "{ports:#?}");
    assert!(ports.iter().any(|line| line.contains("HTTP port, from 127.0.0.1")), "{ports:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_make_up_domains_and_keys_cannot_flood_the_log() {
    let served = Served::start(&format!("{DOORS}{RULES}"), &[]);
    let rls = Rls::at(&served.grpc).await;
    let nasty = "\r\nERROR forged\u{1b}[2J\u{202e}";
    for number in 0..2000 {
        let name = format!("{number}{nasty}{}", "x".repeat(1000));
        rls.ask(question(&name, [descriptor(&[("path", "/login")])])).await;
        // Longer keys are not looked at.
        let key = format!("{number}{nasty}");
        rls.ask(question("edge", [descriptor(&[(&*key, &*name)])])).await;
        rls.ask(question("edge", [descriptor(&[(&*name, &*name)])])).await;
    }
    lines(&served, "unknown_domain");
    lines(&served, "unknown_keys");
    let said = served.said();
    assert!(said.lines().filter(|line| line.contains("WARN")).all(|line| line.len() < 4096), "{said}");
    assert!(!said.lines().any(|line| line.starts_with("ERROR")), "{said}");
    assert!(!said.contains(['\u{1b}', '\u{202e}', '\r']), "{said}");
    assert!(said.lines().filter(|line| line.contains("mistake=")).count() <= 2, "{said}");
    assert_eq!(counted(&served, "unknown_domain"), 2000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_top_show_the_mistakes() {
    let served = Served::start(&format!("{DOORS}{RULES}"), &[]);
    let rls = Rls::at(&served.grpc).await;
    for _ in 0..9 {
        rls.ask(question("egde", [descriptor(&[("path", "/login")])])).await;
    }
    let lines = lines(&served, "unknown_domain");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains(r#""egde", did you mean "edge"?"#), "{lines:#?}");
    let status = exchange(&served.admin, b"GET /status HTTP/1.0\r\n\r\n");
    assert!(status.contains("\"unknown_domain\":9") && status.contains("\"tls\":0"), "{status}");
    let top = served.run(&["top"]);
    assert!(top.contains("gateway mistake unknown_domain, 9 since the start: requests of unknown domains"), "{top}");
    assert!(!top.contains("gateway mistake tls"), "{top}");
}
