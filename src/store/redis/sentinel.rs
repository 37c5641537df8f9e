//! The master that the sentinels name, and the announcements of a new one.
//!
//! A replaced master still answers, and a client that stays connected would go on counting there. So every sentinel's
//! announcements are subscribed to, and each server that is connected to must itself report the role of master.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::RedisError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::dial::Dial;
use super::settings::Address;
use super::wire::CommandError;
use crate::plan::Fault;

/// The delay before a lost subscription to a sentinel is retried.
const RESUBSCRIBE_DELAY: Duration = Duration::from_millis(250);

/// The channel on which a sentinel announces a new master: its name, the old address and the new one.
const SWITCH_MASTER_CHANNEL: &str = "+switch-master";

/// The sentinels of one master, with a subscription to each until this is dropped.
#[derive(Debug)]
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    master: Arc<str>,
    dial: Dial,
    /// The server announced last, until it is tried.
    announced: watch::Receiver<Option<Address>>,
    _subscriptions: JoinSet<()>,
}

impl Sentinels {
    /// Subscribes in the background. Must be called within a runtime.
    pub(super) fn new(addresses: Vec<Address>, master: &str, dial: Dial) -> Self {
        let (announce, announced) = watch::channel(None);
        let (announce, master) = (Arc::new(announce), Arc::<str>::from(master));
        let mut subscriptions = JoinSet::new();
        for address in &addresses {
            subscriptions.spawn(subscribe(address.clone(), master.clone(), dial.clone(), announce.clone()));
        }
        Self { addresses, master, dial, announced, _subscriptions: subscriptions }
    }

    /// The master: the one just announced, or else the one that most sentinels name.
    pub(super) async fn master(&mut self) -> Result<Address, CommandError> {
        if self.announced.has_changed().unwrap_or(false)
            && let Some(address) = self.announced.borrow_and_update().clone()
        {
            return Ok(address);
        }
        let mut answers: FuturesUnordered<_> = self.addresses.iter().map(|sentinel| self.query(sentinel)).collect();
        let mut named: Vec<(Address, usize)> = Vec::new();
        let mut failure = CommandError { fault: Fault::Unreachable, text: "no sentinels are configured".to_owned() };
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(address)) => match named.iter_mut().find(|(other, _)| *other == address) {
                    Some((_, votes)) => *votes += 1,
                    None => named.push((address, 1)),
                },
                Ok(None) => failure.text = format!("the sentinels know no master named {:?}", self.master),
                Err(error) => failure = error.into(),
            }
            // A majority is enough, so sentinels that do not answer cause no wait.
            if named.iter().any(|(_, votes)| votes * 2 > self.addresses.len()) {
                break;
            }
        }
        named.into_iter().max_by_key(|(_, votes)| *votes).map(|(address, _)| address).ok_or(failure)
    }

    async fn query(&self, sentinel: &Address) -> Result<Option<Address>, RedisError> {
        let cmd = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&*self.master).take();
        let reply = self.dial.send_once(sentinel, &cmd).await?;
        let named: Option<(String, u16)> = redis::from_redis_value(reply)?;
        Ok(named.map(|(host, port)| Address::Tcp(host, port)))
    }

    /// Waits until a master at another address is announced.
    pub(super) async fn moved_from(&self, address: &Address) {
        let mut announced = self.announced.clone();
        let other = |announced: &Option<Address>| announced.as_ref().is_some_and(|announced| announced != address);
        while announced.changed().await.is_ok() {
            if other(&announced.borrow()) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

async fn subscribe(sentinel: Address, master: Arc<str>, dial: Dial, announce: Arc<watch::Sender<Option<Address>>>) {
    loop {
        if let Ok(mut pubsub) = dial.connect_pubsub(&sentinel).await
            && pubsub.subscribe(SWITCH_MASTER_CHANNEL).await.is_ok()
        {
            let mut messages = pubsub.on_message();
            while let Some(message) = messages.next().await {
                if let Some(address) = announced(message.get_payload_bytes(), &master) {
                    announce.send_replace(Some(address));
                }
            }
        }
        tokio::time::sleep(RESUBSCRIBE_DELAY).await;
    }
}

/// The new address in an announcement about this master: `<master> <host> <port> <new host> <new port>`.
fn announced(message: &[u8], master: &str) -> Option<Address> {
    let mut words = std::str::from_utf8(message).ok()?.split(' ');
    let same_master = words.next()? == master;
    let (host, port) = (words.nth(2)?, words.next()?);
    same_master.then_some(Address::Tcp(host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_new_server_of_its_master() {
        let message = b"edge 127.0.0.1 6379 127.0.0.2 6380";
        assert_eq!(announced(message, "edge"), Some(Address::Tcp("127.0.0.2".to_owned(), 6380)));
        assert_eq!(announced(message, "other"), None);
        assert_eq!(announced(b"edge 127.0.0.1", "edge"), None);
    }
}
