//! Instructions of a decision and of a request, counted by valgrind, so that other load on the machine does not change
//! them. Some are held to a baseline.

use std::process::Command;

use crate::rls::Protocol;
use crate::timing::line;
use crate::{decisions, rls, rules};

/// The cases that are counted, each in a process of its own.
const COUNTED: [&str; 7] = ["bare", "two buckets", "10 rules", "10 000 rules", RLS, ACQUIRE_GRPC, ACQUIRE_JSON];

const RLS: &str = "RLS, two buckets";
const ACQUIRE_GRPC: &str = "acquire over gRPC, two buckets";
const ACQUIRE_JSON: &str = "acquire over HTTP/JSON, two buckets";

/// What an acquire without waiting may cost, by the RLS request about the same entries.
const ACQUIRE_GOALS: [(&str, f64); 2] = [(ACQUIRE_GRPC, 1.1), (ACQUIRE_JSON, 1.5)];

/// The allowed counts, with the build and the machine that they were counted on.
const BASELINE: &str = include_str!("instructions.baseline");
const BASELINE_FILE: &str = "benches/engine/instructions.baseline";

/// The difference to its baseline that a row may have, in percent: above it the bench fails, below it the baseline
/// should be lowered.
const TOLERANCE: f64 = 1.0;

/// Prints the table, and returns whether no row is above its baseline.
pub fn report() -> bool {
    println!("instructions a decision or request: counters and rules in the cache");
    let baseline = Baseline::parse(BASELINE);
    let differences = baseline.differences();
    let mut holds = true;
    let mut rls = 0;
    for what in COUNTED {
        let counted = count(what);
        if what == RLS {
            rls = counted;
        }
        let goal = ACQUIRE_GOALS.iter().find(|(name, _)| *name == what);
        let goal = goal.map(|(_, goal)| format!("{:.2} x RLS, goal {goal}", counted as f64 / rls as f64));
        let row = baseline.rows.iter().find(|(name, _)| *name == what);
        let compared = row.filter(|_| differences.is_empty());
        let beside = compared.map(|(_, allowed)| format!("baseline {allowed}"));
        let beside: Vec<String> = beside.into_iter().chain(goal).collect();
        line(what, &counted.to_string(), &beside.join(", "));
        if let Some((_, allowed)) = compared {
            holds &= judge(what, counted, *allowed);
        }
    }
    for difference in &differences {
        println!("  NOT COMPARED with {BASELINE_FILE}: {difference}");
    }
    holds
}

/// Runs a case `requests` times, after a first time that is not counted.
pub fn run(what: &str, requests: usize) {
    match what {
        "bare" => decisions::count(true, requests),
        "two buckets" => decisions::count(false, requests),
        "10 rules" => rules::count(rules::FEW, requests),
        "10 000 rules" => rules::count(rules::MANY, requests),
        RLS => rls::count(Protocol::Rls, requests),
        ACQUIRE_GRPC => rls::count(Protocol::Grpc, requests),
        ACQUIRE_JSON => rls::count(Protocol::Json, requests),
        other => panic!("{other:?} is none of {COUNTED:?}"),
    }
}

/// Runs the counted work and nothing else: valgrind collects while this function runs.
#[inline(never)]
pub fn counted<T>(run: impl FnOnce() -> T) -> T {
    std::hint::black_box(run())
}

/// The name of that function in valgrind's notation.
const COUNTED_FUNCTION: &str = "*::instructions::counted*";

/// Instructions of one request.
fn count(what: &str) -> usize {
    let requests = if [RLS, ACQUIRE_GRPC, ACQUIRE_JSON].contains(&what) { 5_000 } else { 20_000 };
    let bench = std::env::current_exe().expect("this program has a path");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED_FUNCTION}"))
        .arg(bench)
        .args(["instructions", what, &requests.to_string()])
        // The allocator returns memory after a delay in wall time, which would vary the count.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .output()
        .unwrap_or_else(|error| panic!("cannot run valgrind, which make servers installs: {error}"));
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected :")).expect("valgrind prints its counts");
    let collected: usize = collected.1.trim().parse().expect("a number");
    assert!(collected > requests, "valgrind does not see {COUNTED_FUNCTION}: this program has no symbols");
    collected / requests
}

/// Whether a row exceeds its baseline by no more than the tolerance.
fn judge(what: &str, counted: usize, allowed: usize) -> bool {
    let percent = 100.0 * (counted as f64 / allowed as f64 - 1.0);
    if percent > TOLERANCE {
        println!(
            "  FAILED: {what}: {counted} instructions, {percent:.2} % above the baseline of {allowed}; allowed is {TOLERANCE} %.\n  \
             Either take the cost out again, or set \"{what}: {counted}\" in {BASELINE_FILE} in a commit that says why."
        );
    } else if percent < -TOLERANCE {
        println!(
            "  {what}: {counted} instructions, {:.2} % below the baseline of {allowed}.\n  \
             Set \"{what}: {counted}\" in {BASELINE_FILE}, so that this is kept.",
            -percent
        );
    }
    percent <= TOLERANCE
}

/// The content of the baseline file: build and machine by their keys, and the rows.
struct Baseline<'a> {
    build: [(&'a str, &'a str); 4],
    rows: Vec<(&'a str, usize)>,
}

impl<'a> Baseline<'a> {
    fn parse(text: &'a str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pairs: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{BASELINE_FILE}: {line:?} has no colon")))
            .collect();
        let build = ["profile", "rustc", "libc", "architecture"].map(|key| {
            let pair = pairs.iter().find(|(each, _)| *each == key);
            *pair.unwrap_or_else(|| panic!("{BASELINE_FILE}: {key} is missing"))
        });
        let rows = pairs.iter().filter(|pair| !build.contains(pair)).map(|(name, number)| {
            assert!(COUNTED.contains(name), "{BASELINE_FILE}: {name:?} is none of {COUNTED:?}");
            let number = number.parse().unwrap_or_else(|_| panic!("{BASELINE_FILE}: {name}: {number:?} is no number"));
            (*name, number)
        });
        let rows: Vec<_> = rows.collect();
        for held in ["two buckets", RLS] {
            assert!(rows.iter().any(|(name, _)| *name == held), "{BASELINE_FILE}: {held} is missing");
        }
        Self { build, rows }
    }

    /// The differences of this build and machine from those of the baseline. With any, counts cannot be compared.
    fn differences(&self) -> Vec<String> {
        let here = [
            if cfg!(debug_assertions) { "test".to_owned() } else { "bench".to_owned() },
            printed("rustc", &["--version"]),
            printed("getconf", &["GNU_LIBC_VERSION"]),
            std::env::consts::ARCH.to_owned(),
        ];
        let pairs = self.build.iter().zip(&here).filter(|((_, there), here)| there != here);
        pairs.map(|((key, there), here)| format!("{key} is {here:?}, there it is {there:?}")).collect()
    }
}

/// The first line that a program prints.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program} to compare with the baseline: {error}"));
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned()
}
