//! Counters in Redis or Valkey: every call is one script, which decides a batch of plans where the counters are.
//!
//! ```text
//!   plans -> wire::encode -> link -> EVALSHA script.lua -> wire::decode -> answers
//! ```
//!
//! In a cluster, plans of one slot are a call, and the calls of several slots are under way at the same time.
//!
//! `script.lua` is [`crate::plan::advance`] in Lua; it tells what is counted, and what follows from that is computed
//! here, by the same arithmetic as everywhere.

mod cluster;
mod link;
mod sentinel;
mod settings;
mod warnings;
mod wire;

use std::sync::{Arc, LazyLock};

use futures_util::future::join_all;
use redis::{Cmd, Value};

use self::cluster::Cluster;
use self::link::{Dial, Link, Target};
use self::sentinel::Sentinels;
pub use self::settings::{Address, Credentials, Password, RedisSettings, Topology};
use self::warnings::Warnings;
use self::wire::{Keys, Named, Problem};
use super::shared::Backend;
use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};
use crate::tls::{TlsClient, TlsError};

/// What the server knows the script by.
static DIGEST: LazyLock<String> = LazyLock::new(|| redis::Script::new(wire::SCRIPT).get_hash().to_owned());

/// A Redis or Valkey that keeps counters.
#[derive(Debug)]
pub struct Redis {
    way: Way,
    keys: Keys,
    warnings: Arc<Warnings>,
}

/// How servers are reached.
#[derive(Debug)]
enum Way {
    Server(Link),
    Cluster(Cluster),
}

impl Redis {
    /// A Redis that is connected to from now on, in the background. To be called within a runtime.
    ///
    /// # Errors
    ///
    /// [`TlsError`] when connections cannot be secured as the settings say.
    pub fn new(settings: &RedisSettings) -> Result<Self, TlsError> {
        let warnings = Arc::new(Warnings::default());
        let tls = settings.tls.as_ref().map(TlsClient::new).transpose()?;
        let dial = Dial::new(settings, &settings.credentials, settings.db, tls.clone());
        let to = |target| Way::Server(Link::open(target, dial.clone(), warnings.clone()));
        let way = match &settings.topology {
            Topology::Standalone(address) => to(Target::Server(address.clone())),
            Topology::Sentinel { sentinels, master, credentials } => {
                let dial = Dial::new(settings, credentials, 0, tls);
                to(Target::Master(Sentinels::new(sentinels.clone(), master, dial)))
            }
            Topology::Cluster(seeds) => Way::Cluster(Cluster::open(seeds.clone(), dial.clone(), warnings.clone())),
        };
        let tagged = matches!(way, Way::Cluster(_));
        Ok(Self { way, keys: Keys::new(&settings.key_prefix, tagged), warnings })
    }

    /// Asks by the script's digest, and with its text if the server does not know it: then nothing was executed.
    async fn call(&self, plans: &[Plan], now: Option<Timestamp>) -> Result<Value, Problem> {
        let cmd = wire::encode(plans, now, &self.keys, Named::Digest(&DIGEST));
        let partition = plans.first().map_or(0, partition);
        match self.ask(partition, &cmd).await {
            Err(problem) if problem.text.starts_with("NOSCRIPT") => {
                self.ask(partition, &wire::encode(plans, now, &self.keys, Named::Text)).await
            }
            answer => answer,
        }
    }

    /// Asks the server that has a partition.
    async fn ask(&self, partition: u16, cmd: &Cmd) -> Result<Value, Problem> {
        match &self.way {
            Way::Server(link) => link.ask(cmd).await.map_err(Problem::from),
            Way::Cluster(cluster) => cluster.ask(self.slot(partition), cmd).await,
        }
    }

    fn slot(&self, partition: u16) -> u16 {
        cluster::slot(&self.keys.in_partition(partition))
    }

    /// Executes plans of one slot, or of one server.
    async fn execute_there(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        let mut answers = Vec::with_capacity(plans.len());
        let mut rest = plans;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(wire::fitting(rest));
            match some {
                [plan] if !wire::can_be_asked(plan) => answers.push(Err(Fault::Script)),
                some => answers.append(&mut self.execute_some(some, now).await),
            }
            rest = others;
        }
        answers
    }

    /// Executes plans of several slots, those of each slot in order.
    async fn execute_apart(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        let slots: Vec<u16> = plans.iter().map(|plan| self.slot(partition(plan))).collect();
        if slots.iter().all(|&slot| slot == slots[0]) {
            return self.execute_there(plans, now).await;
        }
        let mut order: Vec<usize> = (0..plans.len()).collect();
        order.sort_by_key(|&number| slots[number]);
        let parts = order.chunk_by(|&one, &other| slots[one] == slots[other]).map(async |part| match part {
            &[number] => self.execute_there(&plans[number..=number], now).await,
            part => {
                let plans: Vec<Plan> = part.iter().map(|&number| plans[number].clone()).collect();
                self.execute_there(&plans, now).await
            }
        });
        let mut answers: Vec<_> = order.iter().copied().zip(join_all(parts).await.into_iter().flatten()).collect();
        answers.sort_unstable_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn execute_some(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        match self.call(plans, now).await {
            Ok(reply) => {
                let answers = wire::decode(plans, &reply).into_iter();
                answers.map(|answer| answer.map_err(|problem| self.warn(problem))).collect()
            }
            Err(problem) => {
                let fault = self.warn(problem);
                plans.iter().map(|_| Err(fault)).collect()
            }
        }
    }

    fn warn(&self, problem: Problem) -> Fault {
        if let (Way::Server(link), true) = (&self.way, problem.text.starts_with("READONLY")) {
            link.look_again();
        }
        // Of a connection that is not there its supervisor tells.
        if !problem.text.is_empty() {
            self.warnings.say(&problem.text);
        }
        problem.fault
    }
}

impl Backend for Redis {
    async fn execute(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        match &self.way {
            Way::Server(_) => self.execute_there(plans, now).await,
            Way::Cluster(_) => self.execute_apart(plans, now).await,
        }
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        let cmd = redis::cmd("UNLINK").arg(&self.keys.of(counter)).take();
        match self.ask(counter.partition(), &cmd).await {
            Ok(Value::Int(keys)) => Ok(keys > 0),
            Ok(_) => Err(Fault::Script),
            Err(problem) => Err(self.warn(problem)),
        }
    }

    /// Writes a key that holds no counter: nothing else says that one can be written.
    async fn probe(&self) -> Result<(), Fault> {
        if let Way::Cluster(cluster) = &self.way {
            return cluster.probe(&self.keys).await;
        }
        let cmd = redis::cmd("SET").arg(self.keys.probe()).arg("").arg("PX").arg(60_000).take();
        self.ask(0, &cmd).await.map(drop).map_err(|problem| self.warn(problem))
    }

    fn lanes(&self) -> usize {
        match &self.way {
            Way::Server(_) => 1,
            Way::Cluster(_) => cluster::LANES,
        }
    }

    fn lane(&self, plan: &Plan) -> usize {
        match &self.way {
            Way::Server(_) => 0,
            Way::Cluster(cluster) => cluster.lane(self.slot(partition(plan))),
        }
    }

    async fn probe_lane(&self, lane: usize) -> Result<(), Fault> {
        match &self.way {
            Way::Server(_) => self.probe().await,
            Way::Cluster(cluster) => cluster.probe_lane(lane, &self.keys).await,
        }
    }
}

/// Where a plan is decided. All of its counters have one partition, where that matters.
fn partition(plan: &Plan) -> u16 {
    let checks = plan.checks.iter().map(|check| check.counter);
    let changes = plan.changes.iter().map(|change| change.counter);
    let mut counters = checks.chain(changes).chain(plan.undos.iter().map(|undo| undo.counter));
    counters.next().map_or(0, |counter| counter.partition())
}
