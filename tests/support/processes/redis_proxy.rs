//! Real proxies in front of Redis servers, which spread keys over them.

use std::fmt::Write;
use std::fs;
use std::net::TcpStream;

use tempfile::TempDir;

use super::process::bound;
use super::{Process, Redis, installed, ports};

/// A running proxy.
#[derive(Debug)]
pub struct RedisProxy {
    // Dropped before the directory.
    _process: Process,
    /// The port that it listens on.
    pub port: u16,
    _directory: TempDir,
}

impl RedisProxy {
    /// Starts an Envoy with a `redis_proxy`. None when it is not installed.
    pub fn envoy(servers: &[&Redis]) -> Option<Self> {
        let program = installed::envoy()?;
        let mut endpoints = String::new();
        for server in servers {
            let address = format!("{{ address: 127.0.0.1, port_value: {} }}", server.port);
            writeln!(endpoints, "      - endpoint: {{ address: {{ socket_address: {address} }} }}").expect("a string");
        }
        Some(Self::start("envoy", "yaml", |port| {
            let configuration = format!(
                "static_resources:\n  listeners:\n  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} \
                 }} }}\n    filter_chains:\n    - filters:\n      - name: redis\n        typed_config:\n          \
                 \"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy\n          \
                 stat_prefix: redis\n          settings: {{ op_timeout: 5s }}\n          \
                 prefix_routes: {{ catch_all_route: {{ cluster: redis }} }}\n  clusters:\n  - name: redis\n    \
                 type: STATIC\n    lb_policy: MAGLEV\n    load_assignment:\n      cluster_name: redis\n      \
                 endpoints:\n      - lb_endpoints:\n{}",
                endpoints.replace("      - endpoint", "        - endpoint")
            );
            let mut command = bound(&program, "KILL");
            command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c"]);
            (configuration, command)
        }))
    }

    /// Starts a twemproxy. None when it is not installed.
    pub fn twemproxy(servers: &[&Redis]) -> Option<Self> {
        let program = installed::twemproxy()?;
        let servers: String = servers.iter().map(|server| format!("   - 127.0.0.1:{}:1\n", server.port)).collect();
        Some(Self::start("twemproxy", "yml", |port| {
            let configuration = format!(
                "limits:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  \
                 servers:\n{servers}"
            );
            let mut command = bound(&program, "KILL");
            command.args(["-s", &ports::free().to_string(), "-c"]);
            (configuration, command)
        }))
    }

    fn start(
        name: &'static str,
        ending: &str,
        configured: impl FnOnce(u16) -> (String, std::process::Command),
    ) -> Self {
        let (port, directory) = (ports::free(), tempfile::tempdir().expect("a temporary directory"));
        let (configuration, mut command) = configured(port);
        let file = directory.path().join(format!("{name}.{ending}"));
        fs::write(&file, configuration).expect("a file in the test's directory");
        command.arg(file);
        let process = Process::start(name, &mut command, directory.path())
            .ready(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _process: process, port, _directory: directory }
    }
}
