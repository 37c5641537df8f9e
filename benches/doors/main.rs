//! The doors under load: CPU per request of tollgate, compared with a tonic server that does nothing and the same
//! service on hyper that does nothing.
//!
//! The server runs on core 0, h2load on core 1. CPU is user and system time of the server's process over a run. The
//! contenders take turns, and the median of their turns is printed. h2load does not check responses, so `check` does
//! that first.
//!
//! `benches/run.sh` builds the programs that this starts and passes their paths.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed, it measures real time"
)]

mod check;
mod client;
mod gateway;
mod load;
mod paced;
#[path = "../../tests/support/processes/mod.rs"]
#[expect(dead_code, unused_imports, reason = "tests start the other servers")]
mod processes;
mod questions;
mod server;
mod stores;

use std::time::Duration;

use load::Load;
use questions::{ADDRESS, authz_frame, authz_headers, rls_frame};
use server::Server;

/// Turns of each contender.
const ROUNDS: usize = 7;

fn main() {
    let binaries: Vec<String> = std::env::args().skip(1).collect();
    let (binaries, envoy, stores) = match binaries.as_slice() {
        [binaries @ .., gateway, envoy, store] if gateway == "--gateway" && store == "--store" => {
            (binaries, Some(envoy), true)
        }
        [binaries @ .., flag, envoy] if flag == "--gateway" => (binaries, Some(envoy), false),
        [binaries @ .., flag] if flag == "--store" => (binaries, None, true),
        binaries => (binaries, None, false),
    };
    let [idle_tonic, noop_hyper, tollgate] = binaries else {
        panic!("usage: doors IDLE_TONIC NOOP_HYPER TOLLGATE [--gateway ENVOY] [--store]");
    };
    let configuration = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/doors/tollgate.toml");
    let command = [tollgate.as_str(), "serve", "--config", configuration];
    match (envoy, stores) {
        (Some(envoy), true) => stores::through_envoy(envoy, noop_hyper, tollgate, configuration),
        (None, true) => stores::report(idle_tonic, tollgate, configuration),
        (Some(envoy), false) => {
            let (noop, tollgate) = (Server::start(&[noop_hyper]), Server::start(&command));
            gateway::report(envoy, &[(gateway::NOTHING, &noop), (gateway::MEMORY, &tollgate)]);
        }
        (None, false) => doors(idle_tonic, noop_hyper, &command),
    }
}

/// CPU per request at each door.
fn doors(idle_tonic: &str, noop_hyper: &str, tollgate: &[&str]) {
    footprint(tollgate);
    let [idle, noop, real] = [&[idle_tonic][..], &[noop_hyper], tollgate].map(Server::start);
    check::verdicts(&real);
    println!("answers: right on every door");

    let of = |name, server, load| Contender { name, server, load, micros: Vec::new() };
    let rls = |domain| Load::grpc(questions::RLS, &rls_frame(domain, "/login", "load", ADDRESS));
    let mut contenders = [
        of("idle tonic server", &idle, rls("two")),
        of("no-op service on hyper", &noop, rls("two")),
        of("RLS, one limiter", &real, rls("one")),
        of("RLS, two limiters", &real, rls("two")),
        of("RLS, five limiters", &real, rls("five")),
        of("RLS, two limiters, refused", &real, rls("refused")),
        of(
            "ext_authz gRPC, 20 headers, two limiters",
            &real,
            Load::grpc(questions::AUTHZ, &authz_frame("/login", "load")),
        ),
        of("ext_authz HTTP, 20 headers, two limiters", &real, Load::http(&real, "/login", &authz_headers("load"))),
    ];
    for _ in 0..ROUNDS {
        for contender in &mut contenders {
            contender.turn();
        }
    }
    let [idle, noop] = [0, 1].map(|number| contenders[number].median());
    println!("\nCPU of the server per request, and how it compares");
    println!("  {:<42} {:>8} {:>14} {:>17}", "", "CPU us", "x idle tonic", "x no-op on hyper");
    for contender in &contenders {
        let micros = contender.median();
        let goal = match contender.name {
            "RLS, two limiters" => "   goals 1.0 and 1.15",
            _ => "",
        };
        println!("  {:<42} {micros:>8.2} {:>14.2} {:>17.2}{goal}", contender.name, micros / idle, micros / noop);
    }
    println!("  resident after the load: {:.1} MB", real.resident() as f64 / 1e6);
}

struct Contender<'a> {
    name: &'static str,
    server: &'a Server,
    load: Load,
    micros: Vec<f64>,
}

impl Contender<'_> {
    fn turn(&mut self) {
        let before = self.server.cpu();
        self.load.run(self.server);
        let spent: Duration = self.server.cpu() - before;
        self.micros.push(spent.as_secs_f64() * 1e6 / load::REQUESTS as f64);
    }

    fn median(&self) -> f64 {
        median(self.micros.clone())
    }
}

/// Time to serve, memory when idle, and size of the binary.
fn footprint(tollgate: &[&str]) {
    let mut starts = Vec::new();
    let mut resident = Vec::new();
    for _ in 0..ROUNDS {
        let server = Server::start(tollgate);
        starts.push(server.until_healthy().as_secs_f64() * 1e3);
        resident.push(server.resident() as f64 / 1e6);
    }
    let binary = std::fs::metadata(tollgate[0]).expect("the binary is there").len() as f64 / 1e6;
    println!("start to serving: {:.0} ms (goal 100)", median(starts));
    println!("idle RSS: {:.1} MB (goal 20)", median(resident));
    println!("binary: {binary:.1} MB (goal 20)");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
