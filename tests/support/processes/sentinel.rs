//! A real Sentinel setup: a primary, two replicas and three sentinels.

use std::collections::HashMap;

use super::redis::Setup;
use super::{Redis, until};

/// The sentinels' name for the primary.
pub const NAME: &str = "limits";

/// Three servers and three sentinels, with a quorum of two.
#[derive(Debug)]
pub struct Sentinel {
    /// The first is the primary until a failover.
    pub servers: Vec<Redis>,
    /// The sentinels.
    pub sentinels: Vec<Redis>,
}

impl Sentinel {
    /// Starts them with Redis, and waits until all know each other. None when Redis is not installed.
    pub fn start() -> Option<Self> {
        Setup::redis().map(|setup| Self::of(&setup))
    }

    /// Starts them with this setup, and waits until all know each other.
    pub fn of(setup: &Setup) -> Self {
        let primary = setup.clone().start();
        let mut servers: Vec<Redis> = (0..2).map(|_| setup.clone().replica_of(&primary).start()).collect();
        servers.iter().for_each(Redis::synced);
        let sentinels = (0..3).map(|_| watching(setup, &primary)).collect();
        servers.insert(0, primary);
        let all = Self { servers, sentinels };
        all.settled();
        all
    }

    /// The ports of the sentinels.
    pub fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// The index of the primary, according to the sentinels.
    pub fn primary(&self) -> usize {
        let port = named(&self.sentinels[0]);
        self.servers.iter().position(|server| server.port == port).expect("the primary is one of these")
    }

    /// Makes the sentinels promote a replica, waits until it is the primary, and returns its index.
    pub fn failover(&self) -> usize {
        let before = self.primary();
        // A failover in progress is not started again; one that failed is.
        until("a failover succeeds", || {
            let _ = self.sentinels[0].command::<()>(&["SENTINEL", "FAILOVER", NAME]);
            self.agreed().is_some_and(|primary| primary != before)
        });
        self.promoted(before)
    }

    /// Waits until all sentinels have another primary than this one, and returns its index.
    pub fn promoted(&self, before: usize) -> usize {
        // What they agreed on, not what they say afterwards: they may still change their minds.
        let mut promoted = before;
        until("a replica is promoted", || {
            promoted = self.agreed().unwrap_or(before);
            promoted != before
        });
        promoted
    }

    /// The primary, if all sentinels name the same server and it is one: they may change their minds during a failover.
    fn agreed(&self) -> Option<usize> {
        let port = named(&self.sentinels[0]);
        let primary = self.servers.iter().position(|server| server.port == port)?;
        let role: String = self.servers[primary].command::<(String, redis::Value, redis::Value)>(&["ROLE"]).ok()?.0;
        (role == "master" && self.sentinels.iter().all(|sentinel| named(sentinel) == port)).then_some(primary)
    }

    /// Waits until each of them knows the two replicas and the other two sentinels, so that a failover can succeed.
    fn settled(&self) {
        for sentinel in &self.sentinels {
            until("the sentinels know each other", || {
                let known: HashMap<String, String> = sentinel.ask(&["SENTINEL", "MASTER", NAME]);
                known["flags"] == "master" && known["num-slaves"] == "2" && known["num-other-sentinels"] == "2"
            });
        }
    }
}

/// The port of the primary, according to this sentinel.
fn named(sentinel: &Redis) -> u16 {
    let (_, port): (String, u16) = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
    port
}

fn watching(setup: &Setup, primary: &Redis) -> Redis {
    let sentinel = setup.clone().sentinel();
    let sentinel = sentinel
        .line(format!("sentinel monitor {NAME} 127.0.0.1 {} 2", primary.port))
        .line(format!("sentinel down-after-milliseconds {NAME} 500"))
        .line(format!("sentinel failover-timeout {NAME} 2000"))
        .start();
    // By default they poll servers every ten seconds and each other every two, which is too slow for a test.
    sentinel.ask::<()>(&["SENTINEL", "DEBUG", "info-period", "200", "publish-period", "200"]);
    sentinel
}
