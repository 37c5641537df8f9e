//! Mistakes in the configuration of a real Envoy, with which requests pass: the log names each once, with the remedy.

use crate::support::processes::{Ask, Gateway, read, until};

/// `examples/envoy/login.yaml`, changed in one place, where requests pass when the call to tollgate fails.
fn login(part: &str, other: &str) -> String {
    let envoy = read("examples/envoy/login.yaml");
    assert_eq!(envoy.matches(part).count(), 1, "{part:?} in\n{envoy}");
    envoy.replace(part, other).replace("failure_mode_deny: true", "failure_mode_deny: false")
}

/// The rules of the example, and more.
fn rules(more: &str) -> String {
    let rules = read("examples/envoy/login.toml").replace("[server]\n", "[server]\nadmin = \"127.0.0.1:8083\"\n");
    format!("{rules}\n{more}")
}

/// Envoy with this configuration, and the rules of the example.
fn gateway(envoy: &str) -> Option<Gateway> {
    Gateway::start(envoy, &rules(""))
}

/// Nine logins on a limit of five, which all reach the upstream.
fn nine_logins_pass(gateway: &Gateway) {
    for _ in 0..9 {
        let login = Ask::post("/login").json(r#"{"username": "ada", "password": "guess"}"#).from("203.0.113.7");
        gateway.ask(&login);
    }
    assert_eq!(gateway.upstream.seen().len(), 9);
}

/// The lines of the log that name a mistake, as soon as one names this.
fn lines(gateway: &Gateway, mistake: &str) -> Vec<String> {
    let log = || gateway.tollgate.as_ref().expect("it runs").log();
    until(mistake, || log().contains(&format!("mistake=\"{mistake}\"")));
    log().lines().filter(|line| line.contains("mistake=")).map(str::to_owned).collect()
}

/// The metric of a mistake.
fn counted(gateway: &Gateway, mistake: &str) -> u64 {
    let metrics = gateway.ask_at(8_083, &Ask::get("/metrics")).body;
    let series = format!("tollgate_gateway_mistakes_total{{mistake=\"{mistake}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

/// The count in a line. The log can be written while requests come, so it may not have all of them.
fn count(line: &str) -> u64 {
    let (_, count) = line.split_once(" count=").expect("a line has its count");
    count.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
}

/// Runs nine logins through Envoy with a mistake, which one line has to name, and returns that line.
fn named(envoy: &str, mistake: &str) -> Option<String> {
    named_by(envoy, &rules(""), mistake)
}

/// The same with these rules.
fn named_by(envoy: &str, rules: &str, mistake: &str) -> Option<String> {
    let gateway = Gateway::start(envoy, rules)?;
    nine_logins_pass(&gateway);
    let lines = lines(&gateway, mistake);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let line = lines[0].clone();
    assert!(line.contains("WARN"), "{line}");
    assert!((1..=9).contains(&count(&line)), "{line}");
    until("each is counted", || counted(&gateway, mistake) == 9);
    for identity in ["ada", "203.0.113.7"] {
        assert!(!line.contains(identity), "{line}");
    }
    Some(line)
}

#[test]
fn http_1_at_the_grpc_port_is_named_with_its_remedy() {
    let envoy = login(
        "explicit_http_config: {http2_protocol_options: {}}",
        "explicit_http_config: {http_protocol_options: {}}",
    );
    let Some(line) = named(&envoy, "http1_at_grpc_port") else { return };
    assert!(line.contains("HTTP/1.1 at the gRPC port: set http2_protocol_options"), "{line}");
    assert!(line.contains("typed_extension_protocol_options") && line.contains("from 127.0.0.1"), "{line}");
}

#[test]
fn a_misspelt_domain_is_named_with_the_one_that_is_meant() {
    let Some(line) = named(&login("domain: edge\n", "domain: egde\n"), "unknown_domain") else { return };
    assert!(line.contains(r#""egde", did you mean "edge"?"#), "{line}");
}

#[test]
fn a_misspelt_key_is_named_with_the_rule_that_nearly_matches() {
    let envoy = login("descriptor_key: path}", "descriptor_key: pth}");
    let Some(line) = named(&envoy, "unknown_keys") else { return };
    let why = r#"domain "edge", keys account, method, pth, remote_address: no rule uses pth, did you mean path?: rule login nearly matches: path is missing, expected "/login""#;
    assert!(line.contains(why), "{line}");
}

#[test]
fn a_misspelt_key_is_named_whatever_other_rules_do() {
    let blocked = "[[rules]]\ndomain = \"edge\"\nname = \"blocked\"\nmatch = { remote_address = \"198.51.100.0/24\" }\naction = \"deny\"\n";
    let health =
        "[[rules]]\ndomain = \"edge\"\nname = \"health\"\nmatch = { path = \"/health\" }\naction = \"allow\"\n";
    let skipping = rules("").replace(", missing = \"deny\"", "");
    let cases = [
        ("path}", "pth}", rules(blocked), "rule login nearly matches: path is missing"),
        ("method}", "mthod}", rules(health), "rule login nearly matches: method is missing"),
        (
            "account\n",
            "acount\n",
            skipping,
            "rule login matches, but login_account: skipped: missing entries of the key",
        ),
    ];
    for (key, spelt, rules, why) in cases {
        let envoy = login(&format!("descriptor_key: {key}"), &format!("descriptor_key: {spelt}"));
        let Some(line) = named_by(&envoy, &rules, "unknown_keys") else { return };
        let [key, spelt] = [key, spelt].map(|text| text.trim_end_matches(['}', '\n']));
        let meant = format!("no rule uses {spelt}, did you mean {key}?: {why}");
        assert!(line.contains(&meant), "{meant}\n{line}");
        assert!(line.contains("domains.NAME.entries"), "{line}");
    }
}

#[test]
fn a_tls_socket_to_the_grpc_port_is_named() {
    let tls = "    connect_timeout: 0.25s\n    transport_socket:\n      name: envoy.transport_sockets.tls\n      typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}\n";
    let Some(gateway) = gateway(&login("    connect_timeout: 0.25s\n", tls)) else { return };
    nine_logins_pass(&gateway);
    let lines = lines(&gateway, "tls");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("gRPC port, from 127.0.0.1"), "{lines:#?}");
}

#[test]
fn traffic_that_is_meant_to_pass_is_no_mistake() {
    let samples = [
        "login",
        "tokens",
        "concurrency",
        "failed_logins",
        "rls_filter",
        "rls_routes",
        "tiers",
        "ext_authz_grpc",
        "ext_authz_settle",
    ];
    for envoy in samples {
        let rules = if envoy == "ext_authz_grpc" { "ext_authz" } else { envoy };
        let Some(gateway) = Gateway::example(envoy, rules) else { return };
        for path in ["/", "/login?a=b", "/other", "/login"] {
            gateway.ask(&Ask::get(path));
            gateway.ask(&Ask::get(path).account("ada"));
        }
        // The reports that log this mistake have looked at all before it.
        gateway.tollgate.as_ref().expect("it runs").send_to_grpc(b"GET / HTTP/1.1\r\n\r\n");
        let lines = lines(&gateway, "http1_at_grpc_port");
        assert_eq!(lines.len(), 1, "{envoy}: {lines:#?}");
    }
}
