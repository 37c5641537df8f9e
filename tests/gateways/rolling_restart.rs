//! Two instances behind a real Envoy are restarted one after the other, without an effect on any request.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::processes::{Ask, Ports, Process, Upstream, installed, read, until};

/// The instances: their gRPC and HTTP doors, as the example has them.
const INSTANCES: [(u16, u16); 2] = [(8_081, 8_080), (8_083, 8_082)];

#[test]
fn a_rolling_restart_of_two_instances_fails_no_request_and_lets_none_pass_unasked() {
    let Some(binary) = installed::envoy() else { return };
    let ports = Ports::free();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let _upstream = Upstream::start(ports.of(9_000));
    let rules = directory.path().join("tollgate.toml");
    fs::write(&rules, read("examples/envoy/two_instances.toml")).expect("a file in the test's directory");
    let instance = |(grpc, http): (u16, u16)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["serve", "--config"]).arg(&rules).current_dir(directory.path());
        command.env("GRPC", format!("127.0.0.1:{}", ports.of(grpc)));
        command.env("HTTP", format!("127.0.0.1:{}", ports.of(http)));
        let http = ports.of(http);
        Process::start("tollgate", &mut command, directory.path())
            .ready(|| Ask::get("/readyz").send(http).is_ok_and(|answer| answer.status == 200))
    };
    let mut running = INSTANCES.map(instance);

    let file = directory.path().join("envoy.yaml");
    // A long timeout, so that every request gets a decision on a slow machine too.
    let envoy = ports.rewrite(&read("examples/envoy/two_instances.yaml")).replace("timeout: 0.25s", "timeout: 10s");
    fs::write(&file, envoy).expect("a file in the test's directory");
    let mut command = Command::new(binary);
    command.arg("-c").arg(&file).args(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]);
    let admin = ports.of(9_901);
    let _envoy = Process::start("envoy", &mut command, directory.path())
        .ready(|| Ask::get("/ready").send(admin).is_ok_and(|answer| answer.status == 200));
    let asked_of_envoy = |path: &str| Ask::get(path).send(admin).expect("Envoy answers").body;
    let healthy = |grpc: u16| {
        let line = format!("tollgate::127.0.0.1:{}::health_flags::healthy", ports.of(grpc));
        asked_of_envoy("/clusters").lines().any(|found| found == line)
    };
    let stat = |name: &str| {
        let stats = asked_of_envoy(&format!("/stats?filter=^{name}$"));
        stats.trim().rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    until("both are healthy", || INSTANCES.iter().all(|(grpc, _)| healthy(*grpc)));

    let done = AtomicBool::new(false);
    let edge = ports.of(10_000);
    let sent: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (ask, done) = (Ask::get("/").from(&format!("203.0.113.{client}")), &done);
                scope.spawn(move || {
                    let mut sent = 0;
                    while !done.load(Ordering::Relaxed) {
                        ask.send(edge).expect("an answer").expect(200);
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        for (place, ports) in INSTANCES.into_iter().enumerate() {
            running[place].signal("-TERM");
            assert_eq!(running[place].ended(), Some(0));
            until("Envoy has noticed", || !healthy(ports.0));
            running[place] = instance(ports);
            until("Envoy asks it again", || healthy(ports.0));
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("every request is answered")).sum()
    });
    println!("{sent} requests over two restarts");
    let of = |name: &str| stat(&format!("cluster.upstream.ratelimit.{name}"));
    assert_eq!((of("ok"), of("error"), of("failure_mode_allowed")), (sent as u64, 0, 0));
    for (grpc, _) in INSTANCES {
        assert!(healthy(grpc));
    }
}
