//! The flood through the RLS door of the release binary.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::client;
use crate::questions::rls_frame;
use crate::server::Server;
use crate::{LIMIT, ORDINARY, RULES, address, line, mixed};

const FLOOD: u64 = 2_000_000;
/// The memory limit of the store, in bytes: below the default, so that two million requests fill it more than three
/// times over.
const TABLE: u64 = 64 << 20;
const EVERY_ATTACK: u64 = 1_000;
/// Requests in flight on each connection.
const STREAMS: usize = 25;

pub fn report(tollgate: &str) -> bool {
    let flood = std::env::var("FLOOD").map_or(FLOOD, |text| text.parse().expect("a number of requests"));
    let mut rules = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary directory");
    write!(rules, "{RULES}\n[stores.memory]\nengine = \"memory\"\nmax_memory = {TABLE}\n").expect("it is written");
    let server = Server::start(&[tollgate, "serve", "--config", rules.path().to_str().expect("a path in ASCII")]);

    let ordinary = |number| ("/call", mixed(number) % ORDINARY, mixed(number) % ORDINARY);
    run(&server, 2 * ORDINARY, ordinary);
    let idle = server.resident();
    let before = run(&server, 2 * ORDINARY, ordinary);
    assert_eq!(before.admitted, 2 * ORDINARY, "ordinary calls are admitted");

    // Ten turns, to sample resident memory and to measure ordinary requests in between.
    let (mut during, mut between) = (Vec::new(), Vec::new());
    let (mut most, mut attacked) = (0, 0);
    for turn in 0..10 {
        let first = ORDINARY + turn * flood / 10;
        let new = run(&server, flood / 10, move |number| match number % EVERY_ATTACK {
            0 => ("/login", first + number, u64::MAX),
            _ => ("/login", first + number, first + number),
        });
        attacked += new.attacked;
        during.push(new.micros);
        let calls = run(&server, ORDINARY / 2, ordinary);
        assert_eq!(calls.admitted, ORDINARY / 2, "ordinary calls are admitted throughout");
        between.push(calls.micros);
        most = most.max(server.resident());
    }
    println!("{flood} requests of as many addresses and accounts through RLS, a store of 64 MiB");
    println!(
        "  an ordinary request before the flood: {:.1} us of the server's CPU; resident {}",
        before.micros,
        mib(idle)
    );
    let mean = |turns: &[f64]| turns.iter().sum::<f64>() / turns.len() as f64;
    let compared = |what, turns: &[f64]| {
        let ratio = mean(turns) / before.micros;
        line(what, format!("{:.1} us = {ratio:.2} x", mean(turns)), "2 x", ratio <= 2.0)
    };
    // The idle process already held the ordinary counters.
    let grown = most.saturating_sub(idle);
    let met = [
        line("resident memory, beyond what it was before", mib(grown), "64 MiB", grown <= TABLE),
        compared("an ordinary request during the flood", &between),
        compared("a request of the flood", &during),
        line("admitted of the account under attack", attacked.to_string(), "5", attacked == LIMIT),
    ];
    met.iter().all(|met| *met)
}

/// The results of a run.
struct Run {
    micros: f64,
    admitted: u64,
    /// Admitted requests of the attacked account.
    attacked: usize,
}

/// Sends a number of requests. Path, address and account are made from each request's number.
fn run(
    server: &Server,
    questions: u64,
    make: impl Fn(u64) -> (&'static str, u64, u64) + Send + Sync + Copy + 'static,
) -> Run {
    let cpu = server.cpu();
    let (admitted, attacked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (admitted.clone(), attacked.clone());
    let frame = move |number| {
        let (path, from, account) = make(number);
        rls_frame("edge", path, &format!("account-{account}"), &address(from).to_string()).into()
    };
    client::ask(server.grpc, STREAMS, questions, frame, move |number, passed| {
        if passed {
            counts.0.fetch_add(1, Ordering::Relaxed);
            counts.1.fetch_add(usize::from(make(number).2 == u64::MAX), Ordering::Relaxed);
        }
    });
    let spent: Duration = server.cpu() - cpu;
    Run {
        micros: spent.as_secs_f64() * 1e6 / questions as f64,
        admitted: admitted.load(Ordering::Relaxed),
        attacked: attacked.load(Ordering::Relaxed),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
