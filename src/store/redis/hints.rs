//! Hints of other instances: a channel of Redis, listened to over a connection of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use redis::RedisError;
use redis::aio::PubSub;

use super::dial::Dial;
use super::sentinel::Sentinels;
use super::settings::{Address, RedisSettings, Topology};
use crate::store::shared::HearText;
use crate::tls::TlsClient;

/// The pause before another attempt to listen.
const RESUBSCRIBE_DELAY: Duration = Duration::from_millis(500);

/// The channel of a store. All nodes of a cluster pass its messages on.
pub(super) struct HintChannel {
    name: String,
    topology: Topology,
    dial: Dial,
    sentinel_dial: Dial,
    /// Whether the user may not use the channel. It is not tried again then.
    denied: AtomicBool,
}

impl HintChannel {
    pub(super) fn new(settings: &RedisSettings, dial: Dial, tls: Option<TlsClient>) -> Self {
        let sentinel_dial = match &settings.topology {
            Topology::Sentinel { credentials, .. } => Dial::new(settings, credentials, 0, tls),
            Topology::Standalone(_) | Topology::Cluster(_) => dial.clone(),
        };
        Self {
            name: format!("{}hints", settings.key_prefix),
            topology: settings.topology.clone(),
            dial,
            sentinel_dial,
            denied: AtomicBool::new(false),
        }
    }

    pub(super) fn channel(&self) -> &str {
        &self.name
    }

    /// Whether the user may use the channel, as far as known.
    pub(super) fn is_allowed(&self) -> bool {
        !self.denied.load(Ordering::Relaxed)
    }

    /// Notes an error of the server: without permission it is not asked again.
    pub(super) fn note(&self, error: &str) {
        if error.contains("NOPERM") && !self.denied.swap(true, Ordering::Relaxed) {
            tracing::info!(
                channel = self.name,
                "hints between instances are off, because the user of the store may not use the channel: who waits asks \
                 again a little later"
            );
        }
    }

    /// Passes on the messages of the channel.
    pub(super) async fn listen(&self, hear: HearText) {
        for attempt in 0_usize.. {
            match self.subscribe(attempt).await {
                Ok(pubsub) => {
                    let mut messages = pubsub.into_on_message();
                    while let Some(message) = messages.next().await {
                        if let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) {
                            hear(text);
                        }
                    }
                }
                Err(error) => self.note(&error.to_string()),
            }
            if !self.is_allowed() {
                return;
            }
            tokio::time::sleep(RESUBSCRIBE_DELAY).await;
        }
    }

    async fn subscribe(&self, attempt: usize) -> Result<PubSub, RedisError> {
        let mut pubsub = self.dial.connect_pubsub(&self.address(attempt).await?).await?;
        pubsub.subscribe(&self.name).await?;
        Ok(pubsub)
    }

    async fn address(&self, attempt: usize) -> Result<Address, RedisError> {
        match &self.topology {
            Topology::Standalone(address) => Ok(address.clone()),
            Topology::Cluster(seeds) => Ok(seeds[attempt % seeds.len()].clone()),
            Topology::Sentinel { sentinels, master, .. } => {
                let mut sentinels = Sentinels::new(sentinels.clone(), master, self.sentinel_dial.clone());
                sentinels.master().await.map_err(|error| std::io::Error::other(error.text).into())
            }
        }
    }
}
