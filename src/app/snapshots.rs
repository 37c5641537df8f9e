//! Snapshot files, by which memory stores survive a restart: read at start, written periodically and at shutdown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::service::Service;
use crate::store::SnapshotOwner;

/// The snapshot file of a memory store, by the index of the store.
#[derive(Clone, Debug)]
pub struct PlannedSnapshot {
    /// The index of the store in the configuration.
    pub store: usize,
    /// The file.
    pub path: PathBuf,
    /// How often it is written.
    pub interval: Duration,
}

/// The snapshot file of a store by its name: a reload may change the index.
#[derive(Clone, Debug)]
struct StoreSnapshot {
    store: String,
    path: PathBuf,
    interval: Duration,
}

/// Writes all snapshot files.
#[derive(Clone, Debug)]
pub(super) struct SnapshotWriter {
    service: Arc<Service>,
    snapshots: Vec<StoreSnapshot>,
}

impl SnapshotWriter {
    /// A writer of no files.
    pub(super) fn none(service: Arc<Service>) -> Self {
        Self { service, snapshots: Vec::new() }
    }

    /// Loads these files into their stores, and adds them to those written from now on.
    pub(super) fn read(&mut self, snapshots: Vec<PlannedSnapshot>) {
        let version = self.service.current().version.clone();
        let now = self.service.now();
        for PlannedSnapshot { store: index, path, interval } in snapshots {
            let Some(store) = version.rules.stores().get(index) else { continue };
            let owner = SnapshotOwner { fingerprint: version.rules.secret().fingerprint(), store: store.clone() };
            match version.stores.load(index, &path, &owner, now) {
                Ok(Some(counters)) => tracing::info!(counters, store, "snapshot loaded"),
                Ok(None) => {
                    tracing::info!(store, path = %path.display(), "no snapshot file yet: the store starts empty");
                }
                Err(error) => tracing::warn!(store, %error, "snapshot not loaded: the store starts empty"),
            }
            self.snapshots.push(StoreSnapshot { store: store.clone(), path, interval });
        }
    }

    /// Writes each file at its interval, until the set is dropped.
    pub(super) fn write_periodically(&self) -> JoinSet<()> {
        let mut writing = JoinSet::new();
        for snapshot in self.snapshots.clone() {
            let service = self.service.clone();
            writing.spawn(async move {
                let mut interval = tokio::time::interval(snapshot.interval);
                interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first tick completes immediately, when there is nothing new to write.
                interval.tick().await;
                loop {
                    interval.tick().await;
                    write(service.clone(), snapshot.clone()).await;
                }
            });
        }
        writing
    }

    /// Writes all files.
    pub(super) async fn write_all(self) {
        for snapshot in self.snapshots {
            write(self.service.clone(), snapshot).await;
        }
    }
}

/// Writes a store's snapshot, off the threads that serve. The file of a store that is no longer configured stays.
async fn write(service: Arc<Service>, snapshot: StoreSnapshot) {
    let written = tokio::task::spawn_blocking(move || {
        let version = service.current().version.clone();
        let stores = version.rules.stores();
        let Some(index) = stores.iter().position(|store| *store == snapshot.store) else { return Ok(()) };
        let owner = SnapshotOwner { fingerprint: version.rules.secret().fingerprint(), store: snapshot.store };
        version.stores.save(index, &snapshot.path, &owner)
    });
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "snapshot not written: the previous one is kept"),
        // The panic message may hold values of a request; the panic hook has logged where it happened.
        Err(_) => tracing::warn!("snapshot not written: the previous one is kept"),
    }
}
