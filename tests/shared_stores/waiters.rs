//! Workers of three instances that wait for one counter in one real store (semantics 46 and 47).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tollgate::ask::{Acquire, Ask, Subject};
use tollgate::clock::{Clock, SystemClock};
use tollgate::engine::Version;
use tollgate::limiter::{LeaseStatus, Limiter, OnStoreError, WorkerSettings};
use tollgate::rules::{RuleBook, Rules};
use tollgate::service::{Acquisition, Service};
use tollgate::settings::Settings;
use tollgate::store::{StoreHandle, Stores};
use tollgate::telemetry::ScrapeInput;

use super::in_process::{in_a_postgres, redis};
use crate::MACHINE;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, slots};
use crate::support::processes::{Postgres, WAIT_TIMEOUT, redis::Redis};

const INSTANCES: usize = 3;

/// A deadline of a decision for a busy machine.
const DEADLINE: Duration = Duration::from_secs(5);

fn acquire(limiter: &str, max_wait: Duration) -> Acquire {
    let key = vec![("x".to_owned(), "1".to_owned())];
    let subject = Subject::Limiter { limiter: limiter.to_owned(), key };
    let asks = vec![Ask { subject, cost: 1, hold: None, release_lost: false }];
    Acquire { domain: Some(DOMAIN.to_owned()), asks, max_wait: Some(max_wait), ..Acquire::default() }
}

/// Instances with these limiters, whose stores have answered.
async fn instances(limiters: &[Limiter], store: impl Fn() -> StoreHandle) -> Vec<Arc<Service>> {
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        let limiters: Vec<Limiter> =
            limiters.iter().map(|limiter| Limiter { on_store_error: OnStoreError::Deny, ..limiter.clone() }).collect();
        let rules = limiters.iter().map(|limiter| applies(&limiter.name, [apply(&limiter.name, &["x"])])).collect();
        let rules = Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).expect("the book compiles");
        let version = Version { rules: Arc::new(rules), stores: Stores::of([store()]) };
        let began = Instant::now();
        while !version.stores.answers(0).await {
            assert!(began.elapsed() < WAIT_TIMEOUT, "the store never answers");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let clock = Arc::new(SystemClock::new());
        instances.push(Arc::new(Service::new(version, Settings::default(), clock)));
    }
    instances
}

/// The plans and calls that the stores of these instances have had.
fn plans_and_calls(instances: &[Arc<Service>]) -> (f64, f64) {
    let sum = |name: &str| -> f64 {
        let rendered = instances.iter().map(|service| {
            service.telemetry().metrics.render(&ScrapeInput {
                stores: Vec::new(),
                ready: true,
                config: service.reloads(),
                doors: Vec::new(),
            })
        });
        rendered
            .flat_map(|text| {
                let values = text
                    .lines()
                    .filter(|line| line.starts_with(name))
                    .filter_map(|line| line.rsplit(' ').next()?.parse().ok());
                values.collect::<Vec<f64>>()
            })
            .sum()
    };
    (sum("tollgate_store_call_plans_sum"), sum("tollgate_store_call_plans_count"))
}

async fn acquired(service: &Service, acquire: &Acquire) -> Acquisition {
    service.acquire(acquire, None).await.expect("it makes sense")
}

async fn released(service: &Service, acquisition: &Acquisition) -> LeaseStatus {
    service.release(&acquisition.lease.as_ref().expect("it holds a slot").text).await
}

/// A grant of a bucket, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Grant {
    /// When the store charged it, and the moment at which it fits, by the store's clock.
    charged: u64,
    moment: u64,
    /// When the worker had its answer, by the clock of its instance.
    told: u64,
}

/// The bucket of the tests: 100 a second, one at a time, so a grant each 10 ms.
const RATE: u32 = 100;
const GRANT_EACH: u64 = 10_000;

/// What a moment can be rounded by.
const ROUNDING: u64 = 2;

impl Grant {
    fn of(acquisition: &Acquisition, clock: &impl Clock) -> Self {
        let told = clock.now().micros();
        let applied = acquisition.decision.applied();
        let charged = applied.at.micros();
        let outcome = applied.answers[0].as_ref().expect("the store answers");
        // A bucket with room for this charge is empty after one grant's time.
        Self { charged, moment: charged + outcome.reset.saturating_sub(GRANT_EACH), told }
    }
}

/// Checks every pair of grants, and the wait of every one. Returns the share of the rate that was granted, and the
/// longest time from a moment to its answer.
fn within_the_rate(grants: &mut [Grant]) -> (f64, Duration) {
    grants.sort_unstable_by_key(|grant| grant.moment);
    for (first, from) in grants.iter().enumerate() {
        for (units, to) in grants[first..].iter().enumerate() {
            // One more than `units` of them are within this time, and the burst is one.
            let passed = to.moment - from.moment + ROUNDING;
            assert!(units as u64 * GRANT_EACH <= passed, "{units} more grants within {passed} us of {from:?}");
        }
    }
    for (place, grant) in grants.iter().enumerate() {
        let before = grants[..place].iter().filter(|other| other.moment > grant.charged).count() as u64;
        let waited = grant.moment - grant.charged;
        let most = (before + 1) * GRANT_EACH * 3 / 2;
        assert!(waited <= most, "{waited} us behind {before} others: {grant:?}");
        // The clocks of the store and of the instance are the machine's.
        assert!(grant.told + 1_000 >= grant.moment, "it is told too early: {grant:?}");
    }
    let began = grants.iter().map(|grant| grant.charged).min().expect("there are grants");
    let ended = grants.last().expect("there are grants").moment;
    let share = (grants.len() as u64 - 1) as f64 * GRANT_EACH as f64 / (ended - began) as f64;
    let late = grants.iter().map(|grant| grant.told.saturating_sub(grant.moment)).max().unwrap_or_default();
    (share, Duration::from_micros(late))
}

/// 200 workers on three instances wait for a bucket of 100 a second, again and again.
async fn share_a_bucket(name: &str, store: impl Fn() -> StoreHandle) {
    const WORKERS: usize = 200;
    let run = Duration::from_secs(10);
    let limiter = quota("calls", RATE, Duration::from_secs(1), bucket(Some(1)));
    let limiter = Limiter { workers: WorkerSettings { wait: true, ..limiter.workers }, ..limiter };
    let instances = instances(&[limiter], store).await;
    let before = plans_and_calls(&instances);
    let began = Instant::now();
    let worker = |number: usize| {
        let service = instances[number % INSTANCES].clone();
        async move {
            let (clock, mut grants, mut longest) = (SystemClock::new(), Vec::new(), Duration::ZERO);
            let call = acquire("calls", Duration::from_secs(600));
            while let Ok(acquisition) =
                tokio::time::timeout(run.saturating_sub(began.elapsed()), acquired(&service, &call)).await
            {
                assert!(acquisition.granted());
                longest = longest.max(acquisition.waited);
                grants.push(Grant::of(&acquisition, &clock));
            }
            (grants, longest)
        }
    };
    let workers = join_all((0..WORKERS).map(|number| tokio::spawn(worker(number)))).await;
    let workers: Vec<(Vec<Grant>, Duration)> =
        workers.into_iter().map(|worker| worker.expect("it does not panic")).collect();
    let (plans, calls) = plans_and_calls(&instances);
    let least = workers.iter().map(|(grants, _)| grants.len()).min().unwrap_or_default();
    let longest = workers.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    let mut grants: Vec<Grant> = workers.into_iter().flat_map(|(grants, _)| grants).collect();
    let (share, late) = within_the_rate(&mut grants);
    // Each worker has one charge ahead at the end, which it gives back or leaves unused.
    let plans_a_grant = (plans - before.0 - WORKERS as f64) / grants.len() as f64;
    let calls_a_grant = (calls - before.1) / grants.len() as f64;
    println!(
        "{name}: {} grants, {:.1} % of the rate, {plans_a_grant:.3} plans and {calls_a_grant:.3} calls a grant, longest \
         wait {longest:?}, at most {late:?} after its moment; the least that a worker had is {least}",
        grants.len(),
        share * 100.0
    );
    assert!(plans_a_grant <= 1.2 && calls_a_grant <= 1.2, "{plans_a_grant} plans, {calls_a_grant} calls");
    assert!(share >= 0.98, "{share}");
    assert!(least >= 1, "nobody is left out");
    let most = Duration::from_micros(WORKERS as u64 * GRANT_EACH * 3 / 2) + late;
    assert!(longest <= most, "{longest:?} of 200 waiters at 100 a second");
}

/// 20 workers on three instances share 10 slots.
async fn share_slots(name: &str, store: impl Fn() -> StoreHandle) {
    const SLOTS: u32 = 10;
    let (hold, run) = (Duration::from_millis(50), Duration::from_secs(4));
    let instances = instances(&[slots("jobs", SLOTS, Duration::from_secs(60))], store).await;
    let (held, most, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let in_use = AtomicU64::new(0);
    let began = Instant::now();
    let worker = async |number: usize| {
        let service = &instances[number % INSTANCES];
        while began.elapsed() < run {
            let acquisition = acquired(service, &acquire("jobs", Duration::from_secs(60))).await;
            assert!(acquisition.granted(), "{:?}", acquisition.refused);
            let since = Instant::now();
            most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(hold).await;
            held.fetch_sub(1, Ordering::SeqCst);
            in_use.fetch_add(since.elapsed().as_micros() as u64, Ordering::SeqCst);
            rounds.fetch_add(1, Ordering::SeqCst);
            assert_eq!(released(service, &acquisition).await, LeaseStatus::Done);
        }
    };
    join_all((0..20).map(worker)).await;
    let (rounds, all) = (rounds.load(Ordering::SeqCst), f64::from(SLOTS) * began.elapsed().as_secs_f64());
    let in_use = in_use.load(Ordering::SeqCst) as f64 / 1e6;
    let gap = Duration::from_secs_f64((all - in_use).max(0.0) / rounds as f64);
    println!("{name}: {rounds} rounds, {:.1} % of the slots in use, free for {gap:?} each time", in_use / all * 100.0);
    assert_eq!(most.load(Ordering::SeqCst), SLOTS as usize, "never more, and all of them");
    assert!(gap <= Duration::from_millis(60), "a slot is free for {gap:?} while others wait");
    let peek = instances[0].peek(&acquire("jobs", Duration::ZERO)).await.expect("it makes sense");
    assert_eq!(peek.decision.tightest().map(|check| check.remaining), Some(SLOTS), "nothing is left behind");
}

/// The times from the release of a slot to the next grant, when the holder and the waiter are these instances. Each slot is
/// one of a key of its own.
async fn hand_overs(holder: &Arc<Service>, waiter: &Arc<Service>) -> Vec<Duration> {
    const KEYS: u32 = 8;
    let of_key = |key: u32, max_wait| {
        let key = vec![("x".to_owned(), format!("of {key}"))];
        let subject = Subject::Limiter { limiter: "jobs".to_owned(), key };
        Acquire { asks: vec![Ask { subject, cost: 1, hold: None, release_lost: false }], ..acquire("jobs", max_wait) }
    };
    let mut waiting = Vec::new();
    for key in 0..KEYS {
        let held = acquired(holder, &of_key(key, Duration::ZERO)).await;
        assert!(held.granted());
        let (waiter, next) = (waiter.clone(), of_key(key, Duration::from_secs(60)));
        let waits = tokio::spawn(async move {
            let acquisition = acquired(&waiter, &next).await;
            (acquisition, Instant::now())
        });
        waiting.push((held, waits));
    }
    // They have asked again after 250 and 500 ms, and would next after a second.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let mut times = Vec::new();
    for (held, waits) in waiting {
        assert!(!waits.is_finished(), "the slot is held");
        let began = Instant::now();
        assert_eq!(released(holder, &held).await, LeaseStatus::Done);
        let (next, at) = waits.await.expect("it does not panic");
        assert!(next.granted());
        times.push(at - began);
        assert_eq!(released(waiter, &next).await, LeaseStatus::Done);
    }
    times.sort_unstable();
    times
}

/// A slot that is released is granted to who waits in the same instance at once, and in another one long before that
/// would ask again.
async fn a_release_wakes_who_waits(name: &str, store: impl Fn() -> StoreHandle) {
    let instances =
        instances(&[slots("jobs", 1, Duration::from_secs(60)), slots("other", 9, Duration::from_secs(60))], store)
            .await;
    // All of them listen from their first call on.
    for service in &instances {
        assert!(service.acquire(&acquire("other", Duration::ZERO), None).await.is_ok());
    }
    let here = hand_overs(&instances[0], &instances[0]).await;
    let there = hand_overs(&instances[1], &instances[2]).await;
    println!("{name}: from a release to the next grant in the same instance {here:?}, in another one {there:?}");
    // The shortest of eight does not depend on what else the machine does.
    assert!(here[0] <= Duration::from_millis(5), "{here:?}");
    assert!(there[0] <= Duration::from_millis(60), "{there:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_46_waiters_of_three_instances_on_redis_share_a_bucket_with_one_call_a_grant() {
    let Some(server) = Redis::start() else { return };
    let _alone = MACHINE.write().await;
    share_a_bucket("redis", || redis(&server, DEADLINE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_46_waiters_of_three_instances_on_postgresql_share_a_bucket_with_one_call_a_grant() {
    let Some(server) = Postgres::shared() else { return };
    let _alone = MACHINE.write().await;
    let database = server.database();
    share_a_bucket("postgresql", || in_a_postgres(&server, &database, DEADLINE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_47_twenty_workers_of_three_instances_on_redis_never_hold_more_than_ten_slots() {
    let Some(server) = Redis::start() else { return };
    let _alone = MACHINE.write().await;
    share_slots("redis", || redis(&server, DEADLINE)).await;
    a_release_wakes_who_waits("redis", || redis(&server, DEADLINE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_47_twenty_workers_of_three_instances_on_postgresql_never_hold_more_than_ten_slots() {
    let Some(server) = Postgres::shared() else { return };
    let _alone = MACHINE.write().await;
    let database = server.database();
    share_slots("postgresql", || in_a_postgres(&server, &database, DEADLINE)).await;
    a_release_wakes_who_waits("postgresql", || in_a_postgres(&server, &database, DEADLINE)).await;
}
