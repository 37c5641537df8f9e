//! The flood in process: one thread, its CPU time, and a manual clock.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cpu_time::ThreadTime;
use tollgate::clock::{Clock, ManualClock, Timestamp};
use tollgate::config::{Config, SourceText};
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::rules::Rules;
use tollgate::store::{MemorySettings, MemoryUsage, StoreStatus, Stores};

use crate::{LIMIT, ORDINARY, RULES, WINDOW, address, line, mixed};

const FLOOD: u64 = 20_000_000;
/// The time between requests. The flood lasts ten minutes: two windows of the attacked account.
const STEP: Duration = Duration::from_micros(30);
/// One in this many requests is ordinary, and one attacks the account.
const EVERY_ORDINARY: u64 = 10;
const EVERY_ATTACK: u64 = 1_000;
/// How many times a store without a flood is measured in between: the cost of a decision varies from minute to minute.
const TURNS: u64 = 20;
/// Requests between two sweeps of the stores, which gives the interval of the real process.
const SWEEP: u64 = 5_000_000 / 30;
const TABLE: usize = 256 << 20;
const MILLISECOND: Duration = Duration::from_millis(1);

pub fn report() -> bool {
    let flood = std::env::var("FLOOD").map_or(FLOOD, |text| text.parse().expect("a number of requests"));
    // Two runs, to tell slow requests apart: delays by other processes hit different requests in each run.
    let (first, second) = (Run::of(flood), Run::of(flood));

    println!("{flood} requests of {flood} addresses and accounts in process, a store of 256 MiB (the default)");
    println!(
        "  {} counters in {} bytes at the end, {} evicted",
        first.usage.keys, first.usage.bytes, first.usage.evictions
    );
    let nanos = |costs: &Costs| costs.mean(first.reading).as_nanos() as f64;
    let ratio = |costs: &Costs| nanos(costs) / nanos(&first.without);
    let told = |costs: &Costs| format!("{:.0} ns = {:.2} x", nanos(costs), ratio(costs));
    println!("  an ordinary decision without a flood: {:.0} ns of CPU", nanos(&first.without));
    println!("  a sweep of all 256 shards, one after the other: {:?} at most", first.sweeps.longest);
    println!("  decisions over 1 ms: {} in one run and {} in the next", first.slow.len(), second.slow.len());
    let longest = first.longest_of_both(&second);
    let shard = shard_sweep();
    let met = [
        line(
            "resident memory, beyond the idle process",
            mib(first.grown),
            "272 MiB",
            first.grown <= TABLE + TABLE / 16,
        ),
        line("an ordinary decision during the flood", told(&first.ordinary), "2 x", ratio(&first.ordinary) <= 2.0),
        line("a decision of the flood", told(&first.new), "2 x", ratio(&first.new) <= 2.0),
        line(
            "the longest decision, its locks held for less",
            longest.map_or("under 1 ms".to_owned(), |took| format!("{took:?}")),
            "1 ms",
            longest.is_none(),
        ),
        line("sweeping one full shard, under its lock", format!("{shard:?}"), "1 ms", shard < MILLISECOND),
        limited(&first.admitted, flood),
    ];
    met.iter().all(|met| *met)
}

/// The results of a flood.
struct Run {
    /// Ordinary decisions by a store without a flood.
    without: Costs,
    ordinary: Costs,
    new: Costs,
    sweeps: Costs,
    /// When the attacked account was admitted.
    admitted: Vec<Timestamp>,
    /// The requests that took a millisecond or more, by their number, and the longest of them.
    slow: HashMap<u64, Duration>,
    /// Peak resident memory beyond that of the idle process, in bytes.
    grown: usize,
    usage: MemoryUsage,
    reading: Duration,
}

impl Run {
    /// Runs a flood. Every run has the same requests.
    fn of(flood: u64) -> Self {
        let (bench, quiet) = (Bench::of(TABLE), Bench::of(TABLE));
        quiet.warm(5 * ORDINARY);
        let idle = resident();
        bench.warm(5 * ORDINARY);

        let [mut without, mut ordinary, mut new, mut sweeps] = [(); 4].map(|()| Costs::default());
        let (mut admitted, mut slow) = (Vec::new(), HashMap::new());
        let mut most = resident();
        for number in 0..flood {
            if number % flood.div_ceil(TURNS) == 0 {
                // The first decisions run on a cold cache.
                quiet.warm(ORDINARY);
                (ORDINARY..2 * ORDINARY).for_each(|number| without.add(quiet.ordinary(number)));
            }
            bench.clock.advance(STEP);
            let (_, mut longest) = bench.ask("/login", ORDINARY + number, ORDINARY + number);
            new.add(longest);
            if number % EVERY_ORDINARY == 0 {
                let took = bench.ordinary(number / EVERY_ORDINARY);
                ordinary.add(took);
                longest = longest.max(took);
            }
            if number % EVERY_ATTACK == 0 {
                let (allowed, took) = bench.ask("/login", ORDINARY + number, u64::MAX);
                longest = longest.max(took);
                if allowed {
                    admitted.push(bench.clock.now());
                }
            }
            if longest >= MILLISECOND {
                slow.insert(number, longest);
            }
            if number % SWEEP == 0 {
                sweeps.add(bench.sweep());
                most = most.max(resident());
            }
        }
        let grown = most.max(resident()).saturating_sub(idle);
        let StoreStatus::Memory(usage) = bench.engine.current().stores.facts()[0] else { panic!("it is in memory") };
        Self { without, ordinary, new, sweeps, admitted, slow, grown, usage, reading: bench.reading }
    }

    /// The longest of the requests that took a millisecond in both runs, by its shorter time.
    fn longest_of_both(&self, other: &Self) -> Option<Duration> {
        let both = self.slow.iter().filter_map(|(number, took)| Some(*took.min(other.slow.get(number)?)));
        both.max()
    }
}

/// Whether the attacked account got exactly its limit in each window.
fn limited(admitted: &[Timestamp], flood: u64) -> bool {
    let crowded = admitted.windows(LIMIT + 1).any(|six| six[LIMIT] - six[0] < WINDOW);
    let windows = (flood * STEP.as_micros() as u64).div_ceil(WINDOW) as usize;
    let measured = format!("{} in {windows} windows", admitted.len());
    line("admitted of the account under attack", measured, "5 in each", !crowded && admitted.len() == windows * LIMIT)
}

struct Bench {
    engine: Engine,
    clock: ManualClock,
    /// The cost of reading the clock.
    reading: Duration,
}

impl Bench {
    /// An engine with a store of at most `max_memory` bytes.
    fn of(max_memory: usize) -> Self {
        let source = SourceText { name: "flood.toml".to_owned(), text: RULES.to_owned() };
        let config = Config::read(&[source], &|_| None).expect("the rules are right");
        let rules = Rules::compile(config.book).expect("the rules compile");
        let clock = ManualClock::at(Timestamp::from_secs(1_800_000_000));
        let stores = Stores::memory(&[MemorySettings { max_memory, max_keys: None }]);
        let began = ThreadTime::now();
        for _ in 0..1_000_000 {
            std::hint::black_box(ThreadTime::now());
        }
        let reading = began.elapsed() / 1_000_000;
        Self { engine: Engine::new(rules, stores, Arc::new(clock.clone())), clock, reading }
    }

    /// Decides an ordinary request and returns its cost.
    fn ordinary(&self, number: u64) -> Duration {
        let number = mixed(number) % ORDINARY;
        let (allowed, took) = self.ask("/call", number, number);
        assert!(allowed, "ordinary calls are admitted");
        took
    }

    /// Decides a number of ordinary requests.
    fn warm(&self, calls: u64) {
        for number in 0..calls {
            self.ordinary(number);
        }
    }

    /// Decides a request. Returns whether it is admitted, and its cost.
    fn ask(&self, path: &str, number: u64, account: u64) -> (bool, Duration) {
        let (address, account) = (address(number).to_string(), format!("account-{account}"));
        let entries = [("path", path), ("remote_address", &*address), ("account", &*account)];
        let request = Request { domain: "edge", descriptors: [Descriptor::of(entries)].into_iter().collect() };
        let began = ThreadTime::now();
        let decision = match pin!(self.engine.decide(&request)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decision) => decision,
            Poll::Pending => unreachable!("the memory store answers at once"),
        };
        (decision.allowed(), began.elapsed())
    }

    /// Sweeps the stores and returns the cost.
    fn sweep(&self) -> Duration {
        let began = ThreadTime::now();
        self.engine.current().stores.sweep(self.clock.now());
        began.elapsed()
    }
}

/// The costs of some decisions.
#[derive(Default)]
struct Costs {
    number: u32,
    sum: Duration,
    longest: Duration,
}

impl Costs {
    fn add(&mut self, took: Duration) {
        self.number += 1;
        self.sum += took;
        self.longest = self.longest.max(took);
    }

    fn mean(&self, reading: Duration) -> Duration {
        (self.sum / self.number.max(1)).saturating_sub(reading)
    }
}

/// The longest of a few sweeps of a store that is one full shard, part of which has expired.
fn shard_sweep() -> Duration {
    let sweep = |_| {
        let bench = Bench::of(1 << 20);
        for number in 0..40_000 {
            bench.clock.advance(Duration::from_millis(2));
            bench.ask("/login", number, number);
        }
        bench.clock.advance(Duration::from_secs(30));
        bench.sweep()
    };
    (0..5).map(sweep).max().expect("there were some")
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number of pages") * 4096
}
