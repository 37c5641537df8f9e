//! A flood of new keys against a full store: memory of the process, cost of a decision, longest hold of a lock, and
//! whether an attacked account stays limited.
//!
//! ```text
//!   cargo bench --bench flood                    20 million requests in process
//!   cargo bench --bench flood -- rls TOLLGATE    2 million through the RLS door of this binary
//! ```
//!
//! Each request of the flood has a new address and a new account, so it needs two new counters.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed, it measures real time"
)]

#[path = "../doors/client.rs"]
mod client;
mod engine;
#[path = "../doors/questions.rs"]
#[expect(dead_code, reason = "the flood asks RLS alone")]
mod questions;
mod rls;
#[path = "../doors/server.rs"]
#[expect(dead_code, reason = "the doors ask it more")]
mod server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // Cargo adds `--bench` to the arguments.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let held = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => engine::report(),
        ["rls", tollgate] => rls::report(tollgate),
        other => panic!("{other:?} is neither nothing nor rls TOLLGATE"),
    };
    std::process::exit(if held { 0 } else { 1 });
}

/// The rules of both floods: logins limited as in docs/getting-started.md, and ordinary requests that are always
/// admitted.
const RULES: &str = r#"
[server]
grpc = "127.0.0.1:0"
http = "127.0.0.1:0"
secret = "measured, not kept"

[limiters]
login_ip = { algorithm = "sliding_window", limit = 30, window = "1m" }
login_account = { algorithm = "sliding_window", limit = 5, window = "5m" }
call_ip = { algorithm = "token_bucket", limit = 1000000, window = "1m" }
call_account = { algorithm = "token_bucket", limit = 1000000, window = "1m" }

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login" }
apply = [
  { limiter = "login_ip", key = ["remote_address"], charge = "own" },
  { limiter = "login_account", key = ["account"] },
]

[[rules]]
domain = "edge"
name = "call"
match = { path = "/call" }
apply = [{ limiter = "call_ip", key = ["remote_address"] }, { limiter = "call_account", key = ["account"] }]
"#;

/// The limit of one account and its window in microseconds.
const LIMIT: usize = 5;
const WINDOW: u64 = 300_000_000;

/// Ordinary accounts and their addresses.
const ORDINARY: u64 = 100_000;

/// Scrambles a number of the flood, so that neighbours lie far apart.
fn mixed(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The address of a number, each in a /64 of its own, which is what rules count by.
fn address(number: u64) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::from(0x2000 << 112 | u128::from(mixed(number) >> 4) << 64 | 1)
}

/// Prints a row of a table: the case, its result, the goal, and whether it was met.
fn line(what: &str, measured: impl AsRef<str>, goal: &str, met: bool) -> bool {
    println!("  {what:<62} {:>20}   {goal:<14} {}", measured.as_ref(), if met { "met" } else { "MISSED" });
    met
}
