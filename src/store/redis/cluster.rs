//! A cluster: maps hash slots to nodes, and sends each command to the node of its slot.
//!
//! ```text
//!   partition of a counter -> hash tag of its key -> hash slot -> node -> its connection
//!
//!   MOVED      another node has the slot now: sent again, there
//!   ASK        the slot is being moved: this command is sent again to the node that imports it
//!   TRYAGAIN   some keys are moved and some are not: retried after a delay
//! ```
//!
//! A node that replies so has executed nothing. After any other error a command is not retried, because it may have been
//! executed. Every node has its own connection, so a node that is down delays decisions of its own slots only. The
//! cluster connection of the redis crate guarantees neither: it retries commands of a broken connection, and holds all
//! calls while it waits for a node that does not answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connection::{RedisConnection, SendError, ServerChoice};
use super::dial::Dial;
use super::hash_slot::{HASH_SLOTS, SlotRanges, hash_slot, node_address, slot_ranges};
use super::settings::Address;
use super::takeovers::Takeovers;
use super::wire::{CommandError, Keys};
use crate::plan::Fault;
use crate::store::warnings::Warnings;

/// The node number of a hash slot that no node has.
const NO_NODE: u16 = u16::MAX;

/// The most redirections of one command.
const MAX_REDIRECTS: u32 = 4;

/// The delay before a retry after `TRYAGAIN`: the first, which doubles each time, and the last.
const MIN_TRY_AGAIN_DELAY: Duration = Duration::from_millis(1);
const MAX_TRY_AGAIN_DELAY: Duration = Duration::from_millis(16);

/// The time between refreshes of the slot map: while a slot has no connected node, while all have one, and at least.
const INCOMPLETE_REFRESH_INTERVAL: Duration = Duration::from_millis(100);
const COMPLETE_REFRESH_INTERVAL: Duration = Duration::from_secs(10);
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(50);

/// Nodes queried for each refresh. The first reply is enough.
const QUERIED_NODES: usize = 3;

/// How long the connection to a node without slots is kept, since another node may redirect to it.
const IDLE_NODE_TTL: Duration = Duration::from_secs(60);

/// Lanes, which fail independently: one for hash slots without a node, the others for nodes.
pub(super) const LANES: usize = 64;

/// A cluster, whose slot map is refreshed in the background until this is dropped.
#[derive(Debug)]
pub(super) struct Cluster {
    state: Arc<ClusterState>,
    refresher: JoinHandle<()>,
}

#[derive(Debug)]
struct ClusterState {
    /// The configured nodes.
    seeds: Vec<Address>,
    dial: Dial,
    warnings: Arc<Warnings>,
    takeovers: Takeovers,
    /// The number of each hash slot's node, or [`NO_NODE`].
    slots: Box<[AtomicU16]>,
    /// The nodes by their numbers.
    nodes: RwLock<Vec<Option<Arc<ClusterNode>>>>,
    /// The fault of a command whose hash slot has no node.
    fault: Mutex<Fault>,
    /// Notified when the slot map may be out of date.
    stale: Notify,
}

#[derive(Debug)]
struct ClusterNode {
    number: u16,
    address: Address,
    connection: RedisConnection,
    /// When a refresh or a redirection last named it.
    named_at: Mutex<Instant>,
}

impl Cluster {
    /// Starts to connect in the background. Must be called within a runtime.
    pub(super) fn open(seeds: Vec<Address>, dial: Dial, warnings: Arc<Warnings>, takeovers: Takeovers) -> Self {
        let state = Arc::new(ClusterState {
            seeds,
            dial,
            warnings,
            takeovers,
            slots: (0..HASH_SLOTS).map(|_| AtomicU16::new(NO_NODE)).collect(),
            nodes: RwLock::default(),
            fault: Mutex::new(Fault::Unreachable),
            stale: Notify::new(),
        });
        let refresher = tokio::spawn(refresh_slots(state.clone()));
        Self { state, refresher }
    }

    /// Sends a command to the node of a hash slot. It is sent again only where it was not executed.
    pub(super) async fn send(&self, slot: u16, cmd: &Cmd) -> Result<Value, CommandError> {
        let mut node = self.state.owner(slot)?;
        let mut asking = false;
        let (mut redirects, mut delay) = (0, MIN_TRY_AGAIN_DELAY);
        while redirects <= MAX_REDIRECTS && delay <= MAX_TRY_AGAIN_DELAY {
            let reply = if asking { node.connection.send_asking(cmd).await } else { node.connection.send(cmd).await };
            let error = match reply {
                Ok(value) => return Ok(value),
                Err(SendError::Failed(error)) => error,
                Err(not_connected) => {
                    self.state.stale.notify_one();
                    return Err(not_connected.into());
                }
            };
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved) => {
                    node = self.state.redirect(&error, &node).await?;
                    (asking, redirects) = (false, redirects + 1);
                    self.state.give([(usize::from(slot), node.number)]);
                    self.state.stale.notify_one();
                }
                ErrorKind::Server(ServerErrorKind::Ask) => {
                    node = self.state.redirect(&error, &node).await?;
                    (asking, redirects) = (true, redirects + 1);
                }
                ErrorKind::Server(ServerErrorKind::TryAgain) => {
                    tokio::time::sleep(delay).await;
                    (delay, redirects) = (delay * 2, 0);
                    node = self.state.owner(slot)?;
                    asking = false;
                }
                ErrorKind::Server(
                    ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown | ServerErrorKind::ReadOnly,
                )
                | ErrorKind::Io => {
                    self.state.stale.notify_one();
                    return Err(error.into());
                }
                _ => return Err(error.into()),
            }
        }
        // The node works. A hash slot that is being moved must not open the circuit breaker for its other slots.
        Err(CommandError {
            fault: Fault::Script,
            text: format!("hash slot {slot} is being moved, giving up after retries"),
        })
    }

    /// The lane of a hash slot: that of its node.
    pub(super) fn lane(&self, slot: u16) -> usize {
        lane_of(self.state.node_number(slot))
    }

    /// Waits while the node of a lane is being connected to.
    pub(super) async fn linked(&self, lane: usize) -> Result<(), Fault> {
        match self.node_of_lane(lane) {
            Some(node) => node.connection.linked().await,
            // Each command finds out.
            None => Ok(()),
        }
    }

    /// Waits until the node of a lane is connected.
    pub(super) async fn connected(&self, lane: usize) {
        if let Some(node) = self.node_of_lane(lane) {
            node.connection.connected().await;
        }
    }

    /// The node of a lane, if it has one only.
    fn node_of_lane(&self, lane: usize) -> Option<Arc<ClusterNode>> {
        let nodes = self.state.nodes.read();
        let mut nodes = nodes.iter().flatten().filter(|node| lane_of(node.number) == lane);
        let first = nodes.next()?;
        nodes.next().is_none().then(|| first.clone())
    }

    /// Checks that the nodes of a lane accept writes.
    pub(super) async fn probe_lane(&self, lane: usize, keys: &Keys) -> Result<(), Fault> {
        self.state.stale.notify_one();
        if lane == lane_of(NO_NODE) {
            let unassigned = self.state.slots.iter().any(|number| number.load(Ordering::Relaxed) == NO_NODE);
            return if unassigned { Err(*self.state.fault.lock()) } else { Ok(()) };
        }
        // No decision needs a lane without hash slots.
        let found = (0..=u16::MAX).find(|&partition| self.lane(hash_slot(&keys.in_partition(partition))) == lane);
        match found {
            Some(partition) => self.probe_partition(partition, keys).await,
            None => Ok(()),
        }
    }

    /// Checks that every hash slot has a node, and that every node accepts writes.
    pub(super) async fn warm_up(&self, keys: &Keys) -> Result<(), Fault> {
        self.probe_lane(lane_of(NO_NODE), keys).await?;
        let partitions = self.partition_of_each_lane(keys);
        try_join_all(partitions.map(|partition| self.probe_partition(partition, keys))).await.map(drop)
    }

    /// Checks that any node accepts writes. The others may be down.
    pub(super) async fn probe(&self, keys: &Keys) -> Result<(), Fault> {
        let partitions = self.partition_of_each_lane(keys);
        let mut probes: FuturesUnordered<_> =
            partitions.map(|partition| self.probe_partition(partition, keys)).collect();
        let mut result = Err(*self.state.fault.lock());
        while let Some(answer) = probes.next().await {
            result = answer;
            if answer.is_ok() {
                break;
            }
        }
        result
    }

    /// A partition of each lane that has nodes.
    fn partition_of_each_lane(&self, keys: &Keys) -> impl Iterator<Item = u16> {
        let mut seen = [false; LANES];
        (0..=u16::MAX).filter(move |&partition| {
            let lane = self.lane(hash_slot(&keys.in_partition(partition)));
            lane != lane_of(NO_NODE) && !std::mem::replace(&mut seen[lane], true)
        })
    }

    /// Writes a key that holds no counter: only a write shows that writes are accepted.
    async fn probe_partition(&self, partition: u16, keys: &Keys) -> Result<(), Fault> {
        let start = keys.in_partition(partition);
        let key = [&start[..], b"probe"].concat();
        let cmd = redis::cmd("SET").arg(key).arg("").arg("PX").arg(60_000).take();
        self.send(hash_slot(&start), &cmd).await.map(drop).map_err(|error| {
            // The supervisor of a connection has logged why none is open; there is no text then.
            if !error.text.is_empty() {
                self.state.warnings.warn(&error.text);
            }
            error.fault
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.refresher.abort();
    }
}

impl ClusterState {
    fn node_number(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].load(Ordering::Relaxed)
    }

    /// Gives hash slots to nodes.
    fn give(&self, owners: impl IntoIterator<Item = (usize, u16)>) {
        let mut taken_over = false;
        for (slot, number) in owners {
            taken_over |= self.slots[slot].swap(number, Ordering::Relaxed) != number && number != NO_NODE;
        }
        if taken_over {
            self.takeovers.announce();
        }
    }

    fn owner(&self, slot: u16) -> Result<Arc<ClusterNode>, CommandError> {
        let number = self.node_number(slot);
        let node = self.nodes.read().get(usize::from(number)).cloned().flatten();
        // The refresher has logged the reason, so there is no text.
        node.ok_or_else(|| CommandError { fault: *self.fault.lock(), text: String::new() })
    }

    /// The node at an address. A new one starts to connect.
    fn node(&self, address: &Address) -> Arc<ClusterNode> {
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.iter().flatten().find(|node| node.address == *address) {
            *node.named_at.lock() = Instant::now();
            return node.clone();
        }
        let free = nodes.iter().position(Option::is_none).unwrap_or(nodes.len());
        let node = Arc::new(ClusterNode {
            number: u16::try_from(free).expect("no cluster has more nodes than slots"),
            address: address.clone(),
            connection: RedisConnection::open(
                ServerChoice::ClusterNode(address.clone()),
                self.dial.clone(),
                self.warnings.clone(),
                self.takeovers.clone(),
            ),
            named_at: Mutex::new(Instant::now()),
        });
        if free == nodes.len() {
            nodes.push(None);
        }
        nodes[free] = Some(node.clone());
        node
    }

    /// The node that a redirection of the node `by` names, once it is connected.
    async fn redirect(&self, error: &RedisError, by: &ClusterNode) -> Result<Arc<ClusterNode>, CommandError> {
        let address = error.redirect_node().and_then(|(address, _)| {
            let (host, port) = address.rsplit_once(':')?;
            node_address(host, port.parse().ok()?, &by.address)
        });
        let Some(address) = address else { return Err(CommandError::from(&*error.to_string())) };
        let node = self.node(&address);
        let timed_out = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        let connected = tokio::time::timeout(self.dial.connect_timeout(), node.connection.connected());
        connected.await.map_err(|elapsed| CommandError { fault: Fault::Unreachable, ..timed_out(elapsed).into() })?;
        Ok(node)
    }

    /// Refreshes the slot map. Returns whether every hash slot has a connected node.
    async fn refresh(&self, turn: usize) -> Result<bool, CommandError> {
        let connected = |node: &&Arc<ClusterNode>| node.connection.is_connected();
        let mut known: Vec<Arc<ClusterNode>> = self.nodes.read().iter().flatten().filter(connected).cloned().collect();
        let start = turn % known.len().max(1);
        known.rotate_left(start);
        known.truncate(QUERIED_NODES);
        let cmd = redis::cmd("CLUSTER").arg("SLOTS").take();
        let replies = known
            .iter()
            .map(async |node| (&node.address, node.connection.send(&cmd).await.map_err(CommandError::from)));
        let ranges = match first_ranges(replies).await {
            Ok(ranges) => ranges,
            Err(_) => {
                let replies = self
                    .seeds
                    .iter()
                    .map(async |seed| (seed, self.dial.send_once(seed, &cmd).await.map_err(CommandError::from)));
                first_ranges(replies).await?
            }
        };
        self.assign(&ranges);
        let nodes = self.nodes.read();
        Ok(self.slots.iter().all(|number| {
            let node = nodes.get(usize::from(number.load(Ordering::Relaxed))).and_then(Option::as_ref);
            node.is_some_and(|node| node.connection.is_connected())
        }))
    }

    /// Assigns hash slots to nodes, and drops nodes that have had none for a while.
    fn assign(&self, ranges: &SlotRanges) {
        let mut owners = vec![NO_NODE; HASH_SLOTS];
        for (first, last, address) in ranges {
            let number = self.node(address).number;
            if let Some(owned) = owners.get_mut(usize::from(*first)..=usize::from(*last)) {
                owned.fill(number);
            }
        }
        self.give(owners.iter().copied().enumerate());
        for entry in self.nodes.write().iter_mut() {
            entry.take_if(|node| !owners.contains(&node.number) && node.named_at.lock().elapsed() > IDLE_NODE_TTL);
        }
    }
}

/// Refreshes the slot map at intervals, and earlier when it may be out of date.
async fn refresh_slots(state: Arc<ClusterState>) {
    for turn in 0.. {
        let complete = match state.refresh(turn).await {
            Ok(complete) => {
                *state.fault.lock() = Fault::Unreachable;
                complete
            }
            Err(error) => {
                let error = error.while_connecting();
                *state.fault.lock() = error.fault;
                state.warnings.warn(&format_args!("CLUSTER SLOTS failed, retrying: {}", error.text));
                false
            }
        };
        tokio::time::sleep(MIN_REFRESH_INTERVAL).await;
        let interval = if complete { COMPLETE_REFRESH_INTERVAL } else { INCOMPLETE_REFRESH_INTERVAL };
        // A notification only shortens the wait.
        let _ = tokio::time::timeout(interval, state.stale.notified()).await;
    }
}

/// The first reply with any slot ranges. It does not wait for nodes that are down when another replies.
async fn first_ranges(
    replies: impl Iterator<Item = impl Future<Output = (&Address, Result<Value, CommandError>)>>,
) -> Result<SlotRanges, CommandError> {
    let mut replies: FuturesUnordered<_> = replies.collect();
    let mut failure = CommandError { fault: Fault::Unreachable, text: "no cluster nodes are configured".to_owned() };
    while let Some((by, reply)) = replies.next().await {
        match reply.map(|value| slot_ranges(&value, by)) {
            Ok(Some(ranges)) if !ranges.is_empty() => return Ok(ranges),
            Ok(_) => failure.text = format!("{by} reports no hash slots"),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The lane of a node. Nodes beyond the number of lanes share them.
fn lane_of(node: u16) -> usize {
    match node {
        NO_NODE => 0,
        node => 1 + usize::from(node) % (LANES - 1),
    }
}
