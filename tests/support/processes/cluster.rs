//! A real Redis Cluster and its events: hash slots move, replicas are promoted, nodes crash.

use std::ops::RangeInclusive;

use redis::RedisResult;

use super::redis::Setup;
use super::{Redis, ports, until};

/// Hash slots of a cluster.
const SLOTS: usize = 16_384;

/// Milliseconds without an answer after which a node is considered failed.
const NODE_TIMEOUT: u32 = 2_000;

/// The nodes of a cluster: first the primaries, with equal shares of the hash slots in order, then the replicas of
/// each.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Redis>,
}

/// A node as another one sees it: a line of CLUSTER NODES.
///
/// ```text
/// id host:port@bus,name flags primary ping pong epoch link slots ...
/// ```
#[derive(Debug)]
struct Seen {
    port: u16,
    flags: String,
    epoch: u64,
    linked: bool,
    slots: Vec<RangeInclusive<u16>>,
}

impl Seen {
    fn is_primary(&self) -> bool {
        self.flags.contains("master")
    }
}

impl Cluster {
    /// Starts a cluster of Redis, and waits until all nodes agree that it works. None when Redis is not installed.
    pub fn start(primaries: usize, replicas: usize) -> Option<Self> {
        // Without replicas there is no failover, so a node that the machine delays need not be considered failed.
        let timeout = if replicas == 0 { 15_000 } else { NODE_TIMEOUT };
        Setup::redis().map(|setup| Self::with(&setup, primaries, replicas, timeout))
    }

    /// Starts a cluster with this setup, and waits until all nodes agree that it works.
    pub fn of(setup: &Setup, primaries: usize, replicas: usize) -> Self {
        Self::with(setup, primaries, replicas, NODE_TIMEOUT)
    }

    fn with(setup: &Setup, primaries: usize, replicas: usize, timeout: u32) -> Self {
        let nodes: Vec<Redis> = (0..primaries * (1 + replicas)).map(|_| node(setup, timeout)).collect();
        for (number, node) in nodes.iter().enumerate() {
            node.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            for other in &nodes[..number] {
                let bus: Vec<String> = other.ask(&["CONFIG", "GET", "cluster-port"]);
                node.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &bus[1]]);
            }
        }
        for (number, node) in nodes[..primaries].iter().enumerate() {
            let (first, end) = (number * SLOTS / primaries, (number + 1) * SLOTS / primaries);
            node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(end - 1).to_string()]);
        }
        let cluster = Self { nodes };
        for (number, replica) in cluster.nodes[primaries..].iter().enumerate() {
            let primary = &cluster.nodes[number / replicas];
            let id: String = primary.ask(&["CLUSTER", "MYID"]);
            until("a replica hears of its primary", || replica.command::<()>(&["CLUSTER", "REPLICATE", &id]).is_ok());
        }
        cluster.settled(primaries * replicas);
        cluster.nodes[primaries..].iter().for_each(Redis::synced);
        cluster
    }

    /// The ports of its nodes.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// The hash slot of a key.
    pub fn slot(&self, key: &str) -> u16 {
        self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key])
    }

    /// The hash slot of a partition, by the hash tag in the layout of keys.
    pub fn slot_of_partition(&self, partition: u16) -> u16 {
        let part = |shift: u16| char::from(b'0' + ((partition >> shift) & 0x3f) as u8);
        self.slot(&format!("{{{}{}{}}}", part(12), part(6), part(0)))
    }

    /// The node that owns a hash slot, from the view of the node `observer`.
    pub fn owner(&self, slot: u16, observer: usize) -> Option<usize> {
        let seen = seen(&self.nodes[observer]).expect("the node is there");
        let owner = seen.iter().find(|seen| seen.slots.iter().any(|slots| slots.contains(&slot)))?;
        self.nodes.iter().position(|node| node.port == owner.port)
    }

    /// Moves a hash slot with all its keys, while it is used.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        self.move_keys(slot, from, to);
        self.end_move(slot, from, to);
    }

    /// Begins to move a hash slot: from now on, the node redirects with ASK for keys that it does not have.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = &slot.to_string();
        self.nodes[to].ask::<()>(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &self.id(from)]);
        self.nodes[from].ask::<()>(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves the keys of a hash slot that is being moved.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize) {
        loop {
            let keys: Vec<Vec<u8>> = self.nodes[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
            if keys.is_empty() {
                return;
            }
            let mut command = redis::cmd("MIGRATE");
            command.arg("127.0.0.1").arg(self.nodes[to].port).arg("").arg(0).arg(5_000).arg("KEYS").arg(keys);
            let mut connection = self.nodes[from].connection().expect("the node is there");
            command.exec(&mut connection).expect("keys move");
        }
    }

    /// Finishes the move of a hash slot: from now on, its previous node redirects with MOVED.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        let id = self.id(to);
        // The receiving node is notified first: otherwise the slot has no owner for a moment. The others are too: a
        // node that learns of an earlier move only now would take the slot from its owner.
        let others = (0..self.nodes.len()).filter(|node| ![to, from].contains(node) && self.is_primary(*node));
        for node in [to, from].into_iter().chain(others) {
            self.nodes[node].ask::<()>(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]);
        }
        until("all know who is the latest", || self.agree_on_epochs());
    }

    /// Whether all nodes see the same epoch for each node, and no two nodes have the same epoch. A slot that two nodes
    /// claim belongs to the later epoch.
    fn agree_on_epochs(&self) -> bool {
        let epochs = |node| {
            let seen = seen(node).unwrap_or_default().into_iter();
            let mut epochs: Vec<(u64, u16)> =
                seen.filter(Seen::is_primary).map(|seen| (seen.epoch, seen.port)).collect();
            epochs.sort_unstable();
            epochs
        };
        let first = epochs(&self.nodes[0]);
        let apart = first.windows(2).all(|pair| pair[0].0 < pair[1].0);
        apart && self.nodes.iter().all(|node| epochs(node) == first)
    }

    fn is_primary(&self, node: usize) -> bool {
        let port = self.nodes[node].port;
        let seen = seen(&self.nodes[node]).expect("the node is there");
        seen.iter().any(|seen| seen.port == port && seen.is_primary())
    }

    /// Promotes a replica while its primary runs, and waits until it is a primary.
    pub fn promote(&self, replica: usize) {
        // A node does not vote for a replica that it still considers a primary, and the replica does not ask again.
        for node in &self.nodes {
            until("all see a replica in it", || self.sees_replica(node, replica));
        }
        let node = &self.nodes[replica];
        node.ask::<()>(&["CLUSTER", "FAILOVER"]);
        self.promoted(replica);
    }

    fn sees_replica(&self, node: &Redis, replica: usize) -> bool {
        let port = self.nodes[replica].port;
        seen(node).is_ok_and(|seen| seen.iter().any(|seen| seen.port == port && seen.flags.contains("slave")))
    }

    /// Waits until a replica has become a primary.
    pub fn promoted(&self, replica: usize) {
        self.nodes[replica].becomes("replication", "role", "master");
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].ask(&["CLUSTER", "MYID"])
    }

    fn settled(&self, replicas: usize) {
        for node in &self.nodes {
            until("the cluster is well", || {
                // A replica does not answer while it loads.
                let (Ok(info), Ok(seen)) = (node.command::<String>(&["CLUSTER", "INFO"]), seen(node)) else {
                    return false;
                };
                info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_ok:16384")
                    && seen.len() == self.nodes.len()
                    && seen.iter().all(|seen| seen.linked && !seen.flags.contains("handshake"))
                    && seen.iter().filter(|seen| seen.flags.contains("slave")).count() == replicas
            });
        }
    }
}

fn node(setup: &Setup, timeout: u32) -> Redis {
    let setup = setup.clone().line("cluster-enabled yes").line(format!("cluster-node-timeout {timeout}"));
    // The default port of the bus lies in the range of outgoing connections.
    setup.line(format!("cluster-port {}", ports::free())).start()
}

fn seen(node: &Redis) -> RedisResult<Vec<Seen>> {
    let text: String = node.command(&["CLUSTER", "NODES"])?;
    Ok(text.lines().map(|line| read(line).unwrap_or_else(|| panic!("not a node: {line}"))).collect())
}

fn read(line: &str) -> Option<Seen> {
    let words: Vec<&str> = line.split(' ').collect();
    let [_, address, flags, _, _, _, epoch, link, slots @ ..] = words.as_slice() else { return None };
    let (_, port) = address.split_once('@')?.0.rsplit_once(':')?;
    // A slot in transit is in brackets; it counts once it has arrived.
    let slots = slots.iter().filter(|slots| !slots.starts_with('[')).map(|slots| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    Some(Seen {
        port: port.parse().ok()?,
        flags: (*flags).to_owned(),
        epoch: epoch.parse().ok()?,
        linked: *link == "connected",
        slots: slots.collect::<Option<_>>()?,
    })
}
