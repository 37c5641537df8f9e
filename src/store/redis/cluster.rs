//! A cluster: which of its nodes has a slot, and asking that node.
//!
//! ```text
//!   partition of a counter -> hash tag of its key -> slot -> node -> its link
//!
//!   MOVED      the slot is another node's from now on; asked again there
//!   ASK        the slot is on its way; this call is for another node
//!   TRYAGAIN   some of the keys are here and some there; asked again a little later
//! ```
//!
//! A node that answers so has executed nothing. After anything else no call is repeated: it may have been executed.
//! Every node has a link of its own, so that one that is away holds up the decisions of its own slots and no others.
//! Neither is so with the cluster connection of the library: it repeats what a broken connection may have executed, and
//! holds all calls while it waits for a node that does not answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::link::{Dial, Link, Target, Unanswered};
use super::settings::Address;
use super::warnings::Warnings;
use super::wire::{Keys, Problem};
use crate::plan::Fault;

/// How many slots a cluster has.
const SLOTS: usize = 16_384;

/// The number of a slot's node when nobody has the slot.
const NOBODY: u16 = u16::MAX;

/// How often a call is sent on from node to node at most.
const HOPS: u32 = 4;

/// How long to wait before keys that are between two nodes are asked for again: at first, then twice as long each time,
/// and at last.
const BETWEEN: Duration = Duration::from_millis(1);
const LAST: Duration = Duration::from_millis(16);

/// How often it is looked which node has which slot: while something is wrong, while all is well, and at most.
const TROUBLED: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(50);

/// How many nodes are asked who has which slot. The first to answer is enough.
const ASKED: usize = 3;

/// How long a node without slots is kept. Another may send us there again.
const IDLE: Duration = Duration::from_secs(60);

/// How many parts are told apart that fail by themselves: slots that nobody has, and nodes.
pub(super) const LANES: usize = 64;

/// A cluster. It is looked after until this is dropped.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Where to begin.
    seeds: Vec<Address>,
    dial: Dial,
    warnings: Arc<Warnings>,
    /// The number of the node that has a slot, or [`NOBODY`].
    slots: Box<[AtomicU16]>,
    /// The nodes by their numbers.
    nodes: RwLock<Vec<Option<Arc<Node>>>>,
    /// Why nothing is known of the cluster.
    absent: Mutex<Fault>,
    /// Something changed: the slots are to be looked at again.
    look: Notify,
}

#[derive(Debug)]
struct Node {
    number: u16,
    address: Address,
    link: Link,
    /// When it was last said that it has slots.
    named: Mutex<Instant>,
}

/// Slots and who has them.
type Shares = Vec<(u16, u16, Address)>;

impl Cluster {
    /// A cluster that is connected to from now on. To be called within a runtime.
    pub(super) fn open(seeds: Vec<Address>, dial: Dial, warnings: Arc<Warnings>) -> Self {
        let shared = Arc::new(Shared {
            seeds,
            dial,
            warnings,
            slots: (0..SLOTS).map(|_| AtomicU16::new(NOBODY)).collect(),
            nodes: RwLock::default(),
            absent: Mutex::new(Fault::Unreachable),
            look: Notify::new(),
        });
        let keeper = tokio::spawn(keep(shared.clone()));
        Self { shared, keeper }
    }

    /// Asks the node that has a slot. What is asked is sent again only when it was not executed.
    pub(super) async fn ask(&self, slot: u16, cmd: &Cmd) -> Result<Value, Problem> {
        let mut node = self.shared.owner(slot)?;
        let mut asking = false;
        let (mut hops, mut wait) = (0, BETWEEN);
        while hops <= HOPS && wait <= LAST {
            let answer = if asking { node.link.ask_asking(cmd).await } else { node.link.ask(cmd).await };
            let error = match answer {
                Ok(value) => return Ok(value),
                Err(Unanswered::Failed(error)) => error,
                Err(absent) => {
                    self.shared.look.notify_one();
                    return Err(absent.into());
                }
            };
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved) => {
                    node = self.shared.redirect(&error, &node).await?;
                    (asking, hops) = (false, hops + 1);
                    self.shared.slots[usize::from(slot)].store(node.number, Ordering::Relaxed);
                    self.shared.look.notify_one();
                }
                ErrorKind::Server(ServerErrorKind::Ask) => {
                    node = self.shared.redirect(&error, &node).await?;
                    (asking, hops) = (true, hops + 1);
                }
                ErrorKind::Server(ServerErrorKind::TryAgain) => {
                    tokio::time::sleep(wait).await;
                    (wait, hops) = (wait * 2, 0);
                    node = self.shared.owner(slot)?;
                    asking = false;
                }
                ErrorKind::Server(
                    ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown | ServerErrorKind::ReadOnly,
                )
                | ErrorKind::Io => {
                    self.shared.look.notify_one();
                    return Err(error.into());
                }
                _ => return Err(error.into()),
            }
        }
        // The node is there. A slot on its way must not have us leave the node's other slots alone.
        Err(Problem { fault: Fault::Script, text: format!("slot {slot} is on its way") })
    }

    /// The part of the cluster that a slot is in: that of its node.
    pub(super) fn lane(&self, slot: u16) -> usize {
        lane(self.shared.number(slot))
    }

    /// Whether a part of the cluster can be written to.
    pub(super) async fn probe_lane(&self, part: usize, keys: &Keys) -> Result<(), Fault> {
        self.shared.look.notify_one();
        if part == lane(NOBODY) {
            let lost = self.shared.slots.iter().any(|number| number.load(Ordering::Relaxed) == NOBODY);
            return if lost { Err(*self.shared.absent.lock()) } else { Ok(()) };
        }
        // Nobody is kept waiting by a node that has no slots any more.
        let found = (0..=u16::MAX).find(|&partition| self.lane(slot(&keys.in_partition(partition))) == part);
        match found {
            Some(partition) => self.try_partition(partition, keys).await,
            None => Ok(()),
        }
    }

    /// Whether any part of the cluster can be written to. One node that is away takes nothing from the others.
    pub(super) async fn probe(&self, keys: &Keys) -> Result<(), Fault> {
        let mut tried = [false; LANES];
        let partitions = (0..=u16::MAX).filter(|&partition| {
            let part = self.lane(slot(&keys.in_partition(partition)));
            part != lane(NOBODY) && !std::mem::replace(&mut tried[part], true)
        });
        let mut probes: FuturesUnordered<_> = partitions.map(|partition| self.try_partition(partition, keys)).collect();
        let mut verdict = Err(*self.shared.absent.lock());
        while let Some(answer) = probes.next().await {
            verdict = answer;
            if answer.is_ok() {
                break;
            }
        }
        verdict
    }

    /// Writes a key that holds no counter: nothing else says that one can be written.
    async fn try_partition(&self, partition: u16, keys: &Keys) -> Result<(), Fault> {
        let start = keys.in_partition(partition);
        let key = [&start[..], b"probe"].concat();
        let cmd = redis::cmd("SET").arg(key).arg("").arg("PX").arg(60_000).take();
        self.ask(slot(&start), &cmd).await.map(drop).map_err(|problem| {
            self.shared.warnings.say(&problem.text);
            problem.fault
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    fn number(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].load(Ordering::Relaxed)
    }

    fn owner(&self, slot: u16) -> Result<Arc<Node>, Problem> {
        let number = self.number(slot);
        let node = self.nodes.read().get(usize::from(number)).cloned().flatten();
        // The keeper tells why.
        node.ok_or_else(|| Problem { fault: *self.absent.lock(), text: String::new() })
    }

    /// The node at an address, which is connected to from now on.
    fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.iter().flatten().find(|node| node.address == *address) {
            *node.named.lock() = Instant::now();
            return node.clone();
        }
        let free = nodes.iter().position(Option::is_none).unwrap_or(nodes.len());
        let node = Arc::new(Node {
            number: u16::try_from(free).expect("no cluster has more nodes than slots"),
            address: address.clone(),
            link: Link::open(Target::Server(address.clone()), self.dial.clone(), self.warnings.clone()),
            named: Mutex::new(Instant::now()),
        });
        if free == nodes.len() {
            nodes.push(None);
        }
        nodes[free] = Some(node.clone());
        node
    }

    /// The node that another one sends us to, connected.
    async fn redirect(&self, error: &RedisError, by: &Node) -> Result<Arc<Node>, Problem> {
        let address = error.redirect_node().and_then(|(address, _)| {
            let (host, port) = address.rsplit_once(':')?;
            at(host, port.parse().ok()?, &by.address)
        });
        let Some(address) = address else { return Err(Problem::from(&*error.to_string())) };
        let node = self.node(&address);
        let late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        let connected = tokio::time::timeout(self.dial.connect_timeout(), node.link.connected());
        connected.await.map_err(|elapsed| Problem { fault: Fault::Unreachable, ..late(elapsed).into() })?;
        Ok(node)
    }

    /// Looks which node has which slot. Says whether every node that has one is connected.
    async fn learn(&self, turn: usize) -> Result<bool, Problem> {
        let connected = |node: &&Arc<Node>| node.link.is_connected();
        let mut known: Vec<Arc<Node>> = self.nodes.read().iter().flatten().filter(connected).cloned().collect();
        let start = turn % known.len().max(1);
        known.rotate_left(start);
        known.truncate(ASKED);
        let cmd = redis::cmd("CLUSTER").arg("SLOTS").take();
        let asked = known.iter().map(async |node| (&node.address, node.link.ask(&cmd).await.map_err(Problem::from)));
        let shares = match first(asked).await {
            Ok(shares) => shares,
            Err(_) => {
                let asked = self
                    .seeds
                    .iter()
                    .map(async |seed| (seed, self.dial.ask_once(seed, &cmd).await.map_err(Problem::from)));
                first(asked).await?
            }
        };
        self.take(&shares);
        let nodes = self.nodes.read();
        Ok(self.slots.iter().all(|number| {
            let node = nodes.get(usize::from(number.load(Ordering::Relaxed))).and_then(Option::as_ref);
            node.is_some_and(|node| node.link.is_connected())
        }))
    }

    /// Takes over who has which slot, and lets go of nodes that have had none for a while.
    fn take(&self, shares: &Shares) {
        let mut owners = vec![NOBODY; SLOTS];
        for (first, last, address) in shares {
            let number = self.node(address).number;
            if let Some(owned) = owners.get_mut(usize::from(*first)..=usize::from(*last)) {
                owned.fill(number);
            }
        }
        for (slot, number) in self.slots.iter().zip(&owners) {
            slot.store(*number, Ordering::Relaxed);
        }
        for place in self.nodes.write().iter_mut() {
            place.take_if(|node| !owners.contains(&node.number) && node.named.lock().elapsed() > IDLE);
        }
    }
}

/// Looks after a cluster: at once when something changed, and now and then.
async fn keep(shared: Arc<Shared>) {
    for turn in 0.. {
        let calm = match shared.learn(turn).await {
            Ok(calm) => {
                *shared.absent.lock() = Fault::Unreachable;
                calm
            }
            Err(problem) => {
                *shared.absent.lock() = problem.fault;
                shared.warnings.say(&format_args!("the cluster cannot be asked for its slots: {}", problem.text));
                false
            }
        };
        tokio::time::sleep(BREATH).await;
        let wait = if calm { CALM } else { TROUBLED };
        // Whether it was told or was time makes no difference.
        let _ = tokio::time::timeout(wait, shared.look.notified()).await;
    }
}

/// The first answer that tells of any slots. Nodes that are away are not waited for when others answer.
async fn first<'a>(
    asked: impl Iterator<Item = impl Future<Output = (&'a Address, Result<Value, Problem>)>>,
) -> Result<Shares, Problem> {
    let mut answers: FuturesUnordered<_> = asked.collect();
    let mut problem = Problem { fault: Fault::Unreachable, text: "there are no nodes".to_owned() };
    while let Some((by, answer)) = answers.next().await {
        match answer.map(|value| shares(&value, by)) {
            Ok(Some(shares)) if !shares.is_empty() => return Ok(shares),
            Ok(_) => problem.text = format!("{by} knows of no slots"),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// Reads who has which slots:
///
/// ```text
///   [[first, last, [host, port, id, ..], replica, ..], ..]
/// ```
fn shares(reply: &Value, by: &Address) -> Option<Shares> {
    let Value::Array(ranges) = reply else { return None };
    let share = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else { return None };
        let [host, Value::Int(port), ..] = &primary[..] else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            // It has no name but the one that we asked it by.
            Value::Nil => "",
            _ => return None,
        };
        let slot = |slot: i64| u16::try_from(slot).ok().filter(|&slot| usize::from(slot) < SLOTS);
        Some((slot(*first)?, slot(*last)?, at(host, u16::try_from(*port).ok()?, by)?))
    };
    // A node whose address nobody knows yet is left out: its slots are nobody's until then.
    Some(ranges.iter().filter_map(share).collect())
}

/// An address as a node tells it. Without a host it is the host of the node itself.
fn at(host: &str, port: u16, by: &Address) -> Option<Address> {
    match (host, by) {
        ("?", _) | ("", Address::Unix(_)) => None,
        ("", Address::Tcp(host, _)) => Some(Address::Tcp(host.clone(), port)),
        (host, _) => Some(Address::Tcp(host.to_owned(), port)),
    }
}

/// The part that a node is; more nodes than parts share them.
fn lane(node: u16) -> usize {
    match node {
        NOBODY => 0,
        node => 1 + usize::from(node) % (LANES - 1),
    }
}

/// The slot of a key: that of what stands between its first braces, if anything does, and else of all of it.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Address {
        Address::Tcp("10.0.0.1".to_owned(), 6379)
    }

    #[test]
    fn a_slot_is_that_of_the_tag() {
        // From the specification of Redis Cluster, and `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }

    #[test]
    fn a_node_without_a_name_is_where_it_was_asked() {
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first, last, host| {
            Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                Value::Array(vec![host, Value::Int(7000), text("id")]),
                Value::Array(vec![text("10.0.0.9"), Value::Int(7001), text("replica")]),
            ])
        };
        let reply = Value::Array(vec![
            range(0, 99, text("10.0.0.2")),
            range(100, 199, Value::Nil),
            range(200, 299, text("")),
            range(300, 399, text("?")),
        ]);
        let at = |host: &str| Address::Tcp(host.to_owned(), 7000);
        let expected = vec![(0, 99, at("10.0.0.2")), (100, 199, at("10.0.0.1")), (200, 299, at("10.0.0.1"))];
        assert_eq!(shares(&reply, &node()), Some(expected));
        assert_eq!(shares(&Value::Okay, &node()), None);
    }
}
