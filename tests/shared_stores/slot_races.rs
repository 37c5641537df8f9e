//! Races for slots: callers of three real processes acquire and release them on one store. Never more are held than there
//! are, and none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;

use super::three_instances::{
    INSTANCES, Instances, YEAR, decided, in_a_cluster, in_a_postgres, in_a_redis, of, service,
};
use crate::support::binary::WAIT_TIMEOUT;
use crate::support::processes::redis::Redis;
use crate::support::processes::{Cluster, Postgres};
use crate::support::service::{Rls, descriptor, lease, question};

/// Slots of each account.
const SLOTS: usize = 3;

/// Callers of each account, and how many times each acquires a slot.
const CALLERS: usize = 12;
const TIMES: usize = 25;

/// In different hash slots of a cluster.
const ACCOUNTS: [&str; 3] = ["one", "two", "three"];

async fn acquire(door: &Rls, account: &str) -> Option<String> {
    lease(&decided(door, &of(account)).await)
}

async fn release(door: &Rls, held: &str) {
    door.ask(question("edge", [descriptor(&[("release", held)])])).await;
}

/// Acquires and releases slots of an account. Returns the most that were held at once.
async fn race(instances: &Instances, account: &'static str) -> usize {
    // Counted after a slot is acquired and before it is released, so never more than are really held.
    let (held, most, began) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Instant::now());
    let callers = (0..CALLERS).map(|number| {
        let doors = [number % INSTANCES, (number + 1) % INSTANCES].map(|door| instances.doors[door].clone());
        let (held, most) = (held.clone(), most.clone());
        tokio::spawn(async move {
            let mut times = 0;
            while times < TIMES {
                assert!(began.elapsed() < 2 * WAIT_TIMEOUT, "slots are lost: acquired {times} times");
                let Some(slot) = acquire(&doors[0], account).await else { continue };
                most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                held.fetch_sub(1, Ordering::SeqCst);
                // Any instance releases any lease.
                release(&doors[1], &slot).await;
                times += 1;
            }
        })
    });
    join_all(callers).await.into_iter().for_each(|caller| caller.expect("it acquires a slot in time"));
    most.load(Ordering::SeqCst)
}

/// Waits until all slots of an account can be held, and no more.
async fn all_are_free(instances: &Instances, account: &str) {
    let began = Instant::now();
    loop {
        let mut slots = Vec::new();
        while let Some(slot) = acquire(&instances.doors[slots.len() % INSTANCES], account).await {
            slots.push(slot);
            assert!(slots.len() <= SLOTS, "{account}: more slots than there are");
        }
        if slots.len() == SLOTS {
            return;
        }
        // A release that the store could not execute at once is repeated.
        assert!(began.elapsed() < WAIT_TIMEOUT, "{account}: {} of {SLOTS} slots are free", slots.len());
        join_all(slots.iter().map(|slot| release(&instances.doors[0], slot))).await;
    }
}

async fn slots_are_exact(store: &str) {
    let keys = format!("max_concurrent = {SLOTS}\nlease = '{YEAR}'");
    let instances = Instances::start(&service(store, &keys)).await;
    let most = join_all(ACCOUNTS.map(|account| race(&instances, account))).await;
    assert!(most.iter().all(|most| *most <= SLOTS), "{most:?} of {SLOTS} slots were held at once");
    assert!(most.contains(&SLOTS), "they do not contend: {most:?}");
    join_all(ACCOUNTS.map(|account| all_are_free(&instances, account))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_slots_that_three_processes_acquire_and_release_are_exact_in_redis() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Redis::start() else { return };
    slots_are_exact(&in_a_redis(server.port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_slots_that_three_processes_acquire_and_release_are_exact_in_a_cluster() {
    let _others = crate::MACHINE.read().await;
    let Some(cluster) = Cluster::start(3, 0) else { return };
    slots_are_exact(&in_a_cluster(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_slots_that_three_processes_acquire_and_release_are_exact_in_postgres() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Postgres::shared() else { return };
    slots_are_exact(&in_a_postgres(&server)).await;
}
