//! Calls at once with one idempotency key, from two instances on one real store (semantics 53).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tollgate::ask::{Acquire, Ask, AskErrorKind, Subject};
use tollgate::clock::SystemClock;
use tollgate::engine::Version;
use tollgate::lease::Units;
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, Lost, OnStoreError};
use tollgate::rules::{Apply, HoldFor, RuleBook, Rules};
use tollgate::service::Service;
use tollgate::settings::Settings;
use tollgate::store::{
    Backend, MemorySettings, Postgres, QueueSettings, Redis, SharedSettings, SharedStore, StoreHandle, Stores,
};

use super::postgres::{runtime, settings, wait_until};
use super::redis_client::at;
use crate::support::fixtures::{DOMAIN, applies, apply, quota, secs, slots};
use crate::support::processes::{postgres, redis};

const ROUNDS: u32 = 12;
const CALLERS: usize = 4;

fn shared(name: &str, backend: impl Backend) -> StoreHandle {
    let queue = QueueSettings { timeout: Duration::from_secs(10), ..QueueSettings::default() };
    StoreHandle::Shared(Arc::new(SharedStore::new(SharedSettings { queue, ..SharedSettings::new(name) }, backend)))
}

fn in_redis(server: &redis::Redis) -> StoreHandle {
    let settings = at(server.port);
    shared("redis", Redis::new(&settings).expect("nothing is to be read"))
}

fn in_postgres(server: &postgres::Postgres, database: &str) -> StoreHandle {
    shared("postgres", Postgres::new(&settings(server, database)).expect("the settings are valid"))
}

/// An instance of two budgets that are held, a rate and, with `slot`, a slot. The second budget is in the last store.
async fn instance(stores: Vec<StoreHandle>, slot: bool) -> Arc<Service> {
    let last = u16::try_from(stores.len() - 1).expect("they are few");
    let budget = |name: &str, store| Limiter {
        store,
        on_store_error: OnStoreError::Deny,
        ..quota(name, 1000, secs(6000), Algorithm::SlidingWindow)
    };
    let mut limiters = vec![budget("tokens", 0), budget("requests", last), budget("calls", 0)];
    let held = |name| Apply { hold: Some(HoldFor { length: secs(600), lost: Lost::Charge }), ..apply(name, &["x"]) };
    let mut applied = vec![held("tokens"), held("requests"), apply("calls", &["x"])];
    if slot {
        limiters.push(Limiter { on_store_error: OnStoreError::Deny, ..slots("jobs", 500, secs(600)) });
        applied.push(apply("jobs", &["x"]));
    }
    let names = (0..stores.len()).map(|store| format!("store {store}")).collect();
    let book = RuleBook { stores: names, limiters, rules: vec![applies("all", applied)], ..RuleBook::default() };
    let rules = Arc::new(Rules::compile(book).expect("the book compiles"));
    let count = stores.len();
    let version = Version { rules, stores: Stores::of(stores) };
    for store in 0..count {
        wait_until("the store answers", async || version.stores.answers(store).await).await;
    }
    Arc::new(Service::new(version, Settings::default(), Arc::new(SystemClock::new())))
}

fn call(limiters: &[&str], key: &str) -> Acquire {
    let ask = |limiter: &&str| {
        let key = vec![("x".to_owned(), "1".to_owned())];
        let subject = Subject::Limiter { limiter: (*limiter).to_owned(), key };
        Ask { subject, cost: 3, hold: None, release_lost: false }
    };
    Acquire {
        domain: Some(DOMAIN.to_owned()),
        asks: limiters.iter().map(ask).collect(),
        idempotency_key: Some(key.to_owned()),
        ..Acquire::default()
    }
}

async fn left(service: &Service, limiter: &str) -> u32 {
    let peek = Acquire { idempotency_key: None, ..call(&[limiter], "") };
    let peeked = service.peek(&peek).await.expect("it makes sense");
    peeked.decision.tightest().expect("a limiter applies").remaining
}

/// Callers of both instances with one key at once, again and again: each round is charged once, and all have its lease.
/// Over several stores a caller may find a part of what another one is taking, and asks again.
async fn are_charged_once(instances: [Arc<Service>; 2], slot: bool, several: bool) {
    let mut limiters = vec!["tokens", "requests", "calls"];
    limiters.extend(slot.then_some("jobs"));
    for round in 1..=ROUNDS {
        let asked = call(&limiters, &format!("round {round}"));
        let callers = (0..CALLERS).map(|caller| {
            let (service, asked) = (instances[caller % 2].clone(), asked.clone());
            tokio::spawn(async move {
                loop {
                    match service.acquire(&asked, None).await {
                        Ok(acquisition) => {
                            assert!(acquisition.granted(), "{:?}", acquisition.refused);
                            let lease = acquisition.lease.expect("it holds");
                            assert!(lease.ends_in > secs(590) && lease.ends_in <= secs(600), "{:?}", lease.ends_in);
                            return lease.text;
                        }
                        Err(error) => assert!(several && error.kind == AskErrorKind::Conflict, "{error:?}"),
                    }
                }
            })
        });
        let texts: Vec<String> =
            join_all(callers).await.into_iter().map(|caller| caller.expect("it does not panic")).collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "one lease");
        let counted = 1000 - 3 * round;
        for limiter in &limiters[..3] {
            assert_eq!(left(&instances[0], limiter).await, counted, "{limiter} of round {round}");
        }
        if slot {
            assert_eq!(left(&instances[1], "jobs").await, 500 - round);
        }
        // Once it is settled, a repeated call is charged again.
        if round == ROUNDS {
            assert_eq!(instances[1].settle(&texts[0], Units::Each(1)).await, Ok(LeaseStatus::Done));
            assert_eq!(left(&instances[0], "tokens").await, counted + 2);
            assert!(instances[0].acquire(&asked, None).await.expect("it makes sense").granted());
            assert_eq!(left(&instances[0], "tokens").await, counted - 1);
        }
    }
}

#[test]
fn semantics_53_parallel_calls_with_one_key_are_charged_once_in_memory() {
    runtime().block_on(async {
        for slot in [false, true] {
            let memory = || StoreHandle::Memory(MemorySettings::default());
            let service = instance(vec![memory(), memory()], slot).await;
            are_charged_once([service.clone(), service], slot, false).await;
        }
    });
}

#[test]
fn semantics_53_parallel_calls_with_one_key_are_charged_once_in_redis() {
    for slot in [false, true] {
        let Some(server) = redis::Redis::start() else { return };
        runtime().block_on(async {
            let instances = [(); 2].map(|()| instance(vec![in_redis(&server)], slot));
            let [one, other] = instances;
            are_charged_once([one.await, other.await], slot, false).await;
        });
    }
}

#[test]
fn semantics_53_parallel_calls_with_one_key_are_charged_once_in_postgresql() {
    let Some(server) = postgres::Postgres::shared() else { return };
    for slot in [false, true] {
        let database = server.database();
        runtime().block_on(async {
            let instances = [(); 2].map(|()| instance(vec![in_postgres(&server, &database)], slot));
            let [one, other] = instances;
            are_charged_once([one.await, other.await], slot, false).await;
        });
    }
}

#[test]
fn semantics_53_parallel_calls_with_one_key_are_charged_once_over_two_stores() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let Some(redis) = redis::Redis::start() else { return };
    let database = server.database();
    runtime().block_on(async {
        let instances = [(); 2].map(|()| instance(vec![in_redis(&redis), in_postgres(&server, &database)], true));
        let [one, other] = instances;
        are_charged_once([one.await, other.await], true, true).await;
    });
}
