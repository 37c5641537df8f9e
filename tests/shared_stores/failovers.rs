//! Failovers on request while slots are taken and released.

use std::time::Duration;

use tollgate::store::{Credentials, RedisSettings, StoreHandle, Topology};

use super::in_process::{Instance, SHORT, addresses, in_cluster, in_redis, settings};
use super::load::{Moment, slots_through};
use crate::support::processes::{Cluster, Sentinel, sentinel};

fn behind(sentinels: &Sentinel) -> StoreHandle {
    let topology = Topology::Sentinel {
        sentinels: addresses(sentinels.ports()),
        master: sentinel::NAME.to_owned(),
        credentials: Credentials::default(),
    };
    in_redis(settings(SHORT), &RedisSettings::new(topology))
}

/// Failovers by Sentinel.
const FAILOVERS: u32 = 2;

const A_WHILE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semantics_31_slots_that_are_released_during_a_failover_by_sentinel_are_free_afterwards() {
    let _alone = crate::MACHINE.write().await;
    let Some(sentinels) = Sentinel::start() else { return };
    let instances = [Instance::on(behind(&sentinels)).await, Instance::on(behind(&sentinels)).await];
    let failovers = async |moments: &mut Vec<Moment>| {
        for _ in 0..FAILOVERS {
            tokio::time::sleep(A_WHILE).await;
            moments.push(Moment::of(|| {
                sentinels.failover();
            }));
            tokio::time::sleep(A_WHILE).await;
        }
    };
    let row =
        slots_through(&format!("{FAILOVERS} failovers while slots are released, Sentinel"), &instances, 100, failovers)
            .await;
    // Sentinel promotes a replica while the primary still answers: a release in between reaches the primary only, and is
    // sent again to its successor.
    assert_eq!(row.leaked, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_released_during_a_failover_of_a_cluster_are_free_afterwards() {
    let _alone = crate::MACHINE.write().await;
    let Some(cluster) = Cluster::start(3, 1) else { return };
    let instances = [Instance::on(in_cluster(&cluster, SHORT)).await, Instance::on(in_cluster(&cluster, SHORT)).await];
    // Every primary is replaced by its replica, and comes back.
    let failovers = async |moments: &mut Vec<Moment>| {
        for node in [3, 4, 5, 0, 1, 2] {
            tokio::time::sleep(A_WHILE).await;
            moments.push(Moment::of(|| cluster.promote(node)));
        }
        tokio::time::sleep(A_WHILE).await;
    };
    let row = slots_through("6 failovers while slots are released, Cluster", &instances, 20, failovers).await;
    assert_eq!(row.leaked, Some(0));
}
