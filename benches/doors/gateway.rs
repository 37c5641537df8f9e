//! Latency that a client of a gateway sees: a real Envoy that calls tollgate, compared with the same Envoy calling a
//! service that does nothing.
//!
//! ```text
//! client -> Envoy :a -> RLS that does nothing    one Envoy with one worker, which answers by its own health check
//!        -> Envoy :b -> RLS of tollgate          filter, so that the rate limit call is the only other work
//! ```
//!
//! A `direct_response` would not do: Envoy's rate limit filter makes no call for a route without a cluster.
//!
//! Requests come at a fixed rate: far below capacity, or at a share of the capacity measured with the service that does
//! nothing. The services take turns; each turn yields a median and a 99th percentile.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::{ROUNDS, median, paced};

/// Names of the services that are always measured.
pub const NOTHING: &str = "RLS that does nothing";
pub const MEMORY: &str = "tollgate, two limiters in memory";

/// Requests per second of an idle gateway: each is answered long before the next one is due.
const IDLE: f64 = 100.0;

/// Length of a turn.
const TURN: Duration = Duration::from_secs(4);

/// Length of a turn at the idle rate: ten of its requests are slower than its 99th percentile.
const IDLE_TURN: Duration = Duration::from_secs(10);

/// Connections of h2load.
const CLIENTS: usize = 8;

/// How requests are spaced.
#[derive(Clone, Copy)]
enum Pace {
    Idle,
    /// At half of the capacity, evenly spaced.
    Half,
    /// At a quarter of the capacity, as h2load sends them: all requests due within ten milliseconds go out at once.
    Bursts,
}

/// Measures and prints the tables. The first service is the baseline of the others.
pub fn report(envoy: &str, services: &[(&str, &Server)]) {
    let servers: Vec<&Server> = services.iter().map(|(_, server)| *server).collect();
    let gateway = Gateway::start(envoy, &servers);
    gateway.ports[1..].iter().for_each(|port| verdicts(*port));
    let capacity = gateway.capacity();
    println!("\nLatency through a real Envoy, microseconds; it can do {capacity:.0} requests/s with {NOTHING}");
    for pace in [Pace::Idle, Pace::Half, Pace::Bursts] {
        let (rate, what, goal) = match pace {
            Pace::Idle => (IDLE, "idle, evenly spaced", ""),
            Pace::Half => (capacity / 2.0, "half of what it can do, evenly spaced", ""),
            Pace::Bursts => {
                (capacity / 4.0, "a quarter of what it can do, in bursts of 10 ms", "   goals: 1.1 and 1.25")
            }
        };
        let mut turns: Vec<Vec<Turn>> = services.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (port, turns) in gateway.ports.iter().zip(&mut turns) {
                turns.push(gateway.turn(*port, pace, rate));
            }
        }
        println!("\n  {rate:.0} requests/s: {what}");
        println!("  {:<36} {:>8} {:>8} {:>15} {:>15}", "", "p50 us", "p99 us", "p50 x nothing", "p99 x nothing");
        let of = |turns: &[Turn], quantile: fn(&Turn) -> f64| median(turns.iter().map(quantile).collect());
        let medians: Vec<_> =
            turns.iter().map(|turns| (of(turns, |turn| turn.p50), of(turns, |turn| turn.p99))).collect();
        for ((name, _), (p50, p99)) in services.iter().zip(&medians) {
            let goal = if *name == MEMORY { goal } else { "" };
            let (half, most) = (p50 / medians[0].0, p99 / medians[0].1);
            println!("  {name:<36} {p50:>8.0} {p99:>8.0} {half:>15.2} {most:>15.2}{goal}");
        }
    }
}

/// Checks that Envoy calls the service and enforces the answer: a limit of three admits three.
fn verdicts(port: u16) {
    let mut stream = TcpStream::connect(local(port)).expect("Envoy listens");
    let statuses = [(); 4].map(|()| paced::ask(&mut stream, &request("/check")));
    assert_eq!(statuses, [200, 200, 200, 429], "Envoy does not ask");
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nx-account: load\r\n\r\n")
}

/// The result of a turn, in microseconds.
struct Turn {
    p50: f64,
    p99: f64,
}

/// The running Envoy. It stops when this is dropped.
struct Gateway {
    process: Child,
    /// The listener port for each service, in their order.
    ports: Vec<u16>,
    log: PathBuf,
}

impl Gateway {
    fn start(envoy: &str, services: &[&Server]) -> Self {
        let ports: Vec<u16> = services.iter().map(|_| free_port()).collect();
        let directory = std::env::temp_dir().join(format!("tollgate-bench-gateway-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("there is a temporary directory");
        let file = directory.join("envoy.yaml");
        let addresses = services.iter().map(|service| service.grpc);
        std::fs::write(&file, configuration(ports.iter().copied().zip(addresses))).expect("it can be written");
        let process = Command::new("taskset")
            .args(["-c", "1", envoy, "-c"])
            .arg(&file)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("taskset starts it");
        let began = Instant::now();
        while ports.iter().any(|port| TcpStream::connect(local(*port)).is_err()) {
            assert!(began.elapsed() < Duration::from_secs(20), "Envoy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, ports, log: directory.join("latencies") }
    }

    /// The throughput in requests per second with the service that does nothing, when requests follow without a pause.
    fn capacity(&self) -> f64 {
        let said = Self::load(self.ports[0], &["-n", "40000"]);
        let rate = said.lines().find_map(|line| line.strip_prefix("finished in "));
        let rate = rate.and_then(|line| line.split(", ").nth(1)).and_then(|rate| rate.strip_suffix(" req/s"));
        rate.and_then(|rate| rate.parse().ok()).expect("h2load prints the rate")
    }

    fn turn(&self, port: u16, pace: Pace, rate: f64) -> Turn {
        let request = request("/login");
        let mut micros = match pace {
            Pace::Idle => paced::latencies(local(port), &request, rate, IDLE_TURN),
            Pace::Half => paced::latencies(local(port), &request, rate, TURN),
            Pace::Bursts => self.bursts(port, rate),
        };
        micros.sort_by(f64::total_cmp);
        let at = |share: f64| micros[(micros.len() as f64 * share) as usize];
        Turn { p50: at(0.5), p99: at(0.99) }
    }

    fn bursts(&self, port: u16, rate: f64) -> Vec<f64> {
        drop(std::fs::remove_file(&self.log));
        let requests = format!("{:.0}", rate * TURN.as_secs_f64());
        let per_client = format!("{:.0}", (rate / CLIENTS as f64).max(1.0));
        let log = self.log.to_str().expect("a path in ASCII");
        Self::load(port, &["-n", &requests, "--rps", &per_client, "--log-file", log]);
        latencies(&self.log)
    }

    fn load(port: u16, arguments: &[&str]) -> String {
        let clients = CLIENTS.to_string();
        let output = Command::new("taskset")
            .args(["-c", "1", "h2load", "--h1", "-t", "1", "-c", &clients, "-H", "x-account: load"])
            .args(arguments)
            .arg(format!("http://127.0.0.1:{port}/login"))
            .output()
            .expect("h2load is installed");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // All must be admitted: a gateway refuses faster than it forwards.
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

/// The third column of h2load's log: microseconds from a request to the end of its response.
fn latencies(log: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(log).expect("h2load writes its log");
    text.lines().map(|line| line.split('\t').nth(2).and_then(|micros| micros.parse().ok()).expect("a time")).collect()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// One listener for each service. Envoy calls the service, then answers the request itself.
fn configuration(services: impl Iterator<Item = (u16, SocketAddr)>) -> String {
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
                route: {{cluster: service_{port}}}
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
              timeout: 10s
              failure_mode_deny: true
              rate_limit_service:
                transport_api_version: V3
                grpc_service: {{envoy_grpc: {{cluster_name: service_{port}}}}}
          - name: envoy.filters.http.health_check
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
              pass_through_mode: false
              headers: [{{name: ":path", string_match: {{prefix: /}}}}]
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
