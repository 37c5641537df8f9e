//! Which server the sentinels say is the one to write to, now and when that changes.
//!
//! A client that stays connected would go on counting in a server that was replaced: it still answers. So we listen to
//! what every sentinel announces, and whatever server we come to has to say itself that it is the master.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::RedisError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::link::Dial;
use super::settings::Address;
use super::wire::Problem;
use crate::plan::Fault;

/// How long to wait before a sentinel is listened to again.
const WAIT: Duration = Duration::from_millis(250);

/// What a sentinel announces when another server is the master: the master's name, and the addresses of the server
/// before and the one now.
const SWITCH: &str = "+switch-master";

/// The sentinels of one master. They are listened to until this is dropped.
#[derive(Debug)]
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    master: Arc<str>,
    dial: Dial,
    /// The server last announced, until it was tried.
    announced: watch::Receiver<Option<Address>>,
    _listeners: JoinSet<()>,
}

impl Sentinels {
    /// Listens from now on. To be called within a runtime.
    pub(super) fn new(addresses: Vec<Address>, master: &str, dial: Dial) -> Self {
        let (announce, announced) = watch::channel(None);
        let (announce, master) = (Arc::new(announce), Arc::<str>::from(master));
        let mut listeners = JoinSet::new();
        for address in &addresses {
            listeners.spawn(listen(address.clone(), master.clone(), dial.clone(), announce.clone()));
        }
        Self { addresses, master, dial, announced, _listeners: listeners }
    }

    /// The server to write to: the one just announced, else the one that most sentinels name.
    pub(super) async fn master(&mut self) -> Result<Address, Problem> {
        if self.announced.has_changed().unwrap_or(false)
            && let Some(address) = self.announced.borrow_and_update().clone()
        {
            return Ok(address);
        }
        let mut answers: FuturesUnordered<_> = self.addresses.iter().map(|sentinel| self.ask(sentinel)).collect();
        let mut named: Vec<(Address, usize)> = Vec::new();
        let mut problem = Problem { fault: Fault::Unreachable, text: "there are no sentinels".to_owned() };
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(address)) => match named.iter_mut().find(|(other, _)| *other == address) {
                    Some((_, votes)) => *votes += 1,
                    None => named.push((address, 1)),
                },
                Ok(None) => problem.text = format!("the sentinels know no master {:?}", self.master),
                Err(error) => problem = error.into(),
            }
            // Those that are away are not waited for when the others agree.
            if named.iter().any(|(_, votes)| votes * 2 > self.addresses.len()) {
                break;
            }
        }
        named.into_iter().max_by_key(|(_, votes)| *votes).map(|(address, _)| address).ok_or(problem)
    }

    async fn ask(&self, sentinel: &Address) -> Result<Option<Address>, RedisError> {
        let cmd = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&*self.master).take();
        let answer = self.dial.ask_once(sentinel, &cmd).await?;
        let named: Option<(String, u16)> = redis::from_redis_value(answer)?;
        Ok(named.map(|(host, port)| Address::Tcp(host, port)))
    }

    /// Waits until another server than this one is announced.
    pub(super) async fn moved_from(&self, address: &Address) {
        let mut announced = self.announced.clone();
        let other = |announced: &Option<Address>| announced.as_ref().is_some_and(|announced| announced != address);
        while announced.changed().await.is_ok() {
            if other(&announced.borrow()) {
                return;
            }
        }
        std::future::pending().await
    }
}

async fn listen(sentinel: Address, master: Arc<str>, dial: Dial, announce: Arc<watch::Sender<Option<Address>>>) {
    loop {
        if let Ok(mut listening) = dial.listen(&sentinel).await
            && listening.subscribe(SWITCH).await.is_ok()
        {
            let mut messages = listening.on_message();
            while let Some(message) = messages.next().await {
                if let Some(address) = announced(message.get_payload_bytes(), &master) {
                    announce.send_replace(Some(address));
                }
            }
        }
        tokio::time::sleep(WAIT).await;
    }
}

/// The address in an announcement, if it is about this master: `<master> <host> <port> <new host> <new port>`.
fn announced(message: &[u8], master: &str) -> Option<Address> {
    let mut words = std::str::from_utf8(message).ok()?.split(' ');
    let about = words.next()? == master;
    let (host, port) = (words.nth(2)?, words.next()?);
    about.then_some(Address::Tcp(host.to_owned(), port.parse().ok()?))
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
