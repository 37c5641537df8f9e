//! The engine in process: the cost of a decision, the memory of a counter, and the cost of many rules.
//!
//! One thread, CPU time of that thread, the allocator of the real binary. Contenders take turns within one run, because
//! two runs on a shared machine differ by more than the goals do.
//!
//! ```text
//!   cargo bench --bench engine                 all of it
//!   cargo bench --bench engine -- decisions    or bytes, or rules, or instructions
//! ```

#![expect(
    clippy::exit,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark: no other crate uses it, what it measures is printed, a missed goal is an exit code"
)]

mod baseline;
mod books;
mod bytes;
mod decisions;
mod growth;
mod instructions;
#[path = "../doors/questions.rs"]
#[expect(dead_code, reason = "ext_authz is not used here")]
mod questions;
mod rls;
mod rules;
mod timing;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // Cargo adds `--bench` to the arguments.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            decisions::report();
            rules::report();
            bytes::report();
            growth::report();
            held(instructions::report());
        }
        ["decisions"] => decisions::report(),
        ["decisions", rounds] => decisions::profile(rounds.parse().expect("a number of rounds")),
        ["rules"] => rules::report(),
        ["bytes"] => bytes::report(),
        ["growth"] => growth::report(),
        // A process of its own, in which only its table grows.
        ["bytes", algorithm] => bytes::measure(algorithm),
        ["instructions"] => held(instructions::report()),
        // A process of its own, for valgrind.
        ["instructions", what, requests] => instructions::run(what, requests.parse().expect("a number of requests")),
        other => panic!("{other:?} is none of decisions, rules, bytes, growth, instructions"),
    }
}

/// Exits with 1 if a required goal is missed.
fn held(holds: bool) {
    if !holds {
        std::process::exit(1);
    }
}
