//! Announces that a server has taken over the counters of another.

use std::sync::Arc;

use tokio::sync::watch;

/// The announcements of one store. Clones announce to the same receivers.
#[derive(Clone, Debug, Default)]
pub(super) struct Takeovers(Arc<watch::Sender<()>>);

impl Takeovers {
    pub(super) fn announce(&self) {
        self.0.send_replace(());
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}
