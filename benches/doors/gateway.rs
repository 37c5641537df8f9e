//! What a client of a gateway notices: a real Envoy that asks tollgate, beside the same Envoy asking a service that does
//! nothing.
//!
//! ```text
//!   h2load -> Envoy :a -> RLS of tollgate        one Envoy, one worker; the answer is its own ("direct_response"),
//!          -> Envoy :b -> RLS that does nothing  so that nothing but the question is in between
//! ```
//!
//! Requests come at a fixed rate, a quarter of what the gateway can do when it asks the service that does nothing. The
//! two take turns; a turn's latencies are h2load's own, one for each request.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::median;
use crate::server::Server;

/// Turns of each, in pairs.
const PAIRS: usize = 7;

/// How long a turn takes.
const TURN: Duration = Duration::from_secs(4);

/// Connections to the gateway.
const CLIENTS: usize = 8;

/// Measures and prints the table.
pub fn report(envoy: &str, noop: &str, tollgate: &[&str]) {
    let (noop, tollgate) = (Server::start(&[noop]), Server::start(tollgate));
    let gateway = Gateway::start(envoy, &tollgate, &noop);
    let capacity = gateway.capacity();
    let rate = capacity / 4.0;
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..PAIRS {
        for (port, turns) in [gateway.noop, gateway.tollgate].into_iter().zip(&mut turns) {
            turns.push(gateway.turn(port, rate));
        }
    }
    let quantile = |turns: &[Turn], of: fn(&Turn) -> f64| median(turns.iter().map(of).collect());
    println!("\nThrough a real Envoy at {rate:.0} requests/s, a quarter of the {capacity:.0} it can do");
    println!("  {:<42} {:>10} {:>10}", "", "p50 us", "p99 us");
    let [nothing, real] = turns.map(|turns| [quantile(&turns, |turn| turn.p50), quantile(&turns, |turn| turn.p99)]);
    println!("  {:<42} {:>10.0} {:>10.0}", "RLS that does nothing", nothing[0], nothing[1]);
    println!("  {:<42} {:>10.0} {:>10.0}", "tollgate, two limiters", real[0], real[1]);
    println!(
        "  {:<42} {:>8.2} x {:>8.2} x   goals 1.1 and 1.25",
        "tollgate over nothing",
        real[0] / nothing[0],
        real[1] / nothing[1]
    );
}

/// What a turn came to, in microseconds.
struct Turn {
    p50: f64,
    p99: f64,
}

/// The Envoy. It ends with this value.
struct Gateway {
    process: Child,
    tollgate: u16,
    noop: u16,
    log: PathBuf,
}

impl Gateway {
    fn start(envoy: &str, tollgate: &Server, noop: &Server) -> Self {
        let (a, b) = (free_port(), free_port());
        let directory = std::env::temp_dir().join(format!("tollgate-bench-gateway-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("there is a temporary directory");
        let file = directory.join("envoy.yaml");
        std::fs::write(&file, configuration([(a, tollgate.grpc), (b, noop.grpc)])).expect("it can be written");
        let process = Command::new("taskset")
            .args(["-c", "1", envoy, "-c"])
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("taskset starts it");
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", b)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "Envoy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, tollgate: a, noop: b, log: directory.join("latencies") }
    }

    /// Requests a second when nobody waits between them, asking the service that does nothing.
    fn capacity(&self) -> f64 {
        let said = self.load(self.noop, &["-n", "40000"]);
        let rate = said.lines().find_map(|line| line.strip_prefix("finished in "));
        let rate = rate.and_then(|line| line.split(", ").nth(1)).and_then(|rate| rate.strip_suffix(" req/s"));
        rate.and_then(|rate| rate.parse().ok()).expect("h2load tells the rate")
    }

    fn turn(&self, port: u16, rate: f64) -> Turn {
        drop(std::fs::remove_file(&self.log));
        let requests = format!("{:.0}", rate * TURN.as_secs_f64());
        let per_client = format!("{:.0}", (rate / CLIENTS as f64).max(1.0));
        let log = self.log.to_str().expect("a path in ASCII");
        self.load(port, &["-n", &requests, "--rps", &per_client, "--log-file", log]);
        let mut micros = latencies(&self.log);
        micros.sort_by(f64::total_cmp);
        let at = |share: f64| micros[(micros.len() as f64 * share) as usize];
        Turn { p50: at(0.5), p99: at(0.99) }
    }

    fn load(&self, port: u16, arguments: &[&str]) -> String {
        let clients = CLIENTS.to_string();
        let output = Command::new("taskset")
            .args(["-c", "1", "h2load", "--h1", "-t", "1", "-c", &clients, "-H", "x-account: load"])
            .args(arguments)
            .arg(format!("http://127.0.0.1:{port}/login"))
            .output()
            .expect("h2load is installed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // All passed: a gateway that refuses is quicker.
        let passed = said.contains(" 0 failed") && said.contains(" 0 4xx, 0 5xx");
        assert!(output.status.success() && passed, "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.process.kill().and_then(|()| self.process.wait()));
        if let Some(directory) = self.log.parent() {
            drop(std::fs::remove_dir_all(directory));
        }
    }
}

/// The third column of h2load's log: microseconds from a request to the end of its answer.
fn latencies(log: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(log).expect("h2load writes its log");
    text.lines().map(|line| line.split('\t').nth(2).and_then(|micros| micros.parse().ok()).expect("a time")).collect()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A listener for each service, which is asked before Envoy answers by itself.
fn configuration(services: [(u16, SocketAddr); 2]) -> String {
    let mut listeners = String::new();
    let mut clusters = String::new();
    for (port, service) in services {
        listeners += &format!(
            r#"
  - name: listener_{port}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                direct_response: {{status: 200}}
                typed_per_filter_config:
                  envoy.filters.http.ratelimit:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute
                    rate_limits:
                    - actions:
                      - request_headers: {{header_name: ":path", descriptor_key: path}}
                      - request_headers: {{header_name: x-account, descriptor_key: account}}
                      - generic_key: {{descriptor_key: remote_address, descriptor_value: 192.0.2.7}}
          http_filters:
          - name: envoy.filters.http.ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
              domain: two
              timeout: 1s
              failure_mode_deny: true
              rate_limit_service:
                transport_api_version: V3
                grpc_service: {{envoy_grpc: {{cluster_name: service_{port}}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#
        );
        clusters += &format!(
            r#"
  - name: service_{port}
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: service_{port}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}"#,
            service.ip(),
            service.port()
        );
    }
    format!("static_resources:\n  listeners:{listeners}\n  clusters:{clusters}\n")
}
