//! Instructions of a decision, as valgrind counts them: a number that does not depend on what else the machine does.

use std::process::Command;

use crate::timing::line;
use crate::{decisions, rules};

/// What is counted. Each has a process of its own.
const COUNTED: [&str; 4] = ["bare", "two buckets", "10 rules", "10 000 rules"];

/// Prints the table.
pub fn report() {
    println!("instructions a decision: counters and rules in the cache");
    for what in COUNTED {
        // What begins and ends a process is in both, and so is the first sight of every counter.
        let (few, many) = (10_000, 30_000);
        let count = instructions(what, many) - instructions(what, few);
        line(what, &format!("{}", count / (many - few)), "");
    }
}

/// Runs what is counted.
pub fn run(what: &str, requests: usize) {
    match what {
        "bare" => decisions::count(true, requests),
        "two buckets" => decisions::count(false, requests),
        "10 rules" => rules::count(rules::FEW, requests),
        "10 000 rules" => rules::count(rules::MANY, requests),
        other => panic!("{other:?} is none of {COUNTED:?}"),
    }
}

fn instructions(what: &str, requests: usize) -> usize {
    let bench = std::env::current_exe().expect("this program has a path");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(bench)
        .args(["instructions", what, &requests.to_string()])
        .output()
        .expect("valgrind is installed");
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let counted = told.lines().find_map(|line| line.split_once("Collected :")).expect("it tells what it counted");
    counted.1.trim().parse().expect("a number")
}
