//! A real Sentinel: one that is written to, two that follow it, and three that watch.

use std::collections::HashMap;

use super::redis::Setup;
use super::{Redis, until};

/// The name that the sentinels know the primary by.
pub const NAME: &str = "limits";

/// Three servers and three sentinels, of which two agree.
#[derive(Debug)]
pub struct Sentinel {
    /// The first is the primary until a failover.
    pub servers: Vec<Redis>,
    /// Who watches.
    pub sentinels: Vec<Redis>,
}

impl Sentinel {
    /// Starts them with Redis, and waits until everybody knows everybody. None when it is not installed.
    pub fn start() -> Option<Self> {
        Setup::redis().map(|setup| Self::of(&setup))
    }

    /// Starts them as this setup has it, and waits until everybody knows everybody.
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

    /// Which of the servers is the primary, as the sentinels have it.
    pub fn primary(&self) -> usize {
        let port = named(&self.sentinels[0]);
        self.servers.iter().position(|server| server.port == port).expect("the primary is one of these")
    }

    /// Has them promote a replica, and waits until it is the primary. Says which.
    pub fn failover(&self) -> usize {
        let before = self.primary();
        // One that is under way is not begun again; one that came to nothing is.
        until("a failover succeeds", || {
            let _ = self.sentinels[0].command::<()>(&["SENTINEL", "FAILOVER", NAME]);
            self.agreed().is_some_and(|primary| primary != before)
        });
        self.promoted(before)
    }

    /// Waits until another than this one is the primary, for all sentinels. Says which.
    pub fn promoted(&self, before: usize) -> usize {
        until("a replica is promoted", || self.agreed().is_some_and(|primary| primary != before));
        self.primary()
    }

    /// The primary, when all sentinels name the same and it is one: they change their minds while they promote.
    fn agreed(&self) -> Option<usize> {
        let port = named(&self.sentinels[0]);
        let primary = self.servers.iter().position(|server| server.port == port)?;
        let role: String = self.servers[primary].command::<(String, redis::Value, redis::Value)>(&["ROLE"]).ok()?.0;
        (role == "master" && self.sentinels.iter().all(|sentinel| named(sentinel) == port)).then_some(primary)
    }

    /// Waits until each of them knows the two replicas and the two others, so that a failover can succeed.
    fn settled(&self) {
        for sentinel in &self.sentinels {
            until("the sentinels know each other", || {
                let known: HashMap<String, String> = sentinel.ask(&["SENTINEL", "MASTER", NAME]);
                known["flags"] == "master" && known["num-slaves"] == "2" && known["num-other-sentinels"] == "2"
            });
        }
    }
}

/// The port of the primary, as this sentinel has it.
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
    // They look around every ten seconds and talk to each other every two: too slow for a test.
    sentinel.ask::<()>(&["SENTINEL", "DEBUG", "info-period", "200", "publish-period", "200"]);
    sentinel
}
