//! Connects new shared stores, before they decide: at start, and in a reload.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::store::SharedStore;

/// A store that was not connected in time.
#[derive(Debug)]
pub(super) struct NotConnected {
    pub(super) store: String,
    waited: Duration,
    /// In the store's own words.
    reason: String,
}

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stores.{}: not connected within {:?}: {}", self.store, self.waited, self.reason)
    }
}

/// Waits until each of the stores is connected, so that its first decisions do not wait for that, or fail. Returns those
/// that are not within `timeout`.
pub(super) async fn connect(
    stores: impl IntoIterator<Item = &Arc<SharedStore>>,
    timeout: Duration,
) -> Vec<NotConnected> {
    let (began, deadline) = (Instant::now(), Instant::now() + timeout);
    let connecting = stores.into_iter().map(async |shared| {
        let store = shared.name();
        match shared.queue().connected(deadline).await {
            Ok(()) => {
                tracing::info!(store, took = ?began.elapsed(), "new store connected");
                None
            }
            Err(reason) => Some(NotConnected { store: store.to_owned(), waited: timeout, reason }),
        }
    });
    join_all(connecting).await.into_iter().flatten().collect()
}
