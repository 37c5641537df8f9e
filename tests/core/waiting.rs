//! Waiting of workers, over simulated time (semantics 45 to 49, and the behaviour cases C, P and W about waiting).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tollgate::ask::{Acquire, Ask, AskErrorKind, Subject};
use tollgate::clock::{Clock, Timestamp};
use tollgate::decision::Reason;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine::Version;
use tollgate::lease::LeaseCommand;
use tollgate::lease::Units;
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, Lost, WorkerSettings};
use tollgate::rules::{Action, Apply, Charge, HoldFor, Rule, RuleBook, Rules};
use tollgate::service::{Acquisition, Service};
use tollgate::settings::{Bounds, Settings};
use tollgate::store::{MemorySettings, Stores};
use tollgate::telemetry::Door;

use super::world::START;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs, slots};

/// A clock that follows the simulated time of tokio.
struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        START + self.0.elapsed()
    }
}

/// Workers of one instance. Clones share it.
#[derive(Clone)]
struct Workers {
    service: Arc<Service>,
    began: Instant,
}

/// Runs a test over simulated time.
fn simulated<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime starts").block_on(test)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A moment in milliseconds since the start, as a timer of tokio rounds it up.
fn near(moment: Duration, millis: u64) -> bool {
    moment >= ms(millis) && moment <= ms(millis + 3)
}

impl Workers {
    fn new(limiters: Vec<Limiter>) -> Self {
        let rules =
            vec![applies("all", limiters.iter().map(|limiter| apply(&limiter.name, &["x"])).collect::<Vec<_>>())];
        Self::of(Settings::default(), limiters, rules)
    }

    fn of(settings: Settings, limiters: Vec<Limiter>, rules: Vec<Rule>) -> Self {
        let rules = Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles");
        let version = Version { rules: Arc::new(rules), stores: Stores::memory(&[MemorySettings::default()]) };
        let began = Instant::now();
        Self { service: Arc::new(Service::new(version, settings, Arc::new(TokioClock(began)))), began }
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    async fn acquire(&self, acquire: Acquire) -> Acquisition {
        self.service.acquire(&acquire, None).await.expect("it makes sense")
    }

    /// Begins to acquire, at once. Returns the acquisition and when it came.
    async fn begin(&self, acquire: Acquire) -> JoinHandle<(Acquisition, Duration)> {
        let workers = self.clone();
        let task = tokio::spawn(async move {
            let acquisition = workers.acquire(acquire).await;
            (acquisition, workers.elapsed())
        });
        tokio::task::yield_now().await;
        task
    }

    async fn release(&self, acquisition: &Acquisition) -> LeaseStatus {
        self.service.release(&acquisition.lease.as_ref().expect("it holds a slot").text).await
    }

    fn waiting(&self) -> u64 {
        self.service.doors().waiting.load(Ordering::Relaxed)
    }

    async fn left(&self, limiter: &str) -> u32 {
        let peek = self.service.peek(&of(limiter, None)).await.expect("it makes sense");
        peek.decision.tightest().expect("a limiter applies").remaining
    }
}

fn ask(limiter: &str) -> Ask {
    let key = vec![("x".to_owned(), "1".to_owned())];
    let subject = Subject::Limiter { limiter: limiter.to_owned(), key };
    Ask { subject, cost: 1, hold: None, release_lost: false }
}

fn all(limiters: &[&str], max_wait: Option<Duration>) -> Acquire {
    let asks = limiters.iter().map(|limiter| ask(limiter)).collect();
    Acquire { domain: Some(DOMAIN.to_owned()), asks, max_wait, ..Acquire::default() }
}

fn of(limiter: &str, max_wait: Option<Duration>) -> Acquire {
    all(&[limiter], max_wait)
}

fn costing(cost: u32, acquire: Acquire) -> Acquire {
    let asks = acquire.asks.iter().map(|ask| Ask { cost, ..ask.clone() }).collect();
    Acquire { asks, ..acquire }
}

fn window(name: &str, limit: u32, window: Duration) -> Limiter {
    quota(name, limit, window, Algorithm::SlidingWindow)
}

/// A bucket that paces: one unit at a time, granted ahead.
fn paced(name: &str, rate: u32) -> Limiter {
    ahead(quota(name, rate, secs(1), bucket(Some(1))))
}

fn ahead(limiter: Limiter) -> Limiter {
    Limiter { workers: WorkerSettings { wait: true, ..limiter.workers }, ..limiter }
}

const LONG: Option<Duration> = Some(Duration::from_secs(600));

#[test]
fn case_c1_a_third_worker_gives_up_after_its_wait_while_two_slots_are_held() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 2, secs(60))]);
        let _held = [workers.acquire(of("jobs", None)).await, workers.acquire(of("jobs", None)).await];
        let third = workers.acquire(of("jobs", Some(ms(50)))).await;
        assert_eq!(third.refused, Some(Reason::Limit));
        assert!(near(workers.elapsed(), 50), "{:?}", workers.elapsed());
        assert!(near(third.waited, 50));
    });
}

#[test]
fn case_c2_of_ten_simultaneous_tries_exactly_three_get_the_three_slots() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 3, secs(60))]);
        let tries = join_all((0..10).map(|_| workers.acquire(of("jobs", None)))).await;
        assert_eq!(tries.iter().filter(|acquisition| acquisition.granted()).count(), 3);
    });
}

/// Runs tasks that each hold a slot for a while. Returns the most that held one at once.
async fn most_at_once(workers: &Workers, acquire: &Acquire, tasks: usize, hold: Duration) -> usize {
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let task = || async {
        let acquisition = workers.acquire(acquire.clone()).await;
        assert!(acquisition.granted());
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        sleep(hold).await;
        now.fetch_sub(1, Ordering::SeqCst);
        assert_eq!(workers.release(&acquisition).await, LeaseStatus::Done);
    };
    join_all((0..tasks).map(|_| task())).await;
    most.into_inner()
}

#[test]
fn case_c3_fifty_tasks_never_hold_more_than_five_slots_and_use_all_of_them() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 5, secs(60))]);
        assert_eq!(most_at_once(&workers, &of("jobs", LONG), 50, ms(10)).await, 5);
        assert!(workers.elapsed() <= ms(150), "{:?} for ten rounds of 10 ms", workers.elapsed());
        assert_eq!((workers.waiting(), workers.left("jobs").await), (0, 5));
    });
}

#[test]
fn case_c4_a_blocked_worker_is_granted_when_the_slot_is_released() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 1, secs(60))]);
        let held = workers.acquire(of("jobs", None)).await;
        let blocked = workers.begin(of("jobs", LONG)).await;
        sleep(ms(200)).await;
        workers.release(&held).await;
        let (granted, at) = blocked.await.expect("it does not panic");
        assert!(granted.granted());
        assert!(near(at, 200), "{at:?}");
    });
}

#[test]
fn case_c6_a_release_without_an_acquire_adds_no_slot() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 2, secs(60))]);
        assert_eq!(workers.service.release("nothing").await, LeaseStatus::Unknown);
        let tries = join_all((0..4).map(|_| workers.acquire(of("jobs", None)))).await;
        assert_eq!(tries.iter().filter(|acquisition| acquisition.granted()).count(), 2);
    });
}

#[test]
fn case_c7_semantics_47_waiters_of_one_slot_are_served_in_the_order_of_their_arrival() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 1, secs(60))]);
        let mut held = workers.acquire(of("jobs", None)).await;
        let mut waiters = Vec::new();
        for _ in 0..10 {
            waiters.push(workers.begin(of("jobs", LONG)).await);
        }
        assert_eq!(workers.waiting(), 10);
        for (number, waiter) in waiters.into_iter().enumerate() {
            sleep(ms(10)).await;
            // One that comes later and may wait does not come first.
            let late = workers.begin(of("jobs", Some(ms(1)))).await;
            workers.release(&held).await;
            let (granted, at) = waiter.await.expect("it does not panic");
            assert!(granted.granted(), "waiter {number}");
            assert!(
                near(at, 10 * (number as u64 + 1) + 3 * number as u64) || at < ms(200),
                "waiter {number} at {at:?}"
            );
            assert!(!late.await.expect("it does not panic").0.granted());
            held = granted;
        }
    });
}

#[test]
fn case_c8_c9_c14_a_window_beside_slots_is_charged_by_grants_alone() {
    simulated(async {
        let limiter = |limit, max| Limiter { quota: window("", limit, secs(60)).quota, ..slots("jobs", max, secs(60)) };
        let workers = Workers::new(vec![limiter(5, 2)]);
        let held = [workers.acquire(of("jobs", None)).await, workers.acquire(of("jobs", None)).await];
        for _ in 0..4 {
            assert!(!workers.acquire(of("jobs", None)).await.granted(), "C14: a refusal for a slot");
        }
        let third = workers.begin(of("jobs", LONG)).await;
        workers.release(&held[0]).await;
        let third = third.await.expect("it does not panic").0;
        assert!(third.granted());
        workers.release(&held[1]).await;
        workers.release(&third).await;
        assert!(workers.acquire(of("jobs", None)).await.granted());
        let last = workers.acquire(of("jobs", None)).await;
        assert!(last.granted(), "five of five");
        workers.release(&last).await;
        assert!(!workers.acquire(of("jobs", None)).await.granted());
        // C9: use and release two of a window of two.
        let workers = Workers::new(vec![limiter(2, 5)]);
        for _ in 0..2 {
            let used = workers.acquire(of("jobs", None)).await;
            workers.release(&used).await;
        }
        assert!(!workers.acquire(of("jobs", None)).await.granted());
    });
}

#[test]
fn case_c10_a_rate_beside_slots_never_lets_more_than_three_run() {
    simulated(async {
        let limiter = Limiter { quota: quota("", 100, secs(1), bucket(Some(1))).quota, ..slots("jobs", 3, secs(60)) };
        let workers = Workers::new(vec![ahead(limiter)]);
        assert!(most_at_once(&workers, &of("jobs", LONG), 10, ms(50)).await <= 3);
        assert!(workers.elapsed() >= ms(4 * 50 - 30) && workers.elapsed() < ms(400), "{:?}", workers.elapsed());
    });
}

#[test]
fn case_c11_c12_c13_slots_are_free_when_their_lease_ends_and_not_before_and_a_late_release_frees_nobody_else_s() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 2, secs(2))]);
        let held = [workers.acquire(of("jobs", None)).await, workers.acquire(of("jobs", None)).await];
        sleep(ms(1_300)).await;
        assert!(!workers.acquire(of("jobs", None)).await.granted(), "C11");
        // C12: the holders are gone; who waits is granted at the end of their leases.
        let next = [workers.begin(of("jobs", LONG)).await, workers.begin(of("jobs", LONG)).await];
        let mut granted = Vec::new();
        for next in next {
            let (acquisition, at) = next.await.expect("it does not panic");
            assert!(acquisition.granted() && near(at, 2_000), "{at:?}");
            granted.push(acquisition);
        }
        // C13: it is a lease that ended, and its slot is another's.
        assert_eq!(workers.release(&held[0]).await, LeaseStatus::Unknown);
        assert!(!workers.acquire(of("jobs", None)).await.granted());
    });
}

#[test]
fn case_w4_w5_who_waits_for_a_full_window_is_granted_when_it_has_room() {
    simulated(async {
        for wait in [LONG, Some(ms(1_500))] {
            let workers = Workers::new(vec![window("calls", 2, secs(1))]);
            for _ in 0..2 {
                assert!(workers.acquire(of("calls", None)).await.granted());
            }
            assert!(workers.acquire(of("calls", wait)).await.granted());
            assert!(near(workers.elapsed(), 1_000), "{:?}", workers.elapsed());
        }
    });
}

#[test]
fn case_p1_p2_p5_a_paced_bucket_grants_one_an_interval() {
    simulated(async {
        for (rate, interval, grants) in [(10, 100, 2), (5, 200, 4), (1_000, 1, 10)] {
            let workers = Workers::new(vec![paced("calls", rate)]);
            for number in 0..grants {
                assert!(workers.acquire(of("calls", LONG)).await.granted());
                let (at, due) = (workers.elapsed(), interval * number);
                assert!(at >= ms(due) && at <= ms(due + 2 * number + 3), "{rate}/s: grant {number} at {at:?}");
            }
        }
    });
}

#[test]
fn case_p3_p4_semantics_45_who_cannot_be_granted_in_time_is_refused_at_once() {
    simulated(async {
        let half = ahead(quota("half", 1, secs(2), bucket(Some(1))));
        let plain = quota("plain", 2, secs(1), bucket(Some(1)));
        let workers = Workers::new(vec![paced("calls", 2), half, plain, window("log", 2, secs(1))]);
        for limiter in ["calls", "half", "plain"] {
            assert!(workers.acquire(of(limiter, None)).await.granted());
            let refused = workers.acquire(of(limiter, Some(ms(100)))).await;
            assert_eq!(refused.refused, Some(Reason::Limit), "{limiter}");
            let retry = refused.decision.refusal().and_then(|refusal| refusal.retry_after).expect("it ends");
            assert!(retry >= ms(499) && retry <= ms(2_001), "{limiter}: {retry:?} is without waiting");
        }
        // What never fits, and what a rule denies.
        assert!(!workers.acquire(costing(2, of("calls", LONG))).await.granted());
        assert!(!workers.acquire(costing(3, of("log", LONG))).await.granted());
        assert_eq!(workers.elapsed(), Duration::ZERO, "nobody waited");
        // The moment is met exactly, between two whole units too.
        sleep(ms(200)).await;
        assert!(workers.acquire(of("calls", Some(ms(310)))).await.granted());
        assert!(near(workers.elapsed(), 500), "{:?}", workers.elapsed());
        let deny = rule("ban", &[("x", "*")], Action::Deny);
        let denied = Workers::of(Settings::default(), vec![], vec![deny]);
        let subject = Subject::Entries(vec![("x".to_owned(), "1".to_owned())]);
        let asks = vec![Ask { subject, ..ask("") }];
        let refused = denied.acquire(Acquire { asks, ..of("", LONG) }).await;
        assert_eq!((refused.refused, denied.elapsed()), (Some(Reason::Denied), Duration::ZERO));
    });
}

#[test]
fn semantics_45_a_call_waits_as_long_as_it_says_or_else_as_the_shortest_timeout_of_its_limiters() {
    simulated(async {
        let timed = |name: &str, timeout: Option<u64>| {
            let limiter = slots(name, 1, secs(60));
            Limiter { workers: WorkerSettings { timeout: timeout.map(ms), ..limiter.workers }, ..limiter }
        };
        let limiters = vec![timed("none", None), timed("long", Some(900)), timed("short", Some(300))];
        let workers = Workers::new(limiters);
        assert!(workers.acquire(all(&["none", "long", "short"], None)).await.granted());
        let cases: [(&[&str], Option<u64>, u64); 6] = [
            (&["none"], None, 0),
            (&["none"], Some(40), 40),
            (&["short"], None, 300),
            (&["long", "short"], None, 300),
            (&["short"], Some(0), 0),
            (&["short"], Some(500), 500),
        ];
        for (limiters, max_wait, expected) in cases {
            let began = Instant::now();
            assert!(!workers.acquire(all(limiters, max_wait.map(ms))).await.granted());
            assert!(near(began.elapsed(), expected), "{limiters:?} {max_wait:?}: {:?}", began.elapsed());
        }
        // The caller's deadline, less 10 ms.
        let began = Instant::now();
        let deadline = Some(began + ms(100));
        let refused = workers.service.acquire(&of("short", LONG), deadline).await.expect("it makes sense");
        assert_eq!(refused.refused, Some(Reason::Limit));
        assert!(near(began.elapsed(), 90), "{:?}", began.elapsed());
    });
}

#[test]
fn semantics_46_who_waits_for_a_bucket_is_granted_ahead_in_order_and_told_at_its_moment() {
    simulated(async {
        let workers = Workers::new(vec![ahead(quota("calls", 10, secs(1), bucket(Some(2))))]);
        let mut waiters = Vec::new();
        for _ in 0..12 {
            waiters.push(workers.begin(of("calls", LONG)).await);
        }
        assert_eq!(workers.waiting(), 10, "those granted at once have left");
        for (number, waiter) in waiters.into_iter().enumerate() {
            let (granted, at) = waiter.await.expect("it does not panic");
            let due = 100 * (number as u64).saturating_sub(1);
            assert!(granted.granted() && near(at, due), "waiter {number} at {at:?}");
            // Who does not wait comes behind those who were granted.
            assert!(number == 11 || !workers.acquire(of("calls", None)).await.granted(), "after {number}");
        }
        assert_eq!(workers.waiting(), 0);
    });
}

/// A full bucket of most rates is no whole number of microseconds.
#[test]
fn semantics_46_what_fits_at_once_does_not_wait_whatever_the_rate() {
    simulated(async {
        for limit in [1, 3, 6, 7, 9, 11, 13, 999_983] {
            let workers = Workers::new(vec![ahead(quota("calls", limit, secs(1), bucket(Some(1))))]);
            let first = workers.begin(of("calls", LONG)).await;
            assert_eq!(workers.waiting(), 0, "{limit} a second");
            let (granted, _) = first.await.expect("it does not panic");
            assert!(granted.granted() && granted.waited.is_zero(), "{limit} a second: {:?}", granted.waited);
            let second = workers.acquire(of("calls", LONG)).await;
            assert!(second.granted() && !second.waited.is_zero(), "{limit} a second: {:?}", second.waited);
        }
    });
}

#[test]
fn semantics_46_a_caller_that_goes_away_gives_back_only_if_nobody_was_granted_after_it() {
    simulated(async {
        let workers = Workers::new(vec![paced("calls", 10)]);
        let begin = || workers.begin(of("calls", LONG));
        let (now, first, second, third) = (begin().await, begin().await, begin().await, begin().await);
        assert!(now.await.expect("it does not panic").0.granted());
        sleep(ms(20)).await;
        third.abort();
        assert!(third.await.is_err());
        let fourth = begin().await;
        first.abort();
        assert!(first.await.is_err());
        let fifth = begin().await;
        for (waiter, due) in [(second, 200), (fourth, 300), (fifth, 400)] {
            let at = waiter.await.expect("it does not panic").1;
            assert!(near(at, due), "{at:?}, expected {due} ms");
        }
        // 100 ms passed unused: nobody was let through then, and no two at one moment.
        assert_eq!(workers.waiting(), 0);
    });
}

#[test]
fn semantics_46_a_gateway_s_request_counts_what_was_granted_ahead() {
    simulated(async {
        let workers = Workers::new(vec![ahead(quota("calls", 10, secs(1), bucket(Some(5))))]);
        let _granted = workers.acquire(costing(5, of("calls", LONG))).await;
        let waiter = workers.begin(costing(5, of("calls", LONG))).await;
        let admitted = async || {
            let descriptor = Descriptor { hits: Hits::Charge(1), ..Descriptor::of([("x", "1")]) };
            let request = Request { domain: DOMAIN, descriptors: [descriptor].into_iter().collect() };
            workers.service.current().decide(Door::Rls, &request).await.allowed()
        };
        for _ in 0..5 {
            assert!(!admitted().await, "at {:?}", workers.elapsed());
            sleep(ms(100)).await;
        }
        assert!(near(waiter.await.expect("it does not panic").1, 500));
        sleep(ms(100)).await;
        assert_eq!([admitted().await, admitted().await], [true, false]);
    });
}

#[test]
fn semantics_47_one_that_other_counters_refuse_steps_out_and_holds_up_nobody() {
    simulated(async {
        let workers = Workers::new(vec![slots("a", 1, secs(60)), slots("b", 1, secs(60))]);
        let (a, b) = (workers.acquire(of("a", None)).await, workers.acquire(of("b", None)).await);
        let both = workers.begin(all(&["a", "b"], LONG)).await;
        let only_a = workers.begin(of("a", LONG)).await;
        sleep(ms(10)).await;
        workers.release(&a).await;
        let (a, at) = only_a.await.expect("it does not panic");
        assert!(a.granted() && near(at, 10), "{at:?}: the first one in front of it wants b too");
        sleep(ms(10)).await;
        workers.release(&b).await;
        sleep(ms(10)).await;
        assert_eq!(workers.left("b").await, 1, "it takes nothing meanwhile");
        // It stands in the queue of `a` now, and came before the next.
        let later = workers.begin(of("a", LONG)).await;
        workers.release(&a).await;
        let (both, _) = both.await.expect("it does not panic");
        assert!(both.granted());
        workers.release(&both).await;
        assert!(later.await.expect("it does not panic").0.granted());
    });
}

#[test]
fn semantics_47_nobody_passes_one_that_wants_more_and_came_before() {
    simulated(async {
        let workers = Workers::new(vec![quota("calls", 10, secs(1), bucket(Some(10)))]);
        assert!(workers.acquire(costing(10, of("calls", None))).await.granted());
        let large = workers.begin(costing(8, of("calls", LONG))).await;
        let small = workers.begin(of("calls", LONG)).await;
        let impatient = workers.begin(of("calls", Some(ms(400)))).await;
        assert_eq!(impatient.await.expect("it does not panic").0.refused, Some(Reason::Limit));
        assert!(workers.left("calls").await >= 4, "there was room for it, and others came before");
        assert!(near(large.await.expect("it does not panic").1, 800));
        assert!(near(small.await.expect("it does not panic").1, 900));
    });
}

#[test]
fn semantics_47_a_refund_and_a_change_by_the_store_alone_are_noticed() {
    simulated(async {
        let workers = Workers::new(vec![quota(
            "calls",
            2,
            secs(3600),
            Algorithm::FixedWindow(tollgate::limiter::Schedule::Epoch),
        )]);
        for _ in 0..2 {
            assert!(workers.acquire(of("calls", None)).await.granted());
        }
        // Freed by time alone, and not within the wait.
        assert!(!workers.acquire(of("calls", LONG)).await.granted());
        assert_eq!(workers.elapsed(), Duration::ZERO);
        let workers = Workers::new(vec![
            quota("calls", 2, secs(500), Algorithm::FixedWindow(tollgate::limiter::Schedule::FirstHit)),
            slots("jobs", 1, secs(400)),
        ]);
        for _ in 0..2 {
            assert!(workers.acquire(of("calls", None)).await.granted());
        }
        let waiter = workers.begin(of("calls", LONG)).await;
        sleep(ms(700)).await;
        let refund = Descriptor { hits: Hits::Refund(1), ..Descriptor::of([("x", "1")]) };
        let request = Request { domain: DOMAIN, descriptors: [refund].into_iter().collect() };
        workers.service.current().decide(Door::Rls, &request).await;
        let at = waiter.await.expect("it does not panic").1;
        assert!(near(at, 700), "{at:?}");
        // What another instance gives back is noticed by asking again, after at most two seconds.
        let held = workers.acquire(of("jobs", None)).await;
        let waiter = workers.begin(of("jobs", LONG)).await;
        sleep(secs(20)).await;
        let version = workers.service.current().version.clone();
        let text = held.lease.expect("it holds a slot").text;
        let released = version.change_lease(&text, &LeaseCommand::Release, workers.service.now()).await;
        released.expect("a release names no limiter");
        let released = workers.elapsed();
        let waited = waiter.await.expect("it does not panic").1 - released;
        assert!(waited <= ms(2_003), "{waited:?}");
    });
}

#[test]
fn semantics_47_any_of_several_asks_waits_in_all_their_queues_and_leaves_the_others() {
    simulated(async {
        let workers = Workers::new(vec![slots("a", 1, secs(60)), slots("b", 1, secs(60))]);
        let (a, b) = (workers.acquire(of("a", None)).await, workers.acquire(of("b", None)).await);
        let any = workers.begin(Acquire { any: true, ..all(&["a", "b"], LONG) }).await;
        let next = workers.begin(of("a", LONG)).await;
        sleep(ms(10)).await;
        workers.release(&b).await;
        let (granted, at) = any.await.expect("it does not panic");
        assert!(granted.granted() && near(at, 10), "{at:?}");
        assert_eq!(granted.ask, 1);
        workers.release(&a).await;
        assert!(near(next.await.expect("it does not panic").1, 10));
        assert_eq!(workers.waiting(), 0);
    });
}

#[test]
fn semantics_48_who_is_cancelled_or_times_out_has_charged_nothing_and_holds_nothing() {
    simulated(async {
        let own = apply("tries", &["x"]);
        let own = Apply { charge: Charge::Always, ..own };
        let limiters = vec![slots("jobs", 1, secs(60)), window("calls", 9, secs(60)), window("tries", 9, secs(600))];
        let rules = vec![applies("all", vec![apply("jobs", &["x"]), apply("calls", &["x"]), own])];
        let workers = Workers::of(Settings::default(), limiters, rules);
        let held = workers.acquire(of("jobs", None)).await;
        let mut waiters = Vec::new();
        for _ in 0..4 {
            waiters.push(workers.begin(all(&["jobs", "calls", "tries"], Some(secs(5)))).await);
        }
        assert_eq!(workers.waiting(), 4);
        let kept = waiters.pop().expect("there are four");
        waiters[0].abort();
        waiters[1].abort();
        sleep(ms(1)).await;
        assert_eq!(workers.waiting(), 2);
        sleep(secs(6)).await;
        assert_eq!(kept.await.expect("it does not panic").0.refused, Some(Reason::Limit));
        assert_eq!((workers.left("calls").await, workers.left("tries").await, workers.waiting()), (9, 9, 0));
        workers.release(&held).await;
        assert_eq!(workers.left("jobs").await, 1);
    });
}

#[test]
fn semantics_48_queues_have_bounds_and_beyond_them_callers_are_refused_as_queue_full() {
    simulated(async {
        let limited =
            |limiter: Limiter, queue| Limiter { workers: WorkerSettings { queue, ..limiter.workers }, ..limiter };
        let settings = Settings { bounds: Bounds { waiters: 5, ..Bounds::default() }, ..Settings::default() };
        let limiters =
            vec![limited(slots("jobs", 1, secs(60)), 2), limited(paced("calls", 1), 2), slots("more", 1, secs(60))];
        let rules =
            vec![applies("all", limiters.iter().map(|limiter| apply(&limiter.name, &["x"])).collect::<Vec<_>>())];
        let workers = Workers::of(settings, limiters, rules);
        for name in ["jobs", "calls", "more"] {
            assert!(workers.acquire(of(name, None)).await.granted());
        }
        let mut waiters = Vec::new();
        for name in ["jobs", "calls"] {
            for _ in 0..2 {
                waiters.push(workers.begin(of(name, LONG)).await);
            }
            let full = workers.acquire(of(name, LONG)).await;
            assert_eq!(full.refused, Some(Reason::QueueFull), "{name}");
        }
        let last = workers.begin(of("more", LONG)).await;
        assert_eq!(workers.waiting(), 5);
        assert_eq!(workers.acquire(of("more", LONG)).await.refused, Some(Reason::QueueFull), "all of the process");
        waiters[0].abort();
        sleep(ms(1)).await;
        let again = workers.begin(of("jobs", LONG)).await;
        assert_eq!(workers.waiting(), 5);
        assert!(!again.is_finished() && !last.is_finished());
    });
}

#[test]
fn semantics_48_each_time_it_asks_a_waiter_is_planned_by_the_rules_in_use_then() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 1, secs(60))]);
        let _held = workers.acquire(of("jobs", None)).await;
        let waiter = workers.begin(of("jobs", LONG)).await;
        let replace = |limiters: Vec<Limiter>| {
            let rules = limiters.iter().map(|limiter| applies("all", vec![apply(&limiter.name, &["x"])])).collect();
            let rules = Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles");
            let current = workers.service.current();
            let stores = current.version.stores.next([tollgate::store::NextStore::Keep(0)]);
            workers.service.replace(Version { rules: Arc::new(rules), stores }, Settings::default());
        };
        sleep(ms(30)).await;
        replace(vec![slots("jobs", 2, secs(60))]);
        assert!(near(waiter.await.expect("it does not panic").1, 30), "the limit is larger now");
        let service = workers.service.clone();
        let waiter = tokio::spawn(async move { service.acquire(&of("jobs", LONG), None).await });
        sleep(ms(30)).await;
        replace(vec![slots("other", 2, secs(60))]);
        let error = waiter.await.expect("it does not panic").expect_err("no rule applies it any more");
        assert_eq!(error.kind, AskErrorKind::NotFound);
        assert_eq!(workers.waiting(), 0);
    });
}

#[test]
fn semantics_49_a_partial_grant_is_the_most_that_fits_and_at_least_one() {
    simulated(async {
        let workers = Workers::new(vec![
            quota("calls", 10, secs(1), bucket(Some(10))),
            window("log", 6, secs(60)),
            slots("jobs", 1, secs(60)),
            paced("paced", 10),
        ]);
        let partial =
            |limiters: &[&str], cost, max_wait| Acquire { partial: true, ..costing(cost, all(limiters, max_wait)) };
        let subject = Subject::Entries(vec![("x".to_owned(), "1".to_owned())]);
        let every = Acquire { asks: vec![Ask { subject, cost: 8, ..ask("") }], ..partial(&["calls"], 8, None) };
        assert_eq!(workers.acquire(partial(&["log"], 2, None)).await.units, 2, "all that was asked for");
        let granted = workers.acquire(every.clone()).await;
        // One slot is taken whatever the units, and the bucket that paces holds one.
        assert_eq!((granted.units, granted.lease.is_some()), (1, true));
        assert_eq!((workers.left("calls").await, workers.left("log").await), (9, 3));
        assert_eq!(workers.acquire(partial(&["log"], 9, None)).await.units, 3);
        let refused = workers.acquire(partial(&["log"], 9, None)).await;
        assert_eq!((refused.refused, refused.units), (Some(Reason::Limit), 0));
        // It waits for one unit.
        assert_eq!(workers.acquire(partial(&["calls"], 9, LONG)).await.units, 9);
        let waited = workers.acquire(partial(&["calls"], 9, LONG)).await;
        assert_eq!(waited.units, 1);
        assert!(near(workers.elapsed(), 100), "{:?}", workers.elapsed());
    });
}

#[test]
fn semantics_48_when_the_process_stops_waiters_are_answered_at_once() {
    simulated(async {
        let workers = Workers::new(vec![slots("jobs", 1, secs(60)), paced("calls", 1)]);
        let _held = [workers.acquire(of("jobs", None)).await, workers.acquire(of("calls", None)).await];
        let queued = workers.begin(of("jobs", LONG)).await;
        let ahead = workers.begin(of("calls", LONG)).await;
        sleep(ms(20)).await;
        workers.service.begin_to_stop();
        for waiter in [queued, ahead] {
            let (acquisition, at) = waiter.await.expect("it does not panic");
            assert_eq!(acquisition.refused, Some(Reason::Draining));
            assert!(near(at, 20), "{at:?}");
        }
        // One that comes now is answered, and does not wait.
        for name in ["jobs", "calls"] {
            assert_eq!(workers.acquire(of(name, LONG)).await.refused, Some(Reason::Draining), "{name}");
        }
        assert_eq!(workers.waiting(), 0);
        sleep(ms(980)).await;
        assert!(workers.acquire(of("calls", LONG)).await.granted(), "what was granted ahead was given back");
    });
}

fn named(key: &str, acquire: Acquire) -> Acquire {
    Acquire { idempotency_key: Some(key.to_owned()), ..acquire }
}

#[test]
fn semantics_53_a_repeated_call_gets_the_lease_of_the_first_one_and_charges_nothing() {
    simulated(async {
        let limiters = vec![slots("jobs", 1, secs(60)), window("calls", 5, secs(600)), slots("more", 3, secs(90))];
        let workers = Workers::new(limiters);
        let call = || named("a random key", all(&["jobs", "calls", "more"], LONG));
        let text = |acquisition: &Acquisition| acquisition.lease.as_ref().map(|lease| lease.text.clone());
        let first = workers.acquire(call()).await;
        assert!(first.granted() && first.lease.is_some());
        for _ in 0..3 {
            let again = workers.acquire(call()).await;
            assert!(again.granted(), "{:?}: its slot is held, by itself", again.refused);
            assert_eq!(text(&again), text(&first));
        }
        assert_eq!(workers.elapsed(), Duration::ZERO, "it does not wait for its own slot");
        assert_eq!((workers.left("calls").await, workers.left("more").await), (4, 2));
        // Something else is another lease, also with this key.
        let others = [
            named("another key", all(&["jobs", "calls", "more"], None)),
            named("a random key", costing(2, all(&["jobs", "calls", "more"], None))),
            named("a random key", all(&["jobs", "more"], None)),
        ];
        for other in others {
            assert_eq!(workers.acquire(other).await.refused, Some(Reason::Limit));
        }
        // Nothing is renewed, and what has ended is acquired anew.
        sleep(secs(59)).await;
        assert_eq!(text(&workers.acquire(call()).await), text(&first));
        sleep(secs(2)).await;
        let conflict = workers.service.acquire(&call(), None).await.expect_err("a part of it has ended");
        assert_eq!((conflict.kind, conflict.place.as_str()), (AskErrorKind::Conflict, "idempotency_key"));
        assert_eq!((workers.left("jobs").await, workers.left("calls").await), (1, 4), "the conflict charged nothing");
        sleep(secs(30)).await;
        let anew = workers.acquire(call()).await;
        assert_eq!((text(&anew), workers.left("calls").await), (text(&first), 3));
        assert_eq!(workers.release(&anew).await, LeaseStatus::Done);
        let after = workers.acquire(call()).await;
        assert!(after.granted());
        assert_eq!(workers.left("calls").await, 2);
    });
}

#[test]
fn semantics_53_a_repeated_call_keeps_the_hold_of_the_first_one_and_what_always_charges() {
    simulated(async {
        let limiters =
            vec![slots("jobs", 2, secs(60)), window("tokens", 10, secs(600)), window("calls", 100, secs(600))];
        let held = Apply { hold: Some(HoldFor { length: secs(60), lost: Lost::Charge }), ..apply("tokens", &["x"]) };
        let always = Apply { charge: Charge::Always, ..apply("calls", &["x"]) };
        let workers =
            Workers::of(Settings::default(), limiters, vec![applies("all", vec![apply("jobs", &["x"]), held, always])]);
        let call = || named("a random key", costing(4, all(&["jobs", "tokens", "calls"], None)));
        let first = workers.acquire(call()).await;
        let again = workers.acquire(call()).await;
        let text = |acquisition: &Acquisition| acquisition.lease.as_ref().map(|lease| lease.text.clone());
        assert!(first.granted() && again.granted());
        assert_eq!(text(&again), text(&first), "with its hold");
        assert_eq!((workers.left("tokens").await, workers.left("calls").await), (6, 96));
        let text = text(&again).expect("it holds a slot");
        assert_eq!(workers.service.settle(&text, Units::Each(1)).await, Ok(LeaseStatus::Done));
        assert_eq!((workers.left("tokens").await, workers.left("jobs").await), (9, 2));
    });
}

/// Workers of two budgets that a rule holds for so many seconds, and of a rate beside them.
fn budgets(tokens: u64, requests: u64) -> Workers {
    let limiters = vec![
        window("tokens", 100, secs(600)),
        quota("requests", 10, secs(600), bucket(None)),
        window("calls", 50, secs(600)),
    ];
    let held = |name: &str, length: u64, lost| Apply {
        hold: Some(HoldFor { length: secs(length), lost }),
        ..apply(name, &["x"])
    };
    let applied =
        vec![held("tokens", tokens, Lost::Charge), held("requests", requests, Lost::Release), apply("calls", &["x"])];
    Workers::of(Settings::default(), limiters, vec![applies("all", applied)])
}

async fn budgets_left(workers: &Workers) -> [u32; 3] {
    [workers.left("tokens").await, workers.left("requests").await, workers.left("calls").await]
}

fn text(acquisition: &Acquisition) -> Option<String> {
    acquisition.lease.as_ref().map(|lease| lease.text.clone())
}

fn ends_in(acquisition: &Acquisition) -> Option<Duration> {
    acquisition.lease.as_ref().map(|lease| lease.ends_in)
}

#[test]
fn semantics_53_a_call_that_only_holds_is_charged_once_until_its_lease_is_settled() {
    simulated(async {
        let workers = budgets(60, 90);
        let call = || named("a random key", costing(4, all(&["tokens", "requests", "calls"], None)));
        let first = workers.acquire(call()).await;
        assert!(first.granted() && first.lease.is_some());
        assert_eq!((budgets_left(&workers).await, ends_in(&first)), ([96, 6, 46], Some(secs(60))));
        sleep(secs(20)).await;
        for _ in 0..3 {
            let again = workers.acquire(call()).await;
            assert!(again.granted());
            assert_eq!((text(&again), again.units), (text(&first), 12));
            assert_eq!(ends_in(&again), Some(secs(40)), "it is not renewed");
        }
        let peeked = workers.service.peek(&call()).await.expect("it makes sense");
        assert!(peeked.granted() && peeked.lease.is_none());
        assert_eq!(budgets_left(&workers).await, [96, 6, 46], "and a rate beside the holds is not charged again");
        // Other units, another key and fewer limiters are other leases.
        let others = [
            named("a random key", costing(1, all(&["tokens", "requests", "calls"], None))),
            named("another key", costing(1, all(&["tokens", "requests", "calls"], None))),
            named("a random key", costing(1, all(&["tokens", "calls"], None))),
        ];
        for other in others {
            let other = workers.acquire(other).await;
            assert!(other.granted() && text(&other) != text(&first));
        }
        assert_eq!(budgets_left(&workers).await, [93, 4, 43]);
        // Settled, it is gone: a repeated call is charged anew, and can be settled anew.
        let lease = text(&first).expect("it holds");
        assert_eq!(workers.service.settle(&lease, Units::Each(1)).await, Ok(LeaseStatus::Done));
        assert_eq!(budgets_left(&workers).await, [96, 7, 43]);
        let anew = workers.acquire(call()).await;
        assert_eq!((anew.granted(), text(&anew), ends_in(&anew)), (true, text(&first), Some(secs(60))));
        assert_eq!(budgets_left(&workers).await, [92, 3, 39]);
        assert_eq!(workers.release(&anew).await, LeaseStatus::Done);
        assert_eq!(workers.release(&anew).await, LeaseStatus::Unknown);
        assert_eq!(budgets_left(&workers).await, [96, 7, 39]);
    });
}

#[test]
fn semantics_53_where_only_some_holds_are_left_a_repeated_call_is_an_error_and_lost_ones_are_none() {
    simulated(async {
        let workers = budgets(60, 90);
        let call = || named("a random key", costing(4, all(&["tokens", "requests", "calls"], None)));
        let first = workers.acquire(call()).await;
        sleep(secs(60)).await;
        // The hold of the tokens is lost and still known, and that of the requests is held.
        let conflict = workers.service.acquire(&call(), None).await.expect_err("a part of it has ended");
        assert_eq!((conflict.kind, conflict.place.as_str()), (AskErrorKind::Conflict, "idempotency_key"));
        assert_eq!(budgets_left(&workers).await, [96, 7, 46], "one request has drained");
        let renewed = workers.service.renew(&text(&first).expect("it holds"), None).await;
        assert_eq!(renewed, Ok((LeaseStatus::Expired, None)), "and nothing of it is renewed");
        sleep(secs(30)).await;
        // Both are lost: the tokens stay charged, and the requests came back.
        assert_eq!(budgets_left(&workers).await, [96, 10, 46]);
        let anew = workers.acquire(call()).await;
        assert_eq!((anew.granted(), text(&anew)), (true, text(&first)));
        assert_eq!(budgets_left(&workers).await, [92, 6, 42]);
        let lease = text(&anew).expect("it holds");
        assert_eq!(workers.service.settle(&lease, Units::Each(0)).await, Ok(LeaseStatus::Done), "the new one");
        assert_eq!(budgets_left(&workers).await, [96, 10, 42]);
    });
}

#[test]
fn semantics_53_a_repeated_call_that_holds_is_granted_when_nothing_is_left_and_others_wait() {
    simulated(async {
        let limiters = vec![
            window("tokens", 10, secs(600)),
            Limiter {
                workers: WorkerSettings { direct: true, ..WorkerSettings::default() },
                ..window("direct", 10, secs(600))
            },
        ];
        let held = Apply { hold: Some(HoldFor { length: secs(60), lost: Lost::Charge }), ..apply("tokens", &["x"]) };
        let workers = Workers::of(Settings::default(), limiters, vec![applies("all", vec![held])]);
        let by_itself = |wait| {
            let direct = Ask { hold: Some(secs(60)), cost: 8, ..ask("direct") };
            Acquire { asks: vec![direct], ..of("direct", wait) }
        };
        for call in [costing(8, of("tokens", LONG)), by_itself(LONG)] {
            let mine = || named("mine", call.clone());
            let first = workers.acquire(mine()).await;
            let other = workers.begin(named("other", call.clone())).await;
            assert_eq!(workers.waiting(), 1);
            let began = workers.elapsed();
            let again = workers.acquire(mine()).await;
            assert!(again.granted() && first.lease.is_some());
            assert_eq!((text(&again), workers.elapsed()), (text(&first), began), "it does not wait for itself");
            assert_eq!(workers.release(&again).await, LeaseStatus::Done);
            let (other, _) = other.await.expect("it does not panic");
            assert!(other.granted() && text(&other) != text(&first));
            workers.release(&other).await;
        }
        // Of two asks of which any will do, the one that is held is found, whatever the first has left meanwhile.
        let any = || named("any", Acquire { any: true, ..costing(8, all(&["tokens", "direct"], None)) });
        let any = || {
            let mut any = any();
            any.asks[1].hold = Some(secs(60));
            any
        };
        let blocker = workers.acquire(costing(8, of("tokens", None))).await;
        let first = workers.acquire(any()).await;
        assert_eq!((first.granted(), first.ask), (true, 1));
        workers.release(&blocker).await;
        let again = workers.acquire(any()).await;
        assert_eq!((again.granted(), again.ask, text(&again)), (true, 1, text(&first)));
        assert_eq!((workers.left("tokens").await, workers.left("direct").await), (10, 2));
    });
}

#[test]
fn semantics_53_a_charge_that_is_not_admitted_leaves_no_lease_to_find() {
    simulated(async {
        let workers = budgets(60, 90);
        let call = || named("a random key", costing(8, all(&["tokens", "requests", "calls"], None)));
        let blocker = workers.acquire(costing(8, all(&["requests"], None))).await;
        assert_eq!(workers.acquire(call()).await.refused, Some(Reason::Limit));
        workers.release(&blocker).await;
        assert!(workers.acquire(call()).await.granted());
        assert_eq!(budgets_left(&workers).await, [92, 2, 42]);
    });
}

#[test]
fn semantics_53_a_key_needs_slots_or_holds_and_finds_the_ask_that_an_earlier_call_got() {
    simulated(async {
        let workers =
            Workers::new(vec![slots("a", 1, secs(60)), slots("b", 1, secs(60)), window("calls", 5, secs(60))]);
        let error = workers.service.acquire(&named("k", of("calls", None)), None).await.expect_err("it only counts");
        assert_eq!((error.kind, error.place.as_str()), (AskErrorKind::Invalid, "idempotency_key"));
        assert_eq!(workers.left("calls").await, 5);
        let held = workers.acquire(of("a", None)).await;
        let any = || named("k", Acquire { any: true, ..all(&["a", "b"], LONG) });
        let first = workers.acquire(any()).await;
        assert_eq!((first.granted(), first.ask), (true, 1));
        workers.release(&held).await;
        let again = workers.acquire(any()).await;
        assert_eq!(
            (again.granted(), again.ask, again.lease.map(|lease| lease.text)),
            (true, 1, first.lease.map(|lease| lease.text))
        );
        assert_eq!(workers.left("a").await, 1, "it took no second slot");
        // Two calls at once, of which both wait: one slot, one lease.
        let blocker = workers.acquire(of("a", None)).await;
        let two = [workers.begin(named("w", of("a", LONG))).await, workers.begin(named("w", of("a", LONG))).await];
        sleep(ms(5)).await;
        workers.release(&blocker).await;
        let mut texts = Vec::new();
        for waiter in two {
            texts.push(waiter.await.expect("it does not panic").0.lease.map(|lease| lease.text));
        }
        assert!(texts[0].is_some() && texts[0] == texts[1]);
    });
}

/// The most callers that wait in a process.
const MANY: usize = 10_000;

/// A limiter of which nothing is left at first, and for which so many can wait.
fn for_many(limiter: Limiter) -> Limiter {
    let settings = WorkerSettings { queue: 2 * MANY as u32, ..limiter.workers };
    Limiter { workers: settings, ..limiter }
}

/// The resident memory of this process, in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux").split(' ').nth(1).map(str::to_owned);
    pages.and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4_096
}

/// The bytes of a caller that waits for this limiter.
fn bytes_of_a_waiter(limiter: Limiter) -> u64 {
    simulated(async {
        let workers = Workers::new(vec![for_many(limiter)]);
        let _held = workers.acquire(of("jobs", None)).await;
        let acquire = Arc::new(of("jobs", LONG));
        let mut waiters = Vec::with_capacity(MANY);
        let before = resident();
        for _ in 0..MANY {
            let (service, acquire) = (workers.service.clone(), acquire.clone());
            waiters.push(tokio::spawn(async move { service.acquire(&acquire, None).await.is_ok() }));
            tokio::task::yield_now().await;
        }
        assert_eq!(workers.waiting(), MANY as u64);
        (resident() - before) / MANY as u64
    })
}

#[test]
fn a_waiter_takes_two_kibibytes() {
    const KIND: &str = "TOLLGATE_TEST_WAITERS";
    // One that is granted ahead has its decision already, with its plan.
    let limiters = [("queued", slots("jobs", 1, secs(60)), 2_048), ("granted ahead", paced("jobs", 100), 2_432)];
    if let Ok(kind) = std::env::var(KIND) {
        let limiter = limiters.into_iter().find(|(name, ..)| *name == kind).expect("one of them").1;
        println!("\n{} bytes a waiter", bytes_of_a_waiter(limiter));
        return;
    }
    // Each in a process of its own, which has no memory of other tests to use again.
    for (kind, _, most) in limiters {
        let mut itself = std::process::Command::new(std::env::current_exe().expect("a path"));
        itself.args(["--exact", "core::waiting::a_waiter_takes_two_kibibytes", "--nocapture"]);
        let output = itself.env(KIND, kind).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let bytes = said.lines().find_map(|line| line.strip_suffix(" bytes a waiter")?.parse::<u64>().ok());
        let bytes = bytes.unwrap_or_else(|| panic!("it says no bytes: {said}"));
        println!("{bytes} bytes a waiter that is {kind}");
        assert!((100..=most).contains(&bytes), "{bytes} bytes a waiter that is {kind}");
    }
}

/// Lets many callers acquire and release at once. Returns their numbers and moments, in the order of the grants.
async fn granted_in_order(workers: &Workers) -> Vec<(usize, Duration)> {
    let granted = Arc::new(Mutex::new(Vec::with_capacity(MANY)));
    let mut waiters = Vec::with_capacity(MANY);
    for number in 0..MANY {
        let (workers, granted) = (workers.clone(), granted.clone());
        waiters.push(tokio::spawn(async move {
            let acquisition = workers.acquire(of("jobs", LONG)).await;
            assert!(acquisition.granted(), "{number}: {:?}", acquisition.refused);
            granted.lock().expect("no panic").push((number, workers.elapsed()));
            if acquisition.lease.is_some() {
                assert_eq!(workers.release(&acquisition).await, LeaseStatus::Done);
            }
        }));
        tokio::task::yield_now().await;
    }
    for waiter in waiters {
        waiter.await.expect("it does not panic");
    }
    granted.lock().expect("no panic").clone()
}

#[test]
fn semantics_46_47_ten_thousand_waiters_are_granted_in_order_within_milliseconds_of_their_moment() {
    simulated(async {
        // Each moment is a millisecond after the one before.
        let workers = Workers::new(vec![for_many(paced("jobs", 1_000))]);
        let first = workers.acquire(of("jobs", None)).await;
        assert!(first.granted());
        let granted = granted_in_order(&workers).await;
        assert!(granted.iter().map(|(number, _)| *number).eq(0..MANY), "in order");
        for (number, at) in granted {
            assert!(near(at, 1 + number as u64), "waiter {number} at {at:?}");
        }
        // Nothing but the one before stands in the way of a slot.
        let workers = Workers::new(vec![for_many(slots("jobs", 1, secs(600)))]);
        let held = workers.acquire(of("jobs", None)).await;
        let releases = workers.clone();
        tokio::spawn(async move {
            sleep(ms(100)).await;
            releases.release(&held).await;
        });
        let granted = granted_in_order(&workers).await;
        assert!(granted.iter().map(|(number, _)| *number).eq(0..MANY), "in order");
        for (number, at) in granted {
            assert!(near(at, 100), "waiter {number} at {at:?}");
        }
    });
}

/// A worker of the property: when it comes, how long it waits, and what it asks for.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    after: u64,
    wait: u64,
    cost: u32,
    gives_up: Option<u64>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let wait = prop_oneof![1 => Just(0), 3 => 1..3_000_u64, 4 => Just(60_000)];
    let gives_up = prop_oneof![5 => Just(None), 1 => (0..500_u64).prop_map(Some)];
    let after = prop_oneof![3 => Just(0), 3 => 0..30_u64, 1 => 0..600_u64];
    let arrival = (after, wait, 1..4_u32, gives_up);
    let arrival = arrival.prop_map(|(after, wait, cost, gives_up)| Arrival { after, wait, cost, gives_up });
    prop::collection::vec(arrival, 1..60)
}

/// The grants of a run: the number of the arrival, its cost, and its moment in milliseconds.
fn grants(limiter: Limiter, arrivals: &[Arrival]) -> Vec<(usize, u32, u64)> {
    simulated(async {
        let workers = Workers::new(vec![limiter]);
        let mut tasks = Vec::new();
        for arrival in arrivals {
            sleep(ms(arrival.after)).await;
            let workers = workers.clone();
            let acquire = costing(arrival.cost, of("calls", Some(ms(arrival.wait))));
            let gives_up = arrival.gives_up.map(|after| Instant::now() + ms(after));
            tasks.push(tokio::spawn(async move {
                let acquired = async {
                    let acquisition = workers.acquire(acquire).await;
                    acquisition.granted().then(|| workers.elapsed())
                };
                match gives_up {
                    None => acquired.await,
                    Some(moment) => tokio::select! {
                        biased;
                        granted = acquired => granted,
                        () = sleep_until(moment) => None,
                    },
                }
            }));
            tokio::task::yield_now().await;
        }
        let mut granted = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            if let Some(at) = task.await.expect("it does not panic") {
                granted.push((number, arrivals[number].cost, u64::try_from(at.as_millis()).expect("it is short")));
            }
        }
        granted
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(14), ..ProptestConfig::default() })]

    #[test]
    fn semantics_46_47_waiters_are_served_in_order_and_never_above_the_rate(
        arrivals in arrivals(),
        (rate, burst, wait) in (1..40_u32, 3..8_u32, any::<bool>()),
    ) {
        let limiter = quota("calls", rate, secs(1), bucket(Some(burst)));
        let limiter = if wait { ahead(limiter) } else { limiter };
        let granted = grants(limiter, &arrivals);
        // Never above burst + rate x t in any interval. A timer is up to a millisecond late.
        let mut moments = granted.clone();
        moments.sort_by_key(|(_, _, at)| *at);
        for (first, (_, _, from)) in moments.iter().enumerate() {
            let mut units = 0;
            for (_, cost, to) in &moments[first..] {
                units += u64::from(*cost);
                let most = u64::from(burst) * 1_000 + u64::from(rate) * (to - from + 3);
                prop_assert!(units * 1_000 <= most, "{} units within {} ms of {}", units, to - from, from);
            }
        }
        // In the order of arrival, among those who wait as long as it takes.
        let patient = |number: &usize| arrivals[*number].wait == 60_000 && arrivals[*number].gives_up.is_none();
        let order: Vec<u64> = granted.iter().filter(|(number, ..)| patient(number)).map(|(_, _, at)| *at).collect();
        prop_assert!(order.is_sorted_by(|a, b| a <= &(b + 1)), "{:?}", order);
        // Nobody who has time is left behind, and none waits for much longer than what came before it takes.
        let mut came = 0;
        let mut before = 0_u64;
        for (number, arrival) in arrivals.iter().enumerate() {
            came += arrival.after;
            before += u64::from(arrival.cost);
            if patient(&number) {
                let at = granted.iter().find(|(granted, ..)| *granted == number).map(|(_, _, at)| *at);
                let longest = came + before * 1_000 / u64::from(rate) + 2_010;
                prop_assert!(at.is_some_and(|at| at <= longest), "arrival {} at {:?}, expected by {}", number, at, longest);
            }
        }
    }

    #[test]
    fn semantics_47_waiters_for_a_window_are_served_in_order_and_never_above_the_limit(
        arrivals in arrivals(),
        limit in 3..9_u32,
    ) {
        let granted = grants(window("calls", limit, secs(1)), &arrivals);
        let patient = |number: &usize| arrivals[*number].wait == 60_000 && arrivals[*number].gives_up.is_none();
        let order: Vec<u64> = granted.iter().filter(|(number, ..)| patient(number)).map(|(_, _, at)| *at).collect();
        prop_assert!(order.is_sorted_by(|a, b| a <= &(b + 1)), "{:?}", order);
        prop_assert_eq!(order.len(), (0..arrivals.len()).filter(patient).count());
        let mut moments = granted;
        moments.sort_by_key(|(_, _, at)| *at);
        for (first, (_, _, from)) in moments.iter().enumerate() {
            let within = moments[first..].iter().take_while(|(_, _, to)| to - from < 997);
            let units: u32 = within.map(|(_, cost, _)| *cost).sum();
            prop_assert!(units <= limit, "{} units within a second of {}", units, from);
        }
    }
}
