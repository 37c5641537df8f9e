//! A real Envoy that calls tollgate, with an upstream behind it.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{Answer, Ask, Ports, Process, Tollgate, Upstream, installed, read};

/// Envoy, tollgate and upstream, running.
#[derive(Debug)]
pub struct Gateway {
    /// The upstream.
    pub upstream: Upstream,
    /// The service. None once it has been stopped.
    pub tollgate: Option<Tollgate>,
    envoy: Process,
    ports: Ports,
    _directory: TempDir,
}

impl Gateway {
    /// Starts `examples/envoy/<envoy>.yaml` with `examples/envoy/<rules>.toml`. None when Envoy is not installed.
    pub fn example(envoy: &str, rules: &str) -> Option<Self> {
        Self::start(&read(format!("examples/envoy/{envoy}.yaml")), &read(format!("examples/envoy/{rules}.toml")))
    }

    /// Starts an Envoy configuration with rules. None when Envoy is not installed.
    pub fn start(envoy: &str, rules: &str) -> Option<Self> {
        let binary = installed::envoy()?;
        let ports = Ports::free();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let upstream = Upstream::start(ports.of(9_000));
        let tollgate = Tollgate::start(rules, &ports);
        let file = directory.path().join("envoy.yaml");
        fs::write(&file, patient(&on_loopback(&ports.rewrite(envoy)))).expect("a file in the test's directory");
        let mut command = Command::new(binary);
        command.arg("-c").arg(&file).args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        let admin = ports.of(9_901);
        let envoy = Process::start("envoy", &mut command, directory.path())
            .ready(|| Ask::get("/ready").send(admin).is_ok_and(|answer| answer.status == 200));
        Some(Self { upstream, tollgate: Some(tollgate), envoy, ports, _directory: directory })
    }

    /// Sends a request through Envoy.
    pub fn ask(&self, ask: &Ask) -> Answer {
        self.ask_at(10_000, ask)
    }

    /// Sends a request to the listener that the configuration has on the port `written`.
    pub fn ask_at(&self, written: u16, ask: &Ask) -> Answer {
        ask.send(self.ports.of(written)).unwrap_or_else(|error| panic!("{ask:?}: {error}\n{}", self.envoy.log()))
    }

    /// The actual port of the listener that the configuration has on the port `written`.
    pub fn port(&self, written: u16) -> u16 {
        self.ports.of(written)
    }

    /// The value of one of Envoy's counters.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.ask_at(9_901, &Ask::get(&format!("/stats?filter=^{name}$"))).body;
        stats.trim().rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }

    /// Stops tollgate, so that Envoy's calls fail.
    pub fn stop_tollgate(&mut self) {
        self.tollgate = None;
    }
}

/// Replaces the host names of the containers by this machine's loopback address.
fn on_loopback(envoy: &str) -> String {
    ["0.0.0.0", "tollgate", "upstream"]
        .iter()
        .fold(envoy.to_owned(), |text, host| text.replace(&format!("address: {host},"), "address: 127.0.0.1,"))
}

/// Raises the timeouts for a busy machine, so that a slow call neither admits nor refuses a request. The longest time
/// between two tries is also the timeout of each.
fn patient(envoy: &str) -> String {
    envoy.replace("timeout: 0.25s", "timeout: 10s").replace("max_interval: 0.1s", "max_interval: 10s")
}
