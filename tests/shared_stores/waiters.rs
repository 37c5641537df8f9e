//! Workers of three instances that wait for one counter in one real store (semantics 46 and 47).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tollgate::ask::{Acquire, Ask, Subject};
use tollgate::clock::SystemClock;
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

/// 200 workers on three instances wait for a bucket of 100 a second, again and again.
async fn share_a_bucket(name: &str, store: impl Fn() -> StoreHandle) {
    const WORKERS: usize = 200;
    const RATE: u32 = 100;
    let run = Duration::from_secs(6);
    let limiter = quota("calls", RATE, Duration::from_secs(1), bucket(Some(1)));
    let limiter = Limiter { workers: WorkerSettings { wait: true, ..limiter.workers }, ..limiter };
    let instances = instances(&[limiter], store).await;
    let before = plans_and_calls(&instances);
    let began = Instant::now();
    let worker = |number: usize| {
        let service = instances[number % INSTANCES].clone();
        async move {
            let mut moments = Vec::new();
            let mut longest = Duration::ZERO;
            let call = acquire("calls", Duration::from_secs(600));
            while let Ok(acquisition) =
                tokio::time::timeout(run.saturating_sub(began.elapsed()), acquired(&service, &call)).await
            {
                assert!(acquisition.granted());
                longest = longest.max(acquisition.waited);
                moments.push(began.elapsed());
            }
            (moments, longest)
        }
    };
    let workers = join_all((0..WORKERS).map(|number| tokio::spawn(worker(number)))).await;
    let workers: Vec<(Vec<Duration>, Duration)> =
        workers.into_iter().map(|worker| worker.expect("it does not panic")).collect();
    let (plans, calls) = plans_and_calls(&instances);
    let mut moments: Vec<Duration> = workers.iter().flat_map(|(moments, _)| moments).copied().collect();
    moments.sort_unstable();
    let grants = moments.len();
    let longest = workers.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    // Each worker has one charge ahead at the end, which it gave back or left unused.
    let plans_a_grant = (plans - before.0 - 2.0 * WORKERS as f64) / grants as f64;
    let calls_a_grant = (calls - before.1) / grants as f64;
    let share = grants as f64 / (run.as_secs_f64() * f64::from(RATE));
    println!(
        "{name}: {grants} grants, {:.1} % of the rate, {plans_a_grant:.3} plans and {calls_a_grant:.3} calls a grant, longest wait {longest:?}",
        share * 100.0
    );
    assert!(plans_a_grant <= 1.2 && calls_a_grant <= 1.2 + 2.0 * WORKERS as f64 / grants as f64);
    assert!(share >= 0.98, "{share}");
    // Nobody is told before its moment. A moment that is told late is followed closely by the next one.
    let most = 1.0 + run.as_secs_f64() * f64::from(RATE);
    assert!(grants as f64 <= most, "{grants} grants, at most {most}");
    let least = workers.iter().map(|(moments, _)| moments.len()).min().unwrap_or_default();
    assert!(least >= 1, "nobody is left out");
    assert!(longest <= Duration::from_secs(4), "{longest:?} of 200 waiters at 100 a second");
}

/// 20 workers on three instances share 10 slots.
async fn share_slots(name: &str, store: impl Fn() -> StoreHandle) {
    const SLOTS: u32 = 10;
    let (hold, run) = (Duration::from_millis(50), Duration::from_secs(4));
    let instances = instances(&[slots("jobs", SLOTS, Duration::from_secs(60))], store).await;
    let (held, most, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    let worker = async |number: usize| {
        let service = &instances[number % INSTANCES];
        while began.elapsed() < run {
            let acquisition = acquired(service, &acquire("jobs", Duration::from_secs(60))).await;
            assert!(acquisition.granted(), "{:?}", acquisition.refused);
            most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(hold).await;
            held.fetch_sub(1, Ordering::SeqCst);
            rounds.fetch_add(1, Ordering::SeqCst);
            assert_eq!(released(service, &acquisition).await, LeaseStatus::Done);
        }
    };
    join_all((0..20).map(worker)).await;
    let busy =
        rounds.load(Ordering::SeqCst) as f64 * hold.as_secs_f64() / f64::from(SLOTS) / began.elapsed().as_secs_f64();
    println!("{name}: {} rounds, {:.1} % of the slots in use", rounds.load(Ordering::SeqCst), busy * 100.0);
    assert_eq!(most.load(Ordering::SeqCst), SLOTS as usize, "never more, and all of them");
    let peek = instances[0].peek(&acquire("jobs", Duration::ZERO)).await.expect("it makes sense");
    assert_eq!(peek.decision.tightest().map(|check| check.remaining), Some(SLOTS), "nothing is left behind");
}

/// A slot that is released in one instance is granted in another one long before that would ask again.
async fn hints_wake_other_instances(name: &str, store: impl Fn() -> StoreHandle) {
    let instances =
        instances(&[slots("jobs", 1, Duration::from_secs(60)), slots("other", 9, Duration::from_secs(60))], store)
            .await;
    // All of them listen from their first call on.
    for service in &instances {
        assert!(service.acquire(&acquire("other", Duration::ZERO), None).await.is_ok());
    }
    let call = |max_wait| acquire("jobs", max_wait);
    let mut waits = Vec::new();
    let mut held = acquired(&instances[0], &call(Duration::ZERO)).await;
    assert!(held.granted());
    for round in 1..4 {
        let (holder, waiter) = (&instances[(round - 1) % INSTANCES], instances[round % INSTANCES].clone());
        let granted = Arc::new(AtomicBool::new(false));
        let told = granted.clone();
        let next = call(Duration::from_secs(60));
        let waiting = tokio::spawn(async move {
            let acquisition = acquired(&waiter, &next).await;
            told.store(true, Ordering::SeqCst);
            (acquisition, Instant::now())
        });
        // It has asked again after 250 and 500 ms, and would next after a second.
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        assert!(!granted.load(Ordering::SeqCst));
        let began = Instant::now();
        assert_eq!(released(holder, &held).await, LeaseStatus::Done);
        let (acquisition, at) = waiting.await.expect("it does not panic");
        assert!(acquisition.granted());
        waits.push(at - began);
        held = acquisition;
    }
    println!("{name}: from the release in one instance to the grant in another {waits:?}");
    assert!(waits.iter().min().is_some_and(|wait| *wait <= Duration::from_millis(300)), "{waits:?}");
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
    hints_wake_other_instances("redis", || redis(&server, DEADLINE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_47_twenty_workers_of_three_instances_on_postgresql_never_hold_more_than_ten_slots() {
    let Some(server) = Postgres::shared() else { return };
    let _alone = MACHINE.write().await;
    let database = server.database();
    share_slots("postgresql", || in_a_postgres(&server, &database, DEADLINE)).await;
    hints_wake_other_instances("postgresql", || in_a_postgres(&server, &database, DEADLINE)).await;
}
