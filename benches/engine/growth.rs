//! The growth of a decision's cost: with rules, with keys, and from one core to two.

use std::hint::black_box;
use std::io::Write;
use std::sync::Barrier;
use std::time::Duration;

use cpu_time::ThreadTime;
use tollgate::descriptor::Request;
use tollgate::engine::Engine;
use tollgate::store::MemorySettings;

use crate::books::{apply, bucket, decide, engine, rule};
use crate::rules::Many;
use crate::timing::{Draws, compare, line};

/// Requests of a turn.
const REQUESTS: usize = 1 << 18;

/// Prints the tables.
pub fn report() {
    rules();
    keys();
    cores();
}

fn rules() {
    println!("rules: as above; every request matches two, or with one rule one");
    let sizes = [1, 10, 1_000, 100_000];
    let books = sizes.map(Many::of);
    let mut turns: Vec<_> = books.iter().map(|book| || book.ask(REQUESTS)).collect();
    let mut turns: Vec<&mut dyn FnMut()> = turns.iter_mut().map(|turn| -> &mut dyn FnMut() { turn }).collect();
    let costs = compare(REQUESTS, &mut || {}, &mut turns);
    for (size, cost) in sizes.iter().zip(&costs) {
        line(&format!("{size} rules"), &format!("{cost:.0} ns = {:.2} x", cost / costs[1]), "x is of 10 rules");
    }
}

fn keys() {
    println!("keys: one token bucket, uniform traffic on a number of stored keys");
    let sizes = [1_000, 1_000_000, 10_000_000];
    let mut costs = Vec::new();
    // One after the other: ten million keys are 600 MB, and each table has the cache to itself.
    for keys in sizes {
        let engine = one_bucket(2 << 30);
        for key in 0..keys {
            ask(&engine, key);
        }
        let mut draws = Draws(0x5eed);
        let cost =
            compare(REQUESTS, &mut || {}, &mut [&mut || (0..REQUESTS).for_each(|_| ask(&engine, draws.below(keys)))]);
        costs.push(cost[0]);
    }
    for (keys, cost) in sizes.iter().zip(&costs) {
        line(&format!("{keys} keys"), &format!("{cost:.0} ns = {:.2} x", cost / costs[0]), "x is of 1000 keys");
    }
}

/// Two threads on one engine: the cost of a decision on each.
fn cores() {
    println!("cores: one token bucket, a million keys, a number of threads on one engine");
    let engine = one_bucket(256 << 20);
    (0..1_000_000).for_each(|key| ask(&engine, key));
    let rates = [1, 2].map(|threads| {
        let mut rates: Vec<f64> = (0..5).map(|round| together(&engine, threads, round)).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    for (threads, rate) in [1, 2].iter().zip(rates) {
        let cost = 1e9 / rate;
        line(&format!("{threads} of them"), &format!("{cost:.0} ns of CPU"), &format!("{:.2} x one", rates[0] / rate));
    }
}

/// Decisions per second of CPU time of a thread, while `threads` of them run at once: this shows their mutual cost,
/// independent of other load on the machine.
fn together(engine: &Engine, threads: usize, round: u64) -> f64 {
    let barrier = Barrier::new(threads);
    let cpu: Duration = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut draws = Draws(0x5eed ^ (thread << 8) ^ (round << 16));
                    barrier.wait();
                    let began = ThreadTime::now();
                    (0..REQUESTS).for_each(|_| ask(engine, draws.below(1_000_000)));
                    began.elapsed()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("it counts to its end")).sum()
    });
    (threads * REQUESTS) as f64 / cpu.as_secs_f64()
}

fn one_bucket(max_memory: usize) -> Engine {
    let memory = MemorySettings { max_memory, max_keys: None };
    engine(vec![bucket("one")], vec![rule("all", vec![], vec![apply("one", "account")])], memory)
}

fn ask(engine: &Engine, key: usize) {
    let mut text = [0; 16];
    let mut rest = &mut text[..];
    write!(rest, "acct-{key:08}").expect("it fits");
    let length = 16 - rest.len();
    let account = std::str::from_utf8(&text[..length]).expect("ascii");
    let decision = decide(engine, &Request::of("edge", [("account", account)]));
    assert!(black_box(&decision).allowed());
}
