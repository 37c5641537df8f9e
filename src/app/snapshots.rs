//! The files in which memory stores survive a restart: read at start, written now and then, and at the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::service::Service;
use crate::store::Owner;

/// A memory store's file, and the store it belongs to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The place of the store among the configured ones.
    pub store: usize,
    /// The file.
    pub path: PathBuf,
    /// How often it is written.
    pub interval: Duration,
}

/// A file of a store that goes by its name, whatever place it has in the configuration in use.
#[derive(Clone, Debug)]
struct Kept {
    store: String,
    path: PathBuf,
    interval: Duration,
}

/// Every file that is kept.
#[derive(Clone, Debug)]
pub(super) struct Snapshots {
    service: Arc<Service>,
    kept: Vec<Kept>,
}

impl Snapshots {
    /// None yet.
    pub(super) fn none(service: Arc<Service>) -> Self {
        Self { service, kept: Vec::new() }
    }

    /// Reads what stores held when these were last written, and keeps them from now on.
    pub(super) fn read(&mut self, snapshots: Vec<Snapshot>) {
        let version = self.service.current().version.clone();
        let now = self.service.now();
        for Snapshot { store: place, path, interval } in snapshots {
            let Some(store) = version.rules.stores().get(place) else { continue };
            let owner = Owner { fingerprint: version.rules.secret().fingerprint(), store: store.clone() };
            match version.stores.load(place, &path, &owner, now) {
                Ok(Some(counters)) => tracing::info!(counters, store, "read the store's snapshot"),
                Ok(None) => tracing::info!(store, path = %path.display(), "no snapshot to read yet"),
                Err(error) => tracing::warn!(store, %error, "the store begins empty"),
            }
            self.kept.push(Kept { store: store.clone(), path, interval });
        }
    }

    /// Writes each at its interval, until the set is dropped.
    pub(super) fn write_now_and_then(&self) -> JoinSet<()> {
        let mut writing = JoinSet::new();
        for kept in self.kept.clone() {
            let service = self.service.clone();
            writing.spawn(async move {
                let mut pause = tokio::time::interval(kept.interval);
                pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first tick is at once, when there is nothing new to write.
                pause.tick().await;
                loop {
                    pause.tick().await;
                    write(service.clone(), kept.clone()).await;
                }
            });
        }
        writing
    }

    /// Writes all of them.
    pub(super) async fn write(self) {
        for kept in self.kept {
            write(self.service.clone(), kept).await;
        }
    }
}

/// Writes a store's snapshot, beside the threads that serve. One that is no longer configured keeps its last.
async fn write(service: Arc<Service>, kept: Kept) {
    let written = tokio::task::spawn_blocking(move || {
        let version = service.current().version.clone();
        let Some(place) = version.rules.stores().iter().position(|store| *store == kept.store) else { return Ok(()) };
        let owner = Owner { fingerprint: version.rules.secret().fingerprint(), store: kept.store };
        version.stores.save(place, &kept.path, &owner)
    });
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the snapshot was not written; the one before is still there"),
        // What it panicked with may hold values of a request; where it did is in the log.
        Err(_) => tracing::warn!("the snapshot was not written; the one before is still there"),
    }
}
