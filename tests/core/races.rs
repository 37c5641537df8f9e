//! Many threads at once, on the machine's own clock: exactly the configured number is admitted.

use std::collections::HashMap;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use futures_util::FutureExt;
use tollgate::clock::{Clock, SystemClock};
use tollgate::decision::Decision;
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, Schedule};
use tollgate::rules::{Apply, Charge, Rule, RuleBook, Rules};
use tollgate::store::{MemorySettings, Stores};

use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, secs, slots};

const THREADS: usize = 20;
const TRIES: usize = 500;
const A: &[(&str, &str)] = &[("account", "a")];

/// The window of the tests: a boundary falls into a test with a probability of about a millionth.
const WINDOW: std::time::Duration = secs(86_400);

fn engine(limiters: Vec<Limiter>, rules: Vec<Rule>) -> Engine {
    let rules = Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles");
    Engine::new(rules, Stores::memory(&[MemorySettings::default()]), Arc::new(SystemClock::new()))
}

fn decide(engine: &Engine, entries: &[(&str, &str)]) -> Decision {
    let request =
        Request { domain: DOMAIN, descriptors: [Descriptor::of(entries.iter().copied())].into_iter().collect() };
    engine.decide(&request).now_or_never().expect("the memory store never waits")
}

/// Starts 500 requests at the same moment and counts the admitted ones.
fn stampede(engine: &Engine, request: impl Fn(&Engine, usize) -> bool + Sync) -> usize {
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        let run = |thread: usize| {
            let (start, request) = (&start, &request);
            scope.spawn(move || {
                start.wait();
                (0..TRIES / THREADS).filter(|number| request(engine, thread * TRIES + number)).count()
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("no request panics")).sum()
    })
}

fn of_each_algorithm(name: &str, limit: u32) -> Vec<Limiter> {
    let fixed = |schedule| Algorithm::FixedWindow(schedule);
    let algorithms = [
        bucket(None),
        Algorithm::SlidingWindow,
        Algorithm::SlidingCounter,
        fixed(Schedule::Epoch),
        fixed(Schedule::FirstHit),
    ];
    let mut limiters: Vec<Limiter> =
        algorithms.into_iter().map(|algorithm| quota(name, limit, WINDOW, algorithm)).collect();
    limiters.push(slots(name, limit, WINDOW));
    limiters
}

#[test]
fn five_hundred_at_once_on_a_limit_of_ten_admit_exactly_ten() {
    for limiter in of_each_algorithm("limiter", 10) {
        let kind = format!("{:?} {:?}", limiter.quota, limiter.concurrency);
        let engine = engine(vec![limiter], vec![applies("all", [apply("limiter", &["account"])])]);
        assert_eq!(stampede(&engine, |engine, _| decide(engine, A).allowed()), 10, "{kind}");
    }
}

#[test]
fn a_composite_of_two_limits_and_slots_admits_what_its_smallest_admits() {
    for limiter in of_each_algorithm("account", 10) {
        let limiters = vec![limiter, quota("all", 12, WINDOW, bucket(None)), slots("running", 11, WINDOW)];
        let all = [apply("all", &[]), apply("account", &["account"]), apply("running", &[])];
        let engine = engine(limiters, vec![applies("all", all)]);
        assert_eq!(stampede(&engine, |engine, _| decide(engine, A).allowed()), 10);
        let left: Vec<u32> = decide(&engine, &[("account", "b")]).checks().map(|counted| counted.remaining).collect();
        assert_eq!(left, [1, 9, 0], "nothing but the ten was charged, and this one");
    }
}

#[test]
fn plans_that_meet_in_opposite_orders_neither_block_each_other_nor_admit_more() {
    // Each request charges two of four accounts, in either order.
    let engine = engine(
        vec![quota("account", 10, WINDOW, Algorithm::SlidingWindow)],
        vec![applies("all", [apply("account", &["account"])])],
    );
    let passed: Mutex<HashMap<&str, usize>> = Mutex::default();
    stampede(&engine, |engine, number| {
        let accounts = ["a", "b", "c", "d"];
        let pair = [accounts[number % 4], accounts[(number / 4 + 1 + number) % 4]];
        let descriptors = pair.map(|account| Descriptor::of([("account", account)]));
        let request = Request { domain: DOMAIN, descriptors: descriptors.into_iter().collect() };
        let decision = engine.decide(&request).now_or_never().expect("the memory store never waits");
        if decision.allowed() {
            let mut passed = passed.lock().expect("no request panics");
            *passed.entry(pair[0]).or_default() += 1;
            if pair[0] != pair[1] {
                *passed.entry(pair[1]).or_default() += 1;
            }
        }
        decision.allowed()
    });
    let passed = passed.into_inner().expect("no request panics");
    assert!(passed.values().all(|count| *count <= 10), "{passed:?}");
    for (account, count) in passed {
        let left = decide(&engine, &[("account", account)]).tightest().expect("it applies").remaining;
        assert_eq!(left as usize, (10 - count).saturating_sub(1), "{account}: {count} passed, and this one");
    }
}

#[test]
fn charges_that_refusals_make_are_all_counted() {
    let own = Apply { charge: Charge::Own, ..apply("address", &["address"]) };
    let limiters = vec![
        quota("address", 400, WINDOW, Algorithm::FixedWindow(Schedule::Epoch)),
        quota("account", 10, WINDOW, Algorithm::SlidingWindow),
    ];
    let engine = engine(limiters, vec![applies("login", [own, apply("account", &["account"])])]);
    let login = [("address", "1.2.3.4"), ("account", "a")];
    assert_eq!(stampede(&engine, |engine, _| decide(engine, &login).allowed()), 10);
    let refused = decide(&engine, &[("address", "1.2.3.4")]);
    assert!(!refused.allowed(), "400 of the 500 tries are paid for");
}

#[test]
fn leases_taken_and_given_back_by_many_threads_never_exceed_their_slots() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let engine = engine(vec![slots("slots", 10, WINDOW)], vec![applies("all", [apply("slots", &["account"])])]);
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    stampede(&engine, |engine, _| {
        let decision = decide(engine, A);
        let Some(lease) = decision.lease() else { return false };
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        running.fetch_sub(1, Ordering::SeqCst);
        // Releasing twice releases once, also when both are in flight.
        let statuses = [0; 2].map(|_| engine.release(lease).now_or_never().expect("the memory store never waits"));
        assert_eq!(statuses, [Some(LeaseStatus::Done), Some(LeaseStatus::Unknown)]);
        true
    });
    assert!(most.into_inner() <= 10);
    assert_eq!((0..20).filter(|_| decide(&engine, A).allowed()).count(), 10, "every slot came back");
}

#[test]
fn a_sweep_during_requests_removes_nothing_that_counts() {
    let engine = engine(
        vec![quota("limiter", 10, WINDOW, Algorithm::SlidingWindow)],
        vec![applies("all", [apply("limiter", &["account"])])],
    );
    let admitted = stampede(&engine, |engine, number| {
        if number % 10 == 0 {
            engine.current().stores.sweep(engine.clock().now());
        }
        decide(engine, A).allowed()
    });
    assert_eq!(admitted, 10);
}

/// Weakness R12: the clock is not monotonic.
#[test]
fn semantics_03_the_machines_clock_never_goes_backwards_in_any_thread() {
    let clock = SystemClock::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = clock.now();
                for _ in 0..10_000 {
                    let now = clock.now();
                    assert!(now >= last);
                    last = now;
                }
            });
        }
    });
}
