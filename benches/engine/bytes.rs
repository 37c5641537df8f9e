//! Memory of a counter: the growth of the process's resident memory, divided by the counters of a full store.

use std::process::Command;
use std::time::Duration;

use tollgate::descriptor::{Descriptor, Request};
use tollgate::limiter::{Algorithm, Limiter, Schedule};
use tollgate::store::{MemorySettings, StoreStatus};

use crate::books::{apply, bucket, decide, engine, limiter, rule, slots};
use crate::timing::line;

/// The memory limit of each store, in bytes.
const MEMORY: usize = 256 << 20;
/// New keys of a step. Steps repeat until the number of stored keys no longer grows.
const CHUNK: usize = 8_192;

/// Algorithms, each with the units that its counters hold and its goal in bytes.
const ALGORITHMS: [(&str, u32, &str); 7] = [
    ("token_bucket", 1, "goal 64"),
    ("fixed_window", 1, ""),
    ("sliding_counter", 1, ""),
    ("sliding_window of 10, 3 granted", 3, ""),
    ("sliding_window of 10", 10, ""),
    ("sliding_window of 1000", 1_000, "goal 9 KB"),
    ("concurrency of 2", 2, ""),
];

/// Prints the table. Each algorithm runs in a process of its own.
pub fn report() {
    println!("bytes: growth of RSS over keys in a full store of 256 MiB");
    let bench = std::env::current_exe().expect("this program has a path");
    for (algorithm, _, goal) in ALGORITHMS {
        let run = Command::new(&bench).args(["bytes", algorithm]).output().expect("this program runs again");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        line(algorithm, String::from_utf8_lossy(&run.stdout).trim(), goal);
    }
}

/// Fills a store and prints the memory of a counter.
pub fn measure(algorithm: &str) {
    let (_, held, _) = *ALGORITHMS.iter().find(|(name, ..)| *name == algorithm).expect("one of the table");
    let memory = MemorySettings { max_memory: MEMORY, max_keys: None };
    let engine = engine(vec![of(algorithm)], vec![rule("all", vec![], vec![apply("one", "account")])], memory);
    let ask = |key: usize| {
        let account = format!("acct-{key}");
        let descriptors = [Descriptor::of([("account", account.as_str())])].into_iter().collect();
        decide(&engine, &Request { domain: "edge", descriptors });
    };
    let before = resident();
    let mut keys = 0;
    for chunk in 0.. {
        for key in chunk * CHUNK..(chunk + 1) * CHUNK {
            (0..held).for_each(|_| ask(key));
        }
        let StoreStatus::Memory(usage) = engine.current().stores.facts()[0] else { panic!("it is in memory") };
        let known = std::mem::replace(&mut keys, usage.keys);
        // The store is full: new keys evict old ones or are rejected.
        if keys - known < CHUNK / 50 {
            break;
        }
    }
    settle(&ask);
    println!("{:.1} B", (resident() - before) as f64 / keys as f64);
}

/// Waits until the allocator has returned the memory of tables that have grown. It returns it a second late, and only
/// during a later call; until then a key appears 3 to 11 bytes larger, depending on how long the filling took.
fn settle(ask: &impl Fn(usize)) {
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        (0..1_000).for_each(ask);
    }
}

fn of(algorithm: &str) -> Limiter {
    match algorithm {
        "token_bucket" => bucket("one"),
        "fixed_window" => limiter("one", Algorithm::FixedWindow(Schedule::Epoch), 1_000),
        "sliding_counter" => limiter("one", Algorithm::SlidingCounter, 1_000),
        "sliding_window of 10" | "sliding_window of 10, 3 granted" => limiter("one", Algorithm::SlidingWindow, 10),
        "sliding_window of 1000" => limiter("one", Algorithm::SlidingWindow, 1_000),
        "concurrency of 2" => slots("one", 2),
        other => panic!("{other:?} is no algorithm"),
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a resident size");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kilobytes * 1024
}
